//! Real processes, held so that none outlives its test.
//!
//! Each is killed and reaped through its handle, so never by a number that may have become somebody else's; and each asks the
//! kernel to be killed when the thread that started it ends, so that an aborted test run leaves none either.

use std::ffi::OsStr;
use std::fs;
use std::process::{Child, Command};

use nix::sys::signal::Signal;

use super::env::wait_until;

pub(crate) struct Process {
    child: Child,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Thread {
    pub tid: i32,
    pub name: String,
}

impl Process {
    /// A command that will not outlive the thread that starts it.
    pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    }

    pub(crate) fn spawn(command: &mut Command) -> Process {
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let process = Process { child };
        // What setpriv becomes is what was asked for. The name is the last to change, and at first it is that of the thread here.
        let names = ["setpriv".to_owned(), name_of(nix::unistd::gettid().as_raw())];
        wait_until("a process to become itself", || {
            let exe = fs::read_link(format!("/proc/{}/exe", process.pid())).unwrap_or_default();
            let is_itself = exe.file_name() != Some(OsStr::new("setpriv")) && !names.contains(&name_of(process.pid()));
            is_itself || !is_alive(process.pid())
        });
        process
    }

    /// A process of no interest: it sleeps.
    pub(crate) fn sleeping() -> Process {
        Process::spawn(Process::command("sleep").arg("1000"))
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Kills it and leaves the zombie, as a parent does that has not got round to waiting.
    pub(crate) fn kill_unreaped(&mut self) {
        self.child.kill().unwrap();
        wait_until("a killed process to be a zombie", || !is_alive(self.pid()));
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The threads of a process, in the order they were made; none once it is gone.
pub(crate) fn threads_of(pid: i32) -> Vec<Thread> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let tids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut threads: Vec<Thread> = tids.map(|tid| Thread { tid, name: name_of(tid) }).collect();
    threads.sort();
    threads
}

pub(crate) fn name_of(tid: i32) -> String {
    fs::read_to_string(format!("/proc/{tid}/comm")).unwrap_or_default().trim_end().to_owned()
}

pub(crate) fn children_of(pid: i32) -> Vec<i32> {
    let lists = threads_of(pid).into_iter();
    let lists = lists.filter_map(|thread| fs::read_to_string(format!("/proc/{pid}/task/{}/children", thread.tid)).ok());
    lists.flat_map(|list| list.split_whitespace().map(|child| child.parse().unwrap()).collect::<Vec<i32>>()).collect()
}

/// Field 22 of /proc/PID/stat, in the kernel's ticks since boot.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    stat_field(pid, 22)?.parse().ok()
}

/// CPU time used so far, in the kernel's ticks, user and system together.
pub(crate) fn cpu_ticks(tid: i32) -> Option<u64> {
    Some(stat_field(tid, 14)?.parse::<u64>().ok()? + stat_field(tid, 15)?.parse::<u64>().ok()?)
}

/// The CPUs that a thread may run on, in the kernel's notation.
pub(crate) fn cpus_allowed(tid: i32) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:").map(|list| list.trim().to_owned()))
}

/// Whether a process has made its own provisions for a signal: it catches it, or blocks it to read it elsewhere.
pub(crate) fn minds(pid: i32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let masks = ["SigBlk:", "SigCgt:"].map(|name| status.lines().find_map(|line| line.strip_prefix(name)));
    let has = |mask: &str| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask >> (signal as i32 - 1) & 1 == 1);
    masks.into_iter().flatten().any(has)
}

/// Whether it runs; one that nobody has waited for yet does not.
pub(crate) fn is_alive(pid: i32) -> bool {
    stat_field(pid, 3).is_some_and(|state| state != "Z")
}

fn stat_field(tid: i32, number: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
    // The name, field 2, may hold blanks and brackets; what follows its last bracket may not.
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_whitespace().nth(number - 3).map(str::to_owned)
}

/// Whether there is a program of this name in PATH.
pub(crate) fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()))
}
