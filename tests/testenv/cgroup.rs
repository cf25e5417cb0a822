//! Groups as the kernel shows them: who is in one, what is written in its files; and where a sandbox's groups are.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::errno::Errno;

use super::env::wait_until;
use super::hierarchy::{CPU_CONTROLLERS, Hierarchy, Version, hierarchies, place_in};

/// The directories that the sandboxes of all tests share, children first.
pub(super) const SHARED_PARENTS: [&str; 3] = ["/kata/vc", "/kata", "/vc"];

/// A group of a hierarchy; it need not exist.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Group {
    pub hierarchy: &'static Hierarchy,
    pub path: String,
}

/// The group at this path in every hierarchy, as an engine or kubelet makes it.
pub(crate) fn everywhere(path: &str) -> Vec<Group> {
    hierarchies().map(|hierarchy| Group { hierarchy, path: path.to_owned() }).collect()
}

/// Where the vCPU threads belong in the hierarchy of this controller if cgroupsPath leads to `path` (`<dir>/kata_<base>`).
///
/// On v1 that group lies in the pod's own. On v2 threads move only within their process's domain, which is out of the pod: the
/// vCPUs' group is in there.
pub(crate) fn constrained_at(path: &str, controller: &str) -> Group {
    let hierarchy = hierarchy_of(controller);
    match hierarchy.version {
        Version::V1 => Group { hierarchy, path: path.to_owned() },
        Version::V2 => domain_in(hierarchy, path).child("vcpu"),
    }
}

/// Where the processes belong in the hierarchy that limits memory.
pub(crate) fn unconstrained_at(path: &str) -> Group {
    domain_in(hierarchy_of("memory"), path)
}

/// Where the processes belong, in every hierarchy that has a place for them.
pub(crate) fn domains_at(path: &str) -> Vec<Group> {
    hierarchies().filter(|hierarchy| hierarchy.has_domains()).map(|hierarchy| domain_in(hierarchy, path)).collect()
}

/// Those of cgroup v2 that have a group for the vCPUs below them: in the domain itself those are not limited.
pub(crate) fn unlimited_domains_at(path: &str) -> Vec<Group> {
    let has_vcpu_group = |hierarchy: &Hierarchy| {
        hierarchy.version == Version::V2 && CPU_CONTROLLERS.iter().any(|controller| hierarchy.carries(controller))
    };
    domains_at(path).into_iter().filter(|domain| has_vcpu_group(domain.hierarchy)).collect()
}

fn domain_in(hierarchy: &'static Hierarchy, path: &str) -> Group {
    Group { hierarchy, path: format!("/kata{path}") }
}

fn hierarchy_of(controller: &str) -> &'static Hierarchy {
    Hierarchy::of(controller).unwrap_or_else(|| panic!("this host has no {controller} controller"))
}

impl Group {
    /// The group at this path in the hierarchy that carries the controller.
    pub(crate) fn new(controller: &str, path: &str) -> Group {
        Group { hierarchy: hierarchy_of(controller), path: path.to_owned() }
    }

    pub(crate) fn top_of(hierarchy: &'static Hierarchy) -> Group {
        Group { hierarchy, path: "/".to_owned() }
    }

    pub(crate) fn child(&self, name: &str) -> Group {
        Group { hierarchy: self.hierarchy, path: format!("{}/{name}", self.path.trim_end_matches('/')) }
    }

    pub(crate) fn parent(&self) -> Option<Group> {
        let (parent, name) = self.path.rsplit_once('/')?;
        let path = if parent.is_empty() { "/" } else { parent };
        (!name.is_empty()).then(|| Group { hierarchy: self.hierarchy, path: path.to_owned() })
    }

    /// This group and all above it.
    pub(crate) fn upwards(&self) -> impl Iterator<Item = Group> + use<> {
        std::iter::successors(Some(self.clone()), Group::parent)
    }

    pub(crate) fn is_below(&self, other: &Group) -> bool {
        self != other && self.upwards().any(|group| group == *other)
    }

    pub(crate) fn path_on_host(&self) -> PathBuf {
        PathBuf::from(format!("{}{}", self.hierarchy.mount, self.path))
    }

    pub(crate) fn exists(&self) -> bool {
        self.path_on_host().is_dir()
    }

    /// The file that lists its threads and takes single ones in.
    pub(crate) fn threads_file(&self) -> PathBuf {
        self.path_on_host().join(match self.hierarchy.version {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.threads",
        })
    }

    pub(crate) fn processes_file(&self) -> PathBuf {
        self.path_on_host().join("cgroup.procs")
    }

    pub(crate) fn threads(&self) -> BTreeSet<i32> {
        numbers_in(&self.threads_file())
    }

    /// Of a domain with threads in groups of its own below it: the processes of those, too.
    pub(crate) fn processes(&self) -> BTreeSet<i32> {
        numbers_in(&self.processes_file())
    }

    /// Whether a thread is in it, and not in a group below.
    pub(crate) fn holds(&self, tid: i32) -> bool {
        place_in(tid, self.hierarchy).is_some_and(|place| place == self.path)
    }

