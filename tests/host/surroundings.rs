//! Poor surroundings: no environment, no descriptors, no room, a kernel or a filter that refuses what is newer than need be.
//!
//! In each the job is done all the same, or nothing is done and one line says what was missing.

use std::fs;
use std::os::unix::net::UnixListener;
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use serde_json::json;

use crate::testenv::*;

/// `hook` after a line of shell.
fn after<'e>(line: &str, hook: Hook<'e>) -> Hook<'e> {
    hook.under(["sh", "-c", &format!("{line} && exec \"$@\""), "sh"])
}

#[test]
fn with_stdin_stdout_and_stderr_closed_a_state_from_a_file_is_enough() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let state = env.bundle().state(sandbox.pid);
    let before = env.dump();
    for (stage, code) in [("createRuntime", 1), ("poststop", 0)] {
        after("exec <&-", env.hook(stage).state(&state)).run().failed_with(code).logged("failed");
        before.assert_same(&env.dump(), "no stdin");
    }
    let file = env.dir.join("state.json");
    fs::write(&file, state).unwrap();
    let hook = env.hook("createRuntime").arg("--state").arg(&file);
    after("exec <&- >&- 2>&-", hook).run().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_working_directory_that_is_gone_is_no_obstacle() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let hook = env.hook("createRuntime").state(env.bundle().state(sandbox.pid));
    let gone = env.dir.join("gone").display().to_string();
    after(&format!("mkdir {gone} && cd {gone} && rmdir {gone}"), hook).run().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn with_too_few_descriptors_nothing_is_done_and_that_is_said() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle();
    // The state directory stays once it is made.
    sandbox.place(&bundle);
    sandbox.release(&bundle);
    let before = env.dump();
    let mut placed_with = None;
    // Four are stdin, stdout, stderr and what tells of a signal: not even the log could be opened.
    for number in (5..=32).filter(|number| stride() == 1 || [5, 12, 16, 19, 26, 32].contains(number)) {
        let limit = format!("--nofile={number}:{number}");
        let limited = |stage: &str| env.hook(stage).state(bundle.state(sandbox.pid)).under(["prlimit", &limit, "--"]).run();
        let run = limited("createRuntime");
        let result = run.log.first().map(|line| line.get("result"));
        if run.code == Some(0) && result == Some("placed") {
            sandbox.assert_placed(&env.group());
            placed_with = placed_with.or(Some(number));
        } else {
            assert_eq!(placed_with, None, "it was enough before: {run:#?}");
            assert!(run.code == Some(1) || (run.code == Some(0) && result == Some("refused")), "{run:#?}");
            let said = format!("{}{}", run.stderr, run.log.first().map_or("", |line| line.get("msg")));
            assert!(said.contains("EMFILE"), "{number}: {run:#?}");
            // Who gets no lock may not remove its file.
            sandbox.release(&bundle);
            before.assert_same(&env.dump(), format!("{number} descriptors"));
        }
        let run = limited("poststop");
        assert!(run.code == Some(0) && run.stderr.lines().count() <= 1, "{run:#?}");
        sandbox.release(&bundle);
        before.assert_same(&env.dump(), format!("released with {number} descriptors"));
    }
    assert!(placed_with.is_some_and(|number| number > 16), "{placed_with:?}");
}

/// A state directory on a file system of its own, in a mount namespace of the hook's own, after a line of shell in it.
fn on_own_state_dir<'e>(env: &Env, options: &str, line: &str, hook: Hook<'e>) -> Hook<'e> {
    let dir = env.state_dir().display().to_string();
    let mount = format!("mount -t tmpfs -o mode=700,{options} tmpfs {dir} && cd {dir} && {line} && cd / && exec \"$@\"");
    hook.under(["unshare", "--mount", "sh", "-c", &mount, "sh"])
}

