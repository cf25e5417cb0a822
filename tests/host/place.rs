//! Placing a sandbox: which threads end up where, and how often anything is touched.

use std::fs;

use crate::testenv::*;

#[test]
fn a_default_kata_without_thread_names_is_placed_by_kvms_own_word() {
    let Some(env) = Env::with_kvm() else { return };
    let sandbox = env.kvm_sandbox().guest(Guest::Spinning).virtiofsd().start();
    let run = sandbox.place(&env.bundle());
    sandbox.assert_placed(&env.group());
    let line = run.only_log_line();
    assert_eq!(line.get("vmm"), format!("qemu:{}", sandbox.pid));
    assert_eq!((line.get("vcpus"), line.get("limit")), ("2/2", "150000/100000"));
    assert_eq!((line.get("sandbox"), line.get("stage")), (env.name.as_str(), "prestart"));
}

#[test]
fn threads_that_qemu_names_are_placed_by_name_where_there_is_no_kvm() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let run = sandbox.place(&env.bundle());
    sandbox.assert_placed(&env.group());
    assert!(["2/2", "2/-"].contains(&run.only_log_line().get("vcpus")), "{run:#?}");
}

#[test]
fn without_debugfs_a_vcpu_that_is_inside_kvm_run_is_still_found() {
    let Some(env) = Env::with_kvm() else { return };
    let sandbox = env.kvm_sandbox().guest(Guest::Idle).start();
    let strace = Strace::without_debugfs(&env);
    let hook = env.hook("poststart").state(env.bundle().state(sandbox.pid)).under(strace.wrapper());
    let run = hook.run().succeeded();
    assert_eq!(run.logged("placed").get("vcpus"), "2/2");
    sandbox.assert_placed(&env.group());
}

#[test]
fn without_debugfs_a_vcpu_that_cannot_be_told_is_reported_as_missing_and_nobody_takes_its_place() {
    let Some(env) = Env::with_kvm() else { return };
    let sandbox = env.kvm_sandbox().guest(Guest::Spinning).start();
    let vcpus = sandbox.vcpus();
    // Where the hardware counts guest time, that gives the busy one away, once it has run for a while.
    wait_until("a busy vCPU", || cpu_ticks(vcpus[&0]).is_some_and(|ticks| ticks > 50));
    let strace = Strace::without_debugfs(&env);
    let hook = env.hook("poststart").state(env.bundle().state(sandbox.pid)).under(strace.wrapper());
    let run = hook.run().succeeded();
    // It may have been counted for the first time meanwhile.
    let is_counted = guest_ticks(vcpus[&0]) > 0;
    assert!(!strace.tampered().is_empty(), "the hook was expected to ask for debugfs");
    let cpu = env.constrained("cpu");
    let line = run.only_log_line();
    if line.get("result") == "placed" {
        assert!(is_counted, "nothing gives the busy one away: {line:?}");
        assert_eq!(line.get("vcpus"), "2/2");
        sandbox.assert_placed(&env.group());
    } else {
        assert_eq!((line.get("result"), line.get("vcpus"), line.priority), ("partial", "1/2", 28));
        assert!(cpu.threads().is_subset(&sandbox.vcpu_threads()), "{run:#?}");
        // Where guest time is counted, the idle one may have been busy for once.
        assert!(is_counted || cpu.threads() == [vcpus[&1]].into(), "{run:#?}");
    }
    let others = sandbox.other_threads();
    assert!(cpu.threads().is_disjoint(&others), "a thread that is no vCPU was constrained");
}

/// Field 43 of /proc/TID/stat.
fn guest_ticks(tid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(40).unwrap().parse().unwrap()
}

#[test]
fn threads_that_nothing_proves_to_be_vcpus_are_never_taken_for_them() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().unnamed_threads().start();
    let run = env.hook("poststart").state(env.bundle().state(sandbox.pid)).run().succeeded();
    assert_ne!(run.only_log_line().get("result"), "placed", "no vCPU was found, so none was placed: {run:#?}");
    for controller in CPU_CONTROLLERS {
        assert!(env.constrained(controller).threads().is_empty());
    }
}

