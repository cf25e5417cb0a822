//! What of a sandbox still stands, and where what is in it goes when it ends.
//!
//! Leftovers go to the group above; where that is ours too and goes as well, or takes nobody, to the group they came from if
//! that is known and stands, else to the nearest above that is not ours and takes them. On v2 whole processes leave, and their
//! vCPU threads with them, as no thread can leave its process's domain. Only what is ours is found here: a name proves nothing.

use crate::cgroup::cpulist::CpuList;
use crate::cgroup::group::{Group, GroupPath, locate};
use crate::cgroup::mounts::{Mounts, Version};
use crate::cgroup::path::{Domain, SandboxPath, VCPUS};
use crate::cgroup::settings::Assignment;
use crate::cgroup::site::{self, Level};
use crate::cgroup::v2::{sites, values};
use crate::cgroup::{Controller, Part, file, v1};
use crate::error::Error;
use crate::order;
use crate::record::{Record, RecordedGroup, RecordedProcess};

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

/// Everything of a sandbox that stands: at its place, and wherever its record says. What cannot be looked at is left to the next run,
/// and why is added to `unseen`; it keeps nothing else from going.
pub fn of(record: &Record, path: Option<&SandboxPath>, mounts: &Mounts, unseen: &mut Vec<Error>) -> Vec<Leftover> {
    let mut candidates = path.map_or_else(Vec::new, |path| at_place(path, mounts, unseen));
    unseen.extend(out_of_sight(record, &candidates, mounts));
    for group in &record.groups {
        let Some(path) = locate(&mounts.hierarchies, &group.path) else { continue };
        let part = part_of(group, &path);
        if candidates.iter().all(|(known, _)| *known != path) {
            candidates.push((path, part));
        }
    }
    // A domain goes after the group within it.
    order::sort_by_key(&mut candidates, |(path, part)| path.hierarchy.version == Version::V2 && *part == Part::Unconstrained);
    let mut leftovers = Vec::new();
    for (group, part) in candidates {
        let left = match (group.hierarchy.version, part) {
            (Version::V2, Part::Constrained) => vcpus_leftover(group, record),
            _ => leftover(group, part, record),
        };
        match left {
            Ok(left) => leftovers.extend(left),
            Err(error) => unseen.push(error),
        }
    }
    leftovers
}

/// The recorded groups that are on no mount: forgotten with the record, they would be nobody's. Where its hierarchy is mounted elsewhere
/// by now, one that we made is `at_place` there; what one of Kata's had before us cannot be given back to any other.
fn out_of_sight(record: &Record, at_place: &[(GroupPath, Part)], mounts: &Mounts) -> Vec<Error> {
    let is_at_place = |group: &RecordedGroup| {
        at_place.iter().any(|(known, _)| {
            let carries = |name: &String| known.hierarchy.controllers.iter().any(|one| one.name() == name);
            group.path.ends_with(&known.rel) && group.controllers.iter().any(carries)
        })
    };
    let made = record.groups.iter().filter(|group| !is_at_place(group)).map(|group| &group.path);
    let adopted = record.adopted.iter().filter(|adopted| !adopted.values.is_empty()).map(|adopted| &adopted.path);
    let unseen = made.chain(adopted).filter(|path| locate(&mounts.hierarchies, path).is_none());
    unseen.map(|path| Error::NotMounted { path: path.clone() }).collect()
}

/// Which part of a sandbox a recorded group holds, which is at `path`.
pub fn part_of(group: &RecordedGroup, path: &GroupPath) -> Part {
    let is_memory = group.controllers.iter().any(|one| one == Controller::Memory.name());
    let is_whole = match path.hierarchy.version {
        Version::V1 => is_memory,
        Version::V2 => !path.rel.ends_with(VCPUS),
    };
    if is_whole { Part::Unconstrained } else { Part::Constrained }
}

