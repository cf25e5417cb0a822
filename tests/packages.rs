//! The Debian package and the RPM through their whole lives, on a host with a sandbox that lives through all of it.
//!
//! They are installed for real, so in a virtual machine of the tests' own only; `KCH_PACKAGES` names the directory that holds two
//! revisions of each (`make packages` makes it). The RPM is installed by Debian's rpm, under a root of its own: an overlay of the whole
//! system, in which its scripts find what they call.

mod testenv;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testenv::*;

const NAME: &str = "kata-cgroup-hook";
const HOOK: &str = "usr/libexec/oci/hooks.d/kata-cgroup-hook";
const HOOKS_D: &str = "usr/share/containers/oci/hooks.d";
const CONFIG: &str = "etc/kata-cgroup-hook/config.toml";
const TIMER: &str = "kata-cgroup-hook-reconcile.timer";

/// There is one of each package on a host, and who removes one releases all sandboxes.
static HOST: Mutex<()> = Mutex::new(());

fn packages() -> Option<PathBuf> {
    let dir = std::env::var_os("KCH_PACKAGES").map(PathBuf::from);
    dir.or_else(|| skipped("no packages"))
}

/// A turn with the host's packages, and where they are.
fn alone() -> Option<(Env, PathBuf, MutexGuard<'static, ()>)> {
    if std::env::var_os("KCH_TEST_VM").is_none() {
        return skipped("not in a test VM");
    }
    let packages = packages()?;
    let alone = HOST.lock().unwrap_or_else(PoisonError::into_inner);
    Some((Env::new()?, packages, alone))
}

/// A package manager, the root it installs below, and two revisions of the package.
struct Manager {
    root: PathBuf,
    install: Vec<String>,
    remove: Vec<String>,
    revisions: [PathBuf; 2],
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

impl Manager {
    fn dpkg(packages: &Path) -> Manager {
        Manager {
            root: "/".into(),
            install: words("dpkg --install"),
            remove: words("dpkg --remove"),
            revisions: revisions(packages, ".deb"),
        }
    }

    /// It has a database of its own, in which nothing provides what the package needs.
    fn rpm(root: &Overlay, packages: &Path) -> Manager {
        let rpm = format!("rpm --root {}", root.0.join("root").display());
        run(&words(&format!("{rpm} --initdb")));
        Manager {
            root: root.0.join("root"),
            install: words(&format!("{rpm} --nodeps --oldpackage -U")),
            remove: words(&format!("{rpm} -e")),
            revisions: revisions(packages, ".rpm"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn install(&self, revision: usize) {
        let mut line = self.install.clone();
        line.push(self.revisions[revision - 1].display().to_string());
        run(&line);
    }

    fn removal(&self) -> Vec<String> {
        [self.remove.as_slice(), &[NAME.to_owned()]].concat()
    }

    /// The administrator's settings: this environment's, and whatever else.
    fn configure(&self, env: &Env, more: &str) {
        write_file(&self.path(CONFIG), 0o644, &format!("{}{more}", env.roots()));
    }

    /// A run of the hook that is installed, with the settings that are.
    fn hook<'e>(&self, env: &'e Env, stage: &str) -> Hook<'e> {
        env.hook(stage).binary(&self.path(HOOK)).config(&self.path(CONFIG))
    }

    fn jsons(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.path(HOOKS_D)) else { return Vec::new() };
        let paths = entries.flatten().map(|entry| entry.path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect()
    }

    /// The files of ours that an engine would follow.
    fn active_jsons(&self) -> usize {
        let is_active = |path: &PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains("\"always\": true"));
        self.jsons().iter().filter(|path| is_active(path)).count()
    }

