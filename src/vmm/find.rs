//! Finding the VM's processes: evidence, not appearance.
//!
//! A few sources say who might be the VMM: files in the runtime directory, the state's pid, the children of the runtime's shim,
//! our own record. /proc is never scanned. Whoever is named must prove it with facts that no tenant can forge: the executable
//! is root's own file of the table at that path in our mount namespace, every user id is root's, it is in the host's pid
//! namespace, it did not start after the file that names it was written, and its arguments name this sandbox. Names of
//! processes and threads prove nothing; neither does being somebody's child, except of a process that has proved itself.

use std::collections::VecDeque;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;

use crate::deadline::Deadline;
use crate::foreign;
use crate::proc::{Proc, Process};
use crate::sys::FileId;
use crate::vmm::kinds::{Kind, Kinds, Role};
use crate::vmm::runtime::{Claim, RuntimeDirs};
use crate::vmm::vcpu::VM;

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
    pub parent: Option<i32>,
    /// Pid and start time of the processes in the sandbox's record.
    pub recorded: &'a [(i32, u64)],
    /// Whose the runtime directories are: root.
    pub owner: u32,
    /// Until when helpers are looked for: a VMM can have any number of children.
    pub deadline: &'a Deadline,
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
    pub shims: Vec<Proven<'a>>,
    pub refused: Refused,
}

/// Who was named or looked like it and could not prove it, and why.
#[derive(Debug, Default)]
pub struct Refused {
    /// Named by a file of root's: something is wrong with the file or the process, whatever else is found.
    pub named: Vec<String>,
    /// Hinted at, or somebody's child.
    pub hinted: Vec<String>,
}

impl Refused {
    /// Adds what is worth telling: a file of root's that names the wrong process always, a mere hint only if it looked right.
    fn add(&mut self, pid: i32, doubt: &Doubt, source: Source<'_>) {
        match (doubt, source) {
            (Doubt::Unproven(why), Source::File(claim)) => {
                self.named.push(format!("process {pid} named by {}: {why}", claim.file.display()));
            }
            (Doubt::Stranger(path), Source::File(claim)) => {
                self.named.push(format!(
                    "process {pid} named by {}: runs {}, which is no VMM or helper that is known: if it is one, add it as a [[vmm]]",
                    claim.file.display(),
                    path.display()
                ));
            }
            (Doubt::Unproven(why), _) => self.hinted.push(format!("process {pid}: {why}")),
            (Doubt::Gone | Doubt::Stranger(_), _) => {}
        }
    }
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
    Child {
        parent: i32,
    },
}

/// Somebody who was listed as a child, and whose child. By the time that he is looked at, the number may be another's.
#[derive(Debug, Clone, Copy)]
pub struct Child {
    pub pid: i32,
    pub parent: i32,
}

impl Child {
    /// All children of a process.
    pub fn all_of(parent: &Process) -> impl Iterator<Item = Self> {
        Self::of_threads(parent, parent.threads().unwrap_or_default().into_iter())
    }

    /// Those that these threads of a process have started.
    pub fn of_threads<'p>(parent: &'p Process, threads: impl Iterator<Item = i32> + 'p) -> impl Iterator<Item = Self> + 'p {
        threads.flat_map(|tid| parent.children_of(tid)).map(|pid| Self { pid, parent: parent.pid })
    }

    fn as_candidate<'a>(self) -> (i32, Source<'a>) {
        (self.pid, Source::Child { parent: self.parent })
    }
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

/// What a process runs.
struct Executable {
    /// "/usr/bin/qemu (deleted)" where it was upgraded under a running VM (proc_pid_exe(5)).
    link: PathBuf,
    path: PathBuf,
    is_deleted: bool,
}

impl Executable {
    fn of(process: &Process) -> Result<Self, Errno> {
        let link = process.executable()?;
        Ok(match link.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
            Some(path) => Self { path: OsStr::from_bytes(path).into(), is_deleted: true, link },
            None => Self { path: link.clone(), is_deleted: false, link },
        })
    }

    /// The file at that path in our mount namespace.
    fn file_of_ours(&self) -> Result<FileId, Errno> {
        let path = CString::new(self.path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
        foreign::file_id(AT_FDCWD, &path)
    }
}

