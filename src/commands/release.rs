//! Releasing a sandbox, and what a container's end means for it.
//!
//! A workload's end is not the sandbox's: its demand is forgotten and the rest placed again; where nothing remains the last
//! limits stay, since a crash loop must not free the guest. The end is the poststop of the sandbox itself or of a single
//! container, or the VMM's death. Nothing is ever killed: what still lives is moved out and named.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::apply::{Apply, Done};
use crate::cgroup::group::{GroupPath, locate};
use crate::cgroup::mounts::{Mounts, Version};
use crate::cgroup::path::{Domain, SandboxPath, VCPUS};
use crate::cgroup::{file, leftover};
use crate::cli::Stage;
use crate::commands::settle::{Change, settle};
use crate::commands::subject::Subject;
use crate::commands::{Run, bookkeeping, containers, vm};
use crate::deadline::{Backoff, Deadline};
use crate::error::Error;
use crate::log::{Outcome, Report};
use crate::oci::bundle::Bundle;
use crate::oci::sandbox::Role;
use crate::plan::{self, Plan, Step};
use crate::record::{Progress, Record};
use crate::store::Store;
use crate::vmm::Vm;

/// How often it is looked again for what has become empty meanwhile.
const MOST_ROUNDS: usize = 8;

/// Handles the end of `subject`'s container.
pub(super) fn run(run: &mut Run, subject: &Subject, bundle: Option<&Bundle>) -> Result<(), Error> {
    let id = &subject.sandbox.id;
    if !run.may_change {
        let known = Store::peek(&run.config.state_dir, run.host.owner, id)?;
        return end_or_leave(run, subject, bundle, &known, None);
    }
    let Some(store) = Store::open_existing(&run.config.state_dir, run.host.owner)? else {
        return end_or_leave(run, subject, bundle, &Record::new(id), None);
    };
    let _lock = store.lock(id, run.deadline)?;
    let known = bookkeeping::load(run, &store, id)?;
    end_or_leave(run, subject, bundle, &known, Some(&store))
}

/// Ends the sandbox, or takes the container's demand out of what the others of it ask for.
fn end_or_leave(
    run: &mut Run,
    subject: &Subject,
    bundle: Option<&Bundle>,
    known: &Record,
    store: Option<&Store>,
) -> Result<(), Error> {
    if subject.sandbox.role == Role::Workload {
        if let Some(vm) = living_vm(run, subject, known) {
            return forget_container(run, subject, known, vm, store);
        }
    }
    // The recorded place, or what config.json says.
    let derived = || SandboxPath::derive(&bundle?.cgroups_path, &subject.sandbox).ok();
    let path = SandboxPath::recorded(&known.path).or_else(derived);
    end(run, &mut known.clone(), path.as_ref(), store)
}

/// A VMM that lives.
enum Living {
    /// The recorded one; or one that could not prove itself this time, which is not dead for that.
    Unread,
    /// One of which there is no record.
    Found(Vm),
}

/// The VMM, if it lives.
fn living_vm(run: &mut Run, subject: &Subject, record: &Record) -> Option<Living> {
    if record.vmm().is_some() && lives(run, record) {
        return Some(Living::Unread);
    }
    let found = vm::find(run, subject.clues(), record);
    let is_refused = run.report.outcome == Outcome::Refused && record.vmm().is_none();
    if !is_refused {
        run.report.notes.clear();
    }
    found.map(Living::Found).or(is_refused.then_some(Living::Unread))
}

/// Whether the sandbox's VMM is known to have ended.
pub(super) fn is_over(run: &Run, record: &Record) -> bool {
    record.vmm().is_some() && !lives(run, record)
}

/// Whether the recorded VMM still runs; what cannot be seen is not dead.
pub(super) fn lives(run: &Run, record: &Record) -> bool {
    let Some(vmm) = record.vmm() else { return false };
    let looked_at = run.host.proc.process(vmm.pid).and_then(|process| {
        let Some(process) = process else { return Ok(false) };
        let stat = process.stat()?;
        Ok(stat.start == vmm.start && !process.is_over(&stat, run.deadline)?)
    });
    looked_at.unwrap_or_else(|errno| !matches!(errno, Errno::ENOENT | Errno::ESRCH))
}

