//! Made-up hosts for the unit tests: a /proc and cgroup hierarchies in temporary directories, for any user.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::cgroup::group::GroupPath;
use crate::cgroup::mounts::{Hierarchy, Mounts, Top, Version};
use crate::cgroup::site::{Level, Site};
use crate::cgroup::{Controller, Part};
use crate::deadline::Deadline;
use crate::proc::{Membership, Proc, Process};
use crate::vmm::kinds::Role;
use crate::vmm::vcpu::{Proof, Vcpu, Vcpus};
use crate::vmm::{Member, Thread, Vm};

/// When the made-up host booted, in seconds since the epoch.
pub(crate) const BOOT: u64 = 1_000_000;

/// The same to the half second, so that no test stands on the edge of one.
const BOOT_EXACTLY: Duration = Duration::from_millis(BOOT * 1000 + 500);

/// A deadline that no test comes near.
pub(crate) fn in_a_minute() -> Deadline {
    Deadline::after(Instant::now(), Duration::from_secs(60))
}

/// A /proc in a temporary directory.
#[derive(Debug)]
pub(crate) struct FakeProc {
    pub(crate) dir: tempfile::TempDir,
}

/// A process to be put there; the defaults are those of one of our own.
#[derive(Debug, Clone)]
pub(crate) struct Fake {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) state: char,
    /// In clock ticks since boot.
    pub(crate) start: u64,
    pub(crate) executable: PathBuf,
    pub(crate) arguments: String,
    pub(crate) uids: [u32; 4],
    /// Its numbers in the pid namespaces that it is in.
    pub(crate) numbers: String,
    pub(crate) threads: Vec<i32>,
    pub(crate) children: Vec<i32>,
    /// Where its code and its stack begin.
    pub(crate) memory: u64,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            pid: 100,
            parent: 1,
            state: 'S',
            start: 6000,
            executable: "/bin/sh".into(),
            arguments: String::new(),
            uids: [nix::unistd::getuid().as_raw(); 4],
            numbers: "100".into(),
            threads: vec![],
            children: vec![],
            memory: 1,
        }
    }
}

impl FakeProc {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let uptime = now.checked_sub(BOOT_EXACTLY).unwrap();
        std::fs::write(dir.path().join("uptime"), format!("{:.2} 1.00\n", uptime.as_secs_f64())).unwrap();
        Self { dir }
    }

    pub(crate) fn proc(&self) -> Proc {
        Proc::new(self.dir.path())
    }

    /// A file that an executable can be.
    pub(crate) fn executable(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join("bin").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "#!").unwrap();
        path
    }

    pub(crate) fn add(&self, fake: &Fake) {
        let dir = self.dir.path().join(fake.pid.to_string());
        for thread in [fake.pid].iter().chain(&fake.threads) {
            let task = dir.join("task").join(thread.to_string());
            std::fs::create_dir_all(&task).unwrap();
            Self::write_common(fake, *thread, &task);
            if *thread != fake.pid {
                // A fake that is put there once more keeps its threads.
                let _ = symlink(&task, self.dir.path().join(thread.to_string()));
            }
        }
        std::fs::create_dir_all(dir.join("fd")).unwrap();
        Self::write_common(fake, fake.pid, &dir);
        std::fs::write(dir.join("cmdline"), fake.arguments.replace(' ', "\0") + "\0").unwrap();
        let _ = std::fs::remove_file(dir.join("exe"));
        symlink(&fake.executable, dir.join("exe")).unwrap();
        let children: Vec<String> = fake.children.iter().map(|child| format!("{child} ")).collect();
        std::fs::write(dir.join(format!("task/{}/children", fake.pid)), children.concat()).unwrap();
    }

    fn write_common(fake: &Fake, thread: i32, dir: &Path) {
        let zeros = "0 ".repeat(19);
        let Fake { parent, state, start, memory, .. } = fake;
        let count = fake.threads.len() + 1;
        let stat = format!(
            "{thread} (any) {state} {parent} 1 1 0 -1 64 0 0 0 0 0 0 0 0 20 0 {count} 0 {start} 1 1 0 {memory} 0 {memory} {zeros}0 0\n"
        );
        std::fs::write(dir.join("stat"), stat).unwrap();
        let [real, effective, saved, fs] = fake.uids;
        let status = format!("Tgid:\t{}\nUid:\t{real}\t{effective}\t{saved}\t{fs}\nNSpid:\t{}\n", fake.pid, fake.numbers);
        std::fs::write(dir.join("status"), status).unwrap();
        std::fs::write(dir.join("cgroup"), "1:cpu:/\n").unwrap();
    }
}

