//! The VM of the sandbox that a run is for, and what the report says of it.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::cgroup::mounts::Mounts;
use crate::commands::Run;
use crate::config::LogLevel;
use crate::deadline::Backoff;
use crate::error::Error;
use crate::log::Outcome;
use crate::record::Record;
use crate::vmm::debugfs::Debugfs;
use crate::vmm::find::{Child, Refused, Search};
use crate::vmm::kinds::Role;
use crate::vmm::runtime::{Claim, RuntimeDirs};
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

/// Finds the VM, of which [`look`] reads the rest; `None`, with the reason in the report, if there is no VMM that proves itself.
pub(super) fn find(run: &mut Run, clues: Clues, record: &Record) -> Option<Vm> {
    let (owner, recorded) = (run.host.owner, record.identities());
    let said = clues.dirs.read(owner);
    let parent = nix::unistd::getppid().as_raw();
    let found = Search { parent: Some(parent), ..search(run, clues, &said.claims, &recorded) }.find();
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
    let (kind, pid) = (vmm.kind, vmm.process.pid);
    let shims = found.shims.into_iter().map(|shim| shim.process).filter(|shim| shim.pid != pid);
    Some(Vm {
        kind: kind.name.clone(),
        is_shim: run.config.kinds.is_shim_too(kind),
        shims: shims.collect(),
        processes: vec![Member::new(vmm.process, vmm.start, Role::Vmm)],
        vcpus: vcpu::Vcpus::default(),
        claims: said.claims,
        containers: said.containers,
        brought_in: None,
    })
}

fn search<'a>(run: &Run<'a>, clues: Clues<'a>, claims: &'a [Claim], recorded: &'a [(i32, u64)]) -> Search<'a> {
    Search {
        proc: &run.host.proc,
        kinds: &run.config.kinds,
        dirs: clues.dirs,
        claims,
        hint: clues.hint,
        parent: None,
        recorded,
        owner: run.host.owner,
        deadline: run.deadline,
    }
}

/// Looks at the VM's threads, and for helpers that were started since; false, with the reason in the report, if it has ended. With
/// `patience`, a time since when it is waited, vCPU threads that cannot be told yet are waited for.
///
/// Who has proved himself is held open and is the same as long as he can be read. Where all vCPU threads are known, they are asked
/// for again only if there are other threads than before: whoever is a vCPU's stays that.
pub(super) fn look(
    run: &mut Run,
    clues: Clues,
    record: &Record,
    mounts: &Mounts,
    vm: &mut Vm,
    patience: Option<Instant>,
) -> Result<bool, Error> {
    let are_known = vm.vcpus.are_all_known();
    let mut is_news = !are_known;
    for member in &mut vm.processes {
        if member.role == Role::Vmm && !are_known {
            member.read_threads(run.deadline)?;
        } else {
            let has_changed = member.look(run.deadline)?;
            is_news |= has_changed && member.role == Role::Vmm;
        }
    }
    if is_news {
        tell_vcpus(run, vm, mounts, patience)?;
    }
    add_helpers(run, clues, record, vm)?;
    let lives = vm.vmm().is_some_and(|vmm| !vmm.threads.is_empty());
    if !lives {
        run.report.outcome = Outcome::NotYet;
        run.report.note("the VMM ended meanwhile");
    }
    Ok(lives)
}

/// Adds the helpers that are named, and those that the shims, the VMM and its helpers have started, if they are not known yet. A vCPU
/// thread runs its guest and starts nobody.
fn add_helpers(run: &mut Run, clues: Clues, record: &Record, vm: &mut Vm) -> Result<(), Error> {
    let mut children: Vec<Child> = vm.shims.iter().flat_map(Child::all_of).collect();
    for member in &vm.processes {
        let others = member.threads.iter().filter(|thread| !vm.is_vcpu(thread.tid) && !run.deadline.has_passed());
        children.extend(Child::of_threads(&member.process, others.map(|thread| thread.tid)));
    }
    let known: Vec<i32> = vm.processes.iter().map(|member| member.process.pid).collect();
    let (recorded, mut refused) = (record.identities(), Refused::default());
    for helper in search(run, clues, &vm.claims, &recorded).helpers(children, &known, &mut refused) {
        let mut member = Member::new(helper.process, helper.start, Role::Helper);
        member.look(run.deadline)?;
        vm.processes.push(member);
    }
    let hinted = refused.hinted.iter().filter(|_| run.config.log_level == LogLevel::Debug);
    for why in refused.named.iter().chain(hinted) {
        run.report.note(why);
    }
    Ok(())
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
fn tell_vcpus(run: &Run, vm: &mut Vm, mounts: &Mounts, patience: Option<Instant>) -> Result<(), Error> {
    let debugfs = Debugfs::open(mounts.debugfs.as_deref()).ok();
    let patterns = run.config.kinds.of_name(&vm.kind).map_or(&[][..], |kind| kind.vcpu_threads.as_slice());
    let mut backoff = Backoff::default();
    while let Some(vmm) = vm.processes.first_mut() {
        let told = vcpu::of(&run.host.proc, &vmm.process, &vmm.threads, patterns, debugfs.as_ref(), run.deadline);
        vm.vcpus = match told {
            // It has ended, or the right to look at its descriptors is missing: then no thread can be told.
            Err(Errno::ENOENT | Errno::ESRCH | Errno::EACCES | Errno::EPERM) => vcpu::Vcpus::default(),
            Err(Errno::ETIMEDOUT) => return Err(run.deadline.passed("look at the VMM's descriptors")),
            told => told.map_err(|errno| vmm.unread("fd", errno))?,
        };
        let is_worth_waiting = patience.is_some_and(|since| since.elapsed() < PATIENCE);
        if !vm.vcpus.is_partial() || !is_worth_waiting || run.deadline.left().is_zero() {
            return Ok(());
        }
        backoff.pause(run.deadline);
        vmm.read_threads(run.deadline)?;
    }
    Ok(())
}
