//! podman, for tests in a virtual machine of their own: an engine on storage of this environment's.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::env::{Env, wait_until};

/// podman on storage of this environment's own.
pub(crate) struct Podman<'e> {
    pub env: &'e Env,
    pub runtime: &'static str,
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

    /// With the hooks as they are in the sources.
    pub(crate) fn command(&self) -> Command {
        let mut command = self.plain();
        command.args(["--hooks-dir", concat!(env!("CARGO_MANIFEST_DIR"), "/hooks.d")]);
        command
    }

    /// With the hooks of this host.
    pub(crate) fn plain(&self) -> Command {
        let dir = |name: &str| self.env.dir.join(name).display().to_string();
        let systemd = Path::new("/run/systemd/system").is_dir();
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
        command.args(["--cgroup-manager", if systemd { "systemd" } else { "cgroupfs" }, "--runtime", self.runtime]);
        command.env("TMPDIR", &self.env.dir);
        command
    }

    /// This environment's own group, in the words of its cgroup driver.
    pub(crate) fn cgroup_parent(&self) -> String {
        if Path::new("/run/systemd/system").is_dir() { format!("{}.slice", self.env.slice()) } else { self.env.top() }
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
