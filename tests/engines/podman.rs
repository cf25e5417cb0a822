//! podman with the hooks.d files as they are shipped, in the directory that it reads by itself.
//!
//! With crun and runc: a container that is no VM's, and one that a VM stands beside and bears its id, as Kata's does. With the
//! stand-in for Kata: the runtime itself runs the hooks but for poststop, which podman runs.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::Value;

use crate::kata::{Generation, Runtime};
use crate::node::{self, Node};
use crate::testenv::*;

const STOP: [&str; 4] = ["rm", "--force", "--time", "0"];

impl Podman<'_> {
    /// A container that sleeps, in this environment's own group and with a limit of 1.5 CPU; its id.
    fn create(&self) -> String {
        let parent = self.cgroup_parent();
        let limits = ["--cpu-period", "100000", "--cpu-quota", "150000"];
        let args = ["create", "--network", "none", "--cgroup-parent", &parent];
        self.run(&[&args[..], &limits, &["localhost/busybox", "/bin/sleep", "1000"]].concat())
    }

    fn stop(&self, id: &str) {
        self.run(&[&STOP[..], &[id]].concat());
    }

    /// The cgroupsPath that podman gave it when it started.
    fn cgroups_path(&self, id: &str) -> String {
        let config = self.run(&["inspect", "--format", "{{.OCIConfigPath}}", id]);
        let config: Value = serde_json::from_str(&fs::read_to_string(config).unwrap()).unwrap();
        config["linux"]["cgroupsPath"].as_str().unwrap().to_owned()
    }
}

/// An image with a shell and nothing else.
pub(crate) fn import_image(podman: &Podman) {
    let root = podman.env.dir.join("image");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    symlink("busybox", root.join("bin/sleep")).unwrap();
    let tar = podman.env.dir.join("image.tar");
    assert!(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status().unwrap().success());
    // As a pod's own container, it sleeps.
    podman.run(&["import", "--quiet", "--change", "CMD [\"/bin/sleep\",\"1000\"]", tar.to_str().unwrap(), "localhost/busybox"]);
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
    let Some(env) = node::in_a_vm() else { return };
    // A QEMU of the test's own has its files in this environment.
    let node = Node::install_with(&env, &env.roots());
    import_image(&Podman::new(&env, Podman::runtimes()[0]));
    for runtime in Podman::runtimes() {
        for &driver in Driver::all() {
            let what = format!("{runtime}, {driver:?}");
            let podman = Podman { driver, ..Podman::new(&env, runtime) };
            let plain = podman.create();
            podman.run(&["start", &plain]);
            podman.stop(&plain);
            assert!(node.runs().is_empty(), "{what}: a container that is no VM's");

            let id = podman.create();
            let sandbox = env.sandbox().named(&id).start();
            podman.run(&["start", &id]);
            sandbox.assert_placed(&expected_group(&podman.cgroups_path(&id)));
            node.assert_ran(&[("createRuntime", "placed"), ("poststart", "unchanged")], &id, &what);

            podman.stop(&id);
            node.assert_ran(&[("poststop", "released")], &id, &what);
            sandbox.assert_nowhere_below("kata_");
        }
    }
    Podman::wait_for_the_end(&env);
}

#[test]
fn the_shipped_hooks_place_what_kata_1_starts_and_leave_nothing_of_it() {
    place_and_release(Generation::Go1, &[("poststart", "placed")]);
}

#[test]
fn the_shipped_hooks_place_what_kata_3_starts_and_leave_nothing_of_it() {
    place_and_release(Generation::Go3, &[("createRuntime", "placed"), ("poststart", "unchanged")]);
}

#[test]
fn the_shipped_hooks_place_what_runtime_rs_starts_and_leave_nothing_of_it() {
    place_and_release(Generation::RuntimeRs, &[("createRuntime", "placed"), ("poststart", "unchanged")]);
}

fn place_and_release(generation: Generation, expected: &[(&str, &str)]) {
    let Some(env) = node::in_a_vm() else { return };
    let node = Node::install(&env);
    let kata = Runtime::installed(&env, generation);
    for &driver in Driver::all() {
        let podman = Podman { driver, ..Podman::new(&env, kata.program().to_str().unwrap()) };
        if driver == Driver::all()[0] {
            import_image(&podman);
        }
        let what = format!("{driver:?}");
        let id = podman.create();
        podman.run(&["start", &id]);
        let sandbox = kata.sandbox(&id);
        let group = expected_group(&podman.cgroups_path(&id));
        sandbox.assert_placed(&group);
        assert_eq!(limits_at(&group).quota, Some(150_000), "{what}");
        node.assert_ran(expected, &id, &what);

        podman.stop(&id);
        node.assert_ran(&[("poststop", "released")], &id, &what);
        assert_eq!(kata.warnings(), "", "{what}");
        kata.assert_gone(&sandbox);
        node::assert_no_record();
        node.assert_no_groups(&what);
    }
    Podman::wait_for_the_end(&env);
}
