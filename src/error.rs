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
    #[error("{path} is no configuration of a container: {why}", path = .path.display())]
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
    /// A v2 group that is not ours holds threads, and would have to pass controllers on to ours.
    #[error(
        "{path} holds processes and does not pass {controllers} on to the groups in it (cgroup.subtree_control): move the \
         processes into a group below it{instead}",
        path = .path.display()
    )]
    Populated { path: PathBuf, controllers: String, instead: &'static str },
    /// The group that is to hold the vCPU threads stands, is no threaded one yet, and holds processes, so that it cannot become one.
    #[error("{path} holds processes and so cannot be made threaded (cgroup.type): move them into the group above it", path = .path.display())]
    NotThreaded { path: PathBuf },
    /// A v2 group in which no domain can be made, or that cannot be one.
    #[error(
        "{path} is \"{kind}\" (cgroup.type), so that no group in it can hold processes: move its own processes into a group \
         below it and remove the threaded ones{instead}",
        path = .path.display()
    )]
    NotADomain { path: PathBuf, kind: String, instead: &'static str },
    /// The group that is to be the domain stands, carries no mark of ours and is in no record.
    #[error("{path} stands already and is not ours: remove it (rmdir) once nobody is in it", path = .path.display())]
    Foreign { path: PathBuf },
    /// A group that the record knows is on no cgroup mount.
    #[error(
        "{path} of its record is on no cgroup file system that the hook sees: run it in the host's mount namespace, or, if that was \
         unmounted for good, remove the record",
        path = .path.display()
    )]
    NotMounted { path: PathBuf },
    /// A process of the VM is in a group that cannot be reached from here, so that it could not be put back.
    #[error(
        "process {pid} is in a group that is not below {mount} as the hook sees it: run the hook in the host's cgroup and \
         mount namespaces",
        mount = .mount.display()
    )]
    OutOfSight { pid: i32, mount: PathBuf },
    /// Another live sandbox owns the group that this one would use.
    #[error("{path} belongs to sandbox {owner}: two sandboxes cannot share one cgroupsPath; give this one another", path = .path.display())]
    Taken { path: PathBuf, owner: String },
    /// A system call on a path failed.
    #[error("{verb} {path}: {errno}{hint}", path = .path.display())]
    Path { verb: &'static str, path: PathBuf, errno: Errno, hint: String },
    /// The kernel refused a value.
    #[error("write {value:?} to {path}: {errno}{hint}", path = .path.display())]
    Write { path: PathBuf, value: String, errno: Errno, hint: String },
    /// Who got the number of one that ended was moved in its place, and cannot be put back.
    #[error(
        "process {id} got the number of one that ended while it was moved, and where it belongs in {mount} cannot be seen",
        mount = .mount.display()
    )]
    Astray { id: i32, mount: PathBuf },
    /// The record says nothing of where the sandbox's groups are to be.
    #[error("the record names no place for the sandbox's groups: its next hook writes one")]
    NoPlace,
    /// What was done does not hold: the kernel said yes and the read-back said no.
    #[error("{0}")]
    Unsettled(String),
    /// Somebody asked us to stop: SIGTERM or SIGINT.
    #[error("told to stop by a signal while about to {verb}")]
    Stopped { verb: &'static str },
    /// Time ran out.
    #[error("deadline of {ms} ms (deadline-ms) passed while about to {verb}")]
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
        let hint = match (verb, errno) {
            ("create" | "open for writing" | "remove", Errno::EROFS) => {
                " (it is mounted read-only, and the hook has to write there)"
            }
            ("create" | "open for writing" | "remove", Errno::EACCES | Errno::EPERM) => {
                " (the hook needs to be root of the host)"
            }
            ("create", Errno::EAGAIN) => " (cgroup.max.descendants or cgroup.max.depth of a group above does not allow it)",
            _ => "",
        };
        Self::Path { verb, path: path.as_ref().to_path_buf(), errno, hint: hint.to_owned() }
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

    /// Whether what was refused may be granted once the host has been read anew: a v1 limit is measured against those above it as
    /// they are in this moment; on v2 another run may just have taken a controller back, or Kata have moved a process away from
    /// its threads' group.
    pub fn is_of_the_moment(&self) -> bool {
        let (path, errno) = match self {
            Self::Write { path, errno, .. } => (path, *errno),
            Self::Path { verb: "open for writing", path, errno: Errno::ENOENT, .. } => (path, Errno::ENOENT),
            _ => return false,
        };
        let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
        match errno {
            Errno::EINVAL => file.starts_with("cpu.cfs_"),
            Errno::ENOENT => file == "cgroup.subtree_control" || file.starts_with("cpu.") || file.starts_with("cpuset."),
            Errno::EOPNOTSUPP => file == "cgroup.threads",
            _ => false,
        }
    }

    /// Whether it is `value`, written to `path`, that the kernel refused; or any, where the file could not be opened.
    pub fn is_refusal_of(&self, path: &Path, value: &str) -> bool {
        match self {
            Self::Write { path: refused, value: what, .. } => refused == path && what == value,
            Self::Path { path: refused, .. } => refused == path,
            _ => false,
        }
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
        ("cpu.cfs_quota_us" | "cpu.cfs_period_us", Errno::EINVAL) => {
            "outside what the kernel allows (1000 us at least, a period of at most 1000000), or more than a group above it has"
        }
        ("cgroup.subtree_control", Errno::EBUSY) => {
            "it holds processes, which a group that passes on more than cpu and cpuset cannot; or a group in it still uses them"
        }
        ("cgroup.subtree_control", Errno::ENOENT) => "the group above it does not have or pass on one of these controllers",
        ("cgroup.subtree_control", Errno::EOPNOTSUPP) => "threaded groups can pass on cpu and cpuset only",
        ("cgroup.subtree_control", Errno::EINVAL) => {
            "the kernel does not offer one of these controllers, or a realtime thread is in a group other than the root"
        }
        ("cgroup.type", Errno::EOPNOTSUPP) => {
            "the group above it is no domain, or passes on controllers other than cpu and cpuset"
        }
        ("cgroup.procs", Errno::EBUSY) => "it passes controllers on to the groups in it and so can hold no process itself",
        ("cgroup.threads", Errno::EOPNOTSUPP) => "the thread's process is in another domain, or the group is not threaded",
        ("cgroup.procs" | "cgroup.threads", Errno::ENOENT) => {
            "out of the hook's cgroup namespace, which the mount option nsdelegate holds it to: run it in the host's"
        }
        ("cgroup.procs", Errno::EOPNOTSUPP) => "the group is no domain: see its cgroup.type",
        ("cpu.max", Errno::EINVAL) => "outside what the kernel allows: at least 1000 us in a period of at most 1000000",
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
