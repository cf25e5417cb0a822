//! The directories in which Kata keeps a sandbox's files: what makes a container a VM sandbox's, and who is named in them.
//!
//! No such directory, no VM sandbox: this is asked first, for every container of the host, and mostly the answer is no. Such a
//! directory counts only if root made it and nobody else can write in it; the same goes for each file in it. What is named
//! here is a claim that [`super::find`] checks.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, lstat};
use oci_spec::runtime::LinuxCpu;
use serde::Deserialize;

use crate::error::errno_of;
use crate::oci::state::is_id;
use crate::proc::number;
use crate::vmm::kinds::Role;
use crate::{foreign, order};

/// The runtime directories of one sandbox, under each of the configured roots that has one.
#[derive(Debug, Default)]
pub struct RuntimeDirs {
    dirs: Vec<RuntimeDir>,
    /// What was there but did not count, and why.
    pub refused: Vec<String>,
}

#[derive(Debug)]
struct RuntimeDir {
    path: PathBuf,
    fd: OwnedFd,
}

/// A process that a file of root's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub pid: i32,
    /// What it is said to be.
    pub role: Role,
    /// The file that says so.
    pub file: PathBuf,
    /// When that was last written, in seconds since the epoch: a process that started later is not the one meant.
    pub written: u64,
}

/// A container of the sandbox that a file of root's names.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedContainer {
    pub id: String,
    /// What it asks for now, if that is told.
    pub cpu: Option<LinuxCpu>,
}

/// What the files in the runtime directories say.
#[derive(Debug, Default, PartialEq)]
pub struct Said {
    /// The processes that they name, the VMM first.
    pub claims: Vec<Claim>,
    pub containers: Vec<NamedContainer>,
    /// Why a file does not count that others could have written.
    pub refused: Vec<String>,
}

impl RuntimeDirs {
    /// The directories of `sandbox` below `roots`, which must be `owner`'s. What cannot be seen is not ours.
    pub fn of(sandbox: &str, roots: &[PathBuf], owner: u32) -> Self {
        let mut found = Self::default();
        for root in roots {
            match open_below(root, sandbox, owner) {
                Ok(Some(dir)) => found.dirs.push(dir),
                Ok(None) => {}
                Err(why) => found.refused.push(why),
            }
        }
        found
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.dirs.is_empty()
    }

    /// Their paths, a template's link followed.
    pub fn paths(&self) -> Vec<&Path> {
        self.dirs.iter().map(|dir| dir.path.as_path()).collect()
    }

    /// The VM's ids: the sandbox's, or the one that the directory's link leads to, for VMs from Kata's factory.
    pub fn vm_ids(&self) -> Vec<&str> {
        let mut ids: Vec<&str> = self.dirs.iter().filter_map(|dir| dir.path.file_name().and_then(OsStr::to_str)).collect();
        ids.dedup();
        ids
    }

    /// Reads every file in them that names processes or containers.
    pub fn read(&self, owner: u32) -> Said {
        let mut said = Said::default();
        for dir in &self.dirs {
            for (name, parse) in FILES {
                if let Err(why) = dir.read(name, *parse, owner, &mut said) {
                    said.refused.push(why);
                }
            }
        }
        order::sort_by_key(&mut said.claims, |claim| claim.role != Role::Vmm);
        said
    }
}

/// The sandboxes that have a directory below one of `roots`, by their ids; a VM's own directory, which a template's link leads to,
/// is none's. What cannot be listed is added to `unseen`.
pub fn sandboxes(roots: &[PathBuf], unseen: &mut Vec<String>) -> BTreeSet<String> {
    let (mut names, mut targets) = (BTreeSet::new(), BTreeSet::new());
    for root in roots {
        let entries = match std::fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if matches!(errno_of(&error), Errno::ENOENT | Errno::ENOTDIR) => continue,
            Err(error) => {
                unseen.push(format!("list {}: {}", root.display(), errno_of(&error)));
                continue;
            }
        };
        for entry in entries.flatten() {
            let target = std::fs::read_link(entry.path()).ok();
            let is_dir = target.is_some() || entry.file_type().is_ok_and(|kind| kind.is_dir());
            targets.extend(target.and_then(|target| stays_in(root, &target)));
            names.extend(entry.file_name().to_str().filter(|name| is_dir && is_id(name)).map(str::to_owned));
        }
    }
    &names - &targets
}

type Parse = fn(&[u8]) -> Option<Vec<(i32, Role)>>;

