//! Releasing a sandbox: everybody goes back to where they belong, and no group of ours is left.

use std::collections::BTreeSet;
use std::fs;

use crate::testenv::*;

/// Puts all threads of the sandbox's processes in this group of every hierarchy.
fn move_all(sandbox: &Sandbox, path: &str) {
    for group in premake(path) {
        sandbox.processes().iter().for_each(|pid| group.take_in(*pid));
    }
}

#[test]
fn with_the_vm_alive_all_go_back_to_where_they_came_from() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    move_all(&sandbox, &format!("{}/from", env.top()));
    let bundle = env.bundle();
    let before = env.dump();
    sandbox.place(&bundle);
    sandbox.assert_placed(&env.group());
    let run = sandbox.release(&bundle);
    assert_ne!(run.logged("released").get("removed"), "0");
    before.assert_same(&env.dump(), "released");
}

#[test]
fn vcpus_go_to_the_directory_above_where_that_is_somebody_elses() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let (from, pod) = (format!("{}/from", env.top()), format!("{}/pod", env.top()));
    move_all(&sandbox, &from);
    let pods = premake(&pod);
    let bundle = env.bundle();
    sandbox.place(&bundle);
    sandbox.release(&bundle).logged("released");
    for controller in CPU_CONTROLLERS {
        let (constrained, pod) = (env.constrained(controller), env.pod(controller));
        // What is ours from the top says nothing about where they belong: there the record is asked.
        let home = if constrained.is_below(&pod) { pod } else { Group::new(controller, &from) };
        assert!(sandbox.vcpu_threads().into_iter().all(|tid| home.holds(tid)), "{home:?}");
    }
    assert!(Group::new("memory", &from).holds(sandbox.pid));
    assert!(pods.iter().all(|pod| pod.exists() && pod.children().is_empty()));
}

#[test]
fn where_the_group_they_came_from_is_gone_all_go_to_the_nearest_that_is_not_ours() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let from = format!("/{}-from", env.name);
    move_all(&sandbox, &from);
    let bundle = env.bundle();
    sandbox.place(&bundle);
    for from in everywhere(&from) {
        // Who has been left there goes, so that it can be removed.
        from.threads().iter().for_each(|tid| Group::top_of(from.hierarchy).take_in_thread(*tid));
        assert!(from.remove_tree(), "{from:?}");
    }
    sandbox.release(&bundle).logged("released");
    for tid in sandbox.vcpu_threads() {
        for top in everywhere("/") {
            // While another test has a /kata that is not the hook's, that is nearer.
            let kata = Group { path: "/kata".to_owned(), ..top.clone() };
            assert!(top.holds(tid) || kata.holds(tid), "{tid} in {top:?}");
        }
    }
    env.assert_no_groups();
}

#[test]
fn with_the_vm_dead_all_groups_go() {
    let Some(env) = Env::new() else { return };
    let mut sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    sandbox.kill();
    sandbox.release(&bundle).logged("released");
    env.assert_no_groups();
    assert_eq!(fs::read_dir(env.state_dir()).unwrap().count(), 0, "neither record nor lock is left");
}

#[test]
fn with_the_vm_dead_but_not_waited_for_all_groups_go() {
    let Some(env) = Env::new() else { return };
    let mut sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    sandbox.qemu.as_mut().unwrap().kill_unreaped();
    sandbox.release(&bundle).logged("released");
    env.assert_no_groups();
}

#[test]
fn with_the_vm_dying_meanwhile_all_groups_go() {
    let Some(env) = Env::new() else { return };
    for _ in 0..8 {
        let mut sandbox = env.sandbox().virtiofsd().start();
        let bundle = env.bundle();
        sandbox.place(&bundle);
        let hook = env.hook("poststop").state(bundle.state_with_id(&sandbox.id, sandbox.pid)).start();
        sandbox.kill();
        hook.wait().succeeded().logged("released");
        env.assert_no_groups();
        sandbox.forget_runtime_files();
        drop(sandbox);
        fs::remove_dir_all(env.dir.join(format!("{}.qemu", env.name))).unwrap();
    }
}

