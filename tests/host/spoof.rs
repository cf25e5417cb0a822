//! Impostors: processes that look like a sandbox's VMM in all but one fact, and are named as it in every way there is.
//!
//! Each has the sandbox's id in its arguments, threads with the names of vCPUs, and runs for real as somebody else, in a container's
//! namespaces, or from a file of its own. None of them is ever moved; their twin, which is what they pretend to be, is.

use std::any::Any;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::testenv::*;

const VMM: &str = "spoof::told_to_this_program_is_a_vmm";

#[test]
fn told_to_this_program_is_a_vmm() {
    be_a_vmm();
}

/// A file of root's that the table names, and one with the same bytes that it does not.
struct Files {
    table: PathBuf,
    other: PathBuf,
}

impl Files {
    fn of(env: &Env) -> Files {
        let files = Files { table: env.dir.join("vmm"), other: env.dir.join("other") };
        for file in [&files.table, &files.other] {
            copy_program(std::env::current_exe().unwrap(), file);
        }
        env.configure(&row_of_vmm(&files.table));
        files
    }
}

/// What is wrong with a process, how the hook puts it, and its pid in the host's namespace, for as long as it is held.
struct Impostor {
    what: &'static str,
    why: &'static str,
    pid: i32,
    _held: Box<dyn Any>,
}

impl Impostor {
    fn new(what: &'static str, why: &'static str, stand_in: StandIn) -> Impostor {
        Impostor { what, why, pid: stand_in.pid(), _held: Box::new(stand_in) }
    }
}

const NOT_ROOT: &str = "does not run as root with all its user ids";
const NOT_THE_HOSTS: &str = "which is not the host's own file of that path";
const NOT_IN_TABLE: &str = "which is no VMM or helper that is known";

/// One of each kind.
fn impostors(env: &Env, files: &Files) -> Vec<Impostor> {
    let like = |id: &str, wrapper: &[&str]| StandIn::started_as(id, VMM, &files.table, wrapper);
    let (table, other) = (files.table.to_str().unwrap(), files.other.to_str().unwrap());
    // A container's image has a file of root's own at that very path.
    let image = ["sh", "-c", "mount --bind \"$0\" \"$1\" && shift && exec \"$@\"", other, table, table];
    let image = &image[..image.len() - 1];
    let own_pids = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--"];
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let named = named_only(env, table);
    vec![
        Impostor::new("an ordinary user's, from root's own file", NOT_ROOT, like(&env.name, &user)),
        Impostor::new("a user's with root's rights for now", NOT_ROOT, like(&env.name, &["setpriv", "--ruid=65534", "--"])),
        Impostor::new("root's that acts as a user", NOT_ROOT, like(&env.name, &["setpriv", "--euid=65534", "--"])),
        Impostor::new("a container's", "is in a pid namespace of its own", like(&env.name, &own_pids)),
        Impostor::new(
            "another image's, in the host's pid namespace",
            NOT_THE_HOSTS,
            like(&env.name, &[&["unshare", "--mount", "--"], image].concat()),
        ),
        Impostor::new("another image's", NOT_THE_HOSTS, like(&env.name, &[&own_pids, image].concat())),
        Impostor::new("from another file", NOT_IN_TABLE, StandIn::started_as(&env.name, VMM, &files.other, &[])),
        Impostor::new("another sandbox's", "has no argument that names this sandbox", like(&format!("{}0", env.name), &[])),
        Impostor { what: "named so, and no more", why: NOT_IN_TABLE, pid: named.pid(), _held: Box::new(named) },
    ]
}

/// A shell with the arguments and the name of a VMM, and with /dev/kvm open where there is one.
fn named_only(env: &Env, argv0: &str) -> Process {
    let script = "printf %s qemu-system-x86 >/proc/$$/comm; [ ! -e /dev/kvm ] || exec 9<>/dev/kvm; kill -STOP $$; :";
    let rename = format!("exec -a \"$0\" bash -c '{script}' -name \"sandbox-$1\"");
    let named = Process::spawn(Process::command("bash").args(["-c", &rename, argv0, &env.name]));
    let of_it = |file: &str| format!("/proc/{}/{file}", named.pid());
    wait_until("it to stop", || fs::read_to_string(of_it("stat")).unwrap().contains(") T "));
    assert_eq!(fs::read_to_string(of_it("comm")).unwrap(), "qemu-system-x86\n");
    assert!(fs::read_to_string(of_it("cmdline")).unwrap().starts_with(argv0));
    assert!(!Path::new("/dev/kvm").exists() || fs::read_link(of_it("fd/9")).unwrap() == Path::new("/dev/kvm"));
    named
}

