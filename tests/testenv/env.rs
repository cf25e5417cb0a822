//! One environment: a name, a directory and a configuration of its own.
//!
//! Tests run side by side on one host whose cgroups they share, so everything a test makes carries a name no other test
//! has (`kch-test-<pid>-<n>`): its groups, its sandboxes, its directory. That name is also all the clean-up goes by.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::cgroup::{self, Group, everywhere};
use super::dump::Dump;
use super::hierarchy::{CONTROLLERS, Hierarchy, Version};
use super::hook::Hook;
use super::limits::{Limits, limits_at};
use super::log::LogSocket;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// What a test needs to run the hook and to judge what it did; on drop the host is as it was.
pub(crate) struct Env {
    /// `kch-test-<pid>-<nnn>`: in the name of every group, sandbox and directory of this environment.
    pub name: String,
    pub dir: PathBuf,
    pub log: LogSocket,
    watched: Mutex<Vec<i32>>,
}

impl Env {
    /// `None`, having said why on stderr, where the host lacks what every test here needs.
    pub(crate) fn new() -> Option<Env> {
        if !nix::unistd::Uid::effective().is_root() {
            return skipped("not root");
        }
        if let Some(controller) = CONTROLLERS.into_iter().find(|controller| Hierarchy::of(controller).is_none()) {
            return skipped(&format!("no {controller} controller"));
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Some(Env::named(&format!("kch-test-{}-{number:03}", std::process::id())))
    }

    /// The same, for a test whose guest must run on KVM: threads without names, and KVM's own word on which are vCPUs.
    pub(crate) fn with_kvm() -> Option<Env> {
        let env = Env::new()?;
        if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
            return skipped("no /dev/kvm");
        }
        Some(env)
    }

    /// The same, for a test of what only one interface has: this controller must be behind it.
    pub(crate) fn with(controller: &str, version: Version) -> Option<Env> {
        let env = Env::new()?;
        if Hierarchy::of(controller).is_none_or(|hierarchy| hierarchy.version != version) {
            return skipped(&format!("no {controller} on cgroup {}", if version == Version::V1 { "v1" } else { "v2" }));
        }
        Some(env)
    }

    pub(crate) fn named(name: &str) -> Env {
        cgroup::shared_parents_before();
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("cannot make {}: {error}", dir.display()));
        set_mode(&dir, 0o755);
        let env = Env { name: name.to_owned(), log: LogSocket::bind(&dir.join("log")), dir, watched: Mutex::default() };
        for (root, mode) in [("vm", 0o755), ("sbs", 0o755), ("kata", 0o755), ("bundles", 0o755)] {
            fs::create_dir(env.dir.join(root)).unwrap();
            set_mode(&env.dir.join(root), mode);
        }
        env.configure("");
        env
    }

    /// Writes the configuration: the roots that every run here needs, then what the test adds (its tables last).
    ///
    /// No test is to fail by its machine being slow: where it is not about the deadline, the hook has plenty of time.
    pub(crate) fn configure(&self, more: &str) {
        let deadline = if more.contains("deadline-ms") { "" } else { "deadline-ms = 30000\n" };
        write_file(&self.config(), 0o600, &format!("{}{deadline}{more}", self.roots()));
    }

    /// The three settings that keep a run inside this environment.
    pub(crate) fn roots(&self) -> String {
        let dir = self.dir.display();
        format!(
            "runtime-dirs = [\"{dir}/vm\", \"{dir}/sbs\", \"{dir}/kata\"]\nstate-dir = \"{dir}/state\"\nlog-socket = \"{dir}/log\"\n"
        )
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The runtime's directory of a sandbox below one of the three configured roots (`vm`, `sbs`, `kata`).
    pub(crate) fn runtime_dir(&self, root: &str, sandbox: &str) -> PathBuf {
        self.dir.join(root).join(sandbox)
    }

    /// Makes the runtime's directory of a sandbox as Kata does: root's, and nobody else's to write.
    pub(crate) fn make_runtime_dir(&self, root: &str, sandbox: &str) -> PathBuf {
        let dir = self.runtime_dir(root, sandbox);
        fs::create_dir(&dir).unwrap();
        set_mode(&dir, 0o700);
        dir
    }

    /// The directory in every hierarchy below which this environment's groups live.
    pub(crate) fn top(&self) -> String {
        format!("/{}", self.name)
    }

    /// What the cgroupsPath of [`Env::bundle`] leads to: the path that its sandbox's groups are named by.
    pub(crate) fn group(&self) -> String {
        format!("{}/pod/kata_{}", self.top(), self.name)
    }

    /// Where the vCPU threads of that sandbox belong in the hierarchy of this controller.
    pub(crate) fn constrained(&self, controller: &str) -> Group {
        cgroup::constrained_at(&self.group(), controller)
    }

    /// Where the processes of that sandbox belong in the hierarchy that limits memory.
    pub(crate) fn unconstrained(&self) -> Group {
        cgroup::unconstrained_at(&self.group())
    }

    /// What that sandbox is limited to.
    pub(crate) fn limits(&self) -> Limits {
        limits_at(&self.group())
    }

    /// The pod's own group in the hierarchy of this controller, which the engine makes and the sandbox's cgroupsPath lies in.
    pub(crate) fn pod(&self, controller: &str) -> Group {
        Group::new(controller, &format!("{}/pod", self.top()))
    }

    /// None of this environment's groups is left in any hierarchy.
    #[track_caller]
    pub(crate) fn assert_no_groups(&self) {
        let left = cgroup::groups_named(&self.name);
        assert!(left.is_empty(), "groups are left: {left:?}");
    }

    /// The name of a top-level systemd slice of this environment, without `.slice`. No dashes: they would nest it.
    pub(crate) fn slice(&self) -> String {
        self.name.replace('-', "_")
    }

    /// A run of the hook, to be told more about before it starts.
    pub(crate) fn hook(&self, stage: &str) -> Hook<'_> {
        Hook::new(self, stage)
    }

    /// From now on the dumps of this environment say where this process is.
    pub(crate) fn watch(&self, pid: i32) {
        self.watched.lock().unwrap().push(pid);
    }

    pub(crate) fn watched(&self) -> Vec<i32> {
        self.watched.lock().unwrap().clone()
    }

    /// Everything the hook could have changed, to be compared with another dump.
    pub(crate) fn dump(&self) -> Dump {
        Dump::of(self)
    }
}

