//! What can go wrong, each with everything a person needs to act on it: the verb, the path, the value, the errno.
//!
//! A hook's whole voice is one line on stderr and one in the log, read long after the container is gone. So an error names
//! what was tried on what, once, and carries no chain that somebody would have to unfold.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use thiserror::Error;

/// A failure of the hook itself. What merely is not there yet, or is nobody we know, is no error but a value.
#[derive(Debug, Error)]
pub enum Error {
    /// The state on stdin (or in `--state FILE`) cannot be used.
    #[error("OCI state: {0}")]
    State(String),
    /// The bundle's config.json of a container that is known to belong to a VM sandbox cannot be used.
    #[error("{path}: {why}", path = .path.display())]
    Bundle { path: PathBuf, why: String },
    /// The configuration file cannot be used.
    #[error("{path}: {why}", path = .path.display())]
    Config { path: PathBuf, why: String },
    /// linux.cgroupsPath cannot name a group.
    #[error("cgroupsPath {path:?}: {why}")]
    CgroupsPath { path: String, why: String },
    /// A container asks for CPU in a way that no kernel could grant.
    #[error("{what} {value:?}: {why}")]
    Demand { what: &'static str, value: String, why: String },
    /// A v1 cpuset above ours is empty, so that nothing can be put below it, and it is not ours to fill.
    #[error("{file} is empty in {path}, which is not ours to fill: write a list into it", path = .path.display())]
    EmptyCpuset { file: &'static str, path: PathBuf },
    /// Another live sandbox owns the group that this one would use.
    #[error("{path} belongs to sandbox {owner}: two sandboxes cannot share one cgroupsPath", path = .path.display())]
    Taken { path: PathBuf, owner: String },
    /// A system call on a path failed.
    #[error("{verb} {path}: {errno}{hint}", path = .path.display())]
    Path { verb: &'static str, path: PathBuf, errno: Errno, hint: String },
    /// The kernel refused a value.
    #[error("write {value:?} to {path}: {errno}{hint}", path = .path.display())]
    Write { path: PathBuf, value: String, errno: Errno, hint: String },
    /// What was done does not hold: the kernel said yes and the read-back said no.
    #[error("{0}")]
    Unsettled(String),
    /// Time ran out, or somebody asked us to stop.
    #[error("deadline of {ms} ms passed while about to {verb}")]
    Deadline { verb: &'static str, ms: u64 },
    /// Several things failed while cleaning up; each was passed over and the rest done.
    #[error("{}", join(.0))]
    Several(Vec<Error>),
    /// Undoing what was done failed as well: the first is why we undid, the rest is what is left.
    #[error("{cause}; and undoing: {}", join(.undo))]
    Undo { cause: Box<Error>, undo: Vec<Error> },
}

fn join(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// A failed system call on `path`. `verb` is what we did: "open", "read", "create".
    pub fn path(verb: &'static str, path: impl AsRef<Path>, errno: Errno) -> Self {
        Self::Path { verb, path: path.as_ref().to_path_buf(), errno, hint: String::new() }
    }

    /// A refused write of `value` to the file at `path`, with what the errno means there.
    pub fn write(path: impl AsRef<Path>, value: &str, errno: Errno) -> Self {
        let path = path.as_ref().to_path_buf();
        let hint = write_hint(&path, errno);
        Self::Write { path, value: value.to_owned(), errno, hint }
    }

    /// The errno at the bottom, if a system call is what failed.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Path { errno, .. } | Self::Write { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether a group has gone while it was looked at: its files answer ENODEV then (kernfs).
    pub fn is_gone(&self) -> bool {
        self.errno() == Some(Errno::ENODEV)
    }

    /// Whether the kernel refused a CPU limit, which it measures against the limits above it as they are in this moment.
    pub fn is_limit_refused(&self) -> bool {
        matches!(self, Self::Write { path, errno: Errno::EINVAL, .. }
            if path.file_name().is_some_and(|file| file.as_encoded_bytes().starts_with(b"cpu.cfs_")))
    }

    /// Whether it is `value`, written to `path`, that the kernel refused.
    pub fn is_refusal_of(&self, path: &Path, value: &str) -> bool {
        matches!(self, Self::Write { path: refused, value: what, .. } if refused == path && what == value)
    }

    /// One error out of a list: none, the only one, or all of them.
    pub fn all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}

/// What an errno of the cgroup file system most likely means, for the person who reads the line (cgroup-v1/*.rst, cpuset(7)).
fn write_hint(path: &Path, errno: Errno) -> String {
    let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let meaning = match (file, errno) {
        ("tasks" | "cgroup.procs", Errno::ENOSPC) => "the group's cpuset.cpus or cpuset.mems is empty",
        ("cpuset.cpus" | "cpuset.mems", Errno::EACCES | Errno::ERANGE) => "not within what the group above it has",
        ("cpu.cfs_quota_us" | "cpu.cfs_period_us", Errno::EINVAL) => "outside what the kernel or a group above it allows",
        ("cpu.rt_runtime_us" | "cpu.rt_period_us", Errno::EINVAL) => "the group above it has no realtime time to give",
        (_, Errno::EROFS) => "the cgroup mount is read-only",
        (_, Errno::EACCES | Errno::EPERM) => "the hook needs to be root of the host",
        _ => return String::new(),
    };
    format!(" ({meaning})")
}

/// The errno of a std I/O error; EIO where there is none.
pub fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_write_names_file_value_errno_and_meaning_once() {
        let error = Error::write("/sys/fs/cgroup/cpuset/x/tasks", "77", Errno::ENOSPC);
        assert_eq!(
            error.to_string(),
            "write \"77\" to /sys/fs/cgroup/cpuset/x/tasks: ENOSPC: No space left on device \
             (the group's cpuset.cpus or cpuset.mems is empty)"
        );
    }

    #[test]
    fn several_errors_make_one_line() {
        let errors = vec![Error::State("a".into()), Error::State("b".into())];
        assert_eq!(Error::all(errors).unwrap_err().to_string(), "OCI state: a; OCI state: b");
        assert!(Error::all(Vec::new()).is_ok());
    }
}
