//! Placing a sandbox: any container's hook brings the whole sandbox to where it should be.
//!
//! Read, plan, apply, and again until a fresh reading leaves nothing to plan: the proof that it holds, and what takes up the
//! threads that came meanwhile. On failure everything that this run did is undone.

use std::time::Instant;

use oci_spec::runtime::LinuxCpu;

use crate::apply::{Apply, Done};
use crate::cgroup::Controller;
use crate::cgroup::demand::{self, Demand};
use crate::cgroup::mounts::{Mounts, Version};
use crate::cgroup::path::SandboxPath;
use crate::cgroup::v1::{self, Site};
use crate::commands::subject::Subject;
use crate::commands::{Run, bookkeeping, release, vm};
use crate::deadline::Deadline;
use crate::error::Error;
use crate::log::Outcome;
use crate::oci::bundle::Bundle;
use crate::oci::sandbox::Role;
use crate::plan::{self, Plan};
use crate::record::{Container, Progress, Record, Store};
use crate::vmm::Vm;

/// How often a plan may be followed by another before something is fighting us.
const MOST_ROUNDS: usize = 12;

/// Places the sandbox of `subject`.
pub(super) fn run(run: &mut Run, mut subject: Subject) -> Result<(), Error> {
    let bundle = std::mem::replace(&mut subject.bundle, Ok(Bundle::default()))?;
    let subject = &subject;
    let mounts = Mounts::read(&run.host.proc)?;
    // Before the VM is there nothing is made, not even a lock.
    let known = Store::peek(&run.config.state_dir, run.host.owner, &subject.sandbox.id)?;
    let Some(vm) = vm::find(run, subject, &known, &mounts, Some(Instant::now())) else {
        run.printed.push("0 steps: no VMM yet".into());
        return Ok(());
    };
    if !has_cpu_on_v1(run, &mounts) {
        run.printed.push("0 steps".into());
        return Ok(());
    }
    if !run.changes() {
        let mut record = known.clone();
        join(&mut record, subject, &bundle)?;
        return settle(run, subject, (&known, &mut record), Some(vm), pod_of(&bundle, &known).as_ref(), None);
    }
    let store = Store::open(&run.config.state_dir, run.host.owner)?;
    let lock = store.lock(&subject.sandbox.id, run.deadline)?;
    let known = load(run, &store, &subject.sandbox.id)?;
    let mut record = known.clone();
    let result = join(&mut record, subject, &bundle).and_then(|()| {
        let pod = pod_of(&bundle, &record);
        settle(run, subject, (&known, &mut record), Some(vm), pod.as_ref(), Some(&store))
    });
    store.unlock(&subject.sandbox.id, lock);
    release::idle(run, &store, &subject.sandbox.id);
    result
}

/// Adds the container to its sandbox, whose place it gives if none is known yet. Containers whose bundle is gone have left.
fn join(record: &mut Record, subject: &Subject, bundle: &Bundle) -> Result<(), Error> {
    record.containers.retain(|bundle, _| bundle.is_dir());
    if subject.sandbox.role != Role::Sandbox {
        let container = Container { id: subject.container.clone(), cpu: bundle.cpu.clone() };
        record.containers.insert(subject.state.bundle.clone(), container);
    }
    if SandboxPath::recorded(&record.path).is_none() {
        record.path = SandboxPath::derive(&bundle.cgroups_path, &subject.sandbox)?.as_text();
    }
    Ok(())
}

/// The pod's totals on a pause container, as long as no workload is known.
fn pod_of(bundle: &Bundle, record: &Record) -> Option<LinuxCpu> {
    demand::of_pod(&bundle.annotations).filter(|_| record.containers.is_empty())
}

/// The sandbox's record, under its lock: an empty one where there is none that can be understood, which is kept aside.
pub(super) fn load(run: &mut Run, store: &Store, sandbox: &str) -> Result<Record, Error> {
    let record = store.load(sandbox)?;
    if record.is_none() && store.has(sandbox) {
        store.set_aside(sandbox);
        run.report.note("record not understood: kept as .json.old and rebuilt");
    }
    Ok(record.unwrap_or_else(|| Record::new(sandbox)))
}

/// Brings the sandbox from what its record said to what it says now, and keeps the record in step. `vm` is what was found of
/// the VM just now, if it was looked for.
pub(super) fn settle(
    run: &mut Run,
    subject: &Subject,
    (known, record): (&Record, &mut Record),
    vm: Option<Vm>,
    pod: Option<&LinuxCpu>,
    store: Option<&Store>,
) -> Result<(), Error> {
    let mut done = Done::default();
    let result = converge(run, subject, record, vm, pod, store, &mut done);
    run.report.created = done.created;
    run.report.moved = done.moved;
    let kept = match result {
        Ok(true) => keep(run, known, record, store, &done),
        Ok(false) => Err(None),
        Err(error) => Err(Some(error)),
    };
    match kept {
        Ok(()) => Ok(()),
        Err(cause) => undo(run, known, store, &mut done, cause),
    }
}

/// Saves the record of a placed sandbox and says how it went.
fn keep(run: &mut Run, known: &Record, record: &mut Record, store: Option<&Store>, done: &Done) -> Result<(), Option<Error>> {
    record.state = Progress::Placed;
    let vcpus = run.report.vcpus.as_ref();
    let is_partial = vcpus.is_none_or(|vcpus| vcpus.is_partial() || vcpus.threads.is_empty());
    let is_unchanged = done.created + done.moved + done.set == 0;
    run.report.outcome = match (is_partial, is_unchanged) {
        (true, _) => Outcome::Partial,
        (false, true) => Outcome::Unchanged,
        (false, false) => Outcome::Placed,
    };
    match store {
        Some(store) if record != known || !is_unchanged => store.save(record).map_err(Some),
        _ => Ok(()),
    }
}

