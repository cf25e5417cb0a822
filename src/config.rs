//! /etc/kata-cgroup-hook/config.toml: read strictly, since a key that is passed over is a setting that somebody believes in.
//!
//! The file decides what a root process does, so it counts only if root alone can write it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use serde::Deserialize;

use crate::cgroup::path::Domain;
use crate::error::Error;
use crate::foreign;
use crate::vmm::kinds::{Kind, Kinds, NamedBy, Pattern, Role};

/// Where the configuration is if no `--config` says otherwise.
pub const PATH: &str = "/etc/kata-cgroup-hook/config.toml";

/// Whether the hook acts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Place and release.
    #[default]
    Enforce,
    /// Plan and log, change nothing, fail nothing.
    Observe,
    /// Do nothing at all.
    Off,
}

/// What a failure on the way in does to the container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// It is not started.
    #[default]
    Fail,
    /// It is started, unplaced, and the log says so.
    Warn,
}

/// Which runs are logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// Every run for a VM sandbox.
    #[default]
    Info,
    /// The same, with every candidate for the VMM that was refused.
    Debug,
}

/// The settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub mode: Mode,
    pub on_error: OnError,
    pub deadline: Duration,
    pub runtime_dirs: Vec<PathBuf>,
    pub state_dir: PathBuf,
    /// `None` where logging is switched off by an empty path.
    pub log_socket: Option<PathBuf>,
    pub log_level: LogLevel,
    pub domain: Domain,
    pub kinds: Kinds,
}

impl Default for Config {
    fn default() -> Self {
        File::default().with(Kinds::default())
    }
}

impl Config {
    /// Reads the configuration: `named` must be there, the file at [`PATH`] need not. It must be `owner`'s, root's, if we are root, which
    /// is asked only where that matters; for anybody else it is of no consequence who wrote it, and what he may not read is not for him.
    pub fn load(named: Option<&Path>, owner: u32, is_root: impl Fn() -> bool) -> Result<Self, Error> {
        let path = named.unwrap_or(Path::new(PATH));
        // A link is followed here: it is root who chose the path, and what it leads to must be root's as well.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let opened = openat(AT_FDCWD, path, flags, nix::sys::stat::Mode::empty());
        let (bytes, stat) = match opened.and_then(|file| foreign::read_open(&file.into(), 1 << 20)) {
            Err(Errno::ENOENT) if named.is_none() => return Ok(Self::default()),
            Err(Errno::EACCES) if !is_root() => return Ok(Self::default()),
            read => read.map_err(|errno| Error::path("read", path, errno))?,
        };
        let wrong = |why: String| Error::Config { path: path.to_path_buf(), why };
        if !foreign::is_only_of(&stat, owner) && is_root() {
            let mode = stat.st_mode & 0o7777;
            return Err(wrong(format!(
                "owned by uid {} with mode {mode:04o}: only root may write it (chown root, chmod go-w)",
                stat.st_uid
            )));
        }
        let text = String::from_utf8(bytes).map_err(|_| wrong("its text is not UTF-8".into()))?;
        Self::parse(&text).map_err(wrong)
    }

    /// Parses and checks the text of the file; the error says where and why.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            format!("wrong in line {line}: {}", error.message().replace('\n', "; "))
        })?;
        file.checked()
    }
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    mode: Mode,
    on_error: OnError,
    deadline_ms: u64,
    runtime_dirs: Vec<PathBuf>,
    state_dir: PathBuf,
    log_socket: PathBuf,
    log_level: LogLevel,
    v2: V2,
    vmm: Vec<Row>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct V2 {
    domain: Domain,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Row {
    name: String,
    role: Role,
    executables: Vec<String>,
    #[serde(default)]
    vcpu_threads: Option<String>,
}

impl Default for File {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            on_error: OnError::default(),
            deadline_ms: 5000,
            runtime_dirs: ["/run/vc/vm", "/run/vc/sbs", "/run/kata"].map(PathBuf::from).to_vec(),
            state_dir: "/run/kata-cgroup-hook".into(),
            log_socket: "/dev/log".into(),
            log_level: LogLevel::default(),
            v2: V2::default(),
            vmm: Vec::new(),
        }
    }
}

impl File {
    fn checked(self) -> Result<Config, String> {
        if !(100..=60_000).contains(&self.deadline_ms) {
            return Err(format!("deadline-ms = {}: not within 100..60000", self.deadline_ms));
        }
        let absolute = |key: &str, path: &Path| {
            if path.is_absolute() { Ok(()) } else { Err(format!("{key} = {path:?}: not an absolute path")) }
        };
        self.runtime_dirs.iter().try_for_each(|path| absolute("runtime-dirs", path))?;
        absolute("state-dir", &self.state_dir)?;
        if !self.log_socket.as_os_str().is_empty() {
            absolute("log-socket", &self.log_socket)?;
        }
        let mut kinds = Kinds::default();
        for row in &self.vmm {
            kinds.add(row.checked()?);
        }
        Ok(self.with(kinds))
    }

    fn with(self, kinds: Kinds) -> Config {
        Config {
            mode: self.mode,
            on_error: self.on_error,
            deadline: Duration::from_millis(self.deadline_ms),
            runtime_dirs: self.runtime_dirs,
            state_dir: self.state_dir,
            log_socket: Some(self.log_socket).filter(|path| !path.as_os_str().is_empty()),
            log_level: self.log_level,
            domain: self.v2.domain,
            kinds,
        }
    }
}

