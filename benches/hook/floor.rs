//! What the floor is told to do: the hook's own steps, as `--dry-run` says them, in floor.c's words.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::testenv::{Hierarchy, Version};

/// The script for these steps. Who is to be moved out of a group is looked up now, so the sandbox has to be as it was when they
/// were planned.
pub(crate) fn script(steps: &[&str]) -> String {
    let mut script = String::new();
    for step in steps {
        let words: Vec<String> = step.split(' ').map(unescaped).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let written = match words[..] {
            ["create", path] => writeln!(script, "make {path}"),
            ["set", file, value] => writeln!(script, "write {file} {value}"),
            ["move-process", pid, _, path] => writeln!(script, "write {path}/cgroup.procs {pid}"),
            ["move-thread", ids, _, path] => {
                let (_, tid) = ids.split_once('/').expect("PID/TID");
                writeln!(script, "write {path}/{} {tid}", threads_file(path))
            }
            ["drain", path, target] => {
                let list = list_to_drain(path);
                let members =
                    fs::read_to_string(format!("{path}/{list}")).unwrap_or_else(|error| panic!("{path}/{list}: {error}"));
                members.lines().try_for_each(|member| writeln!(script, "write {target}/{list} {member}"))
            }
            ["remove", path] => writeln!(script, "remove {path}"),
            _ => panic!("a step that the floor cannot do: {step}"),
        };
        written.expect("text to be written to");
    }
    script
}

/// The only escape that a path or value of these sandboxes has.
fn unescaped(word: &str) -> String {
    word.replace("\\x20", " ")
}

fn is_on(path: &str, controller: &str) -> bool {
    Hierarchy::of(controller).is_some_and(|hierarchy| Path::new(path).starts_with(&hierarchy.mount))
}

fn is_on_v2(path: &str) -> bool {
    let is_v2 = |controller: &&str| Hierarchy::of(controller).is_some_and(|hierarchy| hierarchy.version == Version::V2);
    crate::CONTROLLERS.iter().filter(|controller| is_v2(controller)).any(|controller| is_on(path, controller))
}

fn threads_file(path: &str) -> &'static str {
    if is_on_v2(path) { "cgroup.threads" } else { "tasks" }
}

/// Processes are taken out whole where whole processes were put in.
fn list_to_drain(path: &str) -> &'static str {
    if is_on_v2(path) || is_on(path, "memory") { "cgroup.procs" } else { "tasks" }
}
