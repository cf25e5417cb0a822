//! What Kata's configuration makes Kata do to a placement.

use std::path::{Path, PathBuf};

use crate::cgroup::Controller;
use crate::cgroup::mounts::{Mounts, Version};
use crate::check::{Check, list, read_toml, some};

/// Whether Kata leaves the VMM where it was placed.
pub(super) fn sandbox_cgroup_only(dirs: &[PathBuf], mounts: &Mounts) -> Check {
    const ID: &str = "kata.sandbox_cgroup_only";
    let Some(cpu) = mounts.of_controller(Controller::Cpu) else {
        return Check::skipped(ID, "no cgroup hierarchy with cpu is known", "");
    };
    let (mut on, mut off, mut unread) = (Vec::new(), Vec::new(), Vec::new());
    for dir in dirs {
        for dir in [dir.clone(), dir.join("runtime-rs")] {
            read_dir(&dir, &mut on, &mut off, &mut unread);
        }
    }
    if let Some(why) = unread.first() {
        return Check::skipped(ID, why, "put that file right, or run it as root");
    }
    match (cpu.version, on.is_empty(), off.is_empty()) {
        (_, true, true) => Check::skipped(ID, format!("no configuration of Kata's in {}", some(dirs)), ""),
        (Version::V2, _, false) => Check::warning(
            ID,
            format!(
                "not true in {}: on cgroup v2 Kata moves the whole VMM again whenever a container is created, updated or removed, \
                 and the placement holds only until then",
                some(&off)
            ),
            "set sandbox_cgroup_only = true in [runtime] of the configurations that are in use",
        ),
        (Version::V2, ..) => Check::ok(ID, format!("true in {}: Kata moves the VMM once, before any hook runs", some(&on))),
        (Version::V1, _, true) => {
            Check::ok(ID, format!("true in {}: shim and VMM share the pod's group, the vCPUs have one in it", some(&on)))
        }
        (Version::V1, ..) => Check::ok(
            ID,
            format!(
                "not true in {}: Kata moves vCPU threads again on its own updates, until the next hook or reconcile",
                some(&off)
            ),
        ),
    }
}

/// Sorts the configurations in a directory by what they say; files in config.d there have the last word.
fn read_dir(dir: &Path, on: &mut Vec<PathBuf>, off: &mut Vec<PathBuf>, unread: &mut Vec<String>) {
    let mut said = |files| match files {
        Ok(files) => files,
        Err(crate::check::Unread { why, .. }) => {
            unread.push(why);
            Vec::new()
        }
    };
    let (files, over) = (said(list(dir, ".toml")), said(list(&dir.join("config.d"), ".toml")));
    let mut value_in = |path: &Path| match read_toml(path) {
        Ok(file) => file.get("runtime").and_then(|runtime| runtime.get("sandbox_cgroup_only")?.as_bool()),
        // A link to what is no longer installed.
        Err(why) if why.is_absent() => None,
        Err(why) => {
            unread.push(why.why);
            None
        }
    };
    let last_word = over.iter().rev().find_map(|path| value_in(path));
    for file in files.into_iter().filter(|file| file.exists()) {
        // Kata's own default is false.
        let is_on = last_word.or_else(|| value_in(&file)).unwrap_or(false);
        if is_on { on.push(file) } else { off.push(file) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;
    use crate::testing;

    fn v2() -> Mounts {
        Mounts { hierarchies: vec![testing::unified(&[Controller::Cpu])], ..Mounts::default() }
    }

    #[test]
    fn on_v2_true_is_wanted_and_on_v1_either_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().join("etc"), dir.path().join("share")];
        let v1 = testing::mounts(dir.path());
        assert_eq!(sandbox_cgroup_only(&dirs, &v2()).state, State::Skipped);
        std::fs::create_dir_all(dirs[1].join("runtime-rs")).unwrap();
        let file = dirs[1].join("runtime-rs/configuration-qemu.toml");
        for (text, on_v2) in [
            ("[runtime]\nsandbox_cgroup_only = true\n", State::Ok),
            ("[runtime]\nsandbox_cgroup_only = false\n", State::Warning),
            ("[runtime]\n#sandbox_cgroup_only = true\n", State::Warning),
            ("[runtime\n", State::Skipped),
        ] {
            std::fs::write(&file, text).unwrap();
            let check = sandbox_cgroup_only(&dirs, &v2());
            assert_eq!(check.state, on_v2, "{text}: {check:?}");
            assert!(check.detail.contains("configuration-qemu.toml"), "{check:?}");
            let on_v1 = sandbox_cgroup_only(&dirs, &v1).state;
            assert_eq!(on_v1, if on_v2 == State::Skipped { State::Skipped } else { State::Ok }, "{text}");
        }
        assert_eq!(sandbox_cgroup_only(&dirs, &Mounts::default()).state, State::Skipped);
    }

    #[test]
    fn a_drop_in_has_the_last_word() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("config.d")).unwrap();
        std::fs::write(dir.path().join("configuration.toml"), "[runtime]\nsandbox_cgroup_only = false\n").unwrap();
        let state = || sandbox_cgroup_only(&[dir.path().into()], &v2()).state;
        assert_eq!(state(), State::Warning);
        std::fs::write(dir.path().join("config.d/10-x.toml"), "[runtime]\nsandbox_cgroup_only = true\n").unwrap();
        assert_eq!(state(), State::Ok);
        std::fs::write(dir.path().join("config.d/20-y.toml"), "[runtime]\nsandbox_cgroup_only = false\n").unwrap();
        assert_eq!(state(), State::Warning);
        std::os::unix::fs::symlink("/none", dir.path().join("configuration-gone.toml")).unwrap();
        assert_eq!(state(), State::Warning);
    }
}
