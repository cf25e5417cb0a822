//! `reconcile`: every sandbox as it should be, and nothing of those that are gone.
//!
//! Run by a timer, it catches what no hook announces: a vCPU that is plugged in, a pod that is resized, Kata moving threads back, a
//! VM that dies. What it does for a sandbox is what that sandbox's next hook would do; a sandbox that a hook is just working
//! on is left to it. At the end it looks for groups with our mark that no record knows.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;

use crate::cgroup::group::GroupPath;
use crate::cgroup::mounts::Mounts;
use crate::cgroup::orphan;
use crate::cgroup::path::{SandboxPath, VCPUS};
use crate::cli::Reconcile;
use crate::commands::settle::{Change, settle};
use crate::commands::vm::{self, Clues};
use crate::commands::{Exit, Host, Run, as_lines, printable, release};
use crate::config::{Config, Mode};
use crate::deadline::Deadline;
use crate::error::Error;
use crate::log::{Outcome, Report};
use crate::order;
use crate::plan::Step;
use crate::record::{Progress, Record, RecordedGroup};
use crate::store::Store;
use crate::vmm::runtime::RuntimeDirs;

/// The word for a run in the log.
const STAGE: &str = "reconcile";

/// Reconciles every sandbox of this host.
pub fn run(options: &Reconcile, host: &Host) -> Exit {
    let mut tour = match Tour::begin(options, host) {
        Ok(Some(tour)) => tour,
        Ok(None) => return Exit::default(),
        Err(why) => return Exit::failed(STAGE, &[why]),
    };
    tour.sandboxes();
    tour.orphans();
    tour.finish()
}

/// A run over all sandboxes: what was done, and what failed.
struct Tour<'a> {
    host: &'a Host,
    config: Config,
    options: &'a Reconcile,
    store: Option<Store>,
    lines: Vec<String>,
    errors: Vec<String>,
}

impl<'a> Tour<'a> {
    /// Nothing where the configuration says that nothing is to be done.
    fn begin(options: &'a Reconcile, host: &'a Host) -> Result<Option<Self>, String> {
        if !host.is_root() {
            return Err("run it as root of the host: the records and groups of all sandboxes are root's".to_owned());
        }
        let config = Config::load(options.config.as_deref(), host.owner, || true).map_err(|error| error.to_string())?;
        // Who takes the hook away has mostly switched it off before.
        if config.mode == Mode::Off && !options.release_all {
            return Ok(None);
        }
        let store = Store::open_existing(&config.state_dir, host.owner).map_err(|error| error.to_string())?;
        Ok(Some(Self { host, config, options, store, lines: Vec::new(), errors: Vec::new() }))
    }

    fn may_change(&self) -> bool {
        !self.options.dry_run && self.config.mode != Mode::Observe
    }

    fn sandboxes(&mut self) {
        let mut ids = self.store.as_ref().map_or(Vec::new(), Store::sandboxes);
        order::sort(&mut ids);
        let is_last = self.options.release_all;
        for id in ids {
            self.each(&id, |run, store| sandbox(run, store, &id, is_last));
        }
    }

    /// Does `work` for the sandbox `id` with its own deadline, and tells what came of it.
    fn each(&mut self, id: &str, work: impl FnOnce(&mut Run, Option<&Store>) -> Result<(), Error>) {
        let deadline = Deadline::after(Instant::now(), self.config.deadline).minding_signals();
        let mut run = Run {
            host: self.host,
            config: &self.config,
            deadline: &deadline,
            may_change: self.may_change(),
            tells: true,
            report: Report { sandbox: Some(id.to_owned()), ..Report::default() },
            steps: Vec::new(),
            summary: String::new(),
        };
        let result = work(&mut run, self.store.as_ref());
        self.lines.extend(run.steps.iter().map(|step| format!("{id} {step}")));
        if let Err(error) = result {
            let error = printable(&error.to_string());
            self.errors.push(format!("{id}: {error}"));
            run.report.outcome = Outcome::Failed;
            run.report.notes.insert(0, error);
        }
        let is_left = matches!(run.report.outcome, Outcome::Refused | Outcome::NotYet);
        if is_left {
            self.lines.push(format!("{id} left: {}", printable(&run.report.notes.join("; "))));
        }
        if self.may_change() && !matches!(run.report.outcome, Outcome::Unchanged | Outcome::NotOurs) {
            run.report.took_ms = deadline.elapsed_ms();
            run.report.send(STAGE, &self.config);
        }
    }

