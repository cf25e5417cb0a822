//! The one reader of /proc.
//!
//! Every user of the host can put words into /proc: names, arguments, links. What is read here is therefore only ever
//! reported, never believed; `vmm::find` decides. A process is held by a descriptor of its directory, so that everything read
//! through one [`Process`] is of that process and of no later one that got its number (proc(5): after the process is gone such
//! a descriptor answers ESRCH).

use std::cell::OnceCell;
use std::collections::HashSet;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

use crate::deadline::Deadline;
use crate::foreign;
use crate::sys::{self, FileId};

/// PF_USER_WORKER (include/linux/sched.h): a thread that the kernel made inside a process, such as vhost's or KVM's workers.
const USER_WORKER: u64 = 0x4000;

/// PF_EXITING (ibidem).
const EXITING: u64 = 0x4;

/// No file of /proc that is read here is longer: a command line is the longest, and QEMU's are about 5 KiB.
const LIMIT: u64 = 1 << 20;

/// How many descriptors of a process are looked at for one of a kind.
const MOST_DESCRIPTORS: usize = 1 << 16;

/// Clock ticks a second in /proc (USER_HZ, which is part of Linux's ABI).
const TICKS: u64 = 100;
const NANOS_A_TICK: u64 = 1_000_000_000 / TICKS;

/// How long ago the host booted, in clock ticks: what a start time is counted in. Where nobody tells, nothing is younger than that.
pub fn ticks_since_boot() -> u64 {
    let ticks = |time: TimeSpec| {
        u64::try_from(time.tv_sec()).ok()?.checked_mul(TICKS)?.checked_add(u64::try_from(time.tv_nsec()).ok()? / NANOS_A_TICK)
    };
    clock_gettime(ClockId::CLOCK_BOOTTIME).ok().and_then(ticks).unwrap_or(u64::MAX)
}

/// A mounted proc file system.
#[derive(Debug, Clone)]
pub struct Proc {
    root: PathBuf,
    /// When the host booted, once that was asked: within a run it is asked of each process that a file names.
    boot: OnceCell<u64>,
}

