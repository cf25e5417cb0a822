//! Releasing a sandbox, and what a container's end means for it.
//!
//! A workload's end is not the sandbox's: its demand is forgotten and the rest placed again; where nothing remains the last
//! limits stay, since a crash loop must not free the guest. The end is the poststop of the sandbox itself or of a single
//! container, or the VMM's death. Nothing is ever killed: what still lives is moved out and named.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::apply::{Apply, Done};
use crate::cgroup::leftover;
use crate::cgroup::mounts::Mounts;
use crate::cgroup::path::SandboxPath;
use crate::cli::Stage;
use crate::commands::settle::{Change, settle};
use crate::commands::subject::Subject;
use crate::commands::{Run, bookkeeping, vm};
use crate::deadline::{Backoff, Deadline};
use crate::error::Error;
use crate::log::{Outcome, Report};
use crate::oci::bundle::Bundle;
use crate::oci::sandbox::Role;
use crate::plan::{self, Plan};
use crate::record::{Progress, Record, Store};

/// How often it is looked again for what has become empty meanwhile.
const MOST_ROUNDS: usize = 8;

/// Handles the end of `subject`'s container.
pub(super) fn run(run: &mut Run, subject: &Subject, bundle: Option<&Bundle>) -> Result<(), Error> {
    let id = &subject.sandbox.id;
    if !run.changes() {
        let known = Store::peek(&run.config.state_dir, run.host.owner, id)?;
        return handle(run, subject, bundle, &known, None);
    }
    let Some(store) = Store::open_existing(&run.config.state_dir, run.host.owner)? else {
        return handle(run, subject, bundle, &Record::new(id), None);
    };
    let _lock = store.lock(id, run.deadline)?;
    let known = bookkeeping::load(run, &store, id)?;
    handle(run, subject, bundle, &known, Some(&store))
}

fn handle(
    run: &mut Run,
    subject: &Subject,
    bundle: Option<&Bundle>,
    known: &Record,
    store: Option<&Store>,
) -> Result<(), Error> {
    if subject.sandbox.role == Role::Workload && is_vmm_alive(run, subject, known)? {
        return forget_container(run, subject, known, store);
    }
    // The recorded place, or what config.json says.
    let derived = || SandboxPath::derive(&bundle?.cgroups_path, &subject.sandbox).ok();
    let path = SandboxPath::recorded(&known.path).or_else(derived);
    end(run, &mut known.clone(), path.as_ref(), store)
}

/// Whether the VMM lives. One that cannot prove itself this time is not dead for that.
fn is_vmm_alive(run: &mut Run, subject: &Subject, record: &Record) -> Result<bool, Error> {
    if record.vmm().is_some() && lives(run, record) {
        return Ok(true);
    }
    let mounts = Mounts::read(&run.host.proc)?;
    let is_found = vm::find(run, subject, record, &mounts, None).is_some();
    let is_refused = run.report.outcome == Outcome::Refused && record.vmm().is_none();
    if !is_refused {
        run.report.notes.clear();
    }
    Ok(is_found || is_refused)
}

/// Whether the recorded VMM still runs; what cannot be seen is not dead.
fn lives(run: &Run, record: &Record) -> bool {
    let Some(vmm) = record.vmm() else { return false };
    match run.host.proc.process(vmm.pid).and_then(|process| process.map(|process| process.stat()).transpose()) {
        Ok(stat) => stat.is_some_and(|stat| stat.start == vmm.start && !stat.is_dead()),
        Err(errno) => !matches!(errno, Errno::ENOENT | Errno::ESRCH),
    }
}

/// A workload's end while the VM lives: the others' demand is what remains.
fn forget_container(run: &mut Run, subject: &Subject, known: &Record, store: Option<&Store>) -> Result<(), Error> {
    let mut record = known.clone();
    let was_known = record.containers.contains_key(&subject.state.bundle);
    record.keep_containers(|bundle| bundle != subject.state.bundle);
    if !record.containers.is_empty() {
        return settle(run, subject, Change { known, record, pod: None, store }, None);
    }
    if run.report.outcome != Outcome::Refused {
        run.report.outcome = Outcome::Unchanged;
    }
    run.printed.push("0 steps".into());
    if !was_known {
        return Ok(());
    }
    run.report.note("no container left: the last limits stay");
    record.state = Progress::Idle;
    store.map_or(Ok(()), |store| store.save(&record))
}

