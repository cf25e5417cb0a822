//! How much CPU: what the container asked for, as the kernel was told.

use std::fmt::Display;

use serde_json::{Value, json};

use crate::testenv::*;

#[test]
fn a_single_container_gets_what_it_asked_for() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let none = Limits::none;
    // What config.json says, and what the kernel is told.
    let demands: [(Value, Limits); 17] = [
        (json!({}), none()),
        (Value::Null, none()),
        (json!({ "quota": 150_000, "period": 100_000 }), none().quota(150_000)),
        (json!({ "quota": 50_000, "period": 50_000 }), none().quota(50_000).period(50_000)),
        (json!({ "quota": 300_000, "period": 200_000 }), none().quota(300_000).period(200_000)),
        // Without a period the kernel's own.
        (json!({ "quota": 20_000 }), none().quota(20_000)),
        (json!({ "quota": 30_000, "period": 0 }), none().quota(30_000)),
        // -1 and 0 are no limit.
        (json!({ "quota": -1, "period": 100_000 }), none()),
        (json!({ "quota": 0, "period": 100_000 }), none()),
        (json!({ "shares": 0 }), none()),
        // Never less than the kernel takes.
        (json!({ "quota": 500, "period": 100_000 }), none().quota(1000)),
        (json!({ "shares": 1 }), none().shares(2)),
        (json!({ "shares": 1_000_000 }), none().shares(262_144)),
        (json!({ "shares": 512 }), none().shares(512)),
        (json!({ "cpus": "0", "mems": "0" }), none().cpus("0").mems("0")),
        (json!({ "cpus": "0-0,0", "mems": "" }), none().cpus("0")),
        (json!({ "cpus": "", "mems": "" }), none()),
    ];
    for (demand, expected) in demands {
        let bundle = env.bundle().cpu(demand.clone());
        sandbox.place(&bundle);
        assert_eq!(env.limits(), expected, "{demand}");
        sandbox.assert_placed(&env.group());
        sandbox.release(&bundle);
    }
}

#[test]
fn a_bundle_without_resources_is_not_limited() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let mut bundle = env.bundle();
    bundle.config["linux"].as_object_mut().unwrap().remove("resources");
    sandbox.place(&bundle.write());
    assert_eq!(env.limits(), Limits::none());
}

#[test]
fn lists_of_cpus_are_normalised() {
    let Some(env) = Env::new() else { return };
    if Limits::none().cpus == "0" {
        return skipped("one CPU").unwrap_or_default();
    }
    let sandbox = env.sandbox().start();
    for list in ["0,1", "1,0", "0-1,1", "1,0-0"] {
        let bundle = env.bundle().cpu(json!({ "cpus": list }));
        let run = sandbox.place(&bundle);
        assert_eq!((env.limits().cpus.as_str(), run.only_log_line().get("cpus")), ("0-1", "0-1"), "{list}");
        sandbox.release(&bundle);
    }
}

#[test]
fn cpus_that_the_host_does_not_have_fall_out_and_are_named() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let run = sandbox.place(&env.bundle().cpu(json!({ "cpus": "0,777" })));
    assert_eq!(env.limits().cpus, "0");
    assert!(run.only_log_line().get("msg").contains("777"), "{run:#?}");
}

#[test]
fn a_list_with_no_cpu_left_fails_and_changes_nothing() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    for cpus in ["777", "777-778"] {
        let bundle = env.bundle().cpu(json!({ "cpus": cpus, "quota": 50_000 }));
        let before = env.dump();
        let run = env.hook("prestart").state(bundle.state(sandbox.pid)).run().failed_with(1);
        assert!(run.stderr.contains("777"), "{run:#?}");
        run.logged("failed");
        before.assert_same(&env.dump(), cpus);
    }
}

#[test]
fn a_list_that_is_none_fails_and_changes_nothing() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    for cpus in ["a", "1-", "3-1", "0;1", "-1", "99999999999999999999", "0-4294967295"] {
        let bundle = env.bundle().cpu(json!({ "cpus": cpus }));
        let before = env.dump();
        let run = env.hook("prestart").state(bundle.state(sandbox.pid)).run();
        // A range may be long and yet hold this host's CPUs; whatever the list, no half of it is done.
        if run.code == Some(0) {
            assert_eq!(cpus, "0-4294967295", "{run:#?}");
            sandbox.release(&bundle);
        } else {
            run.failed_with(1);
            before.assert_same(&env.dump(), cpus);
        }
    }
}

