//! How a run ends: every row of the table of outcomes, and what is said where.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Pid, mkfifo};
use serde_json::json;

use crate::testenv::*;

const CREATE_SIDE: [&str; 3] = ["prestart", "createRuntime", "createContainer"];
const AFTERWARDS: [&str; 2] = ["poststart", "poststop"];
const NOBODY: u32 = 65534;

#[test]
fn wrong_usage_exits_2_at_once_with_one_line() {
    let Some(env) = Env::new() else { return };
    let lines: [&[&str]; 9] = [
        &[],
        &["startContainer"],
        &["prestar"],
        &["Prestart"],
        &["prestart", "poststart"],
        &["prestart", "--unknown"],
        &["prestart", "--config"],
        &["--dry-run"],
        &["prestart", "--dry-run=yes"],
    ];
    for line in lines {
        // stdin stays open: nothing is to be read before the arguments are.
        env.hook("").only_args(line).hold_stdin().run().failed_with(2);
    }
}

#[test]
fn help_and_version_are_given_on_stdout() {
    let Some(env) = Env::new() else { return };
    for (word, expected) in [("--help", "poststop"), ("--version", env!("CARGO_PKG_VERSION"))] {
        let run = env.hook("").only_args(&[word]).hold_stdin().run();
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
        assert!(run.stdout.contains(expected), "{run:#?}");
    }
}

/// Refused on the way in; on the way out the container's end goes on, and the log has it.
#[track_caller]
fn assert_refused(hook: impl Fn(&str) -> Run, why: &str) {
    for stage in CREATE_SIDE {
        hook(stage).failed_with(1);
    }
    for stage in AFTERWARDS {
        let run = hook(stage);
        assert!(run.code == Some(0) && run.stdout.is_empty() && run.stderr.lines().count() <= 1, "{why}: {run:#?}");
        let line = run.only_log_line();
        assert!(["refused", "failed"].contains(&line.get("result")) && line.priority < 30, "{why}: {line:?}");
    }
}

#[test]
fn a_state_that_is_none_is_refused() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let good = json!({ "ociVersion": "", "id": env.name, "status": "", "pid": sandbox.pid, "bundle": env.bundle().dir });
    let before = env.dump();
    let with = |key: &str, value: serde_json::Value| {
        let mut state = good.clone();
        state[key] = value;
        state.to_string()
    };
    let without = |key: &str| {
        let mut state = good.clone();
        state.as_object_mut().unwrap().remove(key);
        state.to_string()
    };
    let long = "x".repeat(256);
    let states = [
        ("nothing", String::new()),
        ("no JSON", "prestart".to_owned()),
        ("half of it", good.to_string()[..20].to_owned()),
        ("more than it", format!("{good} {good}")),
        ("a list", "[]".to_owned()),
        ("a number", "1".to_owned()),
        ("null", "null".to_owned()),
        ("too deep", "[".repeat(100_000)),
        ("more than 1 MiB", with("annotations", json!({ "a": "x".repeat(1024 * 1024) }))),
        ("1 MiB of blanks after it", format!("{good}{}", " ".repeat(1024 * 1024))),
        ("no id", without("id")),
        ("an empty id", with("id", json!(""))),
        ("a number for an id", with("id", json!(5))),
        ("a path for an id", with("id", json!("../x"))),
        ("a directory for an id", with("id", json!(".."))),
        ("a hidden id", with("id", json!(".x"))),
        ("an option for an id", with("id", json!("-x"))),
        ("a blank in the id", with("id", json!("a b"))),
        ("a line end in the id", with("id", json!("a\n"))),
        ("a NUL in the id", with("id", json!("a\0"))),
        ("letters beyond ASCII in the id", with("id", json!("ä"))),
        ("an id too long for a file", with("id", json!(long))),
        ("no bundle", without("bundle")),
        ("an empty bundle", with("bundle", json!(""))),
        ("a relative bundle", with("bundle", json!("bundles/x"))),
        ("a number for a bundle", with("bundle", json!(7))),
        ("a pid in words", with("pid", json!("12"))),
        ("a pid in a list", with("pid", json!([12]))),
        ("half a pid", with("pid", json!(1.5))),
    ];
    for (why, state) in &states {
        assert_refused(|stage| env.hook(stage).state(state).run(), why);
        before.assert_same(&env.dump(), why);
    }
    let mut not_utf8 = good.to_string().into_bytes();
    not_utf8[3] = 0xff;
    assert_refused(|stage| env.hook(stage).state(&not_utf8).run(), "not UTF-8");
    before.assert_same(&env.dump(), "not UTF-8");
}

