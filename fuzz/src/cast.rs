//! The processes of a made-up host, and what speaks for each: files of the runtime's, the state's pid, our parent, the record.
//!
//! Whose evidence is complete is known from what was made up, and not from how the library looks for it: at most one fact of a
//! process is forged, and who vouches for it is chosen.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kata_cgroup_hook::vmm::kinds::Role;
use libfuzzer_sys::arbitrary::{self, Arbitrary};

use crate::{kernel::Kernel, owner};

/// When the host booted, in seconds since the epoch, and half a second more so that nothing stands on the edge of one.
const BOOT: Duration = Duration::from_millis(1_000_000_500);
/// When the runtime's files were written, in seconds since then.
const WRITTEN: u64 = 1000;
/// In clock ticks since boot.
const START: u64 = 6000;
const START_TOO_LATE: u64 = (WRITTEN + 10) * 100;
#[cfg(target_arch = "x86_64")]
const IOCTL: u64 = 16;
#[cfg(not(target_arch = "x86_64"))]
const IOCTL: u64 = 29;
const VM_DESCRIPTOR: usize = 9;

/// All of them, and how trustworthy the runtime's files are.
#[derive(Arbitrary, Debug)]
pub struct Cast {
    actors: Vec<Actor>,
    /// Others than root can write into the runtime directory.
    pub is_dir_loose: bool,
    /// The same of pid, persist.json and state.json.
    is_file_loose: [bool; 3],
}

/// A process.
#[derive(Arbitrary, Debug)]
struct Actor {
    looks: Looks,
    /// Its VM is KVM's; of a shim: it has one.
    has_kvm: bool,
    tasks: Vec<Task>,
    forged: Option<Forgery>,
    in_pid_file: bool,
    in_persist: Option<Claimed>,
    in_state: Option<Claimed>,
    is_hint: bool,
    is_our_parent: bool,
    /// Whether the record knows it, with its own start time or another.
    recorded: Option<bool>,
    parent: Option<u8>,
}

#[derive(Arbitrary, Debug, Clone, Copy, PartialEq, Eq)]
enum Looks {
    Qemu,
    CloudHypervisor,
    Firecracker,
    Virtiofsd,
    Shim,
    Tenant,
}

/// What the runtime's file says that it is.
#[derive(Arbitrary, Debug, Clone, Copy, PartialEq, Eq)]
enum Claimed {
    Vmm,
    Helper,
}

/// What a thread does, and what shows it.
#[derive(Arbitrary, Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Other,
    VcpuByName,
    VcpuInKvmRun,
    VcpuInGuest,
    /// A vCPU that nothing tells.
    VcpuUntold,
    /// The kernel's own, with a vCPU's name, registers and times.
    Worker,
    /// In KVM_RUN on what is no vCPU, and called nearly like one.
    Decoy,
}

/// The one fact that is not as it should be.
#[derive(Arbitrary, Debug, Clone, Copy, PartialEq, Eq)]
enum Forgery {
    User(u8),
    Nested,
    Executable,
    ExecutableLoose,
    ExecutableDeleted,
    Arguments,
    StartedTooLate,
    Dead,
}

impl Cast {
    fn actors(&self) -> &[Actor] {
        &self.actors[..self.actors.len().min(5)]
    }

    fn pids(&self) -> impl Iterator<Item = i32> {
        (1..).take(self.actors().len()).map(|number| number * 100)
    }

    fn with_pids(&self) -> impl Iterator<Item = (i32, &Actor)> {
        self.pids().zip(self.actors())
    }

    fn first(&self, is_it: impl Fn(&Actor) -> bool) -> Option<i32> {
        self.with_pids().find(|(_, actor)| is_it(actor)).map(|(pid, _)| pid)
    }

    /// The state's pid.
    pub fn hint(&self) -> Option<i32> {
        self.first(|actor| actor.is_hint)
    }

    /// The process that started us; pid 1 is none of these.
    pub fn our_parent(&self) -> i32 {
        self.first(|actor| actor.is_our_parent).unwrap_or(1)
    }

    /// Pid and start time as the record has them, and what each was.
    pub fn recorded(&self) -> Vec<(i32, u64, Role)> {
        let recorded = |(pid, actor): (i32, &Actor)| {
            let start = if actor.recorded? { actor.start() } else { actor.start() + 1 };
            Some((pid, start, if actor.looks == Looks::Virtiofsd { Role::Helper } else { Role::Vmm }))
        };
        self.with_pids().filter_map(recorded).collect()
    }

