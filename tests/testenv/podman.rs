//! podman, for tests in a virtual machine of their own: an engine on storage of this environment's.
//!
//! It looks for hooks where it does by itself.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::env::{Env, wait_until};

/// podman on storage of this environment's own.
pub(crate) struct Podman<'e> {
    pub env: &'e Env,
    /// A name or a path.
    pub runtime: String,
    pub driver: Driver,
}

/// Who makes the groups of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    Cgroupfs,
    Systemd,
}

impl Driver {
    /// Those that this host can have, what its engines use by themselves first.
    pub(crate) fn all() -> &'static [Driver] {
        let has_systemd = Path::new("/run/systemd/system").is_dir();
        if has_systemd { &[Driver::Systemd, Driver::Cgroupfs] } else { &[Driver::Cgroupfs] }
    }

    fn word(self) -> &'static str {
        match self {
            Driver::Cgroupfs => "cgroupfs",
            Driver::Systemd => "systemd",
        }
    }
}

impl<'e> Podman<'e> {
    /// With the driver that is usual here.
    pub(crate) fn new(env: &'e Env, runtime: &str) -> Podman<'e> {
        Podman { env, runtime: runtime.to_owned(), driver: Driver::all()[0] }
    }
}

impl Podman<'_> {
    /// The runtimes here that start containers on this host.
    pub(crate) fn runtimes() -> Vec<&'static str> {
        let is_there = |runtime: &&str| Command::new(runtime).arg("--version").output().is_ok();
        let starts = |runtime: &&str| *runtime != "crun" || !controllers_on_v2_beside_v1();
        let runtimes: Vec<&str> = ["crun", "runc"].into_iter().filter(is_there).filter(starts).collect();
        assert!(Command::new("podman").arg("--version").output().is_ok() && !runtimes.is_empty(), "podman and a runtime");
        runtimes
    }

    pub(crate) fn command(&self) -> Command {
        let dir = |name: &str| self.env.dir.join(name).display().to_string();
        let mut command = Command::new("podman");
        command.args([
            "--root",
            &dir("storage"),
            "--runroot",
            &dir("run"),
            "--storage-driver",
            "vfs",
            "--events-backend",
            "file",
        ]);
        command.args(["--cgroup-manager", self.driver.word(), "--runtime", &self.runtime]);
        command.env("TMPDIR", &self.env.dir);
        command
    }

    /// This environment's own group, in the words of its cgroup driver.
    pub(crate) fn cgroup_parent(&self) -> String {
        match self.driver {
            Driver::Systemd => format!("{}.slice", self.env.slice()),
            Driver::Cgroupfs => self.env.top(),
        }
    }

    /// What it prints, without the last newline. Into files: a container's monitor may keep a pipe for as long as the container lives.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> String {
        let [out, err] = ["podman.out", "podman.err"].map(|name| self.env.dir.join(name));
        let into = |path: &Path| fs::File::create(path).unwrap();
        let status = self.command().args(args).stdout(into(&out)).stderr(into(&err)).status().unwrap();
        assert!(status.success(), "{} podman {args:?}: {}", self.runtime, fs::read_to_string(err).unwrap());
        fs::read_to_string(out).unwrap().trim().to_owned()
    }

    /// Its monitor has each container cleaned up once more after its end.
    pub(crate) fn wait_for_the_end(env: &Env) {
        wait_until("what cleans up behind the containers to have ended", || !is_anybody_at_work_for(env));
        if Path::new("/run/systemd/system").is_dir() {
            Command::new("systemctl").args(["stop", &format!("{}.slice", env.slice())]).status().unwrap();
        }
    }
}

/// Whether a process of podman's is left.
fn is_anybody_at_work_for(env: &Env) -> bool {
    let arguments = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).unwrap_or_default();
    let all = fs::read_dir("/proc").unwrap().flatten().map(arguments);
    all.into_iter().any(|arguments| String::from_utf8_lossy(&arguments).contains(&env.name))
}

/// crun starts nothing on a host that has controllers on both.
fn controllers_on_v2_beside_v1() -> bool {
    let on_v2 = fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers").unwrap_or_default();
    !on_v2.trim().is_empty()
}