/// The groups that a sandbox may have at its place, deepest first.
fn at_place(path: &SandboxPath, mounts: &Mounts, unseen: &mut Vec<Error>) -> Vec<(GroupPath, Part)> {
    let mut groups = Vec::new();
    for (hierarchy, part) in v1::sites::parts(mounts) {
        let group = GroupPath::new(hierarchy, path.v1(part));
        let child = group.child(VCPUS);
        let standing = if part == Part::Constrained { child.open() } else { Ok(None) };
        match standing {
            Ok(Some(_)) => groups.push((child, part)),
            Ok(None) => {}
            Err(error) => unseen.push(error),
        }
        groups.push((group, part));
    }
    for domain in [Domain::Kata, Domain::Pod] {
        let domain = mounts.v2().map(|hierarchy| GroupPath::new(hierarchy, path.v2(domain)));
        groups.extend(
            domain.into_iter().flat_map(|domain| [(domain.child(VCPUS), Part::Constrained), (domain, Part::Unconstrained)]),
        );
    }
    // A VMM that is the shim stays in a group that carries the container's plain name.
    groups.extend(mounts.v2().map(|v2| (GroupPath::new(v2, path.unprefixed()).child(VCPUS), Part::Constrained)));
    groups
}

/// What is left of the vCPU threads' group on v2. Where the domain goes too, it goes once the threads have left with their processes.
fn vcpus_leftover(path: GroupPath, record: &Record) -> Result<Option<Leftover>, Error> {
    let (Some(open), Some(domain)) = (path.open()?, path.parent()) else { return Ok(None) };
    let level = site::entry(&path, record)?;
    let goes_with_domain = is_of(&site::entry(&domain, record)?, record);
    // Not threaded yet when its maker was killed, it may hold a process, which cannot be emptied out thread by thread.
    if level.value(file::TYPE) == Some("domain") {
        let left = if is_of(&level, record) { leftover(path, Part::Unconstrained, record)? } else { None };
        // What is above it is the domain's to tell.
        return Ok(left.map(|left| Leftover { prune: Vec::new(), ..left }));
    }
    // In a domain of ours a threaded group can hold nothing but the sandbox's own threads, whoever made it.
    if !goes_with_domain && !is_of(&level, record) {
        return Ok(None);
    }
    // The domain's processes take their vCPU threads along. Emptied by itself, as where the domain cannot be read or emptied this time,
    // it would leave them in a group without a limit.
    if goes_with_domain {
        return Ok(Some(Leftover { group: None, prune: vec![path] }));
    }
    let is_occupied = !open.members(path.threads_file())?.is_empty();
    let group = Occupied { path, is_occupied, target: domain, whole: false, homes: Vec::new() };
    Ok(Some(Leftover { group: Some(group), prune: Vec::new() }))
}

/// What is left of the sandbox at `path` and above; nothing where a group stands that is not its own.
fn leftover(path: GroupPath, part: Part, record: &Record) -> Result<Option<Leftover>, Error> {
    let (ours, nearest) = above(&path, record)?;
    let prune = that_empty(&path, &ours)?;
    let Some(open) = path.open()? else { return Ok(Some(Leftover { group: None, prune })) };
    let level = site::entry(&path, record)?;
    let whole = part == Part::Unconstrained;
    let is_occupied = is_occupied(&open, &level, whole)?;
    if !is_of(&level, record) {
        return Ok(None);
    }
    let (mut target, mut homes) = (nearest, Vec::new());
    // The root of v2 takes everybody, and is nobody's place.
    let is_v2_root = path.hierarchy.version == Version::V2 && target.rel.as_os_str().is_empty();
    if is_v2_root || path.parent().as_ref() != Some(&target) {
        target = record.vmm().map_or(Ok(None), |vmm| origin(&path, part, vmm, record))?.unwrap_or(target);
        for process in record.processes.iter().filter(|_| whole && is_occupied) {
            let home = origin(&path, part, process, record)?.filter(|home| *home != target);
            homes.extend(home.map(|home| (process.pid, process.start, home)));
        }
    }
    Ok(Some(Leftover { group: Some(Occupied { path, is_occupied, target, whole, homes }), prune }))
}

