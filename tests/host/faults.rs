//! Trouble: every call that can be refused is refused once, and the VM, its threads or the time run out at the worst moment.
//!
//! On the way in what was done is undone and the container fails with a reason. On the way out the rest is done all the same.
//! Nowhere a panic, nowhere a thread that was moved into a group without its limit.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::testenv::*;

/// Runs the hook with the K-th of these calls refused, for every K until none is refused any more; that last run has gone well.
fn refuse_each(env: &Env, calls: &str, error: &str, run: impl Fn(&Strace) -> Run, mut judge: impl FnMut(&Run, &str)) {
    for count in 1..2000 {
        let strace = Strace::inject(env, &[&format!("{calls}:error={error}:when={count}")]);
        let run = run(&strace);
        let tampered = strace.tampered();
        assert!(run.signal.is_none() && run.code != Some(101) && run.code != Some(134), "a panic: {tampered:?} {run:#?}");
        let Some(call) = tampered.first() else {
            assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "nothing was refused: {run:#?}");
            return;
        };
        judge(&run, call);
    }
    panic!("{calls} never ends");
}

/// The file and the text of a write, as strace prints it: `write(5</sys/...>, "1024", 4) = -1 ENOSPC (...) (INJECTED)`.
fn file_and_value(call: &str) -> Option<(String, String)> {
    let file = call.split_once('<')?.1.split_once('>')?.0;
    let value = call.split_once(", \"")?.1.split_once('"')?.0;
    Some((file.to_owned(), value.trim_end_matches("\\n").to_owned()))
}

#[test]
fn on_the_way_in_any_refused_write_is_named_and_all_is_undone() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle().cpu(serde_json::json!({ "quota": 150_000, "period": 50_000, "shares": 300, "cpus": "0" }));
    let before = env.dump();
    let mut refused = 0;
    for error in ["ENOSPC", "EINVAL", "ERANGE", "EBUSY"] {
        refuse_each(
            &env,
            "write,pwrite64",
            error,
            |strace| env.hook("prestart").state(bundle.state(sandbox.pid)).under(strace.wrapper()).run(),
            |run, call| {
                if run.code == Some(0) {
                    // Left out without harm; then it is none of the writes that place anybody.
                    assert!(!call.contains("/sys/fs/cgroup"), "{call}: {run:#?}");
                    sandbox.assert_placed(&env.group());
                    sandbox.release(&bundle);
                } else {
                    refused += 1;
                    assert_eq!(
                        (run.code, run.stderr.lines().count(), run.stdout.as_str()),
                        (Some(1), 1, ""),
                        "{call}: {run:#?}"
                    );
                    run.logged("failed");
                    let (file, value) = file_and_value(call).unwrap();
                    if file.starts_with("/sys/fs/cgroup") {
                        let name = file.rsplit('/').next().unwrap();
                        let reason = explanation(error);
                        assert!(run.stderr.contains(name) && run.stderr.contains(&value), "{call}: {run:#?}");
                        assert!(run.stderr.contains(error) || run.stderr.contains(reason), "{call}: {run:#?}");
                    }
                }
                before.assert_same(&env.dump(), call);
            },
        );
        sandbox.assert_placed(&env.group());
        sandbox.release(&bundle);
        before.assert_same(&env.dump(), error);
    }
    assert!(refused >= 4 * 12, "{refused} writes were refused");
}

/// What the C library calls it, or a part of that.
fn explanation(error: &str) -> &'static str {
    match error {
        "ENOSPC" => "No space left on device",
        "EINVAL" => "Invalid argument",
        "ERANGE" => "out of range",
        "EBUSY" => "busy",
        _ => unreachable!("an errno without its text"),
    }
}

