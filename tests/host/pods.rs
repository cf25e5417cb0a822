//! How kubelet, runc and Kata read and remove a pod's groups, while a sandbox of ours is placed and after.
//!
//! Each function here does what the named code does, call by call: reading cgroup.procs of a threaded group is refused, and older
//! readers take that for a failure of the whole (runc#3821, #3894).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::testenv::*;

fn directories_below(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    for entry in fs::read_dir(dir).unwrap().flatten().filter(|entry| entry.file_type().unwrap().is_dir()) {
        all.extend(directories_below(&entry.path()));
    }
    all
}

fn numbers(text: &str) -> Vec<i32> {
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// runc before it knew threaded groups (libcontainer/cgroups/utils.go, `GetAllPids`) and Kata's containerd/cgroups v1.1.0 (v2/manager.go, `Procs(true)`).
fn pids_as_of_old(dir: &Path) -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for dir in directories_below(dir) {
        pids.extend(numbers(&fs::read_to_string(dir.join("cgroup.procs"))?));
    }
    Ok(pids)
}

/// runc since (opencontainers/cgroups, utils.go, `readProcsFile`) and containerd/cgroups since v3.0.4.
fn pids_at_present(dir: &Path) -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for dir in directories_below(dir) {
        pids.extend(match fs::read_to_string(dir.join("cgroup.procs")) {
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
                numbers(&fs::read_to_string(dir.join("cgroup.threads"))?)
            }
            text => numbers(&text?),
        });
    }
    Ok(pids)
}

/// kubelet (pkg/kubelet/cm/cgroup_manager_linux.go, `Pids`): what it is about to kill when a pod is over.
fn pids_of_kubelet(dir: &Path) -> Vec<i32> {
    let of = |dir: PathBuf| fs::read_to_string(dir.join("cgroup.procs")).map(|text| numbers(&text)).unwrap_or_default();
    directories_below(dir).into_iter().flat_map(of).collect()
}

/// runc and kubelet (libcontainer/cgroups/utils.go, `RemovePath`): the group if it goes, else what is in it first.
fn remove_path(dir: &Path) -> io::Result<()> {
    if fs::remove_dir(dir).is_ok() {
        return Ok(());
    }
    for entry in fs::read_dir(dir)?.flatten().filter(|entry| entry.file_type().unwrap().is_dir()) {
        remove_path(&entry.path())?;
    }
    fs::remove_dir(dir)
}

/// Kata 3 (resourcecontrol/cgroups.go over containerd/cgroups v1.1.0, v2/manager.go): `MoveTo` reads all and writes each to the
/// target, `Delete` reads again and then removes.
fn kata_removes(dir: &Path, target: &Group) -> io::Result<()> {
    for pid in pids_as_of_old(dir)? {
        target.take_in(pid);
    }
    if pids_as_of_old(dir)?.is_empty() { remove_path(dir) } else { Err(io::Error::other("contains running processes")) }
}

#[test]
fn a_sandbox_outside_of_its_pod_is_in_nobodys_way() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let pod = env.pod("cpu");
    pod.make();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    let dir = pod.path_on_host();
    assert_eq!(pids_as_of_old(&dir).unwrap(), pids_at_present(&dir).unwrap());
    assert_eq!(pids_of_kubelet(&dir), Vec::<i32>::new());
    remove_path(&dir).unwrap();
    // The pod is gone before the sandbox's poststop comes: nothing of ours was in it.
    sandbox.assert_placed(&env.group());
    env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded();
    sandbox.release(&bundle).logged("released");
    assert!(!pod.exists());
}

#[test]
fn a_sandbox_in_its_pod_is_read_and_removed_by_present_versions_and_read_by_no_old_one() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    env.configure("[v2]\ndomain = \"pod\"\n");
    let mut sandbox = env.sandbox().virtiofsd().start();
    let pod = env.pod("cpu");
    pod.make();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    let dir = pod.path_on_host();
    let error = pids_as_of_old(&dir).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::EOPNOTSUPP as i32), "what the documentation says of old versions");
    let present = pids_at_present(&dir).unwrap();
    assert!(
        sandbox.processes().iter().all(|pid| present.contains(pid))
            && sandbox.vcpu_threads().iter().all(|tid| present.contains(tid))
    );
    assert_eq!(pids_of_kubelet(&dir).into_iter().collect::<std::collections::BTreeSet<_>>(), sandbox.processes());
    // The VM ends, and kubelet takes the pod away before anybody's poststop.
    sandbox.kill();
    wait_until("the pod to be empty", || remove_path(&dir).is_ok());
    sandbox.release(&bundle);
    assert!(!pod.exists());
}

#[test]
fn once_released_a_pod_is_read_and_removed_by_every_version() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    env.configure("[v2]\ndomain = \"pod\"\n");
    let sandbox = env.sandbox().start();
    let pod = env.pod("cpu");
    pod.make();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    sandbox.release(&bundle).logged("released");
    assert_eq!(pids_as_of_old(&pod.path_on_host()).unwrap(), Vec::<i32>::new());
    remove_path(&pod.path_on_host()).unwrap();
}

#[test]
fn katas_own_group_is_katas_to_remove_once_the_last_workload_has_ended() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    env.configure("[v2]\ndomain = \"pod\"\n");
    let mut shim = env.shim(&env.name);
    let mut sandbox = env.sandbox().start_in(&mut shim);
    let katas = Group::new("cpu", &env.group());
    katas.make();
    katas.take_in(shim.pid());
    katas.take_in(sandbox.pid);
    let workload = env.bundle_of(Engine::Containerd, Kind::Workload, &env.name, "c0ffee");
    env.hook("createRuntime").state(workload.state(sandbox.pid)).run().succeeded().logged("placed");
    let elsewhere = Group::new("cpu", "/");
    let error = kata_removes(&katas.path_on_host(), &elsewhere).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::EOPNOTSUPP as i32), "what Kata would meet before");
    env.hook("poststop").state(workload.state_with_id(&env.name, sandbox.pid)).run().succeeded();
    sandbox.kill();
    // It tries more than once, as that a group is empty shows only after a while.
    wait_until("Kata to have removed its group", || kata_removes(&katas.path_on_host(), &elsewhere).is_ok());
    // The sandbox's own poststop comes when Kata has cleaned up.
    sandbox.forget_runtime_files();
    let pause = env.bundle_of(Engine::Containerd, Kind::Sandbox, &env.name, &env.name);
    env.hook("poststop").state(pause.state(0)).run().succeeded();
    assert!(!katas.exists());
    assert_eq!(fs::read_dir(env.state_dir()).unwrap().count(), 0, "neither record nor lock is left");
}