#[test]
fn states_that_are_odd_but_sound_are_none_of_our_business() {
    let Some(env) = Env::new() else { return };
    let bundle = env.bundle();
    let of = |id: &str, more: serde_json::Value| {
        let mut state = json!({ "id": id, "bundle": bundle.dir });
        state.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        state.to_string()
    };
    let states = [
        of("a+b", json!({})),
        of("_a.b-c+d", json!({ "pid": 0 })),
        of(&"x".repeat(255), json!({ "pid": 4_194_304 })),
        of("c", json!({ "status": "", "ociVersion": "" })),
        of("c", json!({ "status": "paused", "root": "/r", "extensions": [1, { "a": null }] })),
        of("c", json!({ "annotations": null })),
        of("c", json!({ "annotations": { "a": "x".repeat(1_000_000) } })),
        format!("\n  {}\n\n", of("c", json!({}))),
    ];
    let before = env.dump();
    for state in states {
        for stage in CREATE_SIDE.iter().chain(&AFTERWARDS) {
            env.hook(stage).state(&state).run().was_silent();
        }
    }
    before.assert_same(&env.dump(), "no VM sandbox");
}

#[test]
fn states_captured_from_real_runtimes_are_understood() {
    let Some(env) = Env::new() else { return };
    let states = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/states");
    let mut seen = 0;
    for path in fs::read_dir(states).unwrap().map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some((_, stage)) = name.strip_suffix(".json").and_then(|name| name.rsplit_once('.')) else {
            continue;
        };
        env.hook(stage).arg("--state").arg(&path).run().was_silent();
        env.hook(stage).state(fs::read(&path).unwrap()).run().was_silent();
        seen += 1;
    }
    assert!(seen >= 16, "{seen} states");
}

#[test]
fn a_captured_state_is_replayed_as_if_it_came_on_stdin() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let file = env.dir.join("captured.json");
    fs::write(&file, env.bundle().state(sandbox.pid)).unwrap();
    env.hook("prestart").arg("--state").arg(&file).hold_stdin().run().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_stdin_that_stays_open_is_given_up_at_the_deadline() {
    let Some(env) = Env::new() else { return };
    env.configure("deadline-ms = 300\n");
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let before = env.dump();
    // The state as a whole may have come; that it has ended, nobody knows.
    for state in [String::new(), "{\"id\":".to_owned(), format!("{} ", bundle.state(sandbox.pid))] {
        assert_refused(|stage| env.hook(stage).state(&state).hold_stdin().run(), &state);
        before.assert_same(&env.dump(), "no end of the state");
    }
}

#[test]
fn sigterm_is_the_deadline_now() {
    let Some(env) = Env::new() else { return };
    env.configure("deadline-ms = 60000\n");
    for (stage, code) in [("prestart", 1), ("poststop", 0)] {
        let hook = env.hook(stage).state("{").hold_stdin().start();
        wait_until("the hook to mind the signal", || minds(hook.pid(), Signal::SIGTERM));
        kill(Pid::from_raw(hook.pid()), Signal::SIGTERM).unwrap();
        let run = hook.wait();
        assert_eq!((run.code, run.signal), (Some(code), None), "{stage}: {run:#?}");
    }
}

/// Puts something where a file should be.
type Maker = Box<dyn Fn()>;

