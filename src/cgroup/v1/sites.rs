//! Where a sandbox's groups lie on cgroup v1.
//!
//! The CPU hierarchies get `<dir>/kata_<base>` for the vCPU threads, memory gets `/kata/<dir>/kata_<base>` for the processes. Kata
//! Go with the cgroupfs driver makes `<dir>/kata_<base>` itself. Such a group is not ours: where it holds the VMM itself
//! (sandbox_cgroup_only=true) ours is a child `vcpu` of it, else it is adopted: our values, restored in the end.

use std::rc::Rc;

use crate::cgroup::Part;
use crate::cgroup::group::GroupPath;
use crate::cgroup::mounts::{Hierarchy, Mounts, Version};
use crate::cgroup::path::{SandboxPath, VCPUS};
use crate::cgroup::site::{self, Site};
use crate::error::Error;
use crate::record::Record;
use crate::vmm::Vm;

/// Reads what stands at the sandbox's place in every v1 hierarchy.
pub fn survey(mounts: &Mounts, path: &SandboxPath, vm: &Vm, record: &Record) -> Result<Vec<Site>, Error> {
    parts(mounts)
        .into_iter()
        .map(|(hierarchy, part)| site(GroupPath::new(hierarchy, path.v1(part)), part, vm, record))
        .collect()
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
    let levels = site::levels(&group, record)?;
    let mut site =
        Site { part, levels, group, is_adopted: false, pod: Vec::new(), neighbours: Vec::new(), members: Vec::new() };
    if part == Part::Unconstrained || site.own().is_none_or(|own| own.is_ours) {
        return Ok(site);
    }
    // The name is taken by somebody else: by Kata.
    let child = site.group.child(VCPUS);
    let ours = site::level(&child, record)?;
    let is_made = ours.standing.as_ref().is_some_and(|standing| standing.is_ours);
    let is_adopted = |group: &GroupPath| record.adopted.iter().any(|adopted| adopted.path == group.absolute());
    // Where cpu and memory are co-mounted, placing has moved the VMM out.
    if is_made || is_adopted(&child) || (!is_adopted(&site.group) && holds_vmm(&site, vm)) {
        // Where somebody else's child of that name stands, that one is used, and given back.
        site.is_adopted = ours.is_foreign();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Controller;
    use crate::record::{Adopted, RecordedGroup};
    use crate::testing;
    use crate::vmm::Thread;

    /// A VMM whose first thread is in `first` of the cpu hierarchy and whose only vCPU in `vcpu`.
    fn vm(first: &str, vcpu: &str) -> Vm {
        let threads = vec![
            testing::thread(100, &format!("1:cpu:{first}")),
            testing::thread(101, &format!("1:cpu:{vcpu}")),
            Thread { is_user_worker: true, ..testing::thread(102, &format!("1:cpu:{vcpu}")) },
        ];
        testing::vm(threads, 101)
    }

    fn cpu_site(dir: &std::path::Path, vm: &Vm, record: &Record) -> Site {
        let path = SandboxPath::recorded("pod/kata_x").unwrap();
        let sites = survey(&testing::mounts(dir), &path, vm, record).unwrap();
        assert_eq!(sites.len(), 4);
        sites.into_iter().find(|site| site.group.hierarchy.carries(Controller::Cpu)).unwrap()
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
    fn somebody_elses_child_that_was_taken_over_stays_the_place_once_the_vmm_has_left_the_group_above() {
        let dir = tempfile::tempdir().unwrap();
        let child = dir.path().join("cpu/pod/kata_x/vcpu");
        std::fs::create_dir_all(&child).unwrap();
        let adopted = vec![Adopted { path: child, ..Adopted::default() }];
        let site = cpu_site(dir.path(), &vm("/", "/pod/kata_x/vcpu"), &Record { adopted, ..Record::new("sb") });
        assert!(site.is_adopted && site.group.rel == std::path::Path::new("pod/kata_x/vcpu"));
    }

    #[test]
    fn somebody_elses_child_of_that_name_in_a_group_of_katas_is_adopted() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("cpu/pod/kata_x/vcpu")).unwrap();
        std::fs::write(dir.path().join("cpu/pod/kata_x/vcpu/cpu.shares"), "77\n").unwrap();
        let site = cpu_site(dir.path(), &vm("/pod/kata_x", "/pod/kata_x"), &Record::new("sb"));
        assert_eq!(site.group.rel, std::path::Path::new("pod/kata_x/vcpu"));
        assert!(site.is_adopted, "or its values would not be given back");
        assert_eq!(site.own().unwrap().values["cpu.shares"], "77");
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