#[test]
fn the_cpus_are_those_of_the_nearest_ancestor_that_has_some() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let pod = env.pod("cpuset");
    pod.make();
    pod.set("cpuset.cpus", "0");
    sandbox.place(&env.bundle().cgroups_path(&format!("{}/a/b/c", pod.path)));
    let constrained = constrained_at(&format!("{}/a/b/kata_c", pod.path), "cpuset");
    assert_eq!((constrained.cpus(), constrained.mems()), ("0".to_owned(), pod.mems()));
    // What was made on the way to it below the pod has them as well, or nobody could be in there.
    for group in constrained.upwards().take_while(|group| group.is_below(&pod)) {
        assert_eq!((group.value("cpuset.cpus"), group.value("cpuset.mems")), ("0".to_owned(), pod.mems()), "{group:?}");
    }
    sandbox.assert_placed(&format!("{}/a/b/kata_c", pod.path));
    assert!(sandbox.vcpu_threads().into_iter().all(|tid| freedom_of(tid).1 == "0"));
}

/// The vCPUs are held to this quota and period, by a group of their own or by one above.
///
/// Where they are in the pod, and it caps them already, ours stays unlimited: the kernel forbids lowering a group on v1 below
/// what one in it has, and kubelet stays free to resize the pod.
#[track_caller]
fn assert_held_to(env: &Env, cap: (u64, u64), why: impl Display) {
    let (own, pod) = (env.constrained("cpu"), env.pod("cpu"));
    let is_it = |(quota, period): (u64, u64)| quota * cap.1 == cap.0 * period;
    assert!(own.cap().is_some_and(is_it), "{why}: {:?}", own.cap());
    let by_the_pod = own.is_below(&pod) && pod.cap().is_some_and(is_it);
    assert_eq!(own.quota().is_none(), by_the_pod, "{why}: {:?}", own.quota());
}

#[test]
fn a_parent_that_caps_already_is_left_to_it() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let pod = env.pod("cpu");
    pod.make();
    let bundle = env.bundle().cpu(json!({ "quota": 150_000, "period": 100_000 }));
    for (parents, cap) in [(Some(100_000), 100_000), (Some(150_000), 150_000), (Some(150_001), 150_000), (None, 150_000)] {
        pod.set_quota(parents);
        sandbox.place(&bundle);
        assert_held_to(&env, (cap, 100_000), format!("below a quota of {parents:?}"));
        assert_eq!(pod.quota(), parents, "the parent's quota is not ours to set");
        sandbox.release(&bundle);
    }
}

#[test]
fn a_parent_whose_period_differs_is_compared_by_its_ratio() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let pod = env.pod("cpu");
    pod.make();
    pod.set_period(20_000);
    let bundle = env.bundle().cpu(json!({ "quota": 150_000, "period": 100_000 }));
    for (parents, cap) in [(30_000, (150_000, 100_000)), (20_000, (20_000, 20_000)), (40_000, (150_000, 100_000))] {
        pod.set_quota(parents);
        sandbox.place(&bundle);
        assert_held_to(&env, cap, format!("below {parents}/20000"));
        sandbox.release(&bundle);
    }
}

#[test]
fn a_tighter_group_further_up_fails_no_pod() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    env.pod("cpu").make();
    Group::new("cpu", &env.top()).set_quota(100_000);
    sandbox.place(&env.bundle().cpu(json!({ "quota": 150_000, "period": 100_000 })));
    assert_eq!(env.constrained("cpu").cap(), Some((100_000, 100_000)));
}

#[test]
fn a_limit_that_is_no_more_asked_for_is_reset() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle().cpu(json!({ "quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0" }));
    sandbox.place(&bundle);
    assert_eq!(env.limits(), Limits::none().quota(50_000).shares(512).cpus("0"));
    let bundle = bundle.cpu(json!({}));
    env.hook("prestart").state(bundle.state(sandbox.pid)).run().succeeded();
    assert_eq!(env.limits(), Limits::none());
}

