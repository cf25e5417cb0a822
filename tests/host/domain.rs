//! cgroup v2: where a sandbox's domain lies, what acts on it there, and what becomes of it when others have a hand in.

use std::fs;

use serde_json::json;

use crate::testenv::*;

/// Memory that a VMM is made to touch, in bytes.
const GUEST: u64 = 64 << 20;

/// The settings of `[v2] domain`, and where each puts the domain of [`Env::bundle`]'s sandbox.
fn settings(env: &Env) -> [(&'static str, Group); 2] {
    [("kata", Group::new("cpu", &format!("/kata{}", env.group()))), ("pod", Group::new("cpu", &env.group()))]
}

/// The pod's group as kubelet makes it: with all controllers passed on to the containers' groups.
fn make_pod(env: &Env) -> Group {
    env.pod("cpu").child("other").make();
    env.pod("cpu")
}

fn configure(env: &Env, domain: &str) {
    env.configure(&format!("[v2]\ndomain = \"{domain}\"\n"));
}

/// Exactly the vCPU threads are in the threaded group, all others of the sandbox's processes in the domain itself.
#[track_caller]
fn assert_in(domain: &Group, sandbox: &Sandbox) {
    let vcpus = domain.child("vcpu");
    assert_eq!(vcpus.threads(), sandbox.vcpu_threads(), "the threads in {vcpus:?}");
    assert!(sandbox.processes().is_subset(&domain.processes()), "the processes in {domain:?}");
    assert!(domain.threads().is_disjoint(&vcpus.threads()));
    assert_eq!((domain.value("cgroup.type").as_str(), vcpus.value("cgroup.type").as_str()), ("domain threaded", "threaded"));
    assert!(!domain.value("cgroup.subtree_control").contains("memory"), "a domain must keep memory to itself");
}

#[test]
fn the_domain_lies_where_the_configuration_says_and_a_second_run_touches_nothing() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    make_pod(&env);
    let bundle = env.bundle();
    for (setting, domain) in settings(&env) {
        configure(&env, setting);
        let before = env.dump();
        sandbox.place(&bundle);
        assert_in(&domain, &sandbox);
        assert_eq!(domain.processes(), sandbox.processes(), "{setting}");
        assert_eq!(domain.share(), share_of(1536));
        let vcpus = domain.child("vcpu");
        assert_eq!((vcpus.value("cpu.max").as_str(), vcpus.value("cpu.weight").as_str()), ("150000 100000", "100"));
        env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded().logged("unchanged");
        let dry = env.hook("poststart").dry().state(bundle.state(sandbox.pid)).run();
        assert_eq!(dry.stdout, "0 steps\n");
        sandbox.release(&bundle).logged("released");
        before.assert_same(&env.dump(), setting);
    }
}

#[test]
fn a_sandbox_that_is_placed_stays_in_its_domain_whatever_the_configuration_says_by_then() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let sandbox = env.sandbox().start();
    make_pod(&env);
    let bundle = env.bundle();
    let [kata, pod] = settings(&env);
    for (first, second) in [(&kata, &pod), (&pod, &kata)] {
        configure(&env, first.0);
        sandbox.place(&bundle);
        configure(&env, second.0);
        env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded().logged("unchanged");
        // Where the record is lost, the mark on the group tells.
        fs::remove_dir_all(env.state_dir()).unwrap();
        env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded().logged("unchanged");
        assert_in(&first.1, &sandbox);
        assert!(!second.1.exists());
        sandbox.release(&bundle).logged("released");
        assert!(!first.1.exists());
    }
}