#[test]
fn on_the_way_in_any_refused_mkdir_is_undone() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let before = env.dump();
    refuse_each(
        &env,
        "?mkdir,mkdirat",
        "ENOSPC",
        |strace| env.hook("prestart").state(bundle.state(sandbox.pid)).under(strace.wrapper()).run(),
        |run, call| {
            assert_eq!((run.code, run.stderr.lines().count()), (Some(1), 1), "{call}: {run:#?}");
            before.assert_same(&env.dump(), call);
        },
    );
    sandbox.assert_placed(&env.group());
}

#[test]
fn on_the_way_in_any_file_that_cannot_be_opened_leaves_all_or_nothing() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let before = env.dump();
    for (calls, error) in
        [("?open,openat,?openat2", "EIO"), ("?open,openat,?openat2", "EMFILE"), ("read,pread64", "EIO"), ("getdents64", "EIO")]
    {
        refuse_each(
            &env,
            calls,
            error,
            |strace| env.hook("prestart").state(bundle.state(sandbox.pid)).under(strace.wrapper()).run(),
            |run, call| {
                // What the loader fails to open is no concern of the hook's.
                if run.code == Some(127) {
                    return;
                }
                assert!(run.stderr.lines().count() <= 1 && [Some(0), Some(1)].contains(&run.code), "{call}: {run:#?}");
                if run.code == Some(0) && Group::new("cpu", &env.group()).exists() {
                    assert_limited_if_placed(&sandbox, &env.group());
                    sandbox.release(&bundle);
                }
                before.assert_same(&env.dump(), format!("{call}: {run:#?}"));
            },
        );
        sandbox.assert_placed(&env.group());
        sandbox.release(&bundle);
    }
}

/// Never: threads moved and no limit set.
#[track_caller]
fn assert_limited_if_placed(sandbox: &Sandbox, group: &str) {
    let cpu = Group::new("cpu", group);
    let vcpus = sandbox.vcpu_threads();
    if cpu.threads().iter().any(|tid| vcpus.contains(tid)) {
        assert_eq!((cpu.value("cpu.cfs_quota_us").as_str(), cpu.value("cpu.shares").as_str()), ("150000", "1536"));
    }
    assert!(cpu.threads().is_disjoint(&sandbox.other_threads()));
}

#[test]
fn on_the_way_out_a_refused_write_is_reported_and_the_rest_is_done() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle();
    let before = env.dump();
    for error in ["EBUSY", "EINVAL"] {
        sandbox.place(&bundle);
        refuse_each(
            &env,
            "write,pwrite64",
            error,
            |strace| env.hook("poststop").state(bundle.state(sandbox.pid)).under(strace.wrapper()).run(),
            |run, call| {
                assert_eq!((run.code, run.stdout.as_str()), (Some(0), ""), "{call}: {run:#?}");
                let result = run.only_log_line().get("result");
                // Moved at the second try, or reported; and what one hierarchy refused, the others were not asked to suffer for.
                assert!(result == "released" || (result == "failed" && run.stderr.lines().count() == 1), "{call}: {run:#?}");
                if result == "failed" {
                    let left: Vec<_> =
                        CONTROLLERS.iter().filter(|controller| !env_groups(&env, controller).is_empty()).collect();
                    assert!(left.len() <= 1, "{call} left groups in {left:?}: {run:#?}");
                    sandbox.release(&bundle);
                }
                before.assert_same(&env.dump(), call);
                sandbox.place(&bundle);
            },
        );
        before.assert_same(&env.dump(), error);
    }
}

fn env_groups(env: &Env, controller: &str) -> Vec<Group> {
    [env.top(), format!("/kata{}", env.top())].iter().map(|path| Group::new(controller, path)).filter(Group::exists).collect()
}

