//! One group: named, opened, read, written.
//!
//! A group and its files are opened beneath the top of its hierarchy without following links, and to be written never with the flags that
//! create or truncate: a path from a pod cannot lead elsewhere (cgroups-rs, asked for an absolute path, makes regular files in `/` and
//! says Ok). A group is **ours** only if it carries our mark, an extended
//! attribute that outlives us, or if our record knows its inode; a name proves nothing.

use std::ffi::{CStr, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat, write};

use crate::cgroup::file;
use crate::cgroup::mounts::{Hierarchy, Version};
use crate::error::Error;
use crate::proc::number;
use crate::{foreign, sys};

/// The attribute that holds a group's mark.
const MARK: &CStr = c"trusted.kata-cgroup-hook";

/// The mark of a group that we made, as it is written: `SANDBOX STATE-DIR`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The sandbox that it was made for.
    pub sandbox: String,
    /// Where the record is that knows it: what one hook made under one configuration is not another's to clean up.
    pub state_dir: PathBuf,
}

impl Mark {
    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let text = String::from_utf8(bytes).ok()?;
        // An id has no blank.
        let (sandbox, dir) = text.split_once(' ').unwrap_or((&text, ""));
        Some(Self { sandbox: sandbox.to_owned(), state_dir: dir.into() })
    }

    fn bytes(&self) -> Vec<u8> {
        [self.sandbox.as_bytes(), b" ", self.state_dir.as_os_str().as_bytes()].concat()
    }
}

/// No file of a group is longer, in bytes: a list of every thread that a host can have (PID_MAX_LIMIT is 4,194,304).
const LONGEST: u64 = 64 << 20;

/// Where a group is, whether it stands or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPath {
    pub hierarchy: Rc<Hierarchy>,
    /// Below the mount point; empty is the hierarchy's top.
    pub rel: PathBuf,
}

impl GroupPath {
    /// The group at `rel` below the mount point.
    pub fn new(hierarchy: &Rc<Hierarchy>, rel: impl Into<PathBuf>) -> Self {
        Self { hierarchy: Rc::clone(hierarchy), rel: rel.into() }
    }

    /// Its directory.
    pub fn absolute(&self) -> PathBuf {
        // join("") would leave a slash at the end.
        if self.rel.as_os_str().is_empty() { self.hierarchy.mount.clone() } else { self.hierarchy.mount.join(&self.rel) }
    }

    /// What the kernel calls it in /proc/PID/cgroup.
    pub fn in_kernel(&self) -> PathBuf {
        if self.rel.as_os_str().is_empty() { self.hierarchy.root.clone() } else { self.hierarchy.root.join(&self.rel) }
    }

    /// The group above it; `None` at the top.
    pub fn parent(&self) -> Option<Self> {
        let parent = self.rel.parent()?;
        Some(Self::new(&self.hierarchy, parent))
    }