/// What a bundle may hold in place of a config.json.
fn hostile_config_jsons(bundle: &Bundle) -> Vec<(&'static str, Maker)> {
    let path = bundle.config_json();
    let make = |made: fn(&Path)| {
        let path = path.clone();
        Box::new(move || {
            let _ = fs::remove_file(&path);
            let _ = fs::remove_dir(&path);
            made(&path);
        }) as Maker
    };
    vec![
        ("gone", make(|_| {})),
        ("empty", make(|path| fs::write(path, "").unwrap())),
        ("no JSON", make(|path| fs::write(path, "linux:").unwrap())),
        ("not UTF-8", make(|path| fs::write(path, b"{\"linux\":\"\xff\"}").unwrap())),
        ("a list", make(|path| fs::write(path, "[]").unwrap())),
        (
            "of wrong types",
            make(|path| fs::write(path, r#"{"annotations":7,"linux":{"cgroupsPath":["x"],"resources":3}}"#).unwrap()),
        ),
        ("too deep", make(|path| fs::write(path, "{\"linux\":".repeat(50_000)).unwrap())),
        ("20 MiB of good JSON", make(|path| fs::write(path, format!("{{\"x\":\"{}\"}}", "x".repeat(20 << 20))).unwrap())),
        ("a fifo", make(|path| mkfifo(path, Mode::from_bits_truncate(0o644)).unwrap())),
        ("a directory", make(|path| fs::create_dir(path).unwrap())),
        ("a dangling link", make(|path| symlink("nowhere", path).unwrap())),
        ("a link to a device", make(|path| symlink("/dev/zero", path).unwrap())),
        ("a device without an end", make(|path| mknod(path, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 5)).unwrap())),
        ("a socket", make(|path| drop(UnixListener::bind(path).unwrap()))),
    ]
}

#[test]
fn a_container_that_is_no_vm_sandbox_is_never_failed_by_its_own_files() {
    let Some(env) = Env::new() else { return };
    let bundle = env.bundle_of(Engine::Single, Kind::Workload, "a+b", "a+b");
    let state = json!({ "ociVersion": "1.0.2-dev", "id": "a+b", "status": "creating", "pid": std::process::id(), "bundle": bundle.dir });
    for (what, make) in hostile_config_jsons(&bundle) {
        make();
        for stage in CREATE_SIDE.iter().chain(&AFTERWARDS) {
            let run = env.hook(stage).state(state.to_string()).run();
            assert!(
                run.code == Some(0) && run.stdout.is_empty() && run.stderr.is_empty() && run.log.is_empty(),
                "{what}: {run:#?}"
            );
        }
    }
    fs::remove_dir_all(&bundle.dir).unwrap();
    for stage in CREATE_SIDE.iter().chain(&AFTERWARDS) {
        env.hook(stage).state(state.to_string()).run().was_silent();
    }
    assert!(!env.state_dir().exists());
}

#[test]
fn a_vm_sandbox_whose_config_json_cannot_be_read_is_failed_and_left_as_it_was() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    for (what, make) in hostile_config_jsons(&bundle) {
        make();
        let before = env.dump();
        for stage in CREATE_SIDE {
            let run = env.hook(stage).state(bundle.state(sandbox.pid)).run();
            assert_eq!((run.code, run.stdout.as_str(), run.stderr.lines().count()), (Some(1), "", 1), "{what}: {run:#?}");
            run.logged("failed");
        }
        let run = env.hook("poststart").state(bundle.state(sandbox.pid)).run();
        assert_eq!((run.code, run.stderr.lines().count()), (Some(0), 1), "{what}: {run:#?}");
        assert_eq!(run.logged("failed").priority, 27);
        before.assert_same(&env.dump(), what);
    }
}

#[test]
fn a_vm_sandbox_that_cannot_be_placed_fails_on_the_way_in_and_is_reported_later() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle().cpu(json!({ "cpus": "777" }));
    let before = env.dump();
    for stage in CREATE_SIDE {
        let run = env.hook(stage).state(bundle.state(sandbox.pid)).run().failed_with(1);
        assert_eq!(run.logged("failed").priority, 27);
    }
    let run = env.hook("poststart").state(bundle.state(sandbox.pid)).run().failed_with(0);
    run.logged("failed");
    before.assert_same(&env.dump(), "what failed is undone");

    env.configure("on-error = \"warn\"\n");
    for stage in CREATE_SIDE {
        env.hook(stage).state(bundle.state(sandbox.pid)).run().succeeded().logged("failed");
    }
    before.assert_same(&env.dump(), "what failed is undone, warned about or not");
}

