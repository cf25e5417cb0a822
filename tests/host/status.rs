//! `status`: what it shows of sandboxes in every condition, in table, tree and JSON, and what its exit code says.

use std::fs::{self, File};
use std::io::Read;
use std::process::Command;

use nix::pty::{Winsize, openpty};
use nix::sys::termios::{InputFlags, SetArg, tcgetattr, tcsetattr};
use serde_json::{Value, json};

use crate::testenv::*;

fn schema() -> Value {
    serde_json::from_str(include_str!("../../docs/status.schema.json")).unwrap()
}

fn status(env: &Env) -> Hook<'_> {
    env.hook("status")
}

/// It went well: exit 0, nothing on stderr, nothing in the log.
#[track_caller]
pub(crate) fn shown(hook: Hook) -> String {
    let run = hook.run();
    assert_eq!((run.code, run.stderr.as_str(), run.log.len()), (Some(0), "", 0), "{run:#?}");
    run.stdout
}

/// What `--json` says, held against its schema.
#[track_caller]
fn json_of(hook: Hook) -> Value {
    let report: Value = serde_json::from_str(&shown(hook.arg("--json"))).unwrap();
    assert_valid(&schema(), &report);
    report
}

/// What it says of this environment's sandbox.
#[track_caller]
fn seen(env: &Env) -> Value {
    let report = json_of(status(env));
    let sandbox = report["sandboxes"].as_array().unwrap().iter().find(|sandbox| sandbox["id"] == env.name.as_str());
    sandbox.unwrap_or_else(|| panic!("it is not listed: {report:#}")).clone()
}

/// It has this verdict, and one of its reasons has these words.
#[track_caller]
fn assert_seen(env: &Env, verdict: &str, words: &str) -> Value {
    let sandbox = seen(env);
    let reasons = sandbox["reasons"].as_array().unwrap();
    let has_words = reasons.iter().any(|reason| reason.as_str().unwrap().contains(words));
    assert!(sandbox["verdict"] == verdict && has_words, "not {verdict} for {words:?}: {sandbox:#}");
    sandbox
}

/// The same, and table and tree say so too.
#[track_caller]
fn assert_shown(env: &Env, verdict: &str, words: &str) -> Value {
    let table = shown(status(env));
    let line = table.lines().find(|line| line.starts_with(&env.name)).unwrap();
    assert!(line.contains(&format!("  {verdict}: ")), "{table}");
    let tree = shown(status(env).arg(&env.name));
    assert!(tree.starts_with(&format!("{}  {verdict}\n", env.name)) && tree.contains(words), "{tree}");
    assert_seen(env, verdict, words)
}

/// None is listed any more. A directory that all sandboxes share goes with the last of them, whichever test's that is.
fn assert_none(env: &Env) {
    wait_until("status to show nothing", || shown(status(env)) == "no VM sandbox on this host\n");
}

#[track_caller]
fn assert_placed(env: &Env) -> Value {
    let sandbox = seen(env);
    assert_eq!((&sandbox["verdict"], &sandbox["reasons"]), (&json!("placed"), &json!([])), "{sandbox:#}");
    sandbox
}

/// The threads of the groups with this role that are ours, by their numbers.
fn threads_of_ours(sandbox: &Value, role: &str) -> Vec<(Vec<i64>, Value)> {
    let groups = sandbox["groups"].as_array().unwrap().iter();
    let ours = groups.filter(|group| group["role"] == role && group["ours"] == true);
    let tids = |group: &Value| group["threads"].as_array().unwrap().iter().map(|one| one["tid"].as_i64().unwrap()).collect();
    ours.map(|group| (tids(group), group.clone())).collect()
}

