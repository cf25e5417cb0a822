//! How a hook is run: what it reads, who it finds itself to be, and what becomes of its failure.
//!
//! Go: virtcontainers/hook.go (1.x) and pkg/katautils/hook.go (3.x). runtime-rs: libs/kata-sys-util/src/hooks.rs.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::gettid;
use serde_json::Value;

use super::container::Container;
use super::{Generation, Kata};

/// Where failures are noted that make nothing fail.
pub(super) const WARNINGS: &str = "warnings";

/// Which network a hook is run in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    Hosts,
    Pods,
}

/// The hooks of a container.
pub(super) struct Run<'k> {
    kata: &'k Kata,
    container: &'k Container,
    config: Value,
}

impl<'k> Run<'k> {
    pub(super) fn of(kata: &'k Kata, container: &'k Container) -> Result<Run<'k>, String> {
        Ok(Run { kata, container, config: container.config()? })
    }

    /// Runs those of a stage; the first that fails keeps the others from running, and runtime-rs takes no notice of it.
    ///
    /// `vmm`: the VMM's pid, where the runtime gives that; else it gives the id of its own thread.
    pub(super) fn at(&self, stage: &str, vmm: Option<i32>, network: Network) -> Result<(), String> {
        let hooks = self.config["hooks"][stage].as_array().into_iter().flatten();
        let stdin = self.state(stage, vmm.unwrap_or(gettid().as_raw()));
        let done = hooks.into_iter().try_for_each(|hook| self.run(hook, &stdin, network));
        let done = done.map_err(|why| format!("the {stage} hook of {}: {why}", self.container.id));
        if self.kata.generation == Generation::RuntimeRs { self.let_pass(done) } else { done }
    }

    /// The same for what Go 3.x goes on without.
    pub(super) fn or_a_warning(&self, stage: &str, network: Network) -> Result<(), String> {
        self.let_pass(self.at(stage, None, network))
    }

    /// Makes a line in the runtime's log of a failure, and no more.
    fn let_pass(&self, done: Result<(), String>) -> Result<(), String> {
        let log = || File::options().append(true).create(true).open(self.kata.dir.join(WARNINGS));
        done.or_else(|why| writeln!(log().unwrap(), "{why}").map_err(|error| error.to_string()))
    }

    fn state(&self, stage: &str, pid: i32) -> String {
        let bundle = self.container.as_bundle(&self.config);
        // start.go and delete.go hand over the sandbox's id; the bundle is the container's all the same.
        let id = if matches!(stage, "poststart" | "poststop") { &self.container.sandbox } else { &self.container.id };
        match self.kata.generation {
            Generation::Go1 => bundle.state_without_annotations(id, pid),
            Generation::Go3 => bundle.state_with_id(id, pid),
            Generation::RuntimeRs => {
                let status = match stage {
                    "poststart" => "running",
                    "poststop" => "stopped",
                    _ => "creating",
                };
                bundle.state_of_runtime_rs(status, pid)
            }
        }
    }

    fn run(&self, hook: &Value, state: &str, network: Network) -> Result<(), String> {
        let mut child = self.command(hook, network).spawn().map_err(|error| format!("{hook}: {error}"))?;
        match child.stdin.take().unwrap().write_all(state.as_bytes()) {
            // It may have ended before it had read all.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            result => result.unwrap(),
        }
        let default = (self.kata.generation == Generation::RuntimeRs).then_some(10);
        wait(&mut child, hook["timeout"].as_u64().or(default).map(Duration::from_secs))
    }

    /// A child of this process in its working directory, with pipes for 0, 1 and 2.
    fn command(&self, hook: &Value, network: Network) -> Command {
        let words = |key: &str| hook[key].as_array().into_iter().flatten().filter_map(Value::as_str);
        let path = hook["path"].as_str().unwrap();
        let name = words("args").next().unwrap_or(path);
        let mut command = match &self.container.network {
            // nsenter becomes the hook, so who is whose child stays as it is; a name of the hook's own gets lost.
            Some(namespace) if network == Network::Pods => {
                let words = entering(namespace);
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]).arg(path);
                command
            }
            _ => {
                let mut command = Command::new(path);
                command.arg0(name);
                command
            }
        };
        command.args(words("args").skip(1));
        if self.kata.generation == Generation::RuntimeRs || hook["env"].is_array() {
            command.env_clear();
        }
        command.envs(words("env").filter_map(|pair| pair.split_once('=')));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// What puts the program after it into a network namespace. By its path: that may have no environment.
pub(super) fn entering(namespace: &Path) -> Vec<String> {
    vec!["/usr/bin/nsenter".to_owned(), format!("--net={}", namespace.display()), "--".to_owned()]
}

/// Kills it at its timeout, as all of them do. A hook's last words fit into a pipe.
fn wait(child: &mut Child, timeout: Option<Duration>) -> Result<(), String> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            child.kill().unwrap();
            child.wait().unwrap();
            return Err("Hook timeout".to_owned());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    if status.success() { Ok(()) } else { Err(format!("{status}: {said}")) }
}
