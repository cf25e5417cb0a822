//! What a sandbox's containers ask for together is never guessed low, whatever the hook has missed.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::testenv::*;

fn record_of(env: &Env) -> PathBuf {
    env.state_dir().join(format!("{}.json", env.name))
}

/// A workload of the sandbox with this many hundredths of a CPU; its bundle is there, no hook has run.
fn workload(env: &Env, engine: Engine, id: &str, hundredths: u64) -> Bundle {
    let cpu = json!({ "quota": hundredths * 1000, "period": 100_000, "shares": 1024 });
    env.bundle_of(engine, Kind::Workload, &env.name, id).cpu(cpu)
}

#[track_caller]
fn start(env: &Env, sandbox: &Sandbox, bundle: &Bundle) -> Run {
    env.hook("createRuntime").state(bundle.state(sandbox.pid)).run().succeeded()
}

/// The quota that holds, in a period of 100,000 µs.
fn quota(env: &Env) -> Option<u64> {
    env.constrained("cpu").cap().map(|(quota, period)| quota * 100_000 / period)
}

#[test]
fn with_the_record_lost_the_third_containers_hook_knows_of_the_first_two() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    for engine in [Engine::Containerd, Engine::CriO] {
        for (id, cpu) in [("one", 100), ("two", 50)] {
            start(&env, &sandbox, &workload(&env, engine, id, cpu));
        }
        fs::remove_file(record_of(&env)).unwrap();
        start(&env, &sandbox, &workload(&env, engine, "three", 25)).logged("placed");
        assert_eq!(quota(&env), Some(175_000), "{engine:?}");
        sandbox.release(&env.bundle_of(engine, Kind::Sandbox, &env.name, &env.name));
        fs::remove_dir_all(env.dir.join("bundles")).unwrap();
    }
}

#[test]
fn installed_beside_running_containers_the_first_hook_knows_of_them() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let _running = [("one", 100), ("two", 50)].map(|(id, cpu)| workload(&env, Engine::CriO, id, cpu));
    // Neither another sandbox's, nor what is no bundle, nor the pause container's counts.
    env.bundle_of(Engine::CriO, Kind::Workload, "another", "theirs").cpu(json!({ "quota": 700_000, "period": 100_000 }));
    env.bundle_of(Engine::CriO, Kind::Sandbox, &env.name, &env.name);
    fs::create_dir_all(env.dir.join("bundles/rubbish/userdata")).unwrap();
    fs::write(env.dir.join("bundles/rubbish/userdata/config.json"), "{").unwrap();
    start(&env, &sandbox, &workload(&env, Engine::CriO, "three", 25)).logged("placed");
    assert_eq!(quota(&env), Some(175_000));
}

#[test]
fn a_container_that_ended_is_not_found_again_though_its_bundle_stays() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let [one, two, three] = [("one", 100), ("two", 50), ("three", 25)].map(|(id, cpu)| workload(&env, Engine::CriO, id, cpu));
    start(&env, &sandbox, &one);
    start(&env, &sandbox, &two);
    env.hook("poststop").state(one.state_with_id(&env.name, sandbox.pid)).run().succeeded();
    start(&env, &sandbox, &three);
    assert_eq!(quota(&env), Some(75_000));
    // Started again under the same id, it is there again.
    start(&env, &sandbox, &one);
    assert_eq!(quota(&env), Some(175_000));
}

#[test]
fn with_the_record_lost_the_end_of_one_leaves_the_others_placed() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let [one, two] = [("one", 100), ("two", 50)].map(|(id, cpu)| workload(&env, Engine::CriO, id, cpu));
    start(&env, &sandbox, &one);
    start(&env, &sandbox, &two);
    fs::remove_file(record_of(&env)).unwrap();
    sandbox.qmp().plug_cpu_2();
    env.hook("poststop").state(one.state_with_id(&env.name, sandbox.pid)).run().succeeded().logged("placed");
    assert_eq!(quota(&env), Some(50_000));
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_container_older_than_the_vm_is_another_ones() {
    let Some(env) = Env::new() else { return };
    let old = workload(&env, Engine::CriO, "old", 100);
    // What a sandbox of the same name left: older than the VM by more than the clocks' second.
    let then = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    fs::File::open(&old.dir).unwrap().set_modified(then).unwrap();
    let sandbox = env.sandbox().start();
    start(&env, &sandbox, &workload(&env, Engine::CriO, "new", 50));
    assert_eq!(quota(&env), Some(50_000));
}

