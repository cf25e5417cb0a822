//! Where each controller lives, and whether the hook can write there.

use std::path::Path;

use nix::errno::Errno;
use nix::sys::statvfs::{FsFlags, statvfs};

use crate::cgroup::Controller;
use crate::cgroup::mounts::{Mounts, Version};
use crate::check::{Check, shown};
use crate::error::Error;

/// One check a controller.
pub(super) fn all(mounts: Result<&Mounts, &Error>, is_read_only: impl Fn(&Path) -> Result<bool, Errno>) -> Vec<Check> {
    Controller::ALL.iter().map(|one| check(*one, mounts, &is_read_only)).collect()
}

/// Whether the file system is mounted read-only there.
pub(super) fn is_read_only(mount: &Path) -> Result<bool, Errno> {
    statvfs(mount).map(|stat| stat.flags().contains(FsFlags::ST_RDONLY))
}

fn check(
    controller: Controller,
    mounts: Result<&Mounts, &Error>,
    is_read_only: &impl Fn(&Path) -> Result<bool, Errno>,
) -> Check {
    let (id, what_is_lost) = words(controller);
    let bad = if controller == Controller::Cpu { Check::failure } else { Check::warning };
    let mounts = match mounts {
        Ok(mounts) => mounts,
        Err(error) => return Check::skipped(id, error.to_string(), "run it where /proc is mounted"),
    };
    let Some(hierarchy) = mounts.of_controller(controller) else {
        let fix = format!("mount a cgroup hierarchy with {}, or boot a kernel that has it enabled", controller.name());
        return bad(id, format!("no mounted cgroup hierarchy has it: {what_is_lost}"), fix);
    };
    let mount = shown(&hierarchy.mount);
    let version = if hierarchy.version == Version::V1 { "v1" } else { "v2" };
    if hierarchy.root != Path::new("/") {
        let detail = format!("cgroup {version} at {mount}, where only {} of it is mounted", shown(&hierarchy.root));
        return bad(id, detail, "run it on the host, in no container".to_owned());
    }
    match is_read_only(&hierarchy.mount) {
        Err(errno) => Check::skipped(id, format!("cgroup {version} at {mount}: {errno}"), ""),
        Ok(true) => {
            let detail = format!("cgroup {version} at {mount}, mounted read-only: {what_is_lost}");
            bad(id, detail, format!("mount -o remount,rw {mount}"))
        }
        Ok(false) => {
            let by_cpu = if hierarchy.carries(controller) { "" } else { ", counted by cpu" };
            Check::ok(id, format!("cgroup {version} at {mount}{by_cpu}"))
        }
    }
}

/// The check of a controller, and what it is like without.
fn words(controller: Controller) -> (&'static str, &'static str) {
    match controller {
        Controller::Cpu => ("controller.cpu", "no vCPU can be limited"),
        Controller::Cpuacct => ("controller.cpuacct", "the vCPUs' CPU time is not counted by itself"),
        Controller::Cpuset => ("controller.cpuset", "the vCPUs run on any CPU"),
        Controller::Memory => ("controller.memory", "VMM and helpers stay in the memory group they were started in"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;
    use crate::testing;

    const WRITABLE: fn(&Path) -> Result<bool, Errno> = |_| Ok(false);

    fn states(mounts: &Mounts, is_read_only: fn(&Path) -> Result<bool, Errno>) -> Vec<State> {
        all(Ok(mounts), is_read_only).iter().map(|check| check.state).collect()
    }

    #[test]
    fn every_controller_is_named_once_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let mounts = testing::mounts(dir.path());
        let checks = all(Ok(&mounts), WRITABLE);
        let ids: Vec<&str> = checks.iter().map(|check| check.id).collect();
        assert_eq!(ids, ["controller.cpu", "controller.cpuacct", "controller.cpuset", "controller.memory"]);
        assert_eq!(states(&mounts, WRITABLE), [State::Ok; 4]);
        assert!(checks[0].detail.contains("v1") && checks[0].detail.contains("/cpu"), "{checks:?}");
        assert!(checks.iter().all(|check| check.fix.is_empty()));
    }

    #[test]
    fn without_cpu_nothing_can_be_done_and_without_the_others_less() {
        let expected = [State::Failure, State::Warning, State::Warning, State::Warning];
        assert_eq!(states(&Mounts::default(), WRITABLE), expected);
        let dir = tempfile::tempdir().unwrap();
        let mounts = testing::mounts(dir.path());
        assert_eq!(states(&mounts, |_| Ok(true)), expected);
        assert_eq!(states(&mounts, |_| Err(Errno::EACCES)), [State::Skipped; 4]);
    }

    #[test]
    fn on_v2_cpu_counts_its_own_time() {
        let mounts = Mounts { hierarchies: vec![testing::unified(&[Controller::Cpu])], ..Mounts::default() };
        assert_eq!(states(&mounts, WRITABLE), [State::Ok, State::Ok, State::Warning, State::Warning]);
        assert!(all(Ok(&mounts), WRITABLE)[1].detail.contains("v2"));
    }

    #[test]
    fn a_part_of_a_hierarchy_is_a_containers_view() {
        let mut part = (*testing::unified(&[Controller::Cpu])).clone();
        part.root = "/docker/x".into();
        let mounts = Mounts { hierarchies: vec![part.into()], ..Mounts::default() };
        let checks = all(Ok(&mounts), WRITABLE);
        assert_eq!(checks[0].state, State::Failure);
        assert!(checks[0].detail.contains("/docker/x"), "{checks:?}");
    }

    #[test]
    fn a_mount_table_that_cannot_be_read_says_nothing_of_controllers() {
        let error = Error::path("read", "/proc/self/mountinfo", Errno::ENOENT);
        assert!(all(Err(&error), WRITABLE).iter().all(|check| check.state == State::Skipped));
    }

    #[test]
    fn a_directory_here_can_be_written_to() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(is_read_only(dir.path()), Ok(false));
        assert_eq!(is_read_only(&dir.path().join("gone")), Err(Errno::ENOENT));
    }
}
