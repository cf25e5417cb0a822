//! The OCI state on stdin: what is taken of it is an id that is a file name, an absolute bundle, a pid that can be one; written
//! again, it is read the same.
#![no_main]

use kata_cgroup_hook::oci::bundle::id_of;
use kata_cgroup_hook::oci::sandbox::Sandbox;
use kata_cgroup_hook::oci::state::{State, is_id};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(state) = State::parse(data) else { return };
    assert!(is_id(&state.id) && !state.id.contains('/') && !state.id.starts_with('.'));
    assert!(state.bundle.is_absolute());
    assert!(state.pid.is_none_or(|pid| pid > 0));
    assert!(!id_of(&state.bundle).contains('/'));
    if let Some(sandbox) = Sandbox::named_by(&state.annotations, &state.id, &state.bundle) {
        assert!(is_id(&sandbox.id));
    }
    let _ = state.annotations.container_name();

    let written = serde_json::json!({ "id": state.id, "bundle": state.bundle, "pid": state.pid });
    let again = State::parse(written.to_string().as_bytes()).expect("what was read once can be read again");
    assert_eq!((again.id, again.bundle, again.pid), (state.id, state.bundle, state.pid));
});
