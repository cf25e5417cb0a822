//! `status`: every VM sandbox of this host, and whether it is as a hook would have it.
//!
//! It reads what hooks and `reconcile` read and asks the same planner; nothing is locked, written or changed. A sandbox is one
//! because it has a record, a directory of the runtime's, or groups with our mark.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::cgroup::mounts::Mounts;
use crate::cgroup::orphan::{self, Found};
use crate::cli;
use crate::commands::{Exit, Host, Run, bookkeeping, printable, seen};
use crate::config::Config;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::log;
use crate::record::Record;
use crate::status::words::Look;
use crate::status::{Report, Sandbox, table, tree};
use crate::store::Store;
use crate::vmm::runtime;

/// Shows the sandboxes.
pub fn run(options: &cli::Status, host: &Host) -> Exit {
    let failed = |error: &Error| Exit::failed("status", &[printable(&error.to_string())]);
    let config = match Config::load(options.config.as_deref(), host.owner, || host.is_root()) {
        Ok(config) => config,
        Err(error) => return failed(&error),
    };
    let mounts = match Mounts::read(&host.proc) {
        Ok(mounts) => mounts,
        Err(error) => return failed(&error),
    };
    let mut view = View::of(host, &config, &mounts);
    if let Some(id) = options.sandbox.as_ref().filter(|id| !view.ids.contains(*id)) {
        view.unseen.insert(0, unknown(id, &view.ids));
    }
    view.ids.retain(|id| options.sandbox.as_ref().is_none_or(|only| only == id));
    let ids = std::mem::take(&mut view.ids);
    let sandboxes: Vec<Sandbox> = ids.iter().filter_map(|id| view.sandbox(id)).collect();
    view.finish(options, sandboxes)
}

/// There is no such sandbox; an id that was shortened is helped out.
fn unknown(id: &str, ids: &BTreeSet<String>) -> String {
    let longer: Vec<&str> = ids.iter().filter(|known| known.starts_with(id)).map(String::as_str).take(3).collect();
    if longer.is_empty() {
        format!("no sandbox {id} on this host: kata-cgroup-hook status lists them")
    } else {
        format!("no sandbox {id} on this host, but {}", longer.join(", "))
    }
}

/// What the host shows before any sandbox is looked at.
struct View<'a> {
    host: &'a Host,
    config: &'a Config,
    mounts: &'a Mounts,
    ids: BTreeSet<String>,
    /// What is understood of the records; without one where it is not.
    records: BTreeMap<String, Option<Record>>,
    /// Groups with our mark that no record knows, by the sandbox they were made for.
    marked: BTreeMap<String, Vec<Found>>,
    /// What could not be read.
    unseen: Vec<String>,
}

impl<'a> View<'a> {
    fn of(host: &'a Host, config: &'a Config, mounts: &'a Mounts) -> Self {
        let mut unseen = Vec::new();
        if !host.is_root() {
            unseen.push(
                "not root of the host: its records, its VMs and which groups are ours cannot be seen; run it as root"
                    .to_owned(),
            );
        }
        // The groups first: a hook that makes some now has written its record before.
        let mut unread = Vec::new();
        let found = orphan::all(mounts, host.owner, &mut unread);
        unseen.extend(unread.iter().map(ToString::to_string));
        let records = records(config, host.owner, &mut unseen);
        let known: Vec<Record> = records.values().flatten().cloned().collect();
        let mut marked: BTreeMap<String, Vec<Found>> = BTreeMap::new();
        for found in orphan::unknown_to(&known, found) {
            let mark = found.mark.as_ref().filter(|mark| mark.state_dir == config.state_dir);
            if let Some(sandbox) = mark.map(|mark| mark.sandbox.clone()) {
                marked.entry(sandbox).or_default().push(found);
            }
        }
        let mut ids = runtime::sandboxes(&config.runtime_dirs, &mut unseen);
        ids.extend(records.keys().chain(marked.keys()).cloned());
        Self { host, config, mounts, ids, records, marked, unseen }
    }

    /// Looks at one sandbox; `None` where it was only a name, or has ended meanwhile.
    fn sandbox(&mut self, id: &str) -> Option<Sandbox> {
        let deadline = Deadline::after(Instant::now(), self.config.deadline);
        let mut run = Run {
            host: self.host,
            config: self.config,
            deadline: &deadline,
            may_change: false,
            tells: false,
            report: log::Report::default(),
            steps: Vec::new(),
            summary: String::new(),
        };
        let marked = self.marked.remove(id).unwrap_or_default();
        let recorded = self.records.remove(id);
        match seen::sandbox(&mut run, self.mounts, id, recorded.as_ref(), &marked) {
            Ok(sandbox) => sandbox,
            Err(error) => {
                self.unseen.push(format!("{id}: {error}"));
                None
            }
        }
    }

    fn finish(self, options: &cli::Status, sandboxes: Vec<Sandbox>) -> Exit {
        let look = Look::of(&std::io::stdout(), std::env::var("NO_COLOR").ok().as_deref());
        let stdout = if options.json {
            let mode = bookkeeping::mode_of(self.mounts);
            let report = Report { schema: 1, version: env!("CARGO_PKG_VERSION"), mode, sandboxes };
            serde_json::to_string(&report).map_or(String::new(), |json| json + "\n")
        } else if options.sandbox.is_some() || options.tree {
            sandboxes.iter().map(|sandbox| tree::draw(sandbox, look)).collect::<Vec<_>>().join("\n")
        } else if sandboxes.is_empty() && !self.unseen.is_empty() {
            // There may be some, for all that was seen.
            String::new()
        } else {
            table::draw(&sandboxes, look)
        };
        if self.unseen.is_empty() {
            return Exit { stdout, ..Exit::default() };
        }
        Exit { stdout, ..Exit::failed("status", &[printable(&self.unseen.join("; "))]) }
    }
}

/// The records, each as far as it is understood.
fn records(config: &Config, owner: u32, unseen: &mut Vec<String>) -> BTreeMap<String, Option<Record>> {
    let store = Store::open_existing(&config.state_dir, owner).unwrap_or_else(|error| {
        unseen.push(error.to_string());
        None
    });
    let mut records = BTreeMap::new();
    for (id, store) in store.iter().flat_map(|store| store.sandboxes().into_iter().map(move |id| (id, store))) {
        match store.load(&id) {
            // It has been released meanwhile.
            Ok(None) if !store.has(&id) => {}
            Ok(record) => drop(records.insert(id, record)),
            Err(error) => unseen.push(error.to_string()),
        }
    }
    records
}
