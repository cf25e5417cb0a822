//! The files of a sandbox's runtime directory: what they claim is what they say, and the VMM comes first. The first line names the
//! file, the rest is in it.
#![no_main]

use std::os::unix::fs::DirBuilderExt;

use kata_cgroup_hook::oci::state::is_id;
use kata_cgroup_hook::vmm::kinds::Role;
use kata_cgroup_hook::vmm::runtime::RuntimeDirs;
use kata_cgroup_hook_fuzz::{first_line, owner};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((name, content)) = first_line(data).filter(|(name, _)| ["pid", "persist.json", "state.json"].contains(name))
    else {
        return;
    };
    let root = tempfile::tempdir().expect("a temporary directory");
    let dir = root.path().join("sb");
    std::fs::DirBuilder::new().mode(0o700).create(&dir).expect("a directory in it");
    std::fs::write(dir.join(name), content).expect("a file in that");

    let dirs = RuntimeDirs::of("sb", &[root.path().to_path_buf()], owner());
    assert_eq!(dirs.paths(), [dir.as_path()]);
    let said = dirs.read(owner());
    assert!(said.refused.is_empty(), "{:?}", said.refused);
    assert!(said.claims.iter().all(|claim| claim.pid > 0 && claim.file == dir.join(name)));
    assert!(said.claims.is_sorted_by_key(|claim| claim.role != Role::Vmm));
    assert!(said.containers.iter().all(|container| is_id(&container.id)));
    assert!(name == "persist.json" || said.containers.is_empty());
    if name == "pid" {
        assert!(said.claims.iter().all(|claim| claim.role == Role::Vmm));
        return;
    }
    // Where a claim comes from by another parser's word: a key that is there twice is read by none of ours.
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(content) else {
        return;
    };
    for claim in &said.claims {
        let keys: &[&str] = match (name, claim.role) {
            ("persist.json", Role::Vmm) => &["/HypervisorState/Pid"],
            ("persist.json", _) => &["/HypervisorState/VirtiofsDaemonPid", "/HypervisorState/VirtiofsdPid"],
            (_, Role::Vmm) => &["/hypervisor/pid"],
            _ => &["/hypervisor/virtiofs_daemon_pid"],
        };
        // serde also takes a struct as an array of its fields; nobody writes that.
        let is_object =
            value.is_object() && value.as_object().is_some_and(|top| top.values().any(serde_json::Value::is_object));
        let is_said = |key: &&str| value.pointer(key).and_then(serde_json::Value::as_i64) == Some(i64::from(claim.pid));
        assert!(!is_object || keys.iter().any(is_said), "{claim:?}");
    }
});
