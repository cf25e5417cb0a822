//! The promise itself, measured: a limited guest is limited, and the VMM around it is not.
//!
//! A crate of its own, so that no other test competes for the CPUs while time is measured. What is asserted is a property of the
//! kernel's limiter and holds on any host: a share of one CPU, never a time.

mod testenv;

use std::time::{Duration, Instant};

use serde_json::json;
use testenv::{Env, Group, Guest, cpu_ticks, place_of};

#[test]
fn a_spinning_guest_gets_its_limit_and_a_busy_thread_of_its_vmm_is_not_held_back() {
    let Some(env) = Env::with_kvm() else { return };
    let sandbox = env.kvm_sandbox().guest(Guest::Spinning).start();
    sandbox.place(&env.bundle().cpu(json!({ "quota": 20_000, "period": 100_000 })));
    sandbox.assert_placed(&env.group());
    let (cpu, cpuacct) = (Group::new("cpu", &env.group()), Group::new("cpuacct", &env.group()));
    let guest_time = || Duration::from_nanos(cpuacct.value("cpuacct.usage").parse().unwrap());
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

    assert!((0.15..=0.25).contains(&guest), "the vCPUs got {guest:.3} of a CPU under a limit of 0.2");
    assert!(!cpu.value("cpu.stat").contains("nr_throttled 0"), "nothing was throttled: {}", cpu.value("cpu.stat"));
    assert_ne!(place_of(main_thread, "cpu"), Some(env.group()));
    assert!(vmm > 0.25, "the VMM's busy thread got {vmm:.3} of a CPU, as if it were limited as well");
}

fn ticks_a_second() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap().try_into().unwrap()
}
