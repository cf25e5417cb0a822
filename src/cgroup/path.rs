//! From linux.cgroupsPath to the names of a sandbox's groups.
//!
//! Every container of a sandbox, at every stage, must come to the same names, and Go Kata's poststart and poststop do not know
//! their container's id. So the container's id in the last part is replaced by the sandbox's without knowing it. The `kata_`
//! prefix keeps cAdvisor from taking the VM for the container (kata-containers/tests#1462); Kata itself uses the same names.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::cgroup::Part;
use crate::error::Error;
use crate::oci::sandbox::{Role, Sandbox};

/// A sandbox's place in the hierarchies: a relative path of plain names, the last with the `kata_` prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPath(PathBuf);

/// The name of the vCPU threads' group within another.
pub const VCPUS: &str = "vcpu";

/// Where a sandbox's domain lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Domain {
    /// Below /kata: the pod's memory limit does not count the VMM.
    #[default]
    Kata,
    /// Within the pod's own group.
    Pod,
}

impl Domain {
    /// Both, this one first.
    pub fn and_other(self) -> [Self; 2] {
        match self {
            Self::Kata => [Self::Kata, Self::Pod],
            Self::Pod => [Self::Pod, Self::Kata],
        }
    }
}

/// What engines put before a container's id in its group's name.
const ENGINE_PREFIXES: [&str; 4] = ["crio-", "cri-containerd-", "libpod-", "docker-"];

/// The longest name of a directory (NAME_MAX).
const LONGEST_NAME: usize = 255;

/// The longest place: what PATH_MAX leaves below a mount point, with room for a file's name.
const LONGEST_PLACE: usize = 3800;

/// So many groups within each other are too many. The kernel has no limit of its own (cgroup.max.depth), but every group is looked at with all
/// above it, which no run has the time for with hundreds. Kubernetes in a container of Kubernetes' has some fifteen.
pub(super) const DEEPEST: usize = 64;

impl SandboxPath {
    /// The place that `cgroups_path` gives `sandbox`.
    pub fn derive(cgroups_path: &str, sandbox: &Sandbox) -> Result<Self, Error> {
        let wrong = |why: &str| Error::CgroupsPath { path: cgroups_path.to_owned(), why: why.to_owned() };
        let path = match systemd_unit(cgroups_path) {
            Some((slice, prefix, name)) => {
                let name = if sandbox.role == Role::Workload { &sandbox.id } else { name };
                expand_slice(slice).ok_or_else(|| wrong("not the name of a systemd slice"))?.join(scope(prefix, name))
            }
            None => cgroupfs_path(cgroups_path, sandbox),
        };
        let dir = path.parent().map(Path::to_path_buf).unwrap_or_default();
        let base = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let path = Self(dir.join(format!("kata_{base}")));
        match path.why_impossible() {
            Some(why) => Err(wrong(why)),
            None => Ok(path),
        }
    }

    /// A place read back from a record: accepted only if it is one that [`Self::derive`] could have made.
    pub fn recorded(path: &str) -> Option<Self> {
        let path = Self(PathBuf::from(path));
        let last = path.0.file_name()?.to_str()?;
        (last.starts_with("kata_") && path.why_impossible().is_none()).then_some(path)
    }

    /// The path below a v1 mount point of the group for `part`.
    pub fn v1(&self, part: Part) -> PathBuf {
        match part {
            Part::Constrained => self.0.clone(),
            Part::Unconstrained => Path::new("kata").join(&self.0),
        }
    }

    /// The path below the v2 mount point of the domain that holds the processes, and the vCPU threads in a group of its own.
    pub fn v2(&self, domain: Domain) -> PathBuf {
        match domain {
            Domain::Kata => Path::new("kata").join(&self.0),
            Domain::Pod => self.0.clone(),
        }
    }

    /// The directory that cgroupsPath lies in, below any mount point.
    pub fn pod(&self) -> &Path {
        self.0.parent().unwrap_or(Path::new(""))
    }

    /// The path without the `kata_` prefix, which Kata's Rust runtime does not put there.
    pub fn unprefixed(&self) -> PathBuf {
        let name = self.0.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        self.pod().join(name.strip_prefix("kata_").unwrap_or(name))
    }

