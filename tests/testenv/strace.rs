//! Faults on order: strace lets the hook's own system calls fail, one at a time.
//!
//! No kernel refuses a write because a test would like it to, so the refusal is put between the hook and the kernel. The call
//! then has not happened, which is what a refused one looks like.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use super::env::Env;

/// A way to run the hook under strace, and to read afterwards which call was tampered with.
pub(crate) struct Strace {
    output: PathBuf,
    inject: Vec<String>,
}

impl Strace {
    /// For example `write:error=ENOSPC:when=3`.
    pub(crate) fn inject(env: &Env, what: &[&str]) -> Strace {
        Strace { output: env.dir.join("strace"), inject: what.iter().map(|&what| what.to_owned()).collect() }
    }

    /// The words to put before the hook's.
    pub(crate) fn wrapper(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = ["strace", "-f", "-y", "-s", "4096", "-o"].map(OsString::from).into();
        words.push(self.output.clone().into());
        for inject in &self.inject {
            words.extend(["-e".into(), format!("inject={inject}").into()]);
        }
        words.push("--".into());
        words
    }

    /// The calls that failed on order, as strace prints them.
    pub(crate) fn tampered(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        text.lines().filter(|line| line.contains("(INJECTED)")).map(str::to_owned).collect()
    }

    /// Every call that was traced.
    pub(crate) fn trace(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }
}
