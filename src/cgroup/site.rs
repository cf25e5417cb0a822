//! A sandbox's site in a hierarchy: which group is to hold its threads, and what stands there and above already.
//!
//! The CPU hierarchies get `<dir>/kata_<base>` for the vCPU threads, memory gets `/kata/<dir>/kata_<base>` for the processes.
//! Kata Go with the cgroupfs driver makes `<dir>/kata_<base>` itself. Such a group is not ours: where it holds the VMM itself
//! (sandbox_cgroup_only=true) ours is a child `vcpu` of it, else it is adopted: our values, restored in the end.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::cgroup::file;
use crate::cgroup::group::{Group, GroupPath};
use crate::cgroup::mounts::{Hierarchy, Mounts, Version};
use crate::cgroup::path::SandboxPath;
use crate::cgroup::{Controller, Part};
use crate::error::Error;
use crate::record::Record;
use crate::vmm::{Thread, Vm};

/// The file of a limit, and the values that a group has or is to have.
pub type Values = BTreeMap<&'static str, String>;

/// A sandbox's group in one hierarchy, with everything on the way to it.
#[derive(Debug, Clone)]
pub struct Site {
    pub part: Part,
    /// The group that is to hold the threads.
    pub group: GroupPath,
    /// From the top of the hierarchy down to the group.
    pub levels: Vec<Level>,
    /// It is Kata's own group that we use.
    pub is_adopted: bool,
}

/// A group on that way.
#[derive(Debug, Clone)]
pub struct Level {
    pub path: GroupPath,
    /// None if it is still to be made.
    pub standing: Option<Standing>,
}

/// A group that stands.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    pub inode: u64,
    /// The sandbox that it was made for, if by us.
    pub mark: Option<String>,
    /// We made it: it carries our mark, or the record knows its inode.
    pub is_ours: bool,
    pub values: Values,
}

impl Site {
    /// The group's own level.
    pub fn own(&self) -> Option<&Standing> {
        self.levels.last().and_then(|level| level.standing.as_ref())
    }

    /// The levels above the group, nearest first.
    pub fn above(&self) -> impl Iterator<Item = &Level> {
        self.levels.iter().rev().skip(1)
    }

    /// The controller by which a thread's place in this hierarchy is known.
    pub fn controller(&self) -> &'static str {
        self.group.hierarchy.controllers.first().map_or("", |controller| controller.name())
    }

    /// Where a thread is now in this hierarchy, if that is below the mount point.
    pub fn place_of(&self, thread: &Thread) -> Option<GroupPath> {
        let hierarchy = &self.group.hierarchy;
        Some(GroupPath::new(hierarchy, hierarchy.below_mount(thread.groups.v1(self.controller())?)?))
    }
}

/// Reads what stands at the sandbox's place in every v1 hierarchy.
pub fn survey(mounts: &Mounts, path: &SandboxPath, vm: &Vm, record: &Record) -> Result<Vec<Site>, Error> {
    let mut sites = Vec::new();
    for (hierarchy, part) in parts(mounts) {
        let group = GroupPath::new(hierarchy, path.v1(part));
        sites.push(site(group, part, vm, record)?);
    }
    Ok(sites)
}

/// The v1 hierarchies with the part of a sandbox that each holds; both parts where cpu and memory are co-mounted.
pub fn parts(mounts: &Mounts) -> Vec<(&Rc<Hierarchy>, Part)> {
    let v1 = mounts.hierarchies.iter().filter(|hierarchy| hierarchy.version == Version::V1);
    let of_part = |part| move |hierarchy: &&Rc<Hierarchy>| hierarchy.controllers.iter().any(|one| one.part() == part);
    let unconstrained = v1.clone().filter(of_part(Part::Unconstrained)).map(|one| (one, Part::Unconstrained));
    let constrained = v1.filter(of_part(Part::Constrained)).map(|one| (one, Part::Constrained));
    unconstrained.chain(constrained).collect()
}