    /// A group in it.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self::new(&self.hierarchy, self.rel.join(name))
    }

    /// The groups from the top's child down to this one.
    pub fn chain(&self) -> Vec<Self> {
        let mut chain: Vec<Self> = self.rel.ancestors().map(|rel| Self::new(&self.hierarchy, rel)).collect();
        chain.pop();
        chain.reverse();
        chain
    }

    /// The file that takes and lists single threads.
    pub fn threads_file(&self) -> &'static str {
        match self.hierarchy.version {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.threads",
        }
    }

    /// The file that takes and lists whole processes or single threads.
    pub fn list_of(&self, whole: bool) -> &'static str {
        if whole { file::PROCS } else { self.threads_file() }
    }

    /// The groups that stand in it; none in one that does not stand itself.
    pub fn children(&self) -> Result<Vec<Self>, Error> {
        let names = self.open()?.map_or(Ok(Vec::new()), |open| open.children())?;
        Ok(names.iter().map(|name| self.child(name)).collect())
    }

    /// Opens it: `None` if it does not stand.
    pub fn open(&self) -> Result<Option<Group>, Error> {
        let is_top = self.rel.as_os_str().is_empty();
        match self.open_beneath_top(if is_top { Path::new(".") } else { &self.rel }, DIRECTORY)? {
            // The top always stands.
            Err(Errno::ENOENT) if !is_top => Ok(None),
            Ok(dir) => Ok(Some(Group { dir, path: self.absolute() })),
            Err(errno) => Err(Error::path("open", self.absolute(), errno)),
        }
    }

    /// Opens one of its files for writing, as often as one likes: `None` if the group does not stand.
    pub fn writer(&self, name: &str) -> Result<Option<Writer>, Error> {
        let path = self.absolute().join(name);
        match self.open_beneath_top(&self.rel.join(name), WRITING)? {
            Err(Errno::ENOENT) if self.open()?.is_none() => Ok(None),
            Ok(file) => Ok(Some(Writer { file, path })),
            Err(errno) => Err(Error::path("open for writing", path, errno)),
        }
    }

    /// The process or thread numbers in one of its lists; none in a group that does not stand.
    pub fn members(&self, list: &str) -> Result<Vec<i32>, Error> {
        numbers_in(self.open_beneath_top(&self.rel.join(list), READING)?, || self.absolute().join(list))
    }

    /// What the kernel says to opening this; an error where the hierarchy's own top cannot be opened.
    fn open_beneath_top(&self, rel: &Path, flags: OFlag) -> Result<Result<OwnedFd, Errno>, Error> {
        let top = self.hierarchy.top().map_err(|errno| Error::path("open", &self.hierarchy.mount, errno))?;
        Ok(foreign::open_beneath(top, rel, flags))
    }

    /// Makes it and puts our mark on it; the group above must stand. EEXIST is for the caller to judge.
    pub fn create(&self, mark: &Mark) -> Result<Group, Error> {
        let failed = |errno| Error::path("create", self.absolute(), errno);
        let parent = self.parent().ok_or_else(|| failed(Errno::EEXIST))?.open()?.ok_or_else(|| failed(Errno::ENOENT))?;
        let name = self.rel.file_name().ok_or_else(|| failed(Errno::EINVAL))?;
        mkdirat(&parent.dir, name, Mode::from_bits_truncate(0o755)).map_err(failed)?;
        let opened = parent.child(name).and_then(|group| group.ok_or_else(|| failed(Errno::ENOENT)));
        let group = opened.inspect_err(|_| {
            // What cannot be opened is not left behind either.
            let _ = unlinkat(&parent.dir, name, UnlinkatFlags::RemoveDir);
        })?;
        group.set_mark(mark);
        Ok(group)
    }

    /// Removes it; it must be empty.
    pub fn remove(&self) -> Result<(), Errno> {
        let open = |path: &Self| path.open().map_err(|error| error.errno().unwrap_or(Errno::EIO));
        let parent = self.parent().ok_or(Errno::EBUSY)?;
        let parent = open(&parent)?.ok_or(Errno::ENOENT)?;
        unlinkat(&parent.dir, self.rel.file_name().ok_or(Errno::EINVAL)?, UnlinkatFlags::RemoveDir)
    }
}

/// A standing group, open.
#[derive(Debug)]
pub struct Group {
    dir: OwnedFd,
    path: PathBuf,
}

/// How a directory is opened.
const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);
/// How a file is opened to be read.
const READING: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK);
/// How a file is opened to be written.
const WRITING: OFlag = OFlag::O_WRONLY.union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK);

impl Group {
    /// Opens a group in it, no link followed: `None` if it does not stand.
    pub fn child(&self, name: &OsStr) -> Result<Option<Self>, Error> {
        let path = self.path.join(name);
        match openat(&self.dir, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty()) {
            Err(Errno::ENOENT) => Ok(None),
            dir => Ok(Some(Self { dir: dir.map_err(|errno| Error::path("open", &path, errno))?, path })),
        }
    }

    /// The path of one of its files, for messages.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Its inode, which with its path is its identity in the record.
    pub fn inode(&self) -> Result<u64, Error> {
        self.stat().map(|stat| stat.st_ino)
    }

    /// The user that it belongs to: he made it, or was given it.
    pub fn owner(&self) -> Result<u32, Error> {
        self.stat().map(|stat| stat.st_uid)
    }

    fn stat(&self) -> Result<FileStat, Error> {
        fstat(&self.dir).map_err(|errno| Error::path("stat", &self.path, errno))
    }

