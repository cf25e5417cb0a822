//! The stand-in for Kata by itself, called as an engine calls it: what it has the hook do is what each Kata would.

use std::fs;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::kata::{Generation, Runtime, be_a_runtime};
use crate::testenv::*;

/// Has config.json name the hook at every stage that a runtime may run it at.
fn with_hooks(env: &Env, mut bundle: Bundle) -> Bundle {
    for stage in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        let mut args = vec!["kata-cgroup-hook".to_owned(), stage.to_owned()];
        args.extend(["--config".to_owned(), env.config().display().to_string()]);
        bundle.config["hooks"][stage] = json!([{ "path": hook_binary(), "args": args, "timeout": 40 }]);
    }
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "network" }));
    bundle.write()
}

fn call(kata: &Runtime, args: &[&str]) -> Output {
    let output = Command::new(kata.program()).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn create(kata: &Runtime, bundle: &Bundle) {
    call(kata, &["--log-format=json", "create", "--bundle", bundle.dir.to_str().unwrap(), &bundle.id]);
}

/// Stage and result of each run so far.
fn runs(env: &Env) -> Vec<(String, String)> {
    env.log.take().iter().map(|line| (line.get("stage").to_owned(), line.get("result").to_owned())).collect()
}

/// In the order in which its hooks are run: what has happened when a single container is created, started and deleted.
fn expected(generation: Generation) -> [&'static [(&'static str, &'static str)]; 3] {
    match generation {
        // At its prestart there is nothing that would tell a VM's container from any other.
        Generation::Go1 => [&[], &[("poststart", "placed")], &[("poststop", "released")]],
        Generation::Go3 => [
            &[("prestart", "placed"), ("createRuntime", "unchanged")],
            &[("poststart", "unchanged")],
            &[("poststop", "released")],
        ],
        Generation::RuntimeRs => [
            &[("prestart", "placed"), ("createRuntime", "unchanged"), ("createContainer", "unchanged")],
            &[("poststart", "unchanged")],
            &[("poststop", "released")],
        ],
    }
}

#[track_caller]
fn assert_ran(env: &Env, expected: &[(&str, &str)], generation: Generation) {
    let runs = runs(env);
    let runs: Vec<(&str, &str)> = runs.iter().map(|(stage, result)| (stage.as_str(), result.as_str())).collect();
    assert_eq!(runs, expected, "{generation:?}");
}

#[test]
fn each_generation_places_and_releases_its_sandbox() {
    be_a_runtime();
    let Some(env) = Env::new() else { return };
    for generation in Generation::ALL {
        let kata = Runtime::within(&env, generation);
        let bundle = with_hooks(&env, env.bundle());
        let [at_create, at_start, at_delete] = expected(generation);

        create(&kata, &bundle);
        assert_ran(&env, at_create, generation);
        call(&kata, &["start", &bundle.id]);
        assert_ran(&env, at_start, generation);
        let sandbox = kata.sandbox(&bundle.id);
        sandbox.assert_placed(&env.group());
        assert_eq!(env.limits().quota, Some(150_000));

        let state: Value = serde_json::from_slice(&call(&kata, &["state", &bundle.id]).stdout).unwrap();
        assert_eq!((&state["status"], &state["id"]), (&json!("running"), &json!(bundle.id)));
        call(&kata, &["kill", &bundle.id, "KILL"]);
        call(&kata, &["delete", &bundle.id]);
        assert_ran(&env, at_delete, generation);
        assert_eq!(kata.warnings(), "", "{generation:?}");
        kata.assert_gone(&sandbox);
        env.assert_no_groups();
        assert_eq!(fs::read_dir(env.state_dir()).unwrap().count(), 0);
    }
}
