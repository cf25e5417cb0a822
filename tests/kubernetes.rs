//! packaging/kubernetes: the manifests are what the API takes, and the container's program does to a node what its head says.
//!
//! The schemas are the API's own, of Kubernetes 1.37, as kubernetes-validate 1.37.0 has them in its strict form (a key that is not
//! known is an error), without their prose and with only what these kinds need. The image is built and run by podman in a virtual machine,
//! whose root is the node's: it installs into /usr.

mod testenv;

use std::fs;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use testenv::*;

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/kubernetes");

/// The objects in a file of packaging/kubernetes.
fn objects(file: &str) -> Vec<Value> {
    let text = fs::read_to_string(Path::new(MANIFESTS).join(file)).unwrap();
    serde_yaml_ng::Deserializer::from_str(&text).map(|one| Value::deserialize(one).unwrap()).collect()
}

/// What of `value` is not as the schema of this name has it.
fn wrong(schemas: &Value, schema: &Value, value: &Value, place: &str) -> Vec<String> {
    if let Some(name) = schema.get("$ref") {
        return wrong(schemas, &schemas[name.as_str().unwrap()], value, place);
    }
    if let Some(choices) = schema.get("oneOf") {
        let fits = |choice: &&Value| wrong(schemas, choice, value, place).is_empty();
        let all = choices.as_array().unwrap();
        return if all.iter().any(|choice| fits(&choice)) { vec![] } else { vec![format!("{place}: {value}")] };
    }
    let is_of = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        other => panic!("{other} is not known to the tests"),
    };
    let kinds: Vec<&str> = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().map(|kind| kind.as_str().unwrap()).collect(),
        kind => vec![kind.as_str().unwrap_or_else(|| panic!("{place}: no type in {schema}"))],
    };
    if !kinds.into_iter().any(is_of) {
        return vec![format!("{place}: {value} is no {}", schema["type"])];
    }
    let mut errors = Vec::new();
    if schema.get("enum").is_some_and(|values| !values.as_array().unwrap().contains(value)) {
        errors.push(format!("{place}: {value} is none of {}", schema["enum"]));
    }
    for key in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if value.get(key.as_str().unwrap()).is_none() {
            errors.push(format!("{place}: no {key}"));
        }
    }
    for (key, value) in value.as_object().into_iter().flatten() {
        let place = format!("{place}.{key}");
        match (schema.get("properties").and_then(|known| known.get(key)), schema.get("additionalProperties")) {
            (Some(schema), _) => errors.extend(wrong(schemas, schema, value, &place)),
            (None, Some(schema)) if schema.is_object() => errors.extend(wrong(schemas, schema, value, &place)),
            _ => errors.push(format!("{place}: there is no such key")),
        }
    }
    for (index, value) in value.as_array().into_iter().flatten().enumerate() {
        errors.extend(wrong(schemas, &schema["items"], value, &format!("{place}[{index}]")));
    }
    errors
}

fn schemas() -> Value {
    serde_json::from_str(include_str!("fixtures/kubernetes/schemas.json")).unwrap()
}

fn wrong_in(object: &Value) -> Vec<String> {
    let version = object["apiVersion"].as_str().unwrap();
    let group = if version.contains('/') { version.replace('/', ".") } else { format!("core.{version}") };
    let kind = object["kind"].as_str().unwrap();
    let schemas = schemas();
    wrong(&schemas, &schemas[format!("io.k8s.api.{group}.{kind}")], object, kind)
}

