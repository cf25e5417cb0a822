//! podman with the hooks.d files as they are shipped: an engine and its runtime fire the hook, for a container that is a VM's and
//! for one that is none.
//!
//! It installs the hook where the files say it is and writes its configuration, so it runs in a virtual machine of the tests' own
//! only. A Kata that podman could start is not to be had; a real QEMU stands beside the container and bears its id, as Kata's does.

mod testenv;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use testenv::*;

/// Where hooks.d/*.json say that the hook is, and where it looks for its configuration.
const INSTALLED: &str = "/usr/libexec/oci/hooks.d/kata-cgroup-hook";
const CONFIG: &str = "/etc/kata-cgroup-hook/config.toml";

impl Podman<'_> {
    /// A container that sleeps, in this environment's own group; its id.
    fn create(&self) -> String {
        let parent = self.cgroup_parent();
        self.run(&["create", "--network", "none", "--cgroup-parent", &parent, "localhost/busybox", "/bin/sleep", "1000"])
    }

    /// The cgroupsPath that podman gave it when it started.
    fn cgroups_path(&self, id: &str) -> String {
        let config = self.run(&["inspect", "--format", "{{.OCIConfigPath}}", id]);
        let config: Value = serde_json::from_str(&fs::read_to_string(config).unwrap()).unwrap();
        config["linux"]["cgroupsPath"].as_str().unwrap().to_owned()
    }
}

/// An image with a shell and nothing else.
fn import_image(podman: &Podman) {
    let root = podman.env.dir.join("image");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    symlink("busybox", root.join("bin/sleep")).unwrap();
    let tar: PathBuf = podman.env.dir.join("image.tar");
    assert!(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status().unwrap().success());
    podman.run(&["import", "--quiet", tar.to_str().unwrap(), "localhost/busybox"]);
}

/// Where a cgroupsPath of podman's leads, as the documentation of the hook has it.
fn expected_group(cgroups_path: &str) -> String {
    if let [slice, prefix, name] = cgroups_path.split(':').collect::<Vec<_>>()[..] {
        return format!("/{slice}/kata_{prefix}-{name}.scope");
    }
    let (dir, base) = cgroups_path.rsplit_once('/').unwrap();
    format!("{dir}/kata_{base}")
}

#[test]
fn the_shipped_hooks_place_and_release_the_vm_of_a_container_and_are_silent_for_one_without() {
    if std::env::var_os("KCH_TEST_VM").is_none() {
        return skipped("not in a test VM").unwrap_or_default();
    }
    let Some(env) = Env::new() else { return };
    let runtimes = Podman::runtimes();
    fs::create_dir_all(Path::new(INSTALLED).parent().unwrap()).unwrap();
    fs::copy(hook_binary(), INSTALLED).unwrap();
    set_mode(Path::new(INSTALLED), 0o755);
    fs::create_dir_all(Path::new(CONFIG).parent().unwrap()).unwrap();
    write_file(Path::new(CONFIG), 0o644, &env.roots());

    import_image(&Podman { env: &env, runtime: runtimes[0] });
    for runtime in runtimes {
        let podman = Podman { env: &env, runtime };
        let plain = podman.create();
        podman.run(&["start", &plain]);
        podman.run(&["rm", "--force", "--time", "0", &plain]);
        assert!(env.log.take().is_empty(), "{runtime}: a container that is no VM's");

        let id = podman.create();
        let sandbox = env.sandbox().named(&id).start();
        podman.run(&["start", &id]);
        sandbox.assert_placed(&expected_group(&podman.cgroups_path(&id)));
        let log = env.log.take();
        let results: Vec<(&str, &str)> = log.iter().map(|line| (line.get("stage"), line.get("result"))).collect();
        assert_eq!(results, [("createRuntime", "placed"), ("poststart", "unchanged")], "{runtime}");
        assert!(log.iter().all(|line| line.get("sandbox") == id && line.get("vmm") == format!("qemu:{}", sandbox.pid)));

        podman.run(&["rm", "--force", "--time", "0", &id]);
        let log = env.log.take();
        let results: Vec<(&str, &str)> = log.iter().map(|line| (line.get("stage"), line.get("result"))).collect();
        assert_eq!(results, [("poststop", "released")], "{runtime}");
        sandbox.assert_nowhere_below("kata_");
    }
    Podman::wait_for_the_end(&env);
    fs::remove_file(INSTALLED).unwrap();
    fs::remove_file(CONFIG).unwrap();
}