    #[track_caller]
    fn assert_installed(&self) {
        assert_eq!((self.jsons().len(), self.active_jsons()), (3, 3));
        let version = run(&[self.path("usr/sbin").join(NAME).display().to_string(), "--version".to_owned()]);
        assert_eq!(version.trim(), format!("{NAME} {}", env!("CARGO_PKG_VERSION")));
        assert_eq!(self.timers(), 1);
        let hooks_d = format!("HOOKS_D={}", self.path(HOOKS_D).display());
        let base_spec = self.path("usr/libexec/kata-cgroup-hook/base-spec").display().to_string();
        let spec: serde_json::Value = serde_json::from_str(&run(&["env".to_owned(), hooks_d, base_spec])).unwrap();
        let stages: Vec<&String> = spec["hooks"].as_object().unwrap().keys().collect();
        assert_eq!(stages, ["createRuntime", "poststart", "poststop"]);
    }

    #[track_caller]
    fn assert_removed(&self) {
        assert_eq!(self.jsons(), Vec::<PathBuf>::new());
        for path in [HOOK, "usr/sbin/kata-cgroup-hook", "usr/libexec/kata-cgroup-hook"] {
            assert!(fs::symlink_metadata(self.path(path)).is_err(), "{path}");
        }
    }

    /// How many links have systemd start the timer.
    fn timers(&self) -> usize {
        fs::read_dir(self.path("etc/systemd/system/timers.target.wants"))
            .map_or(0, |entries| entries.flatten().filter(|entry| entry.file_name() == TIMER).count())
    }
}

/// The package files with this ending, the first revision first.
fn revisions(packages: &Path, ending: &str) -> [PathBuf; 2] {
    let entries = fs::read_dir(packages).unwrap_or_else(|error| panic!("{}: {error}", packages.display()));
    let paths = entries.flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = paths.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    found.sort();
    found.try_into().unwrap_or_else(|found| panic!("two revisions, not {found:?}"))
}

/// Runs a command that succeeds; what it prints.
#[track_caller]
fn run(line: &[String]) -> String {
    let output = start(line).wait_with_output().unwrap();
    assert!(output.status.success(), "{line:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn start(line: &[String]) -> Child {
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap_or_else(|error| panic!("{line:?}: {error}"))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Looks all the time at what an engine would find.
struct Watch {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Option<PathBuf>>,
}

impl Watch {
    fn over(manager: &Manager) -> Watch {
        let ends = Arc::new(AtomicBool::new(false));
        let (hooks_d, hook, until) = (manager.path(HOOKS_D), manager.path(HOOK), Arc::clone(&ends));
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                for stage in ["createRuntime", "poststart", "poststop"] {
                    let json = hooks_d.join(format!("{NAME}-{stage}.json"));
                    let applies = fs::read_to_string(&json).is_ok_and(|text| !text.contains("\"always\": false"));
                    if applies && !hook.exists() {
                        return Some(json);
                    }
                }
                // There is work to be done beside this.
                std::thread::sleep(Duration::from_micros(200));
            }
            None
        });
        Watch { ends, thread }
    }

    /// There never was a JSON file that applies to a container, and no binary.
    fn saw_no_json_without_its_binary(self) {
        self.ends.store(true, Ordering::Relaxed);
        assert_eq!(self.thread.join().unwrap(), None);
    }
}

/// The whole system once more, where what is written goes to memory and is gone in the end.
struct Overlay(PathBuf);

impl Overlay {
    fn new(env: &Env) -> Overlay {
        let dir = Path::new("/mnt").join(&env.name);
        let at = dir.display();
        let script = format!(
            "mkdir {at} && mount -t tmpfs tmpfs {at} && mkdir {at}/upper {at}/work {at}/root &&
             mount -t overlay -o lowerdir=/,upperdir={at}/upper,workdir={at}/work overlay {at}/root &&
             for dir in dev proc run sys tmp; do mount --rbind /$dir {at}/root/$dir && mount --make-rslave {at}/root/$dir || exit; done"
        );
        let overlay = Overlay(dir);
        run(&["sh".to_owned(), "-euc".to_owned(), script]);
        overlay
    }

    /// What has been written there, as paths from the root.
    fn written(&self) -> BTreeSet<PathBuf> {
        files_below(&self.0.join("upper"))
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let at = self.0.display();
        let script = format!(
            "for dir in dev proc run sys tmp; do umount -R -l {at}/root/$dir; done; umount {at}/root; umount {at}; rmdir {at}"
        );
        let _ = Command::new("sh").args(["-c", &script]).status();
    }
}