#[test]
fn a_failure_is_one_line_whatever_is_in_it() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let mut bundle = env.bundle();
    bundle.dir = env.dir.join("bundles").join("two\nlines \"and\" a\ttab \u{1b}[31m");
    let run = env.hook("prestart").state(bundle.state(sandbox.pid)).run().failed_with(1);
    assert!(!run.stderr.trim_end().chars().any(char::is_control), "{run:#?}");
    let line = run.logged("failed");
    assert!(!line.raw.chars().any(char::is_control), "{line:?}");
    let long = "x/".repeat(2000);
    bundle.dir = env.dir.join("bundles").join(long);
    let run = env.hook("prestart").state(bundle.state(sandbox.pid)).run().failed_with(1);
    let line = run.logged("failed");
    assert!(line.raw.len() <= 1024 && line.values().all(|value| value.len() <= 256), "{line:?}");
}

/// Puts something at a path.
type MakerAt<'e> = Box<dyn Fn(&Path) + 'e>;

/// A file that the configuration may not be, by what is wrong with it.
fn wrong_configs(env: &Env) -> Vec<(&'static str, MakerAt<'_>)> {
    fn text<'e>(env: &'e Env, more: &'static str) -> MakerAt<'e> {
        Box::new(move |path| write_file(path, 0o600, &format!("{}{more}", env.roots())))
    }
    let good = move |mode: u32| move |path: &Path| write_file(path, mode, &env.roots());
    vec![
        ("no TOML", text(env, "mode enforce\n")),
        ("an unknown key", text(env, "colour = \"red\"\n")),
        ("an unknown table", text(env, "[v3]\n")),
        ("an unknown key in a table", text(env, "[v2]\ncolour = \"red\"\n")),
        ("an unknown word", text(env, "mode = \"try\"\n")),
        ("a wrong type", text(env, "deadline-ms = \"300\"\n")),
        ("too small a number", text(env, "deadline-ms = 99\n")),
        ("too large a number", text(env, "deadline-ms = 60001\n")),
        ("a kind without a role", text(env, "[[vmm]]\nname = \"x\"\nexecutables = [\"/x\"]\n")),
        (
            "an executable that is neither a path nor a name",
            text(env, "[[vmm]]\nname = \"x\"\nrole = \"vmm\"\nexecutables = [\"a/b\"]\n"),
        ),
        ("not UTF-8", Box::new(|path| fs::write(path, b"mode = \"\xff\"").unwrap())),
        ("a directory", Box::new(|path| fs::create_dir(path).unwrap())),
        ("a fifo", Box::new(|path| mkfifo(path, Mode::from_bits_truncate(0o600)).unwrap())),
        ("gone", Box::new(|_| {})),
        ("writable by the group", Box::new(good(0o620))),
        ("writable by everybody", Box::new(good(0o602))),
        (
            "not root's",
            Box::new(move |path| {
                good(0o600)(path);
                chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }),
        ),
    ]
}

#[test]
fn a_wrong_configuration_fails_the_way_in_and_never_the_way_out() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let path = env.dir.join("wrong.toml");
    for (what, make) in wrong_configs(&env) {
        let _ = fs::remove_file(&path);
        let _ = fs::remove_dir(&path);
        make(&path);
        let before = env.dump();
        for stage in CREATE_SIDE {
            let run = env.hook(stage).config(&path).state(bundle.state(sandbox.pid)).run();
            assert_eq!((run.code, run.stdout.as_str(), run.stderr.lines().count()), (Some(1), "", 1), "{what}: {run:#?}");
            assert!(run.stderr.contains("wrong.toml"), "{what}: {run:#?}");
        }
        for stage in AFTERWARDS {
            let run = env.hook(stage).config(&path).state(bundle.state(sandbox.pid)).run();
            assert!(run.code == Some(0) && run.stdout.is_empty() && run.stderr.lines().count() <= 1, "{what}: {run:#?}");
        }
        before.assert_same(&env.dump(), what);
    }
}

