//! `make run`: the hook at work on a real VM, shown before, placed and after.
//!
//! It starts a QEMU with a spinning guest and a virtiofsd, as Kata does, and runs the hook as Kata does: at prestart, poststart
//! and poststop. Where everybody is it lets `status` say; what the guest gets of a CPU it measures itself.
//!
//! The work is done by a child process, and this one only waits and cleans up: so the host is left as it was found after a
//! failure, a panic or a Ctrl-C, too.

#[path = "../tests/testenv/mod.rs"]
mod testenv;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::json;
use testenv::{CONTROLLERS, Env, Guest, Hierarchy, Process, Run, Sandbox, groups_named, remove_groups_named, use_binary};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [hook] => match what_is_missing(Path::new(hook)) {
            Some(sentence) => {
                eprintln!("{sentence}");
                ExitCode::FAILURE
            }
            None => watch_over(hook),
        },
        [hook, "--inside", name] => {
            use_binary(Path::new(hook));
            show(name);
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: demo PATH-OF-THE-HOOK");
            ExitCode::from(2)
        }
    }
}

/// Why the demonstration cannot be given here, in one sentence.
fn what_is_missing(hook: &Path) -> Option<String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("the demonstration makes cgroups and moves threads between them: run it as root".into());
    }
    if let Some(controller) = CONTROLLERS.into_iter().find(|controller| Hierarchy::of(controller).is_none()) {
        return Some(format!("this host has no {controller} controller, which the demonstration needs"));
    }
    let programs = [hook.to_owned(), testenv::QEMU.into(), testenv::virtiofsd()];
    let missing = programs.iter().find(|program| !program.is_file())?;
    Some(format!("{} is missing: `make deps build` gets it", missing.display()))
}

/// Lets a child do the work, and cleans up behind it however it ends.
fn watch_over(hook: &str) -> ExitCode {
    testenv::shared_parents_before();
    let name = format!("kch-test-{}", std::process::id());
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().expect("signals can be blocked");
    let arrived =
        SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).expect("a descriptor for signals");

    // Out of the terminal's foreground group, it is told to end by this process alone.
    let mut command = Process::command(std::env::current_exe().expect("a path of this program"));
    let mut inside = Process::spawn(command.args([hook, "--inside", &name]).process_group(0));
    let status = loop {
        if let Some(status) = inside.child().try_wait().expect("a child to wait for") {
            break Some(status);
        }
        if let Ok(Some(_)) = arrived.read_signal() {
            inside.kill();
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    remove_groups_named(&name);
    let _ = fs::remove_dir_all(std::env::temp_dir().join(&name));
    match status {
        Some(status) if status.success() => ExitCode::SUCCESS,
        Some(_) => {
            eprintln!("the demonstration failed; what it had started and made is gone again");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("interrupted; what the demonstration had started and made is gone again");
            ExitCode::from(130)
        }
    }
}

fn show(name: &str) {
    let env = Env::named(name);
    let bundle = env.bundle().cpu(json!({ "quota": 50_000, "period": 100_000, "shares": 512 }));
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let starter = if kvm { env.kvm_sandbox() } else { env.sandbox() };
    let sandbox = starter.guest(Guest::Spinning).virtiofsd().start();
    let kind = if kvm { "on KVM, its threads without names" } else { "without KVM, its threads named" };

    println!("A sandbox as Kata starts it: QEMU {} with 2 vCPUs {kind}, and virtiofsd.", sandbox.pid);
    println!("Its container may use half a CPU: a quota of 50000 us in 100000. Its guest never rests.\n");
    heading("before: nothing limits the guest, and the VM is where its starter was");
    status(&env, &sandbox);
    println!("  the guest uses {:.2} of a CPU\n", guest_share(&sandbox));

    heading("prestart: the vCPU threads, and only they, get the limit; the VM's memory is not the pod's");
    run(&env, "prestart", &bundle.state(sandbox.pid));
    status(&env, &sandbox);
    println!("  the guest uses {:.2} of a CPU\n", guest_share(&sandbox));

    heading("poststart: a later hook of the same container finds all as it should be");
    run(&env, "poststart", &bundle.state_with_id(&sandbox.id, sandbox.pid));

    heading("poststop: the VM still runs, all is back where it was, and no group is left");
    run(&env, "poststop", &bundle.state_with_id(&sandbox.id, sandbox.pid));
    status(&env, &sandbox);
    let left = groups_named(name);
    println!("  groups of this sandbox that are left: {}", left.len());
    assert!(left.is_empty(), "the hook left groups behind: {left:?}");
}

fn heading(text: &str) {
    println!("── {text}\n");
}

/// Runs the hook and shows the command, what went in and what came out.
fn run(env: &Env, stage: &str, stdin: &str) {
    let run: Run = env.hook(stage).state(stdin).run();
    println!("  $ {}", run.command);
    println!("  stdin:  {stdin}");
    println!("  exit:   {}", run.code.map_or("killed".into(), |number| number.to_string()));
    for (what, text) in [("stdout", &run.stdout), ("stderr", &run.stderr)] {
        text.lines().for_each(|line| println!("  {what}: {line}"));
    }
    for line in &run.log {
        println!("  log:    {}", line.raw);
    }
    println!();
    assert_eq!(run.code, Some(0), "the hook failed");
}

/// Lets the hook show the sandbox, on this very terminal.
fn status(env: &Env, sandbox: &Sandbox<'_>) {
    let line = env.hook("status").arg(&sandbox.id).command_line();
    let (program, arguments) = line.split_first().expect("a program");
    println!("  $ {}", line.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "));
    let status = Command::new(program).args(arguments).status().expect("the hook to be started");
    assert!(status.success(), "status failed");
    println!();
}

/// How much of a CPU the vCPU threads together get.
fn guest_share(sandbox: &Sandbox<'_>) -> f64 {
    let vcpus = sandbox.vcpu_threads();
    let nanoseconds = || vcpus.iter().filter_map(|tid| on_cpu(*tid)).sum::<u64>();
    let (start, before) = (Instant::now(), nanoseconds());
    std::thread::sleep(Duration::from_secs(2));
    Duration::from_nanos(nanoseconds() - before).as_secs_f64() / start.elapsed().as_secs_f64()
}

/// Time on a CPU so far, in nanoseconds: the first number of /proc/TID/schedstat.
fn on_cpu(tid: i32) -> Option<u64> {
    fs::read_to_string(format!("/proc/{tid}/schedstat")).ok()?.split(' ').next()?.parse().ok()
}
