//! The files of /proc that are read, any of which a user of the host may have a word in. The first line names the file, the rest
//! is in it.
#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use std::time::{Duration, Instant};

use kata_cgroup_hook::deadline::Deadline;
use kata_cgroup_hook::proc::{Membership, Proc, Stat, Status};
use kata_cgroup_hook_fuzz::first_line;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((name, content)) = first_line(data) else { return };
    match name {
        "stat" => stat(content),
        "status" => status(content),
        "cgroup" => cgroup(content),
        "fd" => descriptor(content),
        "cmdline" | "task/7/syscall" | "task/7/children" => process(name, content),
        "uptime" | "filesystems" | "sys/kernel/osrelease" | "self/uid_map" | "self/status" | "1/mountinfo" => {
            host(name, content)
        }
        _ => {}
    }
});

/// Whatever the name is, the kernel's fields behind it are what is read.
fn stat(line: &[u8]) {
    let Some(stat) = Stat::parse(line) else { return };
    let flags = if stat.is_user_worker { 0x4000 } else { 0 };
    let behind = format!(
        ") {} {} 1 1 0 -1 {flags} {}{} {}{}\n",
        char::from(stat.state.clamp(b'A', b'Z')),
        stat.parent,
        "0 ".repeat(12),
        stat.start,
        "0 ".repeat(20),
        stat.guest_time
    );
    let again = Stat::parse(&[b"7 (", stat.name.as_slice(), behind.as_bytes()].concat()).expect("a whole line");
    assert_eq!(
        (&again.name, again.parent, again.start, again.guest_time, again.is_user_worker),
        (&stat.name, stat.parent, stat.start, stat.guest_time, stat.is_user_worker)
    );
}

fn status(text: &[u8]) {
    let Some(status) = Status::parse(text) else { return };
    let [real, effective, saved, fs] = status.uids;
    let numbers = if status.is_nested { "7\t1" } else { "7" };
    let written = format!("Tgid:\t{}\nUid:\t{real}\t{effective}\t{saved}\t{fs}\nNSpid:\t{numbers}\n", status.thread_group);
    assert_eq!(Status::parse(written.as_bytes()), Some(status));
}

/// A path is a whole one of some line, and is found by every controller of it.
fn cgroup(text: &[u8]) {
    let groups = Membership::parse(text);
    for controller in ["cpu", "cpuacct", "cpuset", "memory", ""] {
        let Some(path) = groups.v1(controller) else { continue };
        let line = [b":", controller.as_bytes(), b":"].concat();
        let alone = [b"1".as_slice(), &line, path.as_os_str().as_bytes()].concat();
        assert_eq!(Membership::parse(&alone).v1(controller), Some(path));
        let path = path.as_os_str().as_bytes();
        assert!(text.split(|byte| *byte == b'\n').any(|line| line.ends_with(path)));
    }
    assert_eq!(groups.v2(), groups.v1(""));
}

fn descriptor(target: &[u8]) {
    let (dir, proc) = made();
    if symlink(OsStr::from_bytes(target), dir.path().join("7/fd/3")).is_err() {
        return;
    }
    let process = proc.process(7).expect("what can be opened").expect("what is there");
    let of_kvm = if target.starts_with(b"anon_inode:kvm-") { vec![(3, target.to_vec())] } else { vec![] };
    assert_eq!(process.descriptors_of_kvm(&Deadline::after(Instant::now(), Duration::from_secs(60))), Ok(of_kvm));
    let _ = symlink(OsStr::from_bytes(target), dir.path().join("7/exe"));
    assert_eq!(process.executable().expect("a link").as_os_str().as_bytes(), target);
}

fn process(name: &str, content: &[u8]) {
    let (dir, proc) = made();
    std::fs::write(dir.path().join("7").join(name), content).expect("a file of it");
    let process = proc.process(7).expect("what can be opened").expect("what is there");
    assert_eq!(process.threads(), Ok(vec![7]));
    match name {
        "cmdline" => {
            let joined = process.arguments().expect("what can be read").join(&0);
            assert!(content == joined || content == [joined.as_slice(), b"\0"].concat());
        }
        "task/7/children" => assert!(process.children_of(7).len() <= content.len()),
        _ => {
            let Some(call) = process.system_call(7).expect("what can be read") else { return };
            let arguments: String = call.iter().skip(1).map(|argument| format!(" {argument:#x}")).collect();
            std::fs::write(dir.path().join("7").join(name), format!("{}{arguments}\n", call[0])).expect("the same");
            assert_eq!(process.system_call(7), Ok(Some(call)));
        }
    }
}

fn host(name: &str, content: &[u8]) {
    let (dir, proc) = made();
    std::fs::write(dir.path().join(name), content).expect("a file of it");
    if let (Some(early), Some(late)) = (proc.time_of(0), proc.time_of(u64::MAX)) {
        assert!(early < late);
    }
    let _ = (proc.kernel_release(), proc.is_in_first_user_namespace(), proc.in_host_namespaces());
    assert_ne!(proc.knows_file_system("a b"), Some(true), "no file system has a blank in its name");
}

/// A /proc with process 7 in it and nothing else that can be read.
fn made() -> (tempfile::TempDir, Proc) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for part in ["7/fd", "7/task/7", "self", "1", "sys/kernel"] {
        std::fs::create_dir_all(dir.path().join(Path::new(part))).expect("a directory in it");
    }
    let proc = Proc::new(dir.path());
    (dir, proc)
}