#[test]
fn outside_of_its_pod_a_sandbox_has_no_more_than_the_pod() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let pod = env.pod("cpu");
    pod.make();
    let place = || env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded();
    let limit = || env.constrained("cpu").value("cpu.max");
    pod.set("cpu.max", "30000 60000");
    let run = place();
    assert_eq!((limit().as_str(), run.only_log_line().get("limit")), ("30000 60000", "30000/60000"));
    assert!(run.only_log_line().get("msg").contains("capped at 30000/60000"), "{run:#?}");
    // The kubelet resizes the pod: the next run follows, up to what is asked and no further.
    for (pods, ours) in [("70000 100000", "70000 100000"), ("150000 100000", "150000 100000"), ("max 100000", "150000 100000")]
    {
        pod.set("cpu.max", pods);
        place();
        assert_eq!(limit(), ours, "in a pod with {pods}");
    }
    // A group further up counts as well.
    pod.parent().unwrap().set("cpu.max", "20000 100000");
    place();
    assert_eq!(limit(), "20000 100000");
}

#[test]
fn outside_of_its_pod_a_sandbox_runs_on_the_pods_cpus_alone() {
    let Some(env) = Env::with("cpuset", Version::V2) else { return };
    if Limits::none().cpus == "0" {
        return skipped("one CPU").unwrap_or_default();
    }
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let pod = env.pod("cpuset");
    pod.make();
    let place = || env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded();
    let allowed = || sandbox.vcpu_threads().into_iter().map(|tid| freedom_of(tid).1).collect::<Vec<_>>();
    pod.set("cpuset.cpus", "1");
    assert_eq!(place().only_log_line().get("cpus"), "1");
    assert_eq!(allowed(), ["1", "1"]);
    // The CPU manager gives the pod another.
    pod.set("cpuset.cpus", "0");
    place();
    assert_eq!(allowed(), ["0", "0"]);
    // And lets go of it.
    pod.set("cpuset.cpus", "\n");
    place();
    assert_eq!(allowed(), [Limits::none().cpus, Limits::none().cpus]);
}

#[test]
fn what_stands_for_the_pod_weighs_what_the_pod_does() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let pod = env.pod("cpu");
    pod.make();
    pod.set("cpu.weight", 39);
    sandbox.place(&bundle);
    let mirror = Group::new("cpu", &format!("/kata{}", pod.path));
    assert_eq!((mirror.value("cpu.weight").as_str(), env.limits().share), ("39", 150));
    pod.set("cpu.weight", 200);
    env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded();
    assert_eq!(mirror.value("cpu.weight"), "200");
    // One that runs only when nobody else does reads 0, which nobody can be given.
    pod.set("cpu.idle", 1);
    env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded();
    assert_eq!(mirror.value("cpu.weight"), "1");
}

#[test]
fn that_others_came_or_went_is_no_change_of_a_sandbox() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    // As one leaves it whose neighbour was removed just then; what it is to be is everybody's, and other tests have sandboxes as well.
    let kata = Group::new("cpu", "/kata");
    kata.set("cpu.weight", 9_999);
    env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded().found_all_done();
    assert_ne!(kata.value("cpu.weight"), "9999");
}

#[test]
fn a_pods_memory_is_charged_with_the_vmm_only_where_the_domain_lies_in_it() {
    let Some(env) = Env::with("memory", Version::V2) else { return };
    let bundle = env.bundle();
    let pod = env.pod("memory");
    pod.child("other").make();
    let domains =
        [("kata", Group::new("memory", &format!("/kata{}", env.group()))), ("pod", Group::new("memory", &env.group()))];
    for (setting, domain) in domains {
        configure(&env, setting);
        let sandbox = env.sandbox().id(setting).start();
        let bundle = env
            .bundle_of(Engine::Single, Kind::Workload, &sandbox.id, &sandbox.id)
            .cgroups_path(bundle.config["linux"]["cgroupsPath"].as_str().unwrap());
        sandbox.place(&bundle);
        // What the VMM touches from now on is charged where it is; what it touched before stays where that was.
        let memory = json!({ "qom-type": "memory-backend-ram", "id": "m1", "size": GUEST, "prealloc": true });
        sandbox.qmp().execute("object-add", &memory);
        let charged = |group: &Group| group.value("memory.current").parse::<u64>().unwrap();
        assert!(charged(&domain) >= GUEST, "{} of {GUEST} in {domain:?}", charged(&domain));
        assert_eq!(charged(&pod) >= GUEST, setting == "pod", "{} in the pod", charged(&pod));
        assert_eq!(domain.value("memory.max"), "max");
        sandbox.release(&bundle);
    }
}

