//! Who is this? The sandbox's group has one name, whichever container and stage asks, and whatever the state knows.

use crate::testenv::*;

/// cgroupsPath of the container with this id.
type PathOf = Box<dyn Fn(&str) -> String>;

/// cgroupsPath of a container, in the engine's way of writing it, and the path that the sandbox's groups are named by.
fn path_forms(env: &Env, engine: Engine) -> Vec<(PathOf, String)> {
    let (top, slice, sandbox) = (env.top(), env.slice(), &env.name);
    let prefix = match engine {
        Engine::CriO => "crio",
        Engine::Containerd => "cri-containerd",
        _ => "docker",
    };
    let (cgroupfs_top, prefixed_top) = (top.clone(), top.clone());
    let (nested, scope) = (format!("{slice}-pod.slice"), format!("/{slice}.slice/{slice}-pod.slice"));
    vec![
        (Box::new(move |id: &str| format!("{cgroupfs_top}/pod/{id}")), format!("{top}/pod/kata_{sandbox}")),
        (Box::new(move |id: &str| format!("{prefixed_top}/pod/{prefix}-{id}")), format!("{top}/pod/kata_{prefix}-{sandbox}")),
        (Box::new(move |id: &str| format!("{nested}:{prefix}:{id}")), format!("{scope}/kata_{prefix}-{sandbox}.scope")),
    ]
}

#[test]
fn every_container_and_every_stage_of_a_pod_names_the_same_group_without_a_record() {
    let Some(env) = Env::new() else { return };
    let vm = env.sandbox().start();
    let sandbox = env.name.as_str();
    for engine in Engine::WITH_PODS {
        for (path_of, expected) in path_forms(&env, engine) {
            let pause = env.bundle_of(engine, Kind::Sandbox, sandbox, sandbox).cgroups_path(&path_of(sandbox));
            let workload = env.bundle_of(engine, Kind::Workload, sandbox, "c0ffee").cgroups_path(&path_of("c0ffee"));
            let calls = [
                ("prestart", pause.state(vm.pid)),
                ("createRuntime", pause.state_without_annotations(sandbox, vm.pid)),
                ("poststart", pause.state_with_id(sandbox, vm.pid)),
                ("prestart", workload.state(vm.pid)),
                ("prestart", workload.state_without_annotations(&workload.id, vm.pid)),
                ("createContainer", workload.state_of_runtime_rs("creating", 0)),
                // Go Kata's poststart does not know its container's id, and says the sandbox's.
                ("poststart", workload.state_with_id(sandbox, vm.pid)),
                ("poststart", workload.state_without_annotations(sandbox, vm.pid)),
                // A workload's end is not the sandbox's.
                ("poststop", workload.state_with_id(sandbox, vm.pid)),
            ];
            for (stage, state) in calls {
                let dry = env.hook(stage).state(&state).dry().run();
                if stage != "poststop" || !dry.own_steps().is_empty() {
                    dry.assert_moves_to(&expected, &format!("{engine:?} {stage} {state}"));
                }
            }
            std::fs::remove_dir_all(env.dir.join("bundles")).unwrap();
        }
    }
}

#[test]
fn once_placed_every_other_call_finds_all_as_it_should_be() {
    let Some(env) = Env::new() else { return };
    let vm = env.sandbox().start();
    let sandbox = env.name.as_str();
    for engine in Engine::WITH_PODS {
        for (path_of, expected) in path_forms(&env, engine) {
            let pause = env.bundle_of(engine, Kind::Sandbox, sandbox, sandbox).cgroups_path(&path_of(sandbox));
            let workload = env.bundle_of(engine, Kind::Workload, sandbox, "c0ffee").cgroups_path(&path_of("c0ffee"));
            env.hook("prestart").state(pause.state(vm.pid)).run().succeeded();
            env.hook("prestart").state(workload.state(vm.pid)).run().succeeded();
            vm.assert_placed(&expected);
            let before = env.dump();
            for id in [sandbox, "c0ffee"] {
                let run = env.hook("poststart").state(workload.state_with_id(id, vm.pid)).run().succeeded();
                run.found_all_done();
                before.assert_same(&env.dump(), format!("{engine:?} poststart as {id}"));
            }
            vm.release(&pause).logged("released");
            env.assert_no_groups();
            std::fs::remove_dir_all(env.dir.join("bundles")).unwrap();
        }
    }
}

#[test]
fn a_recorded_path_wins() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    let moved = bundle.cgroups_path(&format!("{}/elsewhere", env.top()));
    env.hook("poststart").state(moved.state(sandbox.pid)).run().succeeded().found_all_done();
    sandbox.assert_placed(&env.group());
    sandbox.release(&moved).logged("released");
    env.assert_no_groups();
}

#[test]
fn a_workload_containers_hook_places_the_whole_sandbox() {
    // CRI-O and containerd never run configured hooks for the sandbox's own container.
    for engine in Engine::WITH_PODS {
        let Some(env) = Env::new() else { return };
        let mut vm = env.sandbox().virtiofsd().start();
        let workload = env.bundle_of(engine, Kind::Workload, &env.name, "c0ffee");
        env.hook("createRuntime").state(workload.state(vm.pid)).run().succeeded().logged("placed");
        vm.assert_placed(&env.group());
        vm.kill();
        env.hook("poststop").state(workload.state_with_id(&env.name, 0)).run().succeeded().logged("released");
        env.assert_no_groups();
    }
}

#[test]
fn a_pods_annotations_are_believed_from_the_state_where_config_json_has_none() {
    let Some(env) = Env::new() else { return };
    let vm = env.sandbox().start();
    let workload = env.bundle_of(Engine::Containerd, Kind::Workload, &env.name, "c0ffee");
    let state = workload.state(vm.pid);
    let mut bare = workload;
    bare.config.as_object_mut().unwrap().remove("annotations");
    bare.write();
    env.hook("createRuntime").state(state).run().succeeded().logged("placed");
    vm.assert_placed(&env.group());
}

#[test]
fn two_sandboxes_of_one_pod_directory_have_a_group_each() {
    let Some(env) = Env::new() else { return };
    let (one, two) = (env.sandbox().id("one").start(), env.sandbox().id("two").start());
    for sandbox in [&one, &two] {
        let bundle = env.bundle_of(Engine::Single, Kind::Workload, &sandbox.id, &sandbox.id);
        sandbox.place(&bundle);
    }
    for sandbox in [&one, &two] {
        sandbox.assert_placed(&format!("{}/pod/kata_{}", env.top(), sandbox.id));
    }
}
