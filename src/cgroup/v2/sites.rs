//! Where a sandbox's groups lie on cgroup v2: the domain that holds its processes, and in it the threaded group of its vCPUs.
//!
//! A thread can only be in its process's group or in a threaded one below it (cgroup-v2.rst, "Threads"), so both parts of a
//! sandbox lie in one subtree: the domain, to which memory is charged, and `vcpu` within it, which cpu and cpuset hold. By default
//! the domain stands apart, below /kata: then the pod's groups do not act on it, and what they would have done is written on
//! `vcpu` instead ([`crate::cgroup::v2::values`]). With `[v2] domain = "pod"` it lies in the pod; where Kata has made a group of that name
//! there, that one is the domain.

use std::rc::Rc;

use crate::cgroup::group::{Group, GroupPath};
use crate::cgroup::mounts::{Hierarchy, Version};
use crate::cgroup::path::{Domain, SandboxPath, VCPUS};
use crate::cgroup::site::{self, Level, Site};
use crate::cgroup::{Controller, Part, file};
use crate::error::Error;
use crate::record::Record;
use crate::vmm::{Member, Vm};

/// What the kernel gives a group that nobody has given a weight (cgroup-v2.rst, cpu.weight).
pub const DEFAULT_WEIGHT: u64 = 100;

/// Reads what stands at the sandbox's place: a site for the domain and one for the vCPU threads' group, if the hierarchy carries
/// anything that could hold them; none where no group can be the domain.
pub fn survey(
    hierarchy: &Rc<Hierarchy>,
    path: &SandboxPath,
    wanted: Domain,
    vm: &Vm,
    record: &Record,
) -> Result<Vec<Site>, Error> {
    let Some(group) = place(hierarchy, path, wanted, vm, record)? else { return Ok(Vec::new()) };
    let levels = site::levels(&group, record)?;
    let pod = GroupPath::new(hierarchy, path.pod());
    let is_in_pod = group.parent().as_ref() == Some(&pod);
    let pod = if is_in_pod { all_but_last(&levels) } else { site::levels(&pod, record)? };
    let is_foreign = |levels: &[Level]| levels.last().is_some_and(Level::is_foreign);
    let neighbours = neighbours(&group)?;
    let domain = Site {
        part: Part::Unconstrained,
        is_adopted: is_foreign(&levels),
        group,
        levels,
        pod,
        neighbours,
        members: Vec::new(),
    };
    if !hierarchy.can_hold_vcpus() {
        return Ok(vec![domain]);
    }
    let group = domain.group.child(VCPUS);
    let mut levels = domain.levels.clone();
    levels.push(site::threaded(&group, record)?);
    let vcpus = Site { part: Part::Constrained, is_adopted: is_foreign(&levels), group, levels, ..domain.clone() };
    Ok(vec![domain, vcpus])
}

/// The group that is to be the domain. A sandbox that has been placed stays where it is until it ends, whatever the
/// configuration says by then: moving it would leave its memory charged to the old one.
fn place(
    hierarchy: &Rc<Hierarchy>,
    path: &SandboxPath,
    wanted: Domain,
    vm: &Vm,
    record: &Record,
) -> Result<Option<GroupPath>, Error> {
    if vm.is_shim {
        return Ok(place_of_shim(hierarchy, path, vm));
    }
    let [first, second] = wanted.and_other().map(|domain| GroupPath::new(hierarchy, path.v2(domain)));
    let is_second = !is_in_use(&first, record)? && is_in_use(&second, record)?;
    Ok(Some(if is_second { second } else { first }))
}

/// Where the VMM is the container runtime's shim itself its process is never moved, and its threads cannot leave the process's
/// group: so that is the domain, if it is the sandbox's own.
fn place_of_shim(hierarchy: &Rc<Hierarchy>, path: &SandboxPath, vm: &Vm) -> Option<GroupPath> {
    let leader = vm.vmm().and_then(|vmm| vmm.leader())?;
    let place = hierarchy.place_in(leader.groups.as_ref()?)?;
    [path.v2(Domain::Pod), path.unprefixed()].iter().any(|own| own == place).then(|| GroupPath::new(hierarchy, place))
}