#[test]
fn with_katas_directories_gone_the_record_is_enough() {
    let Some(env) = Env::new() else { return };
    for engine in [Engine::Single, Engine::Containerd] {
        let mut sandbox = env.sandbox().id(&format!("{engine:?}")).start();
        let bundle = env.bundle_of(engine, Kind::Sandbox, &sandbox.id, &sandbox.id);
        sandbox.place(&bundle);
        sandbox.kill();
        sandbox.forget_runtime_files();
        sandbox.release(&bundle).logged("released");
        env.assert_no_groups();
    }
}

#[test]
fn with_the_record_gone_what_is_ours_is_known_by_its_mark() {
    let Some(env) = Env::new() else { return };
    let mut sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    fs::remove_dir_all(env.state_dir()).unwrap();
    sandbox.kill();
    sandbox.release(&bundle).logged("released");
    env.assert_no_groups();
}

#[test]
fn with_config_json_gone_the_record_knows_the_container_by_its_bundle() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle_of(Engine::Containerd, Kind::Workload, &env.name, "c0ffee");
    let pause = env.bundle_of(Engine::Containerd, Kind::Sandbox, &env.name, &env.name);
    sandbox.place(&pause);
    env.hook("prestart").state(bundle.state(sandbox.pid)).run().succeeded();
    for bundle in [&bundle, &pause] {
        fs::remove_dir_all(&bundle.dir).unwrap();
    }
    let state = bundle.state_without_annotations(&env.name, 0);
    env.hook("poststop").state(state).run().succeeded();
    sandbox.assert_placed(&env.group());
    env.hook("poststop").state(pause.state_without_annotations(&env.name, 0)).run().succeeded().logged("released");
    env.assert_no_groups();
}

#[test]
fn a_second_release_finds_nothing_to_do() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    sandbox.release(&bundle).logged("released");
    let before = env.dump();
    let run = sandbox.release(&bundle);
    before.assert_same(&env.dump(), "a second release");
    for line in &run.log {
        assert_eq!((line.get("moved"), line.get("removed")), ("0", "0"));
    }
}

#[test]
fn a_sandbox_that_was_never_placed_is_released_without_a_trace() {
    let Some(env) = Env::new() else { return };
    let mut sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let before = env.dump();
    sandbox.release(&bundle);
    before.assert_same(&env.dump(), "with the VM alive");
    sandbox.kill();
    let before = env.dump();
    sandbox.release(&bundle);
    before.assert_same(&env.dump(), "with the VM dead");
}

#[test]
fn a_workloads_end_keeps_the_sandbox_placed_and_its_last_limits() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    for engine in Engine::WITH_PODS {
        let pause = env.bundle_of(engine, Kind::Sandbox, &env.name, &env.name);
        let workload = env.bundle_of(engine, Kind::Workload, &env.name, "c0ffee");
        sandbox.place(&pause);
        env.hook("prestart").state(workload.state(sandbox.pid)).run().succeeded();
        let before = groups_of(&env);
        env.hook("poststop").state(workload.state_with_id(&env.name, sandbox.pid)).run().succeeded();
        sandbox.assert_placed(&env.group());
        assert_eq!(groups_of(&env), before, "{engine:?}");
        let record = fs::read_to_string(env.state_dir().join(format!("{}.json", env.name))).unwrap();
        assert!(record.replace(' ', "").contains("\"state\":\"idle\""), "{record}");
        sandbox.release(&pause).logged("released");
        env.assert_no_groups();
        fs::remove_dir_all(env.dir.join("bundles")).unwrap();
    }
}

fn groups_of(env: &Env) -> Vec<String> {
    env.dump().lines_with(&env.top()).into_iter().filter(|line| !line.starts_with('/')).map(str::to_owned).collect()
}

#[test]
fn a_workloads_end_after_the_vms_is_the_sandboxs() {
    let Some(env) = Env::new() else { return };
    let mut sandbox = env.sandbox().start();
    let workload = env.bundle_of(Engine::CriO, Kind::Workload, &env.name, "c0ffee");
    sandbox.place(&workload);
    sandbox.kill();
    env.hook("poststop").state(workload.state_with_id(&env.name, 0)).run().succeeded().logged("released");
    env.assert_no_groups();
}

