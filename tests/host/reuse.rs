//! A number that the kernel is given may have become somebody else's: the hook's last look and its write are two calls.
//!
//! The kernel says which number it gave last, and believes what is written there: so a process that ends while the hook is about to
//! move it is followed by a stranger with the same number, which must not stay in a group of ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::testenv::*;

const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

/// A stranger with this number; somebody else may be quicker, then again.
fn take(number: i32) -> Process {
    for _ in 0..500 {
        fs::write(LAST_PID, (number - 1).to_string()).unwrap();
        let process = Process::sleeping();
        if process.pid() == number {
            return process;
        }
    }
    panic!("no process got the number {number}");
}

/// Whether it is held in a write just now, and stays so.
fn is_held_in_write(pid: i32) -> bool {
    let is_writing = || fs::read_to_string(format!("/proc/{pid}/syscall")).is_ok_and(|text| text.starts_with("1 "));
    let was = is_writing();
    std::thread::sleep(Duration::from_millis(200));
    was && is_writing()
}

/// Ends the VM while the hook is about to write to this file, gives the number to a stranger, and lets the hook go on.
fn assert_stranger_is_put_back(env: &Env, file: &Path, number: impl Fn(&Sandbox) -> i32) {
    let mut sandbox = env.sandbox().start();
    let number = number(&sandbox);
    // An emulated CPU needs its time to end a VM and start a process.
    let seconds = if std::env::var_os("KCH_TEST_VM").is_some() { 15 } else { 5 };
    env.configure("deadline-ms = 60000\n");
    let trace = env.dir.join("trace");
    let delay = format!("inject=write:delay_enter={seconds}s:when=1");
    let strace = ["strace", "-f", "-o", trace.to_str().unwrap(), "-P", file.to_str().unwrap(), "-e", "trace=write", "-e"];
    let hook = env.hook("prestart").state(env.bundle().state(sandbox.pid));
    let hook = hook.under(strace.into_iter().chain([delay.as_str(), "--"])).start();
    wait_until("the hook at its write", || children_of(hook.pid()).first().is_some_and(|pid| is_held_in_write(*pid)));
    sandbox.kill();
    let stranger = take(number);
    let homes = || CONTROLLERS.map(|controller| place_of(stranger.pid(), controller));
    let before = homes();
    let run = hook.wait();
    assert!(fs::read_to_string(&trace).unwrap().contains(&format!("\"{number}\"")), "the write was another: {run:#?}");
    assert_eq!(homes(), before, "{run:#?}");
    assert!(is_alive(stranger.pid()));
    assert_eq!(run.code, Some(0), "there is nobody to place any more: {run:#?}");
    env.assert_no_groups();
}

/// What the first to be moved is written to: the whole VMM.
fn processes_file(env: &Env) -> PathBuf {
    let whole = env.constrained("cpu");
    if whole.hierarchy.version == Version::V2 { whole.processes_file() } else { env.unconstrained().processes_file() }
}

#[test]
fn who_got_the_vmms_number_while_it_was_moved_is_put_back() {
    let Some(env) = Env::new() else { return };
    if !Path::new(LAST_PID).exists() {
        return skipped("no ns_last_pid").unwrap_or_default();
    }
    assert_stranger_is_put_back(&env, &processes_file(&env), |sandbox| sandbox.pid);
}

#[test]
fn who_got_a_vcpu_threads_number_while_it_was_moved_is_put_back() {
    let Some(env) = Env::with("cpu", Version::V1) else { return };
    if !Path::new(LAST_PID).exists() {
        return skipped("no ns_last_pid").unwrap_or_default();
    }
    let file = env.constrained("cpu").threads_file();
    assert_stranger_is_put_back(&env, &file, |sandbox| *sandbox.vcpu_threads().first().unwrap());
}