/// Makes a group in every hierarchy before the hook runs, as kubelet or Kata would have: not the hook's.
pub(crate) fn premake(path: &str) -> Vec<Group> {
    let groups = everywhere(path);
    groups.iter().for_each(Group::make);
    groups
}

impl Drop for Env {
    fn drop(&mut self) {
        remove_groups_named(&self.name);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Removes the groups whose path bears this environment's name, and the shared parents above them that are then empty.
/// Processes in them are dead by now, but the kernel may take a moment to agree.
pub(crate) fn remove_groups_named(name: &str) {
    let deadline = Instant::now() + PATIENCE;
    for group in cgroup::groups_named(name) {
        while group.path_on_host().exists() && !group.remove_tree() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    for shared in cgroup::SHARED_PARENTS.iter().flat_map(|path| everywhere(path)) {
        // rmdir alone: it takes away what nobody uses, and nothing that was there before this process.
        if !cgroup::shared_parents_before().contains(&shared) {
            let _ = fs::remove_dir(shared.path_on_host());
        }
    }
}

/// Says that a test did not run and why.
pub(crate) fn skipped<T>(reason: &str) -> Option<T> {
    say(&format!("skipped: {reason}"));
    None
}

/// Says something past the test harness, which swallows what a passing test prints.
pub(crate) fn say(text: &str) {
    // On a line of its own, whatever the harness has just written.
    let _ = std::io::stderr().write_all(format!("\n{text}\n").as_bytes());
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Copies a program that is to be run. By another process: a descriptor that is open for writing here, and that a thread beside
/// hands on to what it starts, keeps the copy from being run (ETXTBSY).
pub(crate) fn copy_program(from: impl AsRef<Path>, to: &Path) {
    let status = Command::new("install").args(["-m", "755"]).args([from.as_ref(), to]).status().unwrap();
    assert!(status.success(), "cannot copy {} to {}", from.as_ref().display(), to.display());
}

pub(crate) fn write_file(path: &Path, mode: u32, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    set_mode(path, mode);
}

/// How long anything may take that another process or the kernel is about to do. No measurement: it only turns a hang into a
/// message, and a slow machine takes many times longer than a fast one.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for what another process is about to do.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "still waiting for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
