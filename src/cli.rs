//! The command line.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use lexopt::Arg::{Long, Short, Value};

/// What `--help` prints.
pub const HELP: &str = "\
Keeps a VM sandbox's vCPU threads, and only them, under the pod's CPU limits.

Usage: kata-cgroup-hook STAGE [--config FILE] [--dry-run] [--state FILE]
       kata-cgroup-hook status [SANDBOX] [--config FILE] [--tree] [--json]
       kata-cgroup-hook reconcile [--config FILE] [--dry-run] [--release-all]
       kata-cgroup-hook check [--config FILE] [--json]
       kata-cgroup-hook --help | --version

Stages of an OCI hook, with the OCI state on stdin:
  prestart, createRuntime, createContainer, poststart   place the sandbox
  poststop                                              release it

Commands:
  status          show every sandbox of this host, a line each, or one of them as a tree with its groups and threads
  reconcile       bring every sandbox to where it should be, release those whose VM is gone
  check           look at host, engines and Kata, and say what to put right; exit 1 if something keeps the hook from working

Options:
  --config FILE   read this instead of /etc/kata-cgroup-hook/config.toml
  --dry-run       print the steps, change nothing
  --json          print JSON instead of lines
  --tree          show trees, with the groups and threads of every sandbox
  --release-all   release every sandbox and remove all groups of ours, to uninstall
  --state FILE    read the OCI state from FILE instead of stdin
";

/// When in a container's life the hook runs (OCI runtime-spec, "POSIX-platform Hooks").
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
    Reconcile(Reconcile),
    Check(Check),
    Status(Status),
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

/// A run over every sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reconcile {
    pub config: Option<PathBuf>,
    pub dry_run: bool,
    /// Release them, whether their VMs live or not.
    pub release_all: bool,
}

/// A look at the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub config: Option<PathBuf>,
    pub json: bool,
}

/// A look at the sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The only one that is asked about.
    pub sandbox: Option<String>,
    pub config: Option<PathBuf>,
    pub tree: bool,
    pub json: bool,
}

/// Understands the arguments; the error is one line for stderr.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let (mut word, mut config, mut state_file, mut sandbox) = (None, None, None, None);
    let (mut dry_run, mut release_all, mut json, mut tree) = (false, false, false, false);
    while let Some(argument) = parser.next().map_err(|error| not_understood(&error))? {
        match argument {
            Long("help") | Short('h') => return Ok(Command::Help),
            Long("version") | Short('V') => return Ok(Command::Version),
            Long("config") => config = Some(PathBuf::from(parser.value().map_err(|error| not_understood(&error))?)),
            Long("state") => state_file = Some(PathBuf::from(parser.value().map_err(|error| not_understood(&error))?)),
            Long("dry-run") => dry_run = true,
            Long("release-all") => release_all = true,
            Long("json") => json = true,
            Long("tree") => tree = true,
            Value(first) if word.is_none() => word = Some(word_of(&first.to_string_lossy())?),
            Value(id) if matches!(word, Some(Word::Status)) && sandbox.is_none() => {
                sandbox = Some(id.to_string_lossy().into_owned());
            }
            other => return Err(not_understood(&other.unexpected())),
        }
    }
    let word = word.ok_or(format!("no stage given: one of {WORDS}"))?;
    let given =
        [("state", state_file.is_some()), ("dry-run", dry_run), ("release-all", release_all), ("json", json), ("tree", tree)];
    if let Some((option, _)) = given.iter().find(|(option, is_given)| *is_given && !word.options().contains(option)) {
        return Err(format!("--{option} is no option of {word}; kata-cgroup-hook --help shows the command line"));
    }
    Ok(match word {
        Word::Stage(stage) => Command::Hook(Hook { stage, config, dry_run, state: state_file }),
        Word::Reconcile => Command::Reconcile(Reconcile { config, dry_run, release_all }),
        Word::Check => Command::Check(Check { config, json }),
        Word::Status => Command::Status(Status { sandbox, config, tree, json }),
    })
}

