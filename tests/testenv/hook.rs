//! A run of the hook, as a runtime starts one: a stage, a state on stdin, and somebody waiting for its exit.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::bundle::Bundle;
use super::cgroup::{constrained_at, domains_at, unconstrained_at};
use super::env::Env;
use super::hierarchy::{CPU_CONTROLLERS, Hierarchy, Version};
use super::log::LogLine;
use super::manual;

/// No run may take longer, whatever it meets: engines give a hook ten seconds. A slow host gets some more, but less than the
/// longest deadline that can be configured, so that waiting for that shows.
const PATIENCE: Duration = Duration::from_secs(50);

static BINARY: OnceLock<PathBuf> = OnceLock::new();

/// For those that cargo does not tell where the hook is.
pub(crate) fn use_binary(path: &Path) {
    BINARY.set(path.to_owned()).expect("the hook is chosen once");
}

/// The hook that is tested. Cargo says at build time where it is; KCH_TEST_HOOK says so where the tests run on another machine.
pub(crate) fn hook_binary() -> &'static Path {
    BINARY.get_or_init(|| match (std::env::var_os("KCH_TEST_HOOK"), option_env!("CARGO_BIN_EXE_kata-cgroup-hook")) {
        (Some(path), _) => path.into(),
        (None, Some(path)) => path.into(),
        (None, None) => panic!("nobody has said which hook to run"),
    })
}

#[derive(Clone)]
pub(crate) struct Hook<'e> {
    env: &'e Env,
    wrapper: Vec<OsString>,
    binary: PathBuf,
    args: Vec<OsString>,
    config: Option<PathBuf>,
    stdin: Vec<u8>,
    hold_stdin: bool,
    argv0: Option<String>,
    bare: bool,
}

/// How a run ended, and all it said.
#[derive(Debug)]
pub(crate) struct Run {
    /// `None` where a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub log: Vec<LogLine>,
    /// The command, as one would type it.
    pub command: String,
}

impl<'e> Hook<'e> {
    pub(crate) fn new(env: &'e Env, stage: &str) -> Hook<'e> {
        Hook {
            env,
            wrapper: Vec::new(),
            binary: hook_binary().to_owned(),
            args: vec![stage.into()],
            config: Some(env.config()),
            stdin: Vec::new(),
            hold_stdin: false,
            argv0: None,
            bare: false,
        }
    }

    pub(crate) fn state(mut self, state: impl AsRef<[u8]>) -> Self {
        state.as_ref().clone_into(&mut self.stdin);
        self
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Exactly these arguments; no configuration is named.
    pub(crate) fn only_args(mut self, args: &[&str]) -> Self {
        self.args = args.iter().map(OsString::from).collect();
        self.without_config()
    }

    pub(crate) fn dry(self) -> Self {
        self.arg("--dry-run")
    }

    pub(crate) fn config(mut self, config: &Path) -> Self {
        self.config = Some(config.to_owned());
        self
    }

    pub(crate) fn without_config(mut self) -> Self {
        self.config = None;
        self
    }

    /// Writes the state and leaves the pipe open, as a runtime would that forgot to close it.
    pub(crate) fn hold_stdin(mut self) -> Self {
        self.hold_stdin = true;
        self
    }

    /// Starts the hook through another program, such as `unshare`.
    pub(crate) fn under(mut self, wrapper: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.wrapper = wrapper.into_iter().map(Into::into).collect();
        self
    }

    /// Another file than the one that was built.
    pub(crate) fn binary(mut self, binary: &Path) -> Self {
        binary.clone_into(&mut self.binary);
        self
    }

    /// As the barest runtime starts it: no environment, the root as working directory, a name of its own.
    pub(crate) fn bare(mut self, argv0: &str) -> Self {
        self.argv0 = Some(argv0.to_owned());
        self.bare = true;
        self
    }

    /// The program and its arguments.
    pub(crate) fn command_line(&self) -> Vec<OsString> {
        let mut line = self.wrapper.clone();
        line.push(self.binary.clone().into());
        line.extend(self.args.iter().cloned());
        if let Some(config) = &self.config {
            line.extend(["--config".into(), config.clone().into()]);
        }
        line
    }

    pub(crate) fn stdin_text(&self) -> &[u8] {
        &self.stdin
    }

    pub(crate) fn start(self) -> Started<'e> {
        let line = self.command_line();
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(argv0) = &self.argv0 {
            command.arg0(argv0);
        }
        if self.bare {
            command.env_clear().current_dir("/");
        }
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let mut stdin = child.stdin.take().unwrap();
        match stdin.write_all(&self.stdin) {
            // It may have ended, or seen enough, before it had read all.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            result => result.unwrap(),
        }
        let command = line.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        Started { env: self.env, child, stdin: self.hold_stdin.then_some(stdin), command }
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Run {
        self.start().wait()
    }
}

/// A run that has not ended yet.
pub(crate) struct Started<'e> {
    env: &'e Env,
    child: Child,
    stdin: Option<std::process::ChildStdin>,
    command: String,
}

impl Started<'_> {
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    pub(crate) fn wait(mut self) -> Run {
        let stdout = read_all(self.child.stdout.take().unwrap());
        let stderr = read_all(self.child.stderr.take().unwrap());
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the hook hangs: {}", self.command);
            std::thread::sleep(Duration::from_millis(2));
        };
        Run {
            code: status.code(),
            signal: status.signal(),
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
            log: self.env.log.take(),
            command: std::mem::take(&mut self.command),
        }
    }
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_all(mut stream: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        String::from_utf8(bytes).expect("the hook to speak UTF-8")
    })
}

