//! cgroup v1's cpusets, in which nobody can be put below one without CPUs (cpuset(7)).

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::cgroup::Controller;
use crate::cgroup::mounts::{Mounts, Version};
use crate::check::{Check, Unread, read, some};
use crate::error::errno_of;
use crate::order;

/// How deep pods lie: kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice.
const DEPTH: usize = 3;

/// Whether the groups that hold others, as pods and what they lie in do, have CPUs and memory nodes for them.
pub(super) fn parents(mounts: &Mounts) -> Check {
    const ID: &str = "cpuset.parents";
    let Some(cpuset) = mounts.of_controller(Controller::Cpuset) else {
        return Check::skipped(ID, "no cgroup hierarchy with cpuset is known", "");
    };
    if cpuset.version == Version::V2 {
        return Check::skipped(ID, "on cgroup v2 a group without a list has what the one above it has", "");
    }
    let mut empty = Vec::new();
    match look_below(&cpuset.mount, DEPTH, &mut empty) {
        Err(unread) => Check::skipped(ID, unread.why, ""),
        Ok(()) if empty.is_empty() => Check::ok(ID, "every group that holds others has CPUs and memory nodes"),
        Ok(()) => Check::warning(
            ID,
            format!("cpuset.cpus or cpuset.mems is empty: no sandbox below can be placed: {}", some(&empty)),
            "write the list of the group above into it, as kubelet and runc mostly do",
        ),
    }
}

/// Adds the groups below `dir` that hold others and lack a list.
fn look_below(dir: &Path, depth: usize, empty: &mut Vec<PathBuf>) -> Result<(), Unread> {
    for group in groups_in(dir)? {
        let is_parent = !groups_in(&group)?.is_empty();
        let lacks = |file: &str| read(&group.join(file)).is_ok_and(|list| list.trim().is_empty());
        if is_parent && (lacks("cpuset.cpus") || lacks("cpuset.mems")) {
            // Those in it can have nothing either.
            empty.push(group);
        } else if is_parent && depth > 1 {
            look_below(&group, depth - 1, empty)?;
        }
    }
    Ok(())
}

/// The groups in one, by their names; none where it has gone meanwhile.
fn groups_in(dir: &Path) -> Result<Vec<PathBuf>, Unread> {
    let entries = match std::fs::read_dir(dir).map_err(|error| errno_of(&error)) {
        Ok(entries) => entries,
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(Vec::new()),
        Err(errno) => return Err(Unread::of(dir, errno)),
    };
    let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut groups: Vec<PathBuf> = dirs.map(|entry| entry.path()).collect();
    order::sort(&mut groups);
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;
    use crate::testing;

    /// A v1 cpuset hierarchy below `dir` with these groups and lists of CPUs, each with a memory node.
    fn mounts(dir: &Path, groups: &[(&str, &str)]) -> Mounts {
        let mounts = testing::mounts(dir);
        for (group, cpus) in groups {
            let group = mounts.of_controller(Controller::Cpuset).unwrap().mount.join(group);
            std::fs::create_dir_all(&group).unwrap();
            std::fs::write(group.join("cpuset.cpus"), format!("{cpus}\n")).unwrap();
            std::fs::write(group.join("cpuset.mems"), "0\n").unwrap();
        }
        mounts
    }

    #[test]
    fn a_group_that_holds_others_has_something_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let good = [("kubepods", "0-3"), ("kubepods/pod1", "0-3"), ("kubepods/pod1/c", ""), ("new", "")];
        let good = mounts(dir.path(), &good);
        assert_eq!(parents(&good).state, State::Ok, "who holds nobody may be empty");
        let cpuset = &good.of_controller(Controller::Cpuset).unwrap().mount;
        for (group, file) in [("kubepods", "cpuset.cpus"), ("kubepods/pod1", "cpuset.mems")] {
            let file = cpuset.join(group).join(file);
            let before = std::fs::read(&file).unwrap();
            std::fs::write(&file, "\n").unwrap();
            let check = parents(&good);
            assert_eq!(check.state, State::Warning, "{group}");
            assert!(check.detail.ends_with(&format!("placed: {}", cpuset.join(group).display())), "{check:?}");
            std::fs::write(&file, before).unwrap();
        }
    }

    #[test]
    fn elsewhere_there_is_nothing_to_look_at() {
        let v2 = Mounts { hierarchies: vec![testing::unified(&[Controller::Cpuset])], ..Mounts::default() };
        let gone = testing::mounts(Path::new("/dev/null"));
        for mounts in [v2, Mounts::default(), gone] {
            assert_eq!(parents(&mounts).state, State::Skipped);
        }
    }
}
