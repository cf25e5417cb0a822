//! The files of a group whose values matter (Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst, Documentation/scheduler).

use crate::cgroup::mounts::{Hierarchy, Version};
use crate::cgroup::{Controller, Part};

/// v1: µs of CPU time in a period; -1 is without limit.
pub const QUOTA: &str = "cpu.cfs_quota_us";
/// v1: the period in µs.
pub const PERIOD: &str = "cpu.cfs_period_us";
/// v1: the weight among siblings, 2 to 262144.
pub const SHARES: &str = "cpu.shares";
/// v1: the realtime period in µs; there only where the kernel has realtime groups.
pub const RT_PERIOD: &str = "cpu.rt_period_us";
/// v1: µs of realtime in a period.
pub const RT_RUNTIME: &str = "cpu.rt_runtime_us";
/// The CPUs that may be used. On v2 an empty list is that of the group above.
pub const CPUS: &str = "cpuset.cpus";
/// The memory nodes that may be used.
pub const MEMS: &str = "cpuset.mems";
/// v2: the CPUs that are left of those by the groups above.
pub const EFFECTIVE_CPUS: &str = "cpuset.cpus.effective";
/// v2: the same of the memory nodes.
pub const EFFECTIVE_MEMS: &str = "cpuset.mems.effective";
/// v2: µs of CPU time, or "max", and the period in µs.
pub const MAX: &str = "cpu.max";
/// v2: the weight among siblings, 1 to 10000.
pub const WEIGHT: &str = "cpu.weight";
/// v2: "domain", "threaded", "domain threaded" or "domain invalid"; the root has none.
pub const TYPE: &str = "cgroup.type";
/// v2: the controllers that the groups in this one have.
pub const SUBTREE: &str = "cgroup.subtree_control";

/// The file that takes and lists whole processes; single threads have another in each version ([`GroupPath::threads_file`]).
///
/// [`GroupPath::threads_file`]: crate::cgroup::group::GroupPath::threads_file
pub const PROCS: &str = "cgroup.procs";

/// The files that say how a group of `hierarchy` is set, in an order that the kernel takes when all are written.
pub fn of(hierarchy: &Hierarchy) -> impl Iterator<Item = &'static str> {
    let own: &[&str] = match hierarchy.version {
        Version::V1 => &[],
        Version::V2 => &[TYPE, SUBTREE],
    };
    let of_controllers = hierarchy.controllers.iter().flat_map(|one| of_controller(hierarchy.version, *one));
    own.iter().chain(of_controllers).copied()
}

fn of_controller(version: Version, controller: Controller) -> &'static [&'static str] {
    match (version, controller) {
        (Version::V1, Controller::Cpu) => &[SHARES, PERIOD, QUOTA, RT_PERIOD, RT_RUNTIME],
        (Version::V1, Controller::Cpuset) => &[CPUS, MEMS],
        (Version::V2, Controller::Cpu) => &[WEIGHT, MAX],
        (Version::V2, Controller::Cpuset) => &[CPUS, MEMS, EFFECTIVE_CPUS, EFFECTIVE_MEMS],
        (_, Controller::Cpuacct | Controller::Memory) => &[],
    }
}

/// Those of them that matter in a group above a sandbox's own. v1's shares act among siblings only; that the kernel has realtime groups
/// is read off the top.
pub fn above(hierarchy: &Hierarchy, is_top: bool) -> impl Iterator<Item = &'static str> {
    let is_moot = move |file: &str| file == SHARES || (!is_top && [RT_PERIOD, RT_RUNTIME].contains(&file));
    of(hierarchy).filter(move |file| !is_moot(file))
}

/// Those that say whether threads can be moved into a group.
pub fn of_entry(hierarchy: &Hierarchy) -> impl Iterator<Item = &'static str> {
    of(hierarchy).filter(|file| [CPUS, MEMS, TYPE, SUBTREE].contains(file))
}

/// The file that says what a list comes to.
pub fn effective(file: &str) -> Option<&'static str> {
    match file {
        CPUS => Some(EFFECTIVE_CPUS),
        MEMS => Some(EFFECTIVE_MEMS),
        _ => None,
    }
}

/// The files of an adopted group that are written into, and so have to be given back.
pub fn given_back(hierarchy: &Hierarchy, part: Part) -> Vec<&'static str> {
    match (hierarchy.version, part) {
        (Version::V1, _) => of(hierarchy).collect(),
        (Version::V2, Part::Unconstrained) => of(hierarchy).filter(|file| [SUBTREE, WEIGHT].contains(file)).collect(),
        (Version::V2, Part::Constrained) => of(hierarchy).filter(|file| [CPUS, MEMS, MAX].contains(file)).collect(),
    }
}

/// A file that every group of `hierarchy` but perhaps the top has: where it is missing, the group has just gone.
pub fn certain(hierarchy: &Hierarchy) -> Option<&'static str> {
    match hierarchy.version {
        Version::V1 => hierarchy.carries(Controller::Cpuset).then_some(CPUS),
        Version::V2 => Some(SUBTREE),
    }
}

/// What is written into `file` so that it is again as it was `before` `written` was; `None` where nothing brings that back.
///
/// A controller that is taken back from the groups below may be in use by others by then: the kernel says EBUSY (cgroup-v2.rst).
pub fn restoring(file: &str, before: &str, written: &str) -> Option<String> {
    match file {
        // A threaded group stays one until it is removed (cgroup-v2.rst, "Threads"); the others are the kernel's to write.
        TYPE | EFFECTIVE_CPUS | EFFECTIVE_MEMS => None,
        SUBTREE => {
            let is_new = |name: &&str| before.split_whitespace().all(|known| known != *name);
            let new = written.split_whitespace().filter_map(|word| word.strip_prefix('+')).filter(is_new);
            let taken_back: Vec<String> = new.map(|name| format!("-{name}")).collect();
            (!taken_back.is_empty()).then(|| taken_back.join(" "))
        }
        // A cpuset cannot be emptied again while it is in use; then the group is new and goes as a whole.
        _ => (!before.is_empty()).then(|| before.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_controllers_only_the_new_ones_are_taken_back() {
        let restoring = |before, written| restoring(SUBTREE, before, written);
        assert_eq!(restoring("cpu pids", "+cpu +cpuset +memory").as_deref(), Some("-cpuset -memory"));
        assert_eq!(restoring("cpu", "+cpu"), None);
        assert_eq!(restoring("", "+cpu").as_deref(), Some("-cpu"));
    }

    #[test]
    fn values_come_back_as_they_were_and_a_threaded_group_stays_one() {
        assert_eq!(restoring(SHARES, "1024", "512").as_deref(), Some("1024"));
        assert_eq!(restoring(CPUS, "", "0-1"), None);
        assert_eq!(restoring(TYPE, "domain", "threaded"), None);
    }
}
