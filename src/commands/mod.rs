//! A run, from the arguments to the exit code.
//!
//! Most runs are for containers that are no VM sandbox's, and end before config.json is opened or a process looked at. What the container
//! engine gets to know is the exit code and at most one line on stderr; everything else goes to the log.

mod bookkeeping;
mod check;
mod containers;
mod place;
mod reconcile;
mod release;
mod seen;
mod settle;
mod status;
mod subject;
mod vm;

use std::fmt;
use std::time::Instant;

use crate::cgroup::group::Mark;
use crate::cli::{Hook, Stage};
use crate::config::{Config, Mode, OnError};
use crate::deadline::Deadline;
use crate::error::Error;
use crate::log::{Outcome, Report};
use crate::oci::state::State;
use crate::plan::Plan;
use crate::proc::Proc;
use subject::Subject;

pub use check::run as check;
pub use reconcile::run as reconcile;
pub use status::run as status;

/// Where this host's things are, so that tests can hand in others.
#[derive(Debug, Clone)]
pub struct Host {
    pub proc: Proc,
    /// Who alone is believed: root.
    pub owner: u32,
}

impl Host {
    /// The host we run on.
    pub fn this() -> Self {
        Self { proc: Proc::new("/proc"), owner: 0 }
    }

    /// Whether we are root of the host, and not only of a user namespace: rootless engines read the same hooks.d.
    fn is_root(&self) -> bool {
        nix::unistd::geteuid().as_raw() == self.owner && self.proc.is_in_first_user_namespace()
    }
}

/// Everything that a run works with.
struct Run<'a> {
    host: &'a Host,
    config: &'a Config,
    deadline: &'a Deadline,
    /// Whether it may change the host, or is only to say what it would change.
    may_change: bool,
    /// Whether what it changes is to be told as well.
    tells: bool,
    report: Report,
    /// The steps, as `--dry-run` prints them.
    steps: Vec<String>,
    /// Its last line.
    summary: String,
}

/// What a run leaves: an exit code, and what is printed.
#[derive(Debug, Default)]
pub struct Exit {
    pub code: u8,
    pub stdout: String,
    /// One line, for exit 1 and for a failed poststart or poststop; of `reconcile` one for each failure.
    pub stderr: Option<String>,
}

impl Exit {
    /// Nothing was to be done, which a dry run says.
    fn nothing(is_dry: bool) -> Self {
        let stdout = if is_dry { "0 steps\n" } else { "" }.to_owned();
        Self { stdout, ..Self::default() }
    }

    /// It failed, each reason a line.
    fn failed(word: impl fmt::Display, reasons: &[String]) -> Self {
        let lines: Vec<String> = reasons.iter().map(|why| format!("kata-cgroup-hook: {word}: {why}")).collect();
        Self { code: 1, stderr: Some(lines.join("\n")), ..Self::default() }
    }

    /// The command line was not understood.
    pub fn usage(why: &str) -> Self {
        Self { code: 2, stderr: Some(format!("kata-cgroup-hook: {}", printable(why))), ..Self::default() }
    }
}

/// Runs the hook.
pub fn run(hook: &Hook, host: &Host) -> Exit {
    let start = Instant::now();
    // runc and crun run createContainer hooks inside the container's namespaces, where nothing of ours is.
    if hook.stage == Stage::CreateContainer && !host.proc.in_host_namespaces() {
        return Exit::nothing(hook.dry_run);
    }
    let (config, broken) = match Config::load(hook.config.as_deref(), host.owner, || host.is_root()) {
        Ok(config) => (config, None),
        Err(error) => (Config::default(), Some(error)),
    };
    if config.mode == Mode::Off {
        return Exit::nothing(hook.dry_run);
    }
    let deadline = Deadline::after(start, config.deadline).minding_signals();
    let mut run = Run {
        host,
        config: &config,
        deadline: &deadline,
        may_change: !hook.dry_run && config.mode == Mode::Enforce,
        tells: hook.dry_run,
        report: Report::default(),
        steps: Vec::new(),
        summary: String::new(),
    };
    let result = match broken {
        // Nothing is done on a configuration that nobody meant, unless the container is past failing.
        Some(error) if hook.stage.may_fail_container() => Err(error),
        Some(error) => run.hook(hook).and(Err(error)),
        None => run.hook(hook),
    };
    run.finish(hook, result)
}

