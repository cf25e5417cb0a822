//! What matters of cgroup v2 where it carries the cpu controller.

use std::rc::Rc;

use crate::cgroup::Controller;
use crate::cgroup::mounts::{Hierarchy, Mounts, Version};
use crate::cgroup::path::Domain;
use crate::check::{Check, Unread, read, shown};

/// v2, or that it is not what limits vCPUs here.
fn v2(mounts: &Mounts) -> Result<&Rc<Hierarchy>, &'static str> {
    let cpu = mounts.of_controller(Controller::Cpu).ok_or("no cgroup hierarchy with cpu is known")?;
    if cpu.version == Version::V2 { Ok(cpu) } else { Err("cpu is on cgroup v1") }
}

/// Whether threads can have both of the controllers that act on them.
pub(super) fn controllers(mounts: &Mounts) -> Check {
    const ID: &str = "v2.controllers";
    let v2 = match v2(mounts) {
        Ok(v2) => v2,
        Err(why) => return Check::skipped(ID, why, ""),
    };
    let file = v2.mount.join("cgroup.subtree_control");
    let passed_on = match read(&file) {
        Ok(text) => text,
        Err(errno) => return Check::skipped(ID, Unread::of(&file, errno).why, ""),
    };
    if mounts.of_controller(Controller::Cpuset).is_none() {
        let detail = "the root offers cpu and no cpuset: the vCPUs run on any CPU";
        return Check::warning(ID, detail, "boot a kernel with CONFIG_CPUSETS and without cgroup_disable=cpuset");
    }
    let of_threads = v2.controllers.iter().filter(|one| matches!(one, Controller::Cpu | Controller::Cpuset));
    let (on, off): (Vec<&str>, Vec<&str>) =
        of_threads.map(|one| one.name()).partition(|name| passed_on.split_ascii_whitespace().any(|word| word == *name));
    let mut detail = format!("the root has {}", [on.as_slice(), off.as_slice()].concat().join(" and "));
    if !off.is_empty() {
        detail += "; ";
        detail += &off.join(" and ");
        detail += " is enabled there by the first placement";
    }
    Check::ok(ID, detail)
}

/// Whether a thread can be in another group than its process.
pub(super) fn threaded(mounts: &Mounts) -> Check {
    const ID: &str = "v2.threaded";
    let v2 = match v2(mounts) {
        Ok(v2) => v2,
        Err(why) => return Check::skipped(ID, why, ""),
    };
    let file = v2.mount.join("cgroup.threads");
    match read(&file).map_err(|errno| Unread::of(&file, errno)) {
        Ok(_) => Check::ok(ID, "groups can be threaded"),
        Err(unread) if unread.is_absent() => {
            let detail = format!("{} is not there: this kernel has no threaded groups", shown(&file));
            Check::failure(ID, detail, "use Linux 4.14 or newer, or cgroup v1")
        }
        Err(unread) => Check::skipped(ID, unread.why, ""),
    }
}

/// Whether moves between groups wait for all CPUs.
pub(super) fn favordynmods(mounts: &Mounts, release: Option<(u32, u32)>) -> Check {
    const ID: &str = "v2.favordynmods";
    let v2 = match v2(mounts) {
        Ok(v2) => v2,
        Err(why) => return Check::skipped(ID, why, ""),
    };
    match release {
        _ if mounts.favours_moves => Check::ok(ID, "moving a process or thread waits for nobody"),
        Some(release) if release < (6, 0) => Check::ok(ID, "Linux before 6.0 is always as with it"),
        None => Check::skipped(ID, "the kernel's version is not known", ""),
        Some(_) => Check::ok(
            ID,
            format!(
                "not set, as by default; where VMs start often, `mount -o remount,favordynmods {}` spares each move 6 to 25 ms of \
                 waiting (forks get a little slower)",
                shown(&v2.mount)
            ),
        ),
    }
}

/// Who stumbles over a threaded group in the pod.
pub(super) fn domain(mounts: &Mounts, domain: Domain) -> Check {
    const ID: &str = "v2.domain";
    match (v2(mounts), domain) {
        (Err(why), _) => Check::skipped(ID, why, ""),
        (Ok(_), Domain::Kata) => Check::ok(ID, "\"kata\": sandboxes lie below /kata"),
        (Ok(_), Domain::Pod) => Check::warning(
            ID,
            "\"pod\": the vCPUs' group in the pod answers EOPNOTSUPP to who reads its cgroup.procs, as containerd/cgroups before \
             3.0.4 and opencontainers/runc before the fix of runc#3821 do, Kata's own containerd/cgroups 1.1.0 among them",
            "set domain = \"kata\" unless everything that reads or removes pods' groups here is newer",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::check::State;
    use crate::testing;

    fn mounts(mount: &Path, controllers: &[Controller]) -> Mounts {
        Mounts { hierarchies: vec![testing::unified_at(mount, controllers)], ..Mounts::default() }
    }

    const BOTH: [Controller; 2] = [Controller::Cpu, Controller::Cpuset];

    #[test]
    fn where_v1_has_cpu_nothing_of_v2_matters() {
        let dir = tempfile::tempdir().unwrap();
        let v1 = testing::mounts(dir.path());
        for mounts in [&v1, &Mounts::default()] {
            let all = [controllers(mounts), threaded(mounts), favordynmods(mounts, Some((6, 1))), domain(mounts, Domain::Pod)];
            assert!(all.iter().all(|check| check.state == State::Skipped && !check.detail.is_empty()), "{all:?}");
        }
    }

    #[test]
    fn both_controllers_of_threads_are_wanted() {
        let dir = tempfile::tempdir().unwrap();
        testing::make_v2(dir.path(), "", "cpu", "");
        let with = controllers(&mounts(dir.path(), &BOTH));
        assert_eq!(with.state, State::Ok);
        assert!(with.detail.contains("cpuset is enabled there by the first placement"), "{with:?}");
        assert_eq!(controllers(&mounts(dir.path(), &[Controller::Cpu])).state, State::Warning);
        assert_eq!(controllers(&mounts(&dir.path().join("gone"), &BOTH)).state, State::Skipped);
    }

    #[test]
    fn without_threaded_groups_it_cannot_be_done() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(threaded(&mounts(dir.path(), &BOTH)).state, State::Failure);
        testing::make_v2(dir.path(), "", "", "");
        assert_eq!(threaded(&mounts(dir.path(), &BOTH)).state, State::Ok);
    }

    #[test]
    fn favordynmods_matters_where_the_kernel_has_it() {
        let without = mounts(Path::new("/c2"), &BOTH);
        let with = Mounts { favours_moves: true, ..mounts(Path::new("/c2"), &BOTH) };
        // Nothing is wrong where it is not set: what it would save is said.
        let said = |mounts: &Mounts, release| favordynmods(mounts, Some(release)).detail.contains("remount,favordynmods /c2");
        assert!(said(&without, (6, 0)));
        assert!(!said(&with, (6, 0)) && !said(&without, (5, 19)));
        assert_eq!(favordynmods(&without, None).state, State::Skipped);
    }

    #[test]
    fn a_domain_in_the_pod_is_told_of() {
        let mounts = mounts(Path::new("/c2"), &BOTH);
        let pod = domain(&mounts, Domain::Pod);
        assert_eq!(pod.state, State::Warning);
        assert!(pod.detail.contains("3.0.4") && pod.fix.contains("domain = \"kata\""), "{pod:?}");
        assert_eq!(domain(&mounts, Domain::Kata).state, State::Ok);
    }
}