/// What Kata makes with the cgroupfs driver and sandbox_cgroup_only=true: shim and VMM live in a group of its own in the pod.
fn katas_group(env: &Env) -> (Group, Shim<'_>, Sandbox<'_>) {
    let mut shim = env.shim(&env.name);
    let sandbox = env.sandbox().start_in(&mut shim);
    let group = Group::new("cpu", &env.group());
    group.make();
    group.take_in(shim.pid());
    group.take_in(sandbox.pid);
    (group, shim, sandbox)
}

/// What is in the group and below it, and all of its values.
fn as_kata_has_it(env: &Env, group: &Group) -> Vec<String> {
    let dump = env.dump();
    let lines = dump.lines_with(&group.path).into_iter().filter(|line| line.starts_with(&format!("{group:?}")));
    lines.map(str::to_owned).collect()
}

#[test]
fn a_group_of_katas_in_the_pod_is_the_domain_there_and_is_given_back() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    configure(&env, "pod");
    let (katas, shim, sandbox) = katas_group(&env);
    katas.set("cpu.weight", 77);
    let bundle = env.bundle();
    let before = env.dump();
    sandbox.place(&bundle);
    assert_in(&katas, &sandbox);
    assert_eq!(katas.processes(), [shim.pid(), sandbox.pid].into(), "nobody has left it");
    assert_eq!(katas.child("vcpu").value("cpu.max"), "150000 100000");
    env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded().logged("unchanged");
    // Kata puts a vCPU thread back, which takes the whole process along.
    katas.take_in(*sandbox.vcpu_threads().first().unwrap());
    assert!(katas.child("vcpu").threads().is_empty());
    env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded().logged("placed");
    assert_in(&katas, &sandbox);
    sandbox.release(&bundle).logged("released");
    before.assert_same(&env.dump(), "Kata's group is as Kata made it, and all are still in it");
}

#[test]
fn outside_of_the_pod_the_vmm_leaves_katas_group_and_the_shim_stays() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let (katas, shim, sandbox) = katas_group(&env);
    let bundle = env.bundle();
    let before = env.dump();
    sandbox.place(&bundle);
    sandbox.assert_placed(&env.group());
    assert_eq!((katas.processes(), katas.children()), ([shim.pid()].into(), Vec::new()));
    sandbox.release(&bundle).logged("released");
    before.assert_same(&env.dump(), "all are back where Kata had them");
}

#[test]
fn the_rust_runtimes_group_without_a_prefix_is_left_alone() {
    // runtime-rs, sandbox_cgroup_only=true: shim and VMM are in a group of cgroupsPath's own name.
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let bundle = env.bundle();
    let mut shim = env.shim(&env.name);
    let sandbox = env.sandbox().layout(Layout::RuntimeRs).start_in(&mut shim);
    let katas = Group::new("cpu", bundle.config["linux"]["cgroupsPath"].as_str().unwrap());
    katas.make();
    katas.take_in(shim.pid());
    katas.take_in(sandbox.pid);
    let before = env.dump();
    for (setting, domain) in settings(&env) {
        configure(&env, setting);
        env.hook("poststart").state(bundle.state_of_runtime_rs("running", sandbox.pid)).run().succeeded().logged("placed");
        assert_in(&domain, &sandbox);
        assert_eq!((katas.processes(), katas.children()), ([shim.pid()].into(), Vec::new()));
        env.hook("poststop").state(bundle.state_of_runtime_rs("stopped", sandbox.pid)).run().succeeded().logged("released");
        before.assert_same(&env.dump(), setting);
    }
}

