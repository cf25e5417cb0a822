//! The calls of a run that can be refused, and running it once for each of them refused.
//!
//! Which calls there are is read from a trace of a run that goes well, so that each is refused with what can be given at just that
//! call on just that file. A run that was tampered with may call other things from there on; the count goes by the call's number.

use std::collections::BTreeMap;

use super::env::Env;
use super::hierarchy::mounted;
use super::hook::{Hook, Run};
use super::strace::Strace;

/// A system call, and what it was made on.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub name: String,
    /// The file or directory, absolute where it is one; what strace calls it where it is none (`pipe:[77]`).
    pub path: String,
    /// What was written, or the name that it was called with.
    pub word: String,
    /// The whole line of strace's.
    pub line: String,
    /// It is the so-many-th of its name.
    pub number: usize,
}

/// What a call may be made on, as far as that decides what it can be refused with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    /// The directory of a group.
    Group,
    /// A file of a group that is read.
    Value,
    /// One of these files of a group, written; any, where none is named.
    Setting(&'static [&'static str]),
    /// The state directory, and what stands in it.
    State,
    /// A file that is made in the state directory.
    NewState,
    /// The directory of a process.
    Process,
    /// Any other file of /proc.
    Proc,
    /// The hook's configuration.
    Config,
    /// The container's bundle.
    Bundle,
    /// The directories in which Kata keeps a sandbox's files, and these.
    Runtime,
    /// An executable of the host's, KVM's directory, a descriptor without a file.
    Other,
}

/// The calls that take a name after the directory.
const WITH_NAME: [&str; 8] = ["openat", "openat2", "mkdirat", "unlinkat", "renameat", "newfstatat", "readlinkat", "statx"];

impl Call {
    /// `4711 openat(5</sys/fs/cgroup/cpu>, "kata", O_RDONLY) = 6</sys/fs/cgroup/cpu/kata>`
    pub(crate) fn parse(line: &str) -> Option<Call> {
        let (name, rest) = line.split_once(' ')?.1.trim_start().split_once('(')?;
        let at = rest.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(at, _)| at);
        let named = rest.split_once(", \"").and_then(|(_, rest)| rest.split_once('"')).map_or("", |(named, _)| named);
        let path = match named {
            named if !WITH_NAME.contains(&name) || named.is_empty() => at.to_owned(),
            named if named.starts_with('/') => named.to_owned(),
            named => format!("{at}/{named}"),
        };
        Some(Call { name: name.to_owned(), path, word: named.to_owned(), line: line.to_owned(), number: 0 })
    }

    pub(crate) fn is_open(&self) -> bool {
        ["openat", "openat2"].contains(&self.name.as_str())
    }

    pub(crate) fn file_name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Whether it is on a group or a file of one.
    pub(crate) fn is_on_group(&self) -> bool {
        mounted()
            .iter()
            .any(|hierarchy| self.path.starts_with(&format!("{}/", hierarchy.mount)) || self.path == hierarchy.mount)
    }

    /// Whether it is on the top of a hierarchy or a file there.
    pub(crate) fn is_at_top(&self) -> bool {
        let dir = self.path.rsplit_once('/').map_or("", |(dir, _)| dir);
        mounted().iter().any(|hierarchy| self.path == hierarchy.mount || dir == hierarchy.mount)
    }

    /// Whether it is on what row this says.
    pub(crate) fn is_on(&self, on: On, env: &Env) -> bool {
        let is_in = |dir: &str| self.path.starts_with(&env.dir.join(dir).display().to_string());
        let is_file = ["read", "write"].contains(&self.name.as_str()) || (self.is_open() && !self.line.contains("O_DIRECTORY"));
        let is_process = || self.path.strip_prefix("/proc/").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()));
        let is_written = || self.name == "write" || self.line.contains("O_WRONLY");
        let is_made = || self.line.contains("O_CREAT");
        match on {
            On::Group => self.is_on_group() && !is_file,
            On::Value => self.is_on_group() && is_file && !is_written(),
            On::Setting(names) => {
                let is_named = names.is_empty() || names.contains(&self.file_name());
                self.is_on_group() && is_file && is_written() && is_named
            }
            On::State => is_in("state") && !is_made(),
            On::NewState => is_in("state") && is_made(),
            On::Process => is_process(),
            // What Rust's own start reads of it is no concern of the hook's.
            On::Proc => self.path.starts_with("/proc/") && !is_process() && self.file_name() != "maps",
            On::Config => is_in("config.toml"),
            On::Bundle => is_in("bundles"),
            On::Runtime => ["vm", "sbs", "kata"].into_iter().any(is_in),
            On::Other => {
                !self.path.starts_with("/proc/") && !self.is_on_group() && !self.path.starts_with(&*env.dir.to_string_lossy())
            }
        }
    }
}

/// What a run calls that goes well, in its order, without what the loader and the language's own start call.
pub(crate) fn calls_of(env: &Env, hook: Hook) -> Vec<Call> {
    let strace = Strace::inject(env, &[]);
    hook.under(strace.wrapper()).run().succeeded();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut calls = Vec::new();
    for mut call in strace.trace().lines().filter_map(Call::parse) {
        let count = counts.entry(call.name.clone()).or_default();
        *count += 1;
        call.number = *count;
        calls.push(call);
    }
    // The configuration is the first that the hook asks for.
    let first = calls.iter().position(|call| call.is_on(On::Config, env)).expect("a run that reads its configuration");
    calls.split_off(first)
}

/// How a run went of which one call was refused.
pub(crate) struct Refused {
    pub run: Run,
    /// `None` where that call did not come.
    pub call: Option<Call>,
    /// For messages.
    pub point: String,
}

/// Runs the hook with this one of the calls of its name refused.
pub(crate) fn refuse(env: &Env, hook: Hook, call: &str, number: usize, error: &str) -> Refused {
    let strace = Strace::inject(env, &[&format!("{call}:error={error}:when={number}")]);
    let run = hook.under(strace.wrapper()).run();
    let call = strace.tampered().first().and_then(|line| Call::parse(line));
    let point = format!("{}\n{run:#?}", call.as_ref().map_or("nothing was refused", |call| &call.line));
    assert!(run.signal.is_none() && ![Some(101), Some(134)].contains(&run.code), "a panic: {point}");
    assert!(run.stdout.is_empty() && run.stderr.lines().count() <= 1, "{point}");
    Refused { run, call, point }
}
