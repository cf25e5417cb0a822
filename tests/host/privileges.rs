//! What the hook must be allowed to do: with four capabilities of root's it does its whole job, and without any one of them it says
//! what it could not do.
//!
//! Root's program gets what the bounding set leaves (capabilities(7)), so that is what an engine or a unit takes away.

use std::fs;

use serde_json::json;

use crate::testenv::*;

const NEEDED: [&str; 4] = ["dac_override", "sys_admin", "sys_nice", "sys_ptrace"];

/// `hook` with these capabilities and no others, none that it could hand on, and no way to any more.
fn with_only(capabilities: impl IntoIterator<Item = &'static str>, hook: Hook<'_>) -> Hook<'_> {
    let bounding = capabilities.into_iter().fold("-all".to_owned(), |set, capability| format!("{set},+{capability}"));
    let bounding = format!("--bounding-set={bounding}");
    hook.under(["setpriv", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all", bounding.as_str(), "--"])
}

/// A VM whose vCPU threads KVM alone can tell, and a container that asks for everything there is a file for.
fn kvm_sandbox(env: &Env) -> (Sandbox<'_>, Bundle) {
    let bundle = env.bundle().cpu(json!({ "quota": 75_000, "period": 50_000, "shares": 300, "cpus": "0" }));
    (env.kvm_sandbox().virtiofsd().guest(Guest::Spinning).start(), bundle)
}

fn record_of(env: &Env) -> std::path::PathBuf {
    env.state_dir().join(format!("{}.json", env.name))
}

#[test]
fn four_capabilities_do_the_whole_job() {
    let Some(env) = Env::with_kvm() else { return };
    let (sandbox, bundle) = kvm_sandbox(&env);
    let limited = |stage: &str| with_only(NEEDED, env.hook(stage).state(bundle.state(sandbox.pid))).run();
    let run = limited("createRuntime").succeeded();
    assert_eq!(run.logged("placed").get("vcpus"), "2/2");
    sandbox.assert_placed(&env.group());
    assert_eq!(env.limits(), Limits::none().quota(75_000).period(50_000).shares(300).cpus("0"));

    Group::new("cpu", "/").take_in(sandbox.pid);
    assert_eq!(limited("reconcile").code, Some(0));
    sandbox.assert_placed(&env.group());

    let whole = |run: Run| (run.code, run.stdout, run.stderr);
    assert_eq!(whole(limited("check")), whole(env.hook("check").run()));

    // What is known of the groups without a record, they bear themselves.
    fs::remove_file(record_of(&env)).unwrap();
    limited("poststop").succeeded().logged("released");
    env.assert_no_groups();
}

/// A placing with all of them but this one.
fn placing_without(capability: &str, env: &Env, state: &str) -> Run {
    let others = NEEDED.into_iter().filter(|needed| *needed != capability);
    with_only(others, env.hook("createRuntime").state(state)).run()
}

#[test]
fn without_any_one_of_them_it_says_what_it_could_not_do() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle().cpu(json!({ "cpus": "0" }));
    let state = bundle.state(sandbox.pid);
    fs::create_dir(env.state_dir()).unwrap();
    set_mode(&env.state_dir(), 0o700);
    let before = env.dump();
    // The top of a hierarchy is r-xr-xr-x. On v2 another sandbox may have made /kata there already.
    env.configure("[v2]\ndomain = \"pod\"\n");
    let run = placing_without("dac_override", &env, &state).failed_with(1);
    assert!(run.stderr.contains(": create /") && run.stderr.contains("EACCES"), "{run:#?}");
    env.configure("");
    // A thread of somebody with more capabilities is not put into another cpuset (cap_task_setscheduler).
    let run = placing_without("sys_nice", &env, &state).failed_with(1);
    assert!(run.stderr.contains(": write ") && run.stderr.contains("EPERM"), "{run:#?}");
    // Nor is it told what such a process runs (ptrace(2), "Ptrace access mode checking").
    let run = placing_without("sys_ptrace", &env, &state).succeeded();
    assert!(run.logged("refused").get("msg").contains("EACCES"), "{run:#?}");
    before.assert_same(&env.dump(), "nothing done");
    // Groups bear no mark (xattr(7), "Trusted extended attributes"): the record alone knows them.
    placing_without("sys_admin", &env, &state).succeeded().logged("placed");
    let record = fs::read(record_of(&env)).unwrap();
    fs::remove_file(record_of(&env)).unwrap();
    sandbox.release(&bundle).logged("unchanged");
    sandbox.assert_placed(&env.group());
    fs::write(record_of(&env), record).unwrap();
    set_mode(&record_of(&env), 0o600);
    sandbox.release(&bundle).logged("released");
    env.assert_no_groups();
}
