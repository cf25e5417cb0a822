//! The containers of a sandbox, and what they ask for together: never guessed low.
//!
//! A hook sees one container. What the others ask for is in the sandbox's record; where that is lost, or the hook was installed
//! only now, in the bundles beside this container's and in the persist.json of Go Kata, which also has what a container asks for
//! since it was resized. Where a container is known to exist and what it asks for is not, the sum is not written: then the pod's
//! own groups are all that limits the sandbox.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::sys::stat::stat;
use oci_spec::runtime::LinuxCpu;

use crate::cgroup::demand::Demand;
use crate::cgroup::path::SandboxPath;
use crate::commands::Run;
use crate::commands::subject::Subject;
use crate::error::Error;
use crate::oci::bundle::{self, Bundle};
use crate::oci::sandbox::{Role, Sandbox};
use crate::order;
use crate::record::{Container, Record};
use crate::vmm::Vm;

/// Adds the container to its sandbox, whose place it gives if none is known yet. Containers whose bundle is gone have left.
pub(super) fn join(run: &Run, record: &mut Record, subject: &Subject, bundle: &Bundle, vm: &Vm) -> Result<(), Error> {
    record.keep_containers(Path::is_dir);
    record.ended.retain(|bundle, _| bundle.is_dir());
    let path = &subject.state.bundle;
    if subject.sandbox.role == Role::Workload && !record.containers.contains_key(path) {
        join_siblings(run, record, path, vm)?;
    }
    if subject.sandbox.role != Role::Sandbox {
        enter(record, path, of_bundle(&subject.container, bundle));
    }
    find_place(record, &subject.sandbox, bundle)
}

/// Derives the sandbox's place from a container's, if none is known yet.
fn find_place(record: &mut Record, sandbox: &Sandbox, bundle: &Bundle) -> Result<(), Error> {
    if SandboxPath::recorded(&record.path).is_none() {
        record.path = SandboxPath::derive(&bundle.cgroups_path, sandbox)?.as_text();
    }
    Ok(())
}

/// Adds the containers of which no hook has told: those whose bundles lie beside this one and name the same sandbox. None can be
/// older than the VM, and those of other sandboxes mostly are, so few are read.
pub(super) fn join_siblings(run: &Run, record: &mut Record, path: &Path, vm: &Vm) -> Result<(), Error> {
    let born = vm.vmm().and_then(|vmm| run.host.proc.time_of(vmm.start)).unwrap_or(0);
    let mut siblings = bundle::beside(path);
    siblings.retain(|path| !record.containers.contains_key(path) && !record.ended.contains_key(path));
    let changed = |path: &Path| stat(path).ok().and_then(|stat| u64::try_from(stat.st_mtime).ok());
    let mut siblings: Vec<_> = siblings.into_iter().filter_map(|path| Some((changed(&path)?, path))).collect();
    // Whole seconds on both clocks.
    siblings.retain(|(changed, _)| changed + 1 >= born);
    order::sort(&mut siblings);
    for (_, path) in siblings {
        let id = bundle::id_of(&path);
        let Ok(bundle) = Bundle::read(&path) else { continue };
        let named = Sandbox::named_by(&bundle.annotations, &id, &path);
        let is_of_ours = |sandbox: &Sandbox| sandbox.id == record.sandbox && sandbox.role == Role::Workload;
        if let Some(sandbox) = named.filter(is_of_ours) {
            enter(record, &path, of_bundle(&id, &bundle));
            find_place(record, &sandbox, &bundle)?;
        }
    }
    Ok(())
}

fn of_bundle(id: &str, bundle: &Bundle) -> Container {
    Container { id: id.to_owned(), name: bundle.annotations.container_name(), cpu: bundle.cpu.clone(), is_outdated: false }
}

/// Puts a container into the record, in the place of its predecessor: CRI-O starts a container anew before it ends the old one.
fn enter(record: &mut Record, path: &Path, container: Container) {
    let is_predecessor = |other: &Container| other.name.is_some() && other.name == container.name;
    let before = std::mem::take(&mut record.containers).into_iter();
    let (gone, staying) = before.partition(|(bundle, other)| bundle != path && is_predecessor(other));
    let gone: BTreeMap<PathBuf, Container> = gone;
    record.containers = staying;
    record.ended.extend(gone.into_iter().map(|(bundle, container)| (bundle, container.id)));
    record.ended.remove(path);
    let is_outdated = record.containers.get(path).is_some_and(|known| known.is_outdated);
    record.containers.insert(path.to_path_buf(), Container { is_outdated, ..container });
}

/// Takes the container with this bundle, and those whose bundles are gone, out of the record; true if it was there.
pub(super) fn leave(record: &mut Record, path: &Path, id: &str) -> bool {
    let was_known = record.containers.contains_key(path);
    record.keep_containers(|bundle| bundle != path && bundle.is_dir());
    record.ended.retain(|bundle, _| bundle.is_dir());
    record.ended.insert(path.to_path_buf(), id.to_owned());
    was_known
}

/// What all of them ask for, or what `pod` asks for as long as no container is known.
pub(super) fn demand(record: &Record, vm: &Vm, pod: Option<&LinuxCpu>, notes: &mut Vec<String>) -> Result<Demand, Error> {
    let told = |id: &str| vm.containers.iter().find(|told| told.id == id).and_then(|told| told.cpu.as_ref());
    let (mut asked, mut unknown) = (Vec::new(), Vec::new());
    for container in record.containers.values() {
        match told(&container.id) {
            Some(cpu) => asked.push(cpu),
            None if container.is_outdated => unknown.push(&container.id),
            None => asked.push(&container.cpu),
        }
    }
    for told in &vm.containers {
        let is_ended = record.ended.values().any(|id| *id == told.id);
        let is_known = record.containers.values().any(|container| container.id == told.id);
        // The pause container has the sandbox's id and asks for nothing.
        if told.id == record.sandbox || is_known || is_ended {
            continue;
        }
        match &told.cpu {
            Some(cpu) => asked.push(cpu),
            None => unknown.push(&told.id),
        }
    }
    if asked.is_empty() && unknown.is_empty() {
        asked.extend(&record.last);
    }
    if asked.is_empty() && unknown.is_empty() {
        asked.extend(pod);
    }
    let demand = Demand::of(asked)?;
    if unknown.is_empty() {
        return Ok(demand);
    }
    let names: Vec<&str> = unknown.into_iter().map(String::as_str).collect();
    notes.push(format!("what {} asks for is not known: the pod's own limits alone hold", names.join(", ")));
    Ok(demand.of_the_pod_alone())
}

/// Notes that what the containers asked for when they joined is no more what they ask for: the pod's limit has changed since, and
/// kubelet changes it only where it resizes a container.
pub(super) fn note_resize(record: &mut Record, known: &Record, pod_limit: Option<(u64, u64)>) {
    let limit = pod_limit.map_or("max".to_owned(), |(quota, period)| format!("{quota}/{period}"));
    if known.pod_limit.as_ref().is_some_and(|known| *known != limit) && record.pod_limit.as_ref() != Some(&limit) {
        // A single container is nobody's pod.
        for (path, container) in record.containers.iter_mut().filter(|(_, container)| container.id != record.sandbox) {
            container.is_outdated |= known.containers.contains_key(path);
        }
    }
    record.pod_limit = Some(limit);
}
