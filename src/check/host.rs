//! Who we are here, and whether what the configuration names is there.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::check::{Check, Places, Unread, read, shown, some};
use crate::config::{self, Config, Mode};
use crate::error::errno_of;

/// Whether we see what the hook sees.
pub(super) fn rights(places: &Places) -> Check {
    const ID: &str = "rights";
    if places.is_root && !places.is_on_host {
        let detail = "root, but not in the pid and mount namespaces of pid 1: what follows may be a container's view";
        return Check::warning(ID, detail, "run it on the host itself");
    }
    if places.is_root {
        return Check::ok(ID, "root of the host, as engines run the hook");
    }
    let detail = "not root of the host: records, KVM's debugfs and files that only root may read are not seen";
    Check::skipped(ID, detail, "run it as root, outside of containers and user namespaces")
}

/// Whether the configuration holds, and what it says; the defaults where it does not.
pub(super) fn config(places: &Places) -> (Check, Config) {
    const ID: &str = "config";
    let path = places.config.as_deref().unwrap_or(Path::new(config::PATH));
    let seen = read(path);
    let config = match Config::load(places.config.as_deref(), places.owner, || places.is_root) {
        Ok(config) => config,
        Err(error) => {
            let fix = "put it right: until then every container of this host is kept from starting";
            return (Check::failure(ID, error.to_string(), fix), Config::default());
        }
    };
    let check = match (seen, config.mode) {
        (Err(errno @ (Errno::EACCES | Errno::EPERM)), _) => {
            Check::skipped(ID, Unread::of(path, errno).why, "run it as root: what follows is judged by the defaults")
        }
        (Err(_), _) => Check::ok(ID, format!("no {}: the defaults hold", shown(path))),
        (Ok(_), Mode::Enforce) => Check::ok(ID, shown(path)),
        (Ok(_), Mode::Observe) => Check::warning(
            ID,
            format!("{}: mode = \"observe\", nothing is changed", shown(path)),
            "set mode = \"enforce\" to place",
        ),
        (Ok(_), Mode::Off) => {
            Check::warning(ID, format!("{}: mode = \"off\", nothing is done", shown(path)), "set mode = \"enforce\" to place")
        }
    };
    (check, config)
}

/// Whether there is a runtime that could have sandboxes, and whether its directories count.
pub(super) fn runtime_dirs(dirs: &[PathBuf], owner: u32) -> Check {
    const ID: &str = "runtime.dirs";
    let (mut there, mut refused) = (Vec::new(), Vec::new());
    for dir in dirs {
        match std::fs::metadata(dir).map_err(|error| errno_of(&error)) {
            Ok(seen) if seen.is_dir() && (seen.uid() != owner || seen.mode() & 0o022 != 0) => refused.push(dir),
            Ok(seen) if seen.is_dir() => there.push(dir),
            Err(errno @ (Errno::EACCES | Errno::EPERM)) => {
                return Check::skipped(ID, Unread::of(dir, errno).why, "run it as root");
            }
            _ => {}
        }
    }
    if !refused.is_empty() {
        let detail = format!("{}: not root's, or others can write there: no sandbox of theirs is believed", some(&refused));
        return Check::failure(ID, detail, "see who made them, then chown root and chmod go-w");
    }
    if there.is_empty() {
        let detail = format!("none of {}: no Kata here yet, and no container is a VM sandbox's", some(dirs));
        return Check::warning(ID, detail, "start a sandbox, or name the runtime's directories as runtime-dirs");
    }
    Check::ok(ID, some(&there))
}

