//! Whom a run is for: is this a VM sandbox's container, and what is known of it.
//!
//! Asked for every container of the host, so it goes from cheap to dear and ends at the first no: the state's annotations and
//! the runtime directories, then config.json. A container that is no VM sandbox's is never failed for its own files.

use crate::cli::Stage;
use crate::commands::Run;
use crate::error::Error;
use crate::log::Outcome;
use crate::oci::bundle::{self, Bundle};
use crate::oci::sandbox::{Role, Sandbox};
use crate::oci::state::State;
use crate::record::Store;
use crate::vmm::runtime::RuntimeDirs;

/// A VM sandbox's container.
pub(super) struct Subject {
    pub(super) sandbox: Sandbox,
    /// The container's own id, for the log.
    pub(super) container: String,
    pub(super) state: State,
    /// Its config.json, or why there is none: only a run that needs it fails for it.
    pub(super) bundle: Result<Bundle, Error>,
    pub(super) dirs: RuntimeDirs,
}

impl Subject {
    /// The subject of `state`; `None` if it is no VM sandbox's.
    pub(super) fn of(state: &State, run: &mut Run) -> Result<Option<Self>, Error> {
        let by_state = Sandbox::named_by(&state.annotations);
        if let Some(sandbox) = &by_state {
            if !is_known(sandbox, &dirs_of(sandbox, run), run)? {
                return Ok(None);
            }
        }
        let bundle = Bundle::read(&state.bundle);
        let by_bundle = bundle.as_ref().ok().and_then(|bundle| Sandbox::named_by(&bundle.annotations));
        let sandbox = match by_bundle.or(by_state) {
            Some(sandbox) => sandbox,
            None if bundle.is_err() && run.stage == Stage::Poststop => by_record(state, run)?,
            None => Sandbox::single(&state.id),
        };
        let dirs = dirs_of(&sandbox, run);
        if !is_known(&sandbox, &dirs, run)? {
            return Ok(None);
        }
        let container = match sandbox.role {
            // Go Kata's poststart and poststop give the sandbox's id for every container.
            Role::Workload if state.id == sandbox.id => bundle::name_of(&state.bundle),
            _ => state.id.clone(),
        };
        Ok(Some(Self { sandbox, container, state: state.clone(), bundle, dirs }))
    }
}

fn dirs_of(sandbox: &Sandbox, run: &Run) -> RuntimeDirs {
    RuntimeDirs::of(&sandbox.id, &run.config.runtime_dirs, run.host.owner)
}

/// Whether this is a VM sandbox: it has a runtime directory, or, once that is gone, a record of ours.
fn is_known(sandbox: &Sandbox, dirs: &RuntimeDirs, run: &mut Run) -> Result<bool, Error> {
    if !dirs.is_empty() {
        return Ok(true);
    }
    if run.stage == Stage::Poststop && has_record(sandbox, run)? {
        return Ok(true);
    }
    if let Some(why) = dirs.refused.first() {
        run.report.outcome = Outcome::Refused;
        run.report.sandbox = Some(sandbox.id.clone());
        run.report.note(format!("no runtime directory that can be trusted: {why}"));
    }
    Ok(false)
}

fn has_record(sandbox: &Sandbox, run: &Run) -> Result<bool, Error> {
    match Store::open_existing(&run.config.state_dir, run.host.owner)? {
        Some(store) => Ok(store.has(&sandbox.id)),
        None => Ok(false),
    }
}

/// Without annotations or config.json a poststop finds its container by bundle in the records; else `id` is the sandbox's.
fn by_record(state: &State, run: &Run) -> Result<Sandbox, Error> {
    let single = Sandbox::single(&state.id);
    let Some(store) = Store::open_existing(&run.config.state_dir, run.host.owner)? else {
        return Ok(single);
    };
    for id in store.sandboxes() {
        let container = store.load(&id)?.and_then(|mut record| record.containers.remove(&state.bundle));
        if let Some(container) = container {
            let role = if container.id == id { Role::Single } else { Role::Workload };
            return Ok(Sandbox { id, role });
        }
    }
    Ok(single)
}
