//! The cgroup hierarchies of this host: which controller lives where, and behind which interface.
//!
//! A host may have each controller on cgroup v1 or on v2, alone or together with others. What a test says about a controller
//! is true wherever it lives; only this module and its two neighbours, [`super::cgroup`] and [`super::limits`], know the files.
//!
//! Deliberately not the hook's own code: a witness that shared its reader would share its mistakes.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

/// The controllers the hook manages.
pub(crate) const CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "cpuset", "memory"];
/// Those that hold the vCPU threads.
pub(crate) const CPU_CONTROLLERS: [&str; 3] = ["cpu", "cpuacct", "cpuset"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V1,
    V2,
}

/// A mounted hierarchy, and the hook's controllers that it carries.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hierarchy {
    pub version: Version,
    pub controllers: Vec<&'static str>,
    pub mount: String,
}

impl Hierarchy {
    /// The one that carries a controller; `None` where the host has it nowhere.
    pub(crate) fn of(controller: &str) -> Option<&'static Hierarchy> {
        mounted().iter().find(|hierarchy| hierarchy.carries(controller))
    }

    pub(crate) fn carries(&self, controller: &str) -> bool {
        self.controllers.contains(&controller)
    }

    /// Whether the hook has a place for whole processes in it: where memory is limited, and everywhere on v2.
    pub(crate) fn has_domains(&self) -> bool {
        self.version == Version::V2 || self.carries("memory")
    }
}

impl fmt::Debug for Hierarchy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", if self.controllers.is_empty() { "v2".to_owned() } else { self.controllers.join(",") })
    }
}

/// The hierarchies that carry a controller of the hook's, each once.
pub(crate) fn hierarchies() -> impl Iterator<Item = &'static Hierarchy> {
    mounted().iter().filter(|hierarchy| !hierarchy.controllers.is_empty())
}

/// The same, and the v2 hierarchy also where it carries none of them.
pub(crate) fn mounted() -> &'static [Hierarchy] {
    static MOUNTED: OnceLock<Vec<Hierarchy>> = OnceLock::new();
    MOUNTED.get_or_init(|| {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        let mut add = |version, mount: &str, carries: &dyn Fn(&str) -> bool| {
            let is_new = |name: &&str| !hierarchies.iter().any(|known| known.carries(name));
            let controllers: Vec<&str> = CONTROLLERS.into_iter().filter(|name| carries(name)).filter(is_new).collect();
            if !controllers.is_empty() || version == Version::V2 {
                hierarchies.push(Hierarchy { version, controllers, mount: mount.to_owned() });
            }
        };
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let lines: Vec<Vec<&str>> = mounts.lines().map(|line| line.split(' ').collect()).collect();
        for line in lines.iter().filter(|line| line.get(2) == Some(&"cgroup")) {
            let options: Vec<&str> = line[3].split(',').collect();
            add(Version::V1, line[1], &|name| options.contains(&name));
        }
        if let Some(line) = lines.iter().find(|line| line.get(2) == Some(&"cgroup2")) {
            let available = fs::read_to_string(Path::new(line[1]).join("cgroup.controllers")).unwrap_or_default();
            let available: Vec<&str> = available.split_whitespace().collect();
            // Time is accounted by the cpu controller there: cpuacct is a name of v1 alone.
            add(Version::V2, line[1], &|name| available.contains(if name == "cpuacct" { &"cpu" } else { &name }));
        }
        hierarchies
    })
}

/// Where a thread is in the hierarchy of a controller; `None` once it is gone.
pub(crate) fn place_of(tid: i32, controller: &str) -> Option<String> {
    place_in(tid, Hierarchy::of(controller)?)
}

pub(crate) fn place_in(tid: i32, hierarchy: &Hierarchy) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{tid}/cgroup")).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let names = fields.next()?;
        let is_it = match hierarchy.version {
            Version::V1 => names.split(',').any(|name| hierarchy.carries(name)),
            Version::V2 => names.is_empty(),
        };
        is_it.then(|| fields.next().unwrap_or_default().to_owned())
    })
}