/// Takes back what was done, because of `cause` or because the VM is gone.
fn undo(run: &mut Run, known: &Record, store: Option<&Store>, done: &mut Done, cause: Option<Error>) -> Result<(), Error> {
    let deadline = Deadline::for_undo();
    let apply = Apply { proc: &run.host.proc, deadline: &deadline, sandbox: &known.sandbox };
    let mut errors = apply.undo(done);
    // The record that was there before is right again; of a new one nothing is left, unless undoing failed.
    let result = match store {
        Some(store) if !known.path.is_empty() => store.save(known),
        Some(store) if errors.is_empty() => store.forget(&known.sandbox),
        _ => Ok(()),
    };
    errors.extend(result.err());
    run.report.created = 0;
    run.report.moved = 0;
    match cause {
        Some(cause) if errors.is_empty() => Err(cause),
        Some(cause) => Err(Error::Undo { cause: Box::new(cause), undo: errors }),
        None => Error::all(errors),
    }
}

/// Read, plan, apply until nothing is left to do; false if the VM is gone.
fn converge(
    run: &mut Run,
    subject: &Subject,
    record: &mut Record,
    mut found: Option<Vm>,
    pod: Option<&LinuxCpu>,
    store: Option<&Store>,
    done: &mut Done,
) -> Result<bool, Error> {
    let mounts = Mounts::read(&run.host.proc)?;
    let path = SandboxPath::recorded(&record.path).ok_or_else(|| Error::Unsettled("no place recorded".into()))?;
    let demand = Demand::of(record.containers.values().map(|container| &container.cpu).chain(pod))?;
    for _ in 0..MOST_ROUNDS {
        run.deadline.check("look at the VMM's threads")?;
        let Some(vm) = found.take().or_else(|| vm::find(run, subject, record, &mounts, None)) else { return Ok(false) };
        let sites = v1::survey(&mounts, &path, &vm, record)?;
        refuse_taken(&sites, record, store)?;
        let plan = plan::place(&vm, &sites, &demand)?;
        report(run, &vm, &plan);
        let is_news = bookkeeping::update(record, &mounts, &vm, &sites);
        let Some(store) = store.filter(|_| !plan.steps.is_empty()) else {
            run.print(&plan);
            return Ok(true);
        };
        if is_news || record.state != Progress::Placed {
            record.state = Progress::Placing;
            store.save(record)?;
        }
        let apply = Apply { proc: &run.host.proc, deadline: run.deadline, sandbox: &record.sandbox };
        apply.place(&plan.steps, done)?;
    }
    Err(Error::Unsettled(format!("after {MOST_ROUNDS} rounds something still moves threads or groups back")))
}

/// Whether there is anything that this version can do here.
fn has_cpu_on_v1(run: &mut Run, mounts: &Mounts) -> bool {
    let is_v2 = |controller: &Controller| mounts.of_controller(*controller).is_some_and(|one| one.version == Version::V2);
    let left_alone: Vec<&str> = Controller::ALL.iter().filter(|one| is_v2(one)).map(|one| one.name()).collect();
    if !left_alone.is_empty() {
        run.report.note(format!("left alone: {} on cgroup v2, which this version does not manage", left_alone.join(", ")));
    }
    let missing: Vec<&str> = Controller::ALL
        .into_iter()
        .filter(|controller| mounts.of_controller(*controller).is_none())
        .map(Controller::name)
        .collect();
    if !missing.is_empty() {
        run.report.note(format!("left out: no {} controller mounted", missing.join(", ")));
    }
    let has_cpu = mounts.of_controller(Controller::Cpu).is_some_and(|cpu| cpu.version == Version::V1);
    if !has_cpu {
        run.report.outcome = Outcome::Refused;
        run.report.note("nothing done: the cpu controller is not on cgroup v1");
    }
    has_cpu
}

/// No group that is marked for another sandbox, if that has a record or anything in the group.
fn refuse_taken(sites: &[Site], record: &Record, store: Option<&Store>) -> Result<(), Error> {
    for site in sites {
        let mark = site.own().and_then(|own| own.mark.clone()).filter(|mark| *mark != record.sandbox);
        let (Some(owner), Some(group)) = (mark, site.group.open()?) else { continue };
        let is_recorded = store.map_or(Ok(None), |store| store.load(&owner))?.is_some();
        if is_recorded || !group.members(site.group.threads_file())?.is_empty() {
            return Err(Error::Taken { path: site.group.absolute(), owner });
        }
    }
    Ok(())
}

fn report(run: &mut Run, vm: &Vm, plan: &Plan) {
    run.report.vmm = vm.vmm().map(|vmm| (vm.kind.clone(), vmm.process.pid));
    run.report.limit = plan.limit;
    run.report.cpus.clone_from(&plan.cpus);
    plan.notes.iter().for_each(|note| run.report.note(note));
    if vm.vcpus.threads.is_empty() {
        run.report.note("no thread of the VMM could be told to be a vCPU");
    } else if vm.vcpus.is_partial() {
        let proof = vm.vcpus.proof().map_or(String::new(), |proof| proof.to_string());
        run.report.note(format!("some vCPU threads could not be told (best proof to be had: {proof})"));
    }
    run.report.vcpus = Some(vm.vcpus.clone());
}
