//! cgroup v2 hosts on which a sandbox cannot be placed: the container fails with the file, the value, the errno and what can be done
//! about it, and everything is as before.

use std::fs;

use serde_json::json;

use crate::testenv::*;

fn in_pod(env: &Env) {
    env.configure("[v2]\ndomain = \"pod\"\n");
}

/// Runs the hook where it must fail, and expects each of these in its one line.
#[track_caller]
fn assert_fails(hook: Hook, before: &Dump, env: &Env, said: &[&str]) {
    let run = hook.run().failed_with(1);
    for text in said {
        assert!(run.stderr.contains(text), "no {text:?} in {}", run.stderr);
    }
    run.logged("failed");
    before.assert_same(&env.dump(), &run.stderr);
}

#[test]
fn a_populated_group_that_would_have_to_pass_controllers_on() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    in_pod(&env);
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let pod = env.pod("cpu");
    pod.make();
    let tenant = Process::sleeping();
    pod.take_in(tenant.pid());
    env.watch(tenant.pid());
    let before = env.dump();
    let hook = || env.hook("prestart").state(bundle.state(sandbox.pid));
    let path = pod.path_on_host().display().to_string();
    let said = [path.as_str(), "holds processes", "cpu", "move the processes into a group below it", "domain = \"kata\""];
    assert_fails(hook(), &before, &env, &said);
    // What it says helps.
    let below = pod.child("tenant");
    below.mkdir().unwrap();
    below.take_in(tenant.pid());
    hook().run().succeeded().logged("placed");
    sandbox.release(&bundle).logged("released");
}

#[test]
fn a_group_that_a_killed_run_left_and_that_somebody_is_in_by_now() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    env.pod("cpu").make();
    let mirror = Group::new("cpu", &format!("/kata{}", env.pod("cpu").path));
    let lacking = [
        (mirror, "cgroup.subtree_control", "holds processes and does not pass cpu, cpuset"),
        (env.constrained("cpu"), "cgroup.type", "holds processes and so cannot be made threaded"),
    ];
    for (group, file, why) in lacking {
        let file = group.path_on_host().join(file);
        let strace = ["strace", "-f", "-o", "/dev/null", "-P", file.to_str().unwrap(), "-e", "trace=write"];
        let inject = ["-e", "inject=write:signal=KILL:when=1", "--"];
        let hook = || env.hook("prestart").state(bundle.state(sandbox.pid));
        assert_ne!(hook().under(strace.into_iter().chain(inject)).run().code, Some(0));
        let tenant = Process::sleeping();
        let home = Group::new("cpu", &place_of(tenant.pid(), "cpu").unwrap());
        group.take_in(tenant.pid());
        env.watch(tenant.pid());
        let before = env.dump();
        assert_fails(hook(), &before, &env, &[group.path_on_host().to_str().unwrap(), why]);
        home.take_in(tenant.pid());
        hook().run().succeeded().logged("placed");
        sandbox.release(&bundle).logged("released");
    }
}

#[test]
fn a_threaded_group_and_one_that_is_no_domain() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    in_pod(&env);
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let top = Group::new("cpu", &env.top());
    let (pod, other) = (env.pod("cpu"), top.child("other"));
    for group in [&top, &pod, &other] {
        group.mkdir().unwrap();
    }
    other.set("cgroup.type", "threaded");
    let hook = || env.hook("prestart").state(bundle.state(sandbox.pid));
    let path = pod.path_on_host().display().to_string();
    let top_path = top.path_on_host().display().to_string();
    // With a threaded group in it, `top` is a threaded domain, and no other group in it can be a domain.
    assert_eq!(pod.value("cgroup.type"), "domain invalid");
    assert_fails(hook(), &env.dump(), &env, &[&top_path, "domain threaded", "cgroup.type", "domain = \"kata\""]);
    pod.set("cgroup.type", "threaded");
    assert_fails(hook(), &env.dump(), &env, &[&top_path, "cgroup.type"]);
    assert!(path.starts_with(&top_path));
    // Outside of the pod none of that matters.
    env.configure("");
    hook().run().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
    sandbox.release(&bundle);
}

