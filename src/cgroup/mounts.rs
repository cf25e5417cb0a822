//! Where each controller lives, read from /proc/self/mountinfo.
//!
//! A line of it, with the fields that count (proc_pid_mountinfo(5)):
//!
//! ```text
//! 31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
//!          │ └ mount point                                   │             └ v1: the controllers of the hierarchy
//!          └ the hierarchy's directory that is mounted here  └ file system
//! ```
//!
//! Blanks in paths are octal (`\040`), optional fields end at ` - `, the same hierarchy may be mounted twice, and a later mount
//! may lie over an earlier one: so each mount point is opened and must be the device that its line names.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, major, minor, stat};

use crate::cgroup::{Controller, Part};
use crate::error::Error;
use crate::foreign;
use crate::proc::{Membership, Proc};

/// Which interface a hierarchy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// A mounted cgroup hierarchy that carries controllers of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    pub version: Version,
    /// The controllers of ours that it carries; several where they are co-mounted.
    pub controllers: Vec<Controller>,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Which of its directories is mounted there; `/` but in containers.
    pub root: PathBuf,
    pub top: Top,
}

/// A hierarchy's top, once it is open: every group is reached from there. It is nothing by which hierarchies differ.
#[derive(Debug, Default)]
pub struct Top(OnceCell<OwnedFd>);

impl Clone for Top {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Top {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Top {}

impl Hierarchy {
    /// Its top, opened when it is first asked for.
    pub fn top(&self) -> Result<&OwnedFd, Errno> {
        if let Some(top) = self.top.0.get() {
            return Ok(top);
        }
        let top = openat(AT_FDCWD, &self.mount, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(self.top.0.get_or_init(|| top))
    }

    /// Whether it carries `controller`.
    pub fn carries(&self, controller: Controller) -> bool {
        self.controllers.contains(&controller)
    }

    /// Whether it carries anything that is to act on the vCPU threads.
    pub fn can_hold_vcpus(&self) -> bool {
        self.controllers.iter().any(|one| one.part() == Part::Constrained)
    }

    /// The path below the mount point of what the kernel calls `path` in /proc/PID/cgroup; `None` if it is not below the
    /// directory that is mounted.
    pub fn below_mount<'a>(&self, path: &'a Path) -> Option<&'a Path> {
        let below = path.strip_prefix(&self.root).ok()?;
        // What lies outside of our cgroup namespace is shown by way of its root (cgroup_namespaces(7)).
        below.components().all(|part| matches!(part, Component::Normal(_))).then_some(below)
    }

    /// Where somebody who is in `groups` is in it, below the mount point.
    pub fn place_in<'a>(&self, groups: &'a Membership) -> Option<&'a Path> {
        let path = match self.version {
            Version::V1 => groups.v1(self.controllers.first()?.name()),
            Version::V2 => groups.v2(),
        };
        self.below_mount(path?)
    }

    /// The controllers that act on the group of `part`. On v2 those of the processes act on the vCPU threads too, which are
    /// in a group within theirs.
    pub fn controllers_of(&self, part: Part) -> impl Iterator<Item = Controller> {
        let is_domain = self.version == Version::V2 && part == Part::Unconstrained;
        self.controllers.iter().copied().filter(move |one| is_domain || one.part() == part)
    }
}

/// The hierarchies of this host, and where debugfs is mounted.
#[derive(Debug, Default)]
pub struct Mounts {
    pub hierarchies: Vec<Rc<Hierarchy>>,
    /// Where debugfs is mounted, if it is.
    pub debugfs: Option<PathBuf>,
    /// Whether v2 is mounted with favordynmods, so that moves between groups wait for nobody.
    pub favours_moves: bool,
}

impl Mounts {
    /// Reads the mount table.
    pub fn read(proc: &Proc) -> Result<Self, Error> {
        let lines = proc.mounts(|line| Line::parse(line).filter(Line::is_visible));
        let lines = lines.map_err(|errno| Error::path("read", proc.mountinfo_path(), errno))?;
        let mut lines = widest_of_v2(topmost(&lines));
        let favours_moves = lines.iter().any(Line::favours_moves);
        lines.iter_mut().try_for_each(Line::read_controllers)?;
        Ok(Self { favours_moves, ..Self::of(&lines) })
    }