#[test]
fn a_sandbox_that_ended_without_a_hook_is_released_by_the_next_run() {
    // CRI-O runs no hook for the pause container: the last workload's poststop comes while the VM still lives.
    let Some(env) = Env::new() else { return };
    let mut ended = env.sandbox().id("ended").start();
    let workload = env.bundle_of(Engine::CriO, Kind::Workload, &ended.id, "c0ffee");
    ended.place(&workload);
    env.hook("poststop").state(workload.state_with_id(&ended.id, 0)).run().succeeded();
    ended.kill();
    ended.forget_runtime_files();

    let next = env.sandbox().id("next").start();
    let bundle = env.bundle_of(Engine::CriO, Kind::Workload, &next.id, "decade");
    env.hook("prestart").state(bundle.state(next.pid)).run().succeeded();
    next.assert_placed(&format!("{}/pod/kata_{}", env.top(), next.id));
    let groups = groups_named(&env.name).into_iter().flat_map(|group| group.tree());
    let left: Vec<Group> = groups.filter(|group| group.path.contains(&ended.id)).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!env.state_dir().join(format!("{}.json", ended.id)).exists());
}

#[test]
fn other_sandboxes_stay_as_they_are_and_shared_directories_go_with_the_last() {
    let Some(env) = Env::new() else { return };
    let (one, two) = (env.sandbox().id("one").virtiofsd().start(), env.sandbox().id("two").start());
    let [first, second] = [&one, &two].map(|sandbox| env.bundle_of(Engine::Single, Kind::Workload, &sandbox.id, &sandbox.id));
    one.place(&first);
    two.place(&second);
    let lines = |dump: &Dump| dump.lines_with(&two.id).into_iter().map(str::to_owned).collect::<Vec<_>>();
    let before = lines(&env.dump());
    one.release(&first).logged("released");
    assert_eq!(lines(&env.dump()), before);
    two.assert_placed(&format!("{}/pod/kata_{}", env.top(), two.id));
    two.release(&second).logged("released");
    env.assert_no_groups();
}

#[test]
fn directories_that_somebody_else_made_stay() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let theirs = ["", "/kata"].map(|above| premake(&format!("{above}{}/pod", env.top()))).concat();
    let bundle = env.bundle().cgroups_path(&format!("{}/pod/ours/c", env.top()));
    sandbox.place(&bundle);
    sandbox.assert_placed(&format!("{}/pod/ours/kata_c", env.top()));
    sandbox.release(&bundle).logged("released");
    for group in theirs {
        assert!(group.exists() && group.children().is_empty(), "{group:?}");
    }
}

#[test]
fn somebody_elses_group_inside_ours_stays_and_is_said() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    let ours = env.constrained("cpu");
    let foreign = ours.child("foreign");
    foreign.mkdir().unwrap();
    // A stranger in it, where the kernel lets one in: a child of v2's threaded group takes nobody from another domain.
    let guest = (ours.hierarchy.version == Version::V1).then(Process::sleeping);
    if let Some(guest) = &guest {
        foreign.take_in(guest.pid());
    }
    let run = env.hook("poststop").state(bundle.state(sandbox.pid)).run();
    assert_eq!((run.code, run.stderr.lines().count()), (Some(0), 1), "{run:#?}");
    let line = run.logged("failed");
    assert!(line.priority == 27 && line.get("msg").contains(&ours.path), "{line:?}");
    assert!(foreign.exists() && guest.iter().all(|guest| foreign.holds(guest.pid())));
    // All else is done nevertheless.
    assert!(ours.threads().is_empty(), "{run:#?}");
    let others = groups_named(&env.name).into_iter().filter(|group| group.hierarchy != ours.hierarchy);
    assert_eq!(others.collect::<Vec<_>>(), [], "{run:#?}");
    // And with the obstacle gone, the rest.
    drop(guest);
    wait_until("the foreign group to go", || foreign.remove_tree());
    sandbox.release(&bundle).logged("released");
    env.assert_no_groups();
}

