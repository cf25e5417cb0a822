//! The mount table: no controller is in two places, what is found is really mounted there, and no group that a thread is said to
//! be in leads out of a mount.
//!
//! Parts are apart by NUL: the table, /proc/PID/cgroup, v2's cgroup.controllers, the name of a mount point. In the table `@` stands
//! for a directory that is there (`@/a`, `@/b`, `@/v2` as well), `%` for its device.
#![no_main]

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kata_cgroup_hook::cgroup::Controller;
use kata_cgroup_hook::cgroup::group::{GroupPath, locate};
use kata_cgroup_hook::cgroup::mounts::{Mounts, Version};
use kata_cgroup_hook::proc::{Membership, Proc};
use kata_cgroup_hook_fuzz::is_below;
use libfuzzer_sys::fuzz_target;
use nix::sys::stat::{major, minor, stat};

fuzz_target!(|data: &[u8]| {
    let mut parts = data.split(|byte| *byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let (table, cgroup, controllers, name) = (next(), next(), next(), next());
    let root = tempfile::tempdir().expect("a temporary directory");
    let at = root.path();
    for dir in ["a", "b", "v2", "proc/self"] {
        std::fs::create_dir_all(at.join(dir)).expect("a directory in it");
    }
    std::fs::write(at.join("v2/cgroup.controllers"), controllers).expect("a file in that");
    let device = stat(at).expect("what was made").st_dev;
    let device = format!("{}:{}", major(device), minor(device));

    let read = |table: &[u8]| {
        std::fs::write(at.join("proc/self/mountinfo"), table).expect("a mount table");
        Mounts::read(&Proc::new(at.join("proc")))
    };
    if let Ok(mounts) = read(&filled_in(table, at.as_os_str().as_bytes(), device.as_bytes())) {
        check(&mounts, &Membership::parse(cgroup));
    }

    // What the kernel would write of a mount point is read back as that, whatever its name.
    let is_name = !name.is_empty() && name.len() < 200 && name != b"." && name != b".." && !name.contains(&b'/');
    let mount = at.join(std::ffi::OsStr::from_bytes(name));
    if is_name && std::fs::create_dir_all(&mount).is_ok() {
        let point = escaped(mount.as_os_str().as_bytes());
        let line = [b"31 23 ", device.as_bytes(), b" / ", &point, b" rw shared:9 - cgroup cgroup rw,cpu\n"].concat();
        let mounts = read(&line).expect("a line of a v1 mount");
        assert_eq!(mounts.of_controller(Controller::Cpu).map(|found| found.mount.as_path()), Some(mount.as_path()));
    }
});

fn check(mounts: &Mounts, groups: &Membership) {
    let places: Vec<&Path> = mounts.hierarchies.iter().map(|hierarchy| hierarchy.mount.as_path()).collect();
    for (index, hierarchy) in mounts.hierarchies.iter().enumerate() {
        assert!(hierarchy.mount.is_absolute() && hierarchy.root.is_absolute());
        assert!(hierarchy.mount.is_dir() && !places[..index].contains(&hierarchy.mount.as_path()));
        assert!(!hierarchy.controllers.is_empty());
        if let Some(place) = hierarchy.place_in(groups) {
            let group = GroupPath::new(hierarchy, place);
            assert!(is_below(&group.absolute(), &hierarchy.mount));
            assert_eq!(hierarchy.below_mount(&group.in_kernel()), Some(place), "there and back");
            let located = locate(&mounts.hierarchies, &group.absolute());
            assert!(located.is_none_or(|located| located.absolute() == group.absolute()));
        }
    }
    let of_v2 = |version| mounts.hierarchies.iter().filter(|hierarchy| hierarchy.version == version).count();
    assert!(of_v2(Version::V2) <= 1);
    for controller in Controller::ALL {
        assert!(mounts.hierarchies.iter().filter(|hierarchy| hierarchy.carries(controller)).count() <= 1);
    }
}

/// The table with the directory and its device in the places of `@` and `%`.
fn filled_in(table: &[u8], at: &[u8], device: &[u8]) -> Vec<u8> {
    let fill = |byte: &u8| match byte {
        b'@' => at.to_vec(),
        b'%' => device.to_vec(),
        byte => vec![*byte],
    };
    table.iter().flat_map(fill).collect()
}

/// As the kernel writes a path (`seq_path_root` in fs/proc_namespace.c escapes " \t\n\\").
fn escaped(path: &[u8]) -> Vec<u8> {
    let escape = |byte: &u8| match byte {
        b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
        byte => vec![*byte],
    };
    path.iter().flat_map(escape).collect()
}
