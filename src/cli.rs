//! The command line.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use lexopt::Arg::{Long, Short, Value};

/// What `--help` prints.
pub const HELP: &str = "\
Keeps a VM sandbox's vCPU threads, and only them, under the pod's CPU limits.

Usage: kata-cgroup-hook STAGE [--config FILE] [--dry-run] [--state FILE]
       kata-cgroup-hook --help | --version

Stages of an OCI hook, with the OCI state on stdin:
  prestart, createRuntime, createContainer, poststart   place the sandbox
  poststop                                              release it

Options:
  --config FILE   read this instead of /etc/kata-cgroup-hook/config.toml
  --dry-run       print the steps, change nothing
  --state FILE    read the OCI state from FILE instead of stdin
";

/// When in a container's life the hook runs (OCI runtime-spec, \"POSIX-platform Hooks\").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Prestart,
    CreateRuntime,
    CreateContainer,
    Poststart,
    Poststop,
}

impl Stage {
    /// Whether a failure at this stage keeps the container from starting.
    pub fn may_fail_container(self) -> bool {
        !matches!(self, Self::Poststart | Self::Poststop)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        })
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Hook(Hook),
    Help,
    Version,
}

/// A run as a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    pub stage: Stage,
    pub config: Option<PathBuf>,
    pub dry_run: bool,
    pub state: Option<PathBuf>,
}

/// Understands the arguments; the error is one line for stderr.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let (mut stage, mut config, mut dry_run) = (None, None, false);
    let mut state_file = None;
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Long("help") | Short('h') => return Ok(Command::Help),
            Long("version") | Short('V') => return Ok(Command::Version),
            Long("config") => config = Some(PathBuf::from(parser.value().map_err(|error| error.to_string())?)),
            Long("state") => state_file = Some(PathBuf::from(parser.value().map_err(|error| error.to_string())?)),
            Long("dry-run") => dry_run = true,
            Value(word) if stage.is_none() => stage = Some(stage_of(&word.to_string_lossy())?),
            other => return Err(format!("{}; see --help", other.unexpected())),
        }
    }
    let stage = stage.ok_or("no stage given: one of prestart, createRuntime, createContainer, poststart, poststop")?;
    Ok(Command::Hook(Hook { stage, config, dry_run, state: state_file }))
}

fn stage_of(word: &str) -> Result<Stage, String> {
    match word {
        "prestart" => Ok(Stage::Prestart),
        "createRuntime" => Ok(Stage::CreateRuntime),
        "createContainer" => Ok(Stage::CreateContainer),
        "poststart" => Ok(Stage::Poststart),
        "poststop" => Ok(Stage::Poststop),
        "startContainer" => {
            Err("startContainer runs inside the container, where no host cgroup is: register createRuntime instead".into())
        }
        other => Err(format!("unknown stage {other:?}: one of prestart, createRuntime, createContainer, poststart, poststop")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn stages_and_options_are_understood_in_any_order() {
        let hook = Hook { stage: Stage::Poststop, config: Some("/c".into()), dry_run: true, state: Some("/s".into()) };
        assert_eq!(parse_line("poststop --config /c --dry-run --state /s"), Ok(Command::Hook(hook.clone())));
        assert_eq!(parse_line("--state=/s --dry-run --config=/c poststop"), Ok(Command::Hook(hook)));
        assert_eq!(parse_line("--help"), Ok(Command::Help));
        assert_eq!(parse_line("--version"), Ok(Command::Version));
    }

    #[test]
    fn every_stage_is_written_as_it_is_read() {
        for word in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
            assert_eq!(stage_of(word).unwrap().to_string(), word);
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (line, needle) in [
            ("", "no stage given"),
            ("start", "unknown stage \"start\""),
            ("startContainer", "runs inside the container"),
            ("poststop poststart", "poststart"),
            ("poststop --verbose", "--verbose"),
            ("poststop --config", "--config"),
            ("poststop --dry-run=yes", "yes"),
        ] {
            let error = parse_line(line).unwrap_err();
            assert!(error.contains(needle) && !error.contains('\n'), "{line}: {error}");
        }
    }
}