impl Proc {
    /// The proc file system mounted at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), boot: OnceCell::new() }
    }

    /// Opens process `pid`: `None` if there is none.
    pub fn process(&self, pid: i32) -> Result<Option<Process>, Errno> {
        if pid <= 0 {
            return Ok(None);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match openat(AT_FDCWD, &self.root.join(pid.to_string()), flags, Mode::empty()) {
            Ok(dir) => Ok(Some(Process { pid, dir })),
            Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Where the start time of the process or thread `id` is, for messages.
    pub fn stat_path(&self, id: i32) -> PathBuf {
        self.root.join(format!("{id}/task/{id}/stat"))
    }

    /// The start time of whatever process or thread bears the number `id` now, in clock ticks since boot; `None` if nobody does.
    ///
    /// Threads have a directory of their own at the top of /proc, though it is not listed there (proc(5)). The file there adds up the
    /// times of every thread of the process (`do_task_stat`), which for each of thousands takes minutes; so it is the thread's own.
    pub fn start_of(&self, id: i32) -> Result<Option<u64>, Errno> {
        match self.read(format!("{id}/task/{id}/stat"), Stat::parse) {
            Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
            stat => stat?.ok_or(Errno::EINVAL).map(|stat| Some(stat.start)),
        }
    }

    fn read<T>(&self, name: impl AsRef<Path>, parse: impl FnOnce(&[u8]) -> T) -> Result<T, Errno> {
        foreign::read_kernels(foreign::open(AT_FDCWD, &self.root.join(name))?, LIMIT, parse)
    }

    /// What `parse` makes of each line of this process's mount table, one a mount (proc_pid_mountinfo(5)). A tenant can have a thousand
    /// mounts with lines of 15 KiB.
    pub fn mounts<T>(&self, parse: impl FnMut(&[u8]) -> Option<T>) -> Result<Vec<T>, Errno> {
        self.mounts_of("self", parse)
    }

    fn mounts_of<T>(&self, process: &str, mut parse: impl FnMut(&[u8]) -> Option<T>) -> Result<Vec<T>, Errno> {
        let file = foreign::open(AT_FDCWD, &self.root.join(process).join("mountinfo"))?;
        let mut mounts = Vec::new();
        foreign::for_each_line(file, |line| mounts.extend(parse(line)))?;
        Ok(mounts)
    }

    /// Where the mount table is, for messages.
    pub fn mountinfo_path(&self) -> PathBuf {
        self.root.join("self/mountinfo")
    }

    /// The kernel's version, as far as anything depends on it: 6.18 of `6.18.44-generic`.
    pub fn kernel_release(&self) -> Option<(u32, u32)> {
        let (text, _) = foreign::read_file(AT_FDCWD, &self.root.join("sys/kernel/osrelease"), LIMIT).ok()?;
        let mut numbers = text.split(|byte| !byte.is_ascii_digit());
        Some((number(numbers.next()?)?, number(numbers.next()?)?))
    }

    /// Whether the kernel has the file system `name`, mounted or not; `None` if that cannot be read.
    pub fn knows_file_system(&self, name: &str) -> Option<bool> {
        let (text, _) = foreign::read_file(AT_FDCWD, &self.root.join("filesystems"), LIMIT).ok()?;
        Some(text.split(|byte| *byte == b'\n').any(|line| words(line).last() == Some(name.as_bytes())))
    }

    /// Seconds since the epoch at which the host booted, by today's clock.
    ///
    /// From uptime, as the `btime` of /proc/stat costs a walk over every interrupt of every CPU.
    pub fn boot_time(&self) -> Option<u64> {
        if let Some(boot) = self.boot.get() {
            return Some(*boot);
        }
        let boot = self.read_boot_time()?;
        Some(*self.boot.get_or_init(|| boot))
    }

    fn read_boot_time(&self) -> Option<u64> {
        let seconds = self.read("uptime", |text| number(words(text).next()?)).ok()??;
        let uptime = Duration::try_from_secs_f64(seconds).ok()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        now.checked_sub(uptime).map(|boot| boot.as_secs())
    }

    /// A start time, in clock ticks since boot, in seconds since the epoch.
    pub fn time_of(&self, start: u64) -> Option<u64> {
        self.boot_time().map(|boot| boot + start / TICKS)
    }

    /// Whether our user ids are the host's: every id is mapped to itself (user_namespaces(7)).
    pub fn is_in_first_user_namespace(&self) -> bool {
        let is_whole = |text: &[u8]| words(text).eq([b"0".as_slice(), b"0", b"4294967295"]);
        self.read("self/uid_map", is_whole).unwrap_or(false)
    }

    /// Whether we share pid 1's pid and mount namespaces; not if that cannot be seen.
    ///
    /// The links in /proc/1/ns would say so, but reading them takes the right to trace pid 1, which not every root has. A process
    /// of another pid namespace bears more than one number, and a mount bears its id in one mount namespace only.
    pub fn in_host_namespaces(&self) -> bool {
        let status = self.read("self/status", Status::parse).ok().flatten();
        // The first field of each line.
        let mount_ids = |process: &str| self.mounts_of(process, |line| number(words(line).next()?)).unwrap_or_default();
        let ours: HashSet<u64> = mount_ids("self").into_iter().collect();
        status.is_some_and(|status| !status.is_nested) && mount_ids("1").iter().any(|id| ours.contains(id))
    }
}

/// `None` where who was asked has ended.
pub fn unless_gone<T>(read: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match read {
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        read => read.map(Some),
    }
}

/// One process (or one thread, by its own number), held open.
#[derive(Debug)]
pub struct Process {
    /// Its number in our pid namespace.
    pub pid: i32,
    dir: OwnedFd,
}

impl Process {
    /// A process of which only the number is ever asked.
    #[cfg(test)]
    pub(crate) fn nobody(pid: i32) -> Self {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Self { pid, dir: openat(AT_FDCWD, "/", flags, Mode::empty()).unwrap() }
    }

    /// A file of the process's, which is the kernel's: nobody else can have put anything there.
    fn read<T>(&self, name: impl AsRef<Path>, parse: impl FnOnce(&[u8]) -> T) -> Result<T, Errno> {
        foreign::read_kernels(foreign::open(&self.dir, name.as_ref())?, LIMIT, parse)
    }

    fn read_of_thread<T>(&self, tid: i32, name: &str, parse: impl FnOnce(&[u8]) -> T) -> Result<T, Errno> {
        self.read(format!("task/{tid}/{name}"), parse)
    }

    /// What `/proc/PID/stat` says.
    pub fn stat(&self) -> Result<Stat, Errno> {
        self.read("stat", Stat::parse)?.ok_or(Errno::EINVAL)
    }

    /// Whether it has ended as a whole, or is about to, if `stat` is what it says: with its first thread all others. Where that is not known
    /// by the deadline, it has not.
    pub fn is_over(&self, stat: &Stat, deadline: &Deadline) -> Result<bool, Errno> {
        if !stat.is_dead() {
            return Ok(false);
        }
        let listed = unless_gone(self.threads())?.unwrap_or_default();
        for tid in &listed {
            let thread = unless_gone(self.thread_stat(*tid))?;
            if deadline.has_passed() || thread.is_some_and(|thread| !thread.is_dead() && !thread.is_exiting) {
                return Ok(false);
            }
        }
        // One that ended just now may have made another before.
        let (Some(now), Some(stat)) = (unless_gone(self.threads())?, unless_gone(self.stat())?) else { return Ok(true) };
        Ok(now.iter().all(|tid| listed.binary_search(tid).is_ok()) && stat.threads <= now.len())
    }

    /// What `/proc/PID/task/TID/stat` says.
    pub fn thread_stat(&self, tid: i32) -> Result<Stat, Errno> {
        self.read_of_thread(tid, "stat", Stat::parse)?.ok_or(Errno::EINVAL)
    }

    /// Its thread group and user ids.
    pub fn status(&self) -> Result<Status, Errno> {
        self.read("status", Status::parse)?.ok_or(Errno::EINVAL)
    }

    /// Its arguments. It can write anything there (PR_SET_MM_ARG_START), so they only ever narrow a choice.
    pub fn arguments(&self) -> Result<Vec<Vec<u8>>, Errno> {
        self.read("cmdline", |bytes| {
            let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
            bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
        })
    }

    /// The path of its executable as seen from here.
    pub fn executable(&self) -> Result<PathBuf, Errno> {
        sys::read_link(&self.dir, c"exe").map(|path| OsString::from_vec(path).into())
    }

    /// The file that it runs, which may be another than the one now at that path.
    pub fn executable_file(&self) -> Result<FileId, Errno> {
        foreign::file_id(&self.dir, c"exe")
    }

    /// Its threads, lowest number first.
    pub fn threads(&self) -> Result<Vec<i32>, Errno> {
        let entries = sys::list(self.open_dir("task")?)?;
        let mut tids: Vec<i32> = entries.iter().filter_map(|entry| number(entry.name.to_bytes())).collect();
        tids.sort_unstable();
        Ok(tids)
    }

    /// Whether one of its open descriptors, of the first 65,536, is of this.
    pub fn holds(&self, what: &[u8]) -> Result<bool, Errno> {
        let dir = self.open_dir("fd")?;
        let (mut is_held, mut count) = (false, 0);
        sys::for_each(&dir, |entry| {
            is_held = sys::read_link(&dir, &entry.name).is_ok_and(|link| link == what);
            count += 1;
            !is_held && count < MOST_DESCRIPTORS
        })?;
        Ok(is_held)
    }

    /// Its open descriptors that are of KVM's, and what each is of, such as `anon_inode:kvm-vcpu:0`.
    ///
    /// A VMM can have a million others, of names of 4 KiB.
    ///
    /// # Errors
    /// ETIMEDOUT if not all could be looked at by the deadline.
    pub fn descriptors_of_kvm(&self, deadline: &Deadline) -> Result<Vec<(u64, Vec<u8>)>, Errno> {
        let dir = self.open_dir("fd")?;
        let mut found = Vec::new();
        sys::for_each(&dir, |entry| {
            let what = sys::read_link(&dir, &entry.name).ok().filter(|what| what.starts_with(b"anon_inode:kvm-"));
            found.extend(what.and_then(|what| Some((number(entry.name.to_bytes())?, what))));
            !deadline.has_passed()
        })?;
        if deadline.has_passed() { Err(Errno::ETIMEDOUT) } else { Ok(found) }
    }

    /// The system call that thread `tid` is in, `None` while it runs: number, then arguments (proc_pid_syscall(5)).
    pub fn system_call(&self, tid: i32) -> Result<Option<Vec<u64>>, Errno> {
        self.read_of_thread(tid, "syscall", parse_system_call)
    }

    /// The groups that thread `tid` is in.
    pub fn membership(&self, tid: i32) -> Result<Membership, Errno> {
        self.read_of_thread(tid, "cgroup", Membership::parse)
    }

    /// The processes that thread `tid` started and that still run; none where the kernel keeps no such list (CONFIG_PROC_CHILDREN).
    pub fn children_of(&self, tid: i32) -> Vec<i32> {
        self.read_of_thread(tid, "children", |list| words(list).filter_map(number).collect()).unwrap_or_default()
    }

    fn open_dir(&self, name: &str) -> Result<OwnedFd, Errno> {
        openat(&self.dir, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
    }
}

/// The fields of `/proc/PID/stat` that matter here (proc_pid_stat(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The name, which the process chooses.
    pub name: Vec<u8>,
    /// One letter; Z and X are dead.
    pub state: u8,
    /// The parent's pid.
    pub parent: i32,
    /// Made by the kernel inside the process: never a vCPU, whatever its registers say.
    pub is_user_worker: bool,
    /// On its way out, which takes a large guest's VMM a while.
    pub is_exiting: bool,
    /// How many threads its process has.
    pub threads: usize,
    /// Start time in clock ticks since boot: with the pid, the identity of a process.
    pub start: u64,
    /// Where its code and its stack begin: the same for all who share its memory, and for who was forked from them.
    pub memory: (u64, u64),
    /// Time spent running a guest, in clock ticks: above 0 for vCPU threads only, and not counted by every kind of KVM.
    pub guest_time: u64,
}

impl Stat {
    /// Parses a stat line. The name may hold anything, spaces and brackets too, so the last `)` ends it.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let open = line.iter().position(|byte| *byte == b'(')?;
        let close = line.iter().rposition(|byte| *byte == b')')?;
        // proc_pid_stat(5) counts from 1 and the state is field 3.
        let mut fields = (3..).zip(line.get(close + 2..)?.split(u8::is_ascii_whitespace));
        let mut field = |n: usize| fields.find(|(number, _)| *number == n).map(|(_, field)| field);
        let (state, parent) = (*field(3)?.first()?, number(field(4)?)?);
        let flags: u64 = number(field(9)?)?;
        Some(Self {
            name: line.get(open + 1..close)?.to_vec(),
            state,
            parent,
            is_user_worker: flags & USER_WORKER != 0,
            is_exiting: flags & EXITING != 0,
            threads: number(field(20)?)?,
            start: number(field(22)?)?,
            memory: (number(field(26)?)?, number(field(28)?)?),
            guest_time: number(field(43)?)?,
        })
    }

    /// Whether the thread has ended and only waits to be reaped. A process is not over with its first one: the others run on, and it is
    /// shown as a zombie all the same (pthread_exit(3), NOTES).
    pub fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

/// The lines of `/proc/PID/status` that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The process that a thread belongs to.
    pub thread_group: i32,
    /// Real, effective, saved and file system user id.
    pub uids: [u32; 4],
    /// It is in a pid namespace below the one that this /proc shows, and so bears a number in each (Linux 4.1).
    pub is_nested: bool,
}

impl Status {
    /// Parses the file.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let line = |key: &[u8]| text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(key));
        let uids: Vec<u32> = words(line(b"Uid:")?).filter_map(number).collect();
        Some(Self {
            thread_group: number(words(line(b"Tgid:")?).next()?)?,
            uids: uids.try_into().ok()?,
            is_nested: words(line(b"NSpid:")?).count() > 1,
        })
    }
}

