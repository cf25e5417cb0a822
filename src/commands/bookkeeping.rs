//! Keeping a sandbox's record in step with what is planned and with what stands.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::cgroup::mounts::{Mounts, Version};
use crate::cgroup::site::{Level, Site};
use crate::cgroup::v2::sites::DEFAULT_WEIGHT;
use crate::cgroup::{Controller, Part, file};
use crate::commands::Run;
use crate::error::Error;
use crate::record::{Adopted, Record, RecordedGroup, RecordedProcess};
use crate::store::Store;
use crate::vmm::kinds::Role;
use crate::vmm::{Member, Vm};

const NOT_UNDERSTOOD: &str = "record not understood: kept as .json.old and rebuilt";

/// The sandbox's record, under its lock: an empty one where there is none that can be understood, which is kept aside.
pub(super) fn load(run: &mut Run, store: &Store, sandbox: &str) -> Result<Record, Error> {
    let record = store.load(sandbox)?;
    if record.is_none() && store.has(sandbox) {
        store.set_aside(sandbox);
        run.report.note(NOT_UNDERSTOOD);
    }
    Ok(record.unwrap_or_else(|| Record::new(sandbox)))
}

/// Says in the log what the record did not know though this sandbox has been placed before: who looks for a cause finds it there.
pub(super) fn tell_loss(run: &mut Run, known: &Record, vm: &Vm, sites: &[Site]) {
    let is_marked = |site: &Site| site.own().is_some_and(|own| own.mark.as_ref() == Some(&known.sandbox));
    let is_told = run.report.notes.iter().any(|note| note == NOT_UNDERSTOOD);
    if known.path.is_empty() && !is_told && sites.iter().any(is_marked) {
        run.report.note("no record of these groups of ours: rebuilt from them");
    }
    let found = vm.vmm().map(|vmm| (vmm.process.pid, vmm.start));
    if let Some(vmm) = known.vmm().filter(|vmm| found.is_some_and(|found| found != (vmm.pid, vmm.start))) {
        run.report.note(format!("the recorded VMM {} is gone: rebuilt from the one that runs", vmm.pid));
    }
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
        groups.extend(site.levels.last().and_then(|level| recorded(level, Some(site.part))));
    }
    for level in sites.iter().filter(|site| !site.is_adopted).flat_map(|site| &site.levels) {
        // On v2 the way to the vCPU threads' group leads through the processes'.
        let parent = recorded(level, None).filter(|new| groups.iter().chain(&parents).all(|known| known.path != new.path));
        parents.extend(parent);
    }
    (groups, parents)
}

/// A group of ours as it is recorded, for a part of the sandbox or as a parent.
fn recorded(level: &Level, part: Option<Part>) -> Option<RecordedGroup> {
    let inode = match &level.standing {
        None => 0,
        Some(standing) if standing.is_ours => standing.inode,
        Some(_) => return None,
    };
    let hierarchy = &level.path.hierarchy;
    let name = |one: &Controller| one.name().to_owned();
    let controllers = match part {
        // v1's hierarchies are known by all that they carry, of which one that holds both parts is told by memory.
        Some(part) if hierarchy.version == Version::V2 => hierarchy.controllers_of(part).map(|one| name(&one)).collect(),
        _ => hierarchy.controllers.iter().map(name).collect(),
    };
    Some(RecordedGroup { path: level.path.absolute(), controllers, inode })
}

/// Keeps the values that Kata's own groups had before us.
fn adopt(record: &mut Record, sites: &[Site]) {
    for site in sites.iter().filter(|site| site.is_adopted) {
        let Some(own) = site.own() else { continue };
        let path = site.group.absolute();
        let is_known = |known: &Adopted| known.inode == own.inode && !known.values.is_empty();
        if !record.adopted.iter().any(|known| known.path == path && is_known(known)) {
            record.adopted.retain(|known| known.path != path);
            let files = file::given_back(&site.group.hierarchy, site.part);
            let mut values: BTreeMap<String, String> = BTreeMap::new();
            for file in files {
                // A weight that it does not have yet will be the kernel's own.
                let default = (file == file::WEIGHT).then(|| DEFAULT_WEIGHT.to_string());
                values.extend(own.values.get(file).cloned().or(default).map(|value| (file.to_owned(), value)));
            }
            record.adopted.push(Adopted { path, inode: own.inode, values });
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
pub(super) fn mode_of(mounts: &Mounts) -> BTreeMap<String, String> {
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
    let is_within = |site: &&Site| site.part == Part::Constrained && site.group.hierarchy.version == Version::V2;
    // On v2 the vCPU threads go where their process goes.
    for site in sites.iter().filter(|site| !is_within(site)) {
        let thread = if site.part == Part::Constrained { vcpu.or(member.leader()) } else { member.leader() };
        let place = thread.and_then(|thread| site.place_of(thread)).filter(|place| *place != site.group);
        if let Some(place) = place {
            let controllers = site.group.hierarchy.controllers_of(site.part);
            from.extend(controllers.map(|one| (one.name().to_owned(), place.in_kernel())));
        }
    }
    from
}