impl<'a> Search<'a> {
    /// Finds the VMM.
    pub fn find(&self) -> Found<'a> {
        let mut found = Found::default();
        found.shims = self.shims(&mut found.refused);
        found.vmm = self.vmm(&found.shims, &mut found.refused);
        found
    }

    /// The helpers but for those that are known: that a file or the record names, that are among `children` of processes that have
    /// proved themselves, and theirs: virtiofsd forks one that does the work. Not all of them once the deadline has passed.
    pub fn helpers(&self, children: Vec<Child>, known: &[i32], refused: &mut Refused) -> Vec<Proven<'a>> {
        let claimed = self.claims.iter().filter(|claim| claim.role == Role::Helper);
        let recorded = self.recorded.iter().map(|&(pid, start)| (pid, Source::Record { start }));
        let mut candidates: VecDeque<(i32, Source<'_>)> =
            claimed.map(|claim| (claim.pid, Source::File(claim))).chain(recorded).collect();
        candidates.extend(children.into_iter().map(Child::as_candidate));
        let mut helpers: Vec<Proven<'a>> = Vec::new();
        while let Some((pid, source)) = candidates.pop_front().filter(|_| !self.deadline.has_passed()) {
            let is_known = |pid: i32| known.contains(&pid) || helpers.iter().any(|helper| helper.process.pid == pid);
            if is_known(pid) {
                continue;
            }
            match self.prove(pid, Role::Helper, source) {
                Ok(helper) if !is_known(helper.process.pid) => {
                    let threads = helper.process.threads().unwrap_or_default().into_iter();
                    let in_time = threads.take_while(|_| !self.deadline.has_passed());
                    candidates.extend(Child::of_threads(&helper.process, in_time).map(Child::as_candidate));
                    helpers.push(helper);
                }
                Ok(_) => {}
                Err(doubt) => refused.add(pid, &doubt, source),
            }
        }
        helpers
    }

    /// The first that proves to be the VMM: named by a file, known from before, hinted at, or the child of a shim.
    fn vmm(&self, shims: &[Proven<'a>], refused: &mut Refused) -> Option<Proven<'a>> {
        let claimed = self.claims.iter().filter(|claim| claim.role == Role::Vmm);
        let recorded = self.recorded.iter().map(|&(pid, start)| (pid, Source::Record { start }));
        let children = shims.iter().flat_map(|shim| Child::all_of(&shim.process));
        let candidates = claimed
            .map(|claim| (claim.pid, Source::File(claim)))
            .chain(recorded)
            .chain(self.hint.map(|pid| (pid, Source::Hint)))
            .chain(children.map(Child::as_candidate))
            .chain(shims.iter().map(|shim| (shim.process.pid, Source::Hint)));
        let mut tried = Vec::new();
        for (pid, source) in candidates {
            match self.prove(pid, Role::Vmm, source) {
                Ok(vmm) => return Some(vmm),
                Err(doubt) if !tried.contains(&pid) => {
                    tried.push(pid);
                    refused.add(pid, &doubt, source);
                }
                Err(_) => {}
            }
        }
        None
    }

    /// The container runtime's shim: our parent, or the process of the state's pid.
    fn shims(&self, refused: &mut Refused) -> Vec<Proven<'a>> {
        let mut shims: Vec<Proven<'a>> = Vec::new();
        for pid in [self.parent, self.hint].into_iter().flatten() {
            match self.prove(pid, Role::Shim, Source::Hint) {
                Ok(shim) if shims.iter().all(|known| known.process.pid != shim.process.pid) => shims.push(shim),
                Ok(_) => {}
                Err(doubt) => refused.add(pid, &doubt, Source::Hint),
            }
        }
        shims
    }

    /// Checks the process of thread `id` against everything that can be known of one in `role`.
    fn prove(&self, id: i32, role: Role, source: Source<'_>) -> Result<Proven<'a>, Doubt> {
        let named = self.proc.process(id)?.ok_or(Doubt::Gone)?;
        let process = match named.status()?.thread_group {
            group if group == id => named,
            group => self.proc.process(group)?.ok_or(Doubt::Gone)?,
        };
        let stat = process.stat()?;
        let is_recorded = self.recorded.contains(&(process.pid, stat.start));
        let is_known = is_recorded || matches!(source, Source::File(_));
        let unproven = |why: &str| Err(Doubt::Unproven(why.to_owned()));
        if stat.is_dead() {
            // What it runs is shown no more then (proc_pid_exe(5)): only who was known is missed.
            if !is_known || process.is_over(&stat, self.deadline)? {
                return Err(Doubt::Gone);
            }
            return unproven("its first thread has ended and others run on, so that it cannot prove itself any more");
        }
        let executable = Executable::of(&process)?;
        let kind = self.kind_of(&executable, &process, role, is_recorded)?;
        let status = process.status()?;
        if status.uids != [self.owner; 4] {
            return unproven("does not run as root with all its user ids, as the runtime directory's owner does");
        }
        match source {
            Source::File(claim) if !self.started_before(stat.start, claim.written) => {
                return unproven("started after that was written, so another process has that number now");
            }
            Source::Record { start } if start != stat.start => return Err(Doubt::Gone),
            Source::Child { parent } if parent != stat.parent => return Err(Doubt::Gone),
            _ => {}
        }
        if !self.is_file_of_ours(&executable, &process, is_known)? {
            return Err(Doubt::Unproven(format!(
                "runs {}, which is not the host's own file of that path, writable by root alone",
                executable.link.display()
            )));
        }
        if role == Role::Vmm && status.is_nested {
            return unproven("is in a pid namespace of its own, not in the host's");
        }
        // Who is recorded has proved that before. Arguments lie in a process's own memory, and one that a guest has taken over can keep who
        // reads there waiting for as long as it likes (`access_remote_vm` waits for its mmap_lock).
        if role != Role::Helper && !is_recorded && !self.is_of_this_sandbox(kind, &process)? {
            return unproven("has no argument that names this sandbox");
        }
        Ok(Proven { process, start: stat.start, kind })
    }

    /// The row of the table that the process runs, by the name of the file.
    fn kind_of(&self, executable: &Executable, process: &Process, role: Role, is_recorded: bool) -> Result<&'a Kind, Doubt> {
        // A shim is recorded only where it is the VMM.
        let may_be_it = |kind: &Kind| role != Role::Vmm || is_recorded || self.may_be_vmm(kind, process);
        let is_in_role = |kind: &&Kind| kind.role == role && may_be_it(kind);
        let found = self.kinds.running(&executable.path).find(is_in_role);
        found.ok_or_else(|| Doubt::Stranger(executable.path.clone()))
    }

    /// A shim is a VMM only where it holds a virtual machine itself.
    fn may_be_vmm(&self, kind: &Kind, process: &Process) -> bool {
        !self.kinds.is_shim_too(kind) || process.holds(VM).unwrap_or(false)
    }

    /// Whether what a process runs is the file of that path in our mount namespace, and nobody but its owner can have changed it. Of one
    /// that is deleted only the latter can be told, which will do for who is known.
    fn is_file_of_ours(&self, executable: &Executable, process: &Process, is_known: bool) -> Result<bool, Doubt> {
        let running = process.executable_file()?;
        if !foreign::is_regular_and_only_of(&running, self.owner) {
            return Ok(false);
        }
        let is_same =
            || executable.file_of_ours().is_ok_and(|ours| (ours.device, ours.inode) == (running.device, running.inode));
        Ok(if executable.is_deleted { is_known } else { is_same() })
    }

    /// Whether a start time lies before `written`. Both clocks count whole seconds at best, so one second of grace.
    fn started_before(&self, start: u64, written: u64) -> bool {
        self.proc.time_of(start).is_some_and(|start| start <= written + 1)
    }

    fn is_of_this_sandbox(&self, kind: &Kind, process: &Process) -> Result<bool, Doubt> {
        let (arguments, dirs) = (process.arguments()?, self.dirs.paths());
        Ok(self.dirs.vm_ids().iter().any(|vm| kind.names(&arguments, vm, &dirs)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::testing::{BOOT, Fake, FakeProc};

    /// A sandbox `sb` whose pid file names process 100, and everything that a search needs.
    struct Host {
        proc: FakeProc,
        roots: tempfile::TempDir,
        kinds: Kinds,
        claims: Vec<Claim>,
        hint: Option<i32>,
        parent: i32,
        recorded: Vec<(i32, u64)>,
        us: u32,
        patience: Duration,
    }

    impl Host {
        fn new() -> Self {
            let us = nix::unistd::getuid().as_raw();
            let roots = tempfile::tempdir().unwrap();
            std::fs::create_dir(roots.path().join("sb")).unwrap();
            std::fs::set_permissions(roots.path().join("sb"), std::fs::Permissions::from_mode(0o700)).unwrap();
            let (kinds, patience) = (Kinds::default(), Duration::from_secs(60));
            Self { proc: FakeProc::new(), roots, kinds, claims: vec![], hint: None, parent: 1, recorded: vec![], us, patience }
        }

        fn vmm(&self) -> Fake {
            Fake {
                executable: self.proc.executable("qemu-system-x86_64"),
                arguments: "qemu -name sandbox-sb -m 1".into(),
                threads: vec![101, 102],
                ..Fake::default()
            }
        }

        fn claim(&mut self, pid: i32, role: Role) {
            self.claims.push(Claim { pid, role, file: "/run/vc/vm/sb/pid".into(), written: BOOT + 61 });
        }

        /// The pids of the VMM and its helpers, and what was refused.
        fn find(&self) -> (Option<i32>, Vec<i32>, Vec<String>) {
            let (proc, dirs) = (self.proc.proc(), RuntimeDirs::of("sb", &[self.roots.path().into()], self.us));
            let search = Search {
                proc: &proc,
                kinds: &self.kinds,
                dirs: &dirs,
                claims: &self.claims,
                hint: self.hint,
                parent: Some(self.parent),
                recorded: &self.recorded,
                owner: self.us,
                deadline: &Deadline::after(Instant::now(), self.patience),
            };
            let mut found = search.find();
            let proven = found.shims.iter().chain(&found.vmm);
            let children = proven.flat_map(|one| Child::all_of(&one.process)).collect();
            let known = found.vmm.as_ref().map(|vmm| vmm.process.pid);
            let helpers = known.map_or(Vec::new(), |vmm| search.helpers(children, &[vmm], &mut found.refused));
            let helpers = helpers.iter().map(|helper| helper.process.pid).collect();
            (found.vmm.map(|vmm| vmm.process.pid), helpers, [found.refused.named, found.refused.hinted].concat())
        }
    }

    /// The VMM, changed in one fact, is refused for `why`; unchanged it is accepted.
    fn refused(change: impl Fn(&Host, &mut Fake), why: &str) {
        let mut host = Host::new();
        host.claim(100, Role::Vmm);
        let mut fake = host.vmm();
        host.proc.add(&fake);
        assert_eq!(host.find(), (Some(100), vec![], vec![]), "the twin of: {why}");
        change(&host, &mut fake);
        host.proc.add(&fake);
        let (vmm, _, refused) = host.find();
        assert_eq!(vmm, None, "{why}");
        assert!(refused.len() == 1 && refused[0].contains(why), "{why}: {refused:?}");
        assert!(refused[0].contains("process 100 named by /run/vc/vm/sb/pid"), "{refused:?}");
    }

    #[test]
    fn a_forged_fact_is_refused_and_its_twin_accepted() {
        refused(|_, fake| fake.uids[3] += 1, "does not run as root");
        refused(|_, fake| fake.uids[0] += 1, "does not run as root");
        refused(|_, fake| fake.numbers = "100\t1".into(), "not in the host's");
        refused(|_, fake| fake.start = 6300, "started after that was written, so another process has that number now");
        refused(|_, fake| fake.arguments = "qemu -name sandbox-other".into(), "no argument that names this sandbox");
        refused(|host, fake| fake.executable = host.proc.executable("sh"), "no VMM or helper that is known");
    }

    #[test]
    fn an_executable_that_others_can_write_is_refused() {
        refused(
            |_, fake| std::fs::set_permissions(&fake.executable, std::fs::Permissions::from_mode(0o777)).unwrap(),
            "not the host's own file",
        );
    }

    #[test]
    fn a_second_of_grace_covers_the_clocks_whole_seconds() {
        let mut host = Host::new();
        host.claim(100, Role::Vmm);
        host.proc.add(&Fake { start: 6299, ..host.vmm() });
        assert_eq!(host.find().0, Some(100));
    }

    #[test]
    fn nobody_there_is_nobody_refused() {
        let mut host = Host::new();
        host.claim(100, Role::Vmm);
        host.hint = Some(55);
        assert_eq!(host.find(), (None, vec![], vec![]));
        host.proc.add(&Fake { state: 'Z', threads: vec![], ..host.vmm() });
        assert_eq!(host.find(), (None, vec![], vec![]));
    }

    #[test]
    fn a_vmm_whose_first_thread_has_ended_is_not_dead_and_cannot_prove_itself() {
        let mut host = Host::new();
        host.claim(100, Role::Vmm);
        host.proc.add(&host.vmm());
        let change = |file: &str, from: &str, to: &str| {
            let path = host.proc.dir.path().join(file);
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{text}");
            std::fs::write(path, text.replace(from, to)).unwrap();
        };
        for file in ["100/stat", "100/task/100/stat"] {
            change(file, ") S ", ") Z ");
        }
        let (vmm, _, refused) = host.find();
        assert!(vmm.is_none() && refused[0].contains("its first thread has ended and others run on"), "{refused:?}");
        // Killed, it takes a while to end: PF_EXITING.
        change("100/task/101/stat", " -1 64 ", " -1 68 ");
        change("100/task/102/stat", ") S ", ") Z ");
        assert_eq!(host.find(), (None, vec![], vec![]));
    }

    #[test]
    fn who_is_recorded_is_not_asked_for_its_arguments_again() {
        let mut host = Host::new();
        host.claim(100, Role::Vmm);
        host.proc.add(&host.vmm());
        std::fs::remove_file(host.proc.dir.path().join("100/cmdline")).unwrap();
        assert_eq!(host.find().0, None);
        host.recorded = vec![(100, 6000)];
        assert_eq!(host.find().0, Some(100));
    }

    #[test]
    fn the_states_pid_is_a_hint_that_may_be_the_vmm_a_thread_of_it_or_nonsense() {
        let mut host = Host::new();
        host.proc.add(&host.vmm());
        for (hint, found) in [(100, Some(100)), (102, Some(100)), (7, None)] {
            host.hint = Some(hint);
            assert_eq!(host.find(), (found, vec![], vec![]), "{hint}");
        }
        // A tenant's own process is no VMM and no news.
        host.proc.add(&Fake { pid: 7, executable: host.proc.executable("sh"), threads: vec![], ..host.vmm() });
        host.hint = Some(7);
        assert_eq!(host.find(), (None, vec![], vec![]));
    }

    #[test]
    fn a_shims_child_is_found_if_the_shim_is_this_sandboxs() {
        let mut host = Host::new();
        host.proc.add(&Fake { parent: 50, ..host.vmm() });
        let shim = |arguments: &str| Fake {
            pid: 50,
            executable: host.proc.executable("containerd-shim-kata-v2"),
            arguments: arguments.into(),
            numbers: "50".into(),
            threads: vec![51],
            children: vec![100],
            ..host.vmm()
        };
        let (ours, other) = (shim("shim -namespace k8s.io -id sb"), shim("shim -namespace k8s.io -id other"));
        host.proc.add(&ours);
        host.hint = Some(51);
        assert_eq!(host.find().0, Some(100), "by a thread of the shim");
        host.hint = None;
        host.parent = 50;
        assert_eq!(host.find().0, Some(100), "by our parent");
        host.proc.dir.path().join("51").metadata().unwrap();
        std::fs::write(host.proc.dir.path().join("50/cmdline"), other.arguments.replace(' ', "\0")).unwrap();
        let (vmm, _, refused) = host.find();
        assert_eq!(vmm, None, "another sandbox's shim");
        assert!(refused[0].contains("no argument that names this sandbox"), "{refused:?}");
    }

    #[test]
    fn helpers_are_those_that_files_name_and_the_children_of_the_proven() {
        let mut host = Host::new();
        host.claim(100, Role::Vmm);
        host.claim(200, Role::Helper);
        host.proc.add(&Fake { children: vec![300, 400, 500], ..host.vmm() });
        let helper = |pid: i32, parent: i32, name: &str, children: Vec<i32>| Fake {
            pid,
            parent,
            executable: host.proc.executable(name),
            arguments: name.into(),
            numbers: format!("{pid}\t1"),
            threads: vec![],
            children,
            ..host.vmm()
        };
        let fakes = [
            helper(200, 1, "virtiofsd", vec![201]),
            helper(201, 200, "virtiofsd", vec![]),
            helper(300, 100, "nydusd", vec![]),
            helper(400, 100, "sh", vec![401]),
            helper(401, 400, "virtiofsd", vec![]),
            // Who was listed has ended, and another sandbox's has its number.
            helper(500, 77, "virtiofsd", vec![]),
        ];
        for fake in &fakes {
            host.proc.add(fake);
        }
        assert_eq!(host.find(), (Some(100), vec![200, 300, 201], vec![]));
        host.patience = Duration::ZERO;
        assert_eq!(host.find(), (Some(100), vec![], vec![]), "nobody is looked at past the deadline");
    }

    #[test]
    fn a_kernel_that_keeps_no_list_of_children_has_helpers_named_by_files_alone() {
        let mut host = Host::new();
        host.claim(100, Role::Vmm);
        host.claim(200, Role::Helper);
        let executable = host.proc.executable("virtiofsd");
        let helper = |pid: i32| Fake { pid, parent: 100, executable: executable.clone(), threads: vec![], ..host.vmm() };
        let fakes = [Fake { children: vec![300], ..host.vmm() }, helper(200), helper(300)];
        for fake in &fakes {
            host.proc.add(fake);
        }
        assert_eq!(host.find(), (Some(100), vec![200, 300], vec![]));
        std::fs::remove_file(host.proc.dir.path().join("100/task/100/children")).unwrap();
        assert_eq!(host.find(), (Some(100), vec![200], vec![]));
    }

    #[test]
    fn a_shim_is_a_vmm_only_if_it_holds_a_virtual_machine() {
        let mut host = Host::new();
        host.claim(51, Role::Vmm);
        let shim = Fake {
            pid: 50,
            executable: host.proc.executable("containerd-shim-kata-v2"),
            arguments: "shim -id sb".into(),
            numbers: "50".into(),
            threads: vec![51],
            ..host.vmm()
        };
        host.proc.add(&shim);
        assert_eq!(host.find().0, None);
        std::os::unix::fs::symlink("anon_inode:kvm-vm", host.proc.dir.path().join("50/fd/9")).unwrap();
        assert_eq!(host.find().0, Some(50), "Dragonball, named by a thread of it");
    }

    #[test]
    fn a_record_knows_a_process_by_its_start_time() {
        let mut host = Host::new();
        host.proc.add(&host.vmm());
        host.recorded = vec![(100, 5999)];
        assert_eq!(host.find(), (None, vec![], vec![]));
        host.recorded = vec![(100, 6000)];
        assert_eq!(host.find().0, Some(100));
    }

    #[test]
    fn an_executable_that_an_upgrade_deleted_needs_a_file_or_a_record_that_knows_the_process() {
        let mut host = Host::new();
        let deleted = host.proc.executable("qemu-system-x86_64 (deleted)");
        host.proc.add(&Fake { executable: deleted, ..host.vmm() });
        host.hint = Some(100);
        let (vmm, _, refused) = host.find();
        assert!(vmm.is_none() && refused[0].contains("not the host's own file"), "{refused:?}");
        host.recorded = vec![(100, 6000)];
        assert_eq!(host.find().0, Some(100));
        host.recorded.clear();
        host.claim(100, Role::Vmm);
        assert_eq!(host.find().0, Some(100));
        let file = host.proc.executable("qemu-system-x86_64 (deleted)");
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o722)).unwrap();
        let (vmm, _, refused) = host.find();
        assert!(vmm.is_none() && refused[0].contains("not the host's own file"), "others can write it: {refused:?}");
    }
}