#[test]
fn the_manifests_are_as_the_api_has_them() {
    let kustomization = &objects("install/kustomization.yaml")[0];
    let files: Vec<&str> = kustomization["resources"].as_array().unwrap().iter().map(|file| file.as_str().unwrap()).collect();
    let all: Vec<Value> = files.iter().flat_map(|file| objects(&format!("install/{file}"))).collect();
    assert_eq!(
        all.iter().map(|one| one["kind"].as_str().unwrap()).collect::<Vec<_>>(),
        ["Namespace", "ConfigMap", "DaemonSet"]
    );
    for object in &all {
        assert_eq!(wrong_in(object), Vec::<String>::new());
    }
    let mut misspelt = all[2].clone();
    misspelt["spec"]["template"]["spec"]["hostPid"] = true.into();
    misspelt["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["periodSeconds"] = "60".into();
    assert_eq!(wrong_in(&misspelt).len(), 2, "{:?}", wrong_in(&misspelt));
}

#[test]
fn what_the_manifests_name_is_there() {
    let kustomization = &objects("install/kustomization.yaml")[0];
    let [namespace, config, daemonset] =
        &["namespace", "config", "daemonset"].map(|name| objects(&format!("install/{name}.yaml"))[0].clone());
    assert_eq!(kustomization["namespace"], namespace["metadata"]["name"]);
    let (selector, template) = (&daemonset["spec"]["selector"]["matchLabels"], &daemonset["spec"]["template"]);
    assert_eq!(selector, &template["metadata"]["labels"]);
    let container = &template["spec"]["containers"][0];
    assert_eq!(container["image"], kustomization["images"][0]["name"]);
    let version = concat!(env!("CARGO_PKG_VERSION"));
    assert_eq!(kustomization["images"][0]["newTag"], version);
    let volumes: Vec<&Value> = template["spec"]["volumes"].as_array().unwrap().iter().collect();
    for mount in container["volumeMounts"].as_array().unwrap() {
        assert!(volumes.iter().any(|volume| volume["name"] == mount["name"]), "{mount}");
    }
    assert!(volumes.iter().any(|volume| volume["configMap"]["name"] == config["metadata"]["name"]));
    // What uninstall lays over it names the same object and container; and kustomize takes in no directory that it is itself in.
    let uninstall = &objects("uninstall/kustomization.yaml")[0];
    assert_eq!(uninstall["resources"], json!(["../install"]));
    let patch = &objects(&format!("uninstall/{}", uninstall["patches"][0]["path"].as_str().unwrap()))[0];
    assert_eq!((&patch["kind"], &patch["metadata"]["name"]), (&daemonset["kind"], &daemonset["metadata"]["name"]));
    assert_eq!(patch["metadata"]["namespace"], kustomization["namespace"]);
    assert_eq!(patch["spec"]["template"]["spec"]["containers"][0]["name"], container["name"]);
}

#[test]
fn the_configuration_is_one_that_the_hook_takes() {
    let Some(env) = Env::new() else { return };
    let text = objects("install/config.yaml")[0]["data"]["config.toml"].as_str().unwrap().to_owned();
    let file = env.dir.join("config.toml");
    write_file(&file, 0o644, &text);
    let state = env.bundle().state(1);
    let run = env.hook("createRuntime").config(&file).dry().state(&state).run();
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "0 steps: not a VM sandbox\n"), "{run:#?}");
}

const USR: [&str; 2] = ["/usr/libexec/oci/hooks.d", "/usr/share/containers/oci/hooks.d"];
const OWN: [&str; 2] = ["/opt/kata-cgroup-hook", "/etc/containers/oci/hooks.d"];
const CONFIG: &str = "/etc/kata-cgroup-hook/config.toml";

/// How long the program may take for what it does at once; it pauses for a minute in between.
const PATIENCE: Duration = Duration::from_secs(40);

/// There is one node for all tests.
static NODE: Mutex<()> = Mutex::new(());

/// This virtual machine as a node, for one test at a time. Kubernetes's own have systemd and cgroup v2: v1 is in maintenance mode
/// since 1.31.
fn node<'n>() -> Option<(Env, MutexGuard<'n, ()>)> {
    if std::env::var_os("KCH_TEST_VM").is_none() {
        return skipped("not in a test VM");
    }
    if !Path::new("/run/systemd/system").is_dir() {
        return skipped("no systemd");
    }
    if CONTROLLERS.iter().any(|controller| Hierarchy::of(controller).is_none_or(|one| one.version == Version::V1)) {
        return skipped("no cgroup v2 that carries all controllers");
    }
    let node = NODE.lock().unwrap_or_else(PoisonError::into_inner);
    Some((Env::new()?, node))
}

/// The container of the DaemonSet on a node, which is this virtual machine.
struct Pod<'e> {
    podman: Podman<'e>,
    name: &'static str,
}

