//! Beside systemd: units that come, change and go leave what the hook made as it is, and the hook leaves systemd's as it is.
//!
//! A crate of its own, as it talks to the host's service manager; where that is none, or none of it, it says so.

mod testenv;

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use testenv::*;

/// There is one service manager, and one test at a time that makes it start anew.
static MANAGER: Mutex<()> = Mutex::new(());

/// A test's turn with the manager, in the end of which its slices go: systemd keeps one as long as nobody stops it.
struct Turn {
    slice: String,
    _alone: MutexGuard<'static, ()>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let slices = [format!("{}.slice", self.slice), format!("{}_sibling.slice", self.slice)];
        let _ = Command::new("systemctl").arg("stop").args(slices).output();
    }
}

/// Where systemd is process 1 and has made the hierarchies.
fn beside_systemd() -> Option<(Env, Turn)> {
    let alone = MANAGER.lock().unwrap_or_else(PoisonError::into_inner);
    let env = Env::new()?;
    if !Path::new("/run/systemd/system").is_dir() {
        return skipped("no systemd");
    }
    let turn = Turn { slice: env.slice(), _alone: alone };
    Some((env, turn))
}

fn systemctl(args: &[&str]) -> String {
    let output = Command::new("systemctl").args(args).output().unwrap();
    assert!(output.status.success(), "systemctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A unit of a test's own; it stops with the test.
struct Unit(String);

impl Unit {
    /// A scope in a slice, with a process in it and these properties; systemd makes the slice and those above it.
    fn scope(name: &str, slice: &str, properties: &[&str]) -> (Unit, Process) {
        let mut command = Process::command("systemd-run");
        command.args(["--scope", "--quiet", "--unit", name, "--slice", slice]);
        command.args(properties.iter().flat_map(|property| ["-p", property])).args(["--", "sleep", "1000"]);
        let process = Process::spawn(&mut command);
        let unit = Unit(format!("{name}.scope"));
        wait_until("a scope", || !unit.group().is_empty());
        (unit, process)
    }

    /// Its group in every hierarchy that it has one in, as systemd calls it.
    fn group(&self) -> String {
        systemctl(&["show", "-p", "ControlGroup", "--value", &self.0])
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        let _ = Command::new("systemctl").args(["stop", &self.0]).output();
    }
}

/// All that systemd may do to its units, one after the other.
fn everything_systemd_does(env: &Env, mut check: impl FnMut(&str)) {
    let slice = env.slice();
    let mut after_each = |what: &str| {
        // For whoever reads why a check failed.
        println!("after {what}");
        check(what);
    };
    systemctl(&["daemon-reload"]);
    after_each("daemon-reload");
    systemctl(&["daemon-reexec"]);
    after_each("daemon-reexec");
    let limits = ["CPUQuota=50%", "AllowedCPUs=0", "CPUWeight=77", "MemoryMax=64M"];
    let (other, process) = Unit::scope(&format!("{slice}_other"), &format!("{slice}_sibling.slice"), &limits);
    after_each("a new scope with limits of its own in a slice beside");
    let (inner, inner_process) = Unit::scope(&format!("{slice}_inner"), &format!("{slice}-a.slice"), &limits);
    after_each("a new scope with limits of its own in the same slice");
    systemctl(&["daemon-reload"]);
    after_each("daemon-reload with them");
    drop((inner, inner_process));
    after_each("the scope in the same slice has ended");
    systemctl(&["set-property", "--runtime", &format!("{slice}_sibling.slice"), "CPUQuota=30%"]);
    after_each("a slice beside with other limits");
    drop((other, process));
    systemctl(&["stop", &format!("{slice}_sibling.slice")]);
    after_each("a slice beside has been stopped");
}

/// What stands of a sandbox in the hook's own groups: members and values.
fn placed(env: &Env, sandbox: &Sandbox, group: &str) -> Vec<String> {
    sandbox.assert_placed(group);
    let name = group.rsplit('/').next().unwrap();
    env.dump().lines_with(name).into_iter().map(str::to_owned).collect()
}

/// A unit file that is there for as long as the test runs.
struct UnitFile(std::path::PathBuf);

impl UnitFile {
    fn write(name: &str, text: &str) -> UnitFile {
        let file = UnitFile(Path::new("/run/systemd/system").join(name));
        write_file(&file.0, 0o644, text);
        systemctl(&["daemon-reload"]);
        file
    }
}

impl Drop for UnitFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        let _ = Command::new("systemctl").arg("daemon-reload").output();
    }
}

#[test]
fn the_shipped_service_reconciles_with_no_more_rights_than_it_gives_itself() {
    let Some((env, _turn)) = beside_systemd() else { return };
    let shipped = include_str!("../packaging/systemd/kata-cgroup-hook-reconcile.service");
    let command = format!("ExecStart={} reconcile --config {}", hook_binary().display(), env.config().display());
    let ours = "ExecStart=/usr/libexec/oci/hooks.d/kata-cgroup-hook reconcile";
    assert!(shipped.contains(ours), "{shipped}");
    let name = format!("{}.service", env.name);
    let _file = UnitFile::write(&name, &shipped.replace(ours, &command));
    let mut sandbox = env.sandbox().virtiofsd().start();
    sandbox.place(&env.bundle());
    sandbox.qmp().plug_cpu_2();
    systemctl(&["start", &name]);
    sandbox.assert_placed(&env.group());
    assert_eq!(env.log.take().iter().map(|line| line.get("result").to_owned()).collect::<Vec<_>>(), ["placed"]);
    sandbox.kill();
    systemctl(&["start", &name]);
    env.assert_no_groups();
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(shipped_units()).output().unwrap();
    let complaints = String::from_utf8_lossy(&verified.stderr).into_owned();
    let complaints: Vec<&str> = complaints.lines().filter(|line| line.contains("kata-cgroup-hook-reconcile")).collect();
    // The binary is not installed here.
    assert!(complaints.iter().all(|line| line.contains("is not executable")), "{complaints:#?}");
}