/// All that packages and their scripts may write below a root, but for the package managers' own.
fn files_below(root: &Path) -> BTreeSet<PathBuf> {
    let tops = ["etc", "usr", "var/lib"].map(|top| root.join(top)).into_iter().filter(|top| top.exists());
    let output = Command::new("find").args(tops).arg("-print0").output().unwrap();
    let paths = output.stdout.split(|&byte| byte == 0).filter(|path| !path.is_empty());
    let paths = paths.map(|path| Path::new(OsStr::from_bytes(path)).strip_prefix(root).unwrap().to_owned());
    paths.filter(|path| !["var/lib/dpkg", "var/lib/rpm"].iter().any(|own| path.starts_with(own))).collect()
}

/// Every group and value of this environment.
fn groups(env: &Env) -> Vec<String> {
    env.dump().lines_with(&env.name).into_iter().map(str::to_owned).collect()
}

/// A sandbox that the hook has placed which was just installed.
fn placed<'e>(manager: &Manager, env: &'e Env) -> (Sandbox<'e>, Bundle) {
    manager.install(1);
    manager.assert_installed();
    manager.configure(env, "");
    let sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle();
    manager.hook(env, "createRuntime").state(bundle.state(sandbox.pid)).run().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
    (sandbox, bundle)
}

/// The same, and it has lived through an upgrade and a downgrade since.
fn used<'e>(manager: &Manager, env: &'e Env) -> Sandbox<'e> {
    let watch = Watch::over(manager);
    let (sandbox, bundle) = placed(manager, env);
    let before = groups(env);
    for revision in [2, 1] {
        manager.install(revision);
        manager.assert_installed();
        assert_eq!(groups(env), before, "after revision {revision} took the other's place");
        assert!(
            fs::read_to_string(manager.path(CONFIG)).unwrap().starts_with(&env.roots()),
            "the administrator's settings stay"
        );
        manager.hook(env, "poststart").state(bundle.state(sandbox.pid)).run().succeeded().logged("unchanged");
    }
    watch.saw_no_json_without_its_binary();
    sandbox
}

/// Removed under the sandbox: it lives on where it came from.
fn removed(manager: &Manager, env: &Env, sandbox: &Sandbox) {
    let watch = Watch::over(manager);
    run(&manager.removal());
    watch.saw_no_json_without_its_binary();
    manager.assert_removed();
    assert!(is_alive(sandbox.pid));
    sandbox.assert_nowhere_below("kata_");
    env.assert_no_groups();
    assert!(!env.state_dir().exists(), "no record is left");
    env.log.take();
}

#[test]
fn the_debian_package_is_installed_used_upgraded_downgraded_removed_and_purged() {
    let Some((env, packages, _alone)) = alone() else { return };
    let manager = Manager::dpkg(&packages);
    let before = files_below(Path::new("/"));
    let sandbox = used(&manager, &env);
    assert_timer_runs(true);
    removed(&manager, &env, &sandbox);
    assert_timer_runs(false);
    assert!(manager.path(CONFIG).exists(), "the administrator's settings stay until they are purged");

    run(&words(&format!("dpkg --purge {NAME}")));
    let after = files_below(Path::new("/"));
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), Vec::<&PathBuf>::new());
    assert!(!Path::new("/run/kata-cgroup-hook").exists());
}

#[test]
fn the_debian_package_releases_all_though_the_hook_is_only_to_observe() {
    let Some((env, packages, _alone)) = alone() else { return };
    let manager = Manager::dpkg(&packages);
    let (sandbox, _) = placed(&manager, &env);
    manager.configure(&env, "mode = \"observe\"\n");
    removed(&manager, &env, &sandbox);
    run(&words(&format!("dpkg --purge {NAME}")));
}