impl<'e> Pod<'e> {
    /// With these options more, told `word`.
    fn start(env: &'e Env, name: &'static str, options: &[&str], word: &str) -> Pod<'e> {
        let podman = Podman::new(env, Podman::runtimes()[0]);
        let (parent, config) = (podman.cgroup_parent(), format!("{}:/config:ro", env.dir.join("configmap").display()));
        let mut args = vec!["create", "--name", name, "--network", "none", "--cgroup-parent", &parent];
        args.extend(["--privileged", "--pid", "host", "--volume", "/:/host:rslave", "--volume", &config]);
        // The node's own programs stand for the base image's, which is of the same Debian.
        let programs = PROGRAMS.map(|dir| format!("/{dir}:/{dir}:ro"));
        args.extend(programs.iter().flat_map(|volume| ["--volume", volume]));
        args.extend(options);
        args.extend([IMAGE, word]);
        podman.run(&args);
        let pod = Pod { podman, name };
        pod.podman.run(&["start", name]);
        pod
    }

    /// Waits until it has said this.
    #[track_caller]
    fn says(&self, words: &str) {
        let said = || {
            let output = self.podman.command().args(["logs", self.name]).output().unwrap();
            String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
        };
        let since = Instant::now();
        while !said().contains(words) {
            assert!(since.elapsed() < PATIENCE, "no {words:?} from it: {}", said());
            thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        self.podman.run(&["rm", "--force", "--time", "5", self.name]);
    }
}

const IMAGE: &str = "localhost/kata-cgroup-hook:test";
const PROGRAMS: [&str; 4] = ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64"];

/// Builds the image as packaging/kubernetes/README.md has it, on a base image of the same name without programs.
fn prepare_image(env: &Env) {
    let base = env.dir.join("base");
    for dir in PROGRAMS.into_iter().chain(["config", "host", "proc", "sys", "dev", "etc", "tmp", "run"]) {
        fs::create_dir_all(base.join(dir)).unwrap();
    }
    for dir in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{dir}"), base.join(dir)).unwrap();
    }
    let (top, sources) = (Path::new(env!("CARGO_MANIFEST_DIR")), env.dir.join("sources"));
    for dir in ["build", "hooks.d", "packaging/kubernetes"] {
        fs::create_dir_all(sources.join(dir)).unwrap();
    }
    fs::copy(hook_binary(), sources.join("build/kata-cgroup-hook")).unwrap();
    for dir in ["hooks.d", "packaging/kubernetes"] {
        for file in fs::read_dir(top.join(dir)).unwrap().flatten().filter(|entry| entry.path().is_file()) {
            fs::copy(file.path(), sources.join(dir).join(file.file_name())).unwrap();
        }
    }
    fs::create_dir_all(env.dir.join("configmap")).unwrap();

    let podman = Podman::new(env, Podman::runtimes()[0]);
    let tar = env.dir.join("base.tar").display().to_string();
    let packed = Command::new("tar").args(["-C", base.to_str().unwrap(), "-cf", &tar, "."]).status().unwrap();
    assert!(packed.success());
    let dockerfile = sources.join("packaging/kubernetes/Dockerfile");
    let text = fs::read_to_string(&dockerfile).unwrap();
    let from = text.lines().find_map(|line| line.strip_prefix("FROM ")).unwrap();
    podman.run(&["import", &tar, from]);
    podman.run(&["build", "-f", dockerfile.to_str().unwrap(), "-t", IMAGE, sources.to_str().unwrap()]);
}

fn json_files(dir: &str) -> usize {
    let is_ours = |file: &PathBuf| {
        file.extension().is_some_and(|end| end == "json") && file.to_string_lossy().contains("/kata-cgroup-hook-")
    };
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).filter(is_ours).count()
}

fn has_binary(dir: &str) -> bool {
    Path::new(dir).join("kata-cgroup-hook").exists()
}

/// Watches that no JSON file is ever there without its binary, for as long as `work` takes.
fn never_a_file_without_its_binary(work: impl FnOnce()) {
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = || {
            let (mut seen, mut wrong) = (0, 0);
            while !is_done.load(Ordering::Relaxed) {
                for [bin, json] in [USR, OWN] {
                    let files = json_files(json);
                    seen += files;
                    wrong += usize::from(files > 0 && !has_binary(bin) && json_files(json) > 0);
                }
                thread::sleep(Duration::from_millis(1));
            }
            (seen, wrong)
        };
        let watcher = scope.spawn(watch);
        // Whatever becomes of the work, the watch has an end.
        let outcome = catch_unwind(AssertUnwindSafe(work));
        is_done.store(true, Ordering::Relaxed);
        let (seen, wrong) = watcher.join().unwrap();
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
        assert!(seen > 0 && wrong == 0, "{seen} files seen, {wrong} times without a binary");
    });
}

