//! Trouble: what is refused again and again, and the VM, its threads or the time that run out at the worst moment.
//!
//! On the way in what was done is undone and the container fails with a reason. On the way out the rest is done all the same.
//! Each call refused once is `refused`'s.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::testenv::*;

#[test]
fn one_member_that_cannot_be_moved_out_keeps_no_other_in() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    for from in premake(&format!("{}/from", env.top())) {
        from.take_in(sandbox.pid);
    }
    premake(&format!("{}/pod", env.top()));
    sandbox.place(&bundle);
    let constrained = env.constrained("cpu");
    let stranger = Process::sleeping();
    let file = if constrained.is_below(&env.pod("cpu")) {
        // Both vCPU threads go to the pod that they are in.
        env.pod("cpu").threads_file()
    } else {
        // Where they are in no pod they go with their process to where that came from, and so does whoever else is in there.
        constrained.parent().unwrap().take_in(stranger.pid());
        Group::new("cpu", &format!("{}/from", env.top())).processes_file()
    };
    // Of the writes that move somebody there, every other one is refused: the first member in each round.
    let trace = env.dir.join("refused");
    let strace = ["strace", "-f", "-o", trace.to_str().unwrap(), "-P", file.to_str().unwrap()];
    let inject = ["-e", "trace=write", "-e", "inject=write:error=EINVAL:when=1+2", "--"];
    let hook = env.hook("poststop").state(bundle.state_with_id(&env.name, sandbox.pid));
    let run = hook.under(strace.into_iter().chain(inject)).run();
    assert!(fs::read_to_string(&trace).unwrap().contains("INJECTED"), "nothing was refused: {run:#?}");
    assert_eq!((run.code, run.stderr.lines().count()), (Some(0), 1), "{run:#?}");
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(run.stderr.contains(name) && run.stderr.contains("EINVAL"), "{run:#?}");
    // Stopping at the first refusal, the second member would never have had its turn.
    let left: Vec<Group> =
        CPU_CONTROLLERS.map(|controller| env.constrained(controller)).into_iter().filter(Group::exists).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!env.unconstrained().exists(), "all else is done nevertheless");
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
    let mut sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    sandbox.kill();
    let strace = Strace::inject(&env, &["?rmdir,unlinkat:error=EBUSY"]);
    let hook = env.hook("poststop").state(bundle.state(0)).under(strace.wrapper()).start();
    // The deadline is when somebody says so; by then everything has been tried more than once.
    wait_until("a group to stay busy", || strace.tampered().len() > 50);
    kill(Pid::from_raw(children_of(hook.pid())[0]), Signal::SIGTERM).unwrap();
    let run = hook.wait();
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

/// The files in groups of the sandbox's own that a placing writes to: the first and the last that sets something before anybody is
/// moved, and the last that moves somebody. What other sandboxes share is written or not, as these come and go.
fn files_written_by_placing(env: &Env, sandbox: &Sandbox, bundle: &Bundle) -> [PathBuf; 3] {
    let calls = calls_of(env, env.hook("prestart").state(bundle.state(sandbox.pid)));
    sandbox.release(bundle);
    let moves = |path: &&str| ["/tasks", "/cgroup.threads", "/cgroup.procs"].iter().any(|list| path.ends_with(list));
    let is_write = |call: &&Call| call.name == "write" && call.is_on_group() && call.path.contains(&env.name);
    let paths: Vec<&str> = calls.iter().filter(is_write).map(|call| call.path.as_str()).collect();
    let sets: Vec<&str> = paths.iter().copied().take_while(|path| !moves(path)).collect();
    [sets[0], sets[sets.len() - 1], paths.into_iter().rfind(moves).unwrap()].map(PathBuf::from)
}

#[test]
fn time_that_runs_out_between_two_writes_undoes_what_was_done_before_anybody_is_moved() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let [first, last, _] = files_written_by_placing(&env, &sandbox, &bundle);
    // What an emulated CPU needs under strace for all the rest is less as well.
    let deadline = if stride() == 1 { 300 } else { 4000 };
    env.configure(&format!("deadline-ms = {deadline}\n"));
    let before = env.dump();
    for (file, ahead) in [(first, "set limits"), (last, "move threads")] {
        let strace = Strace::inject(&env, &[&format!("write:delay_exit={}", (deadline + 300) * 1000)]).only_on(file);
        let run = env.hook("prestart").state(bundle.state(sandbox.pid)).under(strace.wrapper()).run().failed_with(1);
        let passed = format!("deadline of {deadline} ms (deadline-ms) passed while about to {ahead}");
        assert!(run.stderr.contains(&passed), "{run:#?}");
        before.assert_same(&env.dump(), ahead);
    }
}

