//! packaging/retire, with everything that it names in a directory of the test's own and a program that notes how it is called
//! instead of the hook.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kata_cgroup_hook::config::Config;
use tempfile::TempDir;

const SCRIPT: &str = include_str!("../../packaging/retire");
const STAGES: [&str; 3] = ["createRuntime", "poststart", "poststop"];

struct Host(TempDir);

impl Host {
    fn new() -> Host {
        let host = Host(tempfile::tempdir().unwrap());
        for dir in [
            "usr/libexec/oci/hooks.d",
            "usr/share/containers/oci/hooks.d",
            "etc/kata-cgroup-hook",
            "etc/containerd",
            "etc/containers/oci/hooks.d",
            "bin",
        ] {
            fs::create_dir_all(host.path(dir)).unwrap();
        }
        for stage in STAGES {
            host.write(&json_of(stage), &host.json(stage, true));
        }
        let notes = host.path("called");
        // What it finds at the moment that it is called, and the settings it is given.
        let stand_in = format!(
            "#!/bin/sh\nif [ \"$1\" = check ]; then cat '{host}/checked' 2>/dev/null; exit; fi\n\
             echo \"$1 $2 $3\" >>{notes}\ngrep -c '\"always\": true' {host}/usr/share/containers/oci/hooks.d/*.json >>{notes}\n\
             cat \"$4\" >>{notes}\n",
            host = host.0.path().display(),
            notes = notes.display(),
        );
        host.write("usr/libexec/oci/hooks.d/kata-cgroup-hook", &stand_in);
        make_executable(&host.path("usr/libexec/oci/hooks.d/kata-cgroup-hook"));
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn json(&self, stage: &str, always: bool) -> String {
        let hook = self.path("usr/libexec/oci/hooks.d/kata-cgroup-hook");
        let text = format!(
            "{{\n  \"hook\": {{ \"path\": \"{}\" }},\n  \"when\": {{ \"always\": {always} }},\n  \"stages\": [\"{stage}\"]\n}}\n",
            hook.display()
        );
        assert!(include_str!("../../hooks.d/kata-cgroup-hook-poststop.json").contains("\n  \"when\": { \"always\": true },\n"));
        text
    }

    /// Runs it with all paths below this directory, whose `bin` comes first among the programs.
    fn retire(&self, args: &[&str]) -> Output {
        let top = self.0.path().display();
        let mut script = SCRIPT.replace("engines_notice=5", "engines_notice=0");
        for dir in ["/usr/", "/etc/", "/run/"] {
            assert!(script.contains(dir), "{dir}");
            script = script.replace(dir, &format!("{top}{dir}"));
        }
        self.write("retire", &script);
        let path = format!("{top}/bin:{}", std::env::var("PATH").unwrap());
        Command::new("sh").arg(self.path("retire")).args(args).env("TMPDIR", self.0.path()).env("PATH", path).output().unwrap()
    }

    fn assert_jsons(&self, always: bool) {
        for stage in STAGES {
            assert_eq!(self.read(&json_of(stage)), self.json(stage, always), "{stage}");
        }
        assert_eq!(fs::read_dir(self.path("usr/share/containers/oci/hooks.d")).unwrap().count(), STAGES.len());
    }
}

fn json_of(stage: &str) -> String {
    format!("usr/share/containers/oci/hooks.d/kata-cgroup-hook-{stage}.json")
}

fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[track_caller]
fn assert_well(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty() && output.stdout.is_empty(), "{output:?}");
}

#[test]
fn no_json_applies_to_a_container_any_more_when_all_is_released() {
    let host = Host::new();
    assert_well(&host.retire(&[]));
    host.assert_jsons(false);
    let called = host.read("called");
    assert!(called.starts_with("reconcile --release-all --config\n"), "{called}");
    assert_eq!(called.matches(".json:0\n").count(), STAGES.len(), "{called}");
    // Once more, as after a removal that was broken off.
    assert_well(&host.retire(&[]));
    host.assert_jsons(false);
}

#[test]
fn it_can_be_undone() {
    let host = Host::new();
    assert_well(&host.retire(&[]));
    assert_well(&host.retire(&["--undo"]));
    host.assert_jsons(true);
}

#[test]
fn everything_is_released_with_the_administrators_settings_whatever_their_mode_is() {
    for mode in ["mode = \"observe\"", "mode=\"off\"", "  \"mode\" = 'observe' # for now", "", "#mode = \"enforce\""] {
        let host = Host::new();
        host.write(
            "etc/kata-cgroup-hook/config.toml",
            &format!("deadline-ms = 700\n{mode}\nstate-dir = \"/s\"\n[v2]\ndomain = \"pod\"\n"),
        );
        assert_well(&host.retire(&[]));
        let called = host.read("called");
        let settings = Config::parse(&called[called.find("mode = ").unwrap()..]).unwrap();
        assert_eq!(settings.mode, kata_cgroup_hook::config::Mode::Enforce, "{called}");
        assert_eq!((settings.deadline.as_millis(), settings.state_dir.to_str()), (700, Some("/s")), "{called}");
    }
}

#[test]
fn where_the_configuration_is_wrong_the_defaults_hold() {
    let host = Host::new();
    host.write("etc/kata-cgroup-hook/config.toml", "deadline = 3\n");
    host.write("checked", "ok       rights     root\nfailure  config     wrong in line 2\n");
    assert_well(&host.retire(&[]));
    assert!(host.read("called").ends_with(":0\nmode = \"enforce\"\n"), "{}", host.read("called"));
}

#[test]
fn it_refuses_where_a_file_of_the_administrators_names_the_binary() {
    let of_engines = "etc/containers/oci/hooks.d/own.json";
    // containerd itself writes its strings in single quotes.
    for (quote, spec) in [("\"", "etc/containerd/spec.json"), ("'", "etc/containerd/spec.json"), ("\"", of_engines)] {
        let host = Host::new();
        let base = format!("  base_runtime_spec = {quote}{}{quote}\n", host.path("etc/containerd/spec.json").display());
        host.write("etc/containerd/config.toml", &format!("[plugins.x.containerd.runtimes.kata]\n{base}"));
        host.write(spec, &host.json("poststart", true));
        let output = host.retire(&[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(1) && said.contains(&format!("still registered by {}", host.path(spec).display())),
            "{said}"
        );
        host.assert_jsons(true);
        assert_eq!(host.read("called"), "");
        // One that switches a stage off names it, too.
        host.write(spec, &host.json("poststart", false));
        assert_well(&host.retire(&[]));
    }
}

#[test]
fn one_that_is_interrupted_before_the_release_leaves_everything_as_it_was() {
    let host = Host::new();
    host.write("bin/sleep", "#!/bin/sh\nkill -TERM $PPID\n");
    make_executable(&host.path("bin/sleep"));
    let output = host.retire(&[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    host.assert_jsons(true);
    assert_eq!(host.read("called"), "");
}
