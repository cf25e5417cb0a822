//! Whether an engine runs this hook, at the stages where it has to be run.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::check::{Check, Unread, shown, some};
use crate::cli::{self, Command, Stage};

/// How an executable of ours is called, wherever it lies.
pub(super) const NAME: &str = "kata-cgroup-hook";

/// What a registration is held against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The file that is running.
    pub(super) binary: &'a Path,
    /// How long a run may take.
    pub(super) deadline: Duration,
}

/// A hook as an engine has it.
#[derive(Debug, Default, Clone)]
pub(super) struct Hook {
    pub(super) path: String,
    pub(super) args: Vec<String>,
    /// In seconds.
    pub(super) timeout: Option<i64>,
    pub(super) stages: Vec<String>,
}

/// The hooks of ours in one place, and what is wrong with them.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) files: Vec<PathBuf>,
    stages: BTreeSet<String>,
    /// Whether one of them is run at all.
    is_active: bool,
    /// Why they cannot work.
    pub(super) broken: Vec<String>,
    /// Why they do not do what was meant.
    pub(super) doubtful: Vec<String>,
    pub(super) unread: Vec<Unread>,
}

impl Asked<'_> {
    /// Whether an engine that runs `path` runs this hook.
    pub(super) fn names(&self, path: &str) -> bool {
        let path = Path::new(path);
        let is_this = || std::fs::canonicalize(path).is_ok_and(|path| path == self.binary);
        path.file_name().is_some_and(|name| name == NAME) || is_this()
    }
}

impl Found {
    /// Whether there is any.
    pub(super) fn is_any(&self) -> bool {
        !self.files.is_empty()
    }

    /// Takes in a file of ours with which an administrator switches stages off.
    pub(super) fn switched_off(&mut self, file: &Path, stages: Vec<String>) {
        self.files.push(file.to_path_buf());
        self.doubtful.push(format!("{}: switches it off for {}", shown(file), stages.join(", ")));
        self.stages.extend(stages);
    }

    /// Takes a hook of ours in.
    pub(super) fn take(&mut self, file: &Path, hook: &Hook, asked: &Asked) {
        if self.files.last().is_none_or(|last| last != file) {
            self.files.push(file.to_path_buf());
        }
        self.is_active = true;
        let name = shown(file);
        if let Some(why) = wrong_with(Path::new(&hook.path)) {
            self.broken.push(format!("{name}: {}: {why}", hook.path));
        }
        for stage in &hook.stages {
            match wrong_at(stage, &hook.args) {
                None => {
                    self.stages.insert(stage.clone());
                }
                Some(why) => self.broken.push(format!("{name}: {why}")),
            }
            let within = match stage.as_str() {
                "startContainer" => "which runs inside the container, where no host cgroup is",
                "createContainer" => "which runc and crun run inside the container's namespaces, where it does nothing",
                _ => continue,
            };
            self.doubtful.push(format!("{name}: registered for {stage}, {within}"));
        }
        let needed = asked.deadline + Duration::from_secs(1);
        let is_short = |seconds: &i64| u64::try_from(*seconds).is_ok_and(|seconds| Duration::from_secs(seconds) < needed);
        if let Some(seconds) = hook.timeout.filter(is_short) {
            let deadline = asked.deadline.as_millis();
            self.doubtful
                .push(format!("{name}: killed after {seconds} s, before deadline-ms = {deadline} and a second to undo"));
        }
    }

    /// The stages that it needs and is not registered for.
    fn missing(&self) -> Vec<&str> {
        let has = |stage: &str| self.stages.contains(stage);
        let mut missing = Vec::new();
        if !has("createRuntime") && !has("prestart") {
            missing.push("createRuntime");
        }
        missing.extend(["poststart", "poststop"].into_iter().filter(|stage| !has(stage)));
        missing
    }