#[test]
fn on_a_node_it_installs_reconciles_refuses_a_wrong_configuration_and_takes_all_away() {
    let Some((env, _node)) = node() else { return };
    prepare_image(&env);
    let configmap = env.dir.join("configmap/config.toml");
    fs::write(&configmap, format!("on-error = \"warn\"\n{}", env.roots())).unwrap();
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    // Only who is in the node's own namespaces sees that it is gone, and can put it back.
    let away = |sandbox: &Sandbox| {
        let cpu = env.constrained("cpu");
        let away = if cpu.hierarchy.version == Version::V1 { Group::new("cpu", "/") } else { cpu.parent().unwrap() };
        away.take_in_thread(*sandbox.vcpu_threads().first().unwrap());
    };
    away(&sandbox);

    never_a_file_without_its_binary(|| {
        let pod = Pod::start(&env, "kch-install", &[], "install");
        wait_until("the JSON files", || json_files(USR[1]) == 3);
        pod.says(" move-thread ");
        sandbox.assert_placed(&env.group());
        assert_eq!(fs::read(CONFIG).unwrap(), fs::read(&configmap).unwrap());
        let checked = pod.podman.command().args(["exec", pod.name, "on-node", "check"]).output().unwrap();
        let by_hand = Command::new(Path::new(USR[0]).join("kata-cgroup-hook")).arg("check").output().unwrap();
        assert_eq!(String::from_utf8(checked.stdout).unwrap(), String::from_utf8(by_hand.stdout).unwrap());

        // It is tried before it counts; and the container's end takes nothing away.
        fs::write(&configmap, "mode = \"enforced\"\n").unwrap();
        pod.podman.run(&["restart", "--time", "5", pod.name]);
        pod.says("is wrong and does not count");
        assert!(fs::read_to_string(CONFIG).unwrap().contains("on-error"));
        drop(pod);
        assert!(json_files(USR[1]) == 3 && has_binary(USR[0]));
        sandbox.assert_placed(&env.group());

        // A mode that changes nothing must not keep what was placed from going back.
        fs::write(CONFIG, format!("mode = \"observe\"\n{}", env.roots())).unwrap();
        fs::copy(CONFIG, &configmap).unwrap();
        let pod = Pod::start(&env, "kch-uninstall", &[], "uninstall");
        pod.says("is gone from this node");
        pod.podman.run(&["exec", pod.name, "on-node", "is-gone"]);
    });
    assert!(json_files(USR[1]) == 0 && !has_binary(USR[0]) && !Path::new(CONFIG).exists());
    assert!(!env.constrained("cpu").exists() && !env.unconstrained().exists(), "groups are left");
    sandbox.assert_nowhere_below("kata_");
    drop(sandbox);
    Podman::wait_for_the_end(&env);
}

#[test]
fn where_usr_is_read_only_it_installs_to_opt_and_etc() {
    let Some((env, _node)) = node() else { return };
    prepare_image(&env);
    never_a_file_without_its_binary(|| {
        let read_only = ["--volume", "/usr:/host/usr:ro"];
        let pod = Pod::start(&env, "kch-read-only", &read_only, "install");
        wait_until("the JSON files", || json_files(OWN[1]) == 3);
        assert!(has_binary(OWN[0]) && !has_binary(USR[0]) && json_files(USR[1]) == 0);
        let json = fs::read_to_string(Path::new(OWN[1]).join("kata-cgroup-hook-poststop.json")).unwrap();
        assert!(json.contains("\"/opt/kata-cgroup-hook/kata-cgroup-hook\""), "{json}");
        drop(pod);
        Pod::start(&env, "kch-read-only-end", &read_only, "uninstall").says("is gone from this node");
    });
    assert!(json_files(OWN[1]) == 0 && !has_binary(OWN[0]));
    Podman::wait_for_the_end(&env);
}
