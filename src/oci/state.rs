//! The OCI state that a runtime writes to a hook's stdin.
//!
//! Parsed leniently, checked strictly. Every Go Kata, 1.x to today, sends `"ociVersion":""` and `"status":""` (kata-containers
//! src/runtime/pkg/katautils/hook.go fills id, pid, bundle and annotations only), runtime-rs leaves empty fields out, crun adds
//! `root`, podman's poststop has no pid. What is used must be right: an id that is a file name, an absolute bundle.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use serde::Deserialize;

use crate::deadline::Deadline;
use crate::error::Error;
use crate::foreign;

/// No state is longer: the longest seen is CRI-O's with 2 KiB, and annotations may be 256 KiB in all (Kubernetes).
pub const LIMIT: u64 = 1 << 20;

/// The state as far as it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Who the runtime says this is. Go Kata gives the sandbox's id here in poststart and poststop, whatever the container.
    pub id: String,
    /// The bundle's absolute path: by this a container is known.
    pub bundle: PathBuf,
    /// A hint where the VMM is: its pid, a thread of the shim, the tenant's own process, or nothing at all.
    pub pid: Option<i32>,
    /// The annotations that name a sandbox.
    pub annotations: Annotations,
}

#[derive(Deserialize)]
struct Raw {
    id: Option<String>,
    bundle: Option<PathBuf>,
    pid: Option<i64>,
    annotations: Option<Annotations>,
}

/// The annotations that tell who a container is, of all that a pod may carry.
///
/// Kata asks containerd, CRI-O and dockershim in this order (virtcontainers/pkg/oci/utils.go, `ContainerType`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Annotations {
    #[serde(rename = "io.kubernetes.cri.container-type")]
    pub containerd_type: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-id")]
    pub containerd_sandbox: Option<String>,
    #[serde(rename = "io.kubernetes.cri-o.ContainerType")]
    pub crio_type: Option<String>,
    #[serde(rename = "io.kubernetes.cri-o.SandboxID")]
    pub crio_sandbox: Option<String>,
    #[serde(rename = "io.kubernetes.docker.type")]
    pub docker_type: Option<String>,
    #[serde(rename = "io.kubernetes.sandbox.id")]
    pub docker_sandbox: Option<String>,
    #[serde(rename = "io.kubernetes.cri.container-name")]
    pub containerd_name: Option<String>,
    /// `{"name":"app","attempt":1}`
    #[serde(rename = "io.kubernetes.cri-o.Metadata")]
    pub crio_metadata: Option<String>,
    #[serde(rename = "io.kubernetes.container.name")]
    pub docker_name: Option<String>,
    /// The pod's totals, which containerd writes on the pause container.
    #[serde(rename = "io.kubernetes.cri.sandbox-cpu-quota")]
    pub sandbox_quota: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-cpu-period")]
    pub sandbox_period: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-cpu-shares")]
    pub sandbox_shares: Option<String>,
}

impl Annotations {
    /// The container's name in its pod, which stays the same when it is started anew; the engine's own word for it.
    pub fn container_name(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Metadata {
            name: Option<String>,
        }
        let of_crio = || serde_json::from_str::<Metadata>(self.crio_metadata.as_deref()?).ok()?.name;
        let name = if self.crio_type.is_some() { of_crio() } else { None };
        name.or_else(|| self.containerd_name.clone()).or_else(|| self.docker_name.clone()).filter(|name| !name.is_empty())
    }
}

impl State {
    /// Reads and checks the state: from `file` if one is named, else from stdin.
    pub fn read(file: Option<&Path>, deadline: &Deadline) -> Result<Self, Error> {
        let bytes = match file {
            Some(path) => read_file(path)?,
            None => read_stdin(deadline)?,
        };
        Self::parse(&bytes)
    }

    /// Parses and checks the state.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.trim_ascii().is_empty() {
            return Err(Error::State("nothing came: the engine writes it to stdin (by hand, use --state FILE)".into()));
        }
        let raw: Raw =
            serde_json::from_slice(bytes).map_err(|error| Error::State(format!("not JSON that can be one: {error}")))?;
        let missing = |what| Error::State(format!("no {what} in it"));
        let id = raw.id.filter(|id| !id.is_empty()).ok_or_else(|| missing("id"))?;
        let bundle = raw.bundle.filter(|path| !path.as_os_str().is_empty()).ok_or_else(|| missing("bundle"))?;
        if !is_id(&id) {
            return Err(Error::State(format!("id {id:?} is no container id ([A-Za-z0-9_][A-Za-z0-9_.+-]{{0,254}})")));
        }
        if !bundle.is_absolute() {
            return Err(Error::State(format!("bundle {bundle:?} is not an absolute path")));
        }
        let pid = raw.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0);
        Ok(Self { id, bundle, pid, annotations: raw.annotations.unwrap_or_default() })
    }
}