    /// Looks for what no record knows, sandbox by sandbox.
    fn orphans(&mut self) {
        let mut unseen = Vec::new();
        let mounts = Mounts::read(&self.host.proc).inspect_err(|error| self.errors.push(printable(&error.to_string())));
        let Ok(mounts) = mounts else { return };
        let found = orphan::all(&mounts, self.host.owner, &mut unseen);
        self.errors.extend(unseen.iter().map(|error| printable(&error.to_string())));
        // The first hook of this host may have made it, and be about to fill groups.
        if self.store.is_none() {
            self.store = Store::open_existing(&self.config.state_dir, self.host.owner).ok().flatten();
        }
        let records = self.records();
        let mut by_sandbox: BTreeMap<String, Vec<orphan::Found>> = BTreeMap::new();
        for found in orphan::unknown_to(&records, found) {
            match &found.mark {
                Some(mark) if mark.state_dir == self.config.state_dir => {
                    by_sandbox.entry(mark.sandbox.clone()).or_default().push(found);
                }
                Some(_) => {}
                None => self.tell_unproven(&found.path),
            }
        }
        let is_last = self.options.release_all;
        for (id, groups) in by_sandbox {
            self.each(&id, |run, store| orphans(run, store, &id, groups, is_last));
        }
    }

    fn records(&self) -> Vec<Record> {
        let store = self.store.as_ref();
        store.map_or(Vec::new(), |store| store.sandboxes().iter().filter_map(|id| store.load(id).ok().flatten()).collect())
    }

    /// A group with a name of ours that nothing proves to be ours; of Kata's own, only those that are left over.
    fn tell_unproven(&mut self, path: &GroupPath) {
        let is_empty = orphan::members(path).is_ok_and(|members| members.is_empty());
        let has_groups = path.open().ok().flatten().is_none_or(|group| group.children().map_or(true, |list| !list.is_empty()));
        if is_empty && !has_groups {
            let path = printable(&path.absolute().to_string_lossy());
            self.lines.push(format!(
                "- left: {path} is empty, and nothing proves that it is ours: remove it (rmdir) if nobody uses it"
            ));
        }
    }

    fn finish(self) -> Exit {
        if let Some(store) = self.store.as_ref().filter(|_| self.options.release_all && self.may_change()) {
            store.clear_out();
        }
        let exit = if self.errors.is_empty() { Exit::default() } else { Exit::failed(STAGE, &self.errors) };
        Exit { stdout: as_lines(&self.lines), ..exit }
    }
}

/// Brings one recorded sandbox to where it should be, or releases it.
fn sandbox(run: &mut Run, store: Option<&Store>, id: &str, is_last: bool) -> Result<(), Error> {
    let Some(store) = store else { return Ok(()) };
    let lock = if run.may_change { Some(store.try_lock(id)?) } else { None };
    if lock.as_ref().is_some_and(Option::is_none) {
        run.steps.push("skipped: another run is working on it".into());
        return Ok(());
    }
    let dirs = RuntimeDirs::of(id, &run.config.runtime_dirs, run.host.owner);
    let Some(known) = store.load(id)? else {
        return if store.has(id) { not_understood(run, store, &dirs, id, is_last) } else { Ok(()) };
    };
    let writable = Some(store).filter(|_| run.may_change);
    let never_had_a_vm = known.vmm().is_none() && dirs.is_empty();
    // A release that was killed, or left something behind, goes on, though the VM may live.
    let is_ending = known.state == Progress::Releasing;
    if is_last || is_ending || never_had_a_vm || release::is_over(run, &known) {
        let path = SandboxPath::recorded(&known.path);
        return release::end(run, &mut known.clone(), path.as_ref(), writable);
    }
    let mounts = Mounts::read(&run.host.proc)?;
    if known.state == Progress::Idle {
        // Left to Kata until a container comes; a run that was killed meanwhile is completed.
        if let Some(domain) = release::katas_own_domain(&known, &mounts) {
            return release::leave(run, known, &domain, &mounts, writable);
        }
    }
    let mut record = known.clone();
    record.keep_containers(Path::is_dir);
    settle(run, Clues { dirs: &dirs, hint: None }, &mounts, Change { known: &known, record, pod: None, store: writable }, None)
}