    /// The path as text, for the record.
    pub fn as_text(&self) -> String {
        self.0.to_string_lossy().into_owned()
    }

    fn why_impossible(&self) -> Option<&'static str> {
        let mut why = None;
        for part in self.0.components() {
            why = why.or(match part {
                Component::Normal(name) if name.len() > LONGEST_NAME => Some("a part of it is longer than a file name can be"),
                // The kernel refuses a line end in a group's name, to keep /proc/PID/cgroup readable.
                Component::Normal(name) if name.as_encoded_bytes().iter().any(|byte| matches!(byte, 0 | b'\n')) => {
                    Some("holds a NUL or a line end")
                }
                Component::Normal(_) => None,
                _ => Some("leaves the cgroup mount"),
            });
        }
        match self.0.components().count() {
            _ if self.0.as_os_str().len() > LONGEST_PLACE => Some("longer than a path can be"),
            depth if depth >= DEEPEST => Some("64 groups deep or deeper"),
            _ => why,
        }
    }
}

/// The three fields of systemd's form: no leading `/`, exactly two colons, the first a slice or empty.
fn systemd_unit(path: &str) -> Option<(&str, &str, &str)> {
    let mut fields = path.split(':');
    let unit = (fields.next()?, fields.next()?, fields.next()?);
    let is_slice = unit.0.is_empty() || Path::new(unit.0).extension().is_some_and(|extension| extension == "slice");
    (fields.next().is_none() && is_slice && !unit.0.contains('/')).then_some(unit)
}

/// The directories that systemd makes for a slice: `a-b.slice` is a.slice/a-b.slice, `-.slice` the root (systemd.slice(5)).
fn expand_slice(slice: &str) -> Option<PathBuf> {
    let name = match slice {
        "" => "system",
        "-.slice" => return Some(PathBuf::new()),
        slice => slice.strip_suffix(".slice")?,
    };
    let mut path = PathBuf::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Some(path)
}

/// The scope's unit name, as runc makes it: a slash in it would be another directory.
fn scope(prefix: &str, name: &str) -> String {
    let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
    unit.replace('/', "_")
}

/// The cgroupfs form: cleaned, relative ones below /vc as Kata has it, a workload's id replaced by the sandbox's.
fn cgroupfs_path(path: &str, sandbox: &Sandbox) -> PathBuf {
    let cleaned = clean(path);
    let Some(base) = cleaned.file_name().and_then(|name| name.to_str()) else {
        return Path::new("vc").join(&sandbox.id);
    };
    let base = match sandbox.role {
        Role::Workload => {
            let prefix = ENGINE_PREFIXES.iter().find(|prefix| base.starts_with(**prefix)).unwrap_or(&"");
            format!("{prefix}{}", sandbox.id)
        }
        Role::Sandbox | Role::Single => base.to_owned(),
    };
    let root = if path.starts_with('/') { PathBuf::new() } else { PathBuf::from("vc") };
    root.join(cleaned.parent().unwrap_or(Path::new(""))).join(base)
}