/// One of persist.json's ContainerConfigs.
fn named(id: &str, cpu: Option<Value>) -> Value {
    let resources = cpu.map_or(json!({}), |cpu| json!({ "cpu": cpu, "devices": [{ "allow": false, "access": "rwm" }] }));
    json!({ "ID": id, "Annotations": {}, "RootFs": "/", "Resources": resources })
}

#[test]
fn a_container_that_kata_alone_names_counts_with_what_kata_says_it_asks_for() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let pause = named(&env.name, Some(json!({ "shares": 2 })));
    sandbox.write_persist_json_with(&json!([pause, named("seen", Some(json!({ "quota": 100_000, "period": 100_000 })))]));
    start(&env, &sandbox, &workload(&env, Engine::CriO, "new", 50));
    assert_eq!(quota(&env), Some(150_000));
}

#[test]
fn a_container_that_kata_resized_counts_with_what_it_asks_for_now() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = workload(&env, Engine::CriO, "app", 50);
    start(&env, &sandbox, &bundle);
    assert_eq!(quota(&env), Some(50_000));
    sandbox.write_persist_json_with(&json!([named("app", Some(json!({ "quota": 200_000, "period": 100_000 })))]));
    env.hook("poststart").state(bundle.state_with_id(&env.name, sandbox.pid)).run().succeeded();
    assert_eq!(quota(&env), Some(200_000));
}

#[test]
fn where_nobody_says_what_a_container_asks_for_the_pods_own_limit_is_the_limit() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    env.pod("cpu").make();
    env.pod("cpu").set_quota(400_000);
    sandbox.write_persist_json_with(&json!([named("unknown", None)]));
    let run = start(&env, &sandbox, &workload(&env, Engine::CriO, "new", 50));
    assert_eq!(quota(&env), Some(400_000));
    let line = run.logged("placed");
    assert!(line.get("msg").contains("what unknown asks for is not known"), "{line:?}");
    assert_eq!(line.get("limit"), "400000/100000");
    // It has ended, and Kata knows of it no more.
    sandbox.write_persist_json_with(&json!([named("new", None)]));
    let new = workload(&env, Engine::CriO, "new", 50);
    env.hook("poststart").state(new.state_with_id(&env.name, sandbox.pid)).run().succeeded();
    assert_eq!(quota(&env), Some(50_000));
}

#[test]
fn a_pod_that_kubelet_resized_limits_alone_what_was_there_before() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    env.pod("cpu").make();
    env.pod("cpu").set_quota(150_000);
    let [app, side] = [("app", 100), ("side", 50)].map(|(id, cpu)| workload(&env, Engine::CriO, id, cpu));
    start(&env, &sandbox, &app);
    start(&env, &sandbox, &side);
    assert_eq!(quota(&env), Some(150_000));
    let again = |bundle: &Bundle| env.hook("poststart").state(bundle.state_with_id(&env.name, sandbox.pid)).run().succeeded();
    // Nobody says which of the two it was: both together may have what the pod has.
    env.pod("cpu").set_quota(300_000);
    let run = again(&side);
    assert_eq!(quota(&env), Some(300_000));
    assert!(run.only_log_line().get("msg").contains("app, side asks for is not known"), "{run:#?}");
    env.pod("cpu").set_quota(80_000);
    again(&side);
    assert_eq!(quota(&env), Some(80_000));
    // Once they are gone, what is known is what counts again.
    for bundle in [&app, &side] {
        env.hook("poststop").state(bundle.state_with_id(&env.name, sandbox.pid)).run().succeeded();
    }
    start(&env, &sandbox, &workload(&env, Engine::CriO, "new", 60));
    assert_eq!(quota(&env), Some(60_000));
}