/// A workload's end while the VM lives: the others' demand is what remains.
fn forget_container(run: &mut Run, subject: &Subject, known: &Record, vm: Living, store: Option<&Store>) -> Result<(), Error> {
    let mut record = known.clone();
    let was_known = containers::leave(&mut record, &subject.state.bundle, &subject.container);
    let vm = match vm {
        Living::Found(vm) => Some(vm),
        Living::Unread => None,
    };
    // Where the record is lost, the others may still be there.
    if let Some(vm) = vm.as_ref().filter(|_| known.path.is_empty()) {
        containers::join_siblings(run, &mut record, &subject.state.bundle, vm)?;
    }
    if !record.containers.is_empty() {
        let mounts = Mounts::read(&run.host.proc)?;
        return settle(run, subject.clues(), &mounts, Change { known, record, pod: None, store }, vm);
    }
    if run.report.outcome != Outcome::Refused {
        run.report.outcome = Outcome::Unchanged;
    }
    // A run that was killed on its way out has forgotten the container and left the groups.
    if !was_known && known.state != Progress::Idle {
        run.summary = "0 steps".into();
        return Ok(());
    }
    record.state = Progress::Idle;
    let mounts = Mounts::read(&run.host.proc)?;
    if let Some(domain) = katas_own_domain(&record, &mounts) {
        return leave(run, record, &domain, &mounts, store);
    }
    run.report.note("no container left: the last limits stay");
    run.summary = "0 steps".into();
    store.map_or(Ok(()), |store| store.save(&record))
}

/// The group of Kata's in the pod that the vCPU threads' group lies in.
pub(super) fn katas_own_domain(record: &Record, mounts: &Mounts) -> Option<GroupPath> {
    let path = SandboxPath::recorded(&record.path)?;
    let adopted = record.adopted.iter().filter_map(|adopted| locate(&mounts.hierarchies, &adopted.path));
    let mut on_v2 = adopted.filter(|group| group.hierarchy.version == Version::V2);
    on_v2.find(|group| group.rel.starts_with(path.pod()) && group.rel != path.v2(Domain::Kata) && !group.rel.ends_with(VCPUS))
}

/// Leaves Kata's own group to Kata, which removes it when the sandbox ends and reads its processes before, group by group: it would
/// meet EOPNOTSUPP in a threaded one (runc#3821 is the same in runc). The pod's own limits hold on; the next container's hook
/// makes the group again. That the sandbox was there is kept in mind: it stays there until it ends.
pub(super) fn leave(
    run: &mut Run,
    mut record: Record,
    domain: &GroupPath,
    mounts: &Mounts,
    store: Option<&Store>,
) -> Result<(), Error> {
    let domain = domain.absolute();
    let is_left = |path: &Path| path.starts_with(&domain);
    let mut what_goes = Record { parents: Vec::new(), ..record.clone() };
    what_goes.groups.retain(|group| is_left(&group.path));
    what_goes.adopted.retain(|adopted| is_left(&adopted.path));
    // Written down first: a run that is killed in between leaves the rest to the next.
    let saved = store.map_or(Ok(()), |store| store.save(&record));
    both(saved, clear(run, &what_goes, None, mounts))?;
    if run.report.removed == 0 {
        run.report.outcome = Outcome::Unchanged;
    }
    run.report.note("no container left: Kata's own group is left to Kata");
    record.groups.retain(|group| !is_left(&group.path));
    record.adopted.iter_mut().filter(|adopted| is_left(&adopted.path)).for_each(|adopted| adopted.values.clear());
    store.map_or(Ok(()), |store| store.save(&record))
}

/// The sandbox's end: everything of it goes.
pub(super) fn end(run: &mut Run, record: &mut Record, path: Option<&SandboxPath>, store: Option<&Store>) -> Result<(), Error> {
    let mounts = Mounts::read(&run.host.proc)?;
    record.state = Progress::Releasing;
    // That this cannot be written down is no reason to leave the groups.
    let saved = store.filter(|_| !record.path.is_empty()).map_or(Ok(()), |store| store.save(record));
    both(saved, clear(run, record, path, &mounts))?;
    // What was never placed has no record to forget.
    let store = store.filter(|_| run.report.outcome == Outcome::Released);
    store.map_or(Ok(()), |store| store.forget(&record.sandbox))
}