#[test]
fn a_subtree_control_that_refuses_a_controller() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let before = env.dump();
    let domain = env.constrained("cpu").parent().unwrap();
    let cases = [
        (domain.parent().unwrap(), "EBUSY", "it holds processes"),
        (domain.parent().unwrap(), "EINVAL", "realtime thread"),
        (domain.clone(), "EOPNOTSUPP", "threaded groups can pass on cpu and cpuset only"),
        (domain, "ENOENT", "the group above it does not have or pass on"),
    ];
    for (group, errno, meaning) in cases {
        let file = group.path_on_host().join("cgroup.subtree_control").display().to_string();
        let strace = ["strace", "-f", "-o", "/dev/null", "-P", &file, "-e", "trace=write", "-e"].map(str::to_owned);
        let inject = [format!("inject=write:error={errno}"), "--".to_owned()];
        let hook = env.hook("prestart").state(bundle.state(sandbox.pid)).under(strace.into_iter().chain(inject));
        assert_fails(hook, &before, &env, &[&file, "+cpu", errno, meaning]);
    }
}

#[test]
fn a_root_without_the_cpu_controller_or_without_cpuset() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let cpu = Hierarchy::of("cpu").unwrap();
    if CONTROLLERS.iter().any(|controller| Hierarchy::of(controller) != Some(cpu)) {
        return skipped("no cgroup v2 that carries all controllers").unwrap_or_default();
    }
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let offers = |list: &str| {
        let file = env.dir.join("controllers");
        write_file(&file, 0o644, &format!("{list}\n"));
        let change = format!("mount --bind {} {}/cgroup.controllers && exec \"$@\"", file.display(), cpu.mount);
        env.hook("prestart").state(bundle.state(sandbox.pid)).under(["unshare", "--mount", "sh", "-c", &change, "sh"])
    };
    let before = env.dump();
    let run = offers("io memory pids").run().succeeded();
    assert!(run.logged("refused").get("msg").contains("no cpu controller"), "{run:#?}");
    before.assert_same(&env.dump(), "no cpu controller");
    let run = offers("cpu io memory pids").run().succeeded();
    assert!(run.logged("placed").get("msg").contains("no cpuset controller"), "{run:#?}");
    sandbox.assert_vcpus_in(&env.group());
    assert!(!env.constrained("cpu").has("cpuset.cpus"), "nothing was passed on that is not there");
}

#[test]
fn a_pod_whose_cpus_leave_none_that_the_sandbox_may_use() {
    let Some(env) = Env::with("cpuset", Version::V2) else { return };
    if Limits::none().cpus == "0" {
        return skipped("one CPU").unwrap_or_default();
    }
    let sandbox = env.sandbox().start();
    let bundle = env.bundle().cpu(json!({ "quota": 150_000, "period": 100_000, "cpus": "1" }));
    let pod = env.pod("cpuset");
    pod.make();
    pod.set("cpuset.cpus", "0");
    for setting in ["kata", "pod"] {
        env.configure(&format!("[v2]\ndomain = \"{setting}\"\n"));
        let before = env.dump();
        let file = pod.path_on_host().join("cpuset.cpus.effective").display().to_string();
        let hook = env.hook("prestart").state(bundle.state(sandbox.pid));
        assert_fails(hook, &before, &env, &["cpuset.cpus \"1\"", "none of them is in", &file, "(0)"]);
    }
}

#[test]
fn a_cgroup_namespace_in_which_the_vm_is_out_of_sight() {
    let Some(env) = Env::with("cpu", Version::V2) else { return };
    let mount = &Hierarchy::of("cpu").unwrap().mount;
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let inner = Group::new("cpu", &format!("{}/inner", env.top()));
    inner.make();
    let procs = inner.processes_file();
    let before = env.dump();
    // In a group that is the root of a cgroup namespace, with that namespace's own view of the hierarchy.
    let script = format!(
        "echo $$ > {} && exec unshare --cgroup --mount sh -c 'umount {mount} && mount -t cgroup2 cgroup2 {mount} && exec \"$@\"' sh \"$@\"",
        procs.display()
    );
    let hook = env.hook("prestart").state(bundle.state(sandbox.pid)).under(["sh", "-c", &script, "sh"]);
    assert_fails(hook, &before, &env, &[mount.as_str(), "holds processes", "move the processes into a group below it"]);
    // The host's own view, from within such a namespace, is as good as any, unless the mount holds everybody to his namespace.
    let script = format!("echo $$ > {} && exec unshare --cgroup \"$@\"", procs.display());
    let hook = env.hook("prestart").state(bundle.state(sandbox.pid)).under(["sh", "-c", &script, "sh"]);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    if mounts.lines().any(|line| line.contains(" cgroup2 ") && line.contains("nsdelegate")) {
        assert_fails(hook, &before, &env, &["cgroup.procs", "ENOENT", "cgroup namespace"]);
        sandbox.place(&bundle);
    } else {
        hook.run().succeeded().logged("placed");
    }
    sandbox.assert_placed(&env.group());
    sandbox.release(&bundle).logged("released");
    before.assert_same(&env.dump(), "released");
}
