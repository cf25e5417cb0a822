//! The cgroup v1 hierarchies as the kernel shows them: where a thread is, who is in a group, what it is limited to.
//!
//! Deliberately not the hook's own code: a witness that shared its reader would share its mistakes.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

/// The controllers the hook manages.
pub(crate) const CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "cpuset", "memory"];
/// Those that hold the vCPU threads.
pub(crate) const CPU_CONTROLLERS: [&str; 3] = ["cpu", "cpuacct", "cpuset"];
/// The directories that the sandboxes of all tests share, children first.
pub(super) const SHARED_PARENTS: [&str; 3] = ["/kata/vc", "/kata", "/vc"];

/// A group in the hierarchy of one controller; it need not exist.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Group {
    pub controller: String,
    pub path: String,
}

impl Group {
    pub(crate) fn new(controller: &str, path: &str) -> Group {
        Group { controller: controller.to_owned(), path: path.to_owned() }
    }

    pub(crate) fn path_on_host(&self) -> PathBuf {
        let mount = mount_of(&self.controller).expect("a mounted controller");
        PathBuf::from(format!("{mount}{}", self.path))
    }

    pub(crate) fn exists(&self) -> bool {
        self.path_on_host().is_dir()
    }

    pub(crate) fn threads(&self) -> BTreeSet<i32> {
        self.members("tasks")
    }

    pub(crate) fn processes(&self) -> BTreeSet<i32> {
        self.members("cgroup.procs")
    }

    fn members(&self, file: &str) -> BTreeSet<i32> {
        self.value(file).lines().map(|line| line.parse().unwrap()).collect()
    }

    /// A file's text without its last newline; empty where the group or the file is gone.
    pub(crate) fn value(&self, file: &str) -> String {
        fs::read_to_string(self.path_on_host().join(file)).unwrap_or_default().trim_end().to_owned()
    }

    pub(crate) fn set(&self, file: &str, value: impl Display) {
        let path = self.path_on_host().join(file);
        fs::write(&path, value.to_string()).unwrap_or_else(|error| panic!("{value} > {}: {error}", path.display()));
    }

    /// Makes the group and what is missing above it. A cpuset takes nobody in until it is filled, from its parent.
    pub(crate) fn make(&self) {
        if let Some(parent) = self.parent().filter(|parent| !parent.exists()) {
            parent.make();
        }
        let _ = fs::create_dir(self.path_on_host());
        if let (Some(parent), "cpuset") = (self.parent(), self.controller.as_str()) {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if self.value(file).is_empty() {
                    self.set(file, parent.value(file));
                }
            }
        }
    }

    pub(crate) fn parent(&self) -> Option<Group> {
        let (parent, name) = self.path.rsplit_once('/')?;
        (!name.is_empty()).then(|| Group::new(&self.controller, if parent.is_empty() { "/" } else { parent }))
    }

    pub(crate) fn children(&self) -> Vec<Group> {
        let Ok(entries) = fs::read_dir(self.path_on_host()) else {
            return Vec::new();
        };
        let mut children: Vec<Group> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| format!("{}/{}", self.path.trim_end_matches('/'), entry.file_name().to_string_lossy()))
            .map(|path| Group::new(&self.controller, &path))
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

/// Where a thread is in a controller's hierarchy; `None` once it is gone.
pub(crate) fn place_of(tid: i32, controller: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{tid}/cgroup")).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        controllers.split(',').any(|name| name == controller).then(|| fields.next().unwrap_or_default().to_owned())
    })
}

/// The mount point of a v1 controller.
pub(crate) fn mount_of(controller: &str) -> Option<&'static str> {
    static MOUNTS: OnceLock<Vec<(String, String)>> = OnceLock::new();
    let mounts = MOUNTS.get_or_init(|| {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        fields
            .filter(|fields| fields.get(2) == Some(&"cgroup"))
            .flat_map(|fields| fields[3].split(',').map(|option| (option.to_owned(), fields[1].to_owned())).collect::<Vec<_>>())
            .collect()
    });
    mounts.iter().find(|(name, _)| name == controller).map(|(_, mount)| mount.as_str())
}

/// The topmost groups that bear an environment's name: at the root, under the shared parents, and as a slice.
pub(crate) fn groups_named(controller: &str, name: &str) -> Vec<Group> {
    let slice = name.replace('-', "_");
    let parents = SHARED_PARENTS.iter().chain(["/"].iter());
    parents
        .flat_map(|parent| Group::new(controller, parent).children())
        .filter(|group| {
            let last = group.path.rsplit('/').next().unwrap_or_default();
            last.contains(name) || last.contains(&slice)
        })
        .collect()
}

/// The shared parents that stood before this process made anything: somebody else's, to be left alone.
pub(crate) fn shared_parents_before() -> &'static BTreeSet<Group> {
    static BEFORE: OnceLock<BTreeSet<Group>> = OnceLock::new();
    BEFORE.get_or_init(|| {
        let all = CONTROLLERS.iter().flat_map(|controller| SHARED_PARENTS.map(|path| Group::new(controller, path)));
        all.filter(|group| group.exists() && !group.tree().iter().any(|below| below.path.contains("kch"))).collect()
    })
}
