//! Bringing a sandbox to where its record says it should be.
//!
//! Read, plan, apply, and again until a fresh reading leaves nothing to plan: the proof that it holds, and what takes up the
//! threads that came meanwhile. On failure everything that this run did is undone.

use std::time::Instant;

use oci_spec::runtime::LinuxCpu;

use crate::apply::{Applied, Apply, Done};
use crate::cgroup;
use crate::cgroup::mounts::{Mounts, Version};
use crate::cgroup::path::SandboxPath;
use crate::cgroup::site::Site;
use crate::commands::vm::Clues;
use crate::commands::{Run, bookkeeping, containers, vm};
use crate::deadline::{Backoff, Deadline};
use crate::error::Error;
use crate::log::Outcome;
use crate::plan::{self, Plan};
use crate::record::{Progress, Record};
use crate::store::Store;
use crate::vmm::Vm;

/// How many plans may be done one after the other before something is fighting us.
const MOST_ROUNDS: usize = 12;

/// How often what may be of the moment is waited out.
const MOST_WAITS: usize = 5;

/// A sandbox's change from what its record said to what it says now.
pub(super) struct Change<'a> {
    pub(super) known: &'a Record,
    pub(super) record: Record,
    /// What the pod asks for as a whole, as long as no container of it is known.
    pub(super) pod: Option<LinuxCpu>,
    /// Where the record is kept; none for a run that changes nothing.
    pub(super) store: Option<&'a Store>,
}

/// The note for a VMM that is the shim itself, where its vCPU threads cannot leave that process's group.
pub(super) const BOUND_TO_SHIM: &str = "the VMM is the container runtime's shim, in a v2 group that is not the sandbox's: \
                             its vCPU threads cannot leave it";

/// Brings the sandbox to where it should be, and keeps the record in step. `vm` is what was found of the VM just now, if it
/// was looked for.
pub(super) fn settle(run: &mut Run, clues: Clues, mounts: &Mounts, mut change: Change, vm: Option<Vm>) -> Result<(), Error> {
    let mut done = Done::default();
    let result = converge(run, clues, mounts, &mut change, vm, &mut done);
    run.report.created = done.created;
    run.report.moved = done.moved;
    let kept = match result {
        Ok(End::Settled) => keep(run, &mut change, &done),
        Ok(End::Gone) => {
            vm::tell_absence(run, clues.dirs);
            return undo(run, &change, &mut done, None);
        }
        Err(error) => Err(error),
    };
    kept.or_else(|cause| undo(run, &change, &mut done, Some(cause)))
}

/// How reading, planning and applying ended.
enum End {
    /// Nothing is left to do.
    Settled,
    /// There is no VM, or none any more.
    Gone,
}