/// The files that name processes, of every generation of Kata.
const FILES: &[(&str, Parse)] = &[("pid", parse_pid), ("persist.json", parse_persist), ("state.json", parse_state)];

impl RuntimeDir {
    /// Adds what the file `name` in this directory says; nothing if it is not there.
    fn read(&self, name: &str, parse: Parse, owner: u32, said: &mut Said) -> Result<(), String> {
        let file = self.path.join(name);
        let (bytes, stat) = match foreign::read_file(&self.fd, Path::new(name), 4 << 20) {
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(format!("read {}: {errno}", file.display())),
            Ok(read) => read,
        };
        if !foreign::is_only_of(&stat, owner) {
            return Err(untrusted(&file));
        }
        // A file that is just being written is no claim yet.
        let claims = parse(&bytes).unwrap_or_default();
        let written = u64::try_from(stat.st_mtime).unwrap_or(0);
        let claim = |(pid, role)| Claim { pid, role, file: file.clone(), written };
        said.claims.extend(claims.into_iter().filter(|(pid, _)| *pid > 0).map(claim));
        if name == "persist.json" {
            said.containers.extend(parse_containers(&bytes).unwrap_or_default());
        }
        Ok(())
    }
}

/// Opens `<root>/<sandbox>`, or what a link of that name leads to within the same root. `None` if there is none to be seen, an
/// error if there is one that does not count.
fn open_below(root: &Path, sandbox: &str, owner: u32) -> Result<Option<RuntimeDir>, String> {
    let unseen = |errno: Errno| matches!(errno, Errno::ENOENT | Errno::EACCES | Errno::ENOTDIR);
    let dir = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let failed = |path: &Path, errno: Errno| {
        if unseen(errno) { Ok(None) } else { Err(format!("open {}: {errno}", path.display())) }
    };
    let named = root.join(sandbox);
    // Of nearly every container there is none, and then this is all that is asked.
    if let Err(errno) = lstat(&named) {
        return failed(&named, errno);
    }
    let root_fd = match openat(AT_FDCWD, root, dir, Mode::empty()) {
        Ok(fd) => fd,
        Err(errno) => return failed(root, errno),
    };
    let name = match fstatat(&root_fd, sandbox, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(errno) => return failed(&named, errno),
        Ok(stat) if is_link(&stat) => {
            let target = readlinkat(&root_fd, sandbox).map_err(|errno| format!("read {}: {errno}", named.display()))?;
            let stays = stays_in(root, Path::new(&target)).filter(|_| stat.st_uid == owner);
            stays.ok_or_else(|| {
                format!("{} is a link to {target:?}, not to a directory beside it, or not root's", named.display())
            })?
        }
        Ok(_) => sandbox.to_owned(),
    };
    let path = root.join(&name);
    let fd = match openat(&root_fd, name.as_str(), dir | OFlag::O_NOFOLLOW, Mode::empty()) {
        Ok(fd) => fd,
        Err(errno) => return failed(&path, errno),
    };
    for (path, fd) in [(root, &root_fd), (path.as_path(), &fd)] {
        if !fstat(fd).is_ok_and(|stat| foreign::is_only_of(&stat, owner)) {
            return Err(untrusted(path));
        }
    }
    Ok(Some(RuntimeDir { path, fd }))
}

/// Why a file or directory does not count that is not the owner's alone.
fn untrusted(path: &Path) -> String {
    format!("{} can be written by others than root: see who made it, then chown root and chmod go-w", path.display())
}

fn is_link(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK
}

/// The name below `root` that a link to `target` leads to: a bare id, or `root` and an id.
fn stays_in(root: &Path, target: &Path) -> Option<String> {
    let below = if target.is_absolute() { target.strip_prefix(root).ok()? } else { target };
    let mut parts = below.components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) => name.to_str().filter(|name| is_id(name)).map(str::to_owned),
        _ => None,
    }
}

/// `/run/vc/vm/<id>/pid`: QEMU's own pid file.
fn parse_pid(bytes: &[u8]) -> Option<Vec<(i32, Role)>> {
    number(bytes).map(|pid| vec![(pid, Role::Vmm)])
}

