//! What of a sandbox still stands, and where what is in it goes when it ends.
//!
//! Leftovers go to the group above; where that is ours too and goes as well, to the group they came from if that is known and
//! stands, else to the nearest above that is not ours. Only what is ours is found here: a name proves nothing.

use crate::cgroup::cpulist::CpuList;
use crate::cgroup::file;
use crate::cgroup::group::{GroupPath, locate};
use crate::cgroup::mounts::Mounts;
use crate::cgroup::path::SandboxPath;
use crate::cgroup::site::{self, Level};
use crate::cgroup::v1::Assignment;
use crate::cgroup::{Controller, Part};
use crate::error::Error;
use crate::record::{Record, RecordedProcess};

/// What is left of a sandbox in one hierarchy.
#[derive(Debug, Clone)]
pub struct Leftover {
    /// Its group, unless that was never made or is gone already.
    pub group: Option<Occupied>,
    /// The groups above it that are ours, nearest first, each with nothing else in it.
    pub prune: Vec<GroupPath>,
}

/// A group that stands, and what is to become of what is in it.
#[derive(Debug, Clone)]
pub struct Occupied {
    pub path: GroupPath,
    /// It holds something now.
    pub is_occupied: bool,
    /// Where what is in it goes.
    pub target: GroupPath,
    /// Whole processes, not threads.
    pub whole: bool,
    /// Processes of it, by pid and start time, that came from elsewhere than the VMM and go back there.
    pub homes: Vec<(i32, u64, GroupPath)>,
}

/// Everything of a sandbox that stands: at its place, and wherever its record says.
pub fn of(record: &Record, path: Option<&SandboxPath>, mounts: &Mounts) -> Result<Vec<Leftover>, Error> {
    let mut candidates = path.map_or(Ok(Vec::new()), |path| at_place(path, mounts))?;
    for group in &record.groups {
        let Some(path) = locate(&mounts.hierarchies, &group.path) else { continue };
        let is_memory = group.controllers.iter().any(|one| one == Controller::Memory.name());
        let part = if is_memory { Part::Unconstrained } else { Part::Constrained };
        if candidates.iter().all(|(known, _)| *known != path) {
            candidates.push((path, part));
        }
    }
    let mut leftovers = Vec::new();
    for (group, part) in candidates {
        leftovers.extend(leftover(group, part, record)?);
    }
    Ok(leftovers)
}

/// The groups that a sandbox may have at its place, deepest first.
fn at_place(path: &SandboxPath, mounts: &Mounts) -> Result<Vec<(GroupPath, Part)>, Error> {
    let mut groups = Vec::new();
    for (hierarchy, part) in site::parts(mounts) {
        let group = GroupPath::new(hierarchy, path.v1(part));
        let child = group.child("vcpu");
        if part == Part::Constrained && child.open()?.is_some() {
            groups.push((child, part));
        }
        groups.push((group, part));
    }
    Ok(groups)
}

/// What is left of the sandbox at `path` and above; nothing where a group stands that is not its own.
fn leftover(path: GroupPath, part: Part, record: &Record) -> Result<Option<Leftover>, Error> {
    let (ours, nearest) = above(&path, record)?;
    let prune = that_empty(&path, &ours)?;
    let Some(open) = path.open()? else { return Ok(Some(Leftover { group: None, prune })) };
    let level = site::level(&path, record)?;
    let whole = part == Part::Unconstrained;
    let is_occupied = !open.members(if whole { "cgroup.procs" } else { path.threads_file() })?.is_empty();
    if !is_of(&level, record) {
        return Ok(None);
    }
    let (mut target, mut homes) = (nearest, Vec::new());
    if !ours.is_empty() {
        target = record.vmm().map_or(Ok(None), |vmm| origin(&path, part, vmm, record))?.unwrap_or(target);
        for process in record.processes.iter().filter(|_| whole && is_occupied) {
            let home = origin(&path, part, process, record)?.filter(|home| *home != target);
            homes.extend(home.map(|home| (process.pid, process.start, home)));
        }
    }
    Ok(Some(Leftover { group: Some(Occupied { path, is_occupied, target, whole, homes }), prune }))
}

