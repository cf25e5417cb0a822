//! Finding the VM's processes: evidence, not appearance.
//!
//! A few sources say who might be the VMM: files in the runtime directory, the state's pid, the children of the runtime's shim,
//! our own record. /proc is never scanned. Whoever is named must prove it with facts that no tenant can forge: the executable
//! is root's own file of the table at that path in our mount namespace, every user id is root's, it is in the host's pid
//! namespace, it did not start after the file that names it was written, and its arguments name this sandbox. Names of
//! processes and threads prove nothing; neither does being somebody's child, except of a process that has proved itself.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag, stat};

use crate::foreign;
use crate::proc::{Proc, Process};
use crate::vmm::kinds::{Kind, Kinds, Role};
use crate::vmm::runtime::{Claim, RuntimeDirs};

/// Clock ticks a second in /proc (USER_HZ, which is part of Linux's ABI).
const TICKS: u64 = 100;

/// Where to look, and for whom.
#[derive(Debug)]
pub struct Search<'a> {
    pub proc: &'a Proc,
    pub kinds: &'a Kinds,
    pub dirs: &'a RuntimeDirs,
    /// What the files in the runtime directories say.
    pub claims: &'a [Claim],
    /// The state's pid.
    pub hint: Option<i32>,
    /// The process that started us: the runtime's shim, where the runtime runs hooks itself.
    pub parent: i32,
    /// Pid and start time of the processes in the sandbox's record.
    pub recorded: &'a [(i32, u64)],
    /// Whose the runtime directories are: root.
    pub owner: u32,
}

/// A process that has proved what it is.
#[derive(Debug)]
pub struct Proven<'a> {
    pub process: Process,
    /// Start time in clock ticks since boot.
    pub start: u64,
    pub kind: &'a Kind,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found<'a> {
    /// The VMM; none before the VM is started.
    pub vmm: Option<Proven<'a>>,
    pub helpers: Vec<Proven<'a>>,
    /// Who was named or looked like it and could not prove it, and why.
    pub refused: Vec<String>,
}

/// Who says that a process is the one.
#[derive(Debug, Clone, Copy)]
enum Source<'a> {
    File(&'a Claim),
    Record {
        start: u64,
    },
    Hint,
    /// A child of a process that proved itself.
    Child,
}

/// Why a process is not accepted.
enum Doubt {
    /// It is not there (any more).
    Gone,
    /// It runs nothing of the table, as most processes do.
    Stranger(PathBuf),
    /// It runs something of the table and fails the proof.
    Unproven(String),
}

impl From<Errno> for Doubt {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ENOENT | Errno::ESRCH => Self::Gone,
            errno => Self::Unproven(format!("cannot be read: {errno}")),
        }
    }
}

