//! How much CPU: what the container asked for, as the kernel was told.

use serde_json::{Value, json};

use crate::testenv::*;

/// The limits of the sandbox's group: quota, period, shares, cpus, mems.
fn limits(env: &Env) -> [String; 5] {
    let (cpu, cpuset) = (Group::new("cpu", &env.group()), Group::new("cpuset", &env.group()));
    [
        cpu.value("cpu.cfs_quota_us"),
        cpu.value("cpu.cfs_period_us"),
        cpu.value("cpu.shares"),
        cpuset.value("cpuset.cpus"),
        cpuset.value("cpuset.mems"),
    ]
}

/// What the groups that nobody limited have.
fn all_cpus_and_mems() -> (String, String) {
    let root = Group::new("cpuset", "/");
    (root.value("cpuset.cpus"), root.value("cpuset.mems"))
}

#[test]
fn a_single_container_gets_what_it_asked_for() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let (cpus, mems) = all_cpus_and_mems();
    let (cpus, mems) = (cpus.as_str(), mems.as_str());
    // What config.json says; then quota, period, shares, cpus and mems.
    let demands: [(Value, [&str; 5]); 17] = [
        (json!({}), ["-1", "100000", "1024", cpus, mems]),
        (Value::Null, ["-1", "100000", "1024", cpus, mems]),
        (json!({ "quota": 150_000, "period": 100_000 }), ["150000", "100000", "1024", cpus, mems]),
        (json!({ "quota": 50_000, "period": 50_000 }), ["50000", "50000", "1024", cpus, mems]),
        (json!({ "quota": 300_000, "period": 200_000 }), ["300000", "200000", "1024", cpus, mems]),
        // Without a period the kernel's own.
        (json!({ "quota": 20_000 }), ["20000", "100000", "1024", cpus, mems]),
        (json!({ "quota": 30_000, "period": 0 }), ["30000", "100000", "1024", cpus, mems]),
        // -1 and 0 are no limit.
        (json!({ "quota": -1, "period": 100_000 }), ["-1", "100000", "1024", cpus, mems]),
        (json!({ "quota": 0, "period": 100_000 }), ["-1", "100000", "1024", cpus, mems]),
        (json!({ "shares": 0 }), ["-1", "100000", "1024", cpus, mems]),
        // Never less than the kernel takes.
        (json!({ "quota": 500, "period": 100_000 }), ["1000", "100000", "1024", cpus, mems]),
        (json!({ "shares": 1 }), ["-1", "100000", "2", cpus, mems]),
        (json!({ "shares": 1_000_000 }), ["-1", "100000", "262144", cpus, mems]),
        (json!({ "shares": 512 }), ["-1", "100000", "512", cpus, mems]),
        (json!({ "cpus": "0", "mems": "0" }), ["-1", "100000", "1024", "0", "0"]),
        (json!({ "cpus": "0-0,0", "mems": "" }), ["-1", "100000", "1024", "0", mems]),
        (json!({ "cpus": "", "mems": "" }), ["-1", "100000", "1024", cpus, mems]),
    ];
    for (demand, expected) in demands {
        let bundle = env.bundle().cpu(demand.clone());
        sandbox.place(&bundle);
        assert_eq!(limits(&env), expected.map(str::to_owned), "{demand}");
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
    assert_eq!(limits(&env)[..3], ["-1", "100000", "1024"]);
}

#[test]
fn lists_of_cpus_are_normalised() {
    let Some(env) = Env::new() else { return };
    let (cpus, _) = all_cpus_and_mems();
    if cpus == "0" {
        return skipped("one CPU").unwrap_or_default();
    }
    let sandbox = env.sandbox().start();
    for list in ["0,1", "1,0", "0-1,1", "1,0-0"] {
        let bundle = env.bundle().cpu(json!({ "cpus": list }));
        let run = sandbox.place(&bundle);
        assert_eq!((limits(&env)[3].as_str(), run.only_log_line().get("cpus")), ("0-1", "0-1"), "{list}");
        sandbox.release(&bundle);
    }
}

#[test]
fn cpus_that_the_host_does_not_have_fall_out_and_are_named() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let run = sandbox.place(&env.bundle().cpu(json!({ "cpus": "0,777" })));
    assert_eq!(limits(&env)[3], "0");
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
fn the_cpuset_is_filled_from_the_nearest_ancestor_that_has_one() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let pod = Group::new("cpuset", &format!("{}/pod", env.top()));
    pod.make();
    pod.set("cpuset.cpus", "0");
    sandbox.place(&env.bundle().cgroups_path(&format!("{}/pod/a/b/c", env.top())));
    for path in ["a", "a/b", "a/b/kata_c"] {
        let group = Group::new("cpuset", &format!("{}/pod/{path}", env.top()));
        assert_eq!(
            (group.value("cpuset.cpus").as_str(), group.value("cpuset.mems")),
            ("0", pod.value("cpuset.mems")),
            "{path}"
        );
    }
    sandbox.assert_placed(&format!("{}/pod/a/b/kata_c", env.top()));
}

