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
    let strace = Strace::inject(&env, &["fsopen:error=EPERM"]);
    let hook = env.hook("poststart").state(env.bundle().state(sandbox.pid)).under(strace.wrapper());
    let run = hook.run().succeeded();
    assert_eq!(run.logged("placed").get("vcpus"), "2/2");
    sandbox.assert_placed(&env.group());
}

#[test]
fn without_debugfs_a_vcpu_that_cannot_be_told_is_reported_as_missing_and_nobody_takes_its_place() {
    let Some(env) = Env::with_kvm() else { return };
    let sandbox = env.kvm_sandbox().guest(Guest::Spinning).start();
    let strace = Strace::inject(&env, &["fsopen:error=EPERM"]);
    let hook = env.hook("poststart").state(env.bundle().state(sandbox.pid)).under(strace.wrapper());
    let run = hook.run().succeeded();
    assert!(!strace.tampered().is_empty(), "the hook was expected to ask for debugfs");
    let vcpus = sandbox.vcpus();
    let cpu = Group::new("cpu", &env.group());
    // Where the hardware counts guest time, that gives the busy one away.
    if guest_ticks(vcpus[&0]) > 0 {
        assert_eq!(run.logged("placed").get("vcpus"), "2/2");
        sandbox.assert_placed(&env.group());
    } else {
        let line = run.logged("partial");
        assert_eq!((line.get("vcpus"), line.priority), ("1/2", 28));
        assert_eq!(cpu.threads(), [vcpus[&1]].into());
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
        assert!(Group::new(controller, &env.group()).threads().is_empty());
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
        let line = run.logged("unchanged");
        assert_eq!((line.get("moved"), line.get("created"), line.get("removed")), ("0", "0", "0"));
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
fn a_kata_group_that_holds_shim_and_vmm_gets_a_child_for_the_vcpus() {
    // What Kata makes with sandbox_cgroup_only=true and the cgroupfs driver.
    let Some(env) = Env::new() else { return };
    let group = env.group();
    let mut shim = env.shim(&env.name);
    let sandbox = env.sandbox().start_in(&mut shim);
    premake(&group);
    for controller in CONTROLLERS {
        Group::new(controller, &group).set("cgroup.procs", shim.pid());
        Group::new(controller, &group).set("cgroup.procs", sandbox.pid);
    }
    let bundle = env.bundle();
    let before = env.dump();

    sandbox.place(&bundle);
    sandbox.assert_vcpus_in(&format!("{group}/vcpu"));
    let child = Group::new("cpu", &format!("{group}/vcpu"));
    assert_eq!((child.value("cpu.cfs_quota_us").as_str(), child.value("cpu.shares").as_str()), ("150000", "1536"));
    assert_eq!(Group::new("cpu", &group).value("cpu.cfs_quota_us"), "-1", "Kata's own group keeps its values");
    assert_eq!(Group::new("memory", &format!("/kata{group}")).processes(), [sandbox.pid].into(), "the shim stays");
    for controller in CONTROLLERS {
        assert_eq!(place_of(shim.pid(), controller), Some(group.clone()), "the shim stays");
    }

    sandbox.release(&bundle);
    before.assert_same(&env.dump(), "Kata's group is as Kata made it, and all are back in it");
}

#[test]
fn a_kata_group_for_the_vcpus_alone_is_adopted_and_given_back() {
    // What Kata makes with sandbox_cgroup_only=false: the VMM is in its overhead group, the vCPUs in the sandbox's.
    let Some(env) = Env::new() else { return };
    let (group, overhead) = (env.group(), format!("{}/overhead", env.top()));
    let sandbox = env.sandbox().start();
    premake(&group);
    premake(&overhead);
    for controller in CONTROLLERS {
        Group::new(controller, &overhead).set("cgroup.procs", sandbox.pid);
    }
    for controller in CPU_CONTROLLERS {
        sandbox.vcpu_threads().iter().for_each(|tid| Group::new(controller, &group).set("tasks", tid));
    }
    let cpu = Group::new("cpu", &group);
    cpu.set("cpu.shares", 300);
    cpu.set("cpu.cfs_period_us", 50_000);
    cpu.set("cpu.cfs_quota_us", 77_000);
    let bundle = env.bundle();
    let before = env.dump();

    env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded();
    sandbox.assert_placed(&group);
    assert_eq!(cpu.value("cpu.cfs_quota_us"), "150000");
    assert_eq!(cpu.value("cpu.cfs_period_us"), "100000");
    assert_eq!(cpu.value("cpu.shares"), "1536");
    assert_eq!(cpu.children(), [], "no child where the group can be adopted");

    sandbox.release(&bundle);
    before.assert_same(&env.dump(), "what was adopted is given back as it was");
}

#[test]
fn an_empty_group_of_that_name_is_adopted_and_never_removed() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    premake(&env.group());
    let bundle = env.bundle();
    let before = env.dump();
    sandbox.place(&bundle);
    sandbox.assert_vcpus_in(&env.group());
    sandbox.release(&bundle);
    assert!(CONTROLLERS.iter().all(|controller| Group::new(controller, &env.group()).exists()));
    let values = |dump: &Dump| dump.lines_with("cpu.").into_iter().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(values(&before), values(&env.dump()));
}

#[test]
fn threads_of_a_vmm_that_are_no_vcpus_keep_their_cpus() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let before: Vec<_> = others(&sandbox);
    sandbox.place(&env.bundle());
    assert_eq!(before, others(&sandbox));
}

/// Where each thread but the vCPUs is in the hierarchies that limit CPU time.
fn others(sandbox: &Sandbox) -> Vec<(i32, Vec<Option<String>>)> {
    let threads = sandbox.other_threads().into_iter();
    threads.map(|tid| (tid, CPU_CONTROLLERS.map(|controller| place_of(tid, controller)).into())).collect()
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
