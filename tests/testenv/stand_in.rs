//! Stand-ins for VMMs, where there are to be hundreds: this test program under another calling, in a row of the table of its own.
//!
//! Nothing in one of them runs a guest. But it is a process of root's whose arguments name its sandbox, and it has two threads with
//! the names of vCPUs: all that the hook asks of a VMM that does without KVM.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{SigHandler, Signal};

use super::cgroup::{constrained_at, domains_at};
use super::env::{Env, set_mode, wait_until, write_file};
use super::hierarchy::CPU_CONTROLLERS;
use super::kvm::Vm;
use super::process::{Process, threads_of};
use super::sandbox::process_of;

/// Tells the test program that it is to be a VMM.
const BE_A_VMM: &str = "KCH_TEST_BE_A_VMM";
/// The number that was given last; the next is one more.
pub(crate) const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";
const VCPUS: [&str; 2] = ["CPU 0/KVM", "CPU 1/KVM"];

pub(crate) struct StandIn {
    pub(crate) id: String,
    pid: i32,
    process: Process,
}

/// Is a VMM until nobody holds its stdin any more; nothing where the test program is not told to be one. A line there is what a guest
/// that took it over would have it do.
pub(crate) fn be_a_vmm() {
    if std::env::var_os(BE_A_VMM).is_none() {
        return;
    }
    VCPUS.into_iter().for_each(beget_idle);
    let (mut brood, mut machine) = (Vec::new(), None);
    for line in std::io::stdin().lines() {
        match line.unwrap().split_once(' ').unwrap() {
            ("rename", names) => rename(names),
            ("swarm", number) => {
                (0..number.parse().unwrap()).for_each(|number: usize| beget_idle(&format!("CPU {number}/KVM")));
            }
            ("number", number) => beget_thread_with_number(number.parse().unwrap()),
            ("leave", _) => leave(),
            ("kvm", "by itself") => machine = Some(beget_vcpus(Vm::make())),
            ("kvm", "by a thread that ends") => machine = Some(beget_vcpus(std::thread::spawn(Vm::make).join().unwrap())),
            ("kvm", "closed") => drop(machine.take()),
            ("brood", number) => brood.extend(beget_processes_that_stay(number.parse().unwrap())),
            ("storm", _) => drop([std::thread::spawn(beget_threads), std::thread::spawn(beget_processes)]),
            ("exec", line) => {
                let mut words = line.split(' ');
                panic!("{line}: {}", Command::new(words.next().unwrap()).args(words).exec());
            }
            (word, _) => panic!("no such word: {word}"),
        }
    }
}

fn idle() {
    loop {
        std::thread::park();
    }
}

fn beget_idle(name: &str) {
    std::thread::Builder::new().name(name.to_owned()).stack_size(64 << 10).spawn(idle).unwrap();
}

/// Its vCPUs are run by threads that have this name once KVM knows them.
pub(crate) const VCPU_IN_DISGUISE: &str = "worker";

fn beget_vcpus(vm: Vm) -> Vm {
    for vcpu in (0..2).map(|number| vm.vcpu(number)) {
        let name_it = || fs::write("/proc/thread-self/comm", VCPU_IN_DISGUISE).unwrap();
        let run = move || vcpu.run_for_ever(name_it);
        std::thread::Builder::new().stack_size(64 << 10).spawn(run).unwrap();
    }
    vm
}

/// Gives each thread with the first name the second, which stands behind a "to".
fn rename(names: &str) {
    let (from, to) = names.split_once(" to ").unwrap();
    for thread in threads_of(std::process::id().try_into().unwrap()).iter().filter(|thread| thread.name == from) {
        fs::write(format!("/proc/self/task/{}/comm", thread.tid), to).unwrap();
    }
}

fn beget_threads() {
    loop {
        std::thread::Builder::new().name("CPU 7/KVM".to_owned()).spawn(std::thread::yield_now).unwrap().join().unwrap();
    }
}

/// A thread that gets this number; somebody else may be quicker, then again.
fn beget_thread_with_number(number: i32) {
    let is_got = || {
        let (tell, told) = std::sync::mpsc::channel();
        fs::write(LAST_PID, (number - 1).to_string()).unwrap();
        std::thread::spawn(move || {
            let is_it = nix::unistd::gettid().as_raw() == number;
            tell.send(is_it).unwrap();
            if is_it {
                idle();
            }
        });
        told.recv().unwrap()
    };
    assert!((0..500).any(|_| is_got()), "no thread got the number {number}");
}

