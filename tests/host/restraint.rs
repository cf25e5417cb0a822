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
        _ if call.path.split('/').any(|part| part == "..") => Some("a way that leads up again"),
        "openat" | "openat2" | "newfstatat" | "statx" | "readlinkat" if is_from_working_directory(call) => {
            Some("a look at the working directory")
        }
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

/// A relative name beneath no descriptor is one of whatever directory the hook was started in.
fn is_from_working_directory(call: &Call) -> bool {
    let arguments = call.line.split_once("(AT_FDCWD").and_then(|(_, rest)| rest.split_once(", \""));
    arguments.is_some_and(|(_, name)| !name.starts_with(['/', '"']))
}

#[test]
fn no_run_kills_starts_mounts_or_writes_where_it_has_no_business() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    // The way that it asks for is the pod's own, and one that looks as if it led elsewhere.
    for path in [format!("{}/pod/c", env.top()), format!("/../../../..{}/pod/c", env.top())] {
        let bundle = env.bundle().cgroups_path(&path);
        let (mut written, mut debugfs) = (0, 0);
        for stage in ["createRuntime", "poststart", "reconcile", "poststop"] {
            let calls = calls_of(&env, env.hook(stage).state(bundle.state(sandbox.pid)));
            let offences: Vec<_> = calls.iter().filter_map(|call| Some((offence(&env, call)?, &call.line))).collect();
            assert!(offences.is_empty(), "{stage}: {offences:#?}");
            written += calls.iter().filter(|call| call.name == "write" && call.is_on_group()).count();
            debugfs += calls.iter().filter(|call| call.name == "fsmount" || call.path.ends_with("/kvm")).count();
        }
        assert!(debugfs > 0, "debugfs was opened, mounted or not");
        assert!(written > 10, "the runs did something: {written}");
        env.assert_no_groups();
    }
    // Its eyes for an offence are open.
    let trace = |line: &str| Call::parse(line).and_then(|call| offence(&env, &call)).is_some();
    assert!(trace("1 kill(4711, SIGKILL) = 0"));
    assert!(trace("1 openat(5</sys/fs/cgroup>, \"x\", O_WRONLY|O_CREAT|O_NOFOLLOW) = 6</sys/fs/cgroup/x>"));
    assert!(trace("1 openat(AT_FDCWD</root>, \"config.toml\", O_RDONLY) = 6</root/config.toml>"));
    assert!(!trace("1 openat(AT_FDCWD</root>, \"/etc/config.toml\", O_RDONLY) = 6</etc/config.toml>"));
}