/// The errors of two things of which the second was done whatever came of the first.
fn both(first: Result<(), Error>, second: Result<(), Error>) -> Result<(), Error> {
    Error::all(first.err().into_iter().chain(second.err()).collect())
}

/// Gives back what was adopted and removes what is ours, as far as this run may change anything.
fn clear(run: &mut Run, record: &Record, path: Option<&SandboxPath>, mounts: &Mounts) -> Result<(), Error> {
    // What cannot be looked at keeps nothing else in.
    let mut errors = Vec::new();
    let mut plan = plan_end(record, path, mounts, &mut errors);
    run.print(&plan);
    let is_nothing = plan.steps.is_empty() && record.path.is_empty();
    run.report.outcome = if is_nothing || !run.may_change { Outcome::Unchanged } else { Outcome::Released };
    if is_nothing || !run.may_change {
        return Error::all(errors);
    }
    let apply = Apply { proc: &run.host.proc, deadline: run.deadline, mark: run.mark(&record.sandbox) };
    let mut done = Done::default();
    let mut backoff = Backoff::default();
    // Again until nothing is left: a parent that other sandboxes were leaving at the same time empties only now.
    for _ in 0..MOST_ROUNDS {
        let before = done.removed;
        let failed = apply.release(&plan.steps, &mut done);
        errors.extend(failed);
        plan = if errors.is_empty() { plan_end(record, path, mounts, &mut errors) } else { Plan::default() };
        // What others use is left to them.
        if plan.steps.iter().all(|step| matches!(step, Step::Set { file: file::SUBTREE, .. })) {
            break;
        }
        if done.removed == before {
            backoff.pause(run.deadline);
        }
    }
    run.report.removed += done.removed;
    run.report.moved += done.moved;
    Error::all(errors)
}

fn plan_end(record: &Record, path: Option<&SandboxPath>, mounts: &Mounts, unseen: &mut Vec<Error>) -> Plan {
    let leftovers = leftover::of(record, path, mounts, unseen);
    let mut values = Vec::new();
    for assignments in [leftover::restorations(record, mounts), leftover::weight_of_kata(&leftovers, record)] {
        match assignments {
            Ok(assignments) => values.extend(assignments),
            Err(error) => unseen.push(error),
        }
    }
    plan::release(&leftovers, values)
}

/// How long the release of others may take at the cost of this container.
const FOR_OTHERS: Duration = Duration::from_millis(200);

/// How many others are looked at where a container waits to start. With more on the host, each run looks at other ones.
const AT_START: usize = 8;

/// Releases other sandboxes whose VMM is gone: idle ones, and what was left when a run was killed. What fails here is not this
/// container's failure: it is told and left for the next run.
pub(super) fn others(run: &mut Run, except: &str, stage: Stage) {
    let Ok(Some(store)) = Store::open_existing(&run.config.state_dir, run.host.owner) else { return };
    let deadline = Deadline::after(Instant::now(), FOR_OTHERS.min(run.deadline.left()));
    let mut ids = store.sandboxes();
    ids.retain(|id| id != except);
    if stage != Stage::Poststop && ids.len() > AT_START {
        let turn = std::process::id() as usize % ids.len();
        ids.rotate_left(turn);
        ids.truncate(AT_START);
    }
    for id in ids {
        if deadline.left().is_zero() {
            return;
        }
        let mut other =
            Run { deadline: &deadline, report: Report::default(), steps: Vec::new(), summary: String::new(), ..*run };
        match release_if_dead(&mut other, &store, &id) {
            Ok(true) => run.report.note(format!("released sandbox {id}, whose VMM is gone")),
            Ok(false) => {}
            Err(error) => run.report.note(format!("sandbox {id} not released: {error}")),
        }
    }
}

fn release_if_dead(run: &mut Run, store: &Store, id: &str) -> Result<bool, Error> {
    if !store.load(id)?.is_some_and(|record| is_over(run, &record)) {
        return Ok(false);
    }
    // Somebody else is at it: they will see to it.
    let Some(_lock) = store.try_lock(id)? else { return Ok(false) };
    let Some(mut record) = store.load(id)?.filter(|record| is_over(run, record)) else { return Ok(false) };
    let path = SandboxPath::recorded(&record.path);
    end(run, &mut record, path.as_ref(), Some(store)).map(|()| true)
}