#[test]
fn a_second_run_touches_nothing() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    let before = env.dump();
    for stage in ["prestart", "createRuntime", "createContainer", "poststart"] {
        let run = env.hook(stage).state(bundle.state(sandbox.pid)).run().succeeded();
        run.found_all_done();
        before.assert_same(&env.dump(), stage);
    }
}

#[test]
fn every_create_side_stage_places() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    for stage in ["prestart", "createRuntime", "createContainer", "poststart"] {
        let run = env.hook(stage).state(bundle.state(sandbox.pid)).run().succeeded();
        assert_eq!(run.logged("placed").get("stage"), stage);
        sandbox.assert_placed(&env.group());
        sandbox.release(&bundle);
        env.assert_no_groups();
    }
}

#[test]
fn the_state_of_each_runtime_is_understood() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let states = [
        bundle.state(sandbox.pid),
        bundle.state_without_annotations(&bundle.id, sandbox.pid),
        bundle.state_of_runtime_rs("creating", 0),
        bundle.state_of_runtime_rs("paused", sandbox.pid),
    ];
    for state in states {
        env.hook("prestart").state(&state).run().succeeded().logged("placed");
        sandbox.assert_placed(&env.group());
        env.hook("poststop").state(bundle.state_of_podman_poststop()).run().succeeded().logged("released");
        env.assert_no_groups();
    }
}

#[test]
fn neither_environment_nor_directory_nor_name_matter() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    env.hook("prestart").state(env.bundle().state(sandbox.pid)).bare("whatever").run().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_vcpu_that_is_plugged_in_later_is_taken_up_by_the_next_run() {
    let Some(env) = Env::with_kvm() else { return };
    let sandbox = env.kvm_sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    sandbox.qmp().plug_cpu_2();
    let run = env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded();
    assert_eq!(run.only_log_line().get("vcpus"), "3/3");
    assert_eq!(sandbox.vcpus().len(), 3);
    sandbox.assert_placed(&env.group());
}

#[test]
fn an_unplugged_vcpu_whose_descriptor_remains_is_not_missed() {
    let Some(env) = Env::with_kvm() else { return };
    let sandbox = env.kvm_sandbox().guest(Guest::Unplugging).start();
    sandbox.qmp().plug_cpu_2();
    sandbox.qmp().unplug_cpu_2();
    assert_eq!(sandbox.vcpu_descriptors(), 3);
    let run = sandbox.place(&env.bundle());
    assert_eq!(run.only_log_line().get("vcpus"), "2/2");
    sandbox.assert_placed(&env.group());
}

#[test]
fn before_the_vm_is_there_nothing_is_made_and_nothing_fails() {
    let Some(env) = Env::new() else { return };
    env.make_runtime_dir("vm", &env.name);
    let bundle = env.bundle();
    let before = env.dump();
    for stage in ["prestart", "createRuntime", "createContainer", "poststart"] {
        let hook = env.hook(stage).state(bundle.state(std::process::id().try_into().unwrap()));
        let dry = hook.clone().dry().run();
        assert_eq!((dry.code, dry.stdout.as_str()), (Some(0), "0 steps: no VMM yet\n"), "{dry:#?}");
        let run = hook.run().succeeded();
        assert_eq!(run.logged("not-yet").get("vmm"), "-");
        before.assert_same(&env.dump(), stage);
    }
}

#[test]
fn the_log_line_has_every_key_in_one_datagram() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let run = sandbox.place(&env.bundle());
    let line = run.only_log_line();
    let keys = "stage result sandbox container vmm vcpus moved created removed limit cpus took_ms msg";
    assert_eq!(line.keys(), keys.split(' ').collect::<Vec<_>>(), "{}", line.raw);
    assert_eq!(line.priority, 30);
    assert!(line.raw.len() <= 1024 && line.values().all(|value| !value.is_empty()), "{}", line.raw);
}

