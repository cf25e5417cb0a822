//! containerd with the hooks in a base specification, as packaging/containerd makes it and registers it.
//!
//! `ctr run` takes such a specification for one container; the CRI plugin takes it for the workload containers of a pod, and
//! only for those: at the end of the pod no hook runs. What is shipped names Kata's own shim; here that is containerd's for runc,
//! which calls the stand-in.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::cri::Cri;
use crate::kata::{Generation, Runtime};
use crate::node::{self, Node};
use crate::podman::import_image;
use crate::testenv::*;

/// What is shipped, and where it says that the base specification is.
const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/containerd");
const BASE: &str = "/etc/containerd/kata-cgroup-hook.json";
const IMAGE: &str = "localhost/busybox:latest";

struct Containerd<'e> {
    env: &'e Env,
    dir: PathBuf,
    /// The base specification, which it reads as it starts.
    base: Value,
    // It ends with this.
    _process: Process,
}

impl<'e> Containerd<'e> {
    /// With a runtime `kata` as it is shipped, but for the shim.
    fn start(env: &'e Env, runtime: &Runtime, driver: Driver) -> Containerd<'e> {
        let dir = env.dir.join("containerd");
        fs::create_dir(&dir).unwrap();
        let shown = dir.display();
        let shipped = fs::read_to_string(Path::new(PACKAGING).join("runtime.toml")).unwrap();
        assert!(shipped.contains("io.containerd.kata.v2") && shipped.contains(BASE), "{shipped}");
        let base = write_base_spec();
        // Each pod gets a copy of the node's, and a VM without a network has none.
        for file in ["/etc/hosts", "/etc/resolv.conf"] {
            File::options().append(true).create(true).open(file).unwrap();
        }
        let config = format!(
            "version = 2\nroot = \"{shown}/root\"\nstate = \"{shown}/state\"\n[grpc]\naddress = \"{shown}/sock\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{IMAGE}\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n\
             {}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata.options]\n\
             BinaryName = \"{}\"\nSystemdCgroup = {}\n",
            shipped.replace("io.containerd.kata.v2", "io.containerd.runc.v2"),
            runtime.program().display(),
            driver == Driver::Systemd,
        );
        write_file(&dir.join("config.toml"), 0o644, &config);
        let log = File::create(dir.join("log")).unwrap();
        let mut command = Process::command("containerd");
        command.arg("--config").arg(dir.join("config.toml")).stdin(Stdio::null());
        let process = Process::spawn(command.stdout(log.try_clone().unwrap()).stderr(log));
        let containerd = Containerd { env, dir, base, _process: process };
        wait_until("containerd", || {
            assert!(!containerd.log().contains("failed to load plugin io.containerd.grpc.v1.cri"), "it has no CRI");
            containerd.cri().is_ready()
        });
        containerd
    }

    fn cri(&self) -> Cri {
        Cri { socket: self.dir.join("sock") }
    }

    /// Without a network, from a file: podman's image.
    fn import_image(&self) {
        let podman = Podman::new(self.env, Podman::runtimes()[0]);
        import_image(&podman);
        let archive = self.env.dir.join("busybox.tar").display().to_string();
        podman.run(&["save", "--quiet", "--format", "oci-archive", "--output", &archive, IMAGE]);
        self.ctr(&["images", "import", "--snapshotter", "native", &archive]);
    }

    #[track_caller]
    fn ctr(&self, args: &[&str]) -> String {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.dir.join("sock")).args(["--namespace", "k8s.io"]).args(args);
        let output = command.output().unwrap();
        assert!(output.status.success(), "ctr {args:?}: {}\n{}", String::from_utf8_lossy(&output.stderr), self.last_words());
        String::from_utf8(output.stdout).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap()
    }

    fn last_words(&self) -> String {
        self.log().lines().rev().take(6).collect::<Vec<_>>().join("\n")
    }
}

/// What a failing call leaves to read.
impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(BASE);
        if std::thread::panicking() {
            println!("containerd's log, last line first:\n{}", self.last_words());
        }
    }
}

/// Runs what is shipped for it.
fn write_base_spec() -> Value {
    fs::create_dir_all(Path::new(BASE).parent().unwrap()).unwrap();
    let mut command = Command::new(Path::new(PACKAGING).join("base-spec"));
    let status = command.stdout(File::create(BASE).unwrap()).status().unwrap();
    assert!(status.success(), "base-spec: {status}");
    let base: Value = serde_json::from_str(&fs::read_to_string(BASE).unwrap()).unwrap();
    let stages: Vec<&String> = base["hooks"].as_object().unwrap().keys().collect();
    assert_eq!(stages, ["createRuntime", "poststart", "poststop"]);
    base
}

#[test]
fn what_ctr_has_kata_1_run_is_placed_and_leaves_nothing() {
    run_with_ctr(Generation::Go1, &[("poststart", "placed")]);
}

#[test]
fn what_ctr_has_kata_3_run_is_placed_and_leaves_nothing() {
    run_with_ctr(Generation::Go3, &[("createRuntime", "placed"), ("poststart", "unchanged")]);
}

#[test]
fn what_ctr_has_runtime_rs_run_is_placed_and_leaves_nothing() {
    run_with_ctr(Generation::RuntimeRs, &[("createRuntime", "placed"), ("poststart", "unchanged")]);
}