/// Whether somebody takes what is logged.
pub(super) fn log_socket(socket: Option<&Path>) -> Check {
    const ID: &str = "log.socket";
    const FIX: &str = "start a syslog daemon or journald, or set log-socket to where one listens";
    let Some(socket) = socket else {
        return Check::skipped(ID, "log-socket = \"\": nothing is logged", "");
    };
    let path = shown(socket);
    let refused = |errno: Errno| match errno {
        Errno::EACCES | Errno::EPERM => Check::skipped(ID, format!("{path}: {errno}"), "run it as root"),
        Errno::ENOENT | Errno::ENOTDIR => Check::warning(ID, format!("{path} is not there: nothing is logged"), FIX),
        Errno::ECONNREFUSED => Check::warning(ID, format!("{path}: nobody listens, and nothing is logged"), FIX),
        Errno::EPROTOTYPE => Check::warning(ID, format!("{path} is no datagram socket: nothing is logged"), FIX),
        errno => Check::warning(ID, format!("{path}: {errno}: nothing is logged"), FIX),
    };
    match std::fs::metadata(socket) {
        Err(error) => return refused(errno_of(&error)),
        Ok(seen) if !seen.file_type().is_socket() => {
            return Check::warning(ID, format!("{path} is no socket: nothing is logged"), FIX);
        }
        Ok(_) => {}
    }
    match UnixDatagram::unbound().and_then(|log| log.connect(socket)) {
        Ok(()) => Check::ok(ID, path),
        Err(error) => refused(errno_of(&error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::check::State;
    use crate::proc::Proc;

    fn places(config: PathBuf) -> Places {
        let owner = nix::unistd::geteuid().as_raw();
        Places { is_on_host: true, ..Places::this(Proc::new("/none"), owner, true, Some(config)) }
    }

    #[test]
    fn who_is_not_root_is_told_what_he_does_not_see() {
        let root = places("/none".into());
        assert_eq!(rights(&root).state, State::Ok);
        let contained = rights(&Places { is_on_host: false, ..root.clone() });
        assert!(contained.state == State::Warning && contained.detail.contains("a container's view"), "{contained:?}");
        let other = rights(&Places { is_root: false, ..root });
        assert!(other.state == State::Skipped && other.detail.contains("not seen"), "{other:?}");
    }

    #[test]
    fn a_configuration_holds_or_its_error_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path().join("config.toml"));
        let state_of = |text: &str| {
            std::fs::write(dir.path().join("config.toml"), text).unwrap();
            config(&places)
        };
        let (good, config_of_it) = state_of("state-dir = \"/s\"\n");
        assert_eq!((good.state, config_of_it.state_dir), (State::Ok, "/s".into()));
        let (wrong, config_of_it) = state_of("stat-dir = \"/s\"\n");
        assert!(wrong.state == State::Failure && wrong.detail.contains("stat-dir"), "{wrong:?}");
        assert_eq!(config_of_it.state_dir, Path::new("/run/kata-cgroup-hook"));
        for mode in ["off", "observe"] {
            let (check, _) = state_of(&format!("mode = \"{mode}\"\n"));
            assert!(check.state == State::Warning && check.detail.contains(mode), "{check:?}");
        }
        std::fs::remove_file(dir.path().join("config.toml")).unwrap();
        assert_eq!(config(&places).0.state, State::Failure, "one that is named must be there");
    }

    #[test]
    fn one_runtime_directory_of_roots_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let us = nix::unistd::geteuid().as_raw();
        let runtime_dirs = |dirs: &[PathBuf]| super::runtime_dirs(dirs, us);
        let dirs = [dir.path().join("vm"), dir.path().join("sbs")];
        assert_eq!(runtime_dirs(&dirs).state, State::Warning);
        assert_eq!(runtime_dirs(&[]).state, State::Warning);
        std::fs::create_dir(&dirs[1]).unwrap();
        std::fs::set_permissions(&dirs[1], std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let check = runtime_dirs(&dirs);
        assert_eq!((check.state, check.detail), (State::Ok, dirs[1].display().to_string()));
        assert_eq!(super::runtime_dirs(&dirs, us + 1).state, State::Failure);
        std::fs::set_permissions(&dirs[1], std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        assert_eq!(runtime_dirs(&dirs).state, State::Failure);
    }

    #[test]
    fn a_log_socket_is_one_where_somebody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let warned = |needle: &str| {
            let check = log_socket(Some(&path));
            assert!(check.state == State::Warning && check.detail.contains(needle) && !check.fix.is_empty(), "{check:?}");
        };
        warned("is not there");
        std::fs::write(&path, "").unwrap();
        warned("is no socket");
        std::fs::remove_file(&path).unwrap();
        let stream = UnixListener::bind(&path).unwrap();
        warned("is no datagram socket");
        drop(stream);
        std::fs::remove_file(&path).unwrap();
        let log = UnixDatagram::bind(&path).unwrap();
        assert_eq!(log_socket(Some(&path)).state, State::Ok);
        drop(log);
        warned("nobody listens");
        assert_eq!(log_socket(None).state, State::Skipped);
    }
}
