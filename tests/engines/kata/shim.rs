//! The shim: a process a sandbox, parent of QEMU and virtiofsd and of all hooks, which does what the command line asks for.
//!
//! In a real Kata the engine itself speaks to it (ttrpc). It is this test program by the name that shims have, with the arguments
//! that containerd gives one.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::exit;

use serde_json::{Value, json};

use super::command_line::{outliving, start_outliving};
use super::container::Container;
use super::{CASE, KATA, Kata, short, stages};
use crate::testenv::wait_until;

/// Tells the test program that it is to be the shim of this sandbox.
pub(super) const BE_A_SHIM: &str = "KCH_TEST_KATA_SHIM";

fn socket(kata: &Kata, sandbox: &str) -> PathBuf {
    kata.dir.join(format!("{}.sock", short(sandbox)))
}

/// Starts it in the bundle of the sandbox's own container, where shims are.
pub(super) fn start(kata: &Kata, container: &Container) {
    let (file, sandbox) = (kata.shim_file().display().to_string(), container.sandbox.as_str());
    let mut command =
        outliving(["setsid", &file, CASE, "--exact", "--nocapture", "--", "-namespace", "default", "-id", sandbox]);
    command.current_dir(&container.bundle).env(KATA, serde_json::to_string(kata).unwrap()).env(BE_A_SHIM, sandbox);
    start_outliving(&mut command);
    wait_until("the shim to listen", || UnixStream::connect(socket(kata, sandbox)).is_ok());
}

/// Has the shim of the container's sandbox do something; what it says went wrong.
pub(super) fn ask(kata: &Kata, verb: &str, container: &Container) -> Result<(), String> {
    let path = socket(kata, &container.sandbox);
    let mut stream = UnixStream::connect(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    writeln!(stream, "{}", json!({ "verb": verb, "container": container })).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    let answer: Value = serde_json::from_str(&answer).map_err(|error| format!("the shim's answer: {error}"))?;
    answer.as_str().map_or(Ok(()), |why| Err(why.to_owned()))
}

/// Is one until its sandbox is no more.
pub(super) fn serve(kata: &Kata, sandbox: &str) -> ! {
    let listener = UnixListener::bind(socket(kata, sandbox)).unwrap();
    for stream in listener.incoming() {
        let mut stream = BufReader::new(stream.unwrap());
        let mut request = String::new();
        if stream.read_line(&mut request).unwrap() == 0 {
            continue; // Somebody only looked whether it listens.
        }
        let mut request: Value = serde_json::from_str(&request).unwrap();
        let container: Container = serde_json::from_value(request["container"].take()).unwrap();
        let verb = request["verb"].as_str().unwrap();
        let done = stages::perform(kata, verb, &container);
        let is_over = container.is_sandbox() && (verb == "delete" || (verb == "create" && done.is_err()));
        if is_over {
            std::fs::remove_file(socket(kata, sandbox)).unwrap();
        }
        writeln!(stream.get_mut(), "{}", json!(done.err())).unwrap();
        if is_over {
            exit(0);
        }
    }
    unreachable!("a listener has no end");
}