/// What of the arguments is none.
fn not_understood(error: &lexopt::Error) -> String {
    format!("{error}; kata-cgroup-hook --help shows the command line")
}

/// The first word.
enum Word {
    Stage(Stage),
    Reconcile,
    Check,
    Status,
}

impl Word {
    /// The options that go with it, beside `--config`.
    fn options(&self) -> &'static [&'static str] {
        match self {
            Self::Stage(_) => &["state", "dry-run"],
            Self::Reconcile => &["dry-run", "release-all"],
            Self::Check => &["json"],
            Self::Status => &["json", "tree"],
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage(stage) => stage.fmt(f),
            Self::Reconcile => f.write_str("reconcile"),
            Self::Check => f.write_str("check"),
            Self::Status => f.write_str("status"),
        }
    }
}

const WORDS: &str = "prestart, createRuntime, createContainer, poststart, poststop; or status, check, reconcile";

fn word_of(word: &str) -> Result<Word, String> {
    match word {
        "prestart" => Ok(Word::Stage(Stage::Prestart)),
        "createRuntime" => Ok(Word::Stage(Stage::CreateRuntime)),
        "createContainer" => Ok(Word::Stage(Stage::CreateContainer)),
        "poststart" => Ok(Word::Stage(Stage::Poststart)),
        "poststop" => Ok(Word::Stage(Stage::Poststop)),
        "reconcile" => Ok(Word::Reconcile),
        "check" => Ok(Word::Check),
        "status" => Ok(Word::Status),
        "startContainer" => {
            Err("startContainer runs inside the container, where no host cgroup is: register createRuntime instead".into())
        }
        other => Err(format!("unknown stage {other:?}: one of {WORDS}")),
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
        let reconcile = Reconcile { config: Some("/c".into()), dry_run: true, release_all: true };
        assert_eq!(parse_line("reconcile --release-all --dry-run --config /c"), Ok(Command::Reconcile(reconcile)));
        let check = Check { config: Some("/c".into()), json: true };
        assert_eq!(parse_line("--json check --config /c"), Ok(Command::Check(check)));
        assert_eq!(parse_line("check"), Ok(Command::Check(Check { config: None, json: false })));
        let status = Status { sandbox: Some("x".into()), config: Some("/c".into()), tree: true, json: true };
        assert_eq!(parse_line("--json status --tree x --config /c"), Ok(Command::Status(status)));
        let all = Status { sandbox: None, config: None, tree: false, json: false };
        assert_eq!(parse_line("status"), Ok(Command::Status(all)));
        assert_eq!(parse_line("--help"), Ok(Command::Help));
        assert_eq!(parse_line("--version"), Ok(Command::Version));
    }

    #[test]
    fn every_stage_is_written_as_it_is_read() {
        for word in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
            let Ok(Command::Hook(hook)) = parse_line(word) else { panic!("{word} is not understood") };
            assert_eq!(hook.stage.to_string(), word);
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
            ("poststop --release-all", "--release-all is no option of poststop"),
            ("reconcile --state /s", "--state is no option of reconcile"),
            ("reconcile --json", "--json is no option of reconcile"),
            ("poststop --json", "--json is no option of poststop"),
            ("check --state /s", "--state is no option of check"),
            ("check --dry-run", "--dry-run is no option of check"),
            ("check --release-all", "--release-all is no option of check"),
            ("check poststop", "poststop"),
            ("check --tree", "--tree is no option of check"),
            ("poststart --tree", "--tree is no option of poststart"),
            ("status --dry-run", "--dry-run is no option of status"),
            ("status --release-all", "--release-all is no option of status"),
            ("status --state /s", "--state is no option of status"),
            ("status one two", "two"),
        ] {
            let error = parse_line(line).unwrap_err();
            assert!(error.contains(needle) && !error.contains('\n'), "{line}: {error}");
        }
    }
}
