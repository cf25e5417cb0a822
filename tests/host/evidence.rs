//! Evidence, not appearance: each fact that a stranger could forge is refused, and accepted once it alone is put right.
//!
//! Every test here runs the same sandbox twice. The first run differs from the second in the forged fact and in nothing else,
//! so that a refusal for some other reason shows up as a failing second run.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::{chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::testenv::*;

const NOBODY: u32 = 65534;

/// A run that finds no VM it can believe in: nothing is touched, no container fails over it, and the log says this.
#[track_caller]
fn assert_told(env: &Env, state: &str, result: &str, why: &str) {
    let before = env.dump();
    for stage in ["prestart", "poststart"] {
        let run = env.hook(stage).state(state).run();
        assert_eq!((run.code, run.stdout.as_str()), (Some(0), ""), "{why}: {run:#?}");
        assert!(run.logged(result).get("msg").contains(why), "{why}: {run:#?}");
        before.assert_same(&env.dump(), why);
    }
}

/// Who is named or hinted at is refused, and that is told with the reason.
#[track_caller]
fn assert_not_believed(env: &Env, state: &str, why: &str) {
    assert_told(env, state, "refused", why);
}

/// What stands where a file or a directory of root's should be says nothing, and that is told, with this reason; at the end nothing needs
/// to be said.
#[track_caller]
fn assert_untrusted(env: &Env, state: &str, why: &str) {
    let before = env.dump();
    for stage in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        let run = env.hook(stage).state(state).run().succeeded();
        if stage == "poststop" && run.only_log_line().get("result") == "unchanged" {
            continue;
        }
        let line = run.logged("refused");
        assert!(line.priority == 28 && line.get("msg").contains(why), "{why}: {run:#?}");
        before.assert_same(&env.dump(), why);
    }
}

const NOT_THE_HOSTS: &str = "which is not the host's own file of that path, writable by root alone";
const WRITABLE: &str = "can be written by others than root";
const LINK: &str = "not to a directory beside it, or not root's";

#[track_caller]
fn assert_believed(env: &Env, state: &str, what: &str) {
    let run = env.hook("poststart").state(state).run();
    assert!(run.code == Some(0) && run.only_log_line().get("result") == "placed", "{what}: {run:#?}");
}

/// A sandbox that only its pid file names, and a state that gives no hint.
fn named_by_pid_file(env: &Env) -> (Sandbox<'_>, PathBuf, String) {
    let sandbox = env.sandbox().start();
    fs::remove_dir_all(sandbox.runtime_dir("sbs")).unwrap();
    let file = sandbox.runtime_dir("vm").join("pid");
    (sandbox, file, env.bundle().state(0))
}

