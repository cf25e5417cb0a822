//! The command line that conmon, podman and containerd's runc shim call: `create`, `start`, `state`, `kill`, `delete`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, exit};

use lexopt::prelude::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::container::Container;
use super::{Generation, Kata, read_json, shim, stages};
use crate::testenv::is_alive;

/// Holds what it was called with, an argument a line.
pub(super) const ARGUMENTS: &str = "KCH_TEST_KATA_ARGUMENTS";

/// What it was asked for.
#[derive(Default)]
struct Call {
    words: Vec<String>,
    bundle: PathBuf,
    pid_file: Option<PathBuf>,
    log: Option<PathBuf>,
    force: bool,
}

pub(super) fn run(kata: &Kata) -> ! {
    let call = Call::parse().unwrap_or_else(|error| panic!("{error}"));
    let Err(why) = call.perform(kata) else { exit(0) };
    eprintln!("{why}");
    if let Some(log) = &call.log {
        // Where containerd's shim looks for the reason.
        let line = json!({ "level": "error", "msg": why }).to_string();
        let log = File::options().append(true).create(true).open(log);
        let _ = log.and_then(|mut log| writeln!(log, "{line}"));
    }
    exit(1)
}

impl Call {
    fn parse() -> Result<Call, lexopt::Error> {
        let arguments = std::env::var(ARGUMENTS).unwrap();
        let mut call = Call::default();
        let mut parser = lexopt::Parser::from_args(arguments.lines());
        while let Some(argument) = parser.next()? {
            match argument {
                Short('b') | Long("bundle") => call.bundle = parser.value()?.into(),
                Long("pid-file") => call.pid_file = Some(parser.value()?.into()),
                Long("log") => call.log = Some(parser.value()?.into()),
                Short('f') | Long("force") => call.force = true,
                Long("root" | "log-format" | "rootless" | "console-socket" | "preserve-fds") => drop(parser.value()?),
                Short('a') | Long("all" | "debug" | "systemd-cgroup" | "no-pivot" | "no-new-keyring" | "version") => {}
                Value(word) => call.words.push(word.string()?),
                other => return Err(other.unexpected()),
            }
        }
        Ok(call)
    }

    fn perform(&self, kata: &Kata) -> Result<(), String> {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        match words[..] {
            [] => say("kata-runtime: a stand-in"),
            ["create", id] => return self.create(kata, id),
            ["start", id] => return start(kata, id),
            ["state", id] => say(&state(&Container::load(kata, id)?).to_string()),
            ["kill", id] => return end(&Container::load(kata, id)?, "TERM"),
            ["kill", id, signal] => return end(&Container::load(kata, id)?, signal),
            ["delete", id] => return self.delete(kata, id),
            _ => return Err(format!("not a part of this stand-in: {words:?}")),
        }
        Ok(())
    }

    fn create(&self, kata: &Kata, id: &str) -> Result<(), String> {
        let bundle = fs::canonicalize(&self.bundle).map_err(|error| format!("{}: {error}", self.bundle.display()))?;
        let config = read_json(&bundle.join("config.json"))?;
        let sandbox = config["annotations"]["io.kubernetes.cri.sandbox-id"].as_str().unwrap_or(id);
        let (pid, network) = start_process(&config);
        let container =
            Container { id: id.to_owned(), bundle, sandbox: sandbox.to_owned(), pid, status: "created".to_owned(), network };
        container.save(kata);
        if let Err(why) = ask(kata, "create", &container) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            container.forget(kata);
            return Err(why);
        }
        if let Some(pid_file) = &self.pid_file {
            fs::write(pid_file, pid.to_string()).unwrap();
        }
        Ok(())
    }

    fn delete(&self, kata: &Kata, id: &str) -> Result<(), String> {
        let container = match Container::load(kata, id) {
            Err(_) if self.force => return Ok(()),
            container => container?,
        };
        if self.force {
            end(&container, "KILL")?;
        }
        delete(kata, &container)
    }
}

fn delete(kata: &Kata, container: &Container) -> Result<(), String> {
    let done = ask(kata, "delete", container);
    container.forget(kata);
    done
}

/// What an engine left, pods' own containers last.
pub(super) fn remove_all(kata: &Kata) {
    let mut containers = Container::all(kata);
    containers.sort_by_key(Container::is_sandbox);
    for container in containers {
        let _ = end(&container, "KILL");
        let _ = delete(kata, &container);
    }
}

fn start(kata: &Kata, id: &str) -> Result<(), String> {
    let container = Container::load(kata, id)?;
    Container { status: "running".to_owned(), ..container.clone() }.save(kata);
    ask(kata, "start", &container)
}

/// Has it done by whoever does it in this generation.
fn ask(kata: &Kata, verb: &str, container: &Container) -> Result<(), String> {
    if kata.generation == Generation::Go1 {
        return stages::perform(kata, verb, container);
    }
    if verb == "create" && container.is_sandbox() {
        shim::start(kata, container);
    }
    shim::ask(kata, verb, container)
}

fn state(container: &Container) -> Value {
    let Container { id, pid, bundle, status, .. } = container;
    let status = if is_alive(*pid) { status } else { "stopped" };
    json!({ "ociVersion": "1.0.2", "id": id, "pid": pid, "status": status, "bundle": bundle })
}

/// The container's process, which an engine's monitor waits for: so it becomes that one's child when this program ends.
fn start_process(config: &Value) -> (i32, Option<PathBuf>) {
    let namespaces = config["linux"]["namespaces"].as_array().into_iter().flatten();
    let network = namespaces.into_iter().find(|namespace| namespace["type"] == "network");
    let path = network.and_then(|network| network["path"].as_str());
    let wrapper = match (network, path) {
        (None, _) => vec![],
        (Some(_), None) => vec!["unshare".to_owned(), "--net".to_owned()],
        (Some(_), Some(path)) => vec!["nsenter".to_owned(), format!("--net={path}")],
    };
    let words = ["setsid"].into_iter().chain(wrapper.iter().map(String::as_str)).chain(["sleep", "infinity"]);
    let pid = start_outliving(&mut outliving(words));
    crate::testenv::wait_until("the container's process to become itself", || {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
    });
    (pid, network.map(|_| PathBuf::from(format!("/proc/{pid}/ns/net"))))
}

/// A program that outlives this one, and so must not have the descriptor that [`say`] writes to: somebody reads that to its end.
pub(super) fn outliving<W: AsRef<OsStr>>(words: impl IntoIterator<Item = W>) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "exec \"$@\" 3>&-", "sh"]).args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Starts such a program; whoever outlives it as well waits for it.
#[allow(clippy::zombie_processes)]
pub(super) fn start_outliving(command: &mut Command) -> i32 {
    command.spawn().unwrap().id().try_into().unwrap()
}

/// Sends a signal to the container's process, which heeds none but those that end it.
fn end(container: &Container, signal: &str) -> Result<(), String> {
    let name = signal.strip_prefix("SIG").unwrap_or(signal);
    let is_end = matches!(name, "TERM" | "KILL" | "15" | "9");
    if is_end && is_alive(container.pid) {
        kill(Pid::from_raw(container.pid), Signal::SIGKILL).map_err(|errno| format!("{}: {errno}", container.pid))?;
    }
    Ok(())
}

/// To whoever called; libtest has the usual stdout.
fn say(text: &str) {
    let mut out = File::options().write(true).open(Path::new("/proc/self/fd/3")).unwrap();
    writeln!(out, "{text}").unwrap();
}
