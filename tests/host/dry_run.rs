//! `--dry-run`: the same plan, said and not done.

use std::collections::BTreeSet;
use std::path::Path;

use crate::testenv::*;

#[test]
fn a_dry_run_says_what_the_next_run_does_and_does_nothing() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let hook = env.hook("prestart").state(env.bundle().state(sandbox.pid));
    let before = env.dump();
    let dry = hook.clone().dry().run();
    before.assert_same(&env.dump(), "a dry run");
    assert!(dry.log.is_empty() && !env.state_dir().exists(), "no log and no record: {dry:#?}");
    let steps = dry.steps();

    let created: Vec<&str> = arguments(&steps, "create").into_iter().map(|words| words[0]).collect();
    for path in &created {
        assert!(!Path::new(path).exists(), "{path} is there already");
        let parent = Path::new(path).parent().unwrap();
        assert!(
            parent.exists() || created.iter().take_while(|made| made != &path).any(|made| Path::new(made) == parent),
            "top down: {steps:#?}"
        );
    }
    for controller in CPU_CONTROLLERS {
        let threads: BTreeSet<i32> = moves(&steps, "move-thread", &Group::new(controller, &env.group()), |words| {
            let (pid, tid) = words[0].split_once('/').expect("PID/TID");
            assert_eq!((pid.parse(), words[1].parse().ok()), (Ok(sandbox.pid), start_time(sandbox.pid)));
            tid.parse().unwrap()
        });
        assert_eq!(threads, sandbox.vcpu_threads(), "{controller}");
    }
    let memory = Group::new("memory", &format!("/kata{}", env.group()));
    let processes: BTreeSet<i32> = moves(&steps, "move-process", &memory, |words| {
        let pid = words[0].parse().unwrap();
        assert_eq!(words[1].parse().ok(), start_time(pid));
        pid
    });
    assert_eq!(processes, sandbox.processes());
    let first_thread = steps.iter().position(|step| step.starts_with("move-thread")).unwrap();
    let last_process = steps.iter().rposition(|step| step.starts_with("move-process")).unwrap();
    assert!(last_process < first_thread, "a process that moves takes its threads along: {steps:#?}");
    let first_move = steps.iter().position(|step| step.starts_with("move-")).unwrap();
    assert!(steps[first_move..].iter().all(|step| step.starts_with("move-")), "limits stand before anybody is in: {steps:#?}");

    hook.clone().run().succeeded().logged("placed");
    assert!(created.iter().all(|path| Path::new(path).is_dir()), "{created:#?}");
    for words in arguments(&steps, "set") {
        assert_eq!(std::fs::read_to_string(words[0]).unwrap().trim_end(), words[1], "{}", words[0]);
    }
    let again = hook.dry().run();
    assert_eq!(again.stdout, "0 steps\n", "{again:#?}");
}

#[test]
fn a_dry_release_says_what_the_next_release_does_and_does_nothing() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    let before = env.dump();
    let dry = env.hook("poststop").state(bundle.state(sandbox.pid)).dry().run();
    before.assert_same(&env.dump(), "a dry run");
    let steps = dry.steps();
    let removed: Vec<&str> = arguments(&steps, "remove").into_iter().map(|words| words[0]).collect();
    for controller in CPU_CONTROLLERS {
        let path = Group::new(controller, &env.group()).path_on_host();
        assert!(removed.iter().any(|removed| Path::new(removed) == path), "{steps:#?}");
    }
    sandbox.release(&bundle);
    assert!(removed.iter().all(|path| !Path::new(path).exists() || path.ends_with("/kata")), "{removed:#?}");
}

#[test]
fn what_is_no_vm_sandbox_takes_no_steps() {
    let Some(env) = Env::new() else { return };
    for stage in ["prestart", "createRuntime", "poststart", "poststop"] {
        let dry = env.hook(stage).state(env.bundle().state(1)).dry().run();
        assert_eq!(
            (dry.code, dry.stdout.as_str(), dry.stderr.as_str()),
            (Some(0), "0 steps: not a VM sandbox\n", ""),
            "{stage}"
        );
    }
}

#[test]
fn a_path_with_blanks_is_one_word() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle().cgroups_path(&format!("{}/a b/c", env.top()));
    let dry = env.hook("prestart").state(bundle.state(sandbox.pid)).dry().run();
    let steps = dry.steps();
    assert!(steps.iter().any(|step| step.ends_with(&format!(r"{}/a\x20b/kata_c", env.top()))), "{steps:#?}");
}

/// The words after this one, of every step that begins with it.
fn arguments<'s>(steps: &[&'s str], verb: &str) -> Vec<Vec<&'s str>> {
    let words = steps.iter().map(|step| step.split(' ').collect::<Vec<_>>());
    words.filter(|words| words[0] == verb).map(|words| words[1..].to_vec()).collect()
}

fn moves(steps: &[&str], verb: &str, to: &Group, read: impl Fn(&[&str]) -> i32) -> BTreeSet<i32> {
    let target = to.path_on_host();
    let moves = arguments(steps, verb).into_iter().filter(|words| Path::new(words[2]) == target);
    moves.map(|words| read(&words)).collect()
}