fn shipped_units() -> [std::path::PathBuf; 2] {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd");
    ["service", "timer"].map(|kind| dir.join(format!("kata-cgroup-hook-reconcile.{kind}")))
}

#[test]
fn nothing_that_systemd_does_changes_a_sandbox_of_the_cgroupfs_driver() {
    let Some((env, _turn)) = beside_systemd() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    let before = placed(&env, &sandbox, &env.group());
    everything_systemd_does(&env, |what| assert_eq!(placed(&env, &sandbox, &env.group()), before, "after {what}"));
    env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded().logged("unchanged");
    sandbox.release(&bundle).logged("released");
    sandbox.assert_nowhere_below(&env.name);
}

#[test]
fn nothing_that_systemd_does_changes_a_sandbox_of_the_systemd_driver() {
    let Some((env, _turn)) = beside_systemd() else { return };
    let (id, slice) = (env.name.clone(), env.slice());
    let (_pod, _process) = Unit::scope(&format!("{slice}_pod"), &format!("{slice}-a.slice"), &["CPUQuota=180%"]);
    let sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle().cgroups_path(&format!("{slice}-a.slice:cri-containerd:{id}"));
    sandbox.place(&bundle);
    let group = format!("/{slice}.slice/{slice}-a.slice/kata_cri-containerd-{id}.scope");
    let before = placed(&env, &sandbox, &group);
    everything_systemd_does(&env, |what| assert_eq!(placed(&env, &sandbox, &group), before, "after {what}"));
    env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded().logged("unchanged");
    sandbox.release(&bundle).logged("released");
    sandbox.assert_nowhere_below(&id);
}

#[test]
fn nothing_that_systemd_does_changes_a_domain_in_a_slice() {
    let Some((env, _turn)) = beside_systemd() else { return };
    if Hierarchy::of("cpu").is_none_or(|cpu| cpu.version == Version::V1) {
        return skipped("no cpu on cgroup v2").unwrap_or_default();
    }
    env.configure("[v2]\ndomain = \"pod\"\n");
    let (id, slice) = (env.name.clone(), env.slice());
    let (_pod, _process) = Unit::scope(&format!("{slice}_pod"), &format!("{slice}-a.slice"), &["CPUQuota=180%"]);
    let sandbox = env.sandbox().start();
    let bundle = env.bundle().cgroups_path(&format!("{slice}-a.slice:cri-containerd:{id}"));
    sandbox.place(&bundle);
    let domain = Group::new("cpu", &format!("/{slice}.slice/{slice}-a.slice/kata_cri-containerd-{id}.scope"));
    let placed = || {
        assert_eq!(domain.child("vcpu").threads(), sandbox.vcpu_threads());
        assert_eq!(domain.processes(), sandbox.processes());
        env.dump().lines_with(&domain.path).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let before = placed();
    everything_systemd_does(&env, |what| assert_eq!(placed(), before, "after {what}"));
    env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded().logged("unchanged");
    sandbox.release(&bundle).logged("released");
    assert!(!domain.exists());
}

#[test]
fn a_units_path_is_that_of_the_slices_that_systemd_has_made() {
    let Some((env, _turn)) = beside_systemd() else { return };
    let (id, slice) = (env.name.clone(), env.slice());
    let nested = format!("{slice}-a-b.slice");
    let (scope, _process) = Unit::scope(&format!("{slice}_pod"), &nested, &["CPUQuota=180%", "MemoryMax=512M"]);
    let made = systemctl(&["show", "-p", "ControlGroup", "--value", &nested]);
    assert!(scope.group().starts_with(&made), "{} in {made}", scope.group());
    let sandbox = env.sandbox().start();
    let bundle = env.bundle().cgroups_path(&format!("{nested}:crio:{id}"));
    let before = env.dump();
    let differing =
        |one: &[String], other: &[String]| one.iter().filter(|line| !other.contains(line)).cloned().collect::<Vec<_>>();
    let of_systemd = |dump: &Dump| {
        // That a controller is there at all shows in files that nobody has written.
        let is_systemds =
            |line: &&str| line.contains(" = ") && !line.contains("kata") && !line.contains("cpuset.cpus.partition");
        let lines = dump.lines_with(&slice).into_iter().filter(is_systemds);
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    sandbox.place(&bundle);
    sandbox.assert_placed(&format!("{made}/kata_crio-{id}.scope"));
    let (before, all_after) = (of_systemd(&before), of_systemd(&env.dump()));
    // Hierarchies that systemd has made no group in are not its to have values in.
    let is_of_systemd = |line: &String| {
        let group =
            |line: &str| line.split(" = ").next().and_then(|path| path.rsplit_once('/')).map(|(group, _)| group.to_owned());
        before.iter().any(|known| group(known) == group(line))
    };
    let after: Vec<String> = all_after.into_iter().filter(is_of_systemd).collect();
    let none = Vec::<String>::new();
    assert_eq!(
        (differing(&before, &after), differing(&after, &before)),
        (none.clone(), none.clone()),
        "what systemd made has the values that systemd gave it"
    );
    sandbox.release(&bundle).logged("released");
    let after = of_systemd(&env.dump());
    assert_eq!((differing(&before, &after), differing(&after, &before)), (none.clone(), none));
    assert!(systemctl(&["is-active", &scope.0]) == "active");
}