#[test]
fn one_thread_that_cannot_be_moved_out_keeps_no_other_in() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    premake(&format!("{}/pod", env.top()));
    sandbox.place(&bundle);
    // Of the writes that move threads to the group above, every other one is refused: the first thread in each round.
    let tasks = Group::new("cpu", &format!("{}/pod", env.top())).path_on_host().join("tasks");
    let trace = env.dir.join("refused");
    let strace = ["strace", "-f", "-o", trace.to_str().unwrap(), "-P", tasks.to_str().unwrap()];
    let inject = ["-e", "trace=write", "-e", "inject=write:error=EINVAL:when=1+2", "--"];
    let hook = env.hook("poststop").state(bundle.state_with_id(&env.name, sandbox.pid));
    let run = hook.under(strace.into_iter().chain(inject)).run();
    assert!(fs::read_to_string(&trace).unwrap().contains("INJECTED"), "nothing was refused: {run:#?}");
    assert_eq!((run.code, run.stderr.lines().count()), (Some(0), 1), "{run:#?}");
    assert!(run.stderr.contains("tasks") && run.stderr.contains("EINVAL"), "{run:#?}");
    // Stopping at the first refusal, the second thread would never have had its turn.
    let left = Group::new("cpu", &env.group());
    assert!(!left.exists(), "kept in: {:?}", left.threads());
    assert!(!Group::new("memory", &format!("/kata{}", env.group())).exists(), "all else is done nevertheless");
}

#[test]
fn a_group_that_is_busy_for_a_moment_is_removed_all_the_same() {
    let Some(env) = Env::new() else { return };
    let mut sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    sandbox.kill();
    let strace = Strace::inject(&env, &["?rmdir,unlinkat:error=EBUSY:when=1..5"]);
    let run = env.hook("poststop").state(bundle.state(0)).under(strace.wrapper()).run().succeeded();
    assert!(!strace.tampered().is_empty());
    run.logged("released");
    env.assert_no_groups();
}

#[test]
fn a_group_that_stays_busy_is_reported_at_the_deadline_and_left_to_the_next_run() {
    let Some(env) = Env::new() else { return };
    env.configure("deadline-ms = 500\n");
    let mut sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    sandbox.kill();
    let strace = Strace::inject(&env, &["?rmdir,unlinkat:error=EBUSY"]);
    let run = env.hook("poststop").state(bundle.state(0)).under(strace.wrapper()).run();
    assert_eq!((run.code, run.stderr.lines().count()), (Some(0), 1), "{run:#?}");
    assert!(run.logged("failed").get("msg").contains("kata_"), "{run:#?}");
    env.hook("poststop").state(bundle.state(0)).run().succeeded().logged("released");
    env.assert_no_groups();
    assert_eq!(fs::read_dir(env.state_dir()).unwrap().count(), 0);
}

#[test]
fn time_that_runs_out_on_the_way_in_undoes_what_was_done() {
    let Some(env) = Env::new() else { return };
    env.configure("deadline-ms = 200\n");
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let before = env.dump();
    for slow in ["?mkdir,mkdirat:delay_exit=400000:when=2", "?mkdir,mkdirat:delay_exit=400000:when=4"] {
        let strace = Strace::inject(&env, &[slow]);
        let run = env.hook("prestart").state(bundle.state(sandbox.pid)).under(strace.wrapper()).run().failed_with(1);
        run.logged("failed");
        before.assert_same(&env.dump(), slow);
    }
}

#[test]
fn a_sigterm_on_the_way_in_undoes_what_was_done() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let before = env.dump();
    let strace = Strace::inject(&env, &["?mkdir,mkdirat:delay_exit=300000"]);
    let hook = env.hook("prestart").state(bundle.state(sandbox.pid)).under(strace.wrapper()).start();
    wait_until("the first group", || CONTROLLERS.iter().any(|controller| !env_groups(&env, controller).is_empty()));
    let traced = children_of(hook.pid())[0];
    kill(Pid::from_raw(traced), Signal::SIGTERM).unwrap();
    let run = hook.wait().failed_with(1);
    assert_eq!(run.signal, None);
    before.assert_same(&env.dump(), "told to stop");
}