    /// Whom the files name as VMM or helper: which file, and who.
    fn claims(&self, role: Claimed) -> [Option<i32>; 3] {
        let in_pid_file = self.first(|actor| actor.in_pid_file).filter(|_| role == Claimed::Vmm);
        let in_persist = self.first(|actor| actor.in_persist == Some(role));
        [in_pid_file, in_persist, self.first(|actor| actor.in_state == Some(role))]
    }

    /// The processes whose evidence as VMM is complete.
    pub fn vmms(&self) -> Vec<i32> {
        let shims = self.shims();
        let is_vmm = |pid: i32, actor: &Actor| {
            let is_vouched = self.hint() == Some(pid) || shims.contains(&pid) || self.is_child_of(actor, &shims);
            actor.is_in_order_as(Role::Vmm) && self.is_proved(pid, actor, Claimed::Vmm, is_vouched)
        };
        self.with_pids().filter(|(pid, actor)| is_vmm(*pid, actor)).map(|(pid, _)| pid).collect()
    }

    /// The same of those that help a VMM.
    pub fn helpers(&self) -> Vec<i32> {
        let (mut vouching, mut helpers) = ([self.shims(), self.vmms()].concat(), Vec::new());
        loop {
            let is_helper = |pid: i32, actor: &Actor| {
                let is_vouched = self.is_child_of(actor, &vouching);
                actor.is_in_order_as(Role::Helper) && self.is_proved(pid, actor, Claimed::Helper, is_vouched)
            };
            let now: Vec<i32> = self.with_pids().filter(|(pid, actor)| is_helper(*pid, actor)).map(|(pid, _)| pid).collect();
            if now == helpers {
                return helpers;
            }
            vouching.extend(&now);
            helpers = now;
        }
    }

    /// Of a shim there is no file: it is our parent, or the state's pid.
    fn shims(&self) -> Vec<i32> {
        let is_shim = |pid: i32, actor: &Actor| {
            let is_vouched = self.hint() == Some(pid) || self.our_parent() == pid;
            actor.is_in_order_as(Role::Shim) && is_vouched && actor.is_proved_by_others()
        };
        self.with_pids().filter(|(pid, actor)| is_shim(*pid, actor)).map(|(pid, _)| pid).collect()
    }

    fn is_child_of(&self, actor: &Actor, others: &[i32]) -> bool {
        self.parent_of(actor).is_some_and(|parent| others.contains(&parent))
    }

    fn parent_of(&self, actor: &Actor) -> Option<i32> {
        self.pids().nth(usize::from(actor.parent?))
    }

    fn is_proved(&self, pid: i32, actor: &Actor, role: Claimed, is_vouched: bool) -> bool {
        let named = self.claims(role).into_iter().zip(self.is_file_loose);
        let is_named = named.into_iter().any(|(named, is_loose)| named == Some(pid) && !is_loose);
        let is_by_file = is_named && actor.forged != Some(Forgery::StartedTooLate);
        is_by_file || actor.recorded == Some(true) || (is_vouched && actor.is_proved_by_others())
    }

    /// Whether it is a container runtime's shim, which is never moved.
    pub fn is_shim(&self, pid: i32) -> bool {
        self.with_pids().any(|(shim, actor)| shim == pid && actor.looks == Looks::Shim)
    }

    /// The threads of a process that can be told to be vCPUs.
    pub fn vcpus(&self, pid: i32) -> Vec<i32> {
        let of = |actor: &Actor| {
            let is_told = |task: &Task| match task {
                Task::VcpuByName => true,
                Task::VcpuInKvmRun | Task::VcpuInGuest => actor.has_kvm,
                _ => false,
            };
            (pid..).zip(actor.tasks()).filter(|(_, task)| is_told(task)).map(|(tid, _)| tid).collect()
        };
        self.with_pids().find(|(found, _)| *found == pid).map(|(_, actor)| of(actor)).unwrap_or_default()
    }

    /// Adds every thread to the kernel.
    pub fn enter(&self, kernel: &mut Kernel) {
        for (pid, actor) in self.with_pids() {
            (pid..).zip(actor.tasks()).for_each(|(tid, _)| kernel.add(tid, pid, actor.start()));
        }
    }

