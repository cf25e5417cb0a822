//! The bundle's config.json, as far as it is used: annotations, cgroupsPath, CPU.
//!
//! Our own structs name only what matters and pass everything else over. oci-spec's `Spec` would fail on the first capability
//! or seccomp action that it does not know yet, and a failing hook kills the pod; its `LinuxCpu` has no such closed lists and
//! is used as it is.

use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use oci_spec::runtime::LinuxCpu;
use serde::Deserialize;

use crate::error::Error;
use crate::foreign;
use crate::oci::state::Annotations;

/// Larger files are no config.json: the largest seen has 30 KiB.
const LIMIT: u64 = 16 << 20;

/// What a container's config.json says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bundle {
    /// The annotations that name a sandbox.
    pub annotations: Annotations,
    /// linux.cgroupsPath; empty where there is none.
    pub cgroups_path: String,
    /// linux.resources.cpu.
    pub cpu: LinuxCpu,
}

#[derive(Deserialize)]
struct Raw {
    annotations: Option<Annotations>,
    linux: Option<Linux>,
}

#[derive(Deserialize)]
struct Linux {
    #[serde(rename = "cgroupsPath")]
    cgroups_path: Option<String>,
    resources: Option<Resources>,
}

#[derive(Deserialize)]
struct Resources {
    cpu: Option<LinuxCpu>,
}

impl Bundle {
    /// Reads config.json in the bundle at `path`.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let file = path.join("config.json");
        let (bytes, _) = foreign::read_file(AT_FDCWD, &file, LIMIT).map_err(|errno| Error::path("read", &file, errno))?;
        Self::parse(&bytes).map_err(|why| Error::Bundle { path: file, why })
    }

    /// Parses it; the error says why not.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let raw: Raw = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let linux = raw.linux.unwrap_or(Linux { cgroups_path: None, resources: None });
        Ok(Self {
            annotations: raw.annotations.unwrap_or_default(),
            cgroups_path: linux.cgroups_path.unwrap_or_default(),
            cpu: linux.resources.and_then(|resources| resources.cpu).unwrap_or_default(),
        })
    }
}

/// The container's id: engines name the bundle's directory after it, CRI-O and podman the one above (`<id>/userdata`).
pub fn id_of(bundle: &Path) -> String {
    let bundle = match bundle.file_name() {
        Some(name) if name == "userdata" => bundle.parent().unwrap_or(bundle),
        _ => bundle,
    };
    bundle.file_name().map(PathBuf::from).unwrap_or_default().to_string_lossy().into_owned()
}

/// The bundles that an engine has made beside this one, for other containers; what cannot be listed has none.
pub fn beside(bundle: &Path) -> Vec<PathBuf> {
    let is_of_crio = bundle.ends_with("userdata");
    let own = if is_of_crio { bundle.parent() } else { Some(bundle) };
    let Some(entries) = own.and_then(Path::parent).and_then(|dir| std::fs::read_dir(dir).ok()) else { return Vec::new() };
    let path = |entry: std::fs::DirEntry| if is_of_crio { entry.path().join("userdata") } else { entry.path() };
    entries.flatten().map(path).filter(|path| path != bundle).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_used_is_read_and_the_rest_may_be_anything() {
        let text = br#"{"ociVersion":7,"process":null,"annotations":{"io.kubernetes.cri.sandbox-id":"s","other":{}},
            "linux":{"cgroupsPath":"/a","seccomp":{"defaultAction":"SCMP_ACT_NEW"},
                     "resources":{"cpu":{"shares":512,"quota":-1,"cpus":"0-1"},"memory":{"limit":-1}}}}"#;
        let bundle = Bundle::parse(text).unwrap();
        assert_eq!(bundle.annotations.containerd_sandbox.as_deref(), Some("s"));
        assert_eq!(bundle.cgroups_path, "/a");
        assert_eq!((bundle.cpu.shares(), bundle.cpu.quota()), (Some(512), Some(-1)));
    }

    #[test]
    fn a_config_without_linux_or_resources_asks_for_nothing() {
        for text in ["{}", r#"{"linux":null}"#, r#"{"linux":{"resources":null}}"#, r#"{"linux":{"resources":{"cpu":null}}}"#] {
            assert_eq!(Bundle::parse(text.as_bytes()).unwrap(), Bundle::default(), "{text}");
        }
    }

    #[test]
    fn a_config_that_is_none_is_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{").unwrap();
        let error = Bundle::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("config.json is no configuration of a container: EOF while parsing"), "{error}");
    }

    #[test]
    fn the_oci_specs_own_parser_agrees_on_what_both_accept() {
        let text = br#"{"ociVersion":"1.0.2","root":{"path":"r"},"annotations":{},"linux":{"cgroupsPath":"a.slice:b:c",
            "resources":{"cpu":{"shares":2,"quota":5,"period":7,"realtimeRuntime":1,"realtimePeriod":9,"cpus":"1","mems":"0"}}}}"#;
        let ours = Bundle::parse(text).unwrap();
        let spec: oci_spec::runtime::Spec = serde_json::from_slice(text).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(Some(Path::new(&ours.cgroups_path)), linux.cgroups_path().as_deref());
        assert_eq!(Some(&ours.cpu), linux.resources().as_ref().unwrap().cpu().as_ref());
    }

    #[test]
    fn bundles_lie_beside_each_other_as_each_engine_has_them() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a", "b", "crio/a/userdata", "crio/b/userdata"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let beside = |path: &str| beside(&dir.path().join(path));
        assert_eq!(beside("crio/a/userdata"), [dir.path().join("crio/b/userdata")]);
        let mut plain = beside("a");
        plain.sort();
        assert_eq!(plain, [dir.path().join("b"), dir.path().join("crio")]);
        assert!(beside("missing/a").is_empty());
    }

    #[test]
    fn a_container_is_named_by_its_bundle() {
        assert_eq!(id_of(Path::new("/run/containerd/io.containerd.runtime.v2.task/k8s.io/abc")), "abc");
        assert_eq!(id_of(Path::new("/var/lib/containers/storage/overlay-containers/abc/userdata")), "abc");
        assert_eq!(id_of(Path::new("/")), "");
    }
}