#[test]
fn a_vmm_that_dies_while_it_is_placed_leaves_nothing_behind() {
    let Some(env) = Env::new() else { return };
    for delayed in ["?mkdir,mkdirat:delay_exit=200000:when=1", "?mkdir,mkdirat:delay_exit=200000:when=5"] {
        let mut sandbox = env.sandbox().virtiofsd().start();
        let bundle = env.bundle();
        let strace = Strace::inject(&env, &[delayed]);
        let hook = env.hook("poststart").state(bundle.state(sandbox.pid)).under(strace.wrapper()).start();
        wait_until("the first group", || CONTROLLERS.iter().any(|controller| !env_groups(&env, controller).is_empty()));
        sandbox.kill();
        let run = hook.wait();
        assert!(run.code == Some(0) && run.signal.is_none(), "{run:#?}");
        env.hook("poststop").state(bundle.state(0)).run().succeeded();
        env.assert_no_groups();
        sandbox.forget_runtime_files();
        drop(sandbox);
        fs::remove_dir_all(env.dir.join(format!("{}.qemu", env.name))).unwrap();
    }
}

#[test]
fn a_vmm_that_dies_at_any_time_harms_nobody() {
    let Some(env) = Env::new() else { return };
    for wait in 0..12 {
        let mut sandbox = env.sandbox().start();
        let bundle = env.bundle();
        let hook = env.hook("prestart").state(bundle.state(sandbox.pid)).start();
        std::thread::sleep(Duration::from_micros(500 * wait));
        sandbox.kill();
        let run = hook.wait();
        assert!(run.code == Some(0) || run.code == Some(1), "{run:#?}");
        env.hook("poststop").state(bundle.state(0)).run().succeeded();
        env.assert_no_groups();
        sandbox.forget_runtime_files();
        drop(sandbox);
        fs::remove_dir_all(env.dir.join(format!("{}.qemu", env.name))).unwrap();
    }
}

#[test]
fn a_directory_that_somebody_removes_meanwhile_is_made_again() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    // Another sandbox's release prunes the directory that both share, between this one's two mkdirs.
    let strace = Strace::inject(&env, &["?mkdir,mkdirat:delay_exit=100000:when=1..6"]);
    let hook = env.hook("prestart").state(bundle.state(sandbox.pid)).under(strace.wrapper()).start();
    let shared: Vec<Group> = CONTROLLERS
        .iter()
        .flat_map(|controller| [env.top(), format!("/kata{}", env.top())].map(|path| Group::new(controller, &path)))
        .collect();
    wait_until("a shared directory to remove", || shared.iter().any(|group| fs::remove_dir(group.path_on_host()).is_ok()));
    hook.wait().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_run_that_was_killed_is_made_good_by_the_next() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle();
    let before = env.dump();
    for count in [2, 5, 9, 14, 20] {
        let strace = Strace::inject(&env, &[&format!("write,pwrite64:signal=KILL:when={count}")]);
        let killed = env.hook("prestart").state(bundle.state(sandbox.pid)).under(strace.wrapper()).run();
        assert_ne!(killed.code, Some(0), "{killed:#?}");
        env.hook("prestart").state(bundle.state(sandbox.pid)).run().succeeded();
        sandbox.assert_placed(&env.group());
        sandbox.release(&bundle).logged("released");
        before.assert_same(&env.dump(), format!("killed at write {count}"));
    }
}

#[test]
fn a_run_that_was_killed_is_cleaned_up_by_a_release_alone() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle();
    let before = env.dump();
    for call in ["?mkdir,mkdirat:signal=KILL:when=3", "?mkdir,mkdirat:signal=KILL:when=6", "write,pwrite64:signal=KILL:when=9"]
    {
        let strace = Strace::inject(&env, &[call]);
        let killed = env.hook("prestart").state(bundle.state(sandbox.pid)).under(strace.wrapper()).run();
        assert_ne!(killed.code, Some(0), "{killed:#?}");
        sandbox.release(&bundle);
        before.assert_same(&env.dump(), call);
    }
}