/// Ends the process's first thread, and no other.
#[allow(unsafe_code)]
fn leave() {
    extern "C" fn exit(_: i32) {
        // SAFETY: the kernel's own exit takes a number and touches nothing of ours; nobody waits for that thread.
        unsafe { nix::libc::syscall(nix::libc::SYS_exit, 0) };
    }
    // SAFETY: all that the handler does is one system call (signal-safety(7)).
    unsafe { nix::sys::signal::signal(Signal::SIGUSR1, SigHandler::Handler(exit)) }.unwrap();
    let pid = std::process::id();
    // SAFETY: three numbers; a thread of the same number as the process is its first.
    unsafe { nix::libc::syscall(nix::libc::SYS_tgkill, pid, pid, nix::libc::SIGUSR1) };
}

/// They end with it.
fn beget_processes_that_stay(number: usize) -> Vec<Child> {
    let beget = || Command::new("setpriv").args(["--pdeathsig", "KILL", "--", "sleep", "1000"]).stdin(Stdio::null()).spawn();
    (0..number).map(|_| beget().unwrap()).collect()
}

fn beget_processes() {
    loop {
        Command::new("true").status().unwrap();
    }
}

fn program() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    // Cargo leaves it writable for its group, by the umask; one that may not be changed needs no change.
    if fs::metadata(&program).unwrap().permissions().mode() & 0o022 != 0 {
        set_mode(&program, 0o755);
    }
    program
}

/// The row for the table of kinds that makes this test program one.
pub(crate) fn stand_in_row() -> String {
    row_of_vmm(&program())
}

/// The same for a copy of it.
pub(crate) fn row_of_vmm(program: &Path) -> String {
    let program = program.display();
    format!("[[vmm]]\nname = \"stand-in\"\nrole = \"vmm\"\nexecutables = [\"{program}\"]\nvcpu-threads = \"CPU */KVM\"\n")
}

impl Env {
    /// A sandbox whose VMM is one, with its runtime directory: `test` has to call [`be_a_vmm`].
    pub(crate) fn stand_in(&self, suffix: &str, test: &str) -> StandIn {
        let stand_in = StandIn::started_as(&format!("{}-{suffix}", self.name), test, &program(), &[]);
        let pid_file = self.make_runtime_dir("vm", &stand_in.id).join("pid");
        write_file(&pid_file, 0o600, &format!("{}\n", stand_in.pid()));
        stand_in
    }
}

impl StandIn {
    /// One from this file, a copy of the test program, started through `wrapper`: its arguments name the sandbox, and no file names it.
    pub(crate) fn started_as(id: &str, test: &str, file: &Path, wrapper: &[&str]) -> StandIn {
        let mut words: Vec<_> = wrapper.iter().map(AsRef::as_ref).chain([file.as_os_str()]).collect();
        words.extend([test, id, "--exact", "--nocapture"].map(AsRef::<std::ffi::OsStr>::as_ref));
        let mut command = Process::command(words[0]);
        command.args(&words[1..]).env(BE_A_VMM, "1").stdin(Stdio::piped()).stdout(Stdio::null());
        let process = Process::spawn(&mut command);
        let pid = process_of(process.pid(), file);
        let stand_in = StandIn { pid, process, id: id.to_owned() };
        wait_until("the stand-in's vCPU threads", || stand_in.vcpu_threads().len() == VCPUS.len());
        stand_in
    }

    /// In the host's namespace.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Has it do what a line of [`be_a_vmm`]'s says.
    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.process.child().stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    pub(crate) fn vcpu_threads(&self) -> BTreeSet<i32> {
        let threads = threads_of(self.pid()).into_iter();
        threads.filter(|thread| VCPUS.contains(&thread.name.as_str())).map(|thread| thread.tid).collect()
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Exactly its vCPU threads are in the constrained groups of this path, and exactly it in the unconstrained.
    #[track_caller]
    pub(crate) fn assert_placed(&self, group: &str) {
        for controller in CPU_CONTROLLERS {
            let constrained = constrained_at(group, controller);
            assert_eq!(constrained.threads(), self.vcpu_threads(), "the threads in {constrained:?}");
        }
        for domain in domains_at(group) {
            assert_eq!(domain.processes(), [self.pid()].into(), "the processes in {domain:?}");
        }
    }
}