/// Has this file of root's, and no other, name a process as the sandbox's VMM.
fn name_in(env: &Env, root: &str, pid: i32) {
    for root in ["vm", "sbs", "kata"] {
        let _ = fs::remove_dir_all(env.runtime_dir(root, &env.name));
    }
    let (file, text) = match root {
        "vm" => ("pid", format!("{pid}\n")),
        "sbs" => ("persist.json", json!({ "HypervisorState": { "Pid": pid } }).to_string()),
        _ => ("state.json", json!({ "hypervisor": { "pid": pid } }).to_string()),
    };
    write_file(&env.make_runtime_dir(root, &env.name).join(file), 0o600, &text);
}

#[test]
fn an_impostor_is_never_moved_whoever_names_it() {
    let Some(env) = Env::new() else { return };
    let files = Files::of(&env);
    let bundle = env.bundle();
    for Impostor { what, why, pid, .. } in &impostors(&env, &files) {
        env.watch(*pid);
        // A file of root's names it; that and the state, as in every container that runc starts; the state alone.
        for (root, hint) in [("vm", 0), ("sbs", 0), ("kata", 0), ("vm", *pid)] {
            name_in(&env, root, *pid);
            let before = env.dump();
            for stage in ["createRuntime", "poststart"] {
                let run = env.hook(stage).state(bundle.state(hint)).run().succeeded();
                let (line, process) = (run.logged("refused"), format!("process {pid} named by"));
                assert!(line.priority == 28 && line.get("msg").contains(&process), "{what}, {root}: {run:#?}");
                assert!(line.get("msg").contains(why), "{what}, {root}: {run:#?}");
            }
            env.hook("poststop").state(bundle.state(hint)).run().succeeded();
            before.assert_same(&env.dump(), format!("{what}, {root}"));
        }
        fs::remove_file(env.runtime_dir("vm", &env.name).join("pid")).unwrap();
        let before = env.dump();
        let run = env.hook("createRuntime").state(bundle.state(*pid)).run().succeeded();
        // A mere hint that runs something else is no news: in a runc pod that is the tenant's own process.
        let result = if *why == NOT_IN_TABLE { "not-yet" } else { "refused" };
        assert!(run.logged(result).get("msg").contains(why) || result == "not-yet", "{what}: {run:#?}");
        before.assert_same(&env.dump(), *what);
    }
    let twin = StandIn::started_as(&env.name, VMM, &files.table, &[]);
    for (root, hint) in [("vm", 0), ("sbs", 0), ("kata", 0), ("vm", twin.pid())] {
        name_in(&env, root, twin.pid());
        if hint != 0 {
            fs::remove_file(env.runtime_dir(root, &env.name).join("pid")).unwrap();
        }
        env.hook("createRuntime").state(bundle.state(hint)).run().succeeded().logged("placed");
        twin.assert_placed(&env.group());
        env.hook("poststop").state(bundle.state(hint)).run().succeeded().logged("released");
    }
}

#[test]
fn the_child_of_a_shim_that_is_none_is_nobody_and_of_this_sandboxs_shim_its_vmm() {
    let Some(env) = Env::new() else { return };
    let hook = || env.hook("createRuntime");
    for (what, sandbox, row, result) in [
        ("called so, from a file that the table does not have", env.name.clone(), String::new(), "not-yet"),
        ("another sandbox's", format!("{}-other", env.name), env.shim_row(), "refused"),
        ("this sandbox's", env.name.clone(), env.shim_row(), "placed"),
    ] {
        // Without the row, its own name in the table is a path at which there is nothing.
        let nowhere = "[[vmm]]\nname = \"shim\"\nrole = \"shim\"\nexecutables = [\"/nowhere/containerd-shim-kata-v2\"]\n";
        env.configure(&format!("{nowhere}{row}"));
        let mut shim = env.shim(&sandbox);
        let vm = env.sandbox().layout(Layout::Unnamed).start_in(&mut shim);
        let state = env.bundle().state(shim.pid());
        let before = env.dump();
        let run = shim.run_hook(&hook().state(&state)).succeeded();
        run.logged(result);
        if result == "placed" {
            vm.assert_placed(&env.group());
            continue;
        }
        before.assert_same(&env.dump(), what);
        drop((vm, shim));
        fs::remove_dir_all(env.runtime_dir("vm", &env.name)).unwrap();
        fs::remove_dir_all(env.dir.join(format!("{}.qemu", env.name))).unwrap();
    }
}
