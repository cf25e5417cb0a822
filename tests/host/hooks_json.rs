//! hooks.d: what CRI-O and podman read to know when to run the hook, and with which words.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use kata_cgroup_hook::config::Config;
use kata_cgroup_hook::deadline::Deadline;
use serde_json::{Value, json};

const STAGES: [&str; 3] = ["createRuntime", "poststart", "poststop"];

fn file_of(stage: &str) -> String {
    format!("kata-cgroup-hook-{stage}.json")
}

fn hooks_d() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks.d")
}

#[test]
fn there_is_one_file_for_each_stage_and_no_other() {
    let found: BTreeSet<String> =
        fs::read_dir(hooks_d()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found, STAGES.map(file_of).into());
}

#[test]
fn each_file_runs_the_hook_with_its_own_stage() {
    for stage in STAGES {
        let text = fs::read_to_string(hooks_d().join(file_of(stage))).unwrap();
        let hook: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(hook["version"], "1.0.0");
        assert_eq!(hook["stages"], json!([stage]));
        assert_eq!(hook["hook"]["args"], json!(["kata-cgroup-hook", stage]));
        assert_eq!(hook["hook"]["timeout"], 10);
        assert_eq!(hook["when"], json!({ "always": true }));
        let path = hook["hook"]["path"].as_str().unwrap();
        assert!(Path::new(path).is_absolute() && path.ends_with("/kata-cgroup-hook"), "{path}");
    }
}

/// An engine that loses patience kills the hook in the middle of its work.
#[test]
fn the_timeout_leaves_room_for_the_deadline_and_for_undoing() {
    let longest = Config::default().deadline + Deadline::for_undo().left();
    for stage in STAGES {
        let hook: Value = serde_json::from_str(&fs::read_to_string(hooks_d().join(file_of(stage))).unwrap()).unwrap();
        assert!(longest < Duration::from_secs(hook["hook"]["timeout"].as_u64().unwrap()), "{longest:?}");
    }
}

#[test]
fn each_files_words_are_understood() {
    let Some(env) = crate::testenv::Env::new() else { return };
    for stage in STAGES {
        env.hook(stage).state(env.bundle().state(1)).run().was_silent();
    }
}
