//! How much time is left, asked before each step.
//!
//! A hook that hangs hangs the container's start, and an engine that loses patience kills it in the middle of its work. So
//! the run ends by itself, early enough to undo what it did: the deadline lies below the timeout of the shipped hook JSON.
//! SIGTERM is taken as "now": it is blocked and looked at here, so that it never strikes between two halves of a step.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::Error;

/// The time at which this run ends, and the ears for SIGTERM.
#[derive(Debug)]
pub struct Deadline {
    start: Instant,
    total: Duration,
    stop: Option<SignalFd>,
}

impl Deadline {
    /// A deadline `total` after `start`, without signals: for tests and for read-only work.
    pub fn after(start: Instant, total: Duration) -> Self {
        Self { start, total, stop: None }
    }

    /// The same, with SIGTERM and SIGINT blocked from here on and understood as "the deadline is now".
    #[must_use]
    pub fn minding_signals(mut self) -> Self {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.add(Signal::SIGINT);
        // Where either call is refused (a strict seccomp profile) the signals keep their default: the process ends at once,
        // as if it had been killed, which the record is there to survive.
        self.stop =
            mask.thread_block().and_then(|()| SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)).ok();
        self
    }

    /// The time left; nothing once a signal has come.
    pub fn left(&self) -> Duration {
        if self.signalled() { Duration::ZERO } else { self.time_left() }
    }

    /// Whether it has passed, whatever signal has come: this costs no system call.
    pub fn has_passed(&self) -> bool {
        self.time_left().is_zero()
    }

    fn time_left(&self) -> Duration {
        self.total.saturating_sub(self.start.elapsed())
    }

    /// An error naming what we were about to do, if there is no time left for it.
    pub fn check(&self, verb: &'static str) -> Result<(), Error> {
        if self.left().is_zero() { Err(self.passed(verb)) } else { Ok(()) }
    }

    /// The error for a deadline found passed, or a signal come, while about to do `verb`.
    pub fn passed(&self, verb: &'static str) -> Error {
        if self.signalled() {
            return Error::Stopped { verb };
        }
        Error::Deadline { verb, ms: u64::try_from(self.total.as_millis()).unwrap_or(u64::MAX) }
    }

    /// Waits until there is something to read from `fd`, or its end: false if the deadline or a signal comes first.
    pub fn wait_readable(&self, fd: impl AsFd) -> bool {
        let left = PollTimeout::try_from(self.time_left()).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.stop.as_ref().map(|stop| PollFd::new(stop.as_fd(), PollFlags::POLLIN)));
        poll(&mut fds, left).is_ok() && fds.first().and_then(PollFd::any).unwrap_or(false)
    }

    /// Waits until the kernel has something new to say in one of its own files (POLLPRI), at most for `pause`, until the deadline or
    /// a signal.
    pub fn wait_for_event(&self, fd: impl AsFd, pause: Duration) {
        let left = PollTimeout::try_from(self.left().min(pause)).unwrap_or(PollTimeout::ZERO);
        let mut fds = vec![PollFd::new(fd.as_fd(), PollFlags::POLLPRI)];
        fds.extend(self.stop.as_ref().map(|stop| PollFd::new(stop.as_fd(), PollFlags::POLLIN)));
        // Woken for nothing, one looks again.
        let _ = poll(&mut fds, left);
    }

    /// Sleeps for `pause`, or for what is left if that is less.
    pub fn sleep(&self, pause: Duration) {
        std::thread::sleep(pause.min(self.left()));
    }

    /// Milliseconds since the run began.
    pub fn elapsed_ms(&self) -> u128 {
        self.start.elapsed().as_millis()
    }

    /// A second of its own for undoing, which a signal or a passed deadline must not cut short.
    pub fn for_undo() -> Self {
        Self::after(Instant::now(), Duration::from_secs(1))
    }

    /// A pending signal is only looked at, never read away: every later question gets the same answer.
    fn signalled(&self) -> bool {
        let Some(stop) = &self.stop else { return false };
        let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

/// Waits that begin at a millisecond and double up to fifty: short enough to catch what ends at once, long enough not to spin.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(Duration::from_millis(1))
    }
}

impl Backoff {
    /// Sleeps once, within the deadline, and doubles the next pause.
    pub fn pause(&mut self, deadline: &Deadline) {
        deadline.sleep(self.0);
        self.0 = (self.0 * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passed_deadline_names_what_was_about_to_happen() {
        let deadline = Deadline::after(Instant::now(), Duration::ZERO);
        let error = deadline.check("create groups").unwrap_err().to_string();
        assert_eq!(error, "deadline of 0 ms (deadline-ms) passed while about to create groups");
        assert!(Deadline::after(Instant::now(), Duration::from_secs(60)).check("x").is_ok());
    }
}