/// `/run/vc/sbs/<id>/persist.json` of Go Kata since 1.10 (pkg/hypervisors/hypervisor_state.go; VirtiofsdPid in 1.x).
fn parse_persist(bytes: &[u8]) -> Option<Vec<(i32, Role)>> {
    #[derive(Deserialize)]
    struct Persist {
        #[serde(rename = "HypervisorState")]
        hypervisor: Option<Hypervisor>,
    }
    #[derive(Deserialize)]
    struct Hypervisor {
        #[serde(rename = "Pid")]
        pid: Option<i64>,
        #[serde(rename = "VirtiofsDaemonPid", alias = "VirtiofsdPid")]
        helper: Option<i64>,
    }
    let persist: Persist = serde_json::from_slice(bytes).ok()?;
    persist.hypervisor.map(|hypervisor| claimed(hypervisor.pid, hypervisor.helper))
}

/// The containers in persist.json, with what they ask for since they were last updated (virtcontainers/persist.go, `dumpConfig`).
fn parse_containers(bytes: &[u8]) -> Option<Vec<NamedContainer>> {
    #[derive(Deserialize)]
    struct Persist {
        #[serde(rename = "Config")]
        config: Option<Config>,
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(rename = "ContainerConfigs")]
        containers: Option<Vec<Container>>,
    }
    #[derive(Deserialize)]
    struct Container {
        #[serde(rename = "ID")]
        id: String,
        #[serde(rename = "Resources")]
        resources: Option<Resources>,
    }
    #[derive(Deserialize)]
    struct Resources {
        cpu: Option<LinuxCpu>,
    }
    let persist: Persist = serde_json::from_slice(bytes).ok()?;
    let containers = persist.config?.containers?.into_iter();
    let named = |container: Container| {
        let cpu = container.resources.and_then(|resources| resources.cpu);
        is_id(&container.id).then_some(NamedContainer { id: container.id, cpu })
    };
    Some(containers.filter_map(named).collect())
}

/// `/run/kata/<id>/state.json` of runtime-rs (crates/persist).
fn parse_state(bytes: &[u8]) -> Option<Vec<(i32, Role)>> {
    #[derive(Deserialize)]
    struct State {
        hypervisor: Option<Hypervisor>,
    }
    #[derive(Deserialize)]
    struct Hypervisor {
        pid: Option<i64>,
        virtiofs_daemon_pid: Option<i64>,
    }
    let state: State = serde_json::from_slice(bytes).ok()?;
    state.hypervisor.map(|hypervisor| claimed(hypervisor.pid, hypervisor.virtiofs_daemon_pid))
}