    /// The hierarchy that carries `controller`. v2 has no cpuacct: there every group counts the CPU time of what is in it.
    pub fn of_controller(&self, controller: Controller) -> Option<&Rc<Hierarchy>> {
        let carrying = |controller| self.hierarchies.iter().find(|hierarchy| hierarchy.carries(controller));
        let counting = || carrying(Controller::Cpu).filter(|cpu| cpu.version == Version::V2);
        carrying(controller).or_else(|| counting().filter(|_| controller == Controller::Cpuacct))
    }

    /// The v2 hierarchy, if it has controllers of ours.
    pub fn v2(&self) -> Option<&Rc<Hierarchy>> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.version == Version::V2)
    }

    fn of(lines: &[Line]) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for controller in Controller::ALL {
            let carries = |line: &&Line| {
                let is_cgroup = line.kind == b"cgroup" || line.kind == b"cgroup2";
                is_cgroup && line.has(controller.name())
            };
            // Of several mounts of a hierarchy the one that shows most of it: the shortest root, the first of those.
            let Some(line) = lines.iter().filter(carries).min_by_key(|line| line.root.components().count()) else {
                continue;
            };
            match hierarchies.iter_mut().find(|known| known.mount == line.mount) {
                Some(known) => known.controllers.push(controller),
                None => hierarchies.push(Hierarchy {
                    version: if line.kind == b"cgroup2" { Version::V2 } else { Version::V1 },
                    controllers: vec![controller],
                    mount: line.mount.clone(),
                    root: line.root.clone(),
                    top: Top::default(),
                }),
            }
        }
        let debugfs = lines.iter().find(|line| line.kind == b"debugfs" && line.root == Path::new("/"));
        let hierarchies = hierarchies.into_iter().map(Rc::new).collect();
        Self { hierarchies, debugfs: debugfs.map(|line| line.mount.clone()), favours_moves: false }
    }
}

/// Of several mounts at one place only the last can be seen, also where it shows the same hierarchy.
fn topmost(lines: &[Line]) -> Vec<Line> {
    let is_last = |index: usize, line: &Line| lines.iter().skip(index + 1).all(|later| later.mount != line.mount);
    lines.iter().enumerate().filter(|(index, line)| is_last(*index, line)).map(|(_, line)| line.clone()).collect()
}

/// v2 is one hierarchy however often it is mounted: of its mounts the one that shows most of it, the first of those. The others
/// are not looked into, as what is bind-mounted may be a group that is gone, and has no files any more.
fn widest_of_v2(mut lines: Vec<Line>) -> Vec<Line> {
    let is_v2 = |line: &Line| line.kind == b"cgroup2";
    let widest = lines.iter().filter(|line| is_v2(line)).min_by_key(|line| line.root.components().count()).cloned();
    lines.retain(|line| !is_v2(line) || Some(line) == widest.as_ref());
    lines
}

/// A line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    device: (u64, u64),
    root: PathBuf,
    mount: PathBuf,
    kind: Vec<u8>,
    /// The file system's own options, of which v1's controllers are some; of v2 its controllers alone, once they are read.
    options: Vec<Vec<u8>>,
}

impl Line {
    /// Parses a line; `None` for what is none.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut words = line.split(|byte| *byte == b' ');
        let device = std::str::from_utf8(words.nth(2)?).ok()?.split_once(':')?;
        let root = unescape(words.next()?);
        let mount = unescape(words.next()?);
        let kind = words.by_ref().skip_while(|word| word != b"-").nth(1)?.to_vec();
        let options = words.nth(1)?.split(|byte| *byte == b',').map(<[u8]>::to_vec).collect();
        let line = Self { device: (device.0.parse().ok()?, device.1.parse().ok()?), root, mount, kind, options };
        (line.mount.is_absolute() && line.root.is_absolute()).then_some(line)
    }

    /// Whether what stands at the mount point is this mount, and not one that lies over it.
    fn is_visible(&self) -> bool {
        let is_needed = match self.kind.as_slice() {
            b"cgroup" => Controller::ALL.iter().any(|one| self.has(one.name())),
            kind => matches!(kind, b"cgroup2" | b"debugfs"),
        };
        is_needed && stat(&self.mount).is_ok_and(|stat| (major(stat.st_dev), minor(stat.st_dev)) == self.device)
    }

    /// Whether it is v2's and says favordynmods (Linux 6.0).
    fn favours_moves(&self) -> bool {
        self.kind == b"cgroup2" && self.has("favordynmods")
    }

    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|one| one == option.as_bytes())
    }

    /// v2's controllers are no options of its mount: those that are bound to no v1 hierarchy (cgroups(7)), its top names.
    fn read_controllers(&mut self) -> Result<(), Error> {
        if self.kind == b"cgroup2" {
            let file = self.mount.join("cgroup.controllers");
            let words = |text: &[u8]| text.split(u8::is_ascii_whitespace).map(<[u8]>::to_vec).collect();
            let read = foreign::open(AT_FDCWD, &file).and_then(|file| foreign::read_kernels(file, 1 << 20, words));
            self.options = read.map_err(|errno| Error::path("read", &file, errno))?;
        }
        Ok(())
    }
}