fn run_with_ctr(generation: Generation, expected: &[(&str, &str)]) {
    let Some(env) = node::in_a_vm() else { return };
    let node = Node::install(&env);
    let runtime = Runtime::installed(&env, generation);
    let containerd = Containerd::start(&env, &runtime, Driver::Cgroupfs);
    let id = &env.name;
    let mut spec = containerd.base.clone();
    spec["process"]["args"] = json!(["/bin/sleep", "1000"]);
    spec["root"] = json!({ "path": env.dir.join("rootfs") });
    spec["linux"]["resources"]["cpu"] = json!({ "quota": 150_000, "period": 100_000 });
    spec["linux"]["cgroupsPath"] = json!(format!("{}/pod/{id}", env.top()));
    fs::create_dir(env.dir.join("rootfs")).unwrap();
    let file = env.dir.join("spec.json");
    fs::write(&file, spec.to_string()).unwrap();

    let (file, program) = (file.display().to_string(), runtime.program().display().to_string());
    containerd.ctr(&["run", "--detach", "--null-io", "--runc-binary", &program, "--config", &file, id]);
    let sandbox = runtime.sandbox(id);
    sandbox.assert_placed(&env.group());
    assert_eq!(env.limits().quota, Some(150_000));
    node.assert_ran(expected, id, "started");

    containerd.ctr(&["task", "kill", "--signal", "SIGKILL", id]);
    wait_until("containerd to know", || containerd.ctr(&["task", "ls"]).contains("STOPPED"));
    containerd.ctr(&["task", "rm", id]);
    containerd.ctr(&["container", "rm", id]);
    node.assert_ran(&[("poststop", "released")], id, "ended");
    assert_eq!(runtime.warnings(), "");
    runtime.assert_gone(&sandbox);
    node::assert_no_record();
    env.assert_no_groups();
}

/// The pod's own group, as kubelet makes it, and what the CRI calls it.
fn make_pod_group(env: &Env, driver: Driver) -> String {
    match driver {
        Driver::Cgroupfs => {
            let path = format!("{}/pod", env.top());
            premake(&path);
            path
        }
        Driver::Systemd => {
            let slice = format!("{}.slice", env.slice());
            assert!(Command::new("systemctl").args(["start", &slice]).status().unwrap().success());
            slice
        }
    }
}

fn remove_pod_group(env: &Env, driver: Driver) {
    match driver {
        Driver::Cgroupfs => everywhere(&env.top()).iter().for_each(|group| assert!(group.remove_tree(), "{group:?}")),
        Driver::Systemd => {
            let slice = format!("{}.slice", env.slice());
            assert!(Command::new("systemctl").args(["stop", &slice]).status().unwrap().success());
        }
    }
}

/// Where the documentation of the hook has the sandbox's groups.
fn expected_group(parent: &str, sandbox: &str, driver: Driver) -> String {
    match driver {
        Driver::Cgroupfs => format!("{parent}/kata_{sandbox}"),
        Driver::Systemd => format!("/{parent}/kata_cri-containerd-{sandbox}.scope"),
    }
}

#[test]
fn a_pod_of_the_cri_that_kata_1_runs_has_the_sum_of_its_containers_and_reconcile_sees_its_end() {
    run_with_the_cri(Generation::Go1, &[("poststart", "placed")]);
}

#[test]
fn a_pod_of_the_cri_that_kata_3_runs_has_the_sum_of_its_containers_and_reconcile_sees_its_end() {
    run_with_the_cri(Generation::Go3, &[("createRuntime", "placed"), ("poststart", "unchanged")]);
}

/// It runs no createRuntime for a workload container.
#[test]
fn a_pod_of_the_cri_that_runtime_rs_runs_has_the_sum_of_its_containers_and_reconcile_sees_its_end() {
    run_with_the_cri(Generation::RuntimeRs, &[("poststart", "placed")]);
}

fn run_with_the_cri(generation: Generation, expected: &[(&str, &str)]) {
    let Some(env) = node::in_a_vm() else { return };
    let node = Node::install(&env);
    let driver = Driver::all()[0];
    let runtime = Runtime::installed(&env, generation);
    let containerd = Containerd::start(&env, &runtime, driver);
    containerd.import_image();
    let parent = make_pod_group(&env, driver);
    let cri = containerd.cri();
    let pod = cri.run_pod("kata", &parent);
    let sandbox = runtime.sandbox(&pod.id);
    let group = expected_group(&parent, &pod.id, driver);
    assert!(node.runs().is_empty(), "a hook of the pause container's");

    let one = pod.start("one", IMAGE, 50_000);
    sandbox.assert_placed(&group);
    assert_eq!(limits_at(&group).quota, Some(50_000));
    node.assert_ran(expected, &pod.id, "one");
    let two = pod.start("two", IMAGE, 100_000);
    sandbox.assert_placed(&group);
    assert_eq!(limits_at(&group).quota, Some(150_000));
    node.assert_ran(expected, &pod.id, "two");

    pod.stop(&one);
    assert_eq!(limits_at(&group).quota, Some(100_000));
    node.assert_ran(&[("poststop", "placed")], &pod.id, "one");
    // The last one's end frees no guest.
    pod.stop(&two);
    node.assert_ran(&[("poststop", "unchanged")], &pod.id, "two");
    sandbox.assert_placed(&group);
    assert_eq!(limits_at(&group).quota, Some(100_000));

    pod.end();
    runtime.assert_gone(&sandbox);
    assert!(node.runs().is_empty(), "a hook of the pause container's");
    assert_eq!(runtime.warnings(), "");
    node::reconcile();
    node::assert_no_record();
    node.assert_no_groups("reconciled");
    remove_pod_group(&env, driver);
}
