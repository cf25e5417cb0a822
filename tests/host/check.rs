//! `check`: what this host is like, in words and in JSON, and an exit code that agrees with both.

use std::fs;

use serde_json::{Value, json};

use crate::testenv::*;

fn schema() -> Value {
    serde_json::from_str(include_str!("../../docs/check.schema.json")).unwrap()
}

fn check_of(env: &Env) -> Hook<'_> {
    env.hook("check")
}

/// What `--json` says, held against its schema and the exit code.
#[track_caller]
fn json_of(hook: Hook) -> Value {
    let run = hook.arg("--json").run();
    let report: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:#?}"));
    assert_valid(&schema(), &report);
    let failed = ids_in(&report, "failure");
    assert_eq!(run.code, Some(i32::from(!failed.is_empty())), "{run:#?}");
    let complaint = format!("kata-cgroup-hook: check: failed: {}\n", failed.join(", "));
    assert_eq!(run.stderr, if failed.is_empty() { "" } else { complaint.as_str() });
    assert!(run.log.is_empty(), "{run:#?}");
    report
}

/// The checks that ended so.
fn ids_in<'r>(report: &'r Value, state: &str) -> Vec<&'r str> {
    let checks = report["checks"].as_array().unwrap().iter();
    checks.filter(|check| check["state"] == state).map(|check| check["id"].as_str().unwrap()).collect()
}

fn find<'r>(report: &'r Value, id: &str) -> &'r Value {
    report["checks"].as_array().unwrap().iter().find(|check| check["id"] == id).unwrap()
}

fn all_ids() -> Vec<String> {
    let ids = &schema()["properties"]["checks"]["items"]["properties"]["id"]["enum"];
    ids.as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_schema_refuses_what_is_not_documented() {
    let good = json!({ "schema": 1, "checks": [{ "id": "rights", "state": "ok", "detail": "", "fix": "" }] });
    let valid = |report: &Value| wrong_by(&schema(), report).is_empty();
    assert!(valid(&good));
    for (place, value) in [
        ("/schema", json!(2)),
        ("/checks", json!([])),
        ("/checks/0", json!({})),
        ("/checks/0/id", json!("other")),
        ("/checks/0/state", json!("good")),
        ("/checks/0/fix", json!(null)),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(place).unwrap() = value;
        assert!(!valid(&bad), "{bad}");
    }
}

#[test]
fn check_prints_each_check_once_and_its_exit_code_agrees() {
    let Some(env) = Env::new() else { return };
    let run = check_of(&env).run();
    let words = ["ok", "warning", "failure", "skipped"];
    let mut printed = Vec::new();
    let mut failed = false;
    for line in run.stdout.lines().filter(|line| !line.starts_with(' ')) {
        let mut fields = line.split_whitespace();
        let word = fields.next().unwrap();
        assert!(words.contains(&word), "{line}");
        failed |= word == "failure";
        printed.push(fields.next().unwrap().to_owned());
        assert!(fields.next().is_some(), "{line}: it says nothing");
    }
    assert_eq!(printed, all_ids(), "{run:#?}");
    assert_eq!(run.code, Some(i32::from(failed)), "{run:#?}");
    assert_eq!(run.stderr.lines().count(), usize::from(failed), "{run:#?}");
}

#[test]
fn check_prints_json_with_the_documented_keys_and_no_others() {
    let Some(env) = Env::new() else { return };
    let report = json_of(check_of(&env));
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&report), ["checks", "schema"]);
    let mut ids = Vec::new();
    for check in report["checks"].as_array().unwrap() {
        assert_eq!(keys(check), ["detail", "fix", "id", "state"]);
        assert!(check["detail"] != "", "{check}");
        let (is_ok, has_fix) = (check["state"] == "ok", check["fix"] != "");
        assert!(!(is_ok && has_fix), "{check}");
        assert!(has_fix || is_ok || check["state"] == "skipped", "{check}");
        ids.push(check["id"].as_str().unwrap());
    }
    assert_eq!(ids, all_ids());
}

#[test]
fn check_sees_the_controllers_where_they_are() {
    let Some(env) = Env::new() else { return };
    let report = json_of(check_of(&env));
    for controller in CONTROLLERS {
        let check = find(&report, &format!("controller.{controller}"));
        let hierarchy = Hierarchy::of(controller).unwrap();
        let version = if hierarchy.version == Version::V1 { "v1" } else { "v2" };
        assert_eq!(check["state"], "ok", "{check}");
        let detail = check["detail"].as_str().unwrap();
        assert!(detail.starts_with(&format!("cgroup {version} at {}", hierarchy.mount)), "{check}");
    }
    let is_v2 = Hierarchy::of("cpu").unwrap().version == Version::V2;
    for id in ["v2.controllers", "v2.threaded", "v2.domain"] {
        assert_eq!(find(&report, id)["state"], if is_v2 { "ok" } else { "skipped" }, "{id}");
    }
}

