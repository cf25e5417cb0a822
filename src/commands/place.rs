//! Placing a sandbox: any container's hook brings the whole sandbox to where it should be.

use crate::cgroup::Controller;
use crate::cgroup::demand;
use crate::cgroup::mounts::Mounts;
use crate::commands::settle::{Change, settle};
use crate::commands::subject::Subject;
use crate::commands::{Run, bookkeeping, containers, vm};
use crate::error::Error;
use crate::log::Outcome;
use crate::oci::bundle::Bundle;
use crate::store::Store;

/// Places the sandbox of `subject`.
pub(super) fn run(run: &mut Run, subject: &Subject, bundle: &Bundle) -> Result<(), Error> {
    let mounts = Mounts::read(&run.host.proc)?;
    // Before the VM is there nothing is made, not even a lock.
    let known = Store::peek(&run.config.state_dir, run.host.owner, &subject.sandbox.id)?;
    let Some(vm) = vm::find(run, subject.clues(), &known) else {
        vm::tell_absence(run, &subject.dirs);
        return Ok(());
    };
    if !has_cpu(run, &mounts) {
        run.summary = "0 steps".into();
        return Ok(());
    }
    let pod = demand::of_pod(&bundle.annotations);
    let store = if run.may_change { Some(Store::open(&run.config.state_dir, run.host.owner)?) } else { None };
    let store = store.as_ref();
    let _lock = store.map(|store| store.lock(&subject.sandbox.id, run.deadline)).transpose()?;
    // Another hook of this sandbox may have placed it while we waited for the lock: what it may have changed is read from here on.
    let known = store.map_or(Ok(known), |store| bookkeeping::load(run, store, &subject.sandbox.id))?;
    let mut record = known.clone();
    containers::join(run, &mut record, subject, bundle, &vm)?;
    settle(run, subject.clues(), &mounts, Change { known: &known, record, pod, store }, Some(vm))
}

/// Whether there is anything that can be done here.
fn has_cpu(run: &mut Run, mounts: &Mounts) -> bool {
    let missing: Vec<&str> = Controller::ALL
        .into_iter()
        .filter(|controller| mounts.of_controller(*controller).is_none())
        .map(Controller::name)
        .collect();
    if !missing.is_empty() {
        run.report.note(format!("left out: no {} controller mounted", missing.join(", ")));
    }
    let has_cpu = mounts.of_controller(Controller::Cpu).is_some();
    if !has_cpu {
        run.report.outcome = Outcome::Refused;
        run.report.note("nothing done: no cpu controller is mounted to limit the vCPU threads with");
    }
    has_cpu
}