/// The sandbox's end: everything of it goes.
fn end(run: &mut Run, record: &mut Record, path: Option<&SandboxPath>, store: Option<&Store>) -> Result<(), Error> {
    let mounts = Mounts::read(&run.host.proc)?;
    let mut plan = plan_end(record, path, &mounts)?;
    run.print(&plan);
    let is_nothing = plan.steps.is_empty() && record.path.is_empty();
    run.report.outcome = if is_nothing || !run.changes() { Outcome::Unchanged } else { Outcome::Released };
    if is_nothing || !run.changes() {
        return Ok(());
    }
    // That this cannot be written down is no reason to leave the groups.
    record.state = Progress::Releasing;
    let noted = store.filter(|_| !record.path.is_empty()).map_or(Ok(()), |store| store.save(record));
    let apply = Apply { proc: &run.host.proc, deadline: run.deadline, sandbox: &record.sandbox };
    let mut done = Done::default();
    let mut errors: Vec<Error> = noted.err().into_iter().collect();
    let mut backoff = Backoff::default();
    // Again until nothing is left: a parent that other sandboxes were leaving at the same time empties only now.
    for _ in 0..MOST_ROUNDS {
        let before = done.removed;
        let failed = apply.release(&plan.steps, &mut done);
        errors.extend(failed);
        plan = if errors.is_empty() { plan_end(record, path, &mounts)? } else { Plan::default() };
        if plan.steps.is_empty() {
            break;
        }
        if done.removed == before {
            backoff.pause(run.deadline);
        }
    }
    run.report.removed += done.removed;
    run.report.moved += done.moved;
    if errors.is_empty() {
        errors.extend(store.and_then(|store| store.forget(&record.sandbox).err()));
    }
    Error::all(errors)
}

fn plan_end(record: &Record, path: Option<&SandboxPath>, mounts: &Mounts) -> Result<Plan, Error> {
    Ok(plan::release(&leftover::of(record, path, mounts)?, leftover::restorations(record, mounts)?))
}

/// How long the release of others may take at the cost of this container.
const FOR_OTHERS: Duration = Duration::from_millis(200);

/// How many others are looked at where a container waits to start. With more on the host, each run looks at other ones.
const AT_START: usize = 8;

/// Releases other sandboxes whose VMM is gone: idle ones, and what was left when a run was killed. What fails here is not this
/// container's failure: it is told and left for the next run.
pub(super) fn others(run: &mut Run, except: &str) {
    let Ok(Some(store)) = Store::open_existing(&run.config.state_dir, run.host.owner) else { return };
    let deadline = Deadline::after(Instant::now(), FOR_OTHERS.min(run.deadline.left()));
    let mut ids = store.sandboxes();
    ids.retain(|id| id != except);
    if run.stage != Stage::Poststop && ids.len() > AT_START {
        let turn = std::process::id() as usize % ids.len();
        ids.rotate_left(turn);
        ids.truncate(AT_START);
    }
    for id in ids {
        if deadline.left().is_zero() {
            return;
        }
        let mut other = Run { deadline: &deadline, report: Report::default(), printed: Vec::new(), ..*run };
        match release_if_dead(&mut other, &store, &id) {
            Ok(true) => run.report.note(format!("released sandbox {id}, whose VMM is gone")),
            Ok(false) => {}
            Err(error) => run.report.note(format!("sandbox {id} not released: {error}")),
        }
    }
}

fn release_if_dead(run: &mut Run, store: &Store, id: &str) -> Result<bool, Error> {
    let is_over = |record: &Record, run: &Run| record.vmm().is_some() && !lives(run, record);
    if !store.load(id)?.is_some_and(|record| is_over(&record, run)) {
        return Ok(false);
    }
    // Somebody else is at it: they will see to it.
    let Some(_lock) = store.try_lock(id)? else { return Ok(false) };
    let Some(mut record) = store.load(id)?.filter(|record| is_over(record, run)) else { return Ok(false) };
    let path = SandboxPath::recorded(&record.path);
    end(run, &mut record, path.as_ref(), Some(store)).map(|()| true)
}