#[test]
fn check_follows_the_configuration_and_changes_nothing() {
    let Some(env) = Env::new() else { return };
    let before = env.dump();
    let report = json_of(check_of(&env));
    assert_eq!(find(&report, "config")["state"], "ok");
    assert_eq!(find(&report, "log.socket")["state"], "ok");
    let state_dir = find(&report, "state.dir");
    let dir = env.state_dir();
    assert!(state_dir["state"] == "ok" && state_dir["detail"].as_str().unwrap().contains(dir.to_str().unwrap()), "{state_dir}");
    before.assert_same(&env.dump(), "check");

    let wrong = env.dir.join("wrong.toml");
    write_file(&wrong, 0o600, "mod = \"off\"\n");
    let report = json_of(check_of(&env).config(&wrong));
    let config = find(&report, "config");
    assert!(config["state"] == "failure" && config["detail"].as_str().unwrap().contains("unknown field `mod`"), "{config}");
}

#[test]
fn check_sees_a_record_of_another_version() {
    let Some(env) = Env::new() else { return };
    let dir = env.state_dir();
    fs::create_dir_all(&dir).unwrap();
    set_mode(&dir, 0o700);
    assert_eq!(find(&json_of(check_of(&env)), "state.leftovers")["state"], "ok");
    write_file(&dir.join("x.json"), 0o600, "{\"schema\":99}");
    assert_eq!(find(&json_of(check_of(&env)), "state.leftovers")["state"], "warning");
    set_mode(&dir, 0o777);
    assert_eq!(find(&json_of(check_of(&env)), "state.dir")["state"], "failure");
}

#[test]
fn check_sees_a_cpuset_that_holds_others_and_has_no_cpus() {
    let Some(env) = Env::with("cpuset", Version::V1) else { return };
    let top = Group::new("cpuset", &env.top());
    top.mkdir().unwrap();
    top.child("pod").mkdir().unwrap();
    let report = json_of(check_of(&env));
    let check = find(&report, "cpuset.parents");
    // Three are named, and the tests beside this one have some as well.
    assert!(check["state"] == "warning" && check["detail"].as_str().unwrap().contains("is empty"), "{check}");
}

#[test]
fn check_by_who_is_not_root_says_what_he_does_not_see() {
    let Some(env) = Env::new() else { return };
    let report = json_of(check_of(&env).without_config().under(["unshare", "--user"]));
    let rights = find(&report, "rights");
    assert_eq!(rights["state"], "skipped", "{rights}");
    assert!(rights["detail"].as_str().unwrap().contains("not seen"), "{rights}");
}

#[test]
fn check_finds_the_hook_and_kata_where_they_are_installed() {
    let Some(env) = Env::new() else { return };
    let (share, etc) = (env.dir.join("share"), env.dir.join("etc"));
    let hooks_d = share.join("containers/oci/hooks.d");
    for dir in [&hooks_d, &etc.join("crio"), &etc.join("kata-containers")] {
        fs::create_dir_all(dir).unwrap();
    }
    for stage in ["createRuntime", "poststart", "poststop"] {
        let file = json!({
            "version": "1.0.0",
            "hook": { "path": hook_binary(), "args": ["kata-cgroup-hook", stage], "timeout": 60 },
            "when": { "always": true },
            "stages": [stage],
        });
        write_file(&hooks_d.join(format!("kata-cgroup-hook-{stage}.json")), 0o644, &file.to_string());
    }
    write_file(&etc.join("kata-containers/configuration.toml"), 0o644, "[runtime]\nsandbox_cgroup_only = true\n");
    // In a mount namespace of its own, where these directories lie over the host's.
    let look = || {
        let over = |dir: &str, with: &std::path::Path| format!("mount --bind '{}' {dir}", with.display());
        let script = format!("{} && {} && exec \"$@\"", over("/usr/share", &share), over("/etc", &etc));
        json_of(check_of(&env).under(["unshare", "--mount", "sh", "-c", &script, "sh"]))
    };
    let report = look();
    for id in ["registration", "registration.hooks.d", "registration.crio", "kata.sandbox_cgroup_only"] {
        assert_eq!(find(&report, id)["state"], "ok", "{}", find(&report, id));
    }
    fs::remove_file(hooks_d.join("kata-cgroup-hook-poststop.json")).unwrap();
    let report = look();
    assert_eq!(find(&report, "registration")["state"], "ok");
    for id in ["registration.hooks.d", "registration.crio"] {
        assert_eq!(find(&report, id)["state"], "failure", "{}", find(&report, id));
    }
}