fn site(group: GroupPath, part: Part, vm: &Vm, record: &Record) -> Result<Site, Error> {
    let mut site = Site { part, levels: levels(&group, record)?, group, is_adopted: false };
    if part == Part::Unconstrained || site.own().is_none_or(|own| own.is_ours) {
        return Ok(site);
    }
    // The name is taken by somebody else: by Kata.
    let child = site.group.child("vcpu");
    let ours = level(&child, record)?;
    let is_made = ours.standing.as_ref().is_some_and(|standing| standing.is_ours);
    let is_adopted = record.adopted.iter().any(|adopted| adopted.path == site.group.absolute());
    if is_made || (!is_adopted && holds_vmm(&site, vm)) {
        site.levels.push(ours);
        site.group = child;
    } else {
        site.is_adopted = true;
    }
    Ok(site)
}

/// Whether the group holds the VMM itself: its first thread, which is no vCPU. Others may be born beside a vCPU and mean nothing.
fn holds_vmm(site: &Site, vm: &Vm) -> bool {
    let leader = vm.vmm().and_then(|vmm| vmm.leader()).filter(|leader| !vm.is_vcpu(leader.tid));
    leader.and_then(|leader| site.place_of(leader)).as_ref() == Some(&site.group)
}

/// The levels from the top down to the group, in one walk.
fn levels(group: &GroupPath, record: &Record) -> Result<Vec<Level>, Error> {
    let top = GroupPath::new(&group.hierarchy, "");
    let mut open = Some(Group::top(&group.hierarchy)?);
    let mut levels = Vec::new();
    for path in std::iter::once(top).chain(group.chain()) {
        if let Some(name) = path.rel.file_name() {
            open = open.as_ref().map_or(Ok(None), |above| above.child(name))?;
        }
        let standing = open.as_ref().map_or(Ok(None), |group| standing(&path, group, record))?;
        levels.push(Level { path, standing });
    }
    Ok(levels)
}

/// Reads one level.
pub fn level(path: &GroupPath, record: &Record) -> Result<Level, Error> {
    let standing = path.open()?.map_or(Ok(None), |group| standing(path, &group, record))?;
    Ok(Level { path: path.clone(), standing })
}

/// Reads a group that stands: whose it is, and the values that matter of the controllers that its hierarchy carries; `None` if
/// it has gone meanwhile.
///
/// Ours is what carries our mark, what the record knows by its inode, and what a run that was killed had written down that it
/// was about to make, as long as nothing is in it.
fn standing(path: &GroupPath, group: &Group, record: &Record) -> Result<Option<Standing>, Error> {
    let (inode, mark) = (group.inode()?, group.mark());
    let absolute = path.absolute();
    let is_left_by_us = || Ok(record.intended(&absolute) && group.members(path.threads_file())?.is_empty());
    let is_ours = mark.is_some() || record.knows(&absolute, inode) || is_left_by_us()?;
    let values = match read_values(group, &path.hierarchy) {
        Err(error) if error.is_gone() => return Ok(None),
        values => values?,
    };
    // In a group that has just gone no file is found either.
    let is_incomplete = path.hierarchy.carries(Controller::Cpuset) && !values.contains_key(file::CPUS);
    if is_incomplete && path.open()?.is_none() {
        return Ok(None);
    }
    Ok(Some(Standing { inode, mark, is_ours, values }))
}