/// The unbroken run of groups above that are ours, and the nearest above that is not and takes threads. Where one does not stand
/// (any more), the next above counts.
fn above(path: &GroupPath, record: &Record) -> Result<(Vec<GroupPath>, GroupPath), Error> {
    let (mut ours, mut is_unbroken) = (Vec::new(), true);
    let mut next = path.parent();
    while let Some(path) = next {
        let level = site::level(&path, record)?;
        next = path.parent();
        if level.standing.is_none() {
            continue;
        }
        if is_ours(&level) {
            if is_unbroken {
                ours.push(path);
            }
        } else if takes_threads(&level) {
            return Ok((ours, path));
        } else {
            is_unbroken = false;
        }
    }
    Ok((ours, GroupPath::new(&path.hierarchy, "")))
}

/// Of the groups above that are ours, those that hold no thread and no group but the one below them.
fn that_empty(path: &GroupPath, above: &[GroupPath]) -> Result<Vec<GroupPath>, Error> {
    let mut below = path.rel.as_path();
    let mut emptying = Vec::new();
    for path in above {
        let Some(open) = path.open()? else { continue };
        let is_below = |child: &String| below.starts_with(path.rel.join(child));
        let is_empty = open.members(path.threads_file())?.is_empty() && open.children()?.iter().all(is_below);
        if !is_empty {
            break;
        }
        emptying.push(path.clone());
        below = &path.rel;
    }
    Ok(emptying)
}

/// Whether a group is this sandbox's own: ours, and not marked for another unless this one took it over.
fn is_of(level: &Level, record: &Record) -> bool {
    level.standing.as_ref().is_some_and(|standing| {
        let is_others = standing.mark.as_ref().is_some_and(|mark| *mark != record.sandbox);
        standing.is_ours && (!is_others || record.knows(&level.path.absolute(), standing.inode))
    })
}

/// Whether a group above is ours, whichever sandbox it was made for.
fn is_ours(level: &Level) -> bool {
    level.standing.as_ref().is_some_and(|standing| standing.is_ours)
}

/// Whether threads can be moved there: a v1 cpuset must not be empty.
fn takes_threads(level: &Level) -> bool {
    let Some(standing) = &level.standing else { return false };
    let is_filled = |text: &String| text.parse::<CpuList>().is_ok_and(|list| !list.is_empty());
    [file::CPUS, file::MEMS].iter().all(|file| standing.values.get(file).is_none_or(is_filled))
}

/// Where a process came from, if that is known and still stands outside of what we made.
fn origin(group: &GroupPath, part: Part, process: &RecordedProcess, record: &Record) -> Result<Option<GroupPath>, Error> {
    let mut controllers = group.hierarchy.controllers.iter().filter(|one| one.part() == part);
    let from = controllers.find_map(|one| process.from.get(one.name()));
    let Some(from) = from.and_then(|path| group.hierarchy.below_mount(path)) else { return Ok(None) };
    let from = GroupPath::new(&group.hierarchy, from);
    let level = site::level(&from, record)?;
    Ok((level.standing.is_some() && !is_ours(&level) && takes_threads(&level)).then_some(from))
}

