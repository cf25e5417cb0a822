//! A VMM that a guest has taken over: it calls its threads what it likes, becomes another program, begets as fast as it can.
//!
//! It gains nothing over anybody else by that: whatever it has is in its own sandbox's groups or where it was, nobody waits for it
//! longer than the deadline, and its end leaves nothing. That those of its threads which are no vCPUs have no CPU limit is by design.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::testenv::*;

const VMM: &str = "taken_over::told_to_this_program_is_a_vmm";

#[test]
fn told_to_this_program_is_a_vmm() {
    be_a_vmm();
}

/// A VMM that is placed, its container's bundle, and its groups' path.
fn placed(env: &Env, suffix: &str) -> (StandIn, Bundle, String) {
    let vm = env.stand_in(suffix, VMM);
    let bundle = env.bundle_of(Engine::Single, Kind::Workload, &vm.id, &vm.id);
    env.hook("createRuntime").state(bundle.state(vm.pid())).run().succeeded().logged("placed");
    let group = format!("{}/pod/kata_{}", env.top(), vm.id);
    vm.assert_placed(&group);
    (vm, bundle, group)
}

#[test]
fn names_that_it_gives_its_threads_free_none_of_them_and_bring_in_nobody_elses() {
    let Some(env) = Env::new() else { return };
    env.configure(&stand_in_row());
    let (mut vm, bundle, group) = placed(&env, "taken-over");
    let (neighbour, _, neighbours_group) = placed(&env, "neighbour");
    let before = vm.vcpu_threads();
    vm.tell("rename CPU 1/KVM to worker");
    wait_until("a thread of another name", || vm.vcpu_threads().len() == 1);
    env.hook("poststart").state(bundle.state(vm.pid())).run().succeeded();
    for controller in CPU_CONTROLLERS {
        assert_eq!(constrained_at(&group, controller).threads(), before, "{controller}");
    }
    vm.tell("rename CPU 0/KVM to worker");
    wait_until("no thread of that name", || vm.vcpu_threads().is_empty());
    env.hook("poststart").state(bundle.state(vm.pid())).run().succeeded();
    for controller in CPU_CONTROLLERS {
        assert_eq!(constrained_at(&group, controller).threads(), before, "{controller}, with no name left");
    }
    assert_eq!(limits_at(&group), Limits::none().quota(150_000).shares(1536));
    neighbour.assert_placed(&neighbours_group);
}

/// KVM runs a vCPU whose VM nobody has a descriptor of any more, and goes on knowing who does.
#[test]
fn closing_the_descriptor_of_its_vm_frees_none_of_its_vcpus_though_others_are_called_so() {
    for maker in ["by itself", "by a thread that ends"] {
        let Some(env) = Env::with_kvm() else { return };
        env.configure(&stand_in_row());
        let mut vm = env.stand_in("taken-over", VMM);
        let bundle = env.bundle_of(Engine::Single, Kind::Workload, &vm.id, &vm.id);
        let place = |vm: &StandIn| env.hook("poststart").state(bundle.state(vm.pid())).run().succeeded();
        vm.tell(&format!("kvm {maker}"));
        let vcpus =
            || threads_of(vm.pid()).into_iter().filter(|thread| thread.name == VCPU_IN_DISGUISE).map(|thread| thread.tid);
        wait_until("its vCPUs", || vcpus().count() == 2);
        assert_eq!(place(&vm).logged("placed").get("vcpus"), "2/2", "{maker}");
        let vcpus: BTreeSet<i32> = vcpus().collect();
        let group = format!("{}/pod/kata_{}", env.top(), vm.id);
        let limited = || CPU_CONTROLLERS.map(|controller| constrained_at(&group, controller).threads());
        assert!(limited().iter().all(|threads| *threads == vcpus), "{maker}: {vcpus:?}, {:?}", limited());
        vm.tell("kvm closed");
        wait_until("the descriptor to be closed", || !holds_a_vm(vm.pid()));
        let run = place(&vm);
        assert!(limited().iter().all(|threads| *threads == vcpus), "{maker}: {vcpus:?}, {:?}: {run:#?}", limited());
        vm.kill();
        env.hook("poststop").state(bundle.state(0)).run().succeeded().logged("released");
        env.assert_no_groups();
    }
}