/// What it writes on a terminal of so many columns that says this of itself, in this environment.
fn on_terminal(hook: &Hook, columns: u16, flags: InputFlags, environment: &[(&str, &str)]) -> String {
    let size = Winsize { ws_row: 50, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).unwrap();
    let mut terminal = tcgetattr(&pty.slave).unwrap();
    terminal.input_flags = flags;
    tcsetattr(&pty.slave, SetArg::TCSANOW, &terminal).unwrap();
    let line = hook.command_line();
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).env_clear().envs(environment.iter().copied()).stdout(pty.slave);
    let mut child = command.spawn().unwrap();
    // The terminal is gone with the last that has it open.
    drop(command);
    let mut bytes = Vec::new();
    // Its end is told as EIO (pty(7)).
    let _ = File::from(pty.master).read_to_end(&mut bytes);
    assert!(child.wait().unwrap().success());
    String::from_utf8(bytes).unwrap().replace("\r\n", "\n")
}

#[test]
fn a_terminal_gets_lines_of_its_width_in_colour_and_the_characters_it_has_and_nobody_else_does() {
    let Some(env) = Env::new() else { return };
    let _sandbox = env.sandbox().start();
    let (table, tree) = (status(&env), status(&env).arg(&env.name));
    let verdict = "\u{1b}[36munplaced\u{1b}[0m";
    let (utf8, ascii) = (InputFlags::IUTF8, InputFlags::empty());
    let coloured = on_terminal(&table, 70, utf8, &[]);
    assert!(coloured.contains(verdict), "{coloured:?}");
    let plain = on_terminal(&table, 70, utf8, &[("NO_COLOR", "1")]);
    assert!(!plain.contains('\u{1b}') && plain.contains("unplaced"), "{plain:?}");
    assert!(plain.lines().take(2).all(|line| line.chars().count() <= 70), "{plain}");
    assert!(on_terminal(&tree, 70, utf8, &[]).contains("└─ "));
    let locale = [("LC_ALL", "en_GB.UTF-8"), ("LANG", "en_GB.UTF-8")];
    assert!(on_terminal(&tree, 70, ascii, &locale).contains("`- "), "a variable decided");
    let piped = shown(status(&env).arg("--tree").under(["env", "LC_ALL=en_GB.UTF-8"]));
    assert!(piped.is_ascii() && !piped.contains('\u{1b}'), "{piped:?}");
}

#[test]
fn without_a_sandbox_status_says_so_and_is_content() {
    let Some(env) = Env::new() else { return };
    assert_eq!(shown(status(&env)), "no VM sandbox on this host\n");
    assert_eq!(json_of(status(&env))["sandboxes"], json!([]));
    let mode = json_of(status(&env))["mode"].clone();
    for controller in CONTROLLERS {
        let version = if Hierarchy::of(controller).unwrap().version == Version::V1 { "v1" } else { "v2" };
        assert_eq!(mode[controller], version, "{controller}");
    }
}

