//! Names and paths that nobody would choose: too long, too deep, of the wrong kind, exchanged for others while the hook looks.
//!
//! Each ends as the table of outcomes has it, in time, and nothing is written but below the cgroup mounts and in the state directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

use crate::testenv::*;

const VMM: &str = "strange_paths::told_to_this_program_is_a_vmm";
const NOBODY: u32 = 65534;

#[test]
fn told_to_this_program_is_a_vmm() {
    be_a_vmm();
}

/// Fails the container's start with a reason, and is told once it has started; nothing is changed by either.
#[track_caller]
fn assert_fails(env: &Env, state: &str, what: &str) {
    let before = env.dump();
    for (stage, code) in [("createRuntime", 1), ("poststart", 0)] {
        let run = env.hook(stage).state(state).run();
        assert_eq!((run.code, run.stdout.as_str(), run.stderr.lines().count()), (Some(code), "", 1), "{what}: {run:#?}");
        run.logged("failed");
        before.assert_same(&env.dump(), what);
    }
    let run = env.hook("poststop").state(state).run();
    assert!(run.code == Some(0) && run.stderr.lines().count() <= 1, "{what}: {run:#?}");
    before.assert_same(&env.dump(), what);
}

/// What a bundle may be instead of a directory with a config.json.
fn strange_bundles(dir: &Path) -> Vec<(&'static str, PathBuf)> {
    let at = |name: &str| dir.join(name);
    mkfifo(&at("fifo"), Mode::from_bits_truncate(0o644)).unwrap();
    fs::write(at("file"), "{}").unwrap();
    drop(UnixListener::bind(at("socket")).unwrap());
    symlink("loop", at("loop")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    vec![
        ("a fifo", at("fifo")),
        ("a file", at("file")),
        ("a socket", at("socket")),
        ("a link to itself", at("loop")),
        ("an empty directory", at("empty")),
        ("a device", "/dev/zero".into()),
        ("a terminal", "/dev/tty".into()),
        ("the root", "/".into()),
        ("a way out and nowhere", at("../../../../../../nowhere")),
        ("a name too long for a file", at(&"x".repeat(256))),
        ("a path too long for any", at(&"x/".repeat(2048))),
        ("a line end, an escape and blanks", at("a\nb \u{1b}[2J")),
        ("a NUL", at("a\0b")),
    ]
}

#[test]
fn a_bundle_of_the_wrong_kind_fails_a_vm_sandbox_and_nobody_else() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let mut bundle = env.bundle();
    let mut other = env.bundle_of(Engine::Single, Kind::Workload, "kch-test-nobody", "kch-test-nobody");
    let good = bundle.dir.clone();
    for (what, path) in strange_bundles(&env.dir) {
        (bundle.dir, other.dir) = (path.clone(), path);
        assert_fails(&env, &bundle.state(sandbox.pid), what);
        for stage in ["createRuntime", "poststart", "poststop"] {
            env.hook(stage).state(other.state(sandbox.pid)).run().was_silent();
        }
    }
    let odd = env.dir.join("bundles").join("a\nb \u{1b}[2J");
    fs::rename(good, &odd).unwrap();
    bundle.dir = odd;
    sandbox.place(&bundle);
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_cgroups_path_that_no_kernel_could_make_fails_and_the_longest_and_deepest_is_placed() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let top = env.top();
    let impossible = [
        format!("{top}/a\0b"),
        format!("{top}/a\nb"),
        format!("{top}/{}", "x".repeat(251)),
        format!("{top}/{}/c", "x".repeat(256)),
        format!("{top}{}", "/x".repeat(63)),
        format!("{top}{}", "/x".repeat(1800)),
        format!("{top}{}", format!("/{}", "x".repeat(255)).repeat(16)),
        format!("a--b.slice:cri:{}", env.name),
    ];
    for path in impossible {
        assert_fails(&env, &env.bundle().cgroups_path(&path).state(sandbox.pid), &path);
    }
    let odd = format!("/a b\u{1b}[2J%s*\"'\\{}", "x".repeat(200));
    let deep = "/x".repeat(if stride() == 1 { 61 } else { 20 });
    for path in [format!("{top}{odd}/c"), format!("{top}{deep}/c")] {
        let bundle = env.bundle().cgroups_path(&path);
        sandbox.place(&bundle);
        sandbox.assert_placed(&path.replace("/c", "/kata_c"));
        sandbox.release(&bundle).logged("released");
        env.assert_no_groups();
    }
}

#[test]
fn a_sandbox_id_in_an_annotation_that_is_no_file_name_makes_no_container_a_vm_sandboxs() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    // The last leads back to the sandbox's own runtime directory.
    let ids =
        ["", "..", ".", "a/b", "a\nb", "a\0b", "-a", &"x".repeat(4096), &"x".repeat(64 << 10), &format!("./{}", env.name)];
    for (engine, id) in [Engine::Containerd, Engine::CriO].into_iter().flat_map(|engine| ids.map(|id| (engine, id))) {
        let bundle = env.bundle_of(engine, Kind::Workload, id, "c1");
        let before = env.dump();
        for stage in ["createRuntime", "poststart", "poststop"] {
            env.hook(stage).state(bundle.state(sandbox.pid)).run().was_silent();
        }
        before.assert_same(&env.dump(), format!("{engine:?} {id:.20?}"));
    }
    let bundle = env.bundle_of(Engine::CriO, Kind::Workload, &env.name, "c1");
    sandbox.place(&bundle);
}

