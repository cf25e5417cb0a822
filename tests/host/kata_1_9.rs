//! What Kata 1.9 did when things were not as expected, each case run for real there, and what is right.
//!
//! That code (virtcontainers/cgroups.go at 0075bf85ba) is what this hook does again from outside. Of its ten failures those are here
//! that no other module has as its own: lists beyond the host's CPUs and quotas beyond the parent's are in `demand`, containers
//! without a limit in `sequences`, groups that are busy at the end in `faults`, and a QEMU that it could not talk to is what
//! every test here runs on.

use serde_json::json;

use crate::testenv::*;

#[test]
fn one_cpu_by_50_ms_and_one_by_100_ms_are_two_cpus_and_not_one_and_a_half() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    for (id, period) in [("one", 50_000), ("two", 100_000)] {
        let bundle = env.bundle_of(Engine::CriO, Kind::Workload, &env.name, id);
        let bundle = bundle.cpu(json!({ "quota": period, "period": period }));
        env.hook("createRuntime").state(bundle.state(sandbox.pid)).run().succeeded();
    }
    assert_eq!(env.limits(), Limits::none().quota(200_000));
    sandbox.assert_placed(&env.group());
}

#[test]
fn realtime_that_the_parent_does_not_have_leaves_nobody_half_placed() {
    let Some(env) = Env::with("cpu", Version::V1) else { return };
    let sandbox = env.sandbox().start();
    let pod = env.pod("cpu");
    pod.make();
    let bundle =
        env.bundle().cpu(json!({ "quota": 150_000, "period": 100_000, "realtimeRuntime": 2000, "realtimePeriod": 500_000 }));
    let before = env.dump();
    let hook = env.hook("createRuntime").state(bundle.state(sandbox.pid));
    if pod.has("cpu.rt_runtime_us") {
        assert_eq!(pod.value("cpu.rt_runtime_us"), "0");
        let run = hook.run().failed_with(1);
        assert!(run.stderr.contains("cpu.rt_"), "{run:#?}");
        // Kata 1.9 left the threads moved, and whatever came after realtime unset.
        before.assert_same(&env.dump(), run.stderr);
    } else {
        assert!(hook.run().succeeded().logged("placed").get("msg").contains("realtime left out"));
        sandbox.assert_placed(&env.group());
        assert_eq!(env.limits(), Limits::none().quota(150_000));
    }
}

#[test]
fn a_virtiofsd_that_ends_in_the_middle_keeps_no_vcpu_from_its_limit() {
    let Some(env) = Env::new() else { return };
    for slow in ["?mkdir,mkdirat:delay_exit=200000:when=2", "write:delay_enter=40000"] {
        let mut sandbox = env.sandbox().virtiofsd().start();
        let bundle = env.bundle();
        let strace = Strace::inject(&env, &[slow]);
        let hook = env.hook("prestart").state(bundle.state(sandbox.pid)).under(strace.wrapper()).start();
        wait_until("the first group", || !groups_named(&env.name).is_empty());
        sandbox.virtiofsd.as_mut().unwrap().kill();
        hook.wait().succeeded().logged("placed");
        sandbox.assert_vcpus_in(&env.group());
        assert_eq!(env.limits(), Limits::none().quota(150_000).shares(1536), "{slow}");
        assert!(env.unconstrained().holds(sandbox.pid), "{slow}");
        sandbox.release(&bundle).logged("released");
        env.assert_no_groups();
        sandbox.forget_runtime_files();
        drop(sandbox);
        std::fs::remove_dir_all(env.dir.join(format!("{}.qemu", env.name))).unwrap();
    }
}

#[test]
fn a_vcpu_that_ends_in_the_middle_keeps_no_other_from_its_limit() {
    let Some(env) = Env::with_kvm() else { return };
    let sandbox = env.kvm_sandbox().guest(Guest::Unplugging).start();
    sandbox.qmp().plug_cpu_2();
    wait_until("the third vCPU", || sandbox.vcpus().len() == 3);
    let strace = Strace::inject(&env, &["?mkdir,mkdirat:delay_exit=300000:when=2"]);
    let hook = env.hook("prestart").state(env.bundle().state(sandbox.pid)).under(strace.wrapper()).start();
    wait_until("the first group", || !groups_named(&env.name).is_empty());
    sandbox.qmp().unplug_cpu_2();
    hook.wait().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
    assert_eq!(env.limits(), Limits::none().quota(150_000).shares(1536));
}

#[test]
fn a_group_that_somebody_has_removed_keeps_no_other_from_going() {
    let Some(env) = Env::new() else { return };
    for controller in CONTROLLERS {
        let mut sandbox = env.sandbox().start();
        let bundle = env.bundle();
        sandbox.place(&bundle);
        sandbox.kill();
        let group = if controller == "memory" { env.unconstrained() } else { env.constrained(controller) };
        wait_until("a group to be removed", || group.remove_tree());
        sandbox.release(&bundle).logged("released");
        env.assert_no_groups();
        sandbox.forget_runtime_files();
        drop(sandbox);
        std::fs::remove_dir_all(env.dir.join(format!("{}.qemu", env.name))).unwrap();
    }
}

#[test]
fn an_end_without_a_path_takes_nobody_elses_groups_away() {
    let Some(env) = Env::new() else { return };
    let (neighbour, mut ended) = (env.sandbox().start(), env.sandbox().id("ended").start());
    neighbour.place(&env.bundle());
    let bundle = env.bundle_of(Engine::Single, Kind::Workload, &ended.id, &ended.id);
    let neighbours = |dump: &Dump| dump.lines_with(&env.group()).into_iter().map(str::to_owned).collect::<Vec<_>>();
    let before = neighbours(&env.dump());
    for path in ["", "/", "/..", "."] {
        let bundle = bundle.clone().cgroups_path(path);
        // Never placed, placed, and placed with its record lost: Kata 1.9 worked on /kata itself.
        ended.release(&bundle);
        ended.place(&bundle);
        ended.release(&bundle).logged("released");
        ended.place(&bundle);
        std::fs::remove_file(env.state_dir().join(format!("{}.json", ended.id))).unwrap();
        ended.release(&bundle).logged("released");
        assert_eq!(neighbours(&env.dump()), before, "{path:?}");
        neighbour.assert_placed(&env.group());
    }
    ended.kill();
    ended.release(&bundle.cgroups_path(""));
    neighbour.assert_placed(&env.group());
}

#[test]
fn a_qemu_without_the_command_that_kata_1_9_asked_is_placed() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    // query-cpus went with QEMU 6.0; the hook asks the kernel, and opens no QMP socket, of which Kata needs the only place.
    let commands = sandbox.qmp().execute("query-commands", &json!({}));
    let is_known = |name: &str| commands.as_array().unwrap().iter().any(|command| command["name"] == name);
    assert!(is_known("query-cpus-fast") && !is_known("query-cpus"), "a QEMU before 6.0");
    sandbox.place(&env.bundle());
    sandbox.assert_placed(&env.group());
}