#[test]
fn a_state_directory_that_is_full_or_read_only_lets_nothing_be_placed_and_all_be_released() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    fs::create_dir(env.state_dir()).unwrap();
    set_mode(&env.state_dir(), 0o700);
    let hook = |stage: &str| env.hook(stage).state(bundle.state(sandbox.pid));
    let fill = "{ head -c 100000 /dev/zero >fill || :; } 2>/dev/null";
    let read_only = "mount -o remount,ro .";
    for (options, line, errno) in
        [("size=4k", fill, "ENOSPC"), ("nr_inodes=1", "true", "ENOSPC"), ("size=64k", read_only, "EROFS")]
    {
        let before = env.dump();
        for (stage, code) in [("createRuntime", 1), ("poststart", 0)] {
            let run = on_own_state_dir(&env, options, line, hook(stage)).run().failed_with(code);
            let dir = env.state_dir().display().to_string();
            assert!(run.stderr.contains(errno) && run.stderr.contains(&dir), "{run:#?}");
            run.logged("failed");
            before.assert_same(&env.dump(), format!("{options} {line}"));
        }
        on_own_state_dir(&env, "size=64k", "true", hook("createRuntime")).run().succeeded().logged("placed");
        let run = on_own_state_dir(&env, options, line, hook("poststop")).run();
        assert!(run.code == Some(0) && run.stderr.lines().count() <= 1, "{run:#?}");
        // Without a lock nothing may be touched; with room for it, what is marked goes.
        on_own_state_dir(&env, "size=64k", "true", hook("poststop")).run().succeeded();
        env.assert_no_groups();
    }
}

#[test]
fn where_the_state_directory_has_filled_up_since_what_is_ours_goes_and_where_no_lock_can_be_had_it_stays() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    fs::create_dir(env.state_dir()).unwrap();
    set_mode(&env.state_dir(), 0o700);
    let (state, hook) = (env.dir.join("state.json"), |stage: &str| env.hook(stage).state(bundle.state(sandbox.pid)));
    fs::write(&state, bundle.state(sandbox.pid)).unwrap();
    let words = hook("createRuntime").arg("--state").arg(&state).command_line();
    let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
    let before = env.dump();
    let fill = "{ head -c 100000 /dev/zero >fill || :; } 2>/dev/null";
    for (line, errno, is_locked) in [(fill, "ENOSPC", true), ("mount -o remount,ro .", "EROFS", false)] {
        let line = format!("{} && [ -s {}.json ] && {line}", words.join(" "), env.name);
        let run = on_own_state_dir(&env, "size=64k", &line, hook("poststop")).run();
        assert!(run.code == Some(0) && run.stderr.contains(errno) && run.stderr.lines().count() == 1, "{run:#?}");
        let results: Vec<&str> = run.log.iter().map(|line| line.get("result")).collect();
        assert_eq!(results, ["placed", "failed"], "{run:#?}");
        if is_locked {
            before.assert_same(&env.dump(), line);
        } else {
            sandbox.assert_placed(&env.group());
            hook("poststop").run().succeeded().logged("released");
        }
        env.assert_no_groups();
    }
}

#[test]
fn where_the_state_directory_cannot_even_be_made_nothing_is_placed() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    fs::create_dir(env.state_dir()).unwrap();
    let state = env.bundle().state(sandbox.pid);
    write_file(&env.config(), 0o600, &env.roots().replace("/state\"", "/state/below\""));
    let before = env.dump();
    for (options, errno) in [("ro", "EROFS"), ("nr_inodes=1", "ENOSPC")] {
        let hook = env.hook("createRuntime").state(&state);
        let run = on_own_state_dir(&env, options, "true", hook).run().failed_with(1);
        assert!(run.stderr.contains(errno) && run.stderr.contains("/state/below"), "{run:#?}");
        run.logged("failed");
        before.assert_same(&env.dump(), errno);
    }
}

/// What Linux has had since 5.1 or that a filter is likely to refuse.
const NEWER: [libc::c_long; 12] = [
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_openat2,
    libc::SYS_pidfd_open,
    libc::SYS_statx,
    libc::SYS_faccessat2,
    libc::SYS_signalfd4,
    libc::SYS_getrandom,
    libc::SYS_epoll_create1,
];