#[test]
fn a_sound_configuration_may_be_read_by_everybody() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    write_file(&env.config(), 0o644, &env.roots());
    sandbox.place(&env.bundle());
}

#[test]
fn observing_says_what_would_be_and_changes_nothing() {
    let Some(env) = Env::new() else { return };
    env.configure("mode = \"observe\"\n");
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let before = env.dump();
    for stage in CREATE_SIDE.iter().chain(&AFTERWARDS) {
        let run = env.hook(stage).state(bundle.state(sandbox.pid)).run().succeeded();
        assert_eq!(run.only_log_line().get("stage"), *stage);
        before.assert_same(&env.dump(), stage);
    }
    let failing = bundle.cpu(json!({ "cpus": "777" }));
    let before = env.dump();
    env.hook("prestart").state(failing.state(sandbox.pid)).run().succeeded();
    before.assert_same(&env.dump(), "observing");
}

#[test]
fn switched_off_it_does_not_even_read_its_stdin() {
    let Some(env) = Env::new() else { return };
    env.configure("mode = \"off\"\n");
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let before = env.dump();
    for stage in CREATE_SIDE.iter().chain(&AFTERWARDS) {
        env.hook(stage).state("no state").hold_stdin().run().was_silent();
        env.hook(stage).state(bundle.state(sandbox.pid)).run().was_silent();
    }
    before.assert_same(&env.dump(), "off");
}

#[test]
fn create_container_in_a_containers_namespaces_does_nothing() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let before = env.dump();
    for wrapper in [["unshare", "--mount", "--"].as_slice(), &["unshare", "--pid", "--fork", "--"]] {
        for state in [bundle.state(sandbox.pid), bundle.state(1), "no state".to_owned()] {
            let hook = env.hook("createContainer").state(state).under(wrapper.iter().copied());
            hook.run().was_silent();
        }
        before.assert_same(&env.dump(), wrapper.join(" "));
    }
    // In the host's, where runtime-rs runs it, it does.
    env.hook("createContainer").state(bundle.state(sandbox.pid)).run().succeeded().logged("placed");
}

/// The hook where anybody may run it, and a configuration that anybody may read.
fn for_everybody<'e>(env: &'e Env, stage: &str) -> Hook<'e> {
    let binary = env.dir.join("kata-cgroup-hook");
    let hook = env.hook(stage);
    if !binary.exists() {
        copy_program(&hook.command_line()[0], &binary);
        write_file(&env.config(), 0o644, &env.roots());
    }
    hook.binary(&binary)
}

#[test]
fn somebody_elses_own_containers_are_left_alone() {
    // Rootless podman reads the same hooks.d.
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let rootless = [&nobody[..4], &["--", "unshare", "--user", "--map-root-user", "--mount", "--"]].concat();
    // As Kata makes it, and as somebody may who has nothing to hide.
    for mode in [0o700, 0o755] {
        set_mode(&sandbox.runtime_dir("vm"), mode);
        let before = env.dump();
        for wrapper in [nobody.as_slice(), &rootless] {
            for stage in CREATE_SIDE.iter().chain(&AFTERWARDS) {
                let state = bundle.state_of_runtime_rs("creating", sandbox.pid);
                let run = for_everybody(&env, stage).state(state).under(wrapper.iter().copied()).run().succeeded();
                assert!(run.log.iter().all(|line| line.get("result") == "refused"), "{mode:o} {run:#?}");
                before.assert_same(&env.dump(), format!("{mode:o} {stage}"));
            }
        }
    }
    env.hook("createRuntime").state(bundle.state(sandbox.pid)).run().succeeded().logged("placed");
}