    /// Lays /proc and the sandbox's runtime directory, which is `run`.
    pub fn lay(&self, at: &Path, run: &Path) {
        let uptime = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock") - BOOT;
        write(&at.join("proc/uptime"), format!("{:.2} 1.00\n", uptime.as_secs_f64()));
        for (pid, actor) in self.with_pids() {
            let children = self.with_pids().filter(|(_, child)| self.parent_of(child) == Some(pid));
            let children = children.map(|(child, _)| format!("{child} ")).collect();
            actor.lay(at, run, (pid, self.parent_of(actor).unwrap_or(1)), children);
        }
        let mode = |is_loose| Permissions::from_mode(if is_loose { 0o777 } else { 0o700 });
        let number = |pid: Option<i32>| pid.map_or("null".to_owned(), |pid| pid.to_string());
        let [pid, persist, state] = self.claims(Claimed::Vmm);
        let [_, persist_helper, state_helper] = self.claims(Claimed::Helper);
        let texts = [
            pid.map(|pid| pid.to_string()).unwrap_or_default(),
            format!(r#"{{"HypervisorState":{{"Pid":{},"VirtiofsDaemonPid":{}}}}}"#, number(persist), number(persist_helper)),
            format!(r#"{{"hypervisor":{{"pid":{},"virtiofs_daemon_pid":{}}}}}"#, number(state), number(state_helper)),
        ];
        for ((name, text), is_loose) in ["pid", "persist.json", "state.json"].iter().zip(texts).zip(self.is_file_loose) {
            write(&run.join(name), text);
            let file = std::fs::File::options().write(true).open(run.join(name)).expect("what was written");
            file.set_modified(UNIX_EPOCH + BOOT + Duration::from_secs(WRITTEN)).expect("a file of ours");
            file.set_permissions(mode(is_loose)).expect("a file of ours");
        }
        std::fs::set_permissions(run, mode(self.is_dir_loose)).expect("a directory of ours");
    }
}

impl Actor {
    fn tasks(&self) -> &[Task] {
        // Every process has a first thread.
        if self.tasks.is_empty() { &[Task::Other] } else { &self.tasks[..self.tasks.len().min(6)] }
    }

    fn start(&self) -> u64 {
        if self.forged == Some(Forgery::StartedTooLate) { START_TOO_LATE } else { START }
    }

    /// Whether every fact about the process itself is right for one in that role.
    fn is_in_order_as(&self, role: Role) -> bool {
        let looks_it = match (self.looks, role) {
            (Looks::Qemu | Looks::CloudHypervisor | Looks::Firecracker, Role::Vmm) => true,
            // Dragonball: it holds a VM, or the record knows it, as it knows none that is a shim and no more.
            (Looks::Shim, Role::Vmm) => self.has_kvm || self.recorded == Some(true),
            (Looks::Virtiofsd, Role::Helper) | (Looks::Shim, Role::Shim) => true,
            _ => false,
        };
        looks_it
            && match self.forged {
                Some(Forgery::User(_) | Forgery::Executable | Forgery::ExecutableLoose | Forgery::Dead) => false,
                Some(Forgery::Nested) => role != Role::Vmm,
                // Who is recorded has proved that before.
                Some(Forgery::Arguments) => role == Role::Helper || self.recorded == Some(true),
                Some(Forgery::ExecutableDeleted | Forgery::StartedTooLate) | None => true,
            }
    }

    /// Whether the word of a process, instead of a file or the record, is enough.
    fn is_proved_by_others(&self) -> bool {
        self.forged != Some(Forgery::ExecutableDeleted) || self.recorded == Some(true)
    }

    fn name(&self) -> &'static str {
        match self.looks {
            _ if self.forged == Some(Forgery::Executable) => "other",
            Looks::Qemu => "qemu-system-x86_64",
            Looks::CloudHypervisor => "cloud-hypervisor",
            Looks::Firecracker => "firecracker",
            Looks::Virtiofsd => "virtiofsd",
            Looks::Shim => "containerd-shim-kata-v2",
            Looks::Tenant => "sh",
        }
    }

    fn arguments(&self, run: &Path) -> Vec<String> {
        let (id, run) =
            if self.forged == Some(Forgery::Arguments) { ("other", "/run/other".into()) } else { ("sb", run.to_owned()) };
        let arguments = match self.looks {
            Looks::Qemu => ["-name".to_owned(), format!("sandbox-{id},debug-threads=on")],
            Looks::CloudHypervisor => ["--api-socket".to_owned(), run.join("clh.sock").display().to_string()],
            Looks::Firecracker => ["--id".to_owned(), id.to_owned()],
            _ => ["-id".to_owned(), id.to_owned()],
        };
        [self.name().to_owned()].into_iter().chain(arguments).collect()
    }

    fn lay(&self, at: &Path, run: &Path, (pid, parent): (i32, i32), children: String) {
        let dir = at.join("proc").join(pid.to_string());
        std::fs::create_dir_all(dir.join("fd")).expect("a directory");
        let (stat, status) = (self.stat((pid, parent), Task::Other, 0), self.status(pid));
        for (name, text) in [("stat", &stat), ("status", &status), ("cmdline", &(self.arguments(run).join("\0") + "\0"))] {
            write(&dir.join(name), text);
        }
        symlink(self.executable(at), dir.join("exe")).expect("a link");
        let descriptor = |number: usize, of: &str| symlink(format!("anon_inode:{of}"), dir.join(format!("fd/{number}")));
        if self.has_kvm {
            descriptor(VM_DESCRIPTOR, "kvm-vm").expect("a link");
        }
        let mut vcpus = 0;
        for (tid, task) in (pid..).zip(self.tasks()) {
            let is_vcpu = matches!(task, Task::VcpuByName | Task::VcpuInKvmRun | Task::VcpuInGuest | Task::VcpuUntold);
            let run_by = if *task == Task::Decoy { VM_DESCRIPTOR } else { VM_DESCRIPTOR + 1 + vcpus };
            if self.has_kvm && is_vcpu {
                descriptor(run_by, &format!("kvm-vcpu:{vcpus}")).expect("a link");
            }
            let dir = dir.join(format!("task/{tid}"));
            std::fs::create_dir_all(&dir).expect("a directory");
            write(&dir.join("stat"), self.stat((tid, parent), *task, vcpus));
            let call = match task {
                Task::VcpuInKvmRun | Task::Worker | Task::Decoy => format!("{IOCTL} {run_by:#x} 0xae80 0x0\n"),
                _ => "running\n".to_owned(),
            };
            write(&dir.join("syscall"), call);
            write(&dir.join("children"), if tid == pid { children.clone() } else { String::new() });
            vcpus += usize::from(is_vcpu);
        }
    }

    /// The file that it runs, laid, and what is said of it.
    fn executable(&self, at: &Path) -> PathBuf {
        let (dir, mode) = if self.forged == Some(Forgery::ExecutableLoose) { ("loose", 0o777) } else { ("bin", 0o755) };
        let dir = at.join(dir);
        std::fs::create_dir_all(&dir).expect("a directory");
        // Such a link still leads to what it was (proc_pid_exe(5)).
        let deleted = if self.forged == Some(Forgery::ExecutableDeleted) { " (deleted)" } else { "" };
        let file = dir.join(format!("{}{deleted}", self.name()));
        write(&file, "#!");
        std::fs::set_permissions(&file, Permissions::from_mode(mode)).expect("a file of ours");
        file
    }

    fn stat(&self, (tid, parent): (i32, i32), task: Task, index: usize) -> String {
        let name = match (task, self.looks) {
            (Task::Decoy, _) => format!("CPU {index}/KVMs"),
            (Task::VcpuByName | Task::Worker, Looks::CloudHypervisor) => format!("vcpu{index}"),
            (Task::VcpuByName | Task::Worker, Looks::Firecracker) => format!("fc_vcpu {index}"),
            (Task::VcpuByName | Task::Worker, Looks::Shim) => format!("db_vcpu{index}"),
            (Task::VcpuByName | Task::Worker, _) => format!("CPU {index}/KVM"),
            _ => "any".to_owned(),
        };
        let state = if self.forged == Some(Forgery::Dead) { 'Z' } else { 'S' };
        let flags = if task == Task::Worker { 0x4000 } else { 0 };
        let guest_time = u8::from(matches!(task, Task::VcpuInGuest | Task::Worker));
        let (start, zeros) = (self.start(), "0 ".repeat(12));
        format!("{tid} ({name}) {state} {parent} 1 1 0 -1 {flags} {zeros}{start} {}{guest_time} 0\n", "0 ".repeat(20))
    }

    fn status(&self, pid: i32) -> String {
        let mut uids = [owner(); 4];
        if let Some(Forgery::User(which)) = self.forged {
            uids[usize::from(which) % 4] += 1;
        }
        let [real, effective, saved, fs] = uids;
        let nested = if self.forged == Some(Forgery::Nested) { "\t1" } else { "" };
        format!("Tgid:\t{pid}\nUid:\t{real}\t{effective}\t{saved}\t{fs}\nNSpid:\t{pid}{nested}\n")
    }
}

fn write(path: &Path, text: impl AsRef<[u8]>) {
    std::fs::write(path, text).expect("a file");
}