/// A record that says nothing. As long as there is a VM its next hook makes a new one; then none will, and it goes out of the way of
/// its groups, which are found by their marks.
fn not_understood(run: &mut Run, store: &Store, dirs: &RuntimeDirs, id: &str, is_last: bool) -> Result<(), Error> {
    let vm = vm::find(run, Clues { dirs, hint: None }, &Record::new(id));
    if vm.is_some() && !is_last {
        run.report.outcome = Outcome::Refused;
        run.report.note("its record is not understood: its next hook makes a new one");
        return Ok(());
    }
    run.report.outcome = Outcome::Unchanged;
    match run.may_change {
        true if is_last => store.forget(id)?,
        true => store.set_aside(id),
        false => {}
    }
    Ok(())
}

/// Groups of a sandbox that no record knows: those that nobody is in go, as the last word all.
fn orphans(run: &mut Run, store: Option<&Store>, id: &str, groups: Vec<orphan::Found>, is_last: bool) -> Result<(), Error> {
    let mut lock = None;
    if let Some(store) = store.filter(|_| run.may_change) {
        lock = store.try_lock(id)?;
        // A hook is at it, or has made a record since: then they are its.
        if lock.is_none() || store.has(id) {
            return Ok(());
        }
    }
    let released = if is_last { release::end(run, &mut record_of(id, &groups), None, None) } else { Ok(()) };
    let removed = remove_empty(run, groups);
    drop(lock);
    Error::all(released.err().into_iter().chain(removed.err()).collect())
}

/// Removes what nobody is in, deepest first, and tells who is in the rest.
fn remove_empty(run: &mut Run, groups: Vec<orphan::Found>) -> Result<(), Error> {
    if run.report.outcome == Outcome::NotOurs {
        run.report.outcome = Outcome::Unchanged;
    }
    let mut errors = Vec::new();
    let mut going: Vec<GroupPath> = Vec::new();
    for group in groups {
        let path = group.path;
        let mut members = orphan::members(&path)?;
        // A process's first thread, whose number is the process's, is mostly the first.
        members.sort_unstable();
        if !members.is_empty() {
            let who: Vec<String> = members.iter().take(8).map(|id| named(run, *id)).collect();
            run.steps.push(format!("left: {} holds {}", printable(&path.absolute().to_string_lossy()), who.join(", ")));
            continue;
        }
        // What leads to groups of others stays with them.
        let children = path.open()?.map_or(Ok(Vec::new()), |open| open.children())?;
        if children.iter().any(|name| !going.contains(&path.child(name))) {
            continue;
        }
        let removed = if run.may_change { path.remove() } else { Ok(()) };
        match removed {
            Ok(()) => {
                run.steps.push(Step::Remove { group: path.clone(), drain: None }.to_string());
                run.report.outcome = Outcome::Released;
                run.report.removed += usize::from(run.may_change);
                // What has gone is in no list any more.
                going.extend(Some(path).filter(|_| !run.may_change));
            }
            Err(Errno::ENOENT) => {}
            Err(errno) => errors.push(Error::path("remove", path.absolute(), errno)),
        }
    }
    Error::all(errors)
}

/// A process or thread with its name.
fn named(run: &Run, id: i32) -> String {
    let stat = run.host.proc.process(id).ok().flatten().and_then(|process| process.stat().ok());
    let name = stat.map_or("?".to_owned(), |stat| printable(&String::from_utf8_lossy(&stat.name)));
    format!("{id} ({name})")
}

/// A record of what was found of the sandbox's own groups, so that they are released like any other's. What leads there may lead to
/// others as well.
pub(super) fn record_of(id: &str, groups: &[orphan::Found]) -> Record {
    let recorded = |group: &orphan::Found| RecordedGroup {
        path: group.path.absolute(),
        controllers: group.path.hierarchy.controllers.iter().map(|one| one.name().to_owned()).collect(),
        inode: group.inode,
    };
    let is_own = |group: &&orphan::Found| {
        let name = group.path.rel.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.starts_with("kata_") || name == VCPUS
    };
    Record { groups: groups.iter().filter(is_own).map(recorded).collect(), ..Record::new(id) }
}