/// Runs the hook under a seccomp filter of its own that refuses these calls: who is started by a filtered thread has its filter.
fn filtered(calls: &[libc::c_long], errno: Errno, hook: Hook) -> Run {
    let rules = calls.iter().map(|call| (*call, vec![])).collect();
    let refuse = SeccompAction::Errno(errno as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter: BpfProgram = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap().try_into().unwrap();
    let hook = after("grep -q '^Seccomp:.2' /proc/self/status", hook);
    thread::scope(|scope| {
        let run = || {
            seccompiler::apply_filter(&filter).unwrap();
            hook.run()
        };
        scope.spawn(run).join().unwrap()
    })
}

#[test]
fn a_filter_that_refuses_newer_system_calls_changes_nothing() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let hook = |stage: &str| env.hook(stage).state(bundle.state(sandbox.pid));
    for errno in [Errno::ENOSYS, Errno::EPERM] {
        let refused = filtered(&[libc::SYS_openat], errno, hook("createRuntime"));
        assert_ne!(refused.code, Some(0), "the filter refuses nothing: {refused:#?}");
        filtered(&NEWER, errno, hook("createRuntime")).succeeded().logged("placed");
        sandbox.assert_placed(&env.group());
        filtered(&NEWER, errno, hook("poststop")).succeeded().logged("released");
        env.assert_no_groups();
    }
}

#[test]
fn a_log_socket_that_is_none_is_as_good_as_no_log() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let at = |name: &str| env.dir.join(name);
    let _stream = UnixListener::bind(at("stream")).unwrap();
    mkfifo(&at("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
    fs::write(at("file"), "").unwrap();
    for name in ["stream", "fifo", "file"] {
        let elsewhere = env.roots().replace("/log\"", &format!("/{name}\""));
        write_file(&env.config(), 0o600, &elsewhere);
        env.hook("createRuntime").state(bundle.state(sandbox.pid)).run().was_silent();
        sandbox.assert_placed(&env.group());
        env.hook("poststop").state(bundle.state(sandbox.pid)).run().was_silent();
    }
    assert_eq!(fs::read(at("file")).unwrap(), b"");
}

#[test]
fn a_stderr_that_is_closed_or_that_nobody_reads_makes_no_failure_another_one() {
    let Some(env) = Env::new() else { return };
    let full = env.dir.join("full").display().to_string();
    let is_full = format!("mkfifo {full} && exec 3<>{full} && dd if=/dev/zero of={full} bs=65536 count=1 2>/dev/null");
    let nobody_reads = format!("{is_full} && exec 2>&3");
    for line in ["exec 2>&-", &nobody_reads] {
        let run = after(line, env.hook("createRuntime").state("{}")).run();
        assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (Some(1), "", ""), "{line}: {run:#?}");
        run.logged("failed");
    }
}

/// What a pipe takes in one piece (PIPE_BUF): more, and an engine that reads later would keep the hook waiting.
const PIPE_BUF: usize = 4096;

#[test]
fn what_is_said_on_stderr_is_one_short_line_however_long_its_subject() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let long = |text: &str| text.repeat(500_000);
    let wrong = |change: fn(&mut serde_json::Value, String), text: &str| {
        let mut bundle = env.bundle();
        change(&mut bundle.config, long(text));
        bundle.write()
    };
    let cases = [
        wrong(|config, text| config["linux"]["cgroupsPath"] = json!(text), "/x"),
        wrong(|config, text| config["linux"]["cgroupsPath"] = json!(text), "\u{202e}\n"),
        wrong(|config, text| config["linux"]["resources"]["cpu"]["cpus"] = json!(text), "7,"),
        wrong(|config, text| config["linux"]["resources"]["cpu"]["quota"] = json!(text), "ä"),
    ];
    let mut gone = env.bundle();
    gone.dir = env.dir.join("\u{202e}".repeat(1000));
    // They share a directory.
    for bundle in cases.into_iter().map(Bundle::write).chain([gone]) {
        let run = env.hook("createRuntime").state(bundle.state(sandbox.pid)).run().failed_with(1);
        assert!(run.stderr.len() <= PIPE_BUF, "{} bytes", run.stderr.len());
        let is_plain = |char: char| char == '\n' || !(char.is_control() || char == '\u{202e}');
        assert!(run.stderr.chars().all(is_plain), "{:?}", run.stderr);
        // The same is in the log, as far as there is room.
        let line = run.logged("failed");
        assert!(line.raw.len() <= 1024 && line.raw.chars().all(is_plain), "{:?}", line.raw);
        let first_word = run.stderr.trim_start_matches("kata-cgroup-hook: createRuntime: ").split(' ').next().unwrap();
        let said = line.get("msg");
        assert!(said.starts_with(first_word) && said.len() > 150, "{first_word}: {line:?}");
    }
}
