//! What is known of a sandbox from one run to the next, in JSON: `<state-dir>/<sandbox id>.json`.
//!
//! It is written before the first group is made, as the intent, and after the last step, so that a run that is killed in the
//! middle leaves word of what it may have made. A record is a help, not a truth: one that is torn, of another version or of dead
//! processes is rebuilt from what stands on the host. Where it is kept is `store`'s.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxCpu;
use serde::{Deserialize, Serialize};

/// The schema that is written; another is kept aside and rebuilt.
pub const SCHEMA: u32 = 1;

/// How far a sandbox has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    /// Groups are about to be made.
    #[default]
    Placing,
    /// It is where it belongs.
    Placed,
    /// No container of it is left that asks for anything; the VM lives and keeps its last limits.
    Idle,
    /// Groups are about to be removed, or could not be yet.
    Releasing,
}

/// What is known of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub schema: u32,
    pub sandbox: String,
    /// "v1" or "v2" for each controller.
    pub mode: BTreeMap<String, String>,
    pub state: Progress,
    /// The groups that hold its threads.
    pub groups: Vec<RecordedGroup>,
    /// The groups above those that were made for it.
    #[serde(default)]
    pub parents: Vec<RecordedGroup>,
    /// Groups of Kata's that are used, with the values that they had.
    #[serde(default)]
    pub adopted: Vec<Adopted>,
    /// The sandbox's place below the mounts, once it is derived: a recorded one wins.
    #[serde(default)]
    pub path: String,
    pub processes: Vec<RecordedProcess>,
    /// What each container asks for, by its bundle.
    pub containers: BTreeMap<PathBuf, Container>,
    /// What the last containers asked for: it stays in force while there is none.
    #[serde(default)]
    pub last: Vec<LinuxCpu>,
    /// The containers that have ended and whose bundles are still there, by these.
    #[serde(default)]
    pub ended: BTreeMap<PathBuf, String>,
    /// The pod's own limit when that was last looked at: quota/period in µs, or "max".
    #[serde(default)]
    pub pod_limit: Option<String>,
}

/// A group that we made or are about to make.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedGroup {
    pub path: PathBuf,
    pub controllers: Vec<String>,
    /// 0 while it is only intended.
    pub inode: u64,
}

/// A group of Kata's that holds the vCPU threads, and what it had before us.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    pub path: PathBuf,
    /// Another group of the same name has values of its own.
    pub inode: u64,
    /// None once they have been given back; then it is only remembered that the sandbox was there.
    pub values: BTreeMap<String, String>,
}

/// A process of the VM, and the groups it was in before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedProcess {
    pub pid: i32,
    pub start: u64,
    pub role: String,
    /// By controller, as the kernel names it; for the CPU controllers where its vCPU threads were.
    pub from: BTreeMap<String, PathBuf>,
}

/// What a container asks for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Container {
    pub id: String,
    /// Its name in the pod, which its successor has too.
    #[serde(default)]
    pub name: Option<String>,
    pub cpu: LinuxCpu,
    /// The pod has been resized since, and nothing says whether it was this container.
    #[serde(default)]
    pub is_outdated: bool,
}

impl Record {
    /// An empty record of a sandbox.
    pub fn new(sandbox: &str) -> Self {
        Self { schema: SCHEMA, sandbox: sandbox.to_owned(), ..Self::default() }
    }

    /// Whether the group at `path` with this inode is one that we made.
    pub fn knows(&self, path: &Path, inode: u64) -> bool {
        self.groups.iter().chain(&self.parents).any(|group| group.path == path && group.inode == inode)
    }

    /// Whether the group at `path` was about to be made when the last run ended.
    pub fn intended(&self, path: &Path) -> bool {
        self.groups.iter().chain(&self.parents).any(|group| group.path == path && group.inode == 0)
    }

    /// Learns the inodes of groups that were only intended.
    pub fn learn(&mut self, made: &[(PathBuf, u64)]) {
        for group in self.groups.iter_mut().chain(&mut self.parents).filter(|group| group.inode == 0) {
            if let Some((_, inode)) = made.iter().rev().find(|(path, _)| *path == group.path) {
                group.inode = *inode;
            }
        }
    }

    /// Leaves only the containers that `stays` wants; where none is left, what they asked for is kept in mind.
    pub fn keep_containers(&mut self, stays: impl Fn(&Path) -> bool) {
        let before = std::mem::take(&mut self.containers);
        let (staying, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = before.into_iter().partition(|(bundle, _)| stays(bundle));
        if staying.is_empty() && !gone.is_empty() {
            self.last = gone.into_values().map(|container| container.cpu).collect();
        }
        self.containers = staying;
    }

    /// Pid and start time of each process.
    pub fn identities(&self) -> Vec<(i32, u64)> {
        self.processes.iter().map(|process| (process.pid, process.start)).collect()
    }

    /// The VMM as it was placed.
    pub fn vmm(&self) -> Option<&RecordedProcess> {
        self.processes.iter().find(|process| process.role == "vmm")
    }

    /// What was written of `sandbox`; `None` where that cannot be understood.
    pub fn parse(bytes: &[u8], sandbox: &str) -> Option<Self> {
        let record: Self = serde_json::from_slice(bytes).ok()?;
        (record.schema == SCHEMA && record.sandbox == sandbox).then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_was_intended_is_known_once_it_is_made() {
        let mut record = Record::new("sb");
        let group = |path: &str, inode| RecordedGroup { path: path.into(), inode, ..RecordedGroup::default() };
        (record.groups, record.parents) = (vec![group("/c/p/kata_x", 0)], vec![group("/c/p", 7), group("/c", 0)]);
        // One that was made, removed by somebody and made again is the last.
        record.learn(&[("/c/p/kata_x".into(), 8), ("/c/p".into(), 9), ("/c/p/kata_x".into(), 10)]);
        assert!(record.knows(Path::new("/c/p/kata_x"), 10) && !record.knows(Path::new("/c/p/kata_x"), 8));
        assert!(record.knows(Path::new("/c/p"), 7) && record.intended(Path::new("/c")));
    }

    #[test]
    fn what_the_last_containers_asked_for_is_kept_in_mind() {
        let cpu = |shares: u64| serde_json::from_value::<LinuxCpu>(serde_json::json!({ "shares": shares })).unwrap();
        let mut record = Record::new("sb");
        for (bundle, shares) in [("/a", 1), ("/b", 2)] {
            record.containers.insert(bundle.into(), Container { id: "c".into(), cpu: cpu(shares), ..Container::default() });
        }
        record.keep_containers(|bundle| bundle == Path::new("/b"));
        assert!(record.last.is_empty());
        record.keep_containers(|_| false);
        record.keep_containers(|_| false);
        assert!(record.containers.is_empty());
        assert_eq!(record.last, [cpu(2)]);
    }
}
