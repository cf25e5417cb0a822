//! A number that the kernel is given may have become somebody else's: the hook's last look and its write are two calls.
//!
//! The kernel says which number it gave last, and believes what is written there: so a process that ends while the hook is about to
//! move it is followed by a stranger with the same number, which must not stay in a group of ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::testenv::*;

const VMM: &str = "reuse::told_to_this_program_is_a_vmm";

#[test]
fn told_to_this_program_is_a_vmm() {
    be_a_vmm();
}

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

/// A run that is held in its first write to this file, meanwhile ends the VM and gives the number to a stranger.
fn assert_stranger_is_put_back(mut sandbox: Sandbox, stage: &str, file: &Path, number: i32, take: impl FnOnce(i32)) {
    let env = sandbox.env;
    // An emulated CPU needs its time to end a VM and start a process.
    let seconds = if std::env::var_os("KCH_TEST_VM").is_some() { 10 } else { 4 };
    env.configure(&format!("deadline-ms = 60000\n{}", stand_in_row()));
    let trace = env.dir.join("trace");
    let delay = format!("inject=write:delay_enter={seconds}s:when=1");
    let strace = ["strace", "-f", "-o", trace.to_str().unwrap(), "-P", file.to_str().unwrap(), "-e", "trace=write", "-e"];
    let hook = env.hook(stage).state(env.bundle().state(sandbox.pid));
    let hook = hook.under(strace.into_iter().chain([delay.as_str(), "--"])).start();
    wait_until("the hook at its write", || children_of(hook.pid()).first().is_some_and(|pid| is_held_in_write(*pid)));
    sandbox.kill();
    take(number);
    let homes = || CONTROLLERS.map(|controller| place_of(number, controller));
    let before = homes();
    let run = hook.wait();
    assert!(fs::read_to_string(&trace).unwrap().contains(&format!("\"{number}\"")), "the write was another: {run:#?}");
    assert_eq!(homes(), before, "{run:#?}");
    assert!(is_alive(number));
    assert_eq!(run.code, Some(0), "there is nobody to place any more: {run:#?}");
}

/// What the first to be moved is written to: the whole VMM.
fn processes_file(env: &Env) -> PathBuf {
    let whole = env.constrained("cpu");
    if whole.hierarchy.version == Version::V2 { whole.processes_file() } else { env.unconstrained().processes_file() }
}

fn first_vcpu(sandbox: &Sandbox) -> i32 {
    *sandbox.vcpu_threads().first().unwrap()
}

/// One test at a time: what another starts meanwhile gets the numbers right behind, such as a second vCPU thread's, is moved for a moment, and
/// may start somebody there whose number nobody knows.
static NUMBERS: Mutex<()> = Mutex::new(());

fn can_choose_numbers() -> Option<MutexGuard<'static, ()>> {
    let choosing = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
    if Path::new(LAST_PID).exists() { Some(choosing) } else { skipped("no ns_last_pid") }
}

#[test]
fn who_got_the_vmms_number_while_it_was_moved_is_put_back() {
    let (Some(env), Some(_choosing)) = (Env::new(), can_choose_numbers()) else { return };
    let (sandbox, mut stranger) = (env.sandbox().start(), None);
    let pid = sandbox.pid;
    assert_stranger_is_put_back(sandbox, "prestart", &processes_file(&env), pid, |pid| stranger = Some(take(pid)));
    env.assert_no_groups();
}

#[test]
fn who_got_a_vcpu_threads_number_while_it_was_moved_is_put_back() {
    let (Some(env), Some(_choosing)) = (Env::with("cpu", Version::V1), can_choose_numbers()) else { return };
    let (sandbox, mut stranger) = (env.sandbox().start(), None);
    let (file, tid) = (env.constrained("cpu").threads_file(), first_vcpu(&sandbox));
    assert_stranger_is_put_back(sandbox, "prestart", &file, tid, |tid| stranger = Some(take(tid)));
    env.assert_no_groups();
}

/// Such as a container's first process has, whose parent is not in the container's groups.
#[test]
fn a_thread_that_got_the_number_is_put_back_beside_its_processs_first() {
    let (Some(env), Some(_choosing)) = (Env::with("cpu", Version::V1), can_choose_numbers()) else { return };
    env.configure(&stand_in_row());
    let mut process = env.stand_in("stranger", VMM);
    for group in premake(&format!("{}/limited", env.top())) {
        group.take_in(process.pid());
    }
    let sandbox = env.sandbox().start();
    let (file, tid) = (env.constrained("cpu").threads_file(), first_vcpu(&sandbox));
    assert_stranger_is_put_back(sandbox, "prestart", &file, tid, |tid| {
        process.tell(&format!("number {tid}"));
        wait_until("a thread of that number", || threads_of(process.pid()).iter().any(|thread| thread.tid == tid));
    });
    assert_eq!(place_of(tid, "cpu"), place_of(process.pid(), "cpu"));
}

#[test]
fn who_got_the_number_of_one_that_is_moved_out_of_a_group_of_ours_is_put_back() {
    let (Some(env), Some(_choosing)) = (Env::new(), can_choose_numbers()) else { return };
    let (sandbox, mut stranger) = (env.sandbox().start(), None);
    let home = Group::new("cpu", &format!("{}/home", env.top()));
    for group in premake(&home.path) {
        group.take_in(sandbox.pid);
    }
    sandbox.place(&env.bundle());
    let is_v1 = home.hierarchy.version == Version::V1;
    let (file, number) = if is_v1 { (home.threads_file(), first_vcpu(&sandbox)) } else { (home.processes_file(), sandbox.pid) };
    assert_stranger_is_put_back(sandbox, "poststop", &file, number, |number| stranger = Some(take(number)));
}
