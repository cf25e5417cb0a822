//! What is right and what is wrong with this host, for the hook: `check`.
//!
//! Each check looks at one thing, in places that are handed in, and changes nothing. What cannot be known here, or is not in use,
//! is `skipped` with the reason, and never `ok`.

mod containerd;
mod controllers;
mod cpuset;
mod crio;
mod hooks_d;
mod host;
mod kata;
mod kvm;
mod records;
mod registration;
mod unified;

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use serde::Serialize;

use crate::cgroup::mounts::Mounts;
use crate::proc::Proc;
use crate::{foreign, order};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// It works, but not as it could.
    Warning,
    /// The hook cannot do its work.
    Failure,
    /// It could not be looked at, or there is nothing to look at.
    Skipped,
}

impl State {
    /// As it is written in both outputs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
            Self::Skipped => "skipped",
        }
    }
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub id: &'static str,
    pub state: State,
    /// What was seen.
    pub detail: String,
    /// What to do, in one sentence; empty where nothing is to be done.
    pub fix: String,
}

impl Check {
    fn ok(id: &'static str, detail: impl Into<String>) -> Self {
        Self { id, state: State::Ok, detail: detail.into(), fix: String::new() }
    }

    fn warning(id: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { id, state: State::Warning, detail: detail.into(), fix: fix.into() }
    }

    fn failure(id: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { id, state: State::Failure, detail: detail.into(), fix: fix.into() }
    }

    fn skipped(id: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { id, state: State::Skipped, detail: detail.into(), fix: fix.into() }
    }
}

/// Where the things are that are looked at, so that tests can hand in others.
#[derive(Debug, Clone)]
pub struct Places {
    pub proc: Proc,
    /// Who alone is believed: root.
    pub owner: u32,
    /// Whether we are root of the host.
    pub is_root: bool,
    /// Whether we share the host's pid and mount namespaces.
    pub is_on_host: bool,
    /// The configuration that was named.
    pub config: Option<PathBuf>,
    /// The file that is running.
    pub binary: PathBuf,
    /// Where podman looks for hooks; of two files of one name the one in the later directory counts.
    pub hooks_dirs: Vec<PathBuf>,
    /// Where CRI-O's configuration lies.
    pub crio: PathBuf,
    /// containerd's configuration.
    pub containerd: PathBuf,
    /// Where Kata's configurations lie.
    pub kata: Vec<PathBuf>,
}

impl Places {
    /// Those of the host we run on.
    pub fn this(proc: Proc, owner: u32, is_root: bool, config: Option<PathBuf>) -> Self {
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
        Self {
            is_on_host: proc.in_host_namespaces(),
            proc,
            owner,
            is_root,
            config,
            binary: std::env::current_exe().unwrap_or_default(),
            hooks_dirs: paths(&["/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d"]),
            crio: "/etc/crio".into(),
            containerd: "/etc/containerd/config.toml".into(),
            kata: paths(&[
                "/etc/kata-containers",
                "/opt/kata/share/defaults/kata-containers",
                "/usr/share/defaults/kata-containers",
            ]),
        }
    }
}

/// Every check, as they are printed.
pub fn all(places: &Places) -> Vec<Check> {
    let (of_config, config) = host::config(places);
    let mounts = Mounts::read(&places.proc);
    let release = places.proc.kernel_release();
    let mut checks = vec![host::rights(places), of_config];

    checks.extend(controllers::all(mounts.as_ref(), controllers::is_read_only));
    let mounts = mounts.unwrap_or_default();
    checks.push(cpuset::parents(&mounts));
    checks.push(unified::controllers(&mounts));
    checks.push(unified::threaded(&mounts));
    checks.push(unified::favordynmods(&mounts, release));
    checks.push(unified::domain(&mounts, config.domain));
    checks.push(kvm::debugfs(&kvm::Seen::of(places, &mounts)));

    let asked = registration::Asked { binary: &places.binary, deadline: config.deadline };
    let hooks_d = hooks_d::survey(&places.hooks_dirs, &asked);
    let crio = crio::survey(&places.crio, &asked);
    let containerd = containerd::survey(&places.containerd, &asked);
    let by_crio = crio.as_ref().map(|crio| &crio.found);
    let by_containerd = containerd.as_ref().map(|containerd| &containerd.found);
    checks.push(registration::anywhere(&[("hooks.d", Some(&hooks_d)), ("CRI-O", by_crio), ("containerd", by_containerd)]));
    checks.push(hooks_d::check(&hooks_d, &places.hooks_dirs));
    checks.push(crio::check(crio.as_ref(), &places.crio));
    checks.push(containerd::check(containerd.as_ref(), &places.containerd));

    checks.push(kata::sandbox_cgroup_only(&places.kata, &mounts));
    checks.push(host::runtime_dirs(&config.runtime_dirs, places.owner));
    checks.push(host::log_socket(config.log_socket.as_deref()));
    checks.push(records::state_dir(&config.state_dir, places.owner));
    checks.push(records::leftovers(&config.state_dir));
    checks
}

