//! Whom a run is for: is this a VM sandbox's container, and what is known of it.
//!
//! Asked for every container of the host, so it goes from cheap to dear and ends at the first no: the state's annotations and
//! the runtime directories, then config.json. A container that is no VM sandbox's is never failed for its own files.

use crate::cli::Stage;
use crate::commands::Run;
use crate::commands::vm::Clues;
use crate::error::Error;
use crate::log::Outcome;
use crate::oci::bundle::{self, Bundle};
use crate::oci::sandbox::{Role, Sandbox};
use crate::oci::state::State;
use crate::store::Store;
use crate::vmm::runtime::RuntimeDirs;

/// A VM sandbox's container.
pub(super) struct Subject {
    pub(super) sandbox: Sandbox,
    /// The container's own id, for the log.
    pub(super) container: String,
    pub(super) state: State,
    pub(super) dirs: RuntimeDirs,
}

impl Subject {
    /// What leads to its VM.
    pub(super) fn clues(&self) -> Clues<'_> {
        Clues { dirs: &self.dirs, hint: self.state.pid }
    }

    /// The subject of `state`, with its config.json or why there is none, which only a run that needs it fails for; `None` if it
    /// is no VM sandbox's.
    pub(super) fn of(state: &State, at: Stage, run: &mut Run) -> Option<(Self, Result<Bundle, Error>)> {
        let named_by = |annotations| Sandbox::named_by(annotations, &state.id, &state.bundle);
        let by_state = named_by(&state.annotations);
        if let Some(sandbox) = &by_state {
            if !is_known(sandbox, &dirs_of(sandbox, run), at, run) {
                return None;
            }
        }
        let bundle = Bundle::read(&state.bundle);
        let by_bundle = bundle.as_ref().ok().and_then(|bundle| named_by(&bundle.annotations));
        let sandbox = match by_bundle.or(by_state) {
            Some(sandbox) => sandbox,
            None if bundle.is_err() && at == Stage::Poststop => by_record(state, run),
            None => Sandbox::single(&state.id),
        };
        let dirs = dirs_of(&sandbox, run);
        if !is_known(&sandbox, &dirs, at, run) {
            return None;
        }
        let container = match sandbox.role {
            // Go Kata's poststart and poststop give the sandbox's id for every container.
            Role::Workload if state.id == sandbox.id => bundle::id_of(&state.bundle),
            _ => state.id.clone(),
        };
        Some((Self { sandbox, container, state: state.clone(), dirs }, bundle))
    }
}

fn dirs_of(sandbox: &Sandbox, run: &Run) -> RuntimeDirs {
    RuntimeDirs::of(&sandbox.id, &run.config.runtime_dirs, run.host.owner)
}

/// Whether this is a VM sandbox: it has a runtime directory, or, once that is gone, a record of ours.
fn is_known(sandbox: &Sandbox, dirs: &RuntimeDirs, stage: Stage, run: &mut Run) -> bool {
    if !dirs.is_empty() {
        return true;
    }
    if stage == Stage::Poststop && has_record(sandbox, run) {
        return true;
    }
    if let Some(why) = dirs.refused.first() {
        run.report.outcome = Outcome::Refused;
        run.report.sandbox = Some(sandbox.id.clone());
        run.report.note(format!("no runtime directory that can be trusted: {why}"));
    }
    false
}

/// Whether there is a record of it. What cannot be read is none: it must not fail a container that is not ours.
fn has_record(sandbox: &Sandbox, run: &Run) -> bool {
    let store = Store::open_existing(&run.config.state_dir, run.host.owner);
    store.ok().flatten().is_some_and(|store| store.has(&sandbox.id))
}

/// Without annotations or config.json a poststop finds its container by bundle in the records; else `id` is the sandbox's.
fn by_record(state: &State, run: &Run) -> Sandbox {
    let store = Store::open_existing(&run.config.state_dir, run.host.owner).ok().flatten();
    let records = store.iter().flat_map(|store| store.sandboxes().into_iter().filter_map(|id| store.load(&id).ok().flatten()));
    let found = records.into_iter().find_map(|mut record| {
        let container = record.containers.remove(&state.bundle)?;
        let role = if container.id == record.sandbox { Role::Single } else { Role::Workload };
        Some(Sandbox { id: record.sandbox, role })
    });
    found.unwrap_or_else(|| Sandbox::single(&state.id))
}