/// A v1 hierarchy of its own for each controller, mounted at `/c/<controller>`; nothing of it stands.
pub(crate) fn hierarchy(controllers: &[Controller]) -> Rc<Hierarchy> {
    mounted_at(Path::new("/c"), controllers)
}

/// A v1 hierarchy below `root`, whose directory is made if `root` is a real one.
pub(crate) fn mounted_at(root: &Path, controllers: &[Controller]) -> Rc<Hierarchy> {
    let names: Vec<&str> = controllers.iter().map(|one| one.name()).collect();
    let mount = root.join(names.join(","));
    let _ = std::fs::create_dir_all(&mount);
    Rc::new(Hierarchy { version: Version::V1, controllers: controllers.to_vec(), mount, root: "/".into(), top: Top::default() })
}

/// Cgroup hierarchies in a temporary directory, each controller by itself.
pub(crate) fn mounts(dir: &Path) -> Mounts {
    let hierarchies = Controller::ALL.iter().map(|one| mounted_at(dir, &[*one])).collect();
    Mounts { hierarchies, ..Mounts::default() }
}

/// A thread that is in the groups of `cgroup`, written as in /proc/PID/cgroup with `;` for line ends.
pub(crate) fn thread(tid: i32, cgroup: &str) -> Thread {
    Thread {
        tid,
        start: 500,
        name: b"qemu".to_vec(),
        is_user_worker: false,
        guest_time: 0,
        groups: Some(Membership::parse(cgroup.replace(';', "\n").as_bytes())),
    }
}

/// A QEMU 100 with these threads, of which one is its only vCPU.
pub(crate) fn vm(threads: Vec<Thread>, vcpu: i32) -> Vm {
    let vcpu = Vcpu { tid: vcpu, start: 500, index: Some(0), proof: Proof::Name };
    Vm {
        kind: "qemu".into(),
        processes: vec![Member { process: Process::nobody(100), start: 400, role: Role::Vmm, threads }],
        vcpus: Vcpus { threads: vec![vcpu], expected: Some(1), parked: 0 },
        is_shim: false,
        shims: Vec::new(),
        claims: Vec::new(),
        containers: Vec::new(),
        brought_in: None,
    }
}

/// The v2 hierarchy with these controllers, mounted at `/c2`; nothing of it stands.
pub(crate) fn unified(controllers: &[Controller]) -> Rc<Hierarchy> {
    unified_at(Path::new("/c2"), controllers)
}

/// The same, mounted elsewhere.
pub(crate) fn unified_at(mount: &Path, controllers: &[Controller]) -> Rc<Hierarchy> {
    let (controllers, mount) = (controllers.to_vec(), mount.into());
    Rc::new(Hierarchy { version: Version::V2, controllers, mount, root: "/".into(), top: Top::default() })
}

/// A v2 group in a temporary directory that passes these controllers on, with its own threads.
pub(crate) fn make_v2(mount: &Path, group: &str, subtree: &str, threads: &str) {
    let dir = mount.join(group);
    std::fs::create_dir_all(&dir).unwrap();
    // The root alone has no type.
    if !group.is_empty() {
        let kind = if group.ends_with("vcpu") { "threaded\n" } else { "domain\n" };
        std::fs::write(dir.join("cgroup.type"), kind).unwrap();
    }
    let files = [("cgroup.subtree_control", subtree), ("cgroup.threads", threads), ("cgroup.procs", threads)];
    for (file, text) in files {
        std::fs::write(dir.join(file), format!("{text}\n")).unwrap();
    }
}

/// A site of our own.
pub(crate) fn site(part: Part, group: GroupPath, levels: Vec<Level>) -> Site {
    Site { part, group, levels, is_adopted: false, pod: Vec::new(), neighbours: Vec::new(), members: Vec::new() }
}