/// The values of a group that matter here; one that the kernel has no file for is missing.
fn read_values(group: &Group, hierarchy: &Hierarchy) -> Result<Values, Error> {
    let files = hierarchy.controllers.iter().flat_map(|one| file::of(*one));
    let read = |name: &&'static str| group.read_if_there(name).map(|value| value.map(|value| (*name, value))).transpose();
    files.filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Process;
    use crate::record::{Adopted, RecordedGroup};
    use crate::testing;
    use crate::vmm::kinds::Role;
    use crate::vmm::vcpu::{Proof, Vcpu, Vcpus};
    use crate::vmm::{Member, Vm};

    /// A VMM whose first thread is in `first` of the cpu hierarchy and whose only vCPU in `vcpu`.
    fn vm(first: &str, vcpu: &str) -> Vm {
        let threads = vec![
            testing::thread(100, &format!("1:cpu:{first}")),
            testing::thread(101, &format!("1:cpu:{vcpu}")),
            Thread { is_user_worker: true, ..testing::thread(102, &format!("1:cpu:{vcpu}")) },
        ];
        let vcpus = vec![Vcpu { tid: 101, start: 500, index: Some(0), proof: Proof::Debugfs }];
        Vm {
            kind: "qemu".into(),
            processes: vec![Member { process: Process::nobody(100), start: 400, role: Role::Vmm, threads }],
            vcpus: Vcpus { threads: vcpus, expected: Some(1), parked: 0 },
            is_shim: false,
        }
    }

    fn cpu_site(dir: &std::path::Path, vm: &Vm, record: &Record) -> Site {
        let path = SandboxPath::recorded("pod/kata_x").unwrap();
        let sites = survey(&testing::mounts(dir), &path, vm, record).unwrap();
        assert_eq!(sites.len(), 4);
        sites.into_iter().find(|site| site.controller() == "cpu").unwrap()
    }

    #[test]
    fn where_nothing_stands_everything_is_to_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let site = cpu_site(dir.path(), &vm("/", "/"), &Record::new("sb"));
        assert!(site.own().is_none() && !site.is_adopted);
        assert_eq!(site.levels.iter().filter(|level| level.standing.is_none()).count(), 2);
    }

    #[test]
    fn a_group_of_katas_with_the_vmms_other_threads_in_it_gets_a_child_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("cpu/pod/kata_x")).unwrap();
        let site = cpu_site(dir.path(), &vm("/pod/kata_x", "/pod/kata_x"), &Record::new("sb"));
        assert_eq!(site.group.rel, std::path::Path::new("pod/kata_x/vcpu"));
        assert!(!site.is_adopted && site.own().is_none());
    }

    #[test]
    fn a_group_of_katas_with_vcpus_alone_in_it_is_adopted_kernel_workers_or_not() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("cpu/pod/kata_x")).unwrap();
        std::fs::write(dir.path().join("cpu/pod/kata_x/cpu.shares"), "77\n").unwrap();
        let site = cpu_site(dir.path(), &vm("/", "/pod/kata_x"), &Record::new("sb"));
        assert!(site.is_adopted);
        assert_eq!(site.own().unwrap().values["cpu.shares"], "77");
    }

    #[test]
    fn an_adopted_group_stays_adopted_whatever_is_born_in_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("cpu/pod/kata_x")).unwrap();
        let mut vm = vm("/", "/pod/kata_x");
        vm.processes[0].threads.push(testing::thread(103, "1:cpu:/pod/kata_x"));
        assert!(cpu_site(dir.path(), &vm, &Record::new("sb")).is_adopted, "a thread born beside a vCPU");
        let mut record = Record::new("sb");
        record.adopted.push(Adopted { path: dir.path().join("cpu/pod/kata_x"), ..Adopted::default() });
        let vm = self::vm("/pod/kata_x", "/pod/kata_x");
        assert!(cpu_site(dir.path(), &vm, &record).is_adopted, "adopted before");
    }

    #[test]
    fn a_child_that_is_ours_already_stays_the_place() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let child = dir.path().join("cpu/pod/kata_x/vcpu");
        std::fs::create_dir_all(&child).unwrap();
        let mut record = Record::new("sb");
        let inode = std::fs::metadata(&child).unwrap().ino();
        record.groups.push(RecordedGroup { path: child, controllers: vec!["cpu".into()], inode });
        // Even when Kata has moved its other threads elsewhere meanwhile.
        let site = cpu_site(dir.path(), &vm("/", "/pod/kata_x/vcpu"), &record);
        assert_eq!(site.group.rel, std::path::Path::new("pod/kata_x/vcpu"));
        assert!(site.own().unwrap().is_ours);
    }

    #[test]
    fn a_group_that_the_record_knows_by_its_inode_is_ours_and_by_its_name_alone_is_not() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("cpu/pod/kata_x");
        std::fs::create_dir_all(&group).unwrap();
        let inode = std::fs::metadata(&group).unwrap().ino();
        let mut record = Record::new("sb");
        record.groups.push(RecordedGroup { path: group, controllers: vec!["cpu".into()], inode });
        assert!(cpu_site(dir.path(), &vm("/", "/"), &record).own().unwrap().is_ours);
        record.groups[0].inode += 1;
        assert!(cpu_site(dir.path(), &vm("/", "/"), &record).is_adopted);
    }
}