#[test]
fn a_placed_sandbox_is_shown_with_its_threads_and_limits_and_nothing_is_changed() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    let before = env.dump();
    let seen = assert_placed(&env);
    assert_eq!(seen["recorded"], true);
    assert_eq!((&seen["vmm"]["kind"], &seen["vmm"]["pid"]), (&json!("qemu"), &json!(sandbox.pid)));
    assert_eq!(seen["vmm"]["start"], json!(start_time(sandbox.pid)));
    assert_eq!((&seen["vcpus"]["found"], &seen["vcpus"]["proof"]), (&json!(2), &json!("name")));
    let limit = &seen["limit"];
    assert_eq!(
        (&limit["quota_us"], &limit["period_us"], &limit["source"]),
        (&json!(150_000), &json!(100_000), &json!("containers"))
    );
    let share = if limit["shares"].is_null() { &limit["weight"] } else { &limit["shares"] };
    assert_eq!(
        (share, &limit["cpus"], &limit["mems"]),
        (&json!(share_of(1536)), &json!(env.limits().cpus), &json!(env.limits().mems))
    );
    assert_eq!(seen["containers"], json!([{ "bundle": bundle.dir, "id": env.name }]));
    let constrained = threads_of_ours(&seen, "constrained");
    assert!(!constrained.is_empty());
    let vcpus: Vec<i64> = sandbox.vcpu_threads().into_iter().map(i64::from).collect();
    for (tids, group) in constrained {
        assert_eq!(tids, vcpus, "{group:#}");
        assert_eq!(group["threads"][0]["role"], "vcpu");
        assert_eq!(group["threads"][0]["vcpu"], 0);
    }
    let is_of_memory = |group: &Value| group["controllers"].as_array().unwrap().contains(&json!("memory"));
    let unconstrained = threads_of_ours(&seen, "unconstrained").into_iter().map(|(_, group)| group);
    let memory: Vec<Value> = unconstrained.filter(is_of_memory).collect();
    assert_eq!(memory.len(), 1, "{memory:#?}");
    // What it had touched before stays charged to where it was.
    assert!(memory[0]["memory_bytes"].is_u64(), "{memory:#?}");
    assert!(memory[0]["threads"].as_array().unwrap().iter().any(|thread| thread["role"] == "helper"), "{memory:#?}");

    let table = shown(status(&env));
    let line = table.lines().find(|line| line.starts_with(&env.name)).unwrap();
    for word in [&format!("qemu {}", sandbox.pid), "2/", "1.50 CPU", "placed"] {
        assert!(line.contains(word), "{word}: {table}");
    }
    // An idle VMM may have touched nothing since.
    assert!(line.contains("iB  ") || line.contains(" 0  "), "{table}");
    let tree = shown(status(&env).arg(&env.name));
    for word in ["1.50 CPU (150000/100000)", "vCPU 0", "vCPU 1", "ours", &env.constrained("cpu").path] {
        assert!(tree.contains(word), "{word}: {tree}");
    }
    let trees = shown(status(&env).arg("--tree"));
    assert!(trees.starts_with(tree.lines().next().unwrap()) && trees.contains("vCPU 1"), "{trees}");
    assert!(table.is_ascii() && tree.is_ascii(), "no terminal, no locale: {table}{tree}");
    before.assert_same(&env.dump(), "status");
}

#[test]
fn what_somebody_has_changed_is_named() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    sandbox.place(&env.bundle());
    let hook = || drop(env.hook("poststart").state(env.bundle().state_with_id(&sandbox.id, sandbox.pid)).run().succeeded());

    let (index, tid) = sandbox.vcpus().into_iter().next_back().unwrap();
    let cpu = env.constrained("cpu");
    // On v2 a thread can go no further.
    let away = if cpu.hierarchy.version == Version::V1 { Group::new("cpu", "/") } else { cpu.parent().unwrap() };
    away.take_in_thread(tid);
    let seen = assert_shown(&env, "incomplete", &format!("vCPU {index} (thread {}/{tid}) is not in its ", sandbox.pid));
    assert_eq!(seen["reasons"].as_array().unwrap().len(), 1, "{seen:#}");
    hook();
    assert_placed(&env);

    cpu.set_quota(70_000);
    let seen =
        assert_seen(&env, "incomplete", if cpu.has("cpu.max") { "cpu.max is 70000" } else { "cpu.cfs_quota_us is 70000" });
    assert_eq!(seen["limit"]["quota_us"], 70_000, "what acts is shown, not what should");
    assert!(shown(status(&env)).contains("  0.70 CPU  "));
    hook();
    assert_placed(&env);

    // Somebody who has no business there.
    let stranger = Process::sleeping();
    env.unconstrained().take_in(stranger.pid());
    let seen = assert_placed(&env);
    let (_, group) = threads_of_ours(&seen, "unconstrained").remove(0);
    let is_other = |thread: &&Value| thread["pid"] == stranger.pid() && thread["role"] == "other";
    assert_eq!(group["threads"].as_array().unwrap().iter().filter(is_other).count(), 1, "{group:#}");
}