impl<'a> Search<'a> {
    /// Finds the VMM and its helpers.
    pub fn find(&self) -> Found<'a> {
        let mut found = Found::default();
        let shims = self.shims(&mut found.refused);
        found.vmm = self.vmm(&shims, &mut found.refused);
        if let Some(vmm) = &found.vmm {
            let started_helpers: Vec<i32> = shims.iter().chain([vmm]).flat_map(|proven| proven.process.children()).collect();
            let mut helpers = self.claimed_helpers(&mut found.refused);
            self.add_children(started_helpers, &mut helpers, &mut found.refused);
            found.helpers = helpers;
        }
        found
    }

    /// The first that proves to be the VMM: named by a file, known from before, hinted at, or the child of a shim.
    fn vmm(&self, shims: &[Proven<'a>], refused: &mut Vec<String>) -> Option<Proven<'a>> {
        let claimed = self.claims.iter().filter(|claim| claim.role == Role::Vmm);
        let recorded = self.recorded.iter().map(|&(pid, start)| (pid, Source::Record { start }));
        let children = shims.iter().flat_map(|shim| shim.process.children());
        let candidates = claimed
            .map(|claim| (claim.pid, Source::File(claim)))
            .chain(recorded)
            .chain(self.hint.map(|pid| (pid, Source::Hint)))
            .chain(children.map(|pid| (pid, Source::Child)))
            .chain(shims.iter().map(|shim| (shim.process.pid, Source::Child)));
        let mut tried = Vec::new();
        for (pid, source) in candidates {
            match self.prove(pid, Role::Vmm, source) {
                Ok(vmm) => return Some(vmm),
                Err(doubt) if !tried.contains(&pid) => {
                    tried.push(pid);
                    refused.extend(told(pid, &doubt, source));
                }
                Err(_) => {}
            }
        }
        None
    }

    /// The container runtime's shim: our parent, or the process of the state's pid.
    fn shims(&self, refused: &mut Vec<String>) -> Vec<Proven<'a>> {
        let mut shims: Vec<Proven<'a>> = Vec::new();
        for pid in [Some(self.parent), self.hint].into_iter().flatten() {
            match self.prove(pid, Role::Shim, Source::Hint) {
                Ok(shim) if shims.iter().all(|known| known.process.pid != shim.process.pid) => shims.push(shim),
                Ok(_) => {}
                Err(doubt) => refused.extend(told(pid, &doubt, Source::Hint)),
            }
        }
        shims
    }

    fn claimed_helpers(&self, refused: &mut Vec<String>) -> Vec<Proven<'a>> {
        let mut helpers = Vec::new();
        for claim in self.claims.iter().filter(|claim| claim.role == Role::Helper) {
            let source = Source::File(claim);
            self.add_helper(claim.pid, source, &mut helpers, refused);
        }
        for &(pid, start) in self.recorded {
            self.add_helper(pid, Source::Record { start }, &mut helpers, refused);
        }
        helpers
    }

    /// Adds the helpers among `children`, and theirs: virtiofsd forks one that does the work.
    fn add_children(&self, children: Vec<i32>, helpers: &mut Vec<Proven<'a>>, refused: &mut Vec<String>) {
        for pid in children {
            self.add_helper(pid, Source::Child, helpers, refused);
        }
        let mut next = 0;
        while let Some(helper) = helpers.get(next) {
            for pid in helper.process.children() {
                self.add_helper(pid, Source::Child, helpers, refused);
            }
            next += 1;
        }
    }

    fn add_helper(&self, pid: i32, source: Source<'_>, helpers: &mut Vec<Proven<'a>>, refused: &mut Vec<String>) {
        if helpers.iter().any(|known| known.process.pid == pid) {
            return;
        }
        match self.prove(pid, Role::Helper, source) {
            Ok(helper) => helpers.push(helper),
            Err(doubt) => refused.extend(told(pid, &doubt, source)),
        }
    }

    /// Checks the process of thread `id` against everything that can be known of one in `role`.
    fn prove(&self, id: i32, role: Role, source: Source<'_>) -> Result<Proven<'a>, Doubt> {
        let named = self.proc.process(id)?.ok_or(Doubt::Gone)?;
        let process = match named.status()?.thread_group {
            group if group == id => named,
            group => self.proc.process(group)?.ok_or(Doubt::Gone)?,
        };
        let stat = process.stat()?;
        if stat.is_dead() {
            return Err(Doubt::Gone);
        }
        let kind = self.kind_of(&process, stat.start, role, source)?;
        let unproven = |why: &str| Err(Doubt::Unproven(why.to_owned()));
        let status = process.status()?;
        if status.uids != [self.owner; 4] {
            return unproven("does not run as the owner of the runtime directory");
        }
        match source {
            Source::File(claim) if !self.started_before(stat.start, claim.written) => {
                return unproven("started after that was written");
            }
            Source::Record { start } if start != stat.start => return Err(Doubt::Gone),
            _ => {}
        }
        if role == Role::Vmm && status.is_nested {
            return unproven("is not in the host's pid namespace");
        }
        if role != Role::Helper && !self.is_of_this_sandbox(kind, &process)? {
            return unproven("has no argument that names this sandbox");
        }
        Ok(Proven { process, start: stat.start, kind })
    }

    /// The row of the table that the process runs, proved by the file that it runs.
    fn kind_of(&self, process: &Process, start: u64, role: Role, source: Source<'_>) -> Result<&'a Kind, Doubt> {
        let (link, file) = process.executable()?;
        // "/usr/bin/qemu (deleted)": upgraded under a running VM (proc_pid_exe(5)).
        let (path, is_deleted) = match link.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
            Some(path) => (Path::new(OsStr::from_bytes(path)), true),
            None => (link.as_path(), false),
        };
        let is_in_role = |kind: &&Kind| kind.role == role && (role != Role::Vmm || self.may_be_vmm(kind, process));
        let found = self.kinds.running(path).find(is_in_role);
        let kind = found.ok_or_else(|| Doubt::Stranger(path.to_path_buf()))?;
        let known = matches!(source, Source::File(_)) || self.recorded.contains(&(process.pid, start));
        if is_deleted && known {
            return Ok(kind);
        }
        if is_deleted || !self.is_file_of_ours(path, &file) {
            return Err(Doubt::Unproven(format!("runs {}, which is not the host's own file of that path", link.display())));
        }
        Ok(kind)
    }

    /// A shim is a VMM only where it holds a virtual machine itself.
    fn may_be_vmm(&self, kind: &Kind, process: &Process) -> bool {
        !self.kinds.is_shim_too(kind)
            || process.descriptors().is_ok_and(|open| open.iter().any(|(_, what)| what == b"anon_inode:kvm-vm"))
    }

    /// Whether what a process runs is the file at `path` in our mount namespace, and nobody but its owner can have changed it.
    fn is_file_of_ours(&self, path: &Path, running: &FileStat) -> bool {
        let is_regular = |file: &FileStat| SFlag::from_bits_truncate(file.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
        stat(path).is_ok_and(|ours| {
            (ours.st_dev, ours.st_ino) == (running.st_dev, running.st_ino)
                && is_regular(&ours)
                && foreign::is_only_of(&ours, self.owner)
        })
    }

    /// Whether a start time lies before `written`. Both clocks count whole seconds at best, so one second of grace.
    fn started_before(&self, start: u64, written: u64) -> bool {
        self.proc.boot_time().is_some_and(|boot| boot + start / TICKS <= written + 1)
    }

    fn is_of_this_sandbox(&self, kind: &Kind, process: &Process) -> Result<bool, Doubt> {
        let (arguments, dirs) = (process.arguments()?, self.dirs.paths());
        Ok(self.dirs.vm_ids().iter().any(|vm| kind.names(&arguments, vm, &dirs)))
    }
}

/// What is worth telling of a refusal: a file of root's that names the wrong process always, a mere hint only if it looked right.
fn told(pid: i32, doubt: &Doubt, source: Source<'_>) -> Option<String> {
    let by = match source {
        Source::File(claim) => format!(" named by {}", claim.file.display()),
        _ => String::new(),
    };
    match (doubt, source) {
        (Doubt::Unproven(why), _) => Some(format!("process {pid}{by}: {why}")),
        (Doubt::Stranger(path), Source::File(_)) => {
            Some(format!("process {pid}{by}: runs {}, which is in no row of the table", path.display()))
        }
        (Doubt::Gone | Doubt::Stranger(_), _) => None,
    }
}
