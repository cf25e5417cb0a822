//! The directory of the records, and what other versions left there.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;

use crate::check::{Check, Unread, list, shown, some};
use crate::error::errno_of;
use crate::foreign;
use crate::record::SCHEMA;

/// Whether the hook can keep its records there.
pub(super) fn state_dir(dir: &Path, owner: u32) -> Check {
    const ID: &str = "state.dir";
    let path = shown(dir);
    let seen = match std::fs::symlink_metadata(dir).map_err(|error| errno_of(&error)) {
        Ok(seen) => seen,
        Err(Errno::ENOENT) => return Check::ok(ID, format!("no {path} yet: the first placement makes it")),
        Err(errno @ (Errno::EACCES | Errno::EPERM)) => {
            return Check::skipped(ID, Unread::of(dir, errno).why, "run it as root");
        }
        Err(errno) => return Check::failure(ID, Unread::of(dir, errno).why, "set state-dir to where a directory can be"),
    };
    let mode = seen.mode() & 0o7777;
    if !seen.is_dir() {
        return Check::failure(ID, format!("{path} is no directory"), "remove it, or set state-dir to another place");
    }
    if seen.uid() == owner && mode & 0o022 == 0 && mode != 0o700 {
        let detail = format!("{path}: mode {mode:04o}: the hook uses it, and others than root can look into it");
        return Check::warning(ID, detail, format!("chmod 0700 {path}"));
    }
    if seen.uid() != owner || mode != 0o700 {
        let detail = format!("{path}: owned by uid {} with mode {mode:04o}: must be root's own", seen.uid());
        let fix = format!("see who put it there, then chown root {path} and chmod 0700 {path}");
        return Check::failure(ID, detail, fix);
    }
    Check::ok(ID, path)
}

/// Whether all records are ones that this version understands.
pub(super) fn leftovers(dir: &Path) -> Check {
    const ID: &str = "state.leftovers";
    let listed = list(dir, ".json").and_then(|records| list(dir, ".json.old").map(|aside| (records, aside)));
    let (records, aside) = match listed {
        Ok(listed) => listed,
        Err(unread) => return Check::skipped(ID, unread.why, "run it as root"),
    };
    let (mut foreign, count) = (Vec::new(), records.len());
    for record in records {
        match foreign::read_file(AT_FDCWD, &record, 16 << 20) {
            Ok((bytes, _)) if is_ours(&bytes) => {}
            // It has been released meanwhile.
            Err(Errno::ENOENT) => {}
            Err(errno @ (Errno::EACCES | Errno::EPERM)) => {
                return Check::skipped(ID, Unread::of(&record, errno).why, "run it as root");
            }
            _ => foreign.push(record),
        }
    }
    if !foreign.is_empty() {
        let detail = format!("records that this version does not understand: {}", some(&foreign));
        return Check::warning(ID, detail, "leave them: a sandbox's next hook sets such a record aside and makes a new one");
    }
    if !aside.is_empty() {
        let detail = format!("records that were not understood and set aside: {}", some(&aside));
        return Check::warning(
            ID,
            detail,
            "look whether groups of those sandboxes are left (reconcile --dry-run), then remove them",
        );
    }
    Check::ok(ID, if count == 1 { "1 record".to_owned() } else { format!("{count} records") })
}

/// Whether a record has the schema that this version writes.
fn is_ours(bytes: &[u8]) -> bool {
    let record: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    record.and_then(|record| record.get("schema")?.as_u64()) == Some(u64::from(SCHEMA))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::check::State;

    #[test]
    fn the_state_directory_is_absent_or_roots_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let us = nix::unistd::geteuid().as_raw();
        assert_eq!(state_dir(&path, us).state, State::Ok);
        std::fs::write(&path, "").unwrap();
        assert_eq!(state_dir(&path, us).state, State::Failure);
        assert_eq!(state_dir(&path.join("below"), us).state, State::Failure);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        for (mode, state) in [(0o700, State::Ok), (0o755, State::Warning), (0o777, State::Failure)] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(state_dir(&path, us).state, state, "{mode:o}");
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        let of_another = state_dir(&path, us + 1);
        assert!(of_another.state == State::Failure && of_another.detail.contains("must be root's own"), "{of_another:?}");
    }

    #[test]
    fn records_of_another_version_are_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        assert_eq!(leftovers(&path("gone")).state, State::Ok);
        std::fs::write(path("a.json"), r#"{"schema":1,"sandbox":"a"}"#).unwrap();
        std::fs::write(path("a.lock"), "").unwrap();
        let good = leftovers(dir.path());
        assert_eq!((good.state, good.detail.as_str()), (State::Ok, "1 record"));
        for other in [r#"{"schema":2}"#, "{}", "torn"] {
            std::fs::write(path("b.json"), other).unwrap();
            let check = leftovers(dir.path());
            assert!(check.state == State::Warning && check.detail.contains("b.json"), "{other}: {check:?}");
        }
        std::fs::remove_file(path("b.json")).unwrap();
        std::fs::write(path("c.json.old"), "").unwrap();
        let aside = leftovers(dir.path());
        assert!(aside.state == State::Warning && aside.detail.contains("c.json.old"), "{aside:?}");
    }
}