impl Row {
    fn checked(&self) -> Result<Kind, String> {
        let wrong = |key: &str, value: &str, why: &str| Err(format!("[[vmm]] {}: {key} = {value:?}: {why}", self.name));
        if self.name.is_empty() || !self.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
            return Err(format!("[[vmm]] name = {:?}: not a word", self.name));
        }
        if self.executables.is_empty() {
            return Err(format!("[[vmm]] {}: executables is empty: name its files", self.name));
        }
        for executable in &self.executables {
            let is_name = !executable.is_empty() && !executable.contains('/') && executable != "." && executable != "..";
            if !is_name && !Path::new(executable).is_absolute() {
                return wrong("executables", executable, "neither an absolute path nor a bare file name");
            }
        }
        let vcpu_threads = match &self.vcpu_threads {
            None => Vec::new(),
            Some(pattern) => match Pattern::parse(pattern) {
                Some(pattern) => vec![pattern],
                None => return wrong("vcpu-threads", pattern, "not a name with one * for the vCPU's index"),
            },
        };
        Ok(Kind {
            name: self.name.clone(),
            role: self.role,
            executables: self.executables.clone(),
            vcpu_threads,
            named_by: NamedBy::Anything,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn error(text: &str) -> String {
        Config::parse(text).unwrap_err()
    }

    #[test]
    fn the_documented_defaults_hold_without_a_file() {
        let config = Config::default();
        assert_eq!((config.mode, config.on_error), (Mode::Enforce, OnError::Fail));
        assert_eq!(config.deadline, Duration::from_secs(5));
        assert_eq!(config.runtime_dirs, ["/run/vc/vm", "/run/vc/sbs", "/run/kata"].map(PathBuf::from));
        assert_eq!(config.state_dir, Path::new("/run/kata-cgroup-hook"));
        assert_eq!((config.log_level, config.domain), (LogLevel::Info, Domain::Kata));
        assert_eq!(PATH, "/etc/kata-cgroup-hook/config.toml");
        assert_eq!(config.log_socket.as_deref(), Some(Path::new("/dev/log")));
    }

    #[test]
    fn every_documented_key_is_understood() {
        let config = Config::parse(
            r#"
            mode = "observe"
            on-error = "warn"
            deadline-ms = 60000
            runtime-dirs = ["/a"]
            state-dir = "/b"
            log-socket = ""
            log-level = "debug"
            [v2]
            domain = "pod"
            [[vmm]]
            name = "my-vmm"
            role = "vmm"
            executables = ["/opt/kata/bin/my-vmm", "my-vmm"]
            vcpu-threads = "vcpu*"
            "#,
        )
        .unwrap();
        assert_eq!((config.mode, config.on_error, config.domain), (Mode::Observe, OnError::Warn, Domain::Pod));
        assert_eq!((config.log_socket, config.log_level), (None, LogLevel::Debug));
        assert_eq!(config.kinds.of_name("my-vmm").unwrap().vcpu_threads.len(), 1);
    }

    #[test]
    fn a_misspelt_key_a_wrong_type_or_range_is_named_with_its_line() {
        assert!(error("mod = \"off\"").contains("wrong in line 1: unknown field `mod`"), "{}", error("mod = \"off\""));
        assert!(error("\nmode = 3").starts_with("wrong in line 2: "));
        assert!(error("[v2]\nmemory = 1").contains("unknown field `memory`"));
        assert_eq!(error("deadline-ms = 99"), "deadline-ms = 99: not within 100..60000");
        assert_eq!(error("deadline-ms = 60001"), "deadline-ms = 60001: not within 100..60000");
        assert!(error("state-dir = \"x\"").contains("not an absolute path"));
        assert!(error("log-socket = \"x\"").contains("not an absolute path"));
        assert!(error("runtime-dirs = [\"x\"]").contains("not an absolute path"));
        let row = |rest: &str| error(&format!("[[vmm]]\nname = \"x\"\nrole = \"vmm\"\n{rest}"));
        assert!(row("executables = []").contains("executables is empty: name its files"));
        assert!(row("executables = [\"bin/x\"]").contains("neither an absolute path nor a bare file name"));
        assert!(row("executables = [\"..\"]").contains("neither"));
        assert!(row("executables = [\"x\"]\nvcpu-threads = \"vcpu\"").contains("one * for the vCPU's index"));
        assert!(error("[[vmm]]\nname = \"\"\nrole = \"vmm\"\nexecutables = [\"x\"]").contains("not a word"));
    }

    #[test]
    fn a_file_that_others_can_write_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, "mode = \"off\"").unwrap();
        let us = nix::unistd::getuid().as_raw();
        let chmod = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();

        chmod(0o644);
        assert_eq!(Config::load(Some(&path), us, || true).unwrap().mode, Mode::Off);
        assert!(Config::load(Some(&path), us + 1, || true).unwrap_err().to_string().contains("only root may write it"));
        chmod(0o664);
        assert!(Config::load(Some(&path), us, || true).unwrap_err().to_string().contains("mode 0664"));
        assert_eq!(Config::load(Some(&path), us + 1, || false).unwrap().mode, Mode::Off);
        let gone = Config::load(Some(&dir.path().join("gone")), us, || true).unwrap_err().to_string();
        assert!(gone.contains("ENOENT"), "{gone}");
    }
}
