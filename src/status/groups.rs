//! A sandbox's groups as they stand, with everybody who is in them, and the groups of others that its threads are in.

use std::os::unix::ffi::OsStrExt;

use crate::cgroup::group::{Group as Open, GroupPath};
use crate::cgroup::mounts::{Mounts, Version};
use crate::cgroup::{Controller, Part, orphan, site};
use crate::error::Error;
use crate::foreign;
use crate::proc::Proc;
use crate::record::Record;
use crate::status::{Group, Thread, ThreadRole, Throttled};
use crate::vmm::kinds::Role;
use crate::vmm::{self, Member, Vm};

/// Where a sandbox is looked for.
#[derive(Debug)]
pub struct Search<'a> {
    pub proc: &'a Proc,
    pub mounts: &'a Mounts,
    pub record: &'a Record,
    pub vm: Option<&'a Vm>,
}

impl Search<'_> {
    /// Reads `own`, as far as they stand, and the groups of others that the VM's threads are in.
    pub fn read(&self, own: &[(GroupPath, Part)]) -> Result<Vec<Group>, Error> {
        let mut groups = Vec::new();
        for (path, part) in own {
            groups.extend(self.group(path, *part, true)?);
        }
        for path in self.places() {
            if own.iter().all(|(known, _)| *known != path) {
                groups.extend(self.group(&path, Part::Unconstrained, false)?);
            }
        }
        Ok(groups)
    }

    /// The groups that the VM's threads are in, each once.
    fn places(&self) -> Vec<GroupPath> {
        let mut places = Vec::new();
        let threads = || self.members().iter().flat_map(|member| &member.threads);
        for hierarchy in &self.mounts.hierarchies {
            for place in threads().filter_map(|thread| hierarchy.place_in(thread.groups.as_ref()?)) {
                let place = GroupPath::new(hierarchy, place);
                if !places.contains(&place) {
                    places.push(place);
                }
            }
        }
        places
    }

    fn members(&self) -> &[Member] {
        self.vm.map_or(&[], |vm| &vm.processes)
    }

    /// Reads one; nothing if it does not stand, or has gone meanwhile.
    fn group(&self, path: &GroupPath, part: Part, is_own: bool) -> Result<Option<Group>, Error> {
        match self.standing(path, part, is_own) {
            Err(error) if error.is_gone() => Ok(None),
            group => group,
        }
    }

    fn standing(&self, path: &GroupPath, part: Part, is_own: bool) -> Result<Option<Group>, Error> {
        let (open, level) = (path.open()?, site::level(path, self.record)?);
        let (Some(open), Some(standing)) = (open, &level.standing) else { return Ok(None) };
        let hierarchy = &path.hierarchy;
        let controllers: Vec<Controller> =
            if is_own { hierarchy.controllers_of(part).collect() } else { hierarchy.controllers.clone() };
        let has = |controller| is_own && controllers.contains(&controller);
        let throttled =
            if part == Part::Constrained && has(Controller::Cpu) { throttled(&open, hierarchy.version)? } else { None };
        let memory_bytes =
            if part == Part::Unconstrained && has(Controller::Memory) { memory(&open, hierarchy.version)? } else { None };
        let mut threads = self.threads_in(path);
        if standing.is_ours {
            self.add_others(path, &mut threads)?;
        }
        Ok(Some(Group {
            role: part,
            controllers: controllers.into_iter().map(Controller::name).collect(),
            path: foreign::as_text(path.absolute().as_os_str().as_bytes()),
            ours: standing.is_ours,
            throttled,
            memory_bytes,
            threads,
            level,
            is_own,
        }))
    }

    /// The VM's threads that are in a group itself.
    fn threads_in(&self, path: &GroupPath) -> Vec<Thread> {
        let mut threads = Vec::new();
        let is_here = |thread: &&vmm::Thread| {
            let place = thread.groups.as_ref().and_then(|groups| path.hierarchy.place_in(groups));
            place == Some(path.rel.as_path())
        };
        for member in self.members() {
            let here = member.threads.iter().filter(is_here);
            threads.extend(here.map(|thread| self.thread(member.process.pid, thread.tid, &thread.name)));
        }
        threads
    }

    /// Adds whoever else the kernel lists in a group: threads that are no VM's of this sandbox, or have come since.
    fn add_others(&self, path: &GroupPath, threads: &mut Vec<Thread>) -> Result<(), Error> {
        for tid in orphan::members(path)? {
            if threads.iter().any(|known| known.tid == tid) || self.is_elsewhere(tid) {
                continue;
            }
            // Who has ended meanwhile is not there any more.
            let Some(process) = self.proc.process(tid).ok().flatten() else { continue };
            let (Ok(status), Ok(stat)) = (process.status(), process.stat()) else { continue };
            threads.push(self.thread(status.thread_group, tid, &stat.name));
        }
        Ok(())
    }

    /// Whether it was seen in another group a moment ago.
    fn is_elsewhere(&self, tid: i32) -> bool {
        self.members().iter().flat_map(|member| &member.threads).any(|thread| thread.tid == tid)
    }

    fn thread(&self, pid: i32, tid: i32, name: &[u8]) -> Thread {
        let vcpu = self.vm.and_then(|vm| vm.vcpus.threads.iter().find(|vcpu| vcpu.tid == tid));
        let role = match self.members().iter().find(|member| member.process.pid == pid).map(|member| member.role) {
            _ if vcpu.is_some() => ThreadRole::Vcpu,
            Some(Role::Vmm) => ThreadRole::Vmm,
            Some(_) => ThreadRole::Helper,
            None => ThreadRole::Other,
        };
        Thread { pid, tid, name: foreign::as_text(name), role, vcpu: vcpu.and_then(|vcpu| vcpu.index) }
    }
}