    /// Its mark, if we made it.
    pub fn mark(&self) -> Option<Mark> {
        sys::get_xattr(&self.dir, MARK).ok().and_then(Mark::parse)
    }

    /// Marks it. Where that cannot be done (no CAP_SYS_ADMIN, a kernel without attributes there) the record
    /// alone knows it.
    pub fn set_mark(&self, mark: &Mark) {
        let _ = sys::set_xattr(&self.dir, MARK, &mark.bytes());
    }

    /// Reads one of its files, without the line end.
    pub fn read(&self, name: &str) -> Result<String, Error> {
        let failed = |errno| Error::path("read", self.file(name), errno);
        let file = openat(&self.dir, name, READING, Mode::empty()).map_err(failed)?;
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(|text| text.trim_end().to_owned());
        foreign::read_kernels(file, LONGEST, text).map_err(failed)?.map_err(|_| failed(Errno::EILSEQ))
    }

    /// Reads one of its files; `None` if the kernel has no such file.
    pub fn read_if_there(&self, name: &str) -> Result<Option<String>, Error> {
        match self.read(name) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
            read => read.map(Some),
        }
    }

    /// The process or thread numbers in one of its lists; none in a group that has gone meanwhile.
    pub fn members(&self, list: &str) -> Result<Vec<i32>, Error> {
        numbers_in(openat(&self.dir, list, READING, Mode::empty()), || self.file(list))
    }

    /// The file by which the kernel tells when nobody is left in it and below it; `None` where that is so already.
    pub fn events_while_populated(&self) -> Option<OwnedFd> {
        let file = openat(&self.dir, "cgroup.events", READING, Mode::empty()).ok()?;
        let is_populated = |text: &[u8]| text.split(|byte| *byte == b'\n').any(|line| line == b"populated 1");
        foreign::read_kernels(&file, LONGEST, is_populated).ok()?.then_some(file)
    }

    /// Opens one of its files for writing, as often as one likes.
    pub fn writer(&self, name: &str) -> Result<Writer, Error> {
        let file = openat(&self.dir, name, WRITING, Mode::empty());
        let file = file.map_err(|errno| Error::path("open for writing", self.file(name), errno))?;
        Ok(Writer { file, path: self.file(name) })
    }

    /// Writes a value into one of its files.
    pub fn write(&self, name: &str, value: &str) -> Result<(), Error> {
        self.writer(name)?.write(value)
    }

    /// The names of the groups that stand in it; none in one that has gone meanwhile.
    pub fn children(&self) -> Result<Vec<String>, Error> {
        let failed = |errno| Error::path("list", &self.path, errno);
        // A descriptor of its own: a shared one would share its place in the list.
        let entries = match openat(&self.dir, ".", DIRECTORY, Mode::empty()).and_then(sys::list) {
            Err(Errno::ENOENT | Errno::ENODEV) => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        Ok(entries.iter().filter(|entry| entry.is_dir).map(|entry| entry.name.to_string_lossy().into_owned()).collect())
    }
}

/// The numbers in a list of a group's; none in one that has gone.
fn numbers_in(list: Result<OwnedFd, Errno>, path: impl Fn() -> PathBuf) -> Result<Vec<i32>, Error> {
    let numbers = |text: &[u8]| text.split(|byte| *byte == b'\n').filter_map(number).collect();
    match list.and_then(|file| foreign::read_kernels(file, LONGEST, numbers)) {
        // Every group has these lists; where one cannot be opened, its group is gone.
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(Vec::new()),
        read => read.map_err(|errno| Error::path("read", path(), errno)),
    }
}

/// One of a group's files, open for writing.
#[derive(Debug)]
pub struct Writer {
    file: OwnedFd,
    path: PathBuf,
}

impl Writer {
    /// Writes a value in one call, as the kernel wants it.
    pub fn write(&self, value: &str) -> Result<(), Error> {
        let written = write(&self.file, value.as_bytes());
        written.map(drop).map_err(|errno| Error::write(&self.path, value, errno))
    }
}

