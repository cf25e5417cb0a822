//! containerd, which knows no hooks.d: a runtime's base specification holds the hooks.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::check::registration::{Asked, Found};
use crate::check::{Check, Unread, hooks_d, list, read, read_toml, shown};

/// What containerd has of ours.
#[derive(Debug, Default)]
pub(super) struct Containerd {
    pub(super) found: Found,
    /// What of its configuration was not understood.
    unread: Vec<Unread>,
    /// Whether a runtime of it is Kata's.
    has_kata: bool,
}

/// A runtime of its CRI plugin.
#[derive(Debug)]
struct Runtime {
    name: String,
    kind: String,
    base: Option<PathBuf>,
}

impl Runtime {
    fn is_katas(&self) -> bool {
        self.name.contains("kata") || self.kind.contains("kata")
    }
}

/// Looks into the configuration and what it names; `None` where there is none.
pub(super) fn survey(path: &Path, asked: &Asked) -> Option<Containerd> {
    let mut containerd = Containerd::default();
    let mut runtimes = Vec::new();
    let mut files = vec![path.to_path_buf()];
    match read_toml(path) {
        Err(why) if why.is_absent() => return None,
        Err(why) => containerd.unread.push(why),
        Ok(config) => {
            let imports = config.get("imports").and_then(toml::Value::as_array).into_iter().flatten();
            files.extend(imports.filter_map(toml::Value::as_str).flat_map(|pattern| imported(path, pattern)));
            collect(&toml::Value::Table(config), &mut runtimes);
        }
    }
    for file in files.iter().skip(1) {
        match read_toml(file) {
            Ok(config) => collect(&toml::Value::Table(config), &mut runtimes),
            Err(why) if why.is_absent() => {}
            Err(why) => containerd.unread.push(why),
        }
    }
    for runtime in &runtimes {
        containerd.look_at(runtime, asked);
    }
    Some(containerd)
}

/// The files that a pattern of `imports` names: one, or all with an ending in a directory.
fn imported(config: &Path, pattern: &str) -> Vec<PathBuf> {
    let pattern = config.parent().unwrap_or(Path::new("/")).join(pattern);
    let name = pattern.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match name.strip_prefix('*') {
        Some(ending) => list(pattern.parent().unwrap_or(Path::new("/")), ending).unwrap_or_default(),
        None => vec![pattern],
    }
}

/// The runtimes wherever they stand: each generation of containerd calls its plugin otherwise.
fn collect(value: &toml::Value, runtimes: &mut Vec<Runtime>) {
    let Some(table) = value.as_table() else { return };
    for (key, value) in table {
        let Some(named) = value.as_table().filter(|_| key == "runtimes") else {
            collect(value, runtimes);
            continue;
        };
        for (name, runtime) in named {
            let text = |key: &str| runtime.get(key).and_then(toml::Value::as_str).unwrap_or_default();
            let base = Some(text("base_runtime_spec")).filter(|base| !base.is_empty()).map(PathBuf::from);
            runtimes.push(Runtime { name: name.clone(), kind: text("runtime_type").to_owned(), base });
        }
    }
}

impl Containerd {
    fn look_at(&mut self, runtime: &Runtime, asked: &Asked) {
        self.has_kata |= runtime.is_katas();
        let without = |what: &str| format!("runtime {}: {what}", runtime.name);
        let Some(base) = &runtime.base else {
            if runtime.is_katas() {
                self.found.doubtful.push(without("no base_runtime_spec, so no hook"));
            }
            return;
        };
        let text = match read(base).map_err(|errno| Unread::of(base, errno)) {
            Ok(text) => text,
            Err(unread) if unread.is_forbidden() => return self.found.unread.push(unread),
            Err(unread) => return self.found.broken.push(without(&unread.why)),
        };
        let spec: Value = match serde_json::from_str(&text) {
            Ok(spec) => spec,
            Err(error) => return self.found.broken.push(without(&format!("{}: no JSON: {error}", shown(base)))),
        };
        let (mut has_any, stages) = (false, hooks_d::at(&spec, "hooks").as_object());
        for (stage, hooks) in stages.into_iter().flatten() {
            for hook in hooks.as_array().into_iter().flatten() {
                let hook = hooks_d::hook_of(hook, vec![stage.clone()]);
                if asked.names(&hook.path) {
                    self.found.take(base, &hook, asked);
                    has_any = true;
                }
            }
        }
        if !has_any && runtime.is_katas() {
            self.found.doubtful.push(without(&format!("{} does not hold this hook", shown(base))));
        }
    }
}