/// The values that adopted groups had before us, in an order that the kernel takes.
pub fn restorations(record: &Record, mounts: &Mounts) -> Result<Vec<Assignment>, Error> {
    let mut steps = Vec::new();
    for adopted in &record.adopted {
        let Some(group) = locate(&mounts.hierarchies, &adopted.path) else {
            continue;
        };
        let Some(open) = group.open()? else { continue };
        let mut is_quota_cleared = false;
        for file in group.hierarchy.controllers.iter().flat_map(|one| file::of(*one)).copied() {
            let Some(value) = adopted.values.get(file).filter(|value| !value.is_empty()) else { continue };
            let Some(present) = open.read_if_there(file)? else { continue };
            if present == *value && !(file == file::QUOTA && is_quota_cleared) {
                continue;
            }
            // A quota may stand in the way of the period that belongs to the older one.
            if file == file::PERIOD {
                steps.push((group.clone(), file::QUOTA, "-1".to_owned()));
                is_quota_cleared = true;
            }
            steps.push((group.clone(), file, value.clone()));
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::record::{Adopted, RecordedGroup};
    use crate::testing;

    /// Hierarchies in a temporary directory and a record that knows some of their groups.
    struct Host {
        dir: tempfile::TempDir,
        mounts: Mounts,
        record: Record,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mounts = testing::mounts(dir.path());
            let host = Self { dir, mounts, record: Record::new("sb") };
            for one in Controller::ALL {
                host.fill(one.name(), "");
            }
            host
        }

        fn fill(&self, group: &str, members: &str) {
            for file in ["tasks", "cgroup.procs"] {
                std::fs::write(self.dir.path().join(group).join(file), members).unwrap();
            }
        }

        /// A group with `members`; ours ones are in the record.
        fn make(&mut self, group: &str, members: &str, is_ours: bool) {
            let path = self.dir.path().join(group);
            std::fs::create_dir(&path).unwrap();
            self.fill(group, members);
            if is_ours {
                let (controller, _) = group.split_once('/').unwrap();
                let inode = std::fs::metadata(&path).unwrap().ino();
                let is_own = group.ends_with("kata_x") || group.ends_with("vcpu");
                let list = if is_own { &mut self.record.groups } else { &mut self.record.parents };
                list.push(RecordedGroup { path, controllers: vec![controller.into()], inode });
            }
        }

        /// Each leftover as "group(+ if occupied) > target - pruned".
        fn left(&self) -> Vec<String> {
            let name = |group: &GroupPath| group.absolute().strip_prefix(self.dir.path()).unwrap().display().to_string();
            let line = |left: &Leftover| {
                let own = left.group.as_ref().map_or("none".to_owned(), |own| {
                    format!("{}{} > {}", name(&own.path), if own.is_occupied { "+" } else { "" }, name(&own.target))
                });
                format!("{own} - {}", left.prune.iter().map(name).collect::<Vec<_>>().join(" "))
            };
            let path = SandboxPath::recorded("pod/kata_x").unwrap();
            let left = of(&self.record, Some(&path), &self.mounts).unwrap();
            left.iter().filter(|left| left.group.is_some() || !left.prune.is_empty()).map(line).collect()
        }
    }

    #[test]
    fn a_group_below_a_foreign_one_drains_to_it() {
        let mut host = Host::new();
        host.make("cpu/pod", "", false);
        host.make("cpu/pod/kata_x", "7\n", true);
        assert_eq!(host.left(), ["cpu/pod/kata_x+ > cpu/pod - "]);
    }

    #[test]
    fn where_the_group_above_is_ours_too_it_drains_to_where_the_vm_came_from() {
        let mut host = Host::new();
        host.make("cpu/engine", "", false);
        host.make("cpu/pod", "", true);
        host.make("cpu/pod/kata_x", "", true);
        assert_eq!(host.left(), ["cpu/pod/kata_x > cpu - cpu/pod"]);
        let from = BTreeMap::from([("cpu".to_owned(), "/engine".into())]);
        host.record.processes.push(RecordedProcess { pid: 1, start: 1, role: "vmm".into(), from });
        assert_eq!(host.left(), ["cpu/pod/kata_x > cpu/engine - cpu/pod"]);
        std::fs::remove_dir_all(host.dir.path().join("cpu/engine")).unwrap();
        assert_eq!(host.left(), ["cpu/pod/kata_x > cpu - cpu/pod"]);
    }

    #[test]
    fn a_helper_goes_back_to_where_it_came_from_itself() {
        let mut host = Host::new();
        host.make("memory/kata", "", true);
        host.make("memory/kata/pod", "", true);
        host.make("memory/kata/pod/kata_x", "1\n2\n", true);
        host.make("memory/engine", "", false);
        host.make("memory/other", "", false);
        let process = |pid, role: &str, from: &str| {
            let from = BTreeMap::from([("memory".to_owned(), from.into())]);
            RecordedProcess { pid, start: 5, role: role.into(), from }
        };
        host.record.processes = vec![process(1, "vmm", "/engine"), process(2, "helper", "/other")];
        assert_eq!(host.left(), ["memory/kata/pod/kata_x+ > memory/engine - memory/kata/pod memory/kata"]);
        let path = SandboxPath::recorded("pod/kata_x").unwrap();
        let left = of(&host.record, Some(&path), &host.mounts).unwrap();
        let homes = &left.iter().find_map(|left| left.group.as_ref()).unwrap().homes;
        assert_eq!(
            homes.iter().map(|(pid, start, home)| (*pid, *start, home.rel.clone())).collect::<Vec<_>>(),
            [(2, 5, "other".into())]
        );
    }

    #[test]
    fn a_cpuset_that_is_empty_takes_nobody() {
        let mut host = Host::new();
        std::fs::write(host.dir.path().join("cpuset/cpuset.cpus"), "0-1\n").unwrap();
        std::fs::write(host.dir.path().join("cpuset/cpuset.mems"), "0\n").unwrap();
        host.make("cpuset/pod", "", false);
        std::fs::write(host.dir.path().join("cpuset/pod/cpuset.cpus"), "\n").unwrap();
        host.make("cpuset/pod/kata_x", "7\n", true);
        assert_eq!(host.left(), ["cpuset/pod/kata_x+ > cpuset - "]);
    }

    #[test]
    fn whole_processes_leave_the_memory_group_and_only_what_empties_is_pruned() {
        let mut host = Host::new();
        host.make("memory/kata", "", true);
        host.make("memory/kata/other", "", false);
        host.make("memory/kata/pod", "", true);
        host.make("memory/kata/pod/kata_x", "9\n", true);
        assert_eq!(host.left(), ["memory/kata/pod/kata_x+ > memory - memory/kata/pod"]);
        host.fill("memory/kata/pod", "9\n");
        assert_eq!(host.left(), ["memory/kata/pod/kata_x+ > memory - "]);
    }

    #[test]
    fn a_group_that_is_not_ours_is_left_alone_whatever_its_name() {
        let mut host = Host::new();
        host.make("cpu/pod", "", true);
        host.make("cpu/pod/kata_x", "", false);
        assert_eq!(host.left(), Vec::<String>::new());
    }

    #[test]
    fn our_child_of_katas_group_goes_and_katas_stays() {
        let mut host = Host::new();
        host.make("cpu/pod", "", false);
        host.make("cpu/pod/kata_x", "", false);
        host.make("cpu/pod/kata_x/vcpu", "7\n", true);
        assert_eq!(host.left(), ["cpu/pod/kata_x/vcpu+ > cpu/pod/kata_x - "]);
    }

    #[test]
    fn what_a_killed_run_intended_is_ours_if_it_is_empty() {
        let mut host = Host::new();
        host.make("cpu/pod", "", false);
        host.make("cpu/pod/kata_x", "", false);
        let path = host.dir.path().join("cpu/pod/kata_x");
        host.record.groups.push(RecordedGroup { path, controllers: vec!["cpu".into()], inode: 0 });
        assert_eq!(host.left(), ["cpu/pod/kata_x > cpu/pod - "]);
        host.fill("cpu/pod/kata_x", "7\n");
        assert_eq!(host.left(), Vec::<String>::new());
    }

    #[test]
    fn parents_that_a_killed_run_made_go_though_the_group_never_stood() {
        let mut host = Host::new();
        host.make("cpu/pod", "", true);
        assert_eq!(host.left(), ["none - cpu/pod"]);
    }

    #[test]
    fn adopted_groups_get_back_what_differs_the_quota_out_of_the_periods_way_first() {
        let mut host = Host::new();
        host.make("cpu/kata_x", "", false);
        let write = |file: &str, value: &str| std::fs::write(host.dir.path().join("cpu/kata_x").join(file), value).unwrap();
        write("cpu.shares", "512\n");
        write("cpu.cfs_period_us", "50000\n");
        write("cpu.cfs_quota_us", "50000\n");
        let values = [("cpu.shares", "512"), ("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "70000")];
        let values = values.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect();
        host.record.adopted.push(Adopted { path: host.dir.path().join("cpu/kata_x"), values });
        let steps: Vec<_> =
            restorations(&host.record, &host.mounts).unwrap().into_iter().map(|(_, file, value)| (file, value)).collect();
        let expected = [("cpu.cfs_quota_us", "-1"), ("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "70000")];
        assert_eq!(steps, expected.map(|(file, value)| (file, value.to_owned())));
        // A quota that is right already comes back after the period all the same.
        write("cpu.cfs_quota_us", "70000\n");
        let again: Vec<_> = restorations(&host.record, &host.mounts).unwrap().into_iter().map(|step| step.2).collect();
        assert_eq!(again, ["-1", "100000", "70000"]);
    }
}