#[test]
fn what_cannot_be_undone_is_said_as_well_and_left_to_the_next_run() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let [_, _, last_move] = files_written_by_placing(&env, &sandbox, &bundle);
    // The group of that file can neither be filled nor be removed from the one above it.
    let above = last_move.parent().unwrap().parent().unwrap().to_str().unwrap();
    let strace = ["strace", "-f", "-o", "/dev/null", "-P", last_move.to_str().unwrap(), "-P", above];
    let inject = ["-e", "inject=write:error=EINVAL", "-e", "inject=?rmdir,unlinkat:error=EBUSY", "--"];
    let hook = env.hook("prestart").state(bundle.state(sandbox.pid));
    let run = hook.under(strace.into_iter().chain(inject)).run().failed_with(1);
    assert_eq!(run.stderr.lines().count(), 1, "{run:#?}");
    let (cause, left) = run.stderr.split_once("; and undoing: ").unwrap_or_else(|| panic!("{run:#?}"));
    assert!(cause.contains("EINVAL") && left.contains("remove ") && left.contains("EBUSY"), "{run:#?}");
    run.logged("failed");
    for tid in sandbox.vcpu_threads() {
        assert!(CONTROLLERS.iter().all(|controller| !place_of(tid, controller).unwrap().contains("kata_")), "moved back");
    }
    sandbox.release(&bundle).logged("released");
    env.assert_no_groups();
}

#[test]
fn a_sigterm_on_the_way_in_undoes_what_was_done() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let before = env.dump();
    let strace = Strace::inject(&env, &["?mkdir,mkdirat:delay_exit=300000"]);
    let hook = env.hook("prestart").state(bundle.state(sandbox.pid)).under(strace.wrapper()).start();
    wait_until("the first group", || !groups_named(&env.name).is_empty());
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
        wait_until("the first group", || !groups_named(&env.name).is_empty());
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
    let is_removed = |group: &Group| fs::remove_dir(group.path_on_host()).is_ok();
    wait_until("a shared directory to remove", || groups_named(&env.name).iter().any(is_removed));
    hook.wait().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_run_that_was_killed_is_made_good_by_the_next() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle();
    let before = env.dump();
    let writes = steps_ahead(&env, &bundle, sandbox.pid, &["set", "move"]);
    for count in [2, writes / 4, writes / 2, writes * 3 / 4, writes] {
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
fn a_group_whose_maker_was_killed_before_it_marked_it_is_found_again_without_a_record() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    for count in 1.. {
        let strace = Strace::inject(&env, &[&format!("fsetxattr:signal=KILL:when={count}")]);
        let killed = env.hook("prestart").state(bundle.state(sandbox.pid)).under(strace.wrapper()).run();
        if killed.code == Some(0) {
            assert!(count > 1, "never killed");
            break;
        }
        env.hook("prestart").state(bundle.state(sandbox.pid)).run().succeeded();
        fs::remove_file(env.state_dir().join(format!("{}.json", env.name))).unwrap();
        sandbox.release(&bundle).logged("released");
        env.assert_no_groups();
    }
}

#[test]
fn a_run_that_was_killed_is_cleaned_up_by_a_release_alone() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle();
    let before = env.dump();
    let groups = steps_ahead(&env, &bundle, sandbox.pid, &["create"]);
    let writes = steps_ahead(&env, &bundle, sandbox.pid, &["set", "move"]);
    for (call, count) in [("?mkdir,mkdirat", 3), ("?mkdir,mkdirat", groups), ("write,pwrite64", writes / 2)] {
        let strace = Strace::inject(&env, &[&format!("{call}:signal=KILL:when={count}")]);
        let killed = env.hook("prestart").state(bundle.state(sandbox.pid)).under(strace.wrapper()).run();
        assert_ne!(killed.code, Some(0), "{killed:#?}");
        sandbox.release(&bundle);
        before.assert_same(&env.dump(), format!("killed at {call} {count}"));
    }
}
