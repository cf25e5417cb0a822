//! The last crate to run, by its name: nothing of all the others is left.
//!
//! Every name the tests make bears the number of the test process that made it. Where that process is gone, nobody is going to
//! clean up any more; what is found then is a fault in the hook or in the tests, and says which test process left it.

mod testenv;

use std::fs;
use std::path::Path;

use testenv::{Group, everywhere};

/// The number in `kch-test-<pid>-…` or `kch_test_<pid>_…`.
fn maker(name: &str) -> Option<u32> {
    let name = name.replace('_', "-");
    let (_, rest) = name.split_once("kch-test-")?;
    rest.split('-').next()?.parse().ok()
}

fn is_left_over(name: &str) -> bool {
    maker(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

#[test]
fn no_group_of_a_finished_test_is_left() {
    let trees = everywhere("/").into_iter().flat_map(|top| top.tree());
    let left: Vec<Group> = trees.filter(|group| is_left_over(&group.path)).collect();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn no_empty_directory_that_all_tests_shared_is_left() {
    for group in ["/kata", "/kata/vc", "/vc"].into_iter().flat_map(everywhere) {
        // Where somebody is in it, or something is below it, it is in use by somebody else.
        let unused = group.exists() && group.children().is_empty() && group.threads().is_empty();
        assert!(!unused, "{group:?} is left, and empty");
    }
}

#[test]
fn no_file_of_a_finished_test_is_left() {
    for dir in
        [std::env::temp_dir().as_path(), Path::new("/run"), Path::new("/run/vc"), Path::new("/run/kata"), Path::new("/dev")]
    {
        let Ok(entries) = fs::read_dir(dir) else { continue };
        let left: Vec<_> =
            entries.flatten().map(|entry| entry.path()).filter(|path| is_left_over(&path.to_string_lossy())).collect();
        assert!(left.is_empty(), "{left:#?}");
    }
}

#[test]
fn no_process_of_a_finished_test_is_left() {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        assert!(!is_left_over(&arguments), "{}: {arguments}", entry.path().display());
    }
}

#[test]
fn no_mount_of_a_finished_test_is_left() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let left: Vec<&str> = mounts.lines().filter(|line| is_left_over(line)).collect();
    assert!(left.is_empty(), "{left:#?}");
}