#[test]
fn kata_moving_the_vmm_away_is_put_right_by_the_next_hook() {
    // sandbox_cgroup_only=false: the shim and virtiofsd are in the overhead group; for each vCPU Kata writes a thread's number to
    // cgroup.procs of the sandbox's group, which takes the whole VMM there (kata-containers#4886), and again on each update.
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let (katas, overhead) = (Group::new("cpu", &env.group()), Group::new("cpu", &format!("{}/overhead", env.top())));
    katas.make();
    overhead.make();
    sandbox.processes().iter().for_each(|pid| overhead.take_in(*pid));
    let update = || sandbox.vcpu_threads().iter().for_each(|tid| katas.take_in(*tid));
    update();
    let bundle = env.bundle();
    let before = env.dump();
    for _ in 0..2 {
        env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded().logged("placed");
        sandbox.assert_placed(&env.group());
        assert!(katas.processes().is_empty() && overhead.processes().is_empty());
        update();
        assert!(env.constrained("cpu").threads().is_empty(), "what holds, holds until Kata's next update");
    }
    env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded().logged("placed");
    sandbox.release(&bundle).logged("released");
    before.assert_same(&env.dump(), "the VMM is in Kata's group again, and virtiofsd in its overhead group");
}

#[test]
fn a_vmm_that_kata_moves_at_the_worst_moment_is_placed_by_the_same_run() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let sandbox = env.sandbox().start();
    let katas = Group::new("cpu", &env.group());
    katas.make();
    let bundle = env.bundle();
    env.configure("deadline-ms = 60000\n");
    // The hook is stopped for a moment before it moves the first of the other threads, the whole process being moved already.
    let threads = env.constrained("cpu").parent().unwrap().threads_file();
    let trace = env.dir.join("trace");
    let strace = ["strace", "-f", "-o", trace.to_str().unwrap(), "-P", threads.to_str().unwrap()];
    let inject = ["-e", "trace=write", "-e", "inject=write:delay_enter=3000000:when=1", "--"];
    let hook = env.hook("poststart").state(bundle.state(sandbox.pid)).under(strace.into_iter().chain(inject)).start();
    wait_until("the VMM under its limit", || env.constrained("cpu").holds(sandbox.pid));
    katas.take_in(sandbox.pid);
    hook.wait().succeeded().logged("placed");
    assert!(fs::read_to_string(&trace).unwrap().contains("EOPNOTSUPP"), "Kata was to be quicker");
    sandbox.assert_placed(&env.group());
}

#[test]
fn the_last_workloads_end_leaves_katas_group_to_kata_until_the_next_begins() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    configure(&env, "pod");
    let (katas, _shim, sandbox) = katas_group(&env);
    let workload = |id: &str| env.bundle_of(Engine::CriO, Kind::Workload, &env.name, id);
    let before = as_kata_has_it(&env, &katas);
    let start = |bundle: &Bundle| {
        env.hook("createRuntime").state(bundle.state(sandbox.pid)).run().succeeded().logged("placed");
    };
    let one = workload("c0ffee");
    start(&one);
    let two = workload("decade");
    start(&two);
    assert_eq!(katas.child("vcpu").value("cpu.max"), "300000 100000");
    let stop = |bundle: &Bundle| env.hook("poststop").state(bundle.state_with_id(&env.name, sandbox.pid)).run().succeeded();
    stop(&one);
    assert_in(&katas, &sandbox);
    let run = stop(&two);
    assert!(run.logged("released").get("msg").contains("left to Kata"), "{run:#?}");
    let after = as_kata_has_it(&env, &katas);
    assert_eq!(before, after);
    stop(&two).logged("unchanged");
    let reconciled = env.hook("reconcile").run();
    assert!(!reconciled.stdout.contains(&env.name) && reconciled.code == Some(0), "{reconciled:#?}");
    assert!(katas.children().is_empty());
    // Once placed there, it stays there until its end.
    configure(&env, "kata");
    let three = workload("facade");
    start(&three);
    assert_in(&katas, &sandbox);
    assert_eq!(katas.child("vcpu").value("cpu.max"), "150000 100000");
    stop(&three);
    assert!(katas.children().is_empty());
}

