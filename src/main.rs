//! kata-cgroup-hook: arguments in, exit code out. Everything else is in the library.

use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;

use kata_cgroup_hook::cli::{self, Command};
use kata_cgroup_hook::commands::{self, Exit, Host};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// musl's allocator gives back each page that becomes free and takes the next one anew, with a page fault: a sixth of all system calls
/// of a run. With this one placing takes five sixths of the time, and releasing three quarters (docs/performance.md).
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let command = cli::parse(std::env::args_os().skip(1));
    let is_hook = matches!(command, Ok(Command::Hook(_)));
    let exit = match command {
        Ok(Command::Hook(hook)) => commands::run(&hook, &Host::this()),
        Ok(Command::Reconcile(options)) => commands::reconcile(&options, &Host::this()),
        Ok(Command::Check(options)) => commands::check(&options, &Host::this()),
        Ok(Command::Status(options)) => commands::status(&options, &Host::this()),
        Ok(Command::Help) => Exit { stdout: cli::HELP.to_owned(), ..Exit::default() },
        Ok(Command::Version) => {
            Exit { stdout: concat!("kata-cgroup-hook ", env!("CARGO_PKG_VERSION"), "\n").to_owned(), ..Exit::default() }
        }
        Err(why) => Exit::usage(&why),
    };
    // Written whole and at once: a closed stdout or stderr is the caller's wish, not our failure.
    if !exit.stdout.is_empty() {
        let _ = std::io::stdout().write_all(exit.stdout.as_bytes());
    }
    if let Some(line) = exit.stderr.filter(|_| !is_hook || takes_a_line(std::io::stderr())) {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    ExitCode::from(exit.code)
}

/// Whether writing a line there will not keep us waiting: a pipe that can be written to takes PIPE_BUF bytes at once (pipe(7)), and no line
/// of a hook's is longer. An engine that has stopped reading is given a moment; a person's pager takes as long as it likes.
fn takes_a_line(end: impl AsFd) -> bool {
    let mut ends = [PollFd::new(end.as_fd(), PollFlags::POLLOUT)];
    poll(&mut ends, PollTimeout::from(100u8)).is_ok_and(|ready| ready > 0)
}