/// How often a group had to wait, by its cpu.stat (Documentation/scheduler/sched-bwc.rst, cgroup-v2.rst); nothing where the kernel
/// has no limits of CPU time.
fn throttled(group: &Open, version: Version) -> Result<Option<Throttled>, Error> {
    let Some(text) = group.read_if_there("cpu.stat")? else { return Ok(None) };
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse::<u64>().ok());
    let usec = match version {
        Version::V1 => value("throttled_time").map(|nanoseconds| nanoseconds / 1000),
        Version::V2 => value("throttled_usec"),
    };
    let counted = (value("nr_throttled"), value("nr_periods"), usec);
    let (Some(periods), Some(of_periods), Some(usec)) = counted else { return Ok(None) };
    Ok(Some(Throttled { periods, of_periods, usec }))
}

/// The memory that is charged to a group, in bytes.
fn memory(group: &Open, version: Version) -> Result<Option<u64>, Error> {
    let file = match version {
        Version::V1 => "memory.usage_in_bytes",
        Version::V2 => "memory.current",
    };
    Ok(group.read_if_there(file)?.and_then(|text| text.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::file::WEIGHT;
    use crate::record::RecordedGroup;
    use crate::status::limit::{self, Asked};
    use crate::status::{Limit, Source};
    use crate::testing::{self, Fake, FakeProc};

    /// A VMM 100 in a domain of ours, with its vCPU 101 in the group within, and 7 beside them.
    struct Host {
        dir: tempfile::TempDir,
        mounts: Mounts,
        proc: FakeProc,
        record: Record,
        vm: Vm,
    }

    impl Host {
        fn new() -> Self {
            let (dir, proc) = (tempfile::tempdir().unwrap(), FakeProc::new());
            let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
            testing::make_v2(dir.path(), "", "cpu cpuset memory", "");
            testing::make_v2(dir.path(), "kata_x", "cpu cpuset", "100\n102\n7");
            testing::make_v2(dir.path(), "kata_x/vcpu", "", "101");
            write("kata_x/memory.current", "4096\n");
            write("kata_x/cpu.weight", "150\n");
            write("kata_x/cpu.max", "90000 100000\n");
            write("kata_x/vcpu/cpu.weight", "100\n");
            write("kata_x/vcpu/cpu.max", "70000 100000\n");
            write("kata_x/vcpu/cpuset.cpus.effective", "0-3\n");
            write("kata_x/vcpu/cpu.stat", "usage_usec 9\nnr_periods 10\nnr_throttled 4\nthrottled_usec 1234\n");
            for pid in [7, 100] {
                proc.add(&Fake { pid, ..Fake::default() });
            }
            let all = [Controller::Cpu, Controller::Cpuset, Controller::Memory];
            let mounts = Mounts { hierarchies: vec![testing::unified_at(dir.path(), &all)], ..Mounts::default() };
            let threads = vec![
                testing::thread(100, "0::/kata_x"),
                testing::thread(101, "0::/kata_x/vcpu"),
                testing::thread(103, "0::/engine"),
            ];
            let vm = testing::vm(threads, 101);
            let mut record = Record::new("x");
            for group in ["kata_x", "kata_x/vcpu"] {
                use std::os::unix::fs::MetadataExt;
                let path = dir.path().join(group);
                let inode = std::fs::metadata(&path).unwrap().ino();
                record.groups.push(RecordedGroup { path, controllers: vec!["cpu".into()], inode });
            }
            Self { dir, mounts, proc, record, vm }
        }

        fn read(&self) -> Vec<Group> {
            let group = |rel: &str| GroupPath::new(&self.mounts.hierarchies[0], rel);
            let own = [(group("kata_x"), Part::Unconstrained), (group("kata_x/vcpu"), Part::Constrained)];
            let proc = self.proc.proc();
            Search { proc: &proc, mounts: &self.mounts, record: &self.record, vm: Some(&self.vm) }.read(&own).unwrap()
        }
    }

    #[test]
    fn on_v2_memory_is_the_domains_and_waiting_the_vcpus() {
        let host = Host::new();
        let groups = host.read();
        let [domain, vcpus] = groups.as_slice() else { panic!("{groups:#?}") };
        assert_eq!((domain.memory_bytes, domain.throttled, vcpus.memory_bytes), (Some(4096), None, None));
        assert_eq!(vcpus.throttled, Some(Throttled { periods: 4, of_periods: 10, usec: 1234 }));
        assert_eq!(
            (&domain.controllers[..], &vcpus.controllers[..]),
            (&["cpu", "cpuset", "memory"][..], &["cpu", "cpuset"][..])
        );
    }

    #[test]
    fn everybody_in_a_group_of_ours_is_shown_with_what_he_is() {
        let host = Host::new();
        let who = |groups: &[Group]| -> Vec<Vec<(i32, ThreadRole)>> {
            groups.iter().map(|group| group.threads.iter().map(|one| (one.tid, one.role)).collect()).collect()
        };
        // 102 has ended, 7 is a stranger; 103 is in a group that does not stand.
        let domain = vec![(100, ThreadRole::Vmm), (7, ThreadRole::Other)];
        assert_eq!(who(&host.read()), [domain.clone(), vec![(101, ThreadRole::Vcpu)]]);
        testing::make_v2(host.dir.path(), "engine", "", "103\n8\n9");
        let groups = host.read();
        assert_eq!(who(&groups)[2], [(103, ThreadRole::Vmm)], "strangers in a group of somebody else's are nobody's business");
        assert!(!groups[2].ours && groups[2].memory_bytes.is_none() && groups[2].role == Part::Unconstrained);
    }

    #[test]
    fn on_v2_the_weight_that_counts_is_the_domains() {
        let host = Host::new();
        let read = || limit::read(&host.read(), &host.record, &Asked::default()).unwrap();
        let expected = Limit {
            quota_us: Some(70_000),
            weight: Some(150),
            cpus: "0-3".into(),
            source: Source::Containers,
            ..Limit::default()
        };
        assert_eq!(read(), expected);
        std::fs::write(host.dir.path().join("kata_x/vcpu/cpu.max"), "max 100000\n").unwrap();
        assert_eq!((read().quota_us, read().source), (Some(90_000), Source::Pod), "what is above holds");
        assert!(host.read()[0].level.value(WEIGHT) == Some("150"));
    }
}