#[test]
fn the_record_is_roots_alone() {
    use std::os::unix::fs::MetadataExt;
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    sandbox.place(&env.bundle());
    let record = env.state_dir().join(format!("{}.json", env.name));
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&record), mode(&env.state_dir())), (0o600, 0o700));
    let record: serde_json::Value = serde_json::from_str(&fs::read_to_string(record).unwrap()).unwrap();
    assert_eq!(
        (&record["schema"], &record["sandbox"], &record["state"]),
        (&1.into(), &env.name.as_str().into(), &"placed".into())
    );
    let processes = record["processes"].as_array().unwrap();
    let vmm = processes.iter().find(|process| process["pid"] == sandbox.pid).expect("the VMM in the record");
    assert_eq!(vmm["start"].as_u64(), start_time(sandbox.pid));
}

#[test]
fn a_kata_group_that_holds_shim_and_vmm_keeps_its_values_and_gets_back_whom_it_held() {
    // What Kata makes with sandbox_cgroup_only=true and the cgroupfs driver.
    let Some(env) = Env::new() else { return };
    let mut shim = env.shim(&env.name);
    let sandbox = env.sandbox().start_in(&mut shim);
    let katas = premake(&env.group());
    for group in &katas {
        group.take_in(shim.pid());
        group.take_in(sandbox.pid);
    }
    // Where Kata's group has the very name that ours would bear, ours is a child of it.
    let ours = CPU_CONTROLLERS.map(|controller| env.constrained(controller));
    let ours = ours.map(|group| if katas.contains(&group) { group.child("vcpu") } else { group });
    let bundle = env.bundle();
    let before = env.dump();

    sandbox.place(&bundle);
    for group in &ours {
        assert_eq!(group.threads(), sandbox.vcpu_threads(), "{group:?}");
    }
    assert_eq!(ours[0].quota_and_period(), (Some(150_000), 100_000));
    let katas_own = Group::new("cpu", &env.group());
    assert_eq!((katas_own.quota(), katas_own.share()), (None, share_of(1024)), "Kata's own group keeps its values");
    assert_eq!(env.unconstrained().processes(), [sandbox.pid].into(), "the shim stays");
    assert!(katas.iter().all(|group| group.holds(shim.pid())), "the shim stays");

    sandbox.release(&bundle);
    before.assert_same(&env.dump(), "Kata's group is as Kata made it, and all are back in it");
}

#[test]
fn somebody_elses_vcpu_group_in_a_group_of_katas_is_used_and_given_back_as_it_was() {
    let Some(env) = Env::with("cpu", Version::V1) else { return };
    let mut shim = env.shim(&env.name);
    let sandbox = env.sandbox().start_in(&mut shim);
    for group in premake(&env.group()) {
        group.take_in(shim.pid());
        group.take_in(sandbox.pid);
    }
    // Not where memory is on v2, whose group holds processes.
    for controller in CPU_CONTROLLERS {
        Group::new(controller, &env.group()).child("vcpu").make();
    }
    let taken = Group::new("cpu", &env.group()).child("vcpu");
    taken.set_shares(300);
    taken.set_quota(77_000);
    let bundle = env.bundle();
    let before = env.dump();

    sandbox.place(&bundle);
    assert_eq!(taken.threads(), sandbox.vcpu_threads());
    assert_eq!(taken.quota_and_period(), (Some(150_000), 100_000));

    sandbox.release(&bundle);
    let values = |dump: &Dump| dump.lines_with("cpu.").into_iter().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(values(&before), values(&env.dump()));
}

