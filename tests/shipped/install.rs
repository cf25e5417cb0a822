//! `make install` and `make uninstall`, below a directory of the test's own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::skipped;

const SOURCES: &str = env!("CARGO_MANIFEST_DIR");
const CONFIG: &str = "etc/kata-cgroup-hook/config.toml";
const ELSEWHERE: [&str; 3] = ["PREFIX=/opt/hook", "LIBEXECDIR=/opt/hook/lib", "UNITDIR=/etc/systemd/system"];

/// The sources as they are, with a build of their own, and where that is installed.
struct Tree(TempDir);

impl Tree {
    fn new() -> Option<Tree> {
        if !Path::new(SOURCES).join("Makefile").exists() {
            return skipped("no sources");
        }
        let tree = Tree(tempfile::tempdir().unwrap());
        for name in ["Makefile", "Cargo.toml", "hooks.d", "packaging", "docs"] {
            symlink(Path::new(SOURCES).join(name), tree.0.path().join(name)).unwrap();
        }
        fs::create_dir(tree.0.path().join("build")).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_kata-cgroup-hook"), tree.0.path().join("build/kata-cgroup-hook")).unwrap();
        Some(tree)
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("root")
    }

    /// The lines that `make` prints.
    fn make(&self, target: &str, variables: &[&str]) -> Vec<String> {
        let root = format!("DESTDIR={}", self.root().display());
        let output =
            Command::new("make").arg("-s").arg("-C").arg(self.0.path()).args([target, &root]).args(variables).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{target}: {said}");
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    /// Every file and link that is installed.
    fn files(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut dirs = vec![self.root()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    dirs.push(entry.path());
                } else {
                    found.insert(entry.path().strip_prefix(self.root()).unwrap().display().to_string());
                }
            }
        }
        found
    }
}

#[test]
fn the_binary_comes_first_and_the_json_last_and_they_go_the_other_way_round() {
    let Some(tree) = Tree::new() else { return };
    let is_json = |line: &String| line.contains("/hooks.d/kata-cgroup-hook-");
    let is_binary = |line: &String| line.contains("libexec/oci/hooks.d/kata-cgroup-hook");
    let put = tree.make("install", &[]);
    assert!(is_binary(&put[0]) && put[put.len() - 3..].iter().all(is_json), "{put:#?}");
    let gone = tree.make("uninstall", &[]);
    assert!(gone[..3].iter().all(is_json) && is_binary(gone.last().unwrap()), "{gone:#?}");
    assert_eq!(tree.files(), BTreeSet::new());
}

#[test]
fn what_is_there_already_is_replaced_but_for_the_configuration() {
    let Some(tree) = Tree::new() else { return };
    tree.make("install", &[]);
    let files = tree.files();
    let (config, hook) = (tree.root().join(CONFIG), tree.root().join("usr/libexec/oci/hooks.d/kata-cgroup-hook"));
    fs::write(&config, "mode = \"off\"\n").unwrap();
    let old = fs::File::open(&hook).unwrap();
    tree.make("install", &[]);
    assert_eq!(fs::read_to_string(&config).unwrap(), "mode = \"off\"\n");
    assert_eq!(tree.files(), files, "nothing is left beside it");
    // By a rename: who has it open, or runs it, has it whole.
    assert_ne!(inode(&old.metadata().unwrap()), inode(&fs::metadata(&hook).unwrap()));

    tree.make("uninstall", &[]);
    assert_eq!(tree.files(), BTreeSet::from([CONFIG.to_owned()]), "a configuration that was changed stays");
}

fn inode(file: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(file)
}

#[test]
fn what_names_a_path_names_the_one_that_was_chosen() {
    let Some(tree) = Tree::new() else { return };
    tree.make("install", &ELSEWHERE);
    let files = tree.files();
    assert!(
        files.contains("opt/hook/lib/oci/hooks.d/kata-cgroup-hook") && files.contains("opt/hook/sbin/kata-cgroup-hook"),
        "{files:#?}"
    );
    assert!(!files.iter().any(|file| file.starts_with("usr")), "{files:#?}");
    let mut naming = 0;
    for text in files.iter().filter_map(|file| fs::read_to_string(tree.root().join(file)).ok()) {
        let default = ["/usr/libexec/", "/usr/share/containers/oci", "/usr/sbin", "/usr/lib/systemd"];
        assert!(!default.iter().any(|path| text.contains(path)), "{text}");
        naming += usize::from(text.contains("/opt/hook/lib/oci/hooks.d/kata-cgroup-hook"));
    }
    assert_eq!(naming, 3 + 1 + 1 + 1, "the JSON files, the service, what retires them, the manual page");
    tree.make("uninstall", &ELSEWHERE);
    assert_eq!(tree.files(), BTreeSet::new());
}