impl Run<'_> {
    fn hook(&mut self, hook: &Hook) -> Result<(), Error> {
        let state = State::read(hook.state.as_deref(), self.deadline)?;
        let Some((subject, bundle)) = Subject::of(&state, hook.stage, self) else {
            self.summary = "0 steps: not a VM sandbox".into();
            return Ok(());
        };
        self.report.sandbox = Some(subject.sandbox.id.clone());
        self.report.container = Some(subject.container.clone());
        let result = match hook.stage {
            Stage::Poststop => release::run(self, &subject, bundle.ok().as_ref()),
            _ => bundle.and_then(|bundle| place::run(self, &subject, &bundle)),
        };
        if self.may_change {
            release::others(self, &subject.sandbox.id, hook.stage);
        }
        result
    }

    /// The mark of the groups that are made for a sandbox.
    fn mark(&self, sandbox: &str) -> Mark {
        Mark { sandbox: sandbox.to_owned(), state_dir: self.config.state_dir.clone() }
    }

    /// Notes a plan as `--dry-run` prints it, and tells the log what observing found.
    fn print(&mut self, plan: &Plan) {
        if self.config.mode == Mode::Observe && !plan.steps.is_empty() {
            self.report.note(format!("observing only: {} steps not done", plan.steps.len()));
        }
        self.steps.extend(plan.steps.iter().map(ToString::to_string));
        self.summary = format!("{} steps", plan.steps.len());
    }

    /// Turns the result into the log line, the exit code and the line on stderr.
    fn finish(mut self, hook: &Hook, result: Result<(), Error>) -> Exit {
        let error = result.err().map(|error| printable(&error.to_string()));
        if let Some(error) = &error {
            self.report.outcome = Outcome::Failed;
            self.report.notes.insert(0, error.clone());
        }
        self.report.took_ms = self.deadline.elapsed_ms();
        if !hook.dry_run {
            self.report.send(hook.stage, self.config);
        }
        // Only of a VM sandbox is it known that it may start unplaced; a state that is none says nothing of whom it is for.
        let is_warned_only = self.config.on_error == OnError::Warn && self.report.sandbox.is_some();
        let is_harmless = self.config.mode == Mode::Observe || is_warned_only;
        let fails = error.is_some() && hook.stage.may_fail_container() && !is_harmless;
        let tells = fails || (error.is_some() && !hook.stage.may_fail_container() && self.config.mode != Mode::Observe);
        self.steps.push(self.summary);
        let stdout = if hook.dry_run && error.is_none() { as_lines(&self.steps) } else { String::new() };
        Exit {
            code: u8::from(fails),
            stdout,
            stderr: error.filter(|_| tells).map(|error| format!("kata-cgroup-hook: {}: {error}", hook.stage)),
        }
    }
}

/// Each with its end.
fn as_lines(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

/// The longest that is shown, in bytes: with what stands before it on stderr less than a pipe takes in one piece (PIPE_BUF, pipe(7)),
/// so that an engine that reads only once we have ended keeps nobody waiting.
const LONGEST_SHOWN: usize = 4000;

/// One line that can be shown: paths and values come from pods, may have megabytes, and a terminal obeys control characters, and those
/// that turn the direction of what follows.
pub(crate) fn printable(text: &str) -> String {
    let is_plain = |char: char| matches!(char, ' '..='~') || char.is_alphanumeric();
    let escape = |char: char| if is_plain(char) { char.to_string() } else { char.escape_default().to_string() };
    let shown: String = text.chars().map(escape).collect();
    if shown.len() <= LONGEST_SHOWN {
        return shown;
    }
    // What was to be done stands before a long name, and why it could not be behind it.
    let ends = || shown.char_indices().map(|(at, char)| at + char.len_utf8());
    let head = ends().take_while(|end| *end <= LONGEST_SHOWN / 2).last().unwrap_or(0);
    let tail = ends().find(|end| shown.len() - end < LONGEST_SHOWN / 2).unwrap_or(shown.len());
    format!("{}...{}", &shown[..head], &shown[tail..])
}