#[test]
fn a_pid_file_must_be_roots() {
    let Some(env) = Env::new() else { return };
    let (sandbox, file, state) = named_by_pid_file(&env);
    chown(&file, Some(NOBODY), None).unwrap();
    assert_untrusted(&env, &state, WRITABLE);
    chown(&file, Some(0), None).unwrap();
    assert_believed(&env, &state, "root's");
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_pid_file_must_be_nobody_elses_to_write() {
    let Some(env) = Env::new() else { return };
    let (sandbox, file, state) = named_by_pid_file(&env);
    for mode in [0o602, 0o620, 0o666] {
        set_mode(&file, mode);
        assert_untrusted(&env, &state, WRITABLE);
    }
    set_mode(&file, 0o644);
    assert_believed(&env, &state, "readable by others");
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_pid_file_must_be_a_file() {
    let Some(env) = Env::new() else { return };
    let (sandbox, file, state) = named_by_pid_file(&env);
    let text = fs::read_to_string(&file).unwrap();
    let elsewhere = env.dir.join("elsewhere");
    write_file(&elsewhere, 0o600, &text);

    fs::remove_file(&file).unwrap();
    symlink(&elsewhere, &file).unwrap();
    assert_untrusted(&env, &state, "pid: ELOOP");
    fs::remove_file(&file).unwrap();
    mkfifo(&file, Mode::from_bits_truncate(0o600)).unwrap();
    assert_untrusted(&env, &state, "pid: EINVAL");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert_untrusted(&env, &state, "pid: EINVAL");
    fs::remove_dir(&file).unwrap();
    sandbox.write_pid_file(&text);
    assert_believed(&env, &state, "a file");
}

#[test]
fn a_pid_file_must_hold_a_pid() {
    let Some(env) = Env::new() else { return };
    let (sandbox, file, state) = named_by_pid_file(&env);
    let pid = sandbox.pid;
    for text in
        ["", "\n", "x", "-1", "0", "1", "4294967296", "99999999999999999999", &format!("{pid} {pid}"), &format!("0x{pid:x}")]
    {
        sandbox.write_pid_file(text);
        // Somebody else's number is refused for who that is, and what is no number names nobody.
        let (result, why) = if text == "1" { ("refused", "process 1 named by") } else { ("not-yet", "no VMM yet") };
        assert_told(&env, &state, result, why);
    }
    fs::write(&file, format!("{pid}\n")).unwrap();
    assert_believed(&env, &state, "the pid");
}

#[test]
fn a_process_that_started_after_the_file_that_names_it_was_written_is_another() {
    let Some(env) = Env::new() else { return };
    let (sandbox, file, state) = named_by_pid_file(&env);
    let handle = fs::File::options().write(true).open(&file).unwrap();
    handle.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    assert_not_believed(&env, &state, "started after that was written, so another process has that number now");
    handle.set_modified(SystemTime::now()).unwrap();
    assert_believed(&env, &state, "a file of now");
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_runtime_directory_must_be_roots_and_nobody_elses_to_write() {
    let Some(env) = Env::new() else { return };
    let (sandbox, _, state) = named_by_pid_file(&env);
    let dir = sandbox.runtime_dir("vm");
    chown(&dir, Some(NOBODY), None).unwrap();
    assert_untrusted(&env, &state, WRITABLE);
    chown(&dir, Some(0), None).unwrap();
    for mode in [0o702, 0o720, 0o777, 0o1777] {
        set_mode(&dir, mode);
        assert_untrusted(&env, &state, WRITABLE);
    }
    set_mode(&dir, 0o755);
    assert_believed(&env, &state, "root's alone");
}

#[test]
fn the_root_of_the_runtime_directories_must_be_roots_and_nobody_elses_to_write() {
    let Some(env) = Env::new() else { return };
    let (_sandbox, _, state) = named_by_pid_file(&env);
    let root = env.dir.join("vm");
    for mode in [0o757, 0o775, 0o1777] {
        set_mode(&root, mode);
        assert_untrusted(&env, &state, WRITABLE);
    }
    // A container that has nothing there is none of the root's business.
    let other = env.bundle_of(Engine::Single, Kind::Workload, "a+b", "a+b");
    env.hook("prestart").state(other.state(1)).run().was_silent();
    set_mode(&root, 0o755);
    chown(&root, Some(NOBODY), None).unwrap();
    assert_untrusted(&env, &state, WRITABLE);
    chown(&root, Some(0), None).unwrap();
    assert_believed(&env, &state, "root's alone");
}

#[test]
fn a_runtime_directory_may_be_a_link_only_within_its_root_and_only_roots() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().layout(Layout::Template).start();
    fs::remove_dir_all(sandbox.runtime_dir("sbs")).unwrap();
    let state = env.bundle().state(0);
    let (link, inside) = (sandbox.runtime_dir("vm"), env.runtime_dir("vm", &sandbox.vm_id));
    let relink = |target: &Path| {
        fs::remove_file(&link).unwrap();
        symlink(target, &link).unwrap();
    };
    // The same directory, reached from outside.
    let outside = env.dir.join(&sandbox.vm_id);
    fs::create_dir(&outside).unwrap();
    set_mode(&outside, 0o700);
    write_file(&outside.join("pid"), 0o600, &fs::read_to_string(inside.join("pid")).unwrap());
    relink(&outside);
    assert_untrusted(&env, &state, LINK);
    relink(&Path::new("..").join(&sandbox.vm_id));
    assert_untrusted(&env, &state, LINK);
    relink(&inside);
    lchown(&link, Some(NOBODY), None).unwrap();
    assert_untrusted(&env, &state, LINK);
    lchown(&link, Some(0), None).unwrap();
    assert_believed(&env, &state, "root's link within the root");
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_vmms_arguments_must_name_this_sandbox() {
    let Some(env) = Env::new() else { return };
    // A pid file left behind, and its number now another sandbox's QEMU.
    let other = env.sandbox().id("other").layout(Layout::RuntimeRs).start();
    env.make_runtime_dir("vm", &env.name);
    let state = env.bundle().state(0);
    write_file(&env.runtime_dir("vm", &env.name).join("pid"), 0o600, &format!("{}\n", other.pid));
    other.place(&env.bundle_of(Engine::Single, Kind::Workload, &other.id, &other.id));
    for state in [&state, &env.bundle().state(other.pid)] {
        assert_untrusted(&env, state, "has no argument that names this sandbox");
    }
    other.assert_placed(&format!("{}/pod/kata_{}", env.top(), other.id));
    drop(other);
    let own = env.sandbox().id("own").layout(Layout::RuntimeRs).named_for(&env.name).start();
    write_file(&env.runtime_dir("vm", &env.name).join("pid"), 0o600, &format!("{}\n", own.pid));
    assert_believed(&env, &state, "this sandbox's");
}

#[test]
fn a_name_that_only_begins_like_this_sandboxs_is_another() {
    let Some(env) = Env::new() else { return };
    for (name, ours) in [(format!("{}0", env.name), false), (format!("x{}", env.name), false), (env.name.clone(), true)] {
        let sandbox = env.sandbox().id(if ours { "own" } else { "other" }).layout(Layout::RuntimeRs).named_for(&name).start();
        let _ = fs::create_dir(env.runtime_dir("vm", &env.name));
        set_mode(&env.runtime_dir("vm", &env.name), 0o700);
        write_file(&env.runtime_dir("vm", &env.name).join("pid"), 0o600, &format!("{}\n", sandbox.pid));
        let state = env.bundle().state(0);
        if ours {
            assert_believed(&env, &state, &name);
        } else {
            assert_not_believed(&env, &state, "has no argument that names this sandbox");
        }
        let (id, scratch) = (sandbox.id.clone(), env.dir.join(format!("{}.qemu", sandbox.id)));
        drop(sandbox);
        fs::remove_dir_all(env.runtime_dir("kata", &id)).unwrap();
        fs::remove_dir_all(scratch).unwrap();
    }
}

#[test]
fn the_states_pid_is_a_hint_that_has_to_prove_itself() {
    let Some(env) = Env::new() else { return };
    let other = env.sandbox().id("other").layout(Layout::Unnamed).start();
    let own = env.sandbox().layout(Layout::Unnamed).start();
    let sleeper = Process::sleeping();
    let bundle = env.bundle();
    assert_not_believed(&env, &bundle.state(other.pid), "has no argument that names this sandbox");
    // What looks like no VMM is no news: in a runc pod it is the tenant's own process.
    for pid in [sleeper.pid(), std::process::id().try_into().unwrap()] {
        assert_told(&env, &bundle.state(pid), "not-yet", "no VMM yet");
    }
    assert_believed(&env, &bundle.state(own.pid), "the VMM's own");
    own.assert_placed(&env.group());
}

#[test]
fn a_tenants_process_that_looks_like_a_vmm_is_none_where_the_runtime_knows_no_vm() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().layout(Layout::Unnamed).start();
    let dir = env.runtime_dir("vm", &env.name);
    let aside = env.dir.join("aside");
    fs::rename(&dir, &aside).unwrap();
    let state = env.bundle().state(sandbox.pid);
    let before = env.dump();
    for stage in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        env.hook(stage).state(&state).run().was_silent();
        before.assert_same(&env.dump(), "no runtime directory");
    }
    fs::rename(&aside, &dir).unwrap();
    assert_believed(&env, &state, "a runtime directory");
}

/// A QEMU of the test's own, in place of the installed one in the table of kinds.
fn own_qemu(env: &Env) -> PathBuf {
    let file = env.own_qemu();
    env.configure(&qemu_row(&file));
    file
}

fn qemu_row(file: &Path) -> String {
    format!("[[vmm]]\nname = \"qemu\"\nrole = \"vmm\"\nexecutables = [\"{}\"]\nvcpu-threads = \"CPU */TCG\"\n", file.display())
}

#[test]
fn a_vmms_file_must_be_in_the_table() {
    let Some(env) = Env::new() else { return };
    let file = own_qemu(&env);
    env.configure("");
    let sandbox = env.sandbox().binary(&file).start();
    let state = env.bundle().state(sandbox.pid);
    assert_not_believed(&env, &state, "which is no VMM or helper that is known");
    env.configure(&qemu_row(&file));
    assert_believed(&env, &state, "in the table");
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_vmms_file_must_be_roots_and_nobody_elses_to_write() {
    let Some(env) = Env::new() else { return };
    let file = own_qemu(&env);
    let sandbox = env.sandbox().binary(&file).start();
    let state = env.bundle().state(sandbox.pid);
    for mode in [0o757, 0o775] {
        set_mode(&file, mode);
        assert_not_believed(&env, &state, NOT_THE_HOSTS);
    }
    set_mode(&file, 0o755);
    chown(&file, Some(NOBODY), None).unwrap();
    assert_not_believed(&env, &state, NOT_THE_HOSTS);
    chown(&file, Some(0), None).unwrap();
    assert_believed(&env, &state, "root's alone");
}

#[test]
fn a_file_of_the_tables_name_at_another_place_is_another_file() {
    let Some(env) = Env::new() else { return };
    let file = own_qemu(&env);
    let sandbox = env.sandbox().binary(&file).start();
    let state = env.bundle().state(sandbox.pid);
    // The process keeps its file; the table's place now has a copy of it.
    let aside = env.dir.join("aside");
    fs::rename(&file, &aside).unwrap();
    fs::copy(&aside, &file).unwrap();
    assert_not_believed(&env, &state, "aside, which is no VMM or helper that is known");
    fs::rename(&aside, &file).unwrap();
    assert_believed(&env, &state, "the file itself");
}

#[test]
fn a_file_that_an_upgrade_deleted_is_believed_of_a_process_that_root_named() {
    let Some(env) = Env::new() else { return };
    let file = own_qemu(&env);
    let sandbox = env.sandbox().binary(&file).start();
    let (pid_file, text) = (sandbox.runtime_dir("vm").join("pid"), format!("{}\n", sandbox.pid));
    fs::remove_dir_all(sandbox.runtime_dir("sbs")).unwrap();
    fs::remove_file(&pid_file).unwrap();
    fs::remove_file(&file).unwrap();
    fs::copy("/usr/bin/qemu-system-x86_64", &file).unwrap();
    let state = env.bundle().state(sandbox.pid);
    assert_not_believed(&env, &state, NOT_THE_HOSTS);
    sandbox.write_pid_file(&text);
    assert_believed(&env, &state, "named by root's file");
    sandbox.assert_placed(&env.group());
    // And from now on the record knows it.
    fs::remove_file(&pid_file).unwrap();
    sandbox.release(&env.bundle()).logged("released");
    env.assert_no_groups();
}

#[test]
fn a_vmm_must_run_as_the_owner_of_its_runtime_directory() {
    for (wrapper, ours) in [(["setpriv", "--reuid=65534", "--"], false), (["setpriv", "--reuid=0", "--"], true)] {
        let Some(env) = Env::new() else { return };
        let sandbox = env.sandbox().wrapped_in(&wrapper).start();
        let state = env.bundle().state(sandbox.pid);
        if ours {
            assert_believed(&env, &state, "root's");
            sandbox.assert_placed(&env.group());
        } else {
            assert_not_believed(&env, &state, "does not run as root with all its user ids");
        }
    }
}

#[test]
fn a_vmm_must_live_in_the_hosts_pid_namespace() {
    for (wrapper, ours) in
        [(["unshare", "--pid", "--fork", "--kill-child", "--"].as_slice(), false), (&["unshare", "--uts", "--"], true)]
    {
        let Some(env) = Env::new() else { return };
        let sandbox = env.sandbox().wrapped_in(wrapper).start();
        let state = env.bundle().state(sandbox.pid);
        if ours {
            assert_believed(&env, &state, "the host's");
            sandbox.assert_placed(&env.group());
        } else {
            assert_not_believed(&env, &state, "is in a pid namespace of its own, not in the host's");
        }
    }
}

#[test]
fn a_helper_has_to_prove_itself_as_well() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle();
    let sleeper = Process::sleeping();
    env.watch(sleeper.pid());
    let places = || CONTROLLERS.map(|controller| place_of(sleeper.pid(), controller));
    let before = places();
    sandbox.write_persist_json(Some(sleeper.pid()));
    sandbox.place(&bundle);
    assert_eq!(places(), before, "a sleeper is no virtiofsd");
    assert_eq!(env.unconstrained().processes(), [sandbox.pid].into());
    sandbox.release(&bundle);

    sandbox.write_persist_json(sandbox.virtiofsd_pid);
    sandbox.place(&bundle);
    sandbox.assert_placed(&env.group());
}

#[test]
fn of_the_shims_children_only_helpers_are_taken_along() {
    let Some(env) = Env::new() else { return };
    env.configure(&env.shim_row());
    let mut shim = env.shim(&env.name);
    let sandbox = env.sandbox().layout(Layout::Unnamed).start_in(&mut shim);
    let sleeper = shim.start(&["sleep".into(), "1000".into()]);
    let hook = env.hook("prestart").state(env.bundle().state(0));
    shim.run_hook(&hook).succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
    assert!(!env.unconstrained().holds(sleeper));
    assert!(!env.unconstrained().holds(shim.pid()), "the shim stays where it is");
}

#[test]
fn a_shim_must_be_in_the_table_to_be_asked_for_its_children() {
    let Some(env) = Env::new() else { return };
    let mut shim = env.shim(&env.name);
    let sandbox = env.sandbox().layout(Layout::Unnamed).start_in(&mut shim);
    let file = env.shim_file();
    env.configure(&env.shim_row());
    set_mode(&file, 0o757);
    let hook = env.hook("prestart").state(env.bundle().state(shim.pid()));
    let before = env.dump();
    shim.run_hook(&hook).succeeded();
    before.assert_same(&env.dump(), "a shim whose file others may write");
    set_mode(&file, 0o755);
    shim.run_hook(&hook).succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_record_that_is_not_roots_alone_is_not_believed() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    // A group that somebody would like to see removed, written into the record as one of the sandbox's.
    let victim = Group::new("cpu", &format!("{}/victim", env.top()));
    victim.make();
    let path = env.state_dir().join(format!("{}.json", env.name));
    let forge = || {
        let mut record: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let inode = fs::metadata(victim.path_on_host()).unwrap().ino();
        let group = json!({ "path": victim.path_on_host(), "controllers": ["cpu"], "inode": inode });
        record["groups"].as_array_mut().unwrap().push(group);
        fs::write(&path, record.to_string()).unwrap();
    };
    let spoil: [fn(&Path); 2] = [|path| chown(path, Some(NOBODY), None).unwrap(), |path| set_mode(path, 0o602)];
    for spoil in spoil {
        sandbox.place(&bundle);
        forge();
        spoil(&path);
        let run = env.hook("poststop").state(bundle.state(sandbox.pid)).run();
        assert_eq!(run.code, Some(0), "{run:#?}");
        assert!(victim.exists(), "somebody else's record was believed");
    }
    // The same record in root's hands is.
    sandbox.place(&bundle);
    forge();
    sandbox.release(&bundle).logged("released");
    assert!(!victim.exists(), "root's own record was not believed");
}

#[test]
fn a_group_that_bears_our_name_is_not_ours_for_that() {
    let Some(env) = Env::new() else { return };
    let mut sandbox = env.sandbox().start();
    let bundle = env.bundle();
    // Made by somebody else before the hook ever ran, under the very name the hook would give.
    let namesake = env.unconstrained();
    namesake.make();
    let run = env.hook("prestart").state(bundle.state(sandbox.pid)).run();
    if namesake.hierarchy.version == Version::V1 {
        // What takes any process in is used, and left behind.
        run.succeeded().logged("placed");
    } else {
        // A domain has to be of the sandbox alone.
        assert!(run.stderr.contains(&namesake.path), "{run:#?}");
        run.failed_with(1).logged("failed");
    }
    sandbox.kill();
    sandbox.release(&bundle);
    assert!(namesake.exists());
    assert!(namesake.remove_tree());
}
