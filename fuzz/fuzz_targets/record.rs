//! The record: one that can be read is written and read again the same, and nothing in it leads out of the mounts.
#![no_main]

use std::path::Path;
use std::rc::Rc;

use kata_cgroup_hook::cgroup::Controller;
use kata_cgroup_hook::cgroup::demand::Demand;
use kata_cgroup_hook::cgroup::group::locate;
use kata_cgroup_hook::cgroup::mounts::{Hierarchy, Top, Version};
use kata_cgroup_hook::cgroup::path::SandboxPath;
use kata_cgroup_hook::record::SCHEMA;
use kata_cgroup_hook::store::Store;
use kata_cgroup_hook_fuzz::{is_below, owner};
use libfuzzer_sys::fuzz_target;

/// The inode of every group that is made.
const MADE: u64 = 7;

fuzz_target!(|data: &[u8]| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(&dir.path().join("state"), owner()).expect("a state directory");
    std::fs::write(dir.path().join("state/sb.json"), data).expect("a record");
    let Some(mut record) = store.load("sb").expect("what can be read") else { return };
    assert_eq!((record.schema, record.sandbox.as_str()), (SCHEMA, "sb"));
    store.save(&record).expect("what was read can be written");
    assert_eq!(store.load("sb").expect("what can be read").as_ref(), Some(&record));
    let left = std::fs::read_dir(dir.path().join("state")).expect("a state directory").count();
    assert_eq!(left, 1, "only the record, nothing that was written on the way to it");

    let mount = Path::new("/sys/fs/cgroup").to_path_buf();
    let controllers = vec![Controller::Cpu];
    let hierarchy = Hierarchy { version: Version::V2, controllers, mount, root: "/".into(), top: Top::default() };
    let hierarchy = Rc::new(hierarchy);
    for group in record.groups.iter().chain(&record.parents) {
        let located = locate(&[Rc::clone(&hierarchy)], &group.path);
        assert!(located.is_none_or(|located| is_below(&located.absolute(), &hierarchy.mount)));
    }
    if let Some(path) = SandboxPath::recorded(&record.path) {
        assert_eq!(path.as_text(), record.path);
    }
    let _ = Demand::of(record.containers.values().map(|container| &container.cpu));

    let before = record.clone();
    let made: Vec<_> = record.groups.iter().map(|group| (group.path.clone(), MADE)).collect();
    record.learn(&made);
    for (group, before) in record.groups.iter().zip(&before.groups) {
        let inode = if before.inode == 0 { MADE } else { before.inode };
        assert_eq!(group.inode, inode, "of what was only intended it is learnt, of what stood it stays");
        assert!(record.knows(&group.path, inode));
    }
    record.keep_containers(|_| false);
    assert!(record.containers.is_empty());
    let asked: Vec<_> = before.containers.values().map(|container| &container.cpu).collect();
    let last = if asked.is_empty() { before.last.iter().collect() } else { asked };
    assert_eq!(record.last.iter().collect::<Vec<_>>(), last, "what the last ones asked for is kept in mind");
});