#[test]
fn a_run_that_was_killed_on_its_way_out_of_katas_group_is_completed_by_the_next() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    configure(&env, "pod");
    let (katas, _shim, sandbox) = katas_group(&env);
    let bundle = env.bundle_of(Engine::CriO, Kind::Workload, &env.name, "c0ffee");
    let before = as_kata_has_it(&env, &katas);
    let state = bundle.state_with_id(&env.name, sandbox.pid);
    for call in ["write", "unlinkat"] {
        for count in 1.. {
            env.hook("createRuntime").state(bundle.state(sandbox.pid)).run().succeeded().logged("placed");
            let strace = Strace::inject(&env, &[&format!("{call}:signal=KILL:when={count}")]);
            let killed = env.hook("poststop").state(&state).under(strace.wrapper()).run();
            let vcpus = katas.child("vcpu");
            let is_free = vcpus.exists() && !vcpus.threads().is_empty() && !vcpus.has("cpu.max");
            assert!(!is_free, "killed at {call} {count}, the vCPUs are in a group without a limit");
            env.hook("poststop").state(&state).run().succeeded();
            let after = as_kata_has_it(&env, &katas);
            assert_eq!(before, after, "killed at {call} {count}");
            if killed.code == Some(0) {
                assert!(count > 1, "never killed at {call}");
                break;
            }
        }
    }
}

#[test]
fn the_last_workload_is_told_also_where_another_went_without_a_word() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    configure(&env, "pod");
    let (katas, _shim, sandbox) = katas_group(&env);
    let workload = |id: &str| env.bundle_of(Engine::CriO, Kind::Workload, &env.name, id);
    let start = |bundle: &Bundle| {
        env.hook("createRuntime").state(bundle.state(sandbox.pid)).run().succeeded().logged("placed");
    };
    let one = workload("c0ffee");
    start(&one);
    let two = workload("decade");
    start(&two);
    fs::remove_dir_all(&one.dir).unwrap();
    env.hook("poststop").state(two.state_with_id(&env.name, sandbox.pid)).run().succeeded().logged("released");
    assert!(katas.children().is_empty());
}

#[test]
fn halves_that_a_killed_run_left_are_recognised_and_completed() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let sandbox = env.sandbox().start();
    let home = Group::new("cpu", &place_of(sandbox.pid, "cpu").unwrap());
    make_pod(&env);
    let bundle = env.bundle();
    for (setting, domain) in settings(&env) {
        configure(&env, setting);
        let before = env.dump();
        // Killed before it writes the vCPU group's type: both groups stand, neither is what it is to be.
        let kind = domain.child("vcpu").path_on_host().join("cgroup.type");
        let strace = ["strace", "-f", "-o", "/dev/null", "-P", kind.to_str().unwrap(), "-e", "trace=write"];
        let inject = ["-e", "inject=write:signal=KILL:when=1", "--"];
        let killed = env.hook("prestart").state(bundle.state(sandbox.pid)).under(strace.into_iter().chain(inject)).run();
        assert_ne!(killed.code, Some(0), "{killed:#?}");
        assert_eq!(domain.child("vcpu").value("cgroup.type"), "domain");
        // And worse: somebody is in the domain already, and it passes controllers on, so that the group in it is invalid.
        domain.take_in(sandbox.pid);
        domain.set("cgroup.subtree_control", "+cpu");
        assert_eq!(domain.child("vcpu").value("cgroup.type"), "domain invalid");
        sandbox.place(&bundle);
        assert_in(&domain, &sandbox);
        assert_eq!(domain.child("vcpu").value("cpu.max"), "150000 100000");
        sandbox.release(&bundle).logged("released");
        // Where it came from only the run that was killed had seen.
        home.take_in(sandbox.pid);
        before.assert_same(&env.dump(), setting);
    }
}

