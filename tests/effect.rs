//! The promise itself, measured: a limited guest is limited, and the VMM around it is not.
//!
//! A crate of its own, so that no other test competes for the CPUs while time is measured. What is asserted is a property of the
//! kernel's limiter and holds on any host: a share of one CPU, never a time.

mod testenv;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use testenv::{Bundle, Engine, Env, Group, Guest, Kind, Process, Sandbox, Version, cpu_ticks, everywhere};

/// Time is measured by one test at a time.
static CPUS: Mutex<()> = Mutex::new(());

#[test]
fn a_spinning_guest_gets_its_limit_and_a_busy_thread_of_its_vmm_is_not_held_back() {
    let _alone = alone();
    let Some(env) = Env::with_kvm() else { return };
    let sandbox = env.kvm_sandbox().guest(Guest::Spinning).start();
    sandbox.place(&env.bundle().cpu(json!({ "quota": 20_000, "period": 100_000 })));
    sandbox.assert_placed(&env.group());
    let (cpu, cpuacct) = (env.constrained("cpu"), env.constrained("cpuacct"));
    let guest_time = || Duration::from_micros(cpuacct.time_used());
    // The thread that answers QMP is the VMM's first, which is no vCPU; asked without a pause, it is busy.
    let main_thread = sandbox.pid;
    let vmm_time = || Duration::from_millis(cpu_ticks(main_thread).unwrap() * 1000 / ticks_a_second());

    let (start, guest_before, vmm_before) = (Instant::now(), guest_time(), vmm_time());
    while start.elapsed() < Duration::from_secs(3) {
        sandbox.qmp().execute("query-qmp-schema", &json!({}));
    }
    let (guest, vmm) = (guest_time().checked_sub(guest_before).unwrap(), vmm_time().checked_sub(vmm_before).unwrap());
    let elapsed = start.elapsed().as_secs_f64();
    let (guest, vmm) = (guest.as_secs_f64() / elapsed, vmm.as_secs_f64() / elapsed);

    // No more than that, on any host; how close it comes to it, a busy host's business.
    assert!((0.05..=0.25).contains(&guest), "the vCPUs got {guest:.3} of a CPU under a limit of 0.2");
    assert!(cpu.times_throttled() > 0, "nothing was throttled: {}", cpu.value("cpu.stat"));
    assert!(!cpu.holds(main_thread));
    assert!(vmm > 0.25, "the VMM's busy thread got {vmm:.3} of a CPU, as if it were limited as well");
}

fn ticks_a_second() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap().try_into().unwrap()
}

fn alone() -> MutexGuard<'static, ()> {
    CPUS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A sandbox with a guest that never rests, placed with these shares on the first CPU; its groups lie directly at the top.
fn busy_sandbox<'e>(env: &'e Env, id: &str, shares: u64) -> (Sandbox<'e>, Bundle) {
    let sandbox = env.kvm_sandbox().id(id).guest(Guest::Spinning).start();
    let bundle = env
        .bundle_of(Engine::Single, Kind::Workload, &sandbox.id, &sandbox.id)
        .cgroups_path(&format!("/{}", sandbox.id))
        .cpu(json!({ "shares": shares, "cpus": "0" }));
    sandbox.place(&bundle);
    (sandbox, bundle)
}

/// How many times as much CPU time the second gets as the first, both being busy for five seconds.
fn ratio(first: impl Fn() -> u64, second: impl Fn() -> u64) -> f64 {
    let before = (first(), second());
    std::thread::sleep(Duration::from_secs(5));
    let used = (first() - before.0, second() - before.1);
    #[expect(clippy::cast_precision_loss, reason = "a few seconds in microseconds are counted exactly")]
    let ratio = used.1 as f64 / used.0 as f64;
    ratio
}

#[test]
fn two_busy_sandboxes_on_one_cpu_share_it_as_their_shares_say() {
    let _alone = alone();
    let Some(env) = Env::with_kvm() else { return };
    let sandboxes = [busy_sandbox(&env, "one", 1024).0, busy_sandbox(&env, "three", 3072).0];
    let time = |n: usize| testenv::constrained_at(&format!("/kata_{}", sandboxes[n].id), "cpuacct").time_used();
    let ratio = ratio(|| time(0), || time(1));
    assert!((2.4..=3.6).contains(&ratio), "1024 shares to 3072 gave 1 to {ratio:.2}");
}

#[test]
fn a_busy_sandbox_and_a_busy_container_on_one_cpu_share_it_as_their_shares_say() {
    let _alone = alone();
    let Some(env) = Env::with_kvm() else { return };
    let (sandbox, _) = busy_sandbox(&env, "three", 3072);
    let container = Process::spawn(Process::command("sh").args(["-c", "while :; do :; done"]));
    for group in everywhere(&format!("{}-plain", env.top())) {
        group.make();
        group.take_in(container.pid());
    }
    // Only now: before Linux 6.2 a cpuset that is joined makes one forget it (8f9ea86fdf99).
    let pinned = Process::command("taskset").args(["-pc", "0", &container.pid().to_string()]).output().unwrap();
    assert!(pinned.status.success(), "{pinned:?}");
    let plain = Group::new("cpuacct", &format!("{}-plain", env.top()));
    let ours = testenv::constrained_at(&format!("/kata_{}", sandbox.id), "cpuacct");
    let ratio = ratio(|| plain.time_used(), || ours.time_used());
    assert!((2.4..=3.6).contains(&ratio), "1024 shares to 3072 gave 1 to {ratio:.2}");
}

#[test]
fn kata_weighs_as_much_as_the_sandboxes_in_it_together() {
    let _alone = alone();
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let weight = || Group::new("cpu", "/kata").value("cpu.weight").parse::<u64>().unwrap();
    let place = |id: &str, shares: u64| {
        let sandbox = env.sandbox().id(id).start();
        let bundle = env
            .bundle_of(Engine::Single, Kind::Workload, &sandbox.id, &sandbox.id)
            .cgroups_path(&format!("/{}", sandbox.id))
            .cpu(json!({ "shares": shares }));
        sandbox.place(&bundle);
        (sandbox, bundle)
    };
    let (one, its_bundle) = place("one", 1024);
    assert_eq!(weight(), 100);
    let (_three, _bundle) = place("three", 3072);
    assert_eq!(weight(), 400);
    one.release(&its_bundle);
    assert_eq!(weight(), 300);
}