#[test]
fn annotations_of_any_length_and_kind_neither_forge_nor_flood_the_log() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let long = "x\n<27>kata-cgroup-hook[1]: result=failed \u{1b}[2J\u{202e} ".repeat(1400);
    assert!(long.len() > 64 << 10);
    let keys =
        ["io.kubernetes.cri.container-name", "io.kubernetes.cri.sandbox-cpu-quota", "io.kubernetes.cri.sandbox-name", &long];
    for key in keys {
        let bundle = env.bundle_of(Engine::Containerd, Kind::Sandbox, &env.name, &env.name).annotate(key, &long);
        for (stage, result) in [("createRuntime", "placed"), ("poststop", "released")] {
            let run = env.hook(stage).state(bundle.state(sandbox.pid)).run().succeeded();
            let raw = &run.logged(result).raw;
            assert!(raw.len() <= 1024 && !raw.contains(|char: char| char.is_control() || char == '\u{202e}'), "{raw:?}");
        }
    }
}

#[test]
fn an_id_that_is_too_long_for_the_files_named_after_it_fails_and_the_longest_other_is_placed() {
    let Some(env) = Env::new() else { return };
    env.configure(&stand_in_row());
    let file = std::env::current_exe().unwrap();
    for (length, is_good) in [(255, false), (246, false), (245, true)] {
        let id = format!("{}-{}", env.name, "x".repeat(length - env.name.len() - 1));
        let vm = StandIn::started_as(&id, VMM, &file, &[]);
        write_file(&env.make_runtime_dir("vm", &id).join("pid"), 0o600, &format!("{}\n", vm.pid()));
        let bundle = env.bundle_of(Engine::Single, Kind::Workload, &id, &id).cgroups_path(&format!("{}/pod/c", env.top()));
        if is_good {
            env.hook("createRuntime").state(bundle.state(vm.pid())).run().succeeded().logged("placed");
            vm.assert_placed(&format!("{}/pod/kata_c", env.top()));
            env.hook("poststop").state(bundle.state(vm.pid())).run().succeeded().logged("released");
        } else {
            let run = env.hook("createRuntime").state(bundle.state(vm.pid())).run().failed_with(1);
            assert!(run.stderr.contains("ENAMETOOLONG"), "{run:#?}");
        }
        env.assert_no_groups();
    }
}

#[test]
fn a_state_directory_that_is_not_roots_own_is_refused_and_one_that_is_made_is() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let state = bundle.state(sandbox.pid);
    let (dir, good) = (env.state_dir(), env.dir.join("good"));
    fs::create_dir(&good).unwrap();
    set_mode(&good, 0o700);
    let made = |mode: u32, owner: u32| {
        fs::create_dir(&dir).unwrap();
        set_mode(&dir, mode);
        chown(&dir, Some(owner), None).unwrap();
    };
    let kinds: [(&str, &dyn Fn()); 7] = [
        ("nobody's", &|| made(0o700, NOBODY)),
        ("everybody's", &|| made(0o777, 0)),
        ("as /tmp is", &|| made(0o1777, 0)),
        ("a group's", &|| made(0o770, 0)),
        ("a link", &|| symlink(&good, &dir).unwrap()),
        ("a file", &|| fs::write(&dir, "").unwrap()),
        ("a fifo", &|| mkfifo(&dir, Mode::from_bits_truncate(0o600)).unwrap()),
    ];
    for (what, make) in kinds {
        make();
        assert_fails(&env, &state, what);
        let _ = fs::remove_file(&dir);
        let _ = fs::remove_dir(&dir);
    }
    assert_eq!(fs::read_dir(&good).unwrap().count(), 0, "the link was followed");
    env.hook("createRuntime")
        .state(&state)
        .under(["sh", "-c", "umask 0 && exec \"$@\"", "sh"])
        .run()
        .succeeded()
        .logged("placed");
    let modes: Vec<u32> = [dir.clone(), dir.join(format!("{}.json", env.name))]
        .map(|path| fs::metadata(path).unwrap().permissions().mode() & 0o7777)
        .into();
    assert_eq!(modes, [0o700, 0o600]);
}

/// Those that are there for as long as a run takes.
#[test]
fn a_link_in_the_place_of_a_lock_or_of_a_record_that_is_being_written_is_not_followed() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    fs::create_dir(env.state_dir()).unwrap();
    set_mode(&env.state_dir(), 0o700);
    let victim = env.dir.join("victim");
    for name in [format!("{}.lock", env.name), format!(".{}.json.tmp", env.name)] {
        let link = env.state_dir().join(&name);
        for target in [victim.clone(), env.dir.join("none")] {
            fs::write(&victim, "not the hook's").unwrap();
            symlink(&target, &link).unwrap();
            let run = env.hook("createRuntime").state(bundle.state(sandbox.pid)).run().failed_with(1);
            assert!(run.stderr.contains("ELOOP"), "{name}: {run:#?}");
            env.assert_no_groups();
            assert_eq!(fs::read_to_string(&victim).unwrap(), "not the hook's");
            assert!(!env.dir.join("none").exists());
            // The hook may have removed it, as whatever is left of a record that could not be written.
            let _ = fs::remove_file(&link);
        }
    }
    sandbox.place(&bundle);
    sandbox.assert_placed(&env.group());
}