#[test]
fn a_kata_group_for_the_vcpus_alone_is_given_back_as_it_was() {
    // What Kata makes with sandbox_cgroup_only=false: the VMM is in its overhead group, the vCPUs in the sandbox's.
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let katas = premake(&env.group());
    for overhead in premake(&format!("{}/overhead", env.top())) {
        overhead.take_in(sandbox.pid);
    }
    // On v2 no thread can be in another group than its process: there Kata moves none, and its own group stays empty.
    let taken = CPU_CONTROLLERS.map(|controller| env.constrained(controller));
    for group in taken.iter().filter(|group| katas.contains(group)) {
        sandbox.vcpu_threads().iter().for_each(|tid| group.take_in_thread(*tid));
    }
    let katas_own = Group::new("cpu", &env.group());
    katas_own.set_shares(300);
    katas_own.set_period(50_000);
    katas_own.set_quota(77_000);
    let bundle = env.bundle();
    let before = env.dump();

    env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded();
    sandbox.assert_placed(&env.group());
    assert_eq!(env.limits(), Limits::none().quota(150_000).shares(1536));
    assert_eq!(katas_own.children(), [], "no child of Kata's group where it can be adopted or is not used");

    sandbox.release(&bundle);
    before.assert_same(&env.dump(), "what was adopted is given back as it was");
}

#[test]
fn an_empty_group_of_that_name_is_never_removed() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let katas = premake(&env.group());
    let bundle = env.bundle();
    let before = env.dump();
    sandbox.place(&bundle);
    sandbox.assert_vcpus_in(&env.group());
    sandbox.release(&bundle);
    assert!(katas.iter().all(Group::exists));
    let values = |dump: &Dump| dump.lines_with("cpu.").into_iter().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(values(&before), values(&env.dump()));
}

#[test]
fn threads_of_a_vmm_that_are_no_vcpus_keep_their_cpus() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let before = others(&sandbox);
    sandbox.place(&env.bundle().cpu(serde_json::json!({ "quota": 50_000, "period": 100_000, "cpus": "0" })));
    assert_eq!(before, others(&sandbox));
}

/// What each thread but the vCPUs may use of the CPUs, and where it is in the hierarchies that have no place for its process.
fn others(sandbox: &Sandbox) -> Vec<(Freedom, Vec<Option<String>>)> {
    let left_alone = |tid| hierarchies().filter(|it| !it.has_domains()).map(|it| place_in(tid, it)).collect();
    sandbox.other_threads().into_iter().map(|tid| (freedom_of(tid), left_alone(tid))).collect()
}

#[test]
fn a_record_of_a_schema_that_is_not_known_is_kept_aside() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    let record = env.state_dir().join(format!("{}.json", env.name));
    let text = fs::read_to_string(&record).unwrap();
    let newer = text.replacen("\"schema\":1", "\"schema\":99", 1);
    assert_ne!(text, newer);
    fs::write(&record, &newer).unwrap();
    env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded();
    sandbox.assert_placed(&env.group());
    assert_eq!(fs::read_to_string(record.with_extension("json.old")).unwrap(), newer);
    assert!(fs::read_to_string(&record).unwrap().contains("\"schema\":1,"));
    sandbox.release(&bundle);
    env.assert_no_groups();
}

#[test]
fn sandboxes_that_start_and_end_at_once_do_not_disturb_each_other() {
    let Some(env) = Env::new() else { return };
    let sandboxes: Vec<Sandbox<'_>> = ["a", "b", "c"].map(|id| env.sandbox().id(id).start()).into();
    let bundles: Vec<Bundle> =
        sandboxes.iter().map(|sandbox| env.bundle_of(Engine::Single, Kind::Workload, &sandbox.id, &sandbox.id)).collect();
    let before = env.dump();
    for _ in 0..6 {
        for stage in ["prestart", "poststop"] {
            let states = sandboxes.iter().zip(&bundles).map(|(sandbox, bundle)| bundle.state(sandbox.pid));
            let runs: Vec<_> = states.map(|state| env.hook(stage).state(state).start()).collect();
            for run in runs {
                run.wait().succeeded();
            }
            for sandbox in sandboxes.iter().filter(|_| stage == "prestart") {
                sandbox.assert_placed(&format!("{}/pod/kata_{}", env.top(), sandbox.id));
            }
        }
        before.assert_same(&env.dump(), "all have ended");
    }
}