/// Whether the sandbox has been placed with this group as its domain: by the record, or, where that is lost, by our marks.
fn is_in_use(group: &GroupPath, record: &Record) -> Result<bool, Error> {
    let path = group.absolute();
    if record.groups.iter().any(|known| known.path == path) || record.adopted.iter().any(|known| known.path == path) {
        return Ok(true);
    }
    for group in [group.clone(), group.child(VCPUS)] {
        let mark = group.open()?.and_then(|group| group.mark());
        if mark.is_some_and(|mark| mark.sandbox == record.sandbox) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The groups beside the one in /kata that leads to this domain, with their weights.
fn neighbours(domain: &GroupPath) -> Result<Vec<(String, u64)>, Error> {
    let chain = domain.chain();
    let [kata, own, ..] = chain.as_slice() else { return Ok(Vec::new()) };
    if !is_kata(kata) || !domain.hierarchy.carries(Controller::Cpu) {
        return Ok(Vec::new());
    }
    weights_in(kata, |name| own.rel.ends_with(name))
}

/// The weights of the groups in one, but for those that are passed over.
pub fn weights_in(group: &GroupPath, is_passed_over: impl Fn(&str) -> bool) -> Result<Vec<(String, u64)>, Error> {
    let Some(open) = group.open()? else { return Ok(Vec::new()) };
    let mut weights = Vec::new();
    for name in open.children()?.into_iter().filter(|name| !is_passed_over(name)) {
        let read = |child: Group| child.read_if_there(file::WEIGHT).ok();
        let weight = match open.child(name.as_ref())?.and_then(read) {
            Some(Some(text)) => text.parse().ok(),
            // Where cpu is not passed on yet, it will begin with what the kernel gives it.
            Some(None) if open.child(name.as_ref())?.is_some() => Some(DEFAULT_WEIGHT),
            // One that goes meanwhile weighs nothing.
            _ => None,
        };
        weights.extend(weight.map(|weight| (name, weight)));
    }
    Ok(weights)
}

/// Whether this is the weight of /kata: it follows from who else is in there at the moment, and says nothing of one sandbox.
pub fn is_weight_of_kata(group: &GroupPath, file: &str) -> bool {
    file == file::WEIGHT && is_kata(group)
}

/// Whether this is /kata itself, the top of all domains that stand apart from their pods.
pub fn is_kata(group: &GroupPath) -> bool {
    group.rel.as_os_str() == "kata"
}

/// Whether all threads of a process are where its first one is. On v2 only threaded groups can hold some elsewhere, and then the type of the
/// process's own group reads "domain threaded"; of one that reads "domain" all are together (cgroup-v2.rst, "Threads").
pub fn are_together(member: &Member, sites: &[Site]) -> bool {
    let hierarchies = || sites.iter().map(|site| &site.group.hierarchy);
    let Some(hierarchy) = hierarchies().next().filter(|_| hierarchies().all(|one| one.version == Version::V2)) else {
        return false;
    };
    let groups = member.thread(member.process.pid).and_then(|first| first.groups.as_ref());
    let place = groups.and_then(|groups| hierarchy.place_in(groups));
    let group = place.and_then(|place| GroupPath::new(hierarchy, place).open().ok().flatten());
    group.is_some_and(|group| group.read(file::TYPE).is_ok_and(|kind| kind == "domain"))
}

fn all_but_last(levels: &[Level]) -> Vec<Level> {
    levels.split_last().map_or(Vec::new(), |(_, above)| above.to_vec())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use super::*;
    use crate::proc::Process;
    use crate::record::{Adopted, RecordedGroup};
    use crate::testing;
    use crate::vmm::Member;
    use crate::vmm::kinds::Role;
    use crate::vmm::vcpu::Vcpus;

    const ALL: &[Controller] = &[Controller::Cpu, Controller::Cpuset, Controller::Memory];

    struct Host {
        dir: tempfile::TempDir,
        record: Record,
        vm: Vm,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            testing::make_v2(dir.path(), "", "", "");
            Self { dir, record: Record::new("sb"), vm: vm("/engine") }
        }

        fn make(&self, group: &str) {
            testing::make_v2(self.dir.path(), group, "", "");
        }

        fn is_recorded(&mut self, group: &str) {
            let path = self.dir.path().join(group);
            let inode = std::fs::metadata(&path).map_or(0, |meta| meta.ino());
            self.record.groups.push(RecordedGroup { path, controllers: Vec::new(), inode });
        }

        fn sites(&self, controllers: &[Controller], wanted: Domain) -> Vec<Site> {
            let hierarchy = testing::unified_at(self.dir.path(), controllers);
            let path = SandboxPath::recorded("pod/kata_x").unwrap();
            survey(&hierarchy, &path, wanted, &self.vm, &self.record).unwrap()
        }

        /// Where the parts are to be, "(adopted)" behind what is somebody else's.
        fn places(&self, wanted: Domain) -> Vec<String> {
            let place = |site: &Site| {
                let adopted = if site.is_adopted { " (adopted)" } else { "" };
                format!("{}{adopted}", site.group.rel.display())
            };
            self.sites(ALL, wanted).iter().map(place).collect()
        }
    }

    /// A VM whose VMM's first thread is there.
    fn vm(place: &str) -> Vm {
        let threads = vec![testing::thread(100, &format!("0::{place}"))];
        let vmm = Member { process: Process::nobody(100), start: 400, role: Role::Vmm, threads };
        Vm {
            kind: "qemu".into(),
            processes: vec![vmm],
            vcpus: Vcpus::default(),
            is_shim: false,
            shims: Vec::new(),
            claims: Vec::new(),
            containers: Vec::new(),
            brought_in: None,
        }
    }

    #[test]
    fn all_threads_are_where_the_first_one_is_in_a_v2_group_that_is_a_domain_and_no_more() {
        let host = Host::new();
        host.make("engine");
        let sites = host.sites(ALL, Domain::Kata);
        let are_together = |place: &str, sites: &[Site]| super::are_together(&vm(place).processes[0], sites);
        assert!(are_together("/engine", &sites));
        // Its threads can be in groups below it.
        std::fs::write(host.dir.path().join("engine/cgroup.type"), "domain threaded\n").unwrap();
        assert!(!are_together("/engine", &sites));
        std::fs::write(host.dir.path().join("engine/cgroup.type"), "threaded\n").unwrap();
        assert!(!are_together("/engine", &sites));
        // And in any below the root, which has no type; of one that is gone nothing is known.
        assert!(!are_together("/", &sites) && !are_together("/gone", &sites));
        // On v1 each thread is where it likes.
        std::fs::write(host.dir.path().join("engine/cgroup.type"), "domain\n").unwrap();
        let cpu = GroupPath::new(&testing::hierarchy(&[Controller::Cpu]), "pod");
        let on_v1 = testing::site(Part::Constrained, cpu, Vec::new());
        assert!(!are_together("/engine", &[sites, vec![on_v1]].concat()) && !are_together("/engine", &[]));
    }

    #[test]
    fn the_domain_lies_where_the_configuration_says_with_the_vcpus_in_it() {
        let host = Host::new();
        assert_eq!(host.places(Domain::Kata), ["kata/pod/kata_x", "kata/pod/kata_x/vcpu"]);
        assert_eq!(host.places(Domain::Pod), ["pod/kata_x", "pod/kata_x/vcpu"]);
    }

    #[test]
    fn a_sandbox_that_has_been_placed_stays_where_it_is() {
        let mut host = Host::new();
        host.make("pod/kata_x");
        host.is_recorded("pod/kata_x");
        assert_eq!(host.places(Domain::Kata), ["pod/kata_x", "pod/kata_x/vcpu"]);
        host.record.groups.clear();
        host.is_recorded("kata/pod/kata_x");
        assert_eq!(host.places(Domain::Pod), ["kata/pod/kata_x", "kata/pod/kata_x/vcpu"]);
    }

    #[test]
    fn a_group_of_katas_in_the_pod_is_the_domain_there() {
        let mut host = Host::new();
        host.make("pod/kata_x");
        assert_eq!(host.places(Domain::Pod), ["pod/kata_x (adopted)", "pod/kata_x/vcpu"]);
        assert_eq!(host.places(Domain::Kata), ["kata/pod/kata_x", "kata/pod/kata_x/vcpu"], "which is left alone otherwise");
        let path = host.dir.path().join("pod/kata_x");
        host.record.adopted.push(Adopted { path, ..Adopted::default() });
        assert_eq!(host.places(Domain::Kata), ["pod/kata_x (adopted)", "pod/kata_x/vcpu"], "once adopted");
    }

    #[test]
    fn the_groups_that_cgroups_path_lies_in_are_read_wherever_the_domain_is() {
        let host = Host::new();
        host.make("pod");
        for wanted in [Domain::Kata, Domain::Pod] {
            for site in host.sites(ALL, wanted) {
                let pod: Vec<&Path> = site.pod.iter().map(|level| level.path.rel.as_path()).collect();
                assert_eq!(pod, [Path::new(""), Path::new("pod")]);
            }
        }
    }

    #[test]
    fn a_hierarchy_that_could_hold_no_thread_has_the_domain_alone() {
        let sites = Host::new().sites(&[Controller::Memory], Domain::Kata);
        assert_eq!(sites.iter().map(|site| site.part).collect::<Vec<_>>(), [Part::Unconstrained]);
    }

    #[test]
    fn a_shims_own_vcpus_stay_in_its_group_which_must_be_the_sandboxs() {
        let mut host = Host::new();
        for (place, domain) in [("/pod/kata_x", Some("pod/kata_x")), ("/pod/x", Some("pod/x")), ("/engine", None), ("/", None)]
        {
            host.vm = vm(place);
            host.vm.is_shim = true;
            let expected: Vec<String> = domain.into_iter().flat_map(|own| [own.to_owned(), format!("{own}/vcpu")]).collect();
            assert_eq!(host.places(Domain::Kata), expected, "{place}");
        }
    }

    #[test]
    fn kata_is_weighed_by_what_else_is_in_it() {
        let host = Host::new();
        for (group, weight) in [("kata/pod", "39"), ("kata/other", "150"), ("kata/unread", "")] {
            host.make(group);
            std::fs::write(host.dir.path().join(group).join("cpu.weight"), weight).unwrap();
        }
        let neighbours = |wanted| host.sites(ALL, wanted)[0].neighbours.clone();
        assert_eq!(neighbours(Domain::Kata), [("other".to_owned(), 150)]);
        assert_eq!(neighbours(Domain::Pod), []);
    }

    #[test]
    fn what_stands_in_kata_before_it_passes_cpu_on_weighs_what_the_kernel_will_give_it() {
        let host = Host::new();
        host.make("kata/pod");
        host.make("kata/other");
        assert_eq!(host.sites(ALL, Domain::Kata)[0].neighbours, [("other".to_owned(), DEFAULT_WEIGHT)]);
    }
}