/// Whether `id` is `[A-Za-z0-9_][A-Za-z0-9_.+-]{0,254}`: a file name that is neither hidden, nor a path, nor an option.
pub fn is_id(id: &str) -> bool {
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let inner = |byte: &u8| word(byte) || matches!(byte, b'.' | b'+' | b'-');
    id.len() <= 255 && id.as_bytes().first().is_some_and(word) && id.bytes().all(|byte| inner(&byte))
}

fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    let read = foreign::read_file(AT_FDCWD, path, LIMIT);
    read.map(|(bytes, _)| bytes).map_err(|errno| Error::path("read", path, errno))
}

/// Reads stdin to its end: not more than [`LIMIT`], not longer than the deadline.
fn read_stdin(deadline: &Deadline) -> Result<Vec<u8>, Error> {
    // Not the standard library's: that reads ahead into a buffer of its own.
    let stdin = std::io::stdin();
    let mut bytes = Vec::new();
    loop {
        if !deadline.wait_readable(&stdin) {
            deadline.check("read the state to the end of stdin, which is still open (by hand, use --state FILE)")?;
            continue;
        }
        let mut chunk = [0; 4096];
        match nix::unistd::read(&stdin, &mut chunk) {
            Ok(0) => return Ok(bytes),
            Ok(length) => bytes.extend_from_slice(chunk.get(..length).unwrap_or_default()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::State(format!("cannot be read: {errno}"))),
        }
        if bytes.len() as u64 > LIMIT {
            return Err(Error::State(format!("longer than the {LIMIT} bytes that are read")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        State::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn what_go_kata_sends_is_a_state() {
        let text = include_bytes!("../../tests/fixtures/states/kata-go.prestart.json");
        let state = State::parse(text).unwrap();
        assert_eq!((state.id.as_str(), state.pid), ("9f49ba0c1d2e", Some(12345)));
        assert_eq!(state.annotations.containerd_type.as_deref(), Some("sandbox"));
    }

    #[test]
    fn every_captured_state_parses() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/states");
        let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let states: Vec<_> = files.filter(|path| path.extension().is_some_and(|ext| ext == "json")).collect();
        assert!(states.len() >= 16, "{states:?}");
        for path in states {
            State::parse(&std::fs::read(&path).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }

    #[test]
    fn what_is_missing_or_no_file_name_is_refused_by_name() {
        assert!(error(" \n").starts_with("OCI state: nothing came: "));
        assert!(error("{").starts_with("OCI state: not JSON that can be one: "));
        assert_eq!(error(r#"{"bundle":"/b"}"#), "OCI state: no id in it");
        assert_eq!(error(r#"{"id":"x"}"#), "OCI state: no bundle in it");
        assert_eq!(error(r#"{"id":"x","bundle":""}"#), "OCI state: no bundle in it");
        assert!(error(r#"{"id":"x","bundle":"b"}"#).contains("not an absolute path"));
        assert!(error(r#"{"id":"../x","bundle":"/b"}"#).contains("no container id"));
        assert!(error(r#"{"id":"x","bundle":"/b","pid":"12"}"#).contains("not JSON that can be one"));
    }

    #[test]
    fn a_pid_is_only_a_hint_and_nonsense_is_no_hint() {
        for (pid, hint) in [("0", None), ("-1", None), ("4294967296", None), ("null", None), ("7", Some(7))] {
            let text = format!(r#"{{"id":"x","bundle":"/b","pid":{pid}}}"#);
            assert_eq!(State::parse(text.as_bytes()).unwrap().pid, hint, "{pid}");
        }
    }

    #[test]
    fn ids_are_file_names_that_are_neither_hidden_nor_options() {
        for good in ["a", "_", "9f49", "a+b", "a.b-c_d", &"x".repeat(255)] {
            assert!(is_id(good), "{good}");
        }
        for bad in ["", ".", "..", ".a", "-a", "+a", "a/b", "a b", "a\n", "ä", &"x".repeat(256)] {
            assert!(!is_id(bad), "{bad}");
        }
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            #[test]
            fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
                let _ = State::parse(&bytes);
            }

            #[test]
            fn what_is_accepted_is_safe_to_use(id: String, bundle: String, pid: i64) {
                let text = serde_json::json!({ "id": id, "bundle": bundle, "pid": pid }).to_string();
                if let Ok(state) = State::parse(text.as_bytes()) {
                    prop_assert!(is_id(&state.id) && state.bundle.is_absolute() && state.pid.is_none_or(|pid| pid > 0));
                }
            }
        }
    }
}