fn claimed(vmm: Option<i64>, helper: Option<i64>) -> Vec<(i32, Role)> {
    let pair = |pid: Option<i64>, role| Some((i32::try_from(pid?).ok()?, role));
    pair(vmm, Role::Vmm).into_iter().chain(pair(helper, Role::Helper)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::Role::{Helper, Vmm};
    use super::*;

    struct Roots {
        dir: tempfile::TempDir,
        us: u32,
    }

    impl Roots {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), us: nix::unistd::getuid().as_raw() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn make(&self, name: &str) -> PathBuf {
            std::fs::create_dir_all(self.path(name)).unwrap();
            self.chmod(name, 0o750);
            self.path(name)
        }

        fn chmod(&self, name: &str, mode: u32) {
            std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }

        fn find(&self, sandbox: &str) -> RuntimeDirs {
            RuntimeDirs::of(sandbox, &[self.dir.path().to_path_buf()], self.us)
        }
    }

    #[test]
    fn sandboxes_are_listed_by_their_directories_and_links_but_not_a_template_vms_own() {
        let roots = Roots::new();
        for dir in ["a/one", "a/vm-of-two", "b/one", "b/three", "a/.hidden"] {
            roots.make(dir);
        }
        symlink("vm-of-two", roots.path("a/two")).unwrap();
        std::fs::write(roots.path("b/file"), "").unwrap();
        let mut unseen = Vec::new();
        let of = ["a", "b", "none"].map(|name| roots.path(name));
        assert_eq!(sandboxes(&of, &mut unseen), ["one", "three", "two"].map(str::to_owned).into());
        assert!(unseen.is_empty(), "{unseen:?}");
    }

    #[test]
    fn a_directory_counts_only_if_nobody_else_can_write_it() {
        let roots = Roots::new();
        roots.make("s");
        assert_eq!(roots.find("s").vm_ids(), ["s"]);
        assert!(roots.find("other").is_empty() && roots.find("other").refused.is_empty());
        roots.chmod("s", 0o770);
        assert!(roots.find("s").is_empty());
        assert!(roots.find("s").refused[0].contains("can be written by others"));
        roots.chmod("s", 0o750);
        let elsewhere = RuntimeDirs::of("s", &[roots.dir.path().to_path_buf()], roots.us + 1);
        assert!(elsewhere.is_empty() && !elsewhere.refused.is_empty());
    }

    #[test]
    fn a_root_that_others_can_write_does_not_count_either() {
        let roots = Roots::new();
        roots.make("vm/s");
        let of = || RuntimeDirs::of("s", &[roots.path("vm")], roots.us);
        roots.chmod("vm", 0o755);
        assert!(!of().is_empty());
        roots.chmod("vm", 0o777);
        assert!(of().is_empty());
    }

    #[test]
    fn a_templates_link_leads_to_the_vms_directory_in_the_same_root() {
        let roots = Roots::new();
        let target = roots.make("vm-1");
        symlink("vm-1", roots.path("relative")).unwrap();
        symlink(&target, roots.path("absolute")).unwrap();
        for link in ["relative", "absolute"] {
            assert_eq!(roots.find(link).vm_ids(), ["vm-1"], "{link}");
            assert_eq!(roots.find(link).paths(), [target.as_path()]);
        }
    }

    #[test]
    fn a_link_out_of_the_root_or_to_nothing_does_not_count() {
        let roots = Roots::new();
        for (link, target) in [("up", ".."), ("out", "/tmp"), ("deep", "a/b"), ("here", ".")] {
            symlink(target, roots.path(link)).unwrap();
            assert!(roots.find(link).is_empty(), "{link}");
            assert!(roots.find(link).refused[0].contains("is a link to"), "{link}");
        }
        symlink("gone", roots.path("dangling")).unwrap();
        assert!(roots.find("dangling").is_empty());
        // A link to a link is followed once only.
        roots.make("vm-1");
        symlink("vm-1", roots.path("link")).unwrap();
        symlink("link", roots.path("link-to-link")).unwrap();
        assert!(roots.find("link-to-link").is_empty());
    }

    #[test]
    fn every_generations_files_name_the_vmm_and_its_helper() {
        let roots = Roots::new();
        let dir = roots.make("s");
        std::fs::write(dir.join("pid"), "10\n").unwrap();
        std::fs::write(dir.join("persist.json"), r#"{"HypervisorState":{"Type":"qemu","Pid":11,"VirtiofsDaemonPid":12}}"#)
            .unwrap();
        std::fs::write(dir.join("state.json"), r#"{"hypervisor":{"pid":13,"virtiofs_daemon_pid":14}}"#).unwrap();
        let claims = roots.find("s").read(roots.us).claims;
        let pids: Vec<_> = claims.iter().map(|claim| (claim.pid, claim.role)).collect();
        assert_eq!(pids, [(10, Vmm), (11, Vmm), (13, Vmm), (12, Helper), (14, Helper)]);
        assert_eq!(parse_persist(br#"{"HypervisorState":{"Pid":1,"VirtiofsdPid":2}}"#), Some(vec![(1, Vmm), (2, Helper)]));
    }

    #[test]
    fn half_written_files_and_pids_of_nobody_claim_nothing() {
        let roots = Roots::new();
        let dir = roots.make("s");
        std::fs::write(dir.join("pid"), "").unwrap();
        std::fs::write(dir.join("persist.json"), r#"{"HypervisorState":{"Pid":0,"VirtiofsDaemonPid":-1}}"#).unwrap();
        std::fs::write(dir.join("state.json"), r#"{"hypervisor":{"pid":null,"virtiofs_daemon_pid":99999999999}}"#).unwrap();
        assert_eq!(roots.find("s").read(roots.us), Said::default());
    }

    #[test]
    fn a_pid_file_that_is_a_link_or_that_others_can_write_is_refused() {
        let roots = Roots::new();
        let dir = roots.make("s");
        std::fs::write(dir.join("pid"), "10").unwrap();
        roots.chmod("s/pid", 0o666);
        let Said { claims, refused, .. } = roots.find("s").read(roots.us);
        assert_eq!(claims, []);
        assert!(refused[0].contains("pid can be written by others"));
        roots.chmod("s/pid", 0o600);
        assert_eq!(roots.find("s").read(roots.us).claims.len(), 1);

        std::fs::rename(dir.join("pid"), dir.join("real")).unwrap();
        symlink("real", dir.join("pid")).unwrap();
        let Said { claims, refused, .. } = roots.find("s").read(roots.us);
        assert_eq!(claims, []);
        assert!(refused[0].contains("ELOOP"), "{refused:?}");
    }
}
