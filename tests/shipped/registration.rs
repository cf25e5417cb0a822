//! What makes an engine run the hook is as that engine documents it, and docs/installation.md shows it as it is shipped.
//!
//! Neither CRI-O nor NRI's hook-injector is in Debian, so they are not run here: tests/fixtures/registration has what they say they read.
//! podman and containerd are, and tests of their own run them.

use serde_json::{Value, json};

use crate::schema::{assert_valid, wrong_by};

const CRIO: &str = include_str!("../../packaging/crio/50-kata-cgroup-hook.conf");
const CONTAINERD: &str = include_str!("../../packaging/containerd/runtime.toml");
const NRI: &str = include_str!("../../packaging/nri/containerd.toml");
const HOOKS: [&str; 3] = [
    include_str!("../../hooks.d/kata-cgroup-hook-createRuntime.json"),
    include_str!("../../hooks.d/kata-cgroup-hook-poststart.json"),
    include_str!("../../hooks.d/kata-cgroup-hook-poststop.json"),
];
const INSTALLATION: &str = include_str!("../../docs/installation.md");

macro_rules! fixture {
    ($name:literal) => {
        json_of(include_str!(concat!("../fixtures/registration/", $name, ".json")))
    };
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn toml_of(text: &str) -> Value {
    serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap()
}

/// What of a file is not commentary.
fn settings(text: &str) -> &str {
    text.split_once("\n[").map_or(text, |(head, _)| &text[head.len() + 1..])
}

#[test]
fn crio_knows_the_key_that_its_drop_in_sets() {
    let schema = fixture!("crio");
    assert_valid(&schema, &toml_of(CRIO));
    let changed = [("hooks_dir", "hook_dir"), ("crio.runtime", "crio.hooks"), ("= [", "= [1, ")];
    for wrong in changed.map(|(right, wrong)| CRIO.replace(right, wrong)) {
        assert!(!wrong_by(&schema, &toml_of(&wrong)).is_empty(), "{wrong}");
    }
}

/// `make install` and the packages write to the first, the DaemonSet to the second where /usr is read-only.
#[test]
fn crio_is_told_of_both_directories_that_the_hook_is_ever_installed_to() {
    let dirs = &toml_of(CRIO)["crio"]["runtime"]["hooks_dir"];
    assert_eq!(dirs, &json!(["/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d"]));
}

#[test]
fn containerd_knows_the_key_that_lets_plugins_of_nri_in() {
    let schema = fixture!("nri");
    assert_valid(&schema, &toml_of(NRI));
    assert_eq!(toml_of(NRI)["plugins"]["io.containerd.nri.v1.nri"], json!({ "disable": false }));
    for wrong in [NRI.replace("disable", "disabled"), NRI.replace("false", "\"false\""), NRI.replace("nri.v1.nri", "nri.v1")] {
        assert!(!wrong_by(&schema, &toml_of(&wrong)).is_empty(), "{wrong}");
    }
}

#[test]
fn whoever_reads_hooks_d_knows_each_key_of_its_files() {
    let schema = fixture!("oci-hooks");
    for hook in HOOKS {
        assert_valid(&schema, &json_of(hook));
    }
    let stages = ("[\"createRuntime\"]\n", "[\"created\"]\n");
    for (right, wrong) in [("\"hook\"", "\"hooks\""), ("1.0.0", "2.0.0"), ("{ \"always\": true }", "{}"), stages] {
        let hook = HOOKS[0].replace(right, wrong);
        assert!(hook != HOOKS[0] && !wrong_by(&schema, &json_of(&hook)).is_empty(), "{hook}");
    }
}

/// It drops a file without a word whose binary it cannot see.
#[test]
fn nris_hook_injector_sees_the_files_and_the_binary_that_they_name() {
    let injector = fixture!("hook-injector");
    let sees = |path: &str| {
        let mounts = injector["mounts"].as_array().unwrap();
        mounts.iter().any(|mount| path.starts_with(&format!("{}/", mount.as_str().unwrap())))
    };
    assert_eq!(injector["directories"], toml_of(CRIO)["crio"]["runtime"]["hooks_dir"]);
    for dir in injector["directories"].as_array().unwrap() {
        assert!(sees(&format!("{}/kata-cgroup-hook-poststop.json", dir.as_str().unwrap())), "{dir}");
    }
    for hook in HOOKS {
        assert!(sees(json_of(hook)["hook"]["path"].as_str().unwrap()), "{hook}");
    }
    // So the documentation has its container see one directory more where that is not so.
    assert!(!sees("/opt/kata-cgroup-hook/kata-cgroup-hook") && INSTALLATION.contains("mountPath: /opt/kata-cgroup-hook"));
}

#[test]
fn the_documentation_shows_what_is_shipped() {
    for file in [CRIO, NRI, CONTAINERD] {
        assert!(INSTALLATION.contains(settings(file)), "{}", settings(file));
    }
}
