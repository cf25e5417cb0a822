//! The host of an engine: with the hook where the package puts it, and the files that register it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::testenv::*;

/// Where hooks.d/*.json say that the hook is, where engines look for those, and where it looks for its configuration.
const BINARY: &str = "/usr/libexec/oci/hooks.d/kata-cgroup-hook";
pub(crate) const HOOKS_D: &str = "/usr/share/containers/oci/hooks.d";
const CONFIG: &str = "/etc/kata-cgroup-hook/config.toml";
/// Where it has its records then.
const RECORDS: &str = "/run/kata-cgroup-hook";
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/hooks.d");

/// There is one hook on a host.
static HOST: Mutex<()> = Mutex::new(());

/// Holds the host with the hook installed; dropped, it is removed.
pub(crate) struct Node<'e> {
    env: &'e Env,
    jsons: Vec<PathBuf>,
    _alone: MutexGuard<'static, ()>,
}

/// The environment of a test that installs the hook: on a host of the tests' own only.
pub(crate) fn in_a_vm() -> Option<Env> {
    if std::env::var_os("KCH_TEST_VM").is_none() {
        return skipped("not in a test VM");
    }
    Env::new()
}

impl<'e> Node<'e> {
    /// All of its settings are the defaults, but for where its log goes.
    pub(crate) fn install(env: &'e Env) -> Node<'e> {
        Node::install_with(env, &format!("log-socket = \"{}/log\"\n", env.dir.display()))
    }

    pub(crate) fn install_with(env: &'e Env, config: &str) -> Node<'e> {
        let alone = HOST.lock().unwrap_or_else(PoisonError::into_inner);
        for file in [BINARY, CONFIG] {
            fs::create_dir_all(Path::new(file).parent().unwrap()).unwrap();
        }
        copy_program(hook_binary(), BINARY.as_ref());
        write_file(Path::new(CONFIG), 0o644, config);
        fs::create_dir_all(HOOKS_D).unwrap();
        let mut jsons = Vec::new();
        for entry in fs::read_dir(SHIPPED).unwrap().flatten() {
            let json = Path::new(HOOKS_D).join(entry.file_name());
            fs::copy(entry.path(), &json).unwrap();
            jsons.push(json);
        }
        assert_eq!(jsons.len(), 3);
        Node { env, jsons, _alone: alone }
    }

    /// Stage, result and sandbox of each run since the last call.
    pub(crate) fn runs(&self) -> Vec<(String, String, String)> {
        let of = |line: &LogLine| ["stage", "result", "sandbox"].map(|key| line.get(key).to_owned()).into();
        self.env.log.take().iter().map(of).collect()
    }

    /// Exactly these stages were run for this sandbox, with these results.
    #[track_caller]
    pub(crate) fn assert_ran(&self, expected: &[(&str, &str)], sandbox: &str, what: &str) {
        let expected: Vec<_> =
            expected.iter().map(|(stage, result)| ((*stage).to_owned(), (*result).to_owned(), sandbox.to_owned())).collect();
        assert_eq!(self.runs(), expected, "{what}");
    }

    /// No group of the hook's is left. What engines and systemd make they remove in their own time.
    #[track_caller]
    pub(crate) fn assert_no_groups(&self, what: &str) {
        let trees = groups_named(&self.env.name).into_iter().flat_map(|group| group.tree());
        let left: Vec<Group> =
            trees.filter(|group| group.path.contains("/kata_") || group.path.starts_with("/kata/")).collect();
        assert!(left.is_empty(), "{what}: {left:?}");
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        // The files that name the binary first.
        for file in self.jsons.iter().map(PathBuf::as_path).chain([Path::new(BINARY), Path::new(CONFIG)]) {
            let _ = fs::remove_file(file);
        }
    }
}

/// What its timer does every minute.
#[track_caller]
pub(crate) fn reconcile() {
    let output = Command::new(BINARY).arg("reconcile").output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

/// No record of a sandbox is left.
#[track_caller]
pub(crate) fn assert_no_record() {
    let left: Vec<_> = fs::read_dir(RECORDS).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}