#[test]
fn a_removal_of_the_debian_package_that_is_killed_changes_nothing() {
    let Some((env, packages, _alone)) = alone() else { return };
    let manager = Manager::dpkg(&packages);
    let (sandbox, bundle) = placed(&manager, &env);
    let removal = start(&manager.removal());
    wait_until("the JSON files to apply to nothing", || manager.active_jsons() == 0);
    kill(retiring().expect("somebody at it"), Signal::SIGKILL).unwrap();
    let output = removal.wait_with_output().unwrap();
    assert!(!output.status.success() && output.status.signal().is_none(), "{}", said(&output));
    manager.assert_installed();
    assert_timer_runs(true);
    sandbox.assert_placed(&env.group());
    manager.hook(&env, "poststart").state(bundle.state(sandbox.pid)).run().succeeded().logged("unchanged");

    removed(&manager, &env, &sandbox);
    run(&words(&format!("dpkg --purge {NAME}")));
}

#[test]
fn the_rpm_is_installed_used_upgraded_downgraded_and_removed() {
    let Some((env, packages, _alone)) = alone() else { return };
    let root = Overlay::new(&env);
    let manager = Manager::rpm(&root, &packages);
    let sandbox = used(&manager, &env);
    removed(&manager, &env, &sandbox);
    // In an overlay what was there and has been removed is a device, and directories that were changed are there.
    let is_left = |path: &&PathBuf| fs::symlink_metadata(manager.root.join(path)).is_ok_and(|file| !file.is_dir());
    let written = root.written();
    let left: Vec<&Path> = written.iter().filter(is_left).map(PathBuf::as_path).collect();
    assert_eq!(left, [Path::new("etc/kata-cgroup-hook/config.toml.rpmsave")], "the administrator's settings stay");
}

/// The shell that runs `retire`.
fn retiring() -> Option<Pid> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_at_it = |pid: &i32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|&byte| byte == 0).any(|argument| argument == b"/usr/libexec/kata-cgroup-hook/retire")
    };
    pids.filter(is_at_it).map(Pid::from_raw).next()
}

/// Where systemd runs, it runs the timer, or does not.
#[track_caller]
fn assert_timer_runs(expected: bool) {
    if Path::new("/run/systemd/system").is_dir() {
        let is_active = Command::new("systemctl").args(["is-active", "--quiet", TIMER]).status().unwrap().success();
        assert_eq!(is_active, expected, "{TIMER}");
    }
}

#[test]
fn the_rpm_has_the_version_of_the_sources() {
    let spec = include_str!("../packaging/rpm/kata-cgroup-hook.spec");
    let version = format!("\nVersion:        {}\n", env!("CARGO_PKG_VERSION"));
    assert!(spec.contains(&version) && spec.contains(&format!(" - {}-1\n", env!("CARGO_PKG_VERSION"))), "{spec}");
}

#[test]
fn lintian_finds_nothing_but_what_is_argued_for() {
    let Some(packages) = packages() else { return };
    let mut lintian = Command::new("lintian");
    lintian.args(["--fail-on", "error,warning,info,pedantic", "--display-info", "--pedantic"]);
    // It leaves something there.
    let temporary = tempfile::tempdir().unwrap();
    lintian.env("TMPDIR", temporary.path());
    let Some((is_well, said)) = judged(lintian.arg(&revisions(&packages, ".deb")[0])) else { return };
    assert!(is_well, "{said}");
}

#[test]
fn rpmlint_finds_nothing_but_what_is_argued_for() {
    let Some(packages) = packages() else { return };
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/rpm");
    let mut rpmlint = Command::new("rpmlint");
    rpmlint
        .arg("-c")
        .arg(ours.join("rpmlint.toml"))
        .arg(&revisions(&packages, ".rpm")[0])
        .arg(ours.join("kata-cgroup-hook.spec"));
    let Some((is_well, said)) = judged(&mut rpmlint) else { return };
    // It fails for an error only.
    assert!(is_well && said.contains("; 0 errors, 0 warnings"), "{said}");
}

/// Whether a linter is content, and what it says; nothing, having said so, where it is not installed.
fn judged(linter: &mut Command) -> Option<(bool, String)> {
    match linter.output() {
        Ok(output) => Some((output.status.success(), said(&output))),
        Err(_) => skipped(&format!("no {}", linter.get_program().to_string_lossy())),
    }
}