/// Undoes the kernel's `\ooo` for blanks, line ends and backslashes.
fn unescape(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, after)) = rest.split_first() {
        let octal = (first == b'\\').then(|| after.get(..3)).flatten().and_then(|digits| {
            let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|digit| digit.is_ascii_digit()))?;
            u8::from_str_radix(text, 8).ok()
        });
        bytes.push(octal.unwrap_or(first));
        rest = if octal.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(table: &str) -> Mounts {
        Mounts::of(&table.lines().filter_map(|line| Line::parse(line.as_bytes())).collect::<Vec<_>>())
    }

    fn mount_of(mounts: &Mounts, controller: Controller) -> Option<&str> {
        mounts.of_controller(controller).map(|hierarchy| hierarchy.mount.to_str().unwrap())
    }

    #[test]
    fn controllers_on_their_own_mounts_are_told_apart() {
        // Linux 6.18, every v1 controller by itself, an empty v2 hierarchy beside them.
        let mounts = mounts(
            "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
             32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
             33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct\n\
             34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n\
             35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw",
        );
        assert_eq!(mount_of(&mounts, Controller::Cpu), Some("/sys/fs/cgroup/cpu"));
        assert_eq!(mount_of(&mounts, Controller::Memory), Some("/sys/fs/cgroup/memory"));
        assert_eq!(mounts.hierarchies.len(), 4);
        assert!(mounts.hierarchies.iter().all(|hierarchy| hierarchy.version == Version::V1));
    }

    #[test]
    fn co_mounted_controllers_are_one_hierarchy() {
        // Debian 12 under systemd with the legacy hierarchy; cpu and cpuacct beside it are symbolic links.
        let mounts = mounts(
            "36 30 0:32 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:15 - cgroup cgroup rw,cpu,cpuacct\n\
             37 30 0:33 / /sys/fs/cgroup/memory rw,nosuid shared:16 master:2 - cgroup cgroup rw,memory",
        );
        assert_eq!(mounts.hierarchies[0].controllers, [Controller::Cpu, Controller::Cpuacct]);
        assert_eq!(mount_of(&mounts, Controller::Cpuacct), Some("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(mount_of(&mounts, Controller::Cpuset), None);
    }

    #[test]
    fn a_name_hierarchy_or_an_option_that_looks_like_a_controller_is_none() {
        assert_eq!(mount_of(&mounts("1 2 0:3 / /c rw - cgroup cgroup rw,name=cpu"), Controller::Cpu), None);
        assert_eq!(mount_of(&mounts("1 2 0:3 / /c rw,cpu - cgroup cgroup rw,xattr"), Controller::Cpu), None);
        assert_eq!(mount_of(&mounts("1 2 0:3 / /c rw - tmpfs cgroup rw,cpu"), Controller::Cpu), None);
    }

    #[test]
    fn octal_escapes_and_a_root_of_its_own_are_understood() {
        let mounts = mounts("1 2 0:3 /docker/a\\040b /mnt/c\\134d\\040e rw - cgroup cgroup rw,cpu");
        let hierarchy = mounts.of_controller(Controller::Cpu).unwrap();
        assert_eq!((hierarchy.mount.as_path(), hierarchy.root.as_path()), (Path::new("/mnt/c\\d e"), Path::new("/docker/a b")));
        assert_eq!(hierarchy.below_mount(Path::new("/docker/a b/x/y")), Some(Path::new("x/y")));
        assert_eq!(hierarchy.below_mount(Path::new("/docker/a bc")), None);
    }

    #[test]
    fn the_mount_that_shows_most_of_a_hierarchy_is_taken() {
        let mounts = mounts(
            "1 2 0:3 /docker/x /c/small rw - cgroup cgroup rw,cpu\n\
             1 2 0:3 / /c/whole rw - cgroup cgroup rw,cpu\n\
             1 2 0:3 / /c/again rw - cgroup cgroup rw,cpu",
        );
        assert_eq!(mount_of(&mounts, Controller::Cpu), Some("/c/whole"));
    }

    #[test]
    fn of_two_mounts_at_one_place_the_later_is_the_one_that_is_seen() {
        let table = "1 2 0:3 / /c rw - cgroup cgroup rw,cpu\n2 1 0:3 /x /c rw - cgroup cgroup rw,cpu";
        let lines = topmost(&table.lines().filter_map(|line| Line::parse(line.as_bytes())).collect::<Vec<_>>());
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].root, Path::new("/x"));
    }

    #[test]
    fn a_mount_of_a_group_that_is_gone_is_not_looked_into_where_another_shows_more() {
        let table = "1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                     2 1 0:3 /gone /build/cgroup rw - cgroup2 cgroup2 rw\n\
                     3 1 0:4 / /c rw - cgroup cgroup rw,cpu";
        let lines = widest_of_v2(table.lines().filter_map(|line| Line::parse(line.as_bytes())).collect());
        let mounted: Vec<&Path> = lines.iter().map(|line| line.mount.as_path()).collect();
        assert_eq!(mounted, [Path::new("/sys/fs/cgroup"), Path::new("/c")]);
    }

    #[test]
    fn malformed_lines_are_passed_over_and_nothing_is_nothing() {
        let malformed = "\n1\n1 2 0:3 / /c rw cgroup cgroup rw,cpu\n1 2 03 / /c rw - cgroup cgroup rw,cpu\n\
            1 2 0:3 / /c rw -\n1 2 0:3 / /c rw - cgroup\n1 2 0:3 / /c rw - cgroup cgroup\n1 2 0:3 / c rw - cgroup cgroup rw,cpu";
        assert!(mounts(malformed).hierarchies.is_empty());
        assert!(mounts("").hierarchies.is_empty());
    }

    #[test]
    fn a_mount_that_another_lies_over_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let device = stat(dir.path()).unwrap().st_dev;
        let line = |minor: u64| {
            let text = format!("1 2 {}:{minor} / {} rw - cgroup cgroup rw,cpu", major(device), dir.path().display());
            Line::parse(text.as_bytes()).unwrap()
        };
        assert!(line(minor(device)).is_visible());
        assert!(!line(minor(device) + 1).is_visible());
    }

    #[test]
    fn favordynmods_counts_on_v2_alone() {
        let favours = |text: &str| Line::parse(text.as_bytes()).unwrap().favours_moves();
        assert!(favours("1 2 0:3 / /c rw - cgroup2 cgroup2 rw,nsdelegate,favordynmods"));
        assert!(!favours("1 2 0:3 / /c rw - cgroup2 cgroup2 rw,nsdelegate"));
        assert!(!favours("1 2 0:3 / /c rw - cgroup cgroup rw,cpu,favordynmods"));
    }

    #[test]
    fn on_v2_the_controllers_are_those_that_its_root_offers() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io\n").unwrap();
        let line = format!("1 2 0:3 / {} rw - cgroup2 cgroup2 rw,nsdelegate", dir.path().display());
        let mut line = Line::parse(line.as_bytes()).unwrap();
        line.read_controllers().unwrap();
        let mounts = Mounts::of(&[line.clone()]);
        assert_eq!(mounts.hierarchies[0].version, Version::V2);
        assert_eq!(mounts.hierarchies[0].controllers, [Controller::Cpu, Controller::Cpuset]);
        std::fs::remove_file(dir.path().join("cgroup.controllers")).unwrap();
        let error = line.read_controllers().unwrap_err().to_string();
        assert!(error.contains("cgroup.controllers: ENOENT"), "not that there are none: {error}");
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            #[test]
            fn no_line_makes_the_parser_panic(line: Vec<u8>) {
                let _ = Line::parse(&line);
                let _ = unescape(&line);
            }

            #[test]
            fn any_path_survives_the_kernels_escaping(path in "/[ -~\t\n\\\\]{0,40}") {
                let escape = |byte: u8| match byte {
                    b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}"),
                    byte => char::from(byte).to_string(),
                };
                let line = format!("1 2 0:3 / {} rw - cgroup cgroup rw,cpu", path.bytes().map(escape).collect::<String>());
                prop_assert_eq!(Line::parse(line.as_bytes()).unwrap().mount, PathBuf::from(path));
            }
        }
    }
}
