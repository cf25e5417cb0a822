//! What an engine prepares: a bundle with its config.json, and the state it writes to the hook's stdin.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::env::Env;

/// Who calls, told apart by the annotations it sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Containerd,
    CriO,
    Dockershim,
    /// docker, podman, nerdctl, ctr: none of these annotations, one container that is its own sandbox.
    Single,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sandbox,
    Workload,
}

impl Engine {
    pub(crate) const WITH_PODS: [Engine; 3] = [Engine::Containerd, Engine::CriO, Engine::Dockershim];

    pub(crate) fn annotations(self, kind: Kind, sandbox: &str) -> Value {
        let word = |sandbox, workload| if kind == Kind::Sandbox { sandbox } else { workload };
        match self {
            Engine::Containerd => json!({
                "io.kubernetes.cri.container-type": word("sandbox", "container"),
                "io.kubernetes.cri.sandbox-id": sandbox,
            }),
            Engine::CriO => json!({
                "io.container.manager": "cri-o",
                "io.kubernetes.cri-o.ContainerType": word("sandbox", "container"),
                "io.kubernetes.cri-o.SandboxID": sandbox,
            }),
            Engine::Dockershim => json!({
                "io.kubernetes.docker.type": word("podsandbox", "container"),
                "io.kubernetes.sandbox.id": sandbox,
            }),
            Engine::Single => json!({}),
        }
    }
}

/// A bundle; what is changed in it counts once it is written again.
#[derive(Clone)]
pub(crate) struct Bundle {
    pub id: String,
    pub dir: PathBuf,
    pub config: Value,
}

impl Env {
    /// A single container that is its own sandbox, with a limit of 1.5 CPU, in `<top>/pod/<id>`.
    pub(crate) fn bundle(&self) -> Bundle {
        self.bundle_of(Engine::Single, Kind::Workload, &self.name, &self.name)
    }

    /// A container of a sandbox, as this engine describes it.
    pub(crate) fn bundle_of(&self, engine: Engine, kind: Kind, sandbox: &str, id: &str) -> Bundle {
        let mut dir = self.dir.join("bundles").join(id);
        if engine == Engine::CriO {
            dir = dir.join("userdata");
        }
        let config = json!({
            "ociVersion": "1.0.2",
            "process": { "args": ["sleep", "1000"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
            "root": { "path": "rootfs" },
            "annotations": engine.annotations(kind, sandbox),
            "linux": {
                "cgroupsPath": format!("{}/pod/{id}", self.top()),
                "resources": { "cpu": { "shares": 1536, "quota": 150_000, "period": 100_000 } },
                "namespaces": [{ "type": "pid" }, { "type": "mount" }],
            },
        });
        Bundle { id: id.to_owned(), dir, config }.write()
    }
}

impl Bundle {
    pub(crate) fn write(self) -> Bundle {
        fs::create_dir_all(&self.dir).unwrap();
        fs::write(self.config_json(), self.config.to_string()).unwrap();
        self
    }

    pub(crate) fn config_json(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    pub(crate) fn cgroups_path(mut self, path: &str) -> Bundle {
        self.config["linux"]["cgroupsPath"] = json!(path);
        self.write()
    }

    /// `linux.resources.cpu`.
    pub(crate) fn cpu(mut self, cpu: Value) -> Bundle {
        self.config["linux"]["resources"]["cpu"] = cpu;
        self.write()
    }

    pub(crate) fn annotate(mut self, key: &str, value: &str) -> Bundle {
        self.config["annotations"][key] = json!(value);
        self.write()
    }

    /// The state as the Go runtime marshals it: no version, no status.
    pub(crate) fn state(&self, pid: i32) -> String {
        self.state_with_id(&self.id, pid)
    }

    /// The same as the Go runtime gives it at poststart and poststop, where the id is the sandbox's.
    pub(crate) fn state_with_id(&self, id: &str, pid: i32) -> String {
        let state = self.state_without_annotations(id, pid);
        match &self.config["annotations"] {
            Value::Object(annotations) if !annotations.is_empty() => {
                let state = format!("{},\"annotations\":{}}}", state.trim_end_matches('}'), self.config["annotations"]);
                // Go's way with what HTML would take for its own.
                ['<', '>', '&']
                    .into_iter()
                    .fold(state, |state, sign| state.replace(sign, &format!("\\u{:04x}", u32::from(sign))))
            }
            _ => state,
        }
    }

    /// The same as Kata before 2.4 gave it, which has no annotations.
    pub(crate) fn state_without_annotations(&self, id: &str, pid: i32) -> String {
        let (id, bundle) = (json!(id), json!(self.dir));
        format!(r#"{{"ociVersion":"","id":{id},"status":"","pid":{pid},"bundle":{bundle}}}"#)
    }

    /// The state as runtime-rs gives it: config.json's version, a status, and always the container's own id.
    pub(crate) fn state_of_runtime_rs(&self, status: &str, pid: i32) -> String {
        let mut state = json!({
            "ociVersion": self.config["ociVersion"], "id": self.id, "status": status, "pid": pid, "bundle": self.dir,
        });
        if self.config["annotations"].as_object().is_some_and(|annotations| !annotations.is_empty()) {
            state["annotations"] = self.config["annotations"].clone();
        }
        state.to_string()
    }

    /// The state as podman gives it at poststop: the container is gone, and so is its pid.
    pub(crate) fn state_of_podman_poststop(&self) -> String {
        json!({
            "ociVersion": "1.0.2-dev", "id": self.id, "status": "stopped",
            "bundle": self.dir, "annotations": self.config["annotations"],
        })
        .to_string()
    }
}