#[test]
fn a_lock_that_somebody_holds_past_the_deadline_fails_the_run_and_changes_nothing() {
    let Some(env) = Env::new() else { return };
    env.configure("deadline-ms = 400\n");
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    fs::create_dir(env.state_dir()).unwrap();
    set_mode(&env.state_dir(), 0o700);
    let path = env.state_dir().join(format!("{}.lock", env.name));
    write_file(&path, 0o600, "");
    let lock = Flock::lock(fs::File::open(&path).unwrap(), FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
    let before = env.dump();
    env.hook("prestart").state(bundle.state(sandbox.pid)).run().failed_with(1).logged("failed");
    env.hook("poststart").state(bundle.state(sandbox.pid)).run().failed_with(0).logged("failed");
    before.assert_same(&env.dump(), "locked");
    drop(lock);
    env.configure("");
    sandbox.place(&bundle);
}

#[test]
fn a_log_that_takes_nothing_more_holds_nobody_up() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    // Until one that has sent nothing yet cannot: a socket may be stopped by its own buffer before the reader's queue is full.
    let mut stuffed = Vec::new();
    loop {
        let socket = UnixDatagram::unbound().unwrap();
        socket.connect(env.dir.join("log")).unwrap();
        socket.set_nonblocking(true).unwrap();
        let send = || socket.send(b"<30>kata-cgroup-hook[1]: stuffing=yes").is_ok();
        if !send() {
            break;
        }
        while send() {}
        stuffed.push(socket);
    }
    let run = env.hook("prestart").state(env.bundle().state(sandbox.pid)).run().succeeded();
    assert!(run.log.iter().all(|line| line.keys() == ["stuffing"]), "{run:#?}");
    sandbox.assert_placed(&env.group());
}

#[test]
fn without_a_log_the_work_is_done_the_same() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    for log in ["", "/nowhere/log", &env.dir.display().to_string()] {
        let config = env.roots().lines().filter(|line| !line.starts_with("log-socket")).collect::<Vec<_>>().join("\n");
        write_file(&env.config(), 0o600, &format!("{config}\nlog-socket = \"{log}\"\n"));
        env.hook("prestart").state(bundle.state(sandbox.pid)).run().was_silent();
        sandbox.assert_placed(&env.group());
        sandbox.release(&bundle);
    }
}

#[test]
fn a_stdout_that_is_closed_is_no_reason_to_fail_a_container() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let hook = env.hook("prestart").state(env.bundle().state(sandbox.pid));
    hook.under(["sh", "-c", "exec \"$@\" >&- 2>&-", "sh"]).run().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn hosts_without_a_kata_are_never_written_to() {
    let Some(env) = Env::new() else { return };
    let gone = env.roots().replace("/vm\"", "/gone-vm\"").replace("/sbs\"", "/gone-sbs\"").replace("/kata\"", "/gone-kata\"");
    write_file(&env.config(), 0o600, &gone);
    let bundle = env.bundle();
    let before = env.dump();
    for stage in CREATE_SIDE.iter().chain(&AFTERWARDS) {
        env.hook(stage).state(bundle.state(1)).run().was_silent();
    }
    before.assert_same(&env.dump(), "no runtime directory");
}

#[test]
fn on_error_warn_is_for_vm_sandboxes_and_not_for_a_state_that_is_none() {
    let Some(env) = Env::new() else { return };
    env.configure("on-error = \"warn\"\n");
    env.hook("createRuntime").state("{").run().failed_with(1);
    // A VM sandbox that cannot be placed is started all the same.
    let sandbox = env.sandbox().start();
    let bundle = env.bundle().cgroups_path(&format!("/{}", "x".repeat(300)));
    env.hook("createRuntime").state(bundle.state(sandbox.pid)).run().succeeded().logged("failed");
}

#[test]
fn an_argument_with_a_line_end_makes_no_second_line() {
    let Some(env) = Env::new() else { return };
    let run = env.hook("prestart").only_args(&["prestart", "--a\nb"]).run();
    assert_eq!((run.code, run.stderr.lines().count()), (Some(2), 1), "{run:#?}");
}