#[test]
fn a_stranger_in_our_group_is_moved_out_and_not_harmed() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    let mut stranger = Process::sleeping();
    let ours: BTreeSet<Group> = CPU_CONTROLLERS.map(|controller| env.constrained(controller)).into();
    let domains = domains_at(&env.group());
    for group in &ours {
        // v2's threaded group takes nobody from another domain: there it is the domain that a stranger can get into.
        domains.iter().find(|domain| group.is_below(domain)).unwrap_or(group).take_in(stranger.pid());
    }
    sandbox.release(&bundle).logged("released");
    assert!(stranger.is_running());
    env.assert_no_groups();
}

#[test]
fn a_pid_that_is_somebody_elses_by_now_is_let_alone() {
    let Some(env) = Env::new() else { return };
    let mut sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    sandbox.kill();
    let heir = Process::sleeping();
    env.watch(heir.pid());
    let record = env.state_dir().join(format!("{}.json", env.name));
    let text = fs::read_to_string(&record).unwrap().replace(&format!(":{}", sandbox.pid), &format!(":{}", heir.pid()));
    fs::write(&record, text).unwrap();
    sandbox.write_pid_file(&format!("{}\n", heir.pid()));
    let places = |pid| CONTROLLERS.map(|controller| place_of(pid, controller));
    let before = places(heir.pid());
    env.hook("poststop").state(bundle.state(heir.pid())).run().succeeded().logged("released");
    assert_eq!(places(heir.pid()), before);
    env.assert_no_groups();
}

#[test]
fn placed_and_released_again_and_again_leaves_nothing() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle();
    let before = env.dump();
    for _ in 0..10 {
        sandbox.place(&bundle);
        sandbox.release(&bundle).logged("released");
        before.assert_same(&env.dump(), "placed and released");
    }
}

#[test]
fn the_pause_containers_poststart_does_not_lift_an_idle_sandboxs_limits() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let pause = env.bundle_of(Engine::Containerd, Kind::Sandbox, &env.name, &env.name);
    let workload = env.bundle_of(Engine::Containerd, Kind::Workload, &env.name, "c0ffee");
    env.hook("poststart").state(workload.state(sandbox.pid)).run().succeeded().logged("placed");
    env.hook("poststop").state(workload.state(sandbox.pid)).run().succeeded();
    let last = env.limits();
    assert!(last.quota.is_some());
    env.hook("poststart").state(pause.state(sandbox.pid)).run().succeeded();
    assert_eq!(env.limits(), last);
    // The next container's demand counts by itself.
    let next = env
        .bundle_of(Engine::Containerd, Kind::Workload, &env.name, "decade")
        .cpu(serde_json::json!({ "quota": 70_000, "period": 100_000 }));
    next.clone().write();
    env.hook("poststart").state(next.state(sandbox.pid)).run().succeeded();
    assert_eq!(env.limits(), Limits::none().quota(70_000));
}

#[test]
fn a_dry_run_always_ends_with_its_count() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    for id in ["c0ffee", "decade"] {
        let workload = env.bundle_of(Engine::CriO, Kind::Workload, &env.name, id);
        env.hook("poststart").state(workload.state(sandbox.pid)).run().succeeded();
    }
    // Alive by its record, and unable to prove itself any more.
    let pid_file = sandbox.runtime_dir("vm").join("pid");
    fs::set_permissions(&pid_file, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    fs::remove_dir_all(sandbox.runtime_dir("sbs")).unwrap();
    let workload = env.bundle_of(Engine::CriO, Kind::Workload, &env.name, "decade");
    let run = env.hook("poststop").dry().state(workload.state_with_id(&env.name, 0)).run();
    assert!(run.stdout.lines().last().is_some_and(|line| line.contains(" steps")), "{run:#?}");
    env.configure("mode = \"off\"\n");
    let run = env.hook("poststop").dry().state(workload.state_with_id(&env.name, 0)).run();
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "0 steps\n"));
}