/// Whether containerd runs the hook.
pub(super) fn check(containerd: Option<&Containerd>, path: &Path) -> Check {
    const ID: &str = "registration.containerd";
    const FIX: &str = "give it a base_runtime_spec as in docs/installation.md, unless NRI's hook-injector is in use";
    let Some(containerd) = containerd else {
        return Check::skipped(ID, format!("no {}", shown(path)), "");
    };
    let found = &containerd.found;
    if let Some(unread) = containerd.unread.iter().chain(&found.unread).next() {
        let make = if unread.is_forbidden() { Check::skipped } else { Check::warning };
        return make(ID, unread.why.clone(), "put that file right, or run it as root");
    }
    if found.is_any() || !found.broken.is_empty() {
        return found.check(ID);
    }
    if containerd.has_kata {
        return Check::warning(ID, found.doubtful.join("; "), FIX);
    }
    Check::skipped(ID, format!("{} has no runtime of Kata's", shown(path)), "")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::State;
    use crate::check::hooks_d::tests::{asked, executable};

    const PLUGINS: [&str; 2] = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"];

    fn config(plugin: &str, base: Option<&Path>) -> String {
        let base = base.map_or(String::new(), |base| format!("base_runtime_spec = {base:?}\n"));
        format!("[plugins.\"{plugin}\".containerd.runtimes.kata]\nruntime_type = \"io.containerd.kata.v2\"\n{base}")
    }

    fn specification(path: &str) -> String {
        let hook = |stage: &str| json!([{ "path": path, "args": ["kata-cgroup-hook", stage], "timeout": 10 }]);
        let stages = ["createRuntime", "poststart", "poststop"];
        let hooks: serde_json::Map<_, _> = stages.iter().map(|stage| ((*stage).to_owned(), hook(stage))).collect();
        json!({ "ociVersion": "1.1.0", "hooks": hooks }).to_string()
    }

    #[test]
    fn katas_runtime_has_a_base_specification_with_the_hook() {
        let dir = tempfile::tempdir().unwrap();
        let (file, base) = (dir.path().join("config.toml"), dir.path().join("base.json"));
        let look = || check(survey(&file, &asked()).as_ref(), &file);
        let state = |text: &str| {
            std::fs::write(&file, text).unwrap();
            look().state
        };
        assert_eq!(look().state, State::Skipped);
        assert_eq!(state("version = 2\n"), State::Skipped);
        assert_eq!(state("version = \n"), State::Warning);
        for plugin in PLUGINS {
            assert_eq!(state(&config(plugin, None)), State::Warning);
            let _ = std::fs::remove_file(&base);
            assert_eq!(state(&config(plugin, Some(&base))), State::Failure);
            std::fs::write(&base, "{").unwrap();
            assert_eq!(look().state, State::Failure);
            std::fs::write(&base, "{}").unwrap();
            assert_eq!(look().state, State::Warning);
            std::fs::write(&base, specification(&executable(dir.path()))).unwrap();
            assert_eq!(look().state, State::Ok);
            std::fs::write(&base, specification("/none/kata-cgroup-hook")).unwrap();
            assert_eq!(look().state, State::Failure);
        }
    }

    #[test]
    fn imported_files_count_too() {
        let dir = tempfile::tempdir().unwrap();
        let (file, base) = (dir.path().join("config.toml"), dir.path().join("base.json"));
        std::fs::create_dir(dir.path().join("conf.d")).unwrap();
        std::fs::write(&base, specification(&executable(dir.path()))).unwrap();
        std::fs::write(dir.path().join("conf.d/kata.toml"), config(PLUGINS[1], Some(&base))).unwrap();
        for imports in ["conf.d/*.toml", "conf.d/kata.toml"] {
            std::fs::write(&file, format!("imports = [{:?}]\n", dir.path().join(imports))).unwrap();
            assert_eq!(check(survey(&file, &asked()).as_ref(), &file).state, State::Ok, "{imports}");
        }
        std::fs::write(&file, "").unwrap();
        assert_eq!(check(survey(&file, &asked()).as_ref(), &file).state, State::Skipped);
    }
}
