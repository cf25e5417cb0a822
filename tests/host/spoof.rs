//! Impostors: processes that look like a sandbox's VMM in all but one fact, and are named as it in every way there is.
//!
//! Each has the sandbox's id in its arguments, threads with the names of vCPUs, and runs for real as somebody else, in a container's
//! namespaces, or from a file of its own. None of them is ever moved; their twin, which is what they pretend to be, is.

use std::any::Any;
use std::fs;
use std::path::PathBuf;

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

/// What is wrong with a process, and its pid in the host's namespace, for as long as it is held.
struct Impostor {
    what: &'static str,
    pid: i32,
    _held: Box<dyn Any>,
}

impl Impostor {
    fn new(what: &'static str, stand_in: StandIn) -> Impostor {
        Impostor { what, pid: stand_in.pid(), _held: Box::new(stand_in) }
    }
}

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
        Impostor::new("an ordinary user's, from root's own file", like(&env.name, &user)),
        Impostor::new("a user's that has root's rights for the moment", like(&env.name, &["setpriv", "--ruid=65534", "--"])),
        Impostor::new("root's that acts as a user", like(&env.name, &["setpriv", "--euid=65534", "--"])),
        Impostor::new("a container's", like(&env.name, &own_pids)),
        Impostor::new(
            "another image's, in the host's pid namespace",
            like(&env.name, &[&["unshare", "--mount", "--"], image].concat()),
        ),
        Impostor::new("another image's", like(&env.name, &[&own_pids, image].concat())),
        Impostor::new("from another file", StandIn::started_as(&env.name, VMM, &files.other, &[])),
        Impostor::new("another sandbox's", like(&format!("{}0", env.name), &[])),
        Impostor { what: "named so, and no more", pid: named.pid(), _held: Box::new(named) },
    ]
}

/// A shell with the arguments and the name of a VMM, and with /dev/kvm open where there is one.
fn named_only(env: &Env, argv0: &str) -> Process {
    let script = "printf %s qemu-system-x86 >/proc/$$/comm; [ ! -e /dev/kvm ] || exec 9<>/dev/kvm; kill -STOP $$; :";
    let rename = format!("exec -a \"$0\" bash -c '{script}' -name \"sandbox-$1\"");
    Process::spawn(Process::command("bash").args(["-c", &rename, argv0, &env.name]))
}

#[test]
fn an_impostor_is_never_moved_whoever_names_it() {
    let Some(env) = Env::new() else { return };
    let files = Files::of(&env);
    let pid_file = env.make_runtime_dir("vm", &env.name).join("pid");
    let bundle = env.bundle();
    for Impostor { what, pid, .. } in &impostors(&env, &files) {
        env.watch(*pid);
        write_file(&pid_file, 0o600, &format!("{pid}\n"));
        let before = env.dump();
        // Root's own file names it, and the state does, as in every container that runc starts.
        for stage in ["createRuntime", "poststart"] {
            let run = env.hook(stage).state(bundle.state(*pid)).run().succeeded();
            let line = run.logged("refused");
            assert!(line.priority == 28 && line.get("msg").contains(&format!("process {pid}")), "{what}: {run:#?}");
        }
        env.hook("poststop").state(bundle.state(*pid)).run().succeeded();
        before.assert_same(&env.dump(), what);
        // The state alone does.
        fs::remove_file(&pid_file).unwrap();
        let before = env.dump();
        let run = env.hook("createRuntime").state(bundle.state(*pid)).run().succeeded();
        assert!(["refused", "not-yet"].contains(&run.only_log_line().get("result")), "{what}: {run:#?}");
        before.assert_same(&env.dump(), what);
    }
    let twin = StandIn::started_as(&env.name, VMM, &files.table, &[]);
    env.hook("createRuntime").state(bundle.state(twin.pid())).run().succeeded().logged("placed");
    twin.assert_placed(&env.group());
    env.hook("poststop").state(bundle.state(0)).run().succeeded().logged("released");
    write_file(&pid_file, 0o600, &format!("{}\n", twin.pid()));
    env.hook("createRuntime").state(bundle.state(0)).run().succeeded().logged("placed");
    twin.assert_placed(&env.group());
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
