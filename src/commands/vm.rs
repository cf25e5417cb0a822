//! The VM of the sandbox that a run is for, and what the report says of it.

use std::time::{Duration, Instant};

use crate::cgroup::mounts::Mounts;
use crate::commands::Run;
use crate::config::LogLevel;
use crate::deadline::Backoff;
use crate::log::Outcome;
use crate::record::Record;
use crate::vmm::debugfs::Debugfs;
use crate::vmm::find::Search;
use crate::vmm::kinds::{Kind, Role};
use crate::vmm::runtime::RuntimeDirs;
use crate::vmm::{Member, Vm, vcpu};

/// How long a run waits in all for vCPU threads that cannot be told yet.
const PATIENCE: Duration = Duration::from_millis(100);

/// What leads to a sandbox's VM.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clues<'a> {
    pub(super) dirs: &'a RuntimeDirs,
    /// The state's pid, which may be the VMM's.
    pub(super) hint: Option<i32>,
}

/// Finds the VM; `None`, with the reason in the report, if there is none that proves itself. With `patience`, a time since when
/// it is waited, vCPU threads that cannot be told yet are waited for.
pub(super) fn find(run: &mut Run, clues: Clues, record: &Record, mounts: &Mounts, patience: Option<Instant>) -> Option<Vm> {
    let (owner, recorded) = (run.host.owner, record.identities());
    let said = clues.dirs.read(owner);
    let search = Search {
        proc: &run.host.proc,
        kinds: &run.config.kinds,
        dirs: clues.dirs,
        claims: &said.claims,
        hint: clues.hint,
        parent: run.host.parent,
        recorded: &recorded,
        owner,
    };
    let found = search.find();
    // It may name more of the VM's processes.
    let unread: Vec<&String> = clues.dirs.refused.iter().chain(&said.refused).collect();
    let is_told = found.vmm.is_none() || run.config.log_level == LogLevel::Debug;
    let hinted = found.refused.hinted.iter().filter(|_| is_told);
    let refused: Vec<&String> = unread.iter().copied().chain(&found.refused.named).chain(hinted).collect();
    for why in &refused {
        run.report.note(*why);
    }
    run.report.is_unread = !unread.is_empty();
    let Some(vmm) = found.vmm else {
        run.report.outcome = if refused.is_empty() { Outcome::NotYet } else { Outcome::Refused };
        return None;
    };
    let kind = vmm.kind;
    let helpers = found.helpers.into_iter();
    let mut vm = Vm {
        kind: kind.name.clone(),
        is_shim: run.config.kinds.is_shim_too(kind),
        processes: vec![Member::read(vmm.process, vmm.start, Role::Vmm)],
        vcpus: vcpu::Vcpus::default(),
        containers: said.containers,
        brought_in: None,
    };
    vm.processes.extend(helpers.map(|helper| Member::read(helper.process, helper.start, Role::Helper)));
    tell_vcpus(run, &mut vm, kind, mounts, patience);
    // It may have ended while it was read: then there is none.
    if vm.vmm().is_none_or(|vmm| vmm.threads.is_empty()) {
        run.report.outcome = Outcome::NotYet;
        run.report.note("the VMM ended meanwhile");
        return None;
    }
    Some(vm)
}

/// Says that there is no VMM to do anything for; of those that were refused it has been said.
pub(super) fn tell_absence(run: &mut Run, dirs: &RuntimeDirs) {
    if run.report.outcome == Outcome::NotYet {
        run.report.note(absence(dirs));
    }
    run.summary = "0 steps: no VMM yet".into();
}

/// Why there is no VMM where nobody was refused, and what comes next.
pub(super) fn absence(dirs: &RuntimeDirs) -> String {
    let dirs: Vec<String> = dirs.paths().iter().map(|path| path.display().to_string()).collect();
    let dirs = if dirs.is_empty() { "its runtime directory".to_owned() } else { dirs.join(", ") };
    format!("no VMM yet, or none any more: {dirs} leads to none that runs; the next run looks again")
}

/// Tells the vCPU threads; with `patience`, waits a little for those that cannot be told yet.
fn tell_vcpus(run: &Run, vm: &mut Vm, kind: &Kind, mounts: &Mounts, patience: Option<Instant>) {
    let debugfs = Debugfs::open(mounts.debugfs.as_deref()).ok();
    let mut backoff = Backoff::default();
    while let Some(vmm) = vm.processes.first_mut() {
        let told = vcpu::of(&vmm.process, &vmm.threads, &kind.vcpu_threads, debugfs.as_ref());
        vm.vcpus = told.unwrap_or_default();
        let is_worth_waiting = patience.is_some_and(|since| since.elapsed() < PATIENCE);
        if !vm.vcpus.is_partial() || !is_worth_waiting || run.deadline.left().is_zero() {
            return;
        }
        backoff.pause(run.deadline);
        vmm.read_threads();
    }
}