#[test]
fn a_record_that_is_lost_or_torn_is_named_and_the_sandbox_still_shown() {
    let Some(env) = Env::new() else { return };
    let mut sandbox = env.sandbox().start();
    sandbox.place(&env.bundle());
    let record = env.state_dir().join(format!("{}.json", env.name));
    fs::write(&record, "{\"schema\":1,").unwrap();
    let seen = assert_seen(&env, "incomplete", "its record is not understood");
    assert_eq!((&seen["recorded"], &seen["vcpus"]["found"]), (&json!(false), &json!(2)));
    fs::remove_file(&record).unwrap();
    let seen = assert_seen(&env, "incomplete", "its record is lost");
    assert_eq!(seen["reasons"].as_array().unwrap().len(), 1, "{seen:#}");
    assert_eq!(
        threads_of_ours(&seen, "constrained").len(),
        CPU_CONTROLLERS.map(|one| env.constrained(one)).iter().collect::<std::collections::BTreeSet<_>>().len()
    );
    sandbox.kill();
    let seen = assert_seen(&env, "orphan", "which reconcile removes");
    assert_eq!((&seen["recorded"], &seen["vmm"]), (&json!(false), &json!(null)));

    // What it says is to be done is what helps.
    fs::write(&record, "{").unwrap();
    assert_seen(&env, "orphan", "which reconcile removes");
    sandbox.forget_runtime_files();
    env.hook("reconcile").run();
    assert_none(&env);
}

#[test]
fn what_a_dead_vm_has_left_is_an_orphan() {
    let Some(env) = Env::new() else { return };
    let mut sandbox = env.sandbox().start();
    sandbox.place(&env.bundle());
    let stranger = Process::sleeping();
    env.unconstrained().take_in(stranger.pid());
    sandbox.kill();
    let seen = assert_shown(&env, "orphan", &format!("its VMM {} has ended: its record and ", sandbox.pid));
    let holds = format!("still holds {} (sleep)", stranger.pid());
    assert!(seen["reasons"].as_array().unwrap().iter().any(|reason| reason.as_str().unwrap().ends_with(&holds)), "{seen:#}");
    sandbox.forget_runtime_files();
    assert_seen(&env, "orphan", "has ended");
    assert_eq!(env.hook("reconcile").run().code, Some(0));
    assert_none(&env);
}

#[test]
fn a_vmm_that_runs_and_is_not_recognised_any_more_is_no_orphan() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    sandbox.place(&env.bundle());
    env.configure("[[vmm]]\nname = \"qemu\"\nrole = \"vmm\"\nexecutables = [\"/nowhere\"]\nvcpu-threads = \"vcpu*\"\n");
    let seen = assert_seen(&env, "incomplete", &format!("its VMM {} runs, but is not recognised", sandbox.pid));
    assert_eq!(seen["vmm"], json!(null));
    env.configure("");
    assert_placed(&env);
}

#[test]
fn what_a_hook_would_find_to_do_is_missing_here_too() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let workloads = ["one", "two"].map(|id| env.bundle_of(Engine::CriO, Kind::Workload, &env.name, id));
    for workload in &workloads {
        env.hook("createRuntime").state(workload.state(sandbox.pid)).run().succeeded();
    }
    assert_eq!(assert_placed(&env)["containers"].as_array().unwrap().len(), 2);
    // It ended without a hook.
    fs::remove_dir_all(&workloads[1].dir).unwrap();
    let seen = assert_seen(&env, "incomplete", "300000");
    assert_eq!(seen["containers"].as_array().unwrap().len(), 1, "{seen:#}");
    assert_eq!(env.hook("reconcile").run().code, Some(0));
    assert_placed(&env);

    let path = env.state_dir().join(format!("{}.json", env.name));
    let mut record: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for (state, words) in [("placing", "has not finished"), ("releasing", "reconcile goes on with it")] {
        record["state"] = json!(state);
        fs::write(&path, record.to_string()).unwrap();
        assert_seen(&env, "incomplete", words);
    }
}

