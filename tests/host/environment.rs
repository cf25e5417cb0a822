//! The environment's own promises: what every other test here takes for granted.

use crate::testenv::*;

#[test]
fn a_sandbox_has_two_named_vcpu_threads_and_the_files_that_kata_writes() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let names: Vec<String> = threads_of(sandbox.pid).into_iter().map(|thread| thread.name).collect();
    assert!(names.contains(&"CPU 0/TCG".to_owned()) && names.contains(&"CPU 1/TCG".to_owned()), "{names:?}");
    assert_eq!(sandbox.processes().len(), 3, "QEMU, virtiofsd and its child");
    assert!(sandbox.runtime_dir("vm").join("pid").is_file());
    assert!(sandbox.runtime_dir("sbs").join("persist.json").is_file());
}

#[test]
fn a_kvm_sandbox_has_vcpu_threads_that_no_name_tells_apart() {
    let Some(env) = Env::with_kvm() else { return };
    let sandbox = env.kvm_sandbox().guest(Guest::Spinning).start();
    assert_eq!(sandbox.vcpus().len(), 2);
    let vcpus = sandbox.vcpu_threads();
    for thread in threads_of(sandbox.pid).iter().filter(|thread| vcpus.contains(&thread.tid)) {
        assert_eq!(thread.name, "qemu-system-x86");
    }
}

#[test]
fn an_unplugged_vcpu_leaves_its_descriptor_behind() {
    let Some(env) = Env::with_kvm() else { return };
    let sandbox = env.kvm_sandbox().guest(Guest::Unplugging).start();
    sandbox.qmp().plug_cpu_2();
    assert_eq!(sandbox.vcpus().len(), 3);
    sandbox.qmp().unplug_cpu_2();
    assert_eq!(sandbox.vcpus().len(), 2);
    assert_eq!(sandbox.vcpu_descriptors(), 3);
}

#[test]
fn dropping_an_environment_ends_its_processes_and_removes_its_groups() {
    let Some(env) = Env::new() else { return };
    let (name, dir, path) = (env.name.clone(), env.dir.clone(), format!("{}/pod/x", env.top()));
    let groups = premake(&path);
    let sandbox = env.sandbox().virtiofsd().start();
    let processes = sandbox.processes();
    for group in &groups {
        group.take_in(sandbox.pid);
        assert!(group.holds(sandbox.pid), "{group:?}");
    }
    assert!(!env.dump().lines_with(&format!("{path} holds threads of {}", sandbox.pid)).is_empty());
    drop(sandbox);
    drop(env);
    assert!(!everywhere(&format!("/{name}")).iter().any(Group::exists));
    assert!(!dir.exists());
    wait_until("the processes' end", || !processes.iter().any(|pid| is_alive(*pid)));
}

#[test]
fn two_dumps_of_a_host_at_rest_are_the_same() {
    let Some(env) = Env::new() else { return };
    let _sandbox = env.sandbox().virtiofsd().start();
    let before = env.dump();
    std::thread::sleep(std::time::Duration::from_millis(300));
    before.assert_same(&env.dump(), "nobody touched anything");
}

#[test]
fn qemu_can_be_a_child_of_the_shim() {
    let Some(env) = Env::new() else { return };
    let mut shim = env.shim(&env.name);
    let sandbox = env.sandbox().start_in(&mut shim);
    let parent = std::fs::read_to_string(format!("/proc/{}/status", sandbox.pid)).unwrap();
    assert!(parent.contains(&format!("PPid:\t{}\n", shim.pid())), "{parent}");
}

#[test]
fn qemu_can_run_in_a_pid_namespace_of_its_own() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().wrapped_in(&["unshare", "--pid", "--fork", "--kill-child"]).start();
    let status = std::fs::read_to_string(format!("/proc/{}/status", sandbox.pid)).unwrap();
    assert!(status.contains(&format!("NSpid:\t{}\t1\n", sandbox.pid)), "{status}");
}

#[test]
fn a_log_line_is_taken_apart() {
    let line = LogLine::parse(r#"<30>kata-cgroup-hook[12]: stage=poststart moved=5 msg="a \"b\" \\" last=-"#);
    assert_eq!((line.priority, line.pid), (30, 12));
    assert_eq!(line.keys(), ["stage", "moved", "msg", "last"]);
    assert_eq!((line.get("msg"), line.get("last")), (r#"a \"b\" \\"#, "-"));
}