/// A configuration of somebody else's, whose path root chose: links are followed, and nothing is waited for.
fn read(path: &Path) -> Result<String, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = File::from(openat(AT_FDCWD, path, flags, Mode::empty())?);
    let (bytes, _) = foreign::read_open(&file, 4 << 20)?;
    String::from_utf8(bytes).map_err(|_| Errno::EILSEQ)
}

/// The same as TOML, of which only some keys are looked at; the error says why not.
fn read_toml(path: &Path) -> Result<toml::Table, Unread> {
    let text = read(path).map_err(|errno| Unread::of(path, errno))?;
    let line =
        |error: &toml::de::Error| error.span().map_or(0, |span| text.get(..span.start).unwrap_or("").matches('\n').count() + 1);
    toml::from_str(&text).map_err(|error| Unread {
        why: format!("{}: line {}: {}", shown(path), line(&error), error.message().replace('\n', "; ")),
        errno: None,
    })
}

/// What could not be read, and why.
#[derive(Debug, Clone)]
struct Unread {
    why: String,
    errno: Option<Errno>,
}

impl Unread {
    fn of(path: &Path, errno: Errno) -> Self {
        Self { why: format!("{}: {errno}", shown(path)), errno: Some(errno) }
    }

    /// Whether it is not there at all.
    fn is_absent(&self) -> bool {
        matches!(self.errno, Some(Errno::ENOENT | Errno::ENOTDIR))
    }

    /// Whether another user could read it.
    fn is_forbidden(&self) -> bool {
        matches!(self.errno, Some(Errno::EACCES | Errno::EPERM))
    }
}

/// The files in a directory whose names end so, in the order of their names; none where there is no such directory.
fn list(dir: &Path, ending: &str) -> Result<Vec<PathBuf>, Unread> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(crate::error::errno_of(&error), Errno::ENOENT | Errno::ENOTDIR) => return Ok(Vec::new()),
        Err(error) => return Err(Unread::of(dir, crate::error::errno_of(&error))),
    };
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.as_os_str().as_bytes().ends_with(ending.as_bytes())).collect();
    order::sort(&mut paths);
    Ok(paths)
}

/// A path as text.
fn shown(path: &Path) -> String {
    foreign::as_text(path.as_os_str().as_bytes())
}

/// The first few of them, and how many more there are.
fn some(paths: &[impl AsRef<Path>]) -> String {
    const FEW: usize = 3;
    let few: Vec<String> = paths.iter().take(FEW).map(|path| shown(path.as_ref())).collect();
    match paths.len().checked_sub(FEW) {
        None | Some(0) => few.join(", "),
        Some(more) => format!("{} and {more} more", few.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn paths_are_shown_whatever_they_hold() {
        assert_eq!(shown(Path::new(OsStr::from_bytes(b"/a\xffb/\xc3\xa4"))), "/a\\xffb/ä");
        assert_eq!(some(&["/a"]), "/a");
        assert_eq!(some(&["/a", "/b", "/c", "/d", "/e"]), "/a, /b, /c and 2 more");
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        std::fs::write(&path, "a = 1\nb = \n").unwrap();
        assert!(read_toml(&path).unwrap_err().why.contains("x.toml: line 2: "));
        assert!(read_toml(&dir.path().join("gone")).unwrap_err().is_absent());
        std::fs::write(&path, "a = 1\n").unwrap();
        assert_eq!(read_toml(&path).unwrap().len(), 1);
    }
}