/// Where a path leads that a record or a state names: the hierarchy whose mount point it lies below.
pub fn locate(hierarchies: &[Rc<Hierarchy>], path: &Path) -> Option<GroupPath> {
    hierarchies.iter().find_map(|hierarchy| {
        let rel = path.strip_prefix(&hierarchy.mount).ok()?;
        let is_plain = rel.components().all(|part| matches!(part, Component::Normal(_)));
        (is_plain && rel != Path::new("")).then(|| GroupPath::new(hierarchy, rel))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::cgroup::Controller;
    use crate::cgroup::mounts::Top;

    fn top(dir: &Path) -> GroupPath {
        let controllers = vec![Controller::Cpu];
        let mount = dir.to_path_buf();
        let hierarchy = Hierarchy { version: Version::V1, controllers, mount, root: "/".into(), top: Top::default() };
        GroupPath::new(&Rc::new(hierarchy), "")
    }

    fn mark() -> Mark {
        Mark { sandbox: "sb".into(), state_dir: "/run/state dir".into() }
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        assert_eq!(Mark::parse(mark().bytes()), Some(mark()));
        assert_eq!(Mark::parse(b"sb".to_vec()).unwrap().sandbox, "sb");
        assert_eq!(Mark::parse(vec![0xff]), None);
    }

    #[test]
    fn a_group_is_made_marked_read_written_and_removed_beneath_its_mount() {
        let dir = tempfile::tempdir().unwrap();
        let path = top(dir.path()).child("a");
        assert!(path.open().unwrap().is_none());
        let group = path.create(&mark()).unwrap();
        assert_eq!(path.create(&mark()).unwrap_err().errno(), Some(Errno::EEXIST));
        assert!(group.mark().is_none_or(|found| found == mark()));
        std::fs::write(dir.path().join("a/cpu.shares"), "1024\n").unwrap();
        assert_eq!(group.read("cpu.shares").unwrap(), "1024");
        group.write("cpu.shares", "512").unwrap();
        assert_eq!(group.children().unwrap(), Vec::<String>::new());
        path.child("b").create(&mark()).unwrap();
        assert_eq!(group.children().unwrap(), ["b"]);
        path.child("b").remove().unwrap();
        std::fs::remove_file(dir.path().join("a/cpu.shares")).unwrap();
        path.remove().unwrap();
        assert!(path.open().unwrap().is_none());
    }

    #[test]
    fn a_missing_file_is_never_created_by_writing() {
        let dir = tempfile::tempdir().unwrap();
        let group = top(dir.path()).child("a").create(&mark()).unwrap();
        let error = group.write("cpu.shares", "512").unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENOENT));
        assert!(!dir.path().join("a/cpu.shares").exists());
        assert_eq!(group.read_if_there("cpu.shares").unwrap(), None);
    }

    #[test]
    fn a_link_in_the_way_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(elsewhere.path(), dir.path().join("link")).unwrap();
        assert!(top(dir.path()).child("link").open().is_err());
        assert!(top(dir.path()).child("link").child("x").create(&mark()).is_err());
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_path_knows_its_parents_and_its_place_in_the_kernel() {
        let path = top(Path::new("/mnt")).child("a").child("b");
        assert_eq!(path.absolute(), Path::new("/mnt/a/b"));
        assert_eq!(path.in_kernel(), Path::new("/a/b"));
        let chain: Vec<PathBuf> = path.chain().iter().map(|group| group.rel.clone()).collect();
        assert_eq!(chain, [PathBuf::from("a"), PathBuf::from("a/b")]);
        assert_eq!(top(Path::new("/mnt")).absolute(), Path::new("/mnt"));
        assert!(top(Path::new("/mnt")).parent().is_none());
    }

    #[test]
    fn a_recorded_path_is_located_only_below_a_mount() {
        let top = top(Path::new("/mnt/cpu"));
        let hierarchies = [Rc::clone(&top.hierarchy)];
        assert_eq!(locate(&hierarchies, Path::new("/mnt/cpu/a")), Some(top.child("a")));
        for path in ["/mnt/cpu", "/mnt/cpuset/a", "/mnt/cpu/../a", "a", "/"] {
            assert_eq!(locate(&hierarchies, Path::new(path)), None, "{path}");
        }
    }
}
