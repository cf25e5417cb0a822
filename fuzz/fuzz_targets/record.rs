//! The record: one that can be read is written and read again the same, and nothing in it leads out of the mounts.
#![no_main]

use std::path::Path;
use std::rc::Rc;

use kata_cgroup_hook::cgroup::Controller;
use kata_cgroup_hook::cgroup::demand::Demand;
use kata_cgroup_hook::cgroup::group::locate;
use kata_cgroup_hook::cgroup::mounts::{Hierarchy, Version};
use kata_cgroup_hook::cgroup::path::SandboxPath;
use kata_cgroup_hook::record::{SCHEMA, Store};
use kata_cgroup_hook_fuzz::{is_below, owner};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(&dir.path().join("state"), owner()).expect("a state directory");
    std::fs::write(dir.path().join("state/sb.json"), data).expect("a record");
    let Some(mut record) = store.load("sb").expect("what can be read") else { return };
    assert_eq!((record.schema, record.sandbox.as_str()), (SCHEMA, "sb"));
    store.save(&record).expect("what was read can be written");
    assert_eq!(store.load("sb").expect("what can be read").as_ref(), Some(&record));

    let mount = Path::new("/sys/fs/cgroup").to_path_buf();
    let hierarchy = Rc::new(Hierarchy { version: Version::V2, controllers: vec![Controller::Cpu], mount, root: "/".into() });
    for group in record.groups.iter().chain(&record.parents) {
        let located = locate(&[Rc::clone(&hierarchy)], &group.path);
        assert!(located.is_none_or(|located| is_below(&located.absolute(), &hierarchy.mount)));
        assert_eq!(record.intended(&group.path), record.knows(&group.path, 0));
    }
    if let Some(path) = SandboxPath::recorded(&record.path) {
        assert_eq!(path.as_text(), record.path);
    }
    let _ = Demand::of(record.containers.values().map(|container| &container.cpu));
    assert_eq!(record.identities().len(), record.processes.len());

    let made: Vec<_> = record.groups.iter().map(|group| (group.path.clone(), 7)).collect();
    record.learn(&made);
    assert!(record.groups.iter().all(|group| group.inode != 0));
    record.keep_containers(|_| false);
    assert!(record.containers.is_empty());
});