    /// Moves a whole process in.
    pub(crate) fn take_in(&self, pid: i32) {
        self.set("cgroup.procs", pid);
    }

    /// Moves a single thread in.
    pub(crate) fn take_in_thread(&self, tid: i32) {
        self.set(&self.threads_file().file_name().unwrap().to_string_lossy(), tid);
    }

    /// A file's text without its last newline; empty where the group or the file is gone.
    pub(crate) fn value(&self, file: &str) -> String {
        fs::read_to_string(self.path_on_host().join(file)).unwrap_or_default().trim_end().to_owned()
    }

    /// Whether it has this file: not where its controller is elsewhere, or is not handed down to it.
    pub(crate) fn has(&self, file: &str) -> bool {
        self.path_on_host().join(file).exists()
    }

    pub(crate) fn set(&self, file: &str, value: impl Display) {
        self.try_set(file, &value).unwrap_or_else(|error| panic!("{value} > {self:?}/{file}: {error}"));
    }

    fn try_set(&self, file: &str, value: impl Display) -> io::Result<()> {
        fs::write(self.path_on_host().join(file), value.to_string())
    }

    /// Makes the group and what is missing above it, ready to take a process in: on v1 a cpuset takes nobody until it is filled,
    /// on v2 a group has the files of a controller only where the one above hands it down.
    pub(crate) fn make(&self) {
        // A directory that all tests share may go while it is empty: then once more, from the top.
        wait_until(&format!("{self:?} to be made"), || match self.try_make() {
            Err(error) if matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOENT | Errno::ENODEV)) => false,
            Err(error) => panic!("make {self:?}: {error}"),
            Ok(()) => true,
        });
    }

    fn try_make(&self) -> io::Result<()> {
        let Some(parent) = self.parent() else { return Ok(()) };
        parent.try_make()?;
        if self.hierarchy.version == Version::V2 {
            parent.hand_down_controllers()?;
        }
        self.mkdir()?;
        if self.hierarchy.version == Version::V1 && self.hierarchy.carries("cpuset") {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if self.value(file).is_empty() {
                    self.try_set(file, parent.value(file))?;
                }
            }
        }
        Ok(())
    }

    /// The bare directory, as it comes from the kernel.
    pub(crate) fn mkdir(&self) -> io::Result<()> {
        match fs::create_dir(self.path_on_host()) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    /// On v2: every controller of the hook's that the group has, for its children, too. It must hold no process.
    pub(crate) fn hand_down_controllers(&self) -> io::Result<()> {
        let (available, enabled) = (self.value("cgroup.controllers"), self.value("cgroup.subtree_control"));
        let lists = |list: &str, name: &str| list.split(' ').any(|listed| listed == name);
        let missing = ["cpu", "cpuset", "memory"].into_iter().filter(|name| lists(&available, name) && !lists(&enabled, name));
        let missing: Vec<String> = missing.map(|name| format!("+{name}")).collect();
        if missing.is_empty() { Ok(()) } else { self.try_set("cgroup.subtree_control", missing.join(" ")) }
    }

    pub(crate) fn children(&self) -> Vec<Group> {
        let Ok(entries) = fs::read_dir(self.path_on_host()) else {
            return Vec::new();
        };
        let mut children: Vec<Group> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| self.child(&entry.file_name().to_string_lossy()))
            .collect();
        children.sort();
        children
    }

    /// This group and all below it, parents first.
    pub(crate) fn tree(&self) -> Vec<Group> {
        let mut groups = vec![self.clone()];
        for child in self.children() {
            groups.extend(child.tree());
        }
        groups
    }

    /// Whether nothing of it is left.
    pub(crate) fn remove_tree(&self) -> bool {
        for group in self.tree().iter().rev() {
            let _ = fs::remove_dir(group.path_on_host());
        }
        !self.path_on_host().exists()
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}:{}", self.hierarchy, self.path)
    }
}

fn numbers_in(file: &Path) -> BTreeSet<i32> {
    fs::read_to_string(file).unwrap_or_default().lines().map(|line| line.parse().unwrap()).collect()
}

/// The topmost groups that bear an environment's name, in every hierarchy: at the root, under the shared parents, as a slice.
pub(crate) fn groups_named(name: &str) -> Vec<Group> {
    let slice = name.replace('-', "_");
    let parents = SHARED_PARENTS.iter().chain(["/"].iter()).flat_map(|parent| everywhere(parent));
    let bears_it = |group: &Group| {
        let last = group.path.rsplit('/').next().unwrap_or_default();
        last.contains(name) || last.contains(&slice)
    };
    parents.flat_map(|parent| parent.children()).filter(bears_it).collect()
}

/// The shared parents that stood before this process made anything: somebody else's, to be left alone.
pub(crate) fn shared_parents_before() -> &'static BTreeSet<Group> {
    static BEFORE: OnceLock<BTreeSet<Group>> = OnceLock::new();
    BEFORE.get_or_init(|| {
        let all = SHARED_PARENTS.iter().flat_map(|path| everywhere(path));
        all.filter(|group| group.exists() && !group.tree().iter().any(|below| below.path.contains("kch"))).collect()
    })
}