#[test]
fn two_sandboxes_in_one_pod_have_a_domain_each_and_share_what_leads_there() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let sandboxes = ["a", "b"].map(|id| env.sandbox().id(id).start());
    let bundles = [0, 1].map(|n: usize| {
        let shares = json!({ "shares": 1024 * (n + 1), "quota": 50_000 * (n + 1), "period": 100_000 });
        env.bundle_of(Engine::Single, Kind::Workload, &sandboxes[n].id, &sandboxes[n].id).cpu(shares)
    });
    make_pod(&env);
    for (setting, apart) in [("kata", "/kata"), ("pod", "")] {
        configure(&env, setting);
        let domains = [0, 1].map(|n: usize| Group::new("cpu", &format!("{apart}{}/pod/kata_{}", env.top(), sandboxes[n].id)));
        for n in [0, 1] {
            sandboxes[n].place(&bundles[n]);
        }
        for n in [0, 1] {
            assert_in(&domains[n], &sandboxes[n]);
            assert_eq!(domains[n].share(), share_of(1024 * (n as u64 + 1)));
        }
        sandboxes[0].release(&bundles[0]).logged("released");
        assert!(!domains[0].exists());
        assert_in(&domains[1], &sandboxes[1]);
        sandboxes[1].release(&bundles[1]).logged("released");
        assert!(!domains[1].exists());
    }
}

#[test]
fn realtime_has_no_file_there_and_is_said_once() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle().cpu(json!({ "quota": 50_000, "realtimeRuntime": 2000, "realtimePeriod": 500_000 }));
    let run = sandbox.place(&bundle);
    let message = run.only_log_line().get("msg");
    assert_eq!(message.matches("realtime left out: cgroup v2 has no realtime limits").count(), 1, "{run:#?}");
    assert_eq!(env.limits().quota, Some(50_000));
}

#[test]
fn a_release_waits_for_what_is_just_ending() {
    // That a group has become empty is told a while after its last thread has gone.
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    for _ in 0..4 {
        let mut sandbox = env.sandbox().virtiofsd().start();
        let bundle = env.bundle();
        sandbox.place(&bundle);
        sandbox.qemu.as_mut().unwrap().kill_unreaped();
        sandbox.release(&bundle).logged("released");
        env.assert_no_groups();
        sandbox.forget_runtime_files();
        drop(sandbox);
        fs::remove_dir_all(env.dir.join(format!("{}.qemu", env.name))).unwrap();
    }
}

#[test]
fn where_the_vmm_is_the_shim_its_vcpus_are_placed_in_katas_own_group_and_nowhere_else() {
    // Dragonball is part of the shim, whose process nobody may move; here QEMU stands in for it.
    let Some(env) = Env::with_kvm().filter(|_| Env::with("cpu", Version::V2).is_some()) else { return };
    let qemu = env.own_qemu();
    let row = |name, role| format!("[[vmm]]\nname = \"{name}\"\nrole = \"{role}\"\nexecutables = [\"{}\"]\n", qemu.display());
    env.configure(&(row("shim-and-qemu", "shim") + &row("qemu", "vmm") + "vcpu-threads = \"CPU */KVM\"\n"));
    let sandbox = env.kvm_sandbox().binary(&qemu).start();
    let bundle = env.bundle();
    let before = env.dump();
    let run = env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded();
    assert!(run.logged("partial").get("msg").contains("its vCPU threads cannot leave it"), "{run:#?}");
    env.hook("poststop").state(bundle.state(sandbox.pid)).run().succeeded();
    before.assert_same(&env.dump(), "in a group that is not the sandbox's");
    let katas = Group::new("cpu", &env.group());
    katas.make();
    katas.take_in(sandbox.pid);
    let before = env.dump();
    sandbox.place(&bundle);
    assert_in(&katas, &sandbox);
    sandbox.release(&bundle).logged("released");
    before.assert_same(&env.dump(), "in Kata's own group");
}