fn holds_a_vm(pid: i32) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok()).any(|what| what == Path::new("anon_inode:kvm-vm"))
}

#[test]
fn another_program_in_its_place_is_refused_and_released_and_the_same_one_anew_is_placed() {
    let Some(env) = Env::new() else { return };
    env.configure(&stand_in_row());
    let (mut vm, bundle, group) = placed(&env, "taken-over");
    let poststart = |vm: &StandIn| env.hook("poststart").state(bundle.state(vm.pid())).run().succeeded();
    let (start, threads) = (start_time(vm.pid()), vm.vcpu_threads());
    let itself = std::env::current_exe().unwrap();
    vm.tell(&format!("exec {} {VMM} {} --exact --nocapture", itself.display(), vm.id));
    wait_until("its vCPU threads anew", || vm.vcpu_threads().len() == 2 && vm.vcpu_threads().is_disjoint(&threads));
    poststart(&vm).logged("placed");
    vm.assert_placed(&group);

    vm.tell("exec /bin/cat");
    wait_until("another program", || fs::read_link(format!("/proc/{}/exe", vm.pid())).is_ok_and(|exe| exe != itself));
    assert_eq!(start_time(vm.pid()), start, "the same process");
    assert!(poststart(&vm).logged("refused").get("msg").contains("is no VMM or helper that is known"));
    env.hook("poststop").state(bundle.state(vm.pid())).run().succeeded().logged("released");
    assert!(is_alive(vm.pid()), "nobody is killed");
    env.assert_no_groups();
}

/// The kernel shows a process as a zombie once its first thread has ended.
#[test]
fn one_whose_first_thread_ends_is_not_taken_for_dead_and_its_vcpus_stay_under_their_limit() {
    let Some(env) = Env::new() else { return };
    env.configure(&stand_in_row());
    let (mut vm, bundle, group) = placed(&env, "taken-over");
    let (neighbour, neighbours_bundle, _) = placed(&env, "neighbour");
    vm.tell("leave now");
    wait_until("its first thread to end", || !is_alive(vm.pid()));
    assert_eq!(vm.vcpu_threads().len(), 2, "the others run on");
    // Its own hooks, those of another sandbox, which see to what others have left, and the timer's.
    let run = env.hook("poststart").state(bundle.state(vm.pid())).run().succeeded();
    assert!(run.logged("refused").get("msg").contains("its first thread has ended"), "{run:#?}");
    env.hook("poststop").state(neighbours_bundle.state(neighbour.pid())).run().succeeded().logged("released");
    let run = env.hook("reconcile").run();
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
    for controller in CPU_CONTROLLERS {
        assert_eq!(constrained_at(&group, controller).threads(), vm.vcpu_threads(), "{controller}");
    }
    vm.kill();
    env.hook("poststop").state(bundle.state(0)).run().succeeded().logged("released");
    env.assert_no_groups();
}

