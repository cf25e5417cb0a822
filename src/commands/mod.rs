//! A run as a hook, from the arguments to the exit code.
//!
//! Most runs are for containers that are no VM sandbox's, and end before config.json or /proc is opened. What the container
//! engine gets to know is the exit code and at most one line on stderr; everything else goes to the log.

mod bookkeeping;
mod place;
mod release;
mod settle;
mod subject;
mod vm;

use std::time::Instant;

use crate::cli::{Hook, Stage};
use crate::config::{Config, Mode, OnError};
use crate::deadline::Deadline;
use crate::error::Error;
use crate::log::{Outcome, Report};
use crate::oci::state::State;
use crate::plan::Plan;
use crate::proc::Proc;
use subject::Subject;

/// Where this host's things are, so that tests can hand in others.
#[derive(Debug, Clone)]
pub struct Host {
    pub proc: Proc,
    /// Who alone is believed: root.
    pub owner: u32,
    /// The process that started us.
    pub parent: i32,
}

impl Host {
    /// The host we run on.
    pub fn this() -> Self {
        Self { proc: Proc::new("/proc"), owner: 0, parent: nix::unistd::getppid().as_raw() }
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
    stage: Stage,
    /// Print the plan and change nothing.
    is_dry: bool,
    report: Report,
    /// What `--dry-run` prints.
    printed: Vec<String>,
}

/// What a run leaves: an exit code, and what is printed.
#[derive(Debug, Default)]
pub struct Exit {
    pub code: u8,
    pub stdout: String,
    /// One line, for exit 1 and for a failed poststart or poststop.
    pub stderr: Option<String>,
}

impl Exit {
    /// Nothing was to be done, which a dry run says.
    fn nothing(is_dry: bool) -> Self {
        let stdout = if is_dry { "0 steps\n" } else { "" }.to_owned();
        Self { stdout, ..Self::default() }
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
    let (config, broken) = match Config::load(hook.config.as_deref(), host.is_root().then_some(host.owner)) {
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
        stage: hook.stage,
        is_dry: hook.dry_run,
        report: Report::default(),
        printed: Vec::new(),
    };
    let result = match broken {
        // Nothing is done on a configuration that nobody meant, unless the container is past failing.
        Some(error) if hook.stage.may_fail_container() => Err(error),
        Some(error) => run.hook(hook).and(Err(error)),
        None => run.hook(hook),
    };
    run.finish(result)
}

impl Run<'_> {
    fn hook(&mut self, hook: &Hook) -> Result<(), Error> {
        let state = State::read(hook.state.as_deref(), self.deadline)?;
        let Some((subject, bundle)) = Subject::of(&state, self) else {
            self.printed.push("0 steps: not a VM sandbox".into());
            return Ok(());
        };
        self.report.sandbox = Some(subject.sandbox.id.clone());
        self.report.container = Some(subject.container.clone());
        let result = match self.stage {
            Stage::Poststop => release::run(self, &subject, bundle.ok().as_ref()),
            _ => bundle.and_then(|bundle| place::run(self, &subject, &bundle)),
        };
        if self.changes() {
            release::others(self, &subject.sandbox.id);
        }
        result
    }

    /// Whether this run may change the host.
    fn changes(&self) -> bool {
        !self.is_dry && self.config.mode == Mode::Enforce
    }

    /// Prints a plan as `--dry-run` has it, and tells the log what observing found.
    fn print(&mut self, plan: &Plan) {
        if self.config.mode == Mode::Observe && !plan.steps.is_empty() {
            self.report.note(format!("observing only: {} steps not done", plan.steps.len()));
        }
        self.printed.extend(plan.steps.iter().map(ToString::to_string));
        self.printed.push(format!("{} steps", plan.steps.len()));
    }

    /// Turns the result into the log line, the exit code and the line on stderr.
    fn finish(mut self, result: Result<(), Error>) -> Exit {
        let error = result.err().map(|error| printable(&error.to_string()));
        if let Some(error) = &error {
            self.report.outcome = Outcome::Failed;
            self.report.notes.insert(0, error.clone());
        }
        self.report.took_ms = self.deadline.elapsed_ms();
        if !self.is_dry {
            self.report.send(self.stage, self.config);
        }
        // Only of a VM sandbox is it known that it may start unplaced; a state that is none says nothing of whom it is for.
        let is_warned_only = self.config.on_error == OnError::Warn && self.report.sandbox.is_some();
        let is_harmless = self.config.mode == Mode::Observe || is_warned_only;
        let fails = error.is_some() && self.stage.may_fail_container() && !is_harmless;
        let tells = fails || (error.is_some() && !self.stage.may_fail_container() && self.config.mode != Mode::Observe);
        let stdout = if self.is_dry && error.is_none() { self.printed.join("\n") + "\n" } else { String::new() };
        Exit {
            code: u8::from(fails),
            stdout,
            stderr: error.filter(|_| tells).map(|error| format!("kata-cgroup-hook: {}: {error}", self.stage)),
        }
    }
}

/// One line that can be shown: paths and values come from pods, and a terminal obeys control characters.
fn printable(text: &str) -> String {
    let escape = |char: char| if char.is_control() { char.escape_default().to_string() } else { char.to_string() };
    text.chars().map(escape).collect()
}
