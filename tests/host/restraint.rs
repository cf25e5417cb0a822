//! What the hook never does, by the system calls that it makes: it kills and starts nobody, creates no file but in the state
//! directory, mounts nothing, follows no link on the way to what it writes, and speaks to nobody but the log.

use std::path::Path;

use crate::testenv::*;

/// Calls that no run makes: signals to others, new processes, mounts in sight, another directory, other people's memory, a network.
const NEVER: [&str; 27] = [
    "kill",
    "tkill",
    "tgkill",
    "pidfd_send_signal",
    "rt_sigqueueinfo",
    "fork",
    "vfork",
    "clone",
    "clone3",
    "execve",
    "execveat",
    "mount",
    "umount2",
    "move_mount",
    "pivot_root",
    "chroot",
    "setns",
    "unshare",
    "chdir",
    "fchdir",
    "ptrace",
    "process_vm_writev",
    "connect",
    "listen",
    "accept4",
    "symlinkat",
    "linkat",
];

/// What is wrong with a call of the hook's, if anything is.
fn offence(env: &Env, call: &Call) -> Option<&'static str> {
    let is_in_state = Path::new(&call.path).starts_with(env.state_dir());
    let has = |flag: &str| call.line.contains(flag);
    match call.name.as_str() {
        name if NEVER.contains(&name) => Some("a call that no run makes"),
        "socket" if !has("AF_UNIX, SOCK_DGRAM") => Some("a socket that is not the log's"),
        "openat" | "openat2" if (has("O_CREAT") || has("O_TRUNC")) && !is_in_state => {
            Some("a file made or emptied outside of the state directory")
        }
        "openat" | "openat2" if (has("O_WRONLY") || has("O_RDWR")) && !has("O_NOFOLLOW") => {
            Some("a link that would be followed to be written")
        }
        "openat" | "openat2" if (has("O_WRONLY") || has("O_RDWR")) && !is_in_state && !call.is_on_group() => {
            Some("a write to somebody else's")
        }
        "mkdirat" | "unlinkat" | "renameat" if !is_in_state && !call.is_on_group() => {
            Some("a directory that is nobody's business")
        }
        "fsetxattr" if !call.is_on_group() => Some("a mark on what is no group"),
        _ => None,
    }
}

#[test]
fn no_run_kills_starts_mounts_or_writes_where_it_has_no_business() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    // The way that it asks for is the pod's own, and one that looks as if it led elsewhere.
    for path in [format!("{}/pod/c", env.top()), format!("/../../../..{}/pod/c", env.top())] {
        let bundle = env.bundle().cgroups_path(&path);
        let mut written = 0;
        for stage in ["createRuntime", "poststart", "reconcile", "poststop"] {
            let calls = calls_of(&env, env.hook(stage).state(bundle.state(sandbox.pid)));
            let offences: Vec<_> = calls.iter().filter_map(|call| Some((offence(&env, call)?, &call.line))).collect();
            assert!(offences.is_empty(), "{stage}: {offences:#?}");
            written += calls.iter().filter(|call| call.name == "write" && call.is_on_group()).count();
        }
        assert!(written > 10, "the runs did something: {written}");
        env.assert_no_groups();
    }
    // Its eyes for an offence are open.
    let trace = |line: &str| Call::parse(line).and_then(|call| offence(&env, &call)).is_some();
    assert!(trace("1 kill(4711, SIGKILL) = 0"));
    assert!(trace("1 openat(5</sys/fs/cgroup>, \"x\", O_WRONLY|O_CREAT|O_NOFOLLOW) = 6</sys/fs/cgroup/x>"));
}