/// How many steps with one of these words a placing run has ahead, those aside that another test may have done by then.
pub(crate) fn steps_ahead(env: &Env, bundle: &Bundle, pid: i32, words: &[&str]) -> usize {
    let dry = env.hook("prestart").state(bundle.state(pid)).dry().run();
    let is_one = |step: &&str| step.contains(&env.name) && words.iter().any(|word| step.starts_with(word));
    dry.steps().into_iter().filter(is_one).count()
}

impl Run {
    /// Exit 0, and nothing said but in the log.
    #[track_caller]
    pub(crate) fn succeeded(self) -> Run {
        assert_eq!((self.code, self.stdout.as_str(), self.stderr.as_str()), (Some(0), "", ""), "{self:#?}");
        self
    }

    /// Exit 0 without a word, not even in the log: none of the hook's business.
    #[track_caller]
    pub(crate) fn was_silent(self) -> Run {
        let run = self.succeeded();
        assert!(run.log.is_empty(), "{run:#?}");
        run
    }

    /// This exit code, one line on stderr, which docs/troubleshooting.md explains, nothing on stdout.
    #[track_caller]
    pub(crate) fn failed_with(self, code: i32) -> Run {
        assert_eq!((self.code, self.stdout.as_str(), self.stderr.lines().count()), (Some(code), "", 1), "{self:#?}");
        assert!(self.stderr.ends_with('\n'), "{self:#?}");
        assert!(manual::explains(&self.stderr), "not in docs/troubleshooting.md: {self:#?}");
        self
    }

    /// The one line of the log, with this result.
    #[track_caller]
    pub(crate) fn logged(&self, result: &str) -> &LogLine {
        let line = self.only_log_line();
        assert_eq!(line.get("result"), result, "{self:#?}");
        line
    }

    /// The one line of the log: nothing had to be changed.
    #[track_caller]
    pub(crate) fn found_all_done(&self) -> &LogLine {
        let line = self.logged("unchanged");
        assert_eq!((line.get("moved"), line.get("created"), line.get("removed")), ("0", "0", "0"), "{self:#?}");
        line
    }

    #[track_caller]
    pub(crate) fn only_log_line(&self) -> &LogLine {
        assert_eq!(self.log.len(), 1, "one datagram a run: {self:#?}");
        &self.log[0]
    }

    /// The steps of a dry run, without the count that ends them.
    #[track_caller]
    pub(crate) fn steps(&self) -> Vec<&str> {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{self:#?}");
        let mut lines: Vec<&str> = self.stdout.lines().collect();
        let last = lines.pop().unwrap_or_default();
        assert_eq!(last, format!("{} steps", lines.len()), "{self:#?}");
        lines
    }

    /// The same without what is about the weight of /kata, which all sandboxes share: it changes with the tests that run beside this
    /// one, and each run sets it right.
    #[track_caller]
    pub(crate) fn own_steps(&self) -> Vec<&str> {
        self.steps().into_iter().filter(|step| !step.contains("/kata/cpu.weight ")).collect()
    }

    /// The moves of a dry run put the sandbox into the groups of this path, and nowhere else.
    #[track_caller]
    pub(crate) fn assert_moves_to(&self, path: &str, why: &str) {
        let steps = self.steps();
        let moves = steps.iter().filter(|step| step.starts_with("move-")).filter_map(|step| step.rsplit(' ').next());
        let targets: BTreeSet<PathBuf> = moves.map(PathBuf::from).collect();
        let constrained = CPU_CONTROLLERS.map(|controller| constrained_at(path, controller));
        let groups = constrained.into_iter().chain([unconstrained_at(path)]).chain(domains_at(path));
        let expected: BTreeSet<PathBuf> = groups.map(|group| group.path_on_host()).collect();
        assert_eq!(targets, expected, "{why}: {steps:#?}");
    }
}