/// Exchanges what is at two paths for each other, for as long as it is asked to; how often it came to that.
fn swap_until(stop: &AtomicBool, one: &Path, other: &Path) -> usize {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let mut exchanged = 0;
    while !stop.load(Ordering::Relaxed) {
        // Where the hook has just taken one away there is nothing to exchange.
        exchanged += usize::from(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).is_ok());
    }
    exchanged
}

/// Stops the other thread in the end, a failure's too.
struct Stopped<'s>(&'s AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_is_exchanged_while_the_hook_looks_leads_it_nowhere_else() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    let never = format!("{}-never", env.name);
    // Root's alone, so that it is for nothing but the link that it does not count.
    let victim = env.dir.join("victim");
    fs::create_dir(&victim).unwrap();
    set_mode(&victim, 0o700);
    write_file(&victim.join("config.json"), 0o600, &json!({ "linux": { "cgroupsPath": format!("/{never}") } }).to_string());
    // The hook would take it for the sandbox's VMM if it followed a link to what names it.
    let program = env.dir.join("vmm");
    copy_program(std::env::current_exe().unwrap(), &program);
    env.configure(&row_of_vmm(&program));
    let stranger = StandIn::started_as(&env.name, VMM, &program, &[]);
    let record = env.state_dir().join(format!("{}.json", env.name));
    write_file(&victim.join("pid"), 0o600, &format!("{}\n", stranger.pid()));
    let forged = fs::read_to_string(&record).unwrap().replace("/pod/kata_", &format!("/{never}/kata_"));
    write_file(&victim.join("record"), 0o600, &forged);
    let home = || CONTROLLERS.map(|controller| place_of(stranger.pid(), controller));
    let strangers_home = home();
    let content = || {
        let files = fs::read_dir(&victim).unwrap().map(|entry| entry.unwrap().path());
        files.map(|path| (fs::read(&path).unwrap(), path)).collect::<std::collections::BTreeMap<_, _>>()
    };
    let before = content();
    let link_to = |target: &Path, name: &str| {
        let link = env.dir.join(name);
        symlink(target, &link).unwrap();
        link
    };
    let fifo = env.dir.join("fifo");
    mkfifo(&fifo, Mode::from_bits_truncate(0o600)).unwrap();
    sandbox.release(&bundle);
    let pairs = [
        (sandbox.runtime_dir("vm"), link_to(&victim, "runtime")),
        (sandbox.runtime_dir("vm").join("pid"), link_to(&victim.join("pid"), "pid-link")),
        (sandbox.runtime_dir("sbs").join("persist.json"), fifo),
        (env.state_dir(), link_to(&victim, "state-link")),
        (record, link_to(&victim.join("record"), "record-link")),
        (bundle.config_json(), link_to(&victim.join("config.json"), "config-link")),
    ];
    let is_led_astray = || {
        let below = everywhere(&format!("{}/{never}", env.top()));
        !groups_named(&never).is_empty() || below.iter().any(Group::exists)
    };
    for (one, other) in &pairs {
        sandbox.place(&bundle);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let swapping = scope.spawn(|| swap_until(&stop, one, other));
            let stopped = Stopped(&stop);
            let rounds = (0..if stride() == 1 { 12 } else { 3 }).map(|round| {
                let stage = ["poststart", "poststop", "createRuntime"][round % 3];
                let run = env.hook(stage).state(bundle.state(sandbox.pid)).run();
                (run, is_led_astray())
            });
            let rounds: Vec<(Run, bool)> = rounds.collect();
            for (run, led_astray) in rounds {
                assert!(matches!(run.code, Some(0 | 1)) && run.stderr.lines().count() <= 1, "{run:#?}");
                assert!(run.code == Some(0) || run.only_log_line().get("result") == "failed", "{run:#?}");
                assert!(!led_astray, "{run:#?}");
            }
            drop(stopped);
            assert!(swapping.join().unwrap() > 0, "{} was never exchanged", one.display());
        });
        assert_eq!((content(), home()), (before.clone(), strangers_home.clone()));
        let is_exchanged = fs::symlink_metadata(one).is_ok_and(|meta| meta.is_symlink() || !(meta.is_dir() || meta.is_file()));
        if is_exchanged {
            fs::rename(other, env.dir.join("aside")).unwrap();
            fs::remove_file(one).unwrap();
            fs::rename(env.dir.join("aside"), one).unwrap();
        }
        sandbox.release(&bundle);
    }
    sandbox.release(&bundle);
    sandbox.place(&bundle);
    sandbox.assert_placed(&env.group());
    sandbox.release(&bundle).logged("released");
    env.assert_no_groups();
}