/// Reads, plans, applies until nothing is left to do.
fn converge(
    run: &mut Run,
    clues: Clues,
    mounts: &Mounts,
    change: &mut Change,
    found: Option<Vm>,
    done: &mut Done,
) -> Result<End, Error> {
    let record = &mut change.record;
    let path = SandboxPath::recorded(&record.path).ok_or(Error::NoPlace)?;
    let Some(mut vm) = found.or_else(|| vm::find(run, clues, record)) else {
        return Ok(End::Gone);
    };
    let mut patience = Some(Instant::now());
    let (mut tries, mut refused) = (Tries::default(), None::<Error>);
    loop {
        run.deadline.check("look at the VMM's threads")?;
        if !vm::look(run, clues, record, mounts, &mut vm, patience.take())? {
            return Ok(End::Gone);
        }
        run.deadline.check("look at the VM's helpers")?;
        let sites = cgroup::survey(mounts, &path, run.config.domain, &vm, record)?;
        refuse_taken(run, &sites, record)?;
        // Later there are groups that this run made.
        if done.created == 0 {
            bookkeeping::tell_loss(run, change.known, &vm, &sites);
        }
        containers::note_resize(record, change.known, cgroup::limit_of_pod(&sites, &path));
        let demand = containers::demand(record, &vm, change.pod.as_ref(), &mut run.report.notes)?;
        let plan = match plan::place_who_is_elsewhere(&mut vm, &sites, &demand, run.deadline) {
            // Another hook may have made it just now, and be about to fill it.
            Err(error @ Error::EmptyCpuset { .. }) if run.may_change => {
                tries.again_after(error, run.deadline)?;
                continue;
            }
            plan => plan?,
        };
        if let Some(error) = refused.take().filter(|error| plan.repeats(error)) {
            return Err(error);
        }
        report(run, &vm, &plan);
        if is_bound_to_shim(&vm, mounts, &sites) {
            run.report.note(BOUND_TO_SHIM);
        }
        let is_news = bookkeeping::update(record, mounts, &vm, &sites);
        let Some(store) = change.store.filter(|_| !plan.steps.is_empty()) else {
            run.print(&plan);
            return Ok(End::Settled);
        };
        if run.tells {
            run.print(&plan);
        }
        if is_news || record.state != Progress::Placed {
            record.state = Progress::Placing;
            store.save(record)?;
        }
        if plan.brings_in(&vm, &sites) {
            vm.brought_in = Some(vm.vcpus.threads.iter().map(|vcpu| vcpu.tid).collect());
        }
        let apply = Apply { proc: &run.host.proc, deadline: run.deadline, mark: run.mark(&record.sandbox) };
        apply.mark_ours(&sites);
        let applied = apply.place(&plan.steps, done);
        record.learn(&done.made);
        match applied {
            // All else was found in its place, and whoever comes or goes next sees to this: on a busy host there is no end to it.
            Ok(Applied::Whole) if plan.only_weighs_kata() => return Ok(End::Settled),
            Ok(Applied::Whole) => tries.one_more_round(&plan)?,
            // Other hooks make and prune the parents that we share.
            Ok(Applied::Overtaken) => tries.backoff.pause(run.deadline),
            // What it was refused for may be no more by now. If so, the next plan is another.
            Err(error) if error.is_of_the_moment() => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
}

/// Whether the vCPU threads cannot leave the shim's group, of which they are a part.
pub(super) fn is_bound_to_shim(vm: &Vm, mounts: &Mounts, sites: &[Site]) -> bool {
    vm.is_shim
        && mounts.v2().is_some_and(|v2| v2.can_hold_vcpus())
        && sites.iter().all(|site| site.group.hierarchy.version == Version::V1)
}

/// How often it was tried, and for how much longer that makes sense.
#[derive(Default)]
struct Tries {
    rounds: usize,
    refusals: usize,
    backoff: Backoff,
}

impl Tries {
    /// A plan was done whole; after a few of them something is fighting us.
    fn one_more_round(&mut self, plan: &Plan) -> Result<(), Error> {
        self.rounds += 1;
        let Some(step) = plan.steps.first().filter(|_| self.rounds >= MOST_ROUNDS) else { return Ok(()) };
        let found = step.from().map_or(String::new(), |from| format!(" (found in {})", from.absolute().display()));
        Err(Error::Unsettled(format!(
            "something moves threads or changes values back: done {MOST_ROUNDS} times and still to do: {step}{found}"
        )))
    }

    /// `error` may be of the moment: the first few are waited out.
    fn again_after(&mut self, error: Error, deadline: &Deadline) -> Result<(), Error> {
        self.refusals += 1;
        if self.refusals > MOST_WAITS {
            return Err(error);
        }
        self.backoff.pause(deadline);
        Ok(())
    }
}

/// Saves the record of a placed sandbox and says how it went.
fn keep(run: &mut Run, change: &mut Change, done: &Done) -> Result<(), Error> {
    change.record.state = if change.record.containers.is_empty() && change.known.state == Progress::Idle {
        Progress::Idle
    } else {
        Progress::Placed
    };
    let vcpus = run.report.vcpus.as_ref();
    let is_bound = run.report.notes.iter().any(|note| note == BOUND_TO_SHIM);
    let is_partial =
        is_bound || run.report.is_unread || vcpus.is_none_or(|vcpus| vcpus.is_partial() || vcpus.threads.is_empty());
    let is_unchanged = done.created + done.moved + done.set == 0;
    run.report.outcome = match (is_partial, is_unchanged) {
        (true, _) => Outcome::Partial,
        (false, true) => Outcome::Unchanged,
        (false, false) => Outcome::Placed,
    };
    match change.store {
        Some(store) if change.record != *change.known || !is_unchanged => store.save(&change.record),
        _ => Ok(()),
    }
}

/// Takes back what was done, because of `cause` or because the VM is gone.
fn undo(run: &mut Run, change: &Change, done: &mut Done, cause: Option<Error>) -> Result<(), Error> {
    let (deadline, known) = (Deadline::for_undo(), change.known);
    let apply = Apply { proc: &run.host.proc, deadline: &deadline, mark: run.mark(&known.sandbox) };
    let mut errors = apply.undo(done);
    // The record that was there before is right again, but for a container that has ended meanwhile; of a new one nothing is
    // left, unless undoing failed.
    let result = match change.store {
        Some(store) if !known.path.is_empty() && cause.is_none() => {
            let (containers, last) = (change.record.containers.clone(), change.record.last.clone());
            store.save(&Record { containers, last, ..known.clone() })
        }
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

/// No group that is marked for another sandbox, if that has a record or anything in the group.
pub(super) fn refuse_taken(run: &Run, sites: &[Site], record: &Record) -> Result<(), Error> {
    for site in sites {
        let mark = site.own().and_then(|own| own.mark.clone()).filter(|mark| *mark != record.sandbox);
        let Some(owner) = mark else { continue };
        let Some(group) = site.group.open()? else { continue };
        let store = Store::open_existing(&run.config.state_dir, run.host.owner)?;
        if store.is_some_and(|store| store.has(&owner)) || !group.members(site.group.threads_file())?.is_empty() {
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
        run.report.note("no thread of the VMM could be told to be a vCPU, so none is limited: kata-cgroup-hook check says why");
    } else if vm.vcpus.is_partial() {
        let proof = vm.vcpus.proof().map_or(String::new(), |proof| proof.to_string());
        run.report.note(format!(
            "some vCPU threads could not be told (best proof to be had: {proof}) and are not limited: the next run tries again"
        ));
    }
    run.report.vcpus = Some(vm.vcpus.clone());
}
