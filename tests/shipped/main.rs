//! What is shipped beside the binary says what the binary does: the manual page, the shells' completions, the configuration file; and
//! what is installed comes and goes in the order that engines need.
//!
//! None of that is compiled, so nothing but these tests keeps it in step with the command line (src/cli.rs) and with the keys of the
//! configuration (src/config.rs). Both are asked here: the words of `--help`, the options that the parser takes with each of them, the
//! keys that it names when it meets one that it does not know.

mod audit;
mod completions;
mod config_file;
mod install;
mod links;
mod man_page;
mod registration;
mod retire;
#[path = "../testenv/schema.rs"]
mod schema;

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use kata_cgroup_hook::cli::{self, HELP};
use kata_cgroup_hook::config::Config;

/// What can stand first on the command line: the stages and the commands.
fn words() -> Vec<&'static str> {
    let is_word = |line: &&str| line.starts_with("  ") && !line.trim_start().starts_with('-');
    let sections = HELP.split("\n\n").filter(|section| section.starts_with("Stages") || section.starts_with("Commands"));
    let lines = sections.flat_map(|section| section.lines().skip(1)).filter(is_word);
    let words: Vec<&str> = lines.flat_map(|line| line[2..].split("  ").next().unwrap().split(", ")).collect();
    assert!(words.contains(&"createRuntime") && words.contains(&"status"), "{words:?}");
    words
}

/// All options, by their long names.
fn options() -> BTreeSet<&'static str> {
    let is_option = |word: &&str| word.starts_with("--") && word.len() > 2;
    let options = HELP.split([' ', '\n', '[', ']']).filter(is_option).collect::<BTreeSet<&str>>();
    assert!(options.contains("--release-all") && options.contains("--version"), "{options:?}");
    options
}

/// The options that go with a word, as the parser has it.
fn options_of(word: &str) -> BTreeSet<&'static str> {
    let is_taken = |option: &&str| {
        [&[word, option][..], &[word, option, "x"]].iter().any(|line| cli::parse(line.iter().map(Into::into)).is_ok())
    };
    options().into_iter().filter(|option| !["--help", "--version"].contains(option)).filter(is_taken).collect()
}

/// The keys of the configuration, as its parser names them to who misspells one: the top's without the tables, `[v2]`'s and
/// `[[vmm]]`'s.
fn keys() -> [BTreeSet<String>; 3] {
    let is_table = |key: &&str| ["v2", "vmm"].contains(key);
    ["", "[v2]\n", "[[vmm]]\n"].map(|table| {
        let error = Config::parse(&format!("{table}no-such-key = 1")).unwrap_err();
        let known = error.split("expected ").nth(1).unwrap_or_else(|| panic!("{error}"));
        known.split('`').skip(1).step_by(2).filter(|key| !is_table(key)).map(str::to_owned).collect()
    })
}

/// Runs a program on what it reads from stdin; nothing, having said so, where there is no such program.
fn run(program: &str, args: &[&str], stdin: &str) -> Option<String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        return skipped(&format!("no {program}"));
    };
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "{program} {args:?}: {said}{complaints}");
    Some(said)
}

/// Says that a test did not run and why; not by a macro, whose words the harness keeps to itself.
fn skipped<T>(reason: &str) -> Option<T> {
    std::io::stderr().write_all(format!("\nskipped: {reason}\n").as_bytes()).unwrap();
    None
}
