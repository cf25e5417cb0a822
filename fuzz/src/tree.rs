//! A hierarchy of made-up groups: what stands, and what each has of what stands above.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kata_cgroup_hook::cgroup::Controller;
use kata_cgroup_hook::cgroup::cpulist::CpuList;
use kata_cgroup_hook::cgroup::file::{CPUS, MAX, MEMS, PERIOD, QUOTA, SHARES, SUBTREE, WEIGHT};
use kata_cgroup_hook::cgroup::mounts::Version;

/// The host's CPUs and memory nodes.
const ALL_CPUS: &str = "0-7";
const ALL_MEMS: &str = "0-1";

/// A mounted hierarchy.
#[derive(Debug)]
pub struct Tree {
    pub version: Version,
    pub controllers: Vec<Controller>,
    pub mount: PathBuf,
    /// Which of its groups is mounted: `/`, or a container's.
    pub root: PathBuf,
    /// By their paths below the mount point, those above first.
    pub groups: BTreeMap<PathBuf, Group>,
}

/// A group's own values; whether it has the file of one depends on the groups above.
#[derive(Debug)]
pub struct Group {
    pub values: BTreeMap<&'static str, String>,
    pub is_threaded: bool,
}

impl Default for Group {
    /// As the kernel makes it.
    fn default() -> Self {
        let defaults = [
            (SHARES, "1024"),
            (QUOTA, "-1"),
            (PERIOD, "100000"),
            (WEIGHT, "100"),
            (MAX, "max 100000"),
            (CPUS, ""),
            (MEMS, ""),
            (SUBTREE, ""),
        ];
        let values = defaults.into_iter().map(|(file, value)| (file, value.to_owned())).collect();
        Self { values, is_threaded: false }
    }
}

impl Group {
    pub fn passes_on(&self, controller: Controller) -> bool {
        self.values[SUBTREE].split(' ').any(|name| name == controller.name())
    }

    pub fn passes_on_for_domains(&self) -> bool {
        self.passes_on(Controller::Memory)
    }

    pub fn passes_on_for_threads(&self) -> bool {
        self.passes_on(Controller::Cpu) || self.passes_on(Controller::Cpuset)
    }

    pub fn list(&self, file: &str) -> CpuList {
        self.values[file].parse().expect("a list that was taken")
    }

    /// Its own quota and period.
    pub fn limit(&self, version: Version) -> Option<(u64, u64)> {
        let (quota, period) = match version {
            Version::V1 => (self.values[QUOTA].as_str(), self.values[PERIOD].as_str()),
            Version::V2 => self.values[MAX].split_once(' ').expect("two words"),
        };
        Some((quota.parse().ok()?, period.parse().expect("a period that was taken")))
    }
}

impl Tree {
    pub fn new(version: Version, controllers: Vec<Controller>, mount: PathBuf, root: &str) -> Self {
        let mut top = Group::default();
        if version == Version::V1 || root == "/" {
            top.values.insert(CPUS, ALL_CPUS.to_owned());
            top.values.insert(MEMS, ALL_MEMS.to_owned());
        }
        Self { version, controllers, mount, root: root.into(), groups: BTreeMap::from([(PathBuf::new(), top)]) }
    }

    pub fn stands(&self, path: &Path) -> bool {
        self.groups.contains_key(path)
    }

    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.groups.keys().map(PathBuf::as_path)
    }

    /// The tightest limit that acts in a group, as quota and period: its own or one above.
    pub fn limit(&self, path: &Path) -> Option<(u64, u64)> {
        let limits = path.ancestors().filter(|path| self.has(path, Controller::Cpu)).filter_map(|path| self.groups.get(path));
        limits.filter_map(|group| group.limit(self.version)).min_by(|(a, b), (c, d)| (a * d).cmp(&(b * c)))
    }

    /// Whether a group has the files of a controller. The top of all v2 groups has none with limits.
    pub fn has(&self, path: &Path, controller: Controller) -> bool {
        let is_carried = self.controllers.contains(&controller);
        match (self.version, path.parent()) {
            (Version::V1, _) => is_carried,
            (Version::V2, None) => is_carried && !self.is_mixable(path),
            (Version::V2, Some(above)) => self.groups.get(above).is_some_and(|above| above.passes_on(controller)),
        }
    }

    /// `cgroup_is_mixable`: the root of all v2 groups, which takes processes whatever it passes on.
    pub fn is_mixable(&self, path: &Path) -> bool {
        path == Path::new("") && self.root == Path::new("/")
    }

    pub fn is_threaded(&self, path: &Path) -> bool {
        self.groups.get(path).is_some_and(|group| group.is_threaded)
    }

    pub fn children(&self, path: &Path) -> impl Iterator<Item = (&Path, &Group)> {
        self.groups.iter().filter(move |(child, _)| child.parent() == Some(path)).map(|(path, group)| (path.as_path(), group))
    }

    /// `cgroup->dom_cgrp`: the nearest that is not threaded.
    pub fn domain_of<'a>(&self, path: &'a Path) -> &'a Path {
        path.ancestors().find(|path| !self.is_threaded(path)).expect("the top is a domain")
    }

    /// What a list comes to: on v2 one that is empty, or of which nothing is above, is that of the group above.
    pub fn effective(&self, path: &Path, file: &str) -> CpuList {
        let own = self.groups[path].list(file);
        let Some(above) = path.parent().filter(|_| self.version == Version::V2) else {
            let all = if file == CPUS { ALL_CPUS } else { ALL_MEMS };
            return if self.version == Version::V2 { all.parse().expect("a list") } else { own };
        };
        let above = self.effective(above, file);
        let both = own.and(&above);
        if both.is_empty() { above } else { both }
    }
}
