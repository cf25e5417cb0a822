//! Faults on order: strace lets the hook's own system calls fail, one at a time.
//!
//! No kernel refuses a write because a test would like it to, so the refusal is put between the hook and the kernel. The call
//! then has not happened, which is what a refused one looks like.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use super::env::Env;

/// Of a walk over every call of the hook's, every so-many-th is enough where KCH_TEST_STRIDE says so: an emulated CPU needs minutes
/// for what a real one walks whole.
pub(crate) fn stride() -> usize {
    std::env::var("KCH_TEST_STRIDE").map_or(1, |text| text.parse().unwrap())
}

/// A way to run the hook under strace, and to read afterwards which call was tampered with.
pub(crate) struct Strace {
    output: PathBuf,
    inject: Vec<String>,
    hides_debugfs: bool,
    /// Only calls on this file or directory count.
    path: Option<PathBuf>,
}

impl Strace {
    /// For example `write:error=ENOSPC:when=3`.
    pub(crate) fn inject(env: &Env, what: &[&str]) -> Strace {
        Strace {
            output: env.dir.join("strace"),
            inject: what.iter().map(|&what| what.to_owned()).collect(),
            hides_debugfs: false,
            path: None,
        }
    }

    /// SIGKILL just before the hook's K-th call of this name would happen.
    pub(crate) fn kill_at(env: &Env, call: &str, count: usize) -> Strace {
        Strace::inject(env, &[&format!("{call}:signal=KILL:when={count}")])
    }

    pub(crate) fn only_on(self, path: PathBuf) -> Strace {
        Strace { path: Some(path), ..self }
    }

    /// A host on which KVM's own word on its vCPUs is not to be had: no debugfs is mounted, and none can be opened.
    pub(crate) fn without_debugfs(env: &Env) -> Strace {
        Strace { hides_debugfs: true, ..Strace::inject(env, &["fsopen:error=EPERM"]) }
    }

    /// The words to put before the hook's.
    pub(crate) fn wrapper(&self) -> Vec<OsString> {
        let mut words = Vec::new();
        if self.hides_debugfs {
            let hide = "umount --lazy --all --types debugfs && exec \"$@\"";
            words.extend(["unshare", "--mount", "sh", "-c", hide, "sh"].map(OsString::from));
        }
        words.extend(["strace", "-f", "-y", "-s", "4096", "-o"].map(OsString::from));
        words.push(self.output.clone().into());
        for inject in &self.inject {
            words.extend(["-e".into(), format!("inject={inject}").into()]);
        }
        if let Some(path) = &self.path {
            words.extend(["-P".into(), path.clone().into()]);
        }
        // All other calls pass at full speed: the filter is the kernel's.
        let calls: Vec<&str> = self.inject.iter().filter_map(|inject| inject.split(':').next()).collect();
        // A signal comes too late for a call that the filter stopped at.
        if !calls.is_empty() && self.inject.iter().all(|inject| inject.contains(":error=")) {
            words.extend(["--seccomp-bpf".into(), "-e".into(), format!("trace={}", calls.join(",")).into()]);
        }
        words.push("--".into());
        words
    }

    /// The calls that failed on order, as strace prints them.
    pub(crate) fn tampered(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        text.lines().filter(|line| line.contains("(INJECTED)")).map(str::to_owned).collect()
    }

    /// Every call that was traced: all where none is tampered with.
    pub(crate) fn trace(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }
}