#[test]
fn realtime_is_passed_on_where_the_kernel_has_it_for_groups_and_left_out_with_a_word_elsewhere() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    // Right below the root, as every group on the way would need a realtime share of its own.
    let bundle =
        env.bundle().cgroups_path(&format!("/{}", env.name)).cpu(json!({ "realtimeRuntime": 2000, "realtimePeriod": 500_000 }));
    let run = sandbox.place(&bundle);
    let cpu = constrained_at(&format!("/kata_{}", env.name), "cpu");
    if Group::new("cpu", "/").value("cpu.rt_runtime_us").is_empty() {
        assert!(run.only_log_line().get("msg").contains("realtime left out"), "{run:#?}");
    } else {
        assert_eq!((cpu.value("cpu.rt_runtime_us").as_str(), cpu.value("cpu.rt_period_us").as_str()), ("2000", "500000"));
    }
}

#[test]
fn the_pause_container_asks_for_nothing() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    for engine in Engine::WITH_PODS {
        // Its own shares are a token, no demand.
        let pause = env
            .bundle_of(engine, Kind::Sandbox, &env.name, &env.name)
            .cpu(json!({ "shares": 2, "quota": 1000, "period": 100_000 }));
        sandbox.place(&pause);
        assert_eq!(env.limits(), Limits::none(), "{engine:?}");
        sandbox.release(&pause);
        std::fs::remove_dir_all(pause.dir).unwrap();
    }
}

#[test]
fn containerds_word_on_the_pods_size_counts_until_a_workload_is_there() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let pause = env
        .bundle_of(Engine::Containerd, Kind::Sandbox, &env.name, &env.name)
        .annotate("io.kubernetes.cri.sandbox-cpu-quota", "120000")
        .annotate("io.kubernetes.cri.sandbox-cpu-period", "100000")
        .annotate("io.kubernetes.cri.sandbox-cpu-shares", "1229");
    sandbox.place(&pause);
    assert_eq!(env.limits(), Limits::none().quota(120_000).shares(1229));
}

#[test]
fn a_workloads_demand_takes_the_place_of_the_pause_containers() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let pause = env.bundle_of(Engine::Containerd, Kind::Sandbox, &env.name, &env.name);
    sandbox.place(&pause);
    let workload = env.bundle_of(Engine::Containerd, Kind::Workload, &env.name, "c0ffee");
    env.hook("prestart").state(workload.state(sandbox.pid)).run().succeeded();
    assert_eq!(env.limits(), Limits::none().quota(150_000).shares(1536));
}

#[test]
fn nobody_is_in_a_group_before_it_is_limited() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let strace = Strace::inject(&env, &[]);
    let hook = env.hook("prestart").state(env.bundle().state(sandbox.pid)).under(strace.wrapper());
    hook.run().succeeded().logged("placed");
    let trace = strace.trace();
    // Other sandboxes that come and go meanwhile change what they share with this one, so that is left out.
    let is_ours = |line: &&str| line.contains(&env.name) && (line.contains("write(") || line.contains("pwrite64("));
    let written: Vec<&str> = trace.lines().filter(is_ours).collect();
    let last =
        |file: &str| written.iter().rposition(|line| line.contains(file)).unwrap_or_else(|| panic!("no {file}: {written:#?}"));
    let is_move = |line: &&str| ["/tasks>", "/cgroup.threads>", "/cgroup.procs>"].iter().any(|file| line.contains(file));
    let first_move = written.iter().position(is_move).unwrap();
    let of_v1 = ["cpu.cfs_quota_us>", "cpu.cfs_period_us>", "cpu.shares>"];
    let of_v2 = ["cpu.max>", "cpu.weight>", "cgroup.type>", "cgroup.subtree_control>"];
    for file in of_v1.into_iter().chain(of_v2).chain(["cpuset.cpus>", "cpuset.mems>"]) {
        // What already is as it should be need not be written at all.
        if written.iter().any(|line| line.contains(file)) {
            assert!(last(file) < first_move, "{file} after the first move: {written:#?}");
        }
    }
}