/// Whether anybody is in a group. One on v2 that is no domain holds no process, and its list of them cannot be read.
fn is_occupied(group: &Group, level: &Level, whole: bool) -> Result<bool, Error> {
    let is_none = level.value(file::TYPE).is_some_and(|kind| kind == "domain invalid");
    Ok(!is_none && !group.members(level.path.list_of(whole))?.is_empty())
}

/// The unbroken run of groups above that are ours, and the nearest above that is not and takes threads. Where one does not stand
/// (any more), the next above counts.
fn above(path: &GroupPath, record: &Record) -> Result<(Vec<GroupPath>, GroupPath), Error> {
    let (mut ours, mut is_unbroken) = (Vec::new(), true);
    let mut next = path.parent();
    while let Some(path) = next {
        let level = site::entry(&path, record)?;
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

/// Whether threads can be moved there: a v1 cpuset must not be empty, and a v2 group that passes controllers on holds no process,
/// unless it is the root (cgroup-v2.rst, "No Internal Process Constraint").
fn takes_threads(level: &Level) -> bool {
    if level.standing.is_none() {
        return false;
    }
    match level.path.hierarchy.version {
        Version::V1 => {
            let is_filled = |text: &str| text.parse::<CpuList>().is_ok_and(|list| !list.is_empty());
            [file::CPUS, file::MEMS].iter().all(|file| level.value(file).is_none_or(is_filled))
        }
        Version::V2 => {
            let is_plain = level.value(file::SUBTREE) == Some("") && level.value(file::TYPE) == Some("domain");
            is_plain || level.is_v2_root()
        }
    }
}

/// Where a process came from, if that is known and still stands outside of what we made.
fn origin(group: &GroupPath, part: Part, process: &RecordedProcess, record: &Record) -> Result<Option<GroupPath>, Error> {
    let from = group.hierarchy.controllers_of(part).find_map(|one| process.from.get(one.name()));
    let Some(from) = from.and_then(|path| group.hierarchy.below_mount(path)) else { return Ok(None) };
    let from = GroupPath::new(&group.hierarchy, from);
    let level = site::entry(&from, record)?;
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
        if open.inode()? != adopted.inode {
            continue;
        }
        let mut is_shorter = false;
        let mut of_group: Vec<Assignment> = Vec::new();
        for file in file::of(&group.hierarchy) {
            let Some(value) = adopted.values.get(file) else { continue };
            let Some(present) = open.read_if_there(file)? else { continue };
            if present == *value {
                continue;
            }
            if file == file::PERIOD {
                is_shorter =
                    matches!((value.parse::<u64>(), present.parse::<u64>()), (Ok(value), Ok(present)) if value < present);
            }
            let value = file::restoring(file, value, &given(file, present));
            of_group.extend(value.map(|value| (group.clone(), file, value)));
        }
        // Never looser in between than before or after, as when they were set: a longer period goes first, a shorter one last.
        order::sort_by_key(&mut of_group, |(_, file, _)| is_shorter && *file == file::PERIOD);
        steps.extend(of_group);
    }
    Ok(steps)
}

/// What we may have written into an adopted group's file, now that it reads `present`.
fn given(file: &str, present: String) -> String {
    if file == file::SUBTREE { values::passed_on_by_a_domain() } else { present }
}

/// What /kata is to weigh once these are gone: as much as the groups that stay in it together.
pub fn weight_of_kata(leftovers: &[Leftover], record: &Record) -> Result<Vec<Assignment>, Error> {
    let mut assignments = Vec::new();
    for left in leftovers {
        let domain = left.group.iter().map(|group| &group.path).filter(|path| path.hierarchy.version == Version::V2);
        let Some(first) = domain.chain(&left.prune).find(|path| path.parent().is_some_and(|above| sites::is_kata(&above)))
        else {
            continue;
        };
        let Some(kata) = first.parent().filter(|kata| !left.prune.contains(kata)) else { continue };
        let level = site::level(&kata, record)?;
        let staying = sites::weights_in(&kata, |name| first.rel.ends_with(name))?;
        let weight = values::together(0, &staying).to_string();
        if is_ours(&level) && !staying.is_empty() && level.value(file::WEIGHT).is_some_and(|present| present != weight) {
            assignments.push((kata, file::WEIGHT, weight));
        }
    }
    Ok(assignments)
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
                let is_own = group.ends_with("kata_x") || group.ends_with(VCPUS);
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
            let left = of(&self.record, Some(&path), &self.mounts, &mut Vec::new());
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
        let left = of(&host.record, Some(&path), &host.mounts, &mut Vec::new());
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
    fn a_recorded_group_on_no_mount_is_told_unless_its_hierarchy_is_mounted_elsewhere() {
        let mut host = Host::new();
        host.make("cpu/pod", "", false);
        host.make("cpu/pod/kata_x", "", true);
        host.mounts.hierarchies.retain(|hierarchy| !hierarchy.carries(Controller::Memory));
        let make = |path: &str, controller: &str| {
            let controllers = vec![controller.to_owned()];
            RecordedGroup { path: path.into(), controllers, inode: 7 }
        };
        host.record.groups = vec![make("/before/pod/kata_x", "cpu"), make("/gone/kata/pod/kata_x", "memory")];
        let values = BTreeMap::from([("cpu.shares".to_owned(), "512".to_owned())]);
        for values in [values, BTreeMap::new()] {
            host.record.adopted.push(Adopted { path: "/before/pod/kata_x".into(), inode: 7, values });
        }
        let mut unseen = Vec::new();
        of(&host.record, SandboxPath::recorded("pod/kata_x").as_ref(), &host.mounts, &mut unseen);
        let unseen: Vec<String> = unseen.iter().map(ToString::to_string).collect();
        assert_eq!(unseen.len(), 2, "{unseen:?}");
        assert!(unseen[0].starts_with("/gone/kata/pod/kata_x of its record is on no cgroup file system"), "{unseen:?}");
        assert!(unseen[1].starts_with("/before/pod/kata_x of its record"), "values that cannot be given back: {unseen:?}");
    }

    #[test]
    fn parents_that_a_killed_run_made_go_though_the_group_never_stood() {
        let mut host = Host::new();
        host.make("cpu/pod", "", true);
        assert_eq!(host.left(), ["none - cpu/pod"]);
    }

    #[test]
    fn adopted_groups_get_back_what_differs_and_have_no_more_in_between() {
        let mut host = Host::new();
        host.make("cpu/kata_x", "", false);
        let write = |file: &str, value: &str| std::fs::write(host.dir.path().join("cpu/kata_x").join(file), value).unwrap();
        write("cpu.shares", "512\n");
        write("cpu.cfs_period_us", "50000\n");
        write("cpu.cfs_quota_us", "50000\n");
        let values = [("cpu.shares", "512"), ("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "70000")];
        let values = values.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect();
        host.record.adopted.push(adopted(host.dir.path().join("cpu/kata_x"), values));
        let steps = |host: &Host| -> Vec<(&str, String)> {
            restorations(&host.record, &host.mounts).unwrap().into_iter().map(|(_, file, value)| (file, value)).collect()
        };
        let (period, quota) = (("cpu.cfs_period_us", "100000".to_owned()), ("cpu.cfs_quota_us", "70000".to_owned()));
        assert_eq!(steps(&host), [period.clone(), quota.clone()]);
        write("cpu.cfs_period_us", "200000\n");
        assert_eq!(steps(&host), [quota, period.clone()]);
        // What a run that was killed had given back already.
        write("cpu.cfs_quota_us", "70000\n");
        assert_eq!(steps(&host), [period]);
        host.record.adopted[0].inode += 1;
        assert_eq!(restorations(&host.record, &host.mounts).unwrap(), [], "another group by the same name");
    }

    fn adopted(path: std::path::PathBuf, values: BTreeMap<String, String>) -> Adopted {
        let inode = std::fs::metadata(&path).unwrap().ino();
        Adopted { path, inode, values }
    }

    /// A v2 host with a sandbox placed below /kata: the domain passes on what the vCPU threads' group has.
    struct Unified {
        dir: tempfile::TempDir,
        mounts: Mounts,
        record: Record,
    }

    impl Unified {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            testing::make_v2(dir.path(), "", "cpu cpuset memory", "");
            let all = [Controller::Cpu, Controller::Cpuset, Controller::Memory];
            let mounts = Mounts { hierarchies: vec![testing::unified_at(dir.path(), &all)], ..Mounts::default() };
            Self { dir, mounts, record: Record::new("sb") }
        }

        fn make(&mut self, group: &str, subtree: &str, threads: &str, is_ours: bool) {
            testing::make_v2(self.dir.path(), group, subtree, threads);
            if is_ours {
                let path = self.dir.path().join(group);
                let inode = std::fs::metadata(&path).unwrap().ino();
                let is_own = group.ends_with("kata_x") || group.ends_with(VCPUS);
                let list = if is_own { &mut self.record.groups } else { &mut self.record.parents };
                list.push(RecordedGroup { path, controllers: vec!["cpu".into()], inode });
            }
        }

        fn weigh(&self, group: &str, weight: u64) {
            std::fs::write(self.dir.path().join(group).join("cpu.weight"), format!("{weight}\n")).unwrap();
        }

        /// A sandbox with `apart` before its place: "kata/" or nothing.
        fn place(&mut self, apart: &str, is_domain_ours: bool) {
            self.make(&format!("{apart}pod/kata_x"), "cpu cpuset", "7\n9", is_domain_ours);
            self.make(&format!("{apart}pod/kata_x/vcpu"), "", "8", true);
        }

        fn leftovers(&self) -> Vec<Leftover> {
            of(&self.record, SandboxPath::recorded("pod/kata_x").as_ref(), &self.mounts, &mut Vec::new())
        }

        fn name(&self, group: &GroupPath) -> String {
            group.absolute().strip_prefix(self.dir.path()).unwrap().display().to_string()
        }

        /// Each leftover as "group(+ if occupied) > target - pruned".
        fn left(&self) -> Vec<String> {
            let line = |left: &Leftover| {
                let Some(own) = left.group.as_ref() else {
                    return left.prune.first().map(|group| self.name(group));
                };
                let (group, target) = (self.name(&own.path), self.name(&own.target));
                let prune: Vec<String> = left.prune.iter().map(|path| self.name(path)).collect();
                Some(format!("{group}{} > {target} - {}", if own.is_occupied { "+" } else { "" }, prune.join(" ")))
            };
            self.leftovers().iter().filter_map(line).collect()
        }
    }

    #[test]
    fn on_v2_whole_processes_leave_the_domain_and_the_group_in_it_goes_first() {
        let mut host = Unified::new();
        host.make("kata", "cpu cpuset memory", "", true);
        host.make("kata/pod", "cpu cpuset memory", "", true);
        host.place("kata/", true);
        let vcpus = "kata/pod/kata_x/vcpu";
        assert_eq!(host.left(), [vcpus, "kata/pod/kata_x+ >  - kata/pod kata"]);
        host.make("engine", "", "1", false);
        let from = BTreeMap::from([("cpu".to_owned(), "/engine".into())]);
        host.record.processes.push(RecordedProcess { pid: 7, start: 1, role: "vmm".into(), from });
        assert_eq!(host.left(), [vcpus, "kata/pod/kata_x+ > engine - kata/pod kata"]);
    }

    #[test]
    fn on_v2_a_group_that_passes_controllers_on_takes_nobody() {
        let mut host = Unified::new();
        host.make("pod", "cpu cpuset memory", "", false);
        host.place("", true);
        assert_eq!(host.left()[1], "pod/kata_x+ >  - ");
        // Where they came from is better than the root.
        host.make("engine", "", "1", false);
        let from = BTreeMap::from([("memory".to_owned(), "/engine".into())]);
        host.record.processes.push(RecordedProcess { pid: 7, start: 1, role: "vmm".into(), from });
        assert_eq!(host.left()[1], "pod/kata_x+ > engine - ");
        host.make("engine", "cpu", "", false);
        assert_eq!(host.left()[1], "pod/kata_x+ >  - ", "which takes nobody either by now");
        host.make("pod", "", "", false);
        assert_eq!(host.left()[1], "pod/kata_x+ > pod - ");
    }

    #[test]
    fn on_v2_who_came_from_elsewhere_does_not_end_in_the_root() {
        let mut host = Unified::new();
        host.make("kata_x", "cpu cpuset", "7\n9", true);
        host.make("kata_x/vcpu", "", "8", true);
        host.make("engine", "", "1", false);
        let from = BTreeMap::from([("cpu".to_owned(), "/engine".into())]);
        host.record.processes.push(RecordedProcess { pid: 7, start: 1, role: "vmm".into(), from });
        let left = of(&host.record, SandboxPath::recorded("kata_x").as_ref(), &host.mounts, &mut Vec::new());
        let domain = left.iter().filter_map(|left| left.group.as_ref()).find(|group| group.whole).unwrap();
        assert_eq!(host.name(&domain.target), "engine");
    }

    #[test]
    fn on_v2_a_threaded_group_in_a_domain_of_ours_goes_with_it_whoever_made_it() {
        let mut host = Unified::new();
        host.make("pod", "", "", false);
        host.make("pod/kata_x", "cpu cpuset", "7\n9", true);
        host.make("pod/kata_x/vcpu", "", "8", false);
        assert_eq!(host.left(), ["pod/kata_x/vcpu", "pod/kata_x+ > pod - "]);
    }

    #[test]
    fn on_v2_a_group_of_the_vcpus_that_is_not_threaded_yet_leaves_what_is_above_to_the_domain() {
        let mut host = Unified::new();
        host.make("kata", "cpu cpuset memory", "", true);
        host.make("kata/pod", "cpu cpuset memory", "", true);
        host.place("kata/", true);
        std::fs::write(host.dir.path().join("kata/pod/kata_x/vcpu/cgroup.type"), "domain\n").unwrap();
        let pruned: Vec<usize> = host.leftovers().iter().map(|left| left.prune.len()).filter(|count| *count > 0).collect();
        assert_eq!(pruned, [2], "kata/pod and kata, told once");
    }

    #[test]
    fn on_v2_threads_in_a_domain_of_katas_stay_with_their_process_and_the_domain_is_given_back() {
        let mut host = Unified::new();
        host.make("pod", "cpu cpuset memory", "", false);
        host.place("", false);
        host.weigh("pod/kata_x", 150);
        assert_eq!(host.left(), ["pod/kata_x/vcpu+ > pod/kata_x - "]);
        let values = [(file::SUBTREE, ""), (file::WEIGHT, "77"), (file::TYPE, "domain")];
        let values = values.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect();
        host.record.adopted.push(adopted(host.dir.path().join("pod/kata_x"), values));
        let given_back: Vec<_> =
            restorations(&host.record, &host.mounts).unwrap().into_iter().map(|(_, file, value)| (file, value)).collect();
        assert_eq!(given_back, [(file::SUBTREE, "-cpu -cpuset".to_owned()), (file::WEIGHT, "77".to_owned())]);
    }

    #[test]
    fn kata_weighs_less_once_one_sandbox_has_gone() {
        let mut host = Unified::new();
        host.make("kata", "cpu cpuset memory", "", true);
        host.make("kata/pod", "cpu cpuset memory", "", true);
        host.place("kata/", true);
        let weight = |host: &Unified| {
            weight_of_kata(&host.leftovers(), &host.record).unwrap().into_iter().map(|(_, _, value)| value).next()
        };
        host.weigh("kata", 189);
        assert_eq!(weight(&host), None, "nothing stays in it, and it goes itself");
        host.make("kata/other", "cpu cpuset memory", "", false);
        host.weigh("kata/other", 150);
        assert_eq!(weight(&host).as_deref(), Some("150"));
        host.make("kata/pod/second", "", "3", false);
        assert_eq!(weight(&host), None, "what the sandbox was in stays");
    }
}
