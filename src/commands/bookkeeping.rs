//! Keeping a sandbox's record in step with what is planned and with what stands.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::cgroup::mounts::{Mounts, Version};
use crate::cgroup::site::Site;
use crate::cgroup::{Controller, Part};
use crate::commands::Run;
use crate::error::Error;
use crate::record::{Adopted, Record, RecordedGroup, RecordedProcess, Store};
use crate::vmm::kinds::Role;
use crate::vmm::{Member, Vm};

/// The sandbox's record, under its lock: an empty one where there is none that can be understood, which is kept aside.
pub(super) fn load(run: &mut Run, store: &Store, sandbox: &str) -> Result<Record, Error> {
    let record = store.load(sandbox)?;
    if record.is_none() && store.has(sandbox) {
        store.set_aside(sandbox);
        run.report.note("record not understood: kept as .json.old and rebuilt");
    }
    Ok(record.unwrap_or_else(|| Record::new(sandbox)))
}

/// Writes down where the sandbox is about to be, or is: true if that is news, to be saved before the first group is made.
pub(super) fn update(record: &mut Record, mounts: &Mounts, vm: &Vm, sites: &[Site]) -> bool {
    let before = record.clone();
    (record.groups, record.parents) = groups_of(sites);
    adopt(record, sites);
    record.mode = mode_of(mounts);
    remember(record, vm, sites);
    record.groups != before.groups || record.parents != before.parents || record.adopted != before.adopted
}

/// The groups that hold the sandbox, and those above them that are ours; the inode of what does not stand yet is 0.
fn groups_of(sites: &[Site]) -> (Vec<RecordedGroup>, Vec<RecordedGroup>) {
    let (mut groups, mut parents) = (Vec::new(), Vec::new());
    for site in sites.iter().filter(|site| !site.is_adopted) {
        for level in &site.levels {
            let inode = match &level.standing {
                None => 0,
                Some(standing) if standing.is_ours => standing.inode,
                Some(_) => continue,
            };
            let controllers = level.path.hierarchy.controllers.iter().map(|one| one.name().to_owned()).collect();
            let list = if level.path == site.group { &mut groups } else { &mut parents };
            list.push(RecordedGroup { path: level.path.absolute(), controllers, inode });
        }
    }
    (groups, parents)
}

/// Keeps the values that Kata's own groups had before us.
fn adopt(record: &mut Record, sites: &[Site]) {
    for site in sites.iter().filter(|site| site.is_adopted) {
        let path = site.group.absolute();
        let is_known = record.adopted.iter().any(|adopted| adopted.path == path);
        if let (false, Some(own)) = (is_known, site.own()) {
            let values = own.values.iter().map(|(file, value)| ((*file).to_owned(), value.clone())).collect();
            record.adopted.push(Adopted { path, values });
        }
    }
}

/// Keeps the processes; where one is known already, where it came from stays as it was first seen.
fn remember(record: &mut Record, vm: &Vm, sites: &[Site]) {
    let known = std::mem::take(&mut record.processes);
    let recorded = |member: &Member| {
        let is_same = |known: &&RecordedProcess| (known.pid, known.start) == (member.process.pid, member.start);
        known.iter().find(is_same).cloned().unwrap_or_else(|| RecordedProcess {
            pid: member.process.pid,
            start: member.start,
            role: if member.role == Role::Vmm { "vmm" } else { "helper" }.to_owned(),
            from: origins(member, vm, sites),
        })
    };
    record.processes = vm.processes.iter().map(recorded).collect();
}

/// Which interface each controller has on this host.
fn mode_of(mounts: &Mounts) -> BTreeMap<String, String> {
    let version = |controller| match mounts.of_controller(controller).map(|hierarchy| hierarchy.version) {
        Some(Version::V1) => "v1",
        Some(Version::V2) => "v2",
        None => "none",
    };
    Controller::ALL.into_iter().map(|one| (one.name().to_owned(), version(one).to_owned())).collect()
}

/// The group of each controller that a process came from: for the CPU controllers its first vCPU thread's, else its leader's.
fn origins(member: &Member, vm: &Vm, sites: &[Site]) -> BTreeMap<String, PathBuf> {
    let vcpu = member.threads.iter().find(|thread| vm.is_vcpu(thread.tid));
    let mut from = BTreeMap::new();
    for site in sites {
        let thread = if site.part == Part::Constrained { vcpu.or(member.leader()) } else { member.leader() };
        let place = thread.and_then(|thread| site.place_of(thread)).filter(|place| *place != site.group);
        if let Some(place) = place {
            let controllers = site.group.hierarchy.controllers.iter().filter(|one| one.part() == site.part);
            from.extend(controllers.map(|one| (one.name().to_owned(), place.in_kernel())));
        }
    }
    from
}