/// The path as if it were absolute, with `.` and `..` gone and no leading `/`: it cannot climb above its root.
fn clean(path: &str) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(role: Role, path: &str) -> Result<String, String> {
        let sandbox = Sandbox { id: "SB".into(), role };
        SandboxPath::derive(path, &sandbox).map(|path| path.as_text()).map_err(|error| error.to_string())
    }

    fn single(path: &str) -> String {
        of(Role::Single, path).unwrap()
    }

    #[test]
    fn absolute_paths_keep_their_directory() {
        assert_eq!(single("/kubepods/burstable/pod1/abc"), "kubepods/burstable/pod1/kata_abc");
        assert_eq!(single("/abc"), "kata_abc");
        assert_eq!(single("//a///b/./c/"), "a/b/kata_c");
    }

    #[test]
    fn relative_paths_lie_below_vc_and_cannot_leave_it() {
        assert_eq!(single("abc"), "vc/kata_abc");
        assert_eq!(single("a/b"), "vc/a/kata_b");
        assert_eq!(single("../../abc"), "vc/kata_abc");
        assert_eq!(single("a/../../b"), "vc/kata_b");
    }

    #[test]
    fn dots_in_absolute_paths_cannot_leave_the_mount() {
        assert_eq!(single("/a/../../b"), "kata_b");
        assert_eq!(single("/../../../etc/x"), "etc/kata_x");
    }

    #[test]
    fn no_path_or_the_root_is_the_sandboxs_own_below_vc() {
        for path in ["", "/", "..", ".", "/..", "a/.."] {
            for role in [Role::Single, Role::Sandbox, Role::Workload] {
                assert_eq!(of(role, path).unwrap(), "vc/kata_SB", "{path}");
            }
        }
    }

    #[test]
    fn a_systemd_unit_lies_in_the_slices_that_systemd_nests() {
        assert_eq!(
            single("kubepods-burstable-pod1.slice:cri-containerd:abc"),
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/kata_cri-containerd-abc.scope"
        );
        assert_eq!(single("system.slice:docker:abc"), "system.slice/kata_docker-abc.scope");
        assert_eq!(single("-.slice:p:n"), "kata_p-n.scope");
        assert_eq!(single(":p:n"), "system.slice/kata_p-n.scope");
        assert_eq!(single("a.slice::n"), "a.slice/kata_n.scope");
        assert_eq!(single("a.slice:p:../n"), "a.slice/kata_p-.._n.scope");
    }

    #[test]
    fn what_only_looks_like_a_unit_is_a_path() {
        assert_eq!(single("/a.slice:p:n"), "kata_a.slice:p:n");
        assert_eq!(single("a.slice:p"), "vc/kata_a.slice:p");
        assert_eq!(single("a.slice:p:n:m"), "vc/kata_a.slice:p:n:m");
        assert_eq!(single("a.scope:p:n"), "vc/kata_a.scope:p:n");
        assert_eq!(single("x/a.slice:p:n"), "vc/x/kata_a.slice:p:n");
    }

    #[test]
    fn a_slice_that_systemd_would_not_have_is_an_error() {
        for slice in ["a--b.slice", "-a.slice", "a-.slice", ".slice:", "--.slice"] {
            let error = of(Role::Single, &format!("{slice}:p:n"));
            if let Err(error) = &error {
                assert!(error.contains("not the name of a systemd slice"), "{error}");
            }
            assert!(error.is_err() || slice == ".slice:", "{slice}");
        }
    }

    #[test]
    fn every_container_of_a_sandbox_comes_to_the_same_group() {
        let pause = of(Role::Sandbox, "/kubepods/pod1/SB").unwrap();
        assert_eq!(of(Role::Workload, "/kubepods/pod1/c1").unwrap(), pause);
        assert_eq!(of(Role::Workload, "/kubepods/pod1/c2").unwrap(), pause);
        for prefix in ["crio-", "cri-containerd-", "libpod-", "docker-"] {
            let pause = of(Role::Sandbox, &format!("/p/{prefix}SB")).unwrap();
            assert_eq!(of(Role::Workload, &format!("/p/{prefix}c1")).unwrap(), pause);
        }
        let pause = of(Role::Sandbox, "kubepods-pod1.slice:crio:SB").unwrap();
        assert_eq!(of(Role::Workload, "kubepods-pod1.slice:crio:c1").unwrap(), pause);
    }

    #[test]
    fn names_that_no_group_can_have_are_refused() {
        assert!(of(Role::Single, "/a\nb").unwrap_err().contains("line end"));
        assert!(of(Role::Single, "/a\0b").unwrap_err().contains("NUL"));
        assert!(of(Role::Single, &format!("/{}", "x".repeat(251))).unwrap_err().contains("longer than a file name"));
        assert!(of(Role::Single, &format!("/{}", "x".repeat(250))).is_ok());
        // "kata_" is put before the last part, and the first slash is not counted.
        let place = |length: usize| format!("{}/{}", format!("/{}", "x".repeat(239)).repeat(15), "y".repeat(length - 3600 - 5));
        assert_eq!(of(Role::Single, &place(LONGEST_PLACE)).unwrap().len(), LONGEST_PLACE);
        assert!(of(Role::Single, &place(LONGEST_PLACE + 1)).unwrap_err().contains("longer than a path"));
        assert!(of(Role::Single, &"/x".repeat(DEEPEST - 1)).is_ok());
        assert!(of(Role::Single, &"/x".repeat(DEEPEST)).unwrap_err().contains("groups deep"));
    }

    #[test]
    fn the_unconstrained_part_lies_below_kata() {
        let path = SandboxPath::recorded("a/kata_b").unwrap();
        assert_eq!(path.v1(Part::Constrained), Path::new("a/kata_b"));
        assert_eq!(path.v1(Part::Unconstrained), Path::new("kata/a/kata_b"));
    }

    #[test]
    fn on_v2_the_domain_lies_below_kata_or_within_the_pod() {
        let path = SandboxPath::recorded("a/kata_b").unwrap();
        assert_eq!(path.v2(Domain::Kata), Path::new("kata/a/kata_b"));
        assert_eq!(path.v2(Domain::Pod), Path::new("a/kata_b"));
        assert_eq!((path.pod(), path.unprefixed()), (Path::new("a"), "a/b".into()));
        assert_eq!(SandboxPath::recorded("kata_b").unwrap().pod(), Path::new(""));
    }

    #[test]
    fn a_record_cannot_name_what_was_never_derived() {
        for path in ["", "a", "/a/kata_b", "../kata_b", "a/../kata_b", "kata_a\nb", "kata_a/.."] {
            assert_eq!(SandboxPath::recorded(path), None, "{path:?}");
        }
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        fn role() -> impl Strategy<Value = Role> {
            prop_oneof![Just(Role::Sandbox), Just(Role::Workload), Just(Role::Single)]
        }

        /// Paths as engines give them, and as they should not.
        fn cgroups_path() -> impl Strategy<Value = String> {
            prop_oneof!["[a-z/.:\\-]{0,30}", "(/?(\\.\\.|\\.|[a-z]{1,3})){0,8}", any::<String>()]
        }

        proptest! {
            #[test]
            fn the_result_never_leaves_the_mount(path in cgroups_path(), role in role()) {
                let sandbox = Sandbox { id: "SB".into(), role };
                if let Ok(derived) = SandboxPath::derive(&path, &sandbox) {
                    for part in [Part::Constrained, Part::Unconstrained] {
                        prop_assert!(derived.v1(part).components().all(|part| matches!(part, Component::Normal(_))));
                    }
                    prop_assert_eq!(SandboxPath::recorded(&derived.as_text()), Some(derived));
                }
            }

            #[test]
            fn equal_input_gives_equal_groups_and_a_workloads_own_id_counts_for_nothing(
                slice in "[a-z]{1,4}(-[a-z]{1,4}){0,2}", prefix in "[a-z]{0,5}", a in "[a-z0-9]{1,9}", b in "[a-z0-9]{1,9}",
                path in cgroups_path(), role in role(),
            ) {
                let sandbox = |role| Sandbox { id: "SB".into(), role };
                let text = |path: &str, role| SandboxPath::derive(path, &sandbox(role)).map_err(|error| error.to_string());
                prop_assert_eq!(text(&path, role), text(&path, role));
                let unit = |id: &str| format!("{slice}.slice:{prefix}:{id}");
                prop_assert_eq!(text(&unit(&a), Role::Workload), text(&unit(&b), Role::Workload));
                prop_assert_eq!(text(&unit(&a), Role::Workload), text(&unit("SB"), Role::Sandbox));
            }

            #[test]
            fn two_workloads_in_one_directory_share_one_group(dir in "(/[a-z]{1,5}){0,3}", a in "[a-z0-9]{1,9}", b in "[a-z0-9]{1,9}") {
                let sandbox = Sandbox { id: "SB".into(), role: Role::Workload };
                let of = |id: &str| SandboxPath::derive(&format!("{dir}/{id}"), &sandbox).unwrap();
                prop_assert_eq!(of(&a), of(&b));
            }
        }
    }
}