    /// What there is to say of it, where any hook of ours was found.
    pub(super) fn check(&self, id: &'static str) -> Check {
        let missing = self.missing();
        if !self.broken.is_empty() {
            let detail = [self.broken.as_slice(), self.doubtful.as_slice()].concat().join("; ");
            return Check::failure(id, detail, "put the file right, or install it anew (make install)");
        }
        if !missing.is_empty() {
            let detail = format!("{}: not registered for {}", some(&self.files), missing.join(", "));
            return Check::failure(id, detail, "register it for createRuntime, poststart and poststop");
        }
        if !self.doubtful.is_empty() {
            return Check::warning(id, self.doubtful.join("; "), "register it as the files in hooks.d that come with it do");
        }
        if let Some(unread) = self.unread.first() {
            return Check::warning(id, format!("{}; others are in order", unread.why), "put that file right");
        }
        Check::ok(id, some(&self.files))
    }
}

/// What keeps the file at `path` from being run.
fn wrong_with(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    if !path.is_absolute() {
        return Some("not an absolute path".into());
    }
    match std::fs::metadata(path) {
        Err(error) => Some(crate::error::errno_of(&error).to_string()),
        Ok(seen) if !seen.is_file() => Some("no regular file".into()),
        Ok(seen) if seen.permissions().mode() & 0o111 == 0 => Some("not executable".into()),
        Ok(_) => None,
    }
}

/// Why the hook, started with `args` at `stage`, would do nothing there, or the wrong thing.
fn wrong_at(stage: &str, args: &[String]) -> Option<String> {
    // What runs inside the container is told of as such.
    if stage == "startContainer" {
        return None;
    }
    match cli::parse(args.iter().skip(1).map(OsString::from)) {
        Err(why) => Some(format!("at {stage} its arguments {args:?} are not understood: {why}")),
        Ok(Command::Hook(hook)) if (hook.stage == Stage::Poststop) == (stage == "poststop") && !hook.dry_run => None,
        Ok(_) => Some(format!("at {stage} its arguments are {args:?}")),
    }
}

