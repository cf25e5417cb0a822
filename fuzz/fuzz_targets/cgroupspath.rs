//! linux.cgroupsPath: whatever it says, the groups lie beneath the mounts. The first line is `ROLE SANDBOX`, the rest the path.
#![no_main]

use std::path::{Component, Path};
use std::rc::Rc;

use kata_cgroup_hook::cgroup::group::{GroupPath, locate};
use kata_cgroup_hook::cgroup::mounts::{Hierarchy, Top, Version};
use kata_cgroup_hook::cgroup::path::{Domain, SandboxPath};
use kata_cgroup_hook::cgroup::{Controller, Part};
use kata_cgroup_hook::oci::sandbox::{Role, Sandbox};
use kata_cgroup_hook::oci::state::is_id;
use kata_cgroup_hook_fuzz::first_line;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(((role, id), path)) = first_line(data).and_then(|(first, rest)| Some((first.split_once(' ')?, rest))) else {
        return;
    };
    let Ok(cgroups_path) = std::str::from_utf8(path) else { return };
    let role = match role {
        "sandbox" => Role::Sandbox,
        "workload" => Role::Workload,
        _ => Role::Single,
    };
    if !is_id(id) {
        return;
    }
    let sandbox = Sandbox { id: id.to_owned(), role };
    let Ok(path) = SandboxPath::derive(cgroups_path, &sandbox) else { return };
    assert_eq!(SandboxPath::recorded(&path.as_text()).as_ref(), Some(&path), "a record gives it back");
    if role == Role::Workload {
        let last = path.v1(Part::Constrained);
        let last = last.file_name().expect("a name").to_string_lossy();
        assert!(last.contains(id), "{last}: a workload's group is its sandbox's");
    }
    for below in [path.v1(Part::Constrained), path.v1(Part::Unconstrained), path.v2(Domain::Kata), path.v2(Domain::Pod)] {
        check(&below);
        assert!(below.file_name().is_some_and(|name| name.to_string_lossy().starts_with("kata_")));
    }
    check(&path.unprefixed());
    assert!(path.v1(Part::Constrained).starts_with(path.pod()));
});

/// By plain names that the kernel takes, and found again.
fn check(below: &Path) {
    let is_plain = |part| matches!(part, Component::Normal(name) if name.len() <= 255);
    assert!(below.components().all(is_plain), "{below:?}");
    assert!(!below.as_os_str().as_encoded_bytes().iter().any(|byte| matches!(byte, 0 | b'\n')), "{below:?}");
    let mount = Path::new("/sys/fs/cgroup/cpu").to_path_buf();
    let controllers = vec![Controller::Cpu];
    let hierarchy = Hierarchy { version: Version::V1, controllers, mount, root: "/".into(), top: Top::default() };
    let hierarchy = Rc::new(hierarchy);
    let group = GroupPath::new(&hierarchy, below);
    assert_eq!(locate(&[Rc::clone(&hierarchy)], &group.absolute()), Some(group));
}
