//! hooks.d: a JSON file a hook, as podman and CRI-O read them (oci-hooks(5)).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::check::registration::{Asked, Found, Hook, NAME};
use crate::check::{Check, State, Unread, list, read, shown, some};

/// The hooks of ours in these directories: of two files of one name the one in the later directory counts.
pub(super) fn survey(dirs: &[PathBuf], asked: &Asked) -> Found {
    let (mut found, mut files) = (Found::default(), BTreeMap::new());
    for dir in dirs {
        match list(dir, ".json") {
            Ok(paths) => files.extend(paths.into_iter().filter_map(|path| Some((path.file_name()?.to_owned(), path)))),
            Err(unread) => found.unread.push(unread),
        }
    }
    for path in files.into_values() {
        match read(&path) {
            Ok(text) => take(&mut found, &path, &text, asked),
            Err(errno) => found.unread.push(Unread::of(&path, errno)),
        }
    }
    found
}

/// Takes in what a file says, if it is of ours.
fn take(found: &mut Found, path: &Path, text: &str, asked: &Asked) {
    let json: Value = match serde_json::from_str(text) {
        Ok(json) => json,
        Err(error) if is_called_ours(path) || text.contains(NAME) => {
            found.files.push(path.to_path_buf());
            return found.broken.push(format!("{}: no JSON: {error}", shown(path)));
        }
        Err(_) => return,
    };
    let json = &json;
    let hook = hook_of(at(json, "hook"), strings(at(json, "stages")));
    let is_off = at(at(json, "when"), "always") == &Value::Bool(false);
    if is_off && (asked.names(&hook.path) || is_called_ours(path)) {
        return found.switched_off(path, hook.stages);
    }
    if !asked.names(&hook.path) {
        return;
    }
    if at(json, "version") != "1.0.0" {
        found.broken.push(format!("{}: version {}: must be \"1.0.0\"", shown(path), at(json, "version")));
    }
    if !ever_applies(at(json, "when")) {
        found.broken.push(format!("{}: its \"when\" applies to no container", shown(path)));
    }
    found.take(path, &hook, asked);
}

fn is_called_ours(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(NAME))
}

/// A hook as both hooks.d and OCI specifications write it.
pub(super) fn hook_of(json: &Value, stages: Vec<String>) -> Hook {
    Hook {
        path: at(json, "path").as_str().unwrap_or_default().to_owned(),
        args: strings(at(json, "args")),
        timeout: at(json, "timeout").as_i64(),
        stages,
    }
}

/// What stands there under `key`; null where nothing does.
pub(super) fn at<'j>(json: &'j Value, key: &str) -> &'j Value {
    json.get(key).unwrap_or(&Value::Null)
}

