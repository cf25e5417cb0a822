//! docs/installation.md: what it shows for a host without packages is run here as it stands there.
//!
//! It installs, so in a virtual machine of the tests' own only, and one with systemd, as it has the timer enabled.

mod testenv;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use testenv::*;

const INSTALLATION: &str = include_str!("../docs/installation.md");
const CONFIG: &str = "/etc/kata-cgroup-hook/config.toml";
const USR: [&str; 2] = ["/usr/libexec/oci/hooks.d/kata-cgroup-hook", "/usr/share/containers/oci/hooks.d"];
const PODMAN: &str = "/etc/containers/containers.conf.d/50-kata-cgroup-hook.conf";
const OWN: [&str; 2] = ["/opt/kata-cgroup-hook/kata-cgroup-hook", "/etc/containers/oci/hooks.d"];

/// What is shown below a heading in this language, block by block.
fn blocks(heading: &str, language: &str) -> Vec<&'static str> {
    let is_it = |section: &&str| section.trim_start_matches('#').trim_start().starts_with(heading);
    let section = INSTALLATION.split("\n#").find(is_it).unwrap();
    let blocks = section.split("```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n')).collect()
}

fn commands(heading: &str) -> Vec<&'static str> {
    blocks(heading, "sh")
}

/// The sources after `make build`, and podman on storage of this environment's.
struct Host<'e> {
    env: &'e Env,
    podman: Podman<'e>,
}

impl Host<'_> {
    fn new(env: &Env) -> Host<'_> {
        for dir in ["build", "bin", "image/bin"] {
            fs::create_dir_all(env.dir.join(dir)).unwrap();
        }
        fs::copy(hook_binary(), env.dir.join("build/kata-cgroup-hook")).unwrap();
        for dir in ["hooks.d", "packaging"] {
            symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), env.dir.join(dir)).unwrap();
        }
        fs::copy("/bin/busybox", env.dir.join("image/bin/busybox")).unwrap();
        symlink("busybox", env.dir.join("image/bin/sleep")).unwrap();
        let podman = Podman::new(env, Podman::runtimes()[0]);
        let words: Vec<String> = podman.command().get_args().map(|word| format!("'{}'", word.to_str().unwrap())).collect();
        let wrapper = format!("#!/bin/sh\nexec /usr/bin/podman {} \"$@\"\n", words.join(" "));
        write_file(&env.dir.join("bin/podman"), 0o755, &wrapper);
        Host { env, podman }
    }

    fn output(&self, commands: &str) -> Output {
        let own = Path::new(OWN[0]).parent().unwrap().display();
        let path = format!("{}:{}:{own}", self.env.dir.join("bin").display(), std::env::var("PATH").unwrap());
        Command::new("sh").args(["-euc", commands]).current_dir(&self.env.dir).env("PATH", path).output().unwrap()
    }

    /// What the commands print.
    #[track_caller]
    fn run(&self, commands: &str) -> String {
        let output = self.output(commands);
        assert!(output.status.success(), "{commands}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A container with a VM of its name is placed by the hook that is installed at `binary`.
    fn assert_fired(&self, binary: &str) {
        let (parent, image) = (self.podman.cgroup_parent(), self.env.dir.join("image").display().to_string());
        let create = ["podman create --network none --cgroup-parent", &parent, "--rootfs", &image, "/bin/sleep 1000"];
        let id = self.run(&create.join(" ")).trim().to_owned();
        let sandbox = self.env.sandbox().named(&id).start();
        self.run(&format!("podman start {id}"));
        let named = self.run(&commands("podman")[0].replace("NAME", &id));
        assert!(named.lines().count() >= 2 && named.lines().all(|line| line == format!("{binary}\"")), "{named}");
        let seen = self.run(commands("3.")[1]);
        assert!(seen.lines().any(|line| line.contains(&id) && line.ends_with(" placed")), "{seen}");
        self.run(&format!("podman rm --force --time 0 {id}"));
        sandbox.assert_nowhere_below("kata_");
    }
}

#[test]
fn by_hand_it_is_installed_looked_at_and_taken_away_as_the_documentation_shows() {
    if std::env::var_os("KCH_TEST_VM").is_none() {
        return skipped("not in a test VM").unwrap_or_default();
    }
    if !Path::new("/run/systemd/system").is_dir() {
        return skipped("no systemd").unwrap_or_default();
    }
    let Some(env) = Env::new() else { return };
    let host = Host::new(&env);
    fs::create_dir_all(Path::new(CONFIG).parent().unwrap()).unwrap();
    write_file(Path::new(CONFIG), 0o644, &env.roots());

    host.run(commands("1.")[0]);
    let timer = "systemctl is-active kata-cgroup-hook-reconcile.timer || true";
    assert_eq!(host.run(timer), "active\n");
    let checked = host.output(commands("3.")[0]);
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(said.contains("with hooks.d") && checked.status.success(), "{said}");
    host.assert_fired(USR[0]);
    host.run(commands("4.")[0]);
    assert_eq!(host.run(timer), "inactive\n");
    assert!(!Path::new(USR[0]).exists() && fs::read_dir(USR[1]).unwrap().next().is_none());

    host.run(commands("1.")[1]);
    fs::create_dir_all(Path::new(PODMAN).parent().unwrap()).unwrap();
    write_file(Path::new(PODMAN), 0o644, blocks("podman", "toml")[0]);
    host.assert_fired(OWN[0]);
    fs::remove_file(PODMAN).unwrap();
    fs::remove_dir_all(OWN[1]).unwrap();
    fs::remove_dir_all(Path::new(OWN[0]).parent().unwrap()).unwrap();
    fs::remove_file(CONFIG).unwrap();
    Podman::wait_for_the_end(&env);
}