/// `/proc/TID/cgroup`: the group of each hierarchy that a thread is in (cgroups(7)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership(Vec<(Vec<String>, PathBuf)>);

impl Membership {
    /// Parses the file: `id:controllers:path` a line; v2's has no controllers. A line that is no such thing is passed over.
    pub fn parse(text: &[u8]) -> Self {
        let line = |line: &[u8]| {
            let mut parts = line.splitn(3, |byte| *byte == b':');
            let controllers = std::str::from_utf8(parts.nth(1)?).ok()?;
            let path = PathBuf::from(OsString::from_vec(parts.next()?.to_vec()));
            Some((controllers.split(',').map(str::to_owned).collect(), path))
        };
        Self(text.split(|byte| *byte == b'\n').filter_map(line).collect())
    }

    /// The path within the v1 hierarchy that carries `controller`.
    pub fn v1(&self, controller: &str) -> Option<&Path> {
        self.0.iter().find(|(names, _)| names.iter().any(|name| name == controller)).map(|(_, path)| path.as_path())
    }

    /// The path within the v2 hierarchy, whose line names no controller.
    pub fn v2(&self) -> Option<&Path> {
        self.v1("")
    }
}

/// `NR ARG0 ARG1 …` with the arguments in hex; `running` and `-1 …` are no system call.
fn parse_system_call(text: &[u8]) -> Option<Vec<u64>> {
    let mut words = words(text);
    let first = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let argument = |word: &[u8]| u64::from_str_radix(std::str::from_utf8(word).ok()?.strip_prefix("0x")?, 16).ok();
    std::iter::once(Some(first)).chain(words.map(argument)).collect()
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// A decimal number, white space around it allowed.
pub fn number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::testing::{Fake, FakeProc, in_a_minute};

    #[test]
    fn the_kernels_version_and_file_systems_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let proc = Proc::new(dir.path());
        assert_eq!((proc.kernel_release(), proc.knows_file_system("debugfs")), (None, None));
        std::fs::create_dir_all(dir.path().join("sys/kernel")).unwrap();
        for (text, release) in [("6.18.44-fc-v595\n", Some((6, 18))), ("5.10-rc1\n", Some((5, 10))), ("six\n", None)] {
            std::fs::write(dir.path().join("sys/kernel/osrelease"), text).unwrap();
            assert_eq!(proc.kernel_release(), release, "{text}");
        }
        std::fs::write(dir.path().join("filesystems"), "nodev\tdebugfs\n\text4\n").unwrap();
        assert_eq!(proc.knows_file_system("debugfs"), Some(true));
        assert_eq!(proc.knows_file_system("ext4"), Some(true));
        assert_eq!(proc.knows_file_system("debug"), Some(false));
    }

    // From a QEMU 7.2 under KVM on Linux 6.18: a vCPU thread, and KVM's own worker in the same process.
    const VCPU: &[u8] =
        b"2841 (qemu-system-x86) S 2830 2830 1063 0 -1 138412224 6 0 0 0 0 0 0 0 20 0 6 0 23331 506638336 10381 \
        18446744073709551615 93957039710208 93957045570645 140735734681680 0 0 0 2147219511 4100 16963 1 0 0 -1 0 0 0 0 7 0 \
        93957048682744 93957053886896 93957842563072 140735734684187 140735734684368 140735734684368 140735734685660 0\n";
    const WORKER: &[u8] =
        b"2845 (kvm-nx-lpage-re) S 2830 2830 1063 0 -1 138428608 0 0 0 0 0 0 0 0 20 0 6 0 23335 506638336 10381 \
        18446744073709551615 93957039710208 93957045570645 140735734681680 0 0 0 2147221247 4100 16963 1 0 0 -1 1 0 0 0 0 0 \
        93957048682744 93957053886896 93957842563072 140735734684187 140735734684368 140735734684368 140735734685660 0\n";

    #[test]
    fn a_stat_line_tells_start_parent_guest_time_and_kernel_workers() {
        let vcpu = Stat::parse(VCPU).unwrap();
        assert_eq!((vcpu.parent, vcpu.start, vcpu.guest_time), (2830, 23331, 7));
        assert!(!vcpu.is_user_worker && !vcpu.is_dead());
        let worker = Stat::parse(WORKER).unwrap();
        assert!(worker.is_user_worker);
        assert_eq!(worker.guest_time, 0);
    }

    #[test]
    fn a_name_made_to_look_like_a_stat_line_fools_nobody() {
        let forged = String::from_utf8(VCPU.to_vec()).unwrap().replace("(qemu-system-x86)", "(a) R 1 (b)");
        let stat = Stat::parse(forged.as_bytes()).unwrap();
        assert_eq!((stat.name.as_slice(), stat.parent), (b"a) R 1 (b".as_slice(), 2830));
    }

    #[test]
    fn half_a_stat_line_is_none() {
        for end in [0, 10, 25, 60, 100] {
            assert_eq!(Stat::parse(&VCPU[..end]), None);
        }
        assert_eq!(Stat::parse(b") ("), None);
    }

    #[test]
    fn status_gives_the_thread_group_all_four_user_ids_and_nesting() {
        let status = |nspid: &str| {
            let text = format!("Name:\tqemu\nTgid:\t2834\nPid:\t2841\nUid:\t0\t1\t2\t3\nGid:\t0\t0\t0\t0\nNSpid:{nspid}\n");
            Status::parse(text.as_bytes())
        };
        let expected = Status { thread_group: 2834, uids: [0, 1, 2, 3], is_nested: false };
        assert_eq!(status("\t2841"), Some(expected.clone()));
        assert_eq!(status("\t2841\t1"), Some(Status { is_nested: true, ..expected }));
        assert_eq!(Status::parse(b"Tgid:\t1\nUid:\t0\t0\t0\nNSpid:\t1\n"), None);
    }

    #[test]
    fn the_host_is_told_from_a_container_by_numbers_and_mounts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        std::fs::create_dir(dir.path().join("self")).unwrap();
        std::fs::create_dir(dir.path().join("1")).unwrap();
        let status = |nspid: &str| format!("Tgid:\t7\nUid:\t0\t0\t0\t0\nNSpid:\t{nspid}\n");
        let proc = Proc::new(dir.path());
        assert!(!proc.in_host_namespaces(), "nothing can be seen");
        write("1/mountinfo", "22 27 0:21 / /proc rw - proc proc rw\n23 27 0:22 / /sys rw - sysfs sysfs rw\n");
        write("self/mountinfo", "23 27 0:22 / /sys rw - sysfs sysfs rw\n");
        write("self/status", &status("7"));
        assert!(proc.in_host_namespaces());
        write("self/status", &status("7\t1"));
        assert!(!proc.in_host_namespaces(), "a pid namespace of its own");
        write("self/status", &status("7"));
        write("self/mountinfo", "43 42 0:22 / /sys rw - sysfs sysfs rw\n");
        assert!(!proc.in_host_namespaces(), "a mount namespace of its own");
    }

    #[test]
    fn a_membership_knows_each_hierarchy_by_its_controllers() {
        let groups = Membership::parse(b"9:name=systemd:/\n3:cpu,cpuacct:/a:b\n2:memory:/m\n0::/u\nrubbish\n");
        assert_eq!(groups.v1("cpuacct"), Some(Path::new("/a:b")));
        assert_eq!(groups.v1("memory"), Some(Path::new("/m")));
        assert_eq!(groups.v1("cpuset"), None);
        assert_eq!(groups.v2(), Some(Path::new("/u")));
        assert_eq!(Membership::parse(b"2:memory:/m\n").v2(), None);
    }

    #[test]
    fn a_running_thread_is_in_no_system_call() {
        assert_eq!(parse_system_call(b"running\n"), None);
        assert_eq!(parse_system_call(b"-1 0x7ffd 0x7f24\n"), None);
        assert_eq!(parse_system_call(b"16 0xf 0xae80 0x0 0x0 0x5 0x6 0x7 0x8\n").unwrap()[..3], [16, 0xf, 0xae80]);
    }

    #[test]
    fn a_process_is_over_with_all_its_threads_and_not_as_long_as_it_has_more_than_are_listed() {
        let host = FakeProc::new();
        let ended = Fake { threads: vec![101], state: 'Z', ..Fake::default() };
        host.add(&ended);
        let (proc, patient) = (host.proc(), in_a_minute());
        let process = proc.process(100).unwrap().unwrap();
        let is_over = |deadline: &Deadline| process.is_over(&process.stat().unwrap(), deadline).unwrap();
        assert!(is_over(&patient));
        assert!(!is_over(&Deadline::after(Instant::now(), Duration::ZERO)), "nobody knows in time");
        let stat = |path: &str| host.dir.path().join(path).join("stat");
        std::fs::copy(stat("100"), host.dir.path().join("before")).unwrap();
        // One thread after the other makes its successor and ends: one of them always lives, whichever are listed.
        host.add(&Fake { threads: vec![101, 102, 103], ..ended.clone() });
        std::fs::remove_dir_all(host.dir.path().join("100/task/102")).unwrap();
        std::fs::remove_dir_all(host.dir.path().join("100/task/103")).unwrap();
        assert!(!is_over(&patient), "two of four are listed");
        std::fs::copy(host.dir.path().join("before"), stat("100")).unwrap();
        assert!(is_over(&patient));
        let live = std::fs::read_to_string(stat("100/task/101")).unwrap().replace(" Z ", " S ");
        std::fs::write(stat("100/task/101"), live.as_str()).unwrap();
        assert!(!is_over(&patient), "one runs on");
        // Flags are the ninth field.
        std::fs::write(stat("100/task/101"), live.replace(" -1 64 ", " -1 68 ")).unwrap();
        assert!(is_over(&patient), "it is on its way out");
    }

    #[test]
    fn of_a_processs_descriptors_those_of_kvm_are_kept_and_not_all_by_the_deadline_is_an_error() {
        let host = FakeProc::new();
        host.add(&Fake::default());
        let fd = |number: usize| host.dir.path().join(format!("100/fd/{number}"));
        std::os::unix::fs::symlink("anon_inode:kvm-vcpu:3", fd(3)).unwrap();
        std::os::unix::fs::symlink(format!("/{}", "x".repeat(4000)), fd(4)).unwrap();
        let process = host.proc().process(100).unwrap().unwrap();
        let in_time = in_a_minute();
        assert_eq!(process.descriptors_of_kvm(&in_time), Ok(vec![(3, b"anon_inode:kvm-vcpu:3".to_vec())]));
        assert_eq!(process.holds(b"anon_inode:kvm-vcpu:3"), Ok(true));
        assert_eq!(process.holds(b"anon_inode:kvm-vm"), Ok(false));
        assert_eq!(process.descriptors_of_kvm(&Deadline::after(Instant::now(), Duration::ZERO)), Err(Errno::ETIMEDOUT));
    }

    #[test]
    fn a_mount_table_that_a_tenant_made_long_is_read_to_its_end() {
        let host = FakeProc::new();
        std::fs::create_dir(host.dir.path().join("self")).unwrap();
        let line = format!("1 2 0:3 / /m/{} rw - tmpfs tmpfs rw\n", "\\040".repeat(3700));
        let table = format!("{}4 2 0:4 / /cpu rw - cgroup cgroup rw,cpu\n", line.repeat(1200));
        assert!(table.len() > 16 << 20);
        std::fs::write(host.dir.path().join("self/mountinfo"), table).unwrap();
        let ids = host.proc().mounts(|line| number::<u64>(words(line).next()?)).unwrap();
        assert_eq!((ids.len(), ids.last()), (1201, Some(&4)));
    }

    #[test]
    fn our_own_process_can_be_read_whole() {
        let proc = Proc::new("/proc");
        let own = i32::try_from(std::process::id()).unwrap();
        let process = proc.process(own).unwrap().unwrap();
        assert!(process.threads().unwrap().contains(&own));
        assert_eq!(process.status().unwrap().thread_group, own);
        assert_eq!(Some(process.stat().unwrap().start), proc.start_of(own).unwrap());
        assert!(process.executable().unwrap().is_absolute());
        assert!(!process.arguments().unwrap().is_empty());
        assert!(process.descriptors_of_kvm(&in_a_minute()).unwrap().is_empty());
        assert!(proc.process(0).unwrap().is_none() && proc.process(-1).unwrap().is_none());
        let stat = std::fs::read_to_string("/proc/stat").unwrap();
        let btime: u64 = stat.lines().find_map(|line| line.strip_prefix("btime ")).unwrap().parse().unwrap();
        assert!(proc.boot_time().unwrap().abs_diff(btime) <= 1, "the kernel's own word for it");
    }
}