#[test]
fn a_parent_that_caps_already_is_left_to_it() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let pod = Group::new("cpu", &format!("{}/pod", env.top()));
    pod.make();
    let bundle = env.bundle().cpu(json!({ "quota": 150_000, "period": 100_000 }));
    for (parents, ours) in [(100_000, "-1"), (150_000, "-1"), (150_001, "150000"), (-1, "150000")] {
        pod.set("cpu.cfs_quota_us", parents);
        sandbox.place(&bundle);
        assert_eq!(limits(&env)[0], ours, "below a quota of {parents}");
        assert_eq!(pod.value("cpu.cfs_quota_us"), parents.to_string(), "the parent's quota is not ours to set");
        sandbox.release(&bundle);
    }
}

#[test]
fn a_parent_whose_period_differs_is_compared_by_its_ratio() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let pod = Group::new("cpu", &format!("{}/pod", env.top()));
    pod.make();
    pod.set("cpu.cfs_period_us", 20_000);
    let bundle = env.bundle().cpu(json!({ "quota": 150_000, "period": 100_000 }));
    for (parents, ours) in [(30_000, "-1"), (20_000, "-1"), (40_000, "150000")] {
        pod.set("cpu.cfs_quota_us", parents);
        sandbox.place(&bundle);
        assert_eq!(limits(&env)[0], ours, "below {parents}/20000");
        sandbox.release(&bundle);
    }
}

#[test]
fn a_tighter_group_further_up_fails_no_pod() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let top = Group::new("cpu", &env.top());
    Group::new("cpu", &format!("{}/pod", env.top())).make();
    top.set("cpu.cfs_quota_us", 100_000);
    sandbox.place(&env.bundle().cpu(json!({ "quota": 150_000, "period": 100_000 })));
    let [quota, period, ..] = limits(&env);
    assert!(quota == "-1" || quota.parse::<u64>().unwrap() <= period.parse().unwrap(), "{quota}/{period} under one CPU");
}

#[test]
fn a_limit_that_is_no_more_asked_for_is_reset() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle().cpu(json!({ "quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0" }));
    sandbox.place(&bundle);
    assert_eq!(limits(&env)[..4], ["50000", "100000", "512", "0"]);
    let bundle = bundle.cpu(json!({}));
    env.hook("prestart").state(bundle.state(sandbox.pid)).run().succeeded();
    let (cpus, mems) = all_cpus_and_mems();
    assert_eq!(limits(&env), ["-1", "100000", "1024", &cpus, &mems]);
}

#[test]
fn realtime_is_passed_on() {
    let Some(env) = Env::new() else { return };
    let probe = Group::new("cpu", &format!("/{}-probe", env.name));
    probe.make();
    if std::fs::write(probe.path_on_host().join("cpu.rt_runtime_us"), "1000").is_err() {
        return skipped("no realtime groups").unwrap_or_default();
    }
    assert!(probe.remove_tree());
    let sandbox = env.sandbox().start();
    // Right below the root, as every group on the way would need a realtime share of its own.
    let bundle =
        env.bundle().cgroups_path(&format!("/{}", env.name)).cpu(json!({ "realtimeRuntime": 2000, "realtimePeriod": 500_000 }));
    sandbox.place(&bundle);
    let cpu = Group::new("cpu", &format!("/kata_{}", env.name));
    assert_eq!((cpu.value("cpu.rt_runtime_us").as_str(), cpu.value("cpu.rt_period_us").as_str()), ("2000", "500000"));
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
        assert_eq!(limits(&env)[..3], ["-1", "100000", "1024"], "{engine:?}");
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
    assert_eq!(limits(&env)[..3], ["120000", "100000", "1229"]);
}

#[test]
fn a_workloads_demand_takes_the_place_of_the_pause_containers() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let pause = env.bundle_of(Engine::Containerd, Kind::Sandbox, &env.name, &env.name);
    sandbox.place(&pause);
    let workload = env.bundle_of(Engine::Containerd, Kind::Workload, &env.name, "c0ffee");
    env.hook("prestart").state(workload.state(sandbox.pid)).run().succeeded();
    assert_eq!(limits(&env)[..3], ["150000", "100000", "1536"]);
}

#[test]
fn nobody_is_in_a_group_before_it_is_limited() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let strace = Strace::inject(&env, &[]);
    let hook = env.hook("prestart").state(env.bundle().state(sandbox.pid)).under(strace.wrapper());
    hook.run().succeeded().logged("placed");
    let trace = strace.trace();
    let written: Vec<&str> = trace.lines().filter(|line| line.contains("write(") || line.contains("pwrite64(")).collect();
    let last =
        |file: &str| written.iter().rposition(|line| line.contains(file)).unwrap_or_else(|| panic!("no {file}: {written:#?}"));
    let first_move = written.iter().position(|line| line.contains("/tasks>") || line.contains("/cgroup.procs>")).unwrap();
    for file in ["cpu.cfs_quota_us>", "cpu.cfs_period_us>", "cpu.shares>", "cpuset.cpus>", "cpuset.mems>"] {
        // What already is as it should be need not be written at all.
        if written.iter().any(|line| line.contains(file)) {
            assert!(last(file) < first_move, "{file} after the first move: {written:#?}");
        }
    }
}
