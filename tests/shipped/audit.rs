//! `make audit`, with a cargo of the test's own: no network is needed to see that it says so where the advisories cannot be had.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use crate::skipped;

const SOURCES: &str = env!("CARGO_MANIFEST_DIR");

/// `make audit` where fetching the database, and what is asked of it then, end as `cargo` does for each.
fn audit(fetch: i32, check: i32) -> Option<Output> {
    if !Path::new(SOURCES).join("Makefile").exists() {
        return skipped("no sources");
    }
    let tree = tempfile::tempdir().unwrap();
    let at = |name: &str| tree.path().join(name);
    for name in ["Makefile", "Cargo.toml"] {
        symlink(Path::new(SOURCES).join(name), at(name)).unwrap();
    }
    fs::create_dir_all(at("tools/bin")).unwrap();
    let script =
        format!("#!/bin/sh\ncase \"$*\" in *fetch*db) exit {fetch} ;; *advisories) exit {check} ;; *) exit 99 ;; esac\n");
    for name in ["tools/bin/cargo-deny", "cargo"] {
        fs::write(at(name), &script).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let variables = [format!("TOOLS={}", at("tools").display()), format!("CARGO={}", at("cargo").display())];
    Some(Command::new("make").arg("-s").arg("-C").arg(tree.path()).arg("audit").args(variables).output().unwrap())
}

#[test]
fn a_database_that_cannot_be_had_is_told_and_no_audit() {
    let Some(output) = audit(1, 0) else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("could not be fetched, so nothing was audited"), "{output:?}");
}

#[test]
fn an_advisory_fails_it_and_none_does_not() {
    let Some(output) = audit(0, 1) else { return };
    assert!(!output.status.success() && !String::from_utf8_lossy(&output.stderr).contains("nothing was audited"), "{output:?}");
    assert!(audit(0, 0).unwrap().status.success());
}