fn strings(json: &Value) -> Vec<String> {
    json.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Whether there is a condition that some container could meet.
fn ever_applies(when: &Value) -> bool {
    let holds = |key: &str| match at(when, key) {
        Value::Bool(is_wanted) => *is_wanted,
        Value::Array(commands) => !commands.is_empty(),
        Value::Object(annotations) => !annotations.is_empty(),
        _ => false,
    };
    ["always", "annotations", "commands", "hasBindMounts"].iter().any(|key| holds(key))
}

/// The directories that NRI's hook-injector reads. podman and CRI-O read just the first by themselves (seen with podman 4.3.1; for CRI-O
/// there is a check of its own).
pub(super) fn check(found: &Found, dirs: &[PathBuf]) -> Check {
    const ID: &str = "registration.hooks.d";
    if found.is_any() {
        let check = found.check(ID);
        let is_read_by_default = |file: &PathBuf| dirs.first().is_some_and(|dir| file.starts_with(dir));
        return if check.state == State::Ok && !found.files.iter().any(is_read_by_default) {
            let detail = format!("{}: podman reads that directory only where it is told to", check.detail);
            Check::warning(ID, detail, "for podman, name it in hooks_dir of containers.conf (docs/installation.md)")
        } else {
            check
        };
    }
    match found.unread.first() {
        Some(unread) => Check::skipped(ID, unread.why.clone(), "run it as root, or put that right"),
        None => Check::skipped(ID, format!("no file in {} names this hook", some(dirs)), ""),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    pub(in crate::check) fn asked() -> Asked<'static> {
        Asked { binary: Path::new("/none"), deadline: Duration::from_secs(5) }
    }

    /// An executable of ours below `dir`.
    pub(in crate::check) fn executable(dir: &Path) -> String {
        let path = dir.join(NAME);
        std::fs::write(&path, "#!").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path.to_str().unwrap().into()
    }

    fn file(path: &str, stage: &str) -> Value {
        json!({
            "version": "1.0.0",
            "hook": { "path": path, "args": ["kata-cgroup-hook", stage], "timeout": 10 },
            "when": { "always": true },
            "stages": [stage],
        })
    }

    /// The files of all stages, as they are installed.
    pub(in crate::check) fn install(dir: &Path, path: &str) {
        std::fs::create_dir_all(dir).unwrap();
        for stage in ["createRuntime", "poststart", "poststop"] {
            std::fs::write(dir.join(format!("{NAME}-{stage}.json")), file(path, stage).to_string()).unwrap();
        }
    }

    fn looked_at(dirs: &[PathBuf]) -> Check {
        check(&survey(dirs, &asked()), dirs)
    }

    #[test]
    fn the_files_that_are_installed_are_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().join("hooks.d"), dir.path().join("etc")];
        assert_eq!(looked_at(&dirs).state, State::Skipped);
        install(&dirs[0], &executable(dir.path()));
        std::fs::write(dirs[0].join("others.json"), "no JSON").unwrap();
        assert_eq!(looked_at(&dirs).state, State::Ok);
    }

    #[test]
    fn our_own_files_are_those_in_hooks_d() {
        let dir = tempfile::tempdir().unwrap();
        let path = executable(dir.path());
        for stage in ["createRuntime", "poststart", "poststop"] {
            let name = format!("hooks.d/{NAME}-{stage}.json");
            let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
            let mut json: Value = serde_json::from_str(&text).unwrap();
            json["hook"]["path"] = path.clone().into();
            assert_eq!(json, file(&path, stage));
        }
    }

    #[test]
    fn each_thing_that_a_file_can_get_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let hooks_d = dir.path().join("hooks.d");
        let path = executable(dir.path());
        let failed = |text: &str, needle: &str| {
            install(&hooks_d, &path);
            std::fs::write(hooks_d.join(format!("{NAME}-poststop.json")), text).unwrap();
            let check = looked_at(std::slice::from_ref(&hooks_d));
            assert!(check.state == State::Failure && check.detail.contains(needle), "{check:?}");
        };
        let changed = |key: &str, value: Value| {
            let mut json = file(&path, "poststop");
            json[key] = value;
            json.to_string()
        };
        failed("{", "no JSON");
        failed(&changed("version", json!("0.1.0")), "must be \"1.0.0\"");
        failed(&changed("version", Value::Null), "must be \"1.0.0\"");
        failed(&changed("when", json!({})), "applies to no container");
        failed(&changed("when", json!({ "commands": [] })), "applies to no container");
        failed(&changed("stages", json!([])), "not registered for poststop");
        failed(&changed("hook", json!({ "path": "/usr/bin/true" })), "not registered for poststop");
        failed(&changed("hook", json!({ "path": "/none/kata-cgroup-hook", "args": ["x", "poststop"] })), "ENOENT");
    }

    #[test]
    fn who_switches_a_stage_off_means_it() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().join("usr"), dir.path().join("etc")];
        install(&dirs[0], &executable(dir.path()));
        std::fs::create_dir(&dirs[1]).unwrap();
        let off =
            json!({ "version": "1.0.0", "hook": { "path": "/bin/true" }, "when": { "always": false }, "stages": ["poststop"] });
        std::fs::write(dirs[1].join(format!("{NAME}-poststop.json")), off.to_string()).unwrap();
        let check = looked_at(&dirs);
        assert!(check.state == State::Warning && check.detail.contains("switches it off for poststop"), "{check:?}");
    }

    #[test]
    fn a_file_of_the_same_name_in_a_later_directory_counts() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().join("usr"), dir.path().join("etc")];
        let path = executable(dir.path());
        install(&dirs[0], &path);
        install(&dirs[1], "/none/kata-cgroup-hook");
        assert_eq!(looked_at(&dirs).state, State::Failure);
        let turned = [dirs[1].clone(), dirs[0].clone()];
        assert_ne!(looked_at(&turned).state, State::Failure);
    }

    #[test]
    fn files_that_are_in_the_second_directory_alone_are_not_read_by_default() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().join("usr"), dir.path().join("etc")];
        let path = executable(dir.path());
        install(&dirs[1], &path);
        let check = looked_at(&dirs);
        assert!(check.state == State::Warning && check.detail.contains("only where it is told to"), "{check:?}");
        install(&dirs[0], &path);
        std::fs::remove_file(dirs[1].join(format!("{NAME}-poststop.json"))).unwrap();
        assert_eq!(looked_at(&dirs).state, State::Ok);
    }
}