#[test]
fn a_sandbox_that_no_hook_has_placed_is_shown_where_it_is() {
    let Some(env) = Env::new() else { return };
    let mut sandbox = env.sandbox().layout(Layout::Template).start();
    let seen = assert_shown(&env, "unplaced", "no hook has placed it");
    assert_eq!((&seen["vcpus"]["found"], &seen["recorded"]), (&json!(2), &json!(false)), "{seen:#}");
    assert!(seen["groups"].as_array().unwrap().iter().all(|group| group["ours"] == false), "{seen:#}");
    let report = json_of(status(&env));
    assert_eq!(report["sandboxes"].as_array().unwrap().len(), 1, "the VM's own directory is no sandbox: {report:#}");
    sandbox.kill();
    assert_seen(&env, "unplaced", "no VMM yet, or none any more");
}

#[test]
fn whose_limit_it_is_is_told() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    env.pod("cpu").make();
    env.pod("cpu").set_quota(120_000);
    sandbox.place(&env.bundle());
    let seen = assert_placed(&env);
    assert_eq!((&seen["limit"]["quota_us"], &seen["limit"]["source"]), (&json!(120_000), &json!("pod")));
    assert!(seen["notes"][0].as_str().unwrap().contains("capped at 120000/100000"), "{seen:#}");
}

#[test]
fn a_group_of_katas_that_is_used_is_not_called_ours() {
    let Some(env) = Env::with("cpu", Version::V1) else { return };
    let sandbox = env.sandbox().start();
    premake(&env.group());
    env.constrained("cpu").take_in_thread(*sandbox.vcpu_threads().first().unwrap());
    sandbox.place(&env.bundle());
    let seen = assert_placed(&env);
    let groups = seen["groups"].as_array().unwrap().iter();
    let limited: Vec<&Value> =
        groups.filter(|group| group["role"] == "constrained" && group["controllers"][0] == "cpu").collect();
    assert_eq!((limited.len(), &limited[0]["ours"]), (1, &json!(false)), "{seen:#}");
    assert!(shown(status(&env).arg(&env.name)).contains("Kata's own, used ("));
}

#[test]
fn an_unknown_sandbox_and_what_cannot_be_seen_are_exit_1() {
    let Some(env) = Env::new() else { return };
    let run = status(&env).arg("no-such").run().failed_with(1);
    assert_eq!(run.stderr, "kata-cgroup-hook: status: no sandbox no-such on this host: kata-cgroup-hook status lists them\n");
    env.make_runtime_dir("vm", &env.name);
    let short = env.name.trim_end_matches(|last: char| last.is_ascii_digit());
    let run = status(&env).arg(short).run().failed_with(1);
    assert_eq!(run.stderr, format!("kata-cgroup-hook: status: no sandbox {short} on this host, but {}\n", env.name));
    status(&env).only_args(&["status", "one", "two"]).run().failed_with(2);

    let wrong = env.dir.join("wrong.toml");
    write_file(&wrong, 0o600, "mod = \"off\"\n");
    let run = status(&env).config(&wrong).run().failed_with(1);
    assert!(run.stderr.contains("unknown field `mod`"), "{run:#?}");

    let run = status(&env).without_config().under(["unshare", "--user"]).run();
    assert_eq!((run.code, run.stderr.lines().count()), (Some(1), 1), "{run:#?}");
    assert!(run.stderr.contains("not root of the host") && run.stdout.is_empty(), "{run:#?}");

    set_mode(&env.state_dir().parent().unwrap().join("vm"), 0o755);
    fs::create_dir(env.state_dir()).unwrap();
    set_mode(&env.state_dir(), 0o777);
    let run = status(&env).run();
    assert!(run.code == Some(1) && run.stderr.contains("must be root's own"), "{run:#?}");
    assert!(run.stdout.contains(&env.name), "what could be read is shown: {run:#?}");
}
