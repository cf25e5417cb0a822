//! All that the hook could have changed, as lines of text: what "nothing changed" is held against.
//!
//! Of the hierarchies it has the top level (whatever a stray write or mkdir would hit first), everything that bears this
//! environment's name, and where the watched processes are; of the file system the state and runtime directories, its own and
//! those of the host, and the mounts. Groups of tests that run at the same time are left out: they change by themselves.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::cgroup::{Group, groups_named};
use super::env::Env;
use super::hierarchy::{Version, mounted, place_in};
use super::process::{name_of, threads_of};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dump(BTreeSet<String>);

impl Dump {
    pub(crate) fn of(env: &Env) -> Dump {
        let mut lines = BTreeSet::new();
        // Also a v2 hierarchy that carries no controller of the hook's: it is to be left alone.
        for hierarchy in mounted() {
            let top = Group::top_of(hierarchy);
            for group in top.children().iter().filter(|group| !is_volatile(&group.path)) {
                lines.insert(format!("{group:?}"));
            }
            lines.extend(values(&top));
            // A process by the groups its threads are in, not thread by thread: QEMU's workers come and go.
            for pid in env.watched() {
                for thread in threads_of(pid) {
                    if let Some(place) = place_in(thread.tid, hierarchy) {
                        lines.insert(format!("{hierarchy:?}:{place} holds threads of {pid} ({})", name_of(pid)));
                    }
                }
            }
        }
        for group in groups_named(&env.name).iter().flat_map(Group::tree) {
            lines.insert(format!("{group:?}"));
            lines.extend(values(&group));
        }
        for dir in [env.state_dir(), env.dir.join("vm"), env.dir.join("sbs"), env.dir.join("kata"), env.dir.join("bundles")] {
            files_below(&dir, &mut lines);
        }
        // What a hook without this environment's configuration would write to.
        for dir in ["/run/kata-cgroup-hook", "/run/vc", "/run/kata"] {
            files_below(Path::new(dir), &mut lines);
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        // Of the kinds that the hook has to do with; others come and go with whatever else the host does.
        let kinds = [" - cgroup ", " - cgroup2 ", " - debugfs "];
        let ours = mounts.lines().filter(|line| kinds.iter().any(|kind| line.contains(kind)));
        lines.extend(ours.map(|line| format!("mount {line}")));
        Dump(lines)
    }

    /// The lines that hold this text.
    pub(crate) fn lines_with(&self, text: &str) -> Vec<&str> {
        self.0.iter().filter(|line| line.contains(text)).map(String::as_str).collect()
    }

    /// Fails, naming every difference, unless the other dump is the same.
    #[track_caller]
    pub(crate) fn assert_same(&self, after: &Dump, why: impl fmt::Display) {
        let gone: Vec<_> = self.0.difference(&after.0).collect();
        let new: Vec<_> = after.0.difference(&self.0).collect();
        assert!(gone.is_empty() && new.is_empty(), "{why}\n  no more: {gone:#?}\n  new: {new:#?}");
    }
}

/// Other tests' groups, and the parents all tests share.
fn is_volatile(path: &str) -> bool {
    path == "/kata" || path == "/vc" || path.contains("kch-") || path.contains("kch_")
}

/// What somebody sets in a group, not what the kernel counts in it; a file that is not there is as good as an empty one.
///
/// Of v2's root that is only what it hands down to its children, and that changes with whatever else runs on the host.
fn values(group: &Group) -> Vec<String> {
    let files: Vec<&str> = match group.hierarchy.version {
        Version::V1 => group.hierarchy.controllers.iter().flat_map(|controller| files_of_v1(controller)).copied().collect(),
        Version::V2 if group.path == "/" => Vec::new(),
        Version::V2 => FILES_OF_V2.to_vec(),
    };
    files.iter().map(|file| format!("{group:?}/{file} = {}", group.value(file))).collect()
}

fn files_of_v1(controller: &str) -> &'static [&'static str] {
    match controller {
        "cpu" => &["cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.rt_runtime_us"],
        "cpuset" => &["cpuset.cpus", "cpuset.mems", "cpuset.cpu_exclusive", "cgroup.clone_children"],
        "memory" => &["memory.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.swappiness"],
        _ => &["notify_on_release"],
    }
}

const FILES_OF_V2: [&str; 12] = [
    "cgroup.type",
    "cgroup.subtree_control",
    "cgroup.freeze",
    "cpu.max",
    "cpu.max.burst",
    "cpu.weight",
    "cpu.idle",
    "cpuset.cpus",
    "cpuset.mems",
    "cpuset.cpus.partition",
    "memory.max",
    "memory.high",
];

fn files_below(dir: &Path, lines: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Ok(meta) = path.symlink_metadata() else { continue };
        let content = match () {
            () if meta.is_symlink() => format!("-> {}", fs::read_link(&path).unwrap().display()),
            () if meta.is_file() && meta.len() <= 4096 => fs::read_to_string(&path).unwrap_or_default(),
            () if meta.is_file() => format!("{} bytes", meta.len()),
            () => String::new(),
        };
        lines.insert(format!("{} {:o} {} {content}", path.display(), meta.mode(), meta.uid()));
        if meta.is_dir() {
            files_below(&path, lines);
        }
    }
}
