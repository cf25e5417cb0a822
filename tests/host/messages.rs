//! What a person is likely to meet, met for real: it says what, where and why, and docs/troubleshooting.md has it.

use std::fs;

use serde_json::json;

use crate::testenv::*;

/// What was said, what it must name, and the message of the table that it is.
type Met<'t> = (String, &'t str, &'t str);

#[track_caller]
fn assert_explained<'t>(met: impl IntoIterator<Item = Met<'t>>) {
    for (said, name, message) in met {
        assert!(manual::explained().contains(message), "not in docs/troubleshooting.md: {message}");
        assert!(manual::holds(&said, message), "not {message:?}: {said}");
        assert!(said.contains(name), "no {name} in it: {said}");
    }
}

/// The reason in the log of a run that ended so.
#[track_caller]
fn logged(hook: Hook, result: &str) -> String {
    hook.run().succeeded().logged(result).get("msg").to_owned()
}

#[test]
fn a_hook_that_is_called_wrongly() {
    let Some(env) = Env::new() else { return };
    let refused = |args: &[&str]| env.hook("").only_args(args).run().failed_with(2).stderr;
    let see_help = "…; kata-cgroup-hook --help shows the command line";
    assert_explained([
        (
            refused(&["startContainer"]),
            "createRuntime",
            "startContainer runs inside the container, where no host cgroup is: register createRuntime instead",
        ),
        (refused(&["start"]), "poststart", "unknown stage …: one of …"),
        (refused(&[]), "createRuntime", "no stage given: one of …"),
        (refused(&["prestart", "--verbose"]), "--verbose", see_help),
        (refused(&["prestart", "--config"]), "--config", see_help),
        (refused(&["check", "--tree"]), "--tree", "--… is no option of …; kata-cgroup-hook --help shows the command line"),
    ]);
}

#[test]
fn a_state_or_a_configuration_that_is_none() {
    let Some(env) = Env::new() else { return };
    let failed = |state: &str| env.hook("createRuntime").state(state).run().failed_with(1).stderr;
    assert_explained([
        (failed(""), "--state FILE", "nothing came: the engine writes it to stdin (by hand, use --state FILE)"),
        (failed("{\"id\":"), "EOF", "not JSON that can be one: …"),
        (failed("{\"id\":\"x\"}"), "bundle", "no … in it"),
    ]);
    env.configure("mod = \"off\"\n");
    assert_explained([(failed("{}"), "`mod`, expected one of `mode`", "wrong in line …: …")]);
    env.configure("deadline-ms = 1\n");
    assert_explained([(failed("{}"), "config.toml", "deadline-ms = …: not within 100..60000")]);
    set_mode(&env.config(), 0o666);
    let open_to_all = "owned by uid … with mode …: only root may write it (chown root, chmod go-w)";
    assert_explained([(failed("{}"), "config.toml", open_to_all)]);
}

#[test]
fn a_vmm_that_is_not_found_or_not_believed() {
    let Some(env) = Env::new() else { return };
    let bundle = env.bundle();
    let dir = env.make_runtime_dir("vm", &env.name);
    let hook = || env.hook("createRuntime").state(bundle.state(0));
    let path = dir.to_str().unwrap();
    let absent = "no VMM yet, or none any more: … leads to none that runs; the next run looks again";
    assert_explained([(logged(hook(), "not-yet"), path, absent)]);
    // Another program than a VMM that is known.
    let stranger = Process::sleeping();
    write_file(&dir.join("pid"), 0o600, &stranger.pid().to_string());
    let file = format!("{path}/pid");
    let unknown = "process … named by …: runs …, which is no VMM or helper that is known: if it is one, add it as a [[vmm]]";
    assert_explained([(logged(hook(), "refused"), file.as_str(), unknown)]);
    set_mode(&dir, 0o777);
    let open_to_all = "… can be written by others than root: see who made it, then chown root and chmod go-w";
    assert_explained([(logged(hook(), "refused"), path, open_to_all)]);
}

#[test]
fn a_placing_that_the_kernel_or_the_host_refuses() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let failed = |cpu| {
        let bundle = env.bundle().cpu(cpu);
        env.hook("prestart").state(bundle.state(sandbox.pid)).run().failed_with(1).stderr
    };
    assert_explained([
        (failed(json!({ "quota": 50_000, "period": 2_000_000 })), "EINVAL", "write … to …: …"),
        (failed(json!({ "cpus": "777" })), "cpuset.cpus", "none of them is in … (…): ask for some of those, or widen that"),
    ]);
    let bundle = env.bundle();
    let hidden = hierarchies().map(|hierarchy| format!("umount {}", hierarchy.mount)).collect::<Vec<_>>().join(" && ");
    let hook = env.hook("prestart").state(bundle.state(sandbox.pid));
    let hook = hook.under(["unshare", "--mount", "sh", "-c", &format!("{hidden} && exec \"$@\""), "sh"]);
    let without_cpu = "nothing done: no cpu controller is mounted to limit the vCPU threads with";
    assert_explained([(logged(hook, "refused"), "cpu", without_cpu)]);
}

#[test]
fn a_command_without_rights_or_for_nobody() {
    let Some(env) = Env::new() else { return };
    let failed = |hook: Hook| hook.run().failed_with(1).stderr;
    let as_stranger = |word: &str| failed(env.hook(word).under(["unshare", "--user"]));
    assert_explained([
        (as_stranger("reconcile"), "root", "run it as root of the host: the records and groups of all sandboxes are root's"),
        (
            as_stranger("status"),
            "root",
            "not root of the host: its records, its VMs and which groups are ours cannot be seen; run it as root",
        ),
        (failed(env.hook("status").arg("no-such")), "no-such", "no sandbox … on this host: kata-cgroup-hook status lists them"),
    ]);
    fs::create_dir(env.state_dir()).unwrap();
    set_mode(&env.state_dir(), 0o777);
    let open_to_all = "owned by uid … with mode …: must be root's own; see who made it, then chown root and chmod 0700";
    let dir = env.state_dir();
    assert_explained([(failed(env.hook("reconcile")), dir.to_str().unwrap(), open_to_all)]);
}