/// Whether any engine runs it.
pub(super) fn anywhere(places: &[(&str, Option<&Found>)]) -> Check {
    const ID: &str = "registration";
    let found = || places.iter().filter_map(|(engine, found)| found.map(|found| (*engine, found)));
    let those = |which: fn(&Found) -> bool| {
        let engines: Vec<&str> = found().filter(|(_, found)| which(found)).map(|(engine, _)| engine).collect();
        (!engines.is_empty()).then(|| engines.join(", "))
    };
    if let Some(engines) = those(|found| found.is_active) {
        return Check::ok(ID, format!("with {engines}"));
    }
    if let Some(engines) = those(Found::is_any) {
        return Check::warning(
            ID,
            format!("with {engines}, and run at no stage"),
            "put those files right, or see who switched it off",
        );
    }
    let unread: Vec<&Unread> = found().flat_map(|(_, found)| &found.unread).collect();
    match unread.first() {
        Some(unread) if unread.is_forbidden() => Check::skipped(ID, unread.why.clone(), "run it as root"),
        Some(unread) => Check::failure(ID, format!("found with no engine; {}", unread.why), "put that file right"),
        None => Check::failure(
            ID,
            "no hooks.d directory and no base specification of containerd's names this hook: no engine runs it",
            "make install, then register it with the engine that runs here, as docs/installation.md says",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;
    use crate::testing::FakeProc;

    fn asked() -> Asked<'static> {
        Asked { binary: Path::new("/none"), deadline: Duration::from_secs(5) }
    }

    fn hook(path: &Path, stages: &[&str], words: &str) -> Hook {
        Hook {
            path: path.to_str().unwrap().into(),
            args: words.split(' ').map(str::to_owned).collect(),
            timeout: Some(10),
            stages: stages.iter().map(|&stage| stage.to_owned()).collect(),
        }
    }

    /// The state with these hooks of an executable that is there.
    fn of(hooks: &[(&[&str], &str)], change: impl Fn(&mut Hook)) -> Check {
        let host = FakeProc::new();
        let binary = host.executable(NAME);
        std::fs::set_permissions(&binary, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut found = Found::default();
        for (stages, words) in hooks {
            let mut hook = hook(&binary, stages, words);
            change(&mut hook);
            found.take(Path::new("/h/x.json"), &hook, &asked());
        }
        found.check("x")
    }

    const GOOD: [(&[&str], &str); 3] =
        [(&["createRuntime"], "h createRuntime"), (&["poststart"], "h poststart"), (&["poststop"], "h poststop")];

    #[test]
    fn the_stages_that_it_needs_are_covered() {
        assert_eq!(of(&GOOD, |_| {}).state, State::Ok);
        let together: [(&[&str], &str); 2] = [(&["prestart", "poststart"], "h prestart"), (&["poststop"], "h poststop")];
        assert_eq!(of(&together, |_| {}).state, State::Ok);
        for left_out in 0..3 {
            let mut hooks = GOOD.to_vec();
            let (stages, _) = hooks.remove(left_out);
            let check = of(&hooks, |_| {});
            assert!(check.state == State::Failure && check.detail.contains(stages[0]), "{check:?}");
        }
    }

    #[test]
    fn a_stage_inside_the_container_is_warned_of() {
        for stage in ["startContainer", "createContainer"] {
            let stages = [stage];
            let words = format!("h {stage}");
            let mut hooks: Vec<(&[&str], &str)> = GOOD.to_vec();
            hooks.push((&stages, &words));
            let check = of(&hooks, |_| {});
            assert!(check.state == State::Warning && check.detail.contains(stage), "{check:?}");
        }
    }

    #[test]
    fn each_stage_is_told_its_own_word() {
        for words in ["h createRuntime", "h", "h poststop --nonsense", "h reconcile", "h poststop --dry-run"] {
            let mut hooks = GOOD;
            hooks[2].1 = words;
            let check = of(&hooks, |_| {});
            assert!(check.state == State::Failure && check.detail.contains("at poststop"), "{words}: {check:?}");
        }
        let mut hooks = GOOD;
        hooks[2].1 = "h poststop --config /c";
        assert_eq!(of(&hooks, |_| {}).state, State::Ok);
    }

    #[test]
    fn the_executable_is_there_and_can_be_run() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        let file = file.to_str().unwrap();
        for (path, why) in
            [("/none/x", "ENOENT"), ("libexec/x", "not an absolute path"), ("/", "no regular file"), (file, "not executable")]
        {
            let check = of(&GOOD, |hook| hook.path = path.into());
            assert!(check.state == State::Failure && check.detail.contains(why), "{check:?}");
        }
    }

    #[test]
    fn an_engine_waits_longer_than_a_run_takes() {
        for (timeout, state) in [(Some(5), State::Warning), (Some(6), State::Ok), (None, State::Ok), (Some(-1), State::Ok)] {
            assert_eq!(of(&GOOD, |hook| hook.timeout = timeout).state, state, "{timeout:?}");
        }
    }

    #[test]
    fn registered_with_one_engine_is_registered() {
        let (none, mut some) = (Found::default(), Found::default());
        some.switched_off(Path::new("/h/x.json"), vec!["poststop".into()]);
        assert_eq!(anywhere(&[("podman", Some(&some))]).state, State::Warning);
        some.take(Path::new("/h/y.json"), &Hook::default(), &asked());
        let check = anywhere(&[("podman", Some(&none)), ("CRI-O", None), ("containerd", Some(&some))]);
        assert_eq!((check.state, check.detail.as_str()), (State::Ok, "with containerd"));
        assert_eq!(anywhere(&[("podman", Some(&none)), ("CRI-O", None)]).state, State::Failure);
        let unread = Unread::of(Path::new("/h"), nix::errno::Errno::EACCES);
        let hidden = Found { unread: vec![unread], ..Found::default() };
        assert_eq!(anywhere(&[("podman", Some(&hidden))]).state, State::Skipped);
    }

    #[test]
    fn a_hook_is_ours_by_its_name_or_as_the_file_that_runs() {
        let dir = tempfile::tempdir().unwrap();
        let other = std::fs::canonicalize(dir.path()).unwrap().join("other");
        std::fs::write(&other, "").unwrap();
        let asked = Asked { binary: &other, ..asked() };
        assert!(asked.names("/anywhere/kata-cgroup-hook"));
        assert!(asked.names(other.to_str().unwrap()));
        assert!(!asked.names("/usr/bin/true"));
        assert!(!asked.names(""));
    }
}