/// No process of a storm lives long enough to be watched: what counts is that none is anywhere but here or where they come from.
#[test]
fn one_that_begets_threads_and_processes_as_fast_as_it_can_holds_nobody_up_and_leaves_nothing() {
    let Some(env) = Env::new() else { return };
    env.configure(&format!("deadline-ms = 2000\n{}", stand_in_row()));
    let (mut vm, bundle, group) = placed(&env, "taken-over");
    let (neighbour, neighbours_bundle, neighbours_group) = placed(&env, "neighbour");
    vm.tell("storm now");
    for _ in 0..5 {
        let run = env.hook("createRuntime").state(bundle.state(vm.pid())).run();
        assert!(matches!(run.code, Some(0 | 1)) && run.stderr.lines().count() <= 1, "{run:#?}");
        for controller in CPU_CONTROLLERS {
            let constrained = constrained_at(&group, controller).threads();
            assert!(run.code == Some(1) || vm.vcpu_threads().is_subset(&constrained), "{controller}: {run:#?}");
        }
        neighbour.assert_placed(&neighbours_group);
    }
    // Its end is told or done within the deadline, and done once it has ended.
    let run = env.hook("poststop").state(bundle.state(vm.pid())).run();
    assert_eq!((run.code, run.signal), (Some(0), None), "{run:#?}");
    neighbour.assert_placed(&neighbours_group);
    vm.kill();
    env.hook("poststop").state(bundle.state(0)).run().succeeded();
    env.hook("poststop").state(neighbours_bundle.state(0)).run().succeeded().logged("released");
    env.assert_no_groups();
}

#[test]
fn one_with_a_thousand_children_is_placed_without_them_or_told_to_take_too_long() {
    let Some(env) = Env::new() else { return };
    env.configure(&stand_in_row());
    let mut vm = env.stand_in("taken-over", VMM);
    let bundle = env.bundle_of(Engine::Single, Kind::Workload, &vm.id, &vm.id);
    let number = (1000 / stride()).max(100);
    vm.tell(&format!("brood {number}"));
    wait_until("its children", || children_of(vm.pid()).len() == number);
    let before = env.dump();
    for deadline in [100, 30_000] {
        env.configure(&format!("deadline-ms = {deadline}\n{}", stand_in_row()));
        let run = env.hook("createRuntime").state(bundle.state(vm.pid())).run();
        if run.code == Some(0) {
            run.logged("placed");
            vm.assert_placed(&format!("{}/pod/kata_{}", env.top(), vm.id));
            env.hook("poststop").state(bundle.state(vm.pid())).run().succeeded().logged("released");
        } else {
            assert!(deadline == 100 && run.failed_with(1).stderr.contains("deadline of 100 ms"));
            before.assert_same(&env.dump(), "too long");
        }
    }
    env.assert_no_groups();
}

/// The file of a thread at the top of /proc adds up the times of its whole process: read for each of thousands, that takes minutes.
#[test]
fn no_thread_is_looked_at_together_with_all_the_others() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let calls = calls_of(&env, env.hook("createRuntime").state(env.bundle().state(sandbox.pid)));
    sandbox.assert_placed(&env.group());
    let of_whole = |thread: i32| calls.iter().any(|call| call.path == format!("/proc/{thread}/stat"));
    assert!(of_whole(sandbox.pid), "the trace shows what is read");
    assert!(!sandbox.vcpu_threads().into_iter().any(of_whole));
}

#[test]
fn one_with_ten_thousand_threads_that_are_all_called_vcpus_is_limited_whole_and_in_time() {
    let Some(env) = Env::new() else { return };
    env.configure(&stand_in_row());
    let (mut vm, bundle, group) = placed(&env, "taken-over");
    // An emulated CPU has enough to do with some hundreds.
    let number = (10_000 / stride()).max(300);
    vm.tell(&format!("swarm {number}"));
    wait_until("its threads", || {
        threads_of(vm.pid()).iter().filter(|thread| thread.name.starts_with("CPU ")).count() >= number
    });
    let run = env.hook("createRuntime").state(bundle.state(vm.pid())).run().succeeded();
    assert_eq!(run.logged("placed").get("vcpus"), format!("{}/-", number + 2));
    for controller in CPU_CONTROLLERS {
        assert_eq!(constrained_at(&group, controller).threads().len(), number + 2, "{controller}");
    }
    env.hook("poststop").state(bundle.state(vm.pid())).run().succeeded().logged("released");
    env.assert_no_groups();
}
