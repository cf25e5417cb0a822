//! Placing a sandbox: any container's hook brings the whole sandbox to where it should be.

use std::path::Path;
use std::time::Instant;

use oci_spec::runtime::LinuxCpu;

use crate::cgroup::Controller;
use crate::cgroup::demand;
use crate::cgroup::mounts::{Mounts, Version};
use crate::cgroup::path::SandboxPath;
use crate::commands::settle::{Change, settle};
use crate::commands::subject::Subject;
use crate::commands::{Run, bookkeeping, vm};
use crate::error::Error;
use crate::log::Outcome;
use crate::oci::bundle::Bundle;
use crate::oci::sandbox::Role;
use crate::record::{Container, Record, Store};
use crate::vmm::Member;

/// Places the sandbox of `subject`.
pub(super) fn run(run: &mut Run, subject: &Subject, bundle: &Bundle) -> Result<(), Error> {
    let mounts = Mounts::read(&run.host.proc)?;
    // Before the VM is there nothing is made, not even a lock.
    let known = Store::peek(&run.config.state_dir, run.host.owner, &subject.sandbox.id)?;
    let Some(mut vm) = vm::find(run, subject, &known, &mounts, Some(Instant::now())) else {
        run.printed.push("0 steps: no VMM yet".into());
        return Ok(());
    };
    if !has_cpu_on_v1(run, &mounts) {
        run.printed.push("0 steps".into());
        return Ok(());
    }
    if !run.changes() {
        let mut record = known.clone();
        join(&mut record, subject, bundle)?;
        let change = Change { known: &known, record, pod: pod_of(bundle, &known), store: None };
        return settle(run, subject, change, Some(vm));
    }
    let store = Store::open(&run.config.state_dir, run.host.owner)?;
    let _lock = store.lock(&subject.sandbox.id, run.deadline)?;
    // Another hook of this sandbox may have placed it while we waited for the lock.
    vm.processes.iter_mut().for_each(Member::read_threads);
    let known = bookkeeping::load(run, &store, &subject.sandbox.id)?;
    let mut record = known.clone();
    join(&mut record, subject, bundle)?;
    let pod = pod_of(bundle, &record);
    settle(run, subject, Change { known: &known, record, pod, store: Some(&store) }, Some(vm))
}

/// Adds the container to its sandbox, whose place it gives if none is known yet. Containers whose bundle is gone have left.
fn join(record: &mut Record, subject: &Subject, bundle: &Bundle) -> Result<(), Error> {
    record.keep_containers(Path::is_dir);
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
    demand::of_pod(&bundle.annotations).filter(|_| record.demands().is_empty())
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
