//! Where the records are kept: the state directory, root's alone, with a file and, while a run works on it, a lock for each sandbox.
//!
//! A record is written whole or not at all, under a temporary name. One run at a time works on a sandbox: it holds `<sandbox id>.lock`.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::deadline::{Backoff, Deadline};
use crate::error::{Error, errno_of};
use crate::record::Record;
use crate::{foreign, sys};

/// The longest record, in bytes: of a sandbox with hundreds of containers it has some ten thousand.
const LONGEST: u64 = 16 << 20;

/// The directory of the records, open: 0700 and its owner's alone.
#[derive(Debug)]
pub struct Store {
    dir: OwnedFd,
    path: PathBuf,
    owner: u32,
}

impl Store {
    /// Opens the directory, made if need be.
    pub fn open(path: &Path, owner: u32) -> Result<Self, Error> {
        if let Some(standing) = Self::open_existing(path, owner)? {
            return Ok(standing);
        }
        match mkdirat(AT_FDCWD, path, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(Error::path("create", path, errno)),
        }
        Self::open_existing(path, owner)?.ok_or_else(|| Error::path("open", path, Errno::ENOENT))
    }

    /// Opens the directory: `None` if there is none, or none that this user may see.
    pub fn open_existing(path: &Path, owner: u32) -> Result<Option<Self>, Error> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let dir = match openat(AT_FDCWD, path, flags, Mode::empty()) {
            Err(Errno::ENOENT | Errno::EACCES) => return Ok(None),
            dir => dir.map_err(|errno| Error::path("open", path, errno))?,
        };
        let stat = fstat(&dir).map_err(|errno| Error::path("stat", path, errno))?;
        if !foreign::is_only_of(&stat, owner) {
            let why = format!(
                "owned by uid {} with mode {:04o}: must be root's own; see who made it, then chown root and chmod 0700",
                stat.st_uid,
                stat.st_mode & 0o7777
            );
            return Err(Error::Config { path: path.to_path_buf(), why });
        }
        Ok(Some(Self { dir, path: path.to_path_buf(), owner }))
    }

    /// Reads a sandbox's record: none if there is none that can be understood.
    pub fn load(&self, sandbox: &str) -> Result<Option<Record>, Error> {
        let name = format!("{sandbox}.json");
        match foreign::read_file(&self.dir, Path::new(&name), LONGEST) {
            Err(Errno::ENOENT | Errno::EFBIG) => Ok(None),
            Err(errno) => Err(Error::path("read", self.path.join(name), errno)),
            Ok((_, stat)) if !foreign::is_only_of(&stat, self.owner) => Ok(None),
            Ok((bytes, _)) => Ok(Record::parse(&bytes, sandbox)),
        }
    }

    /// What is known of a sandbox, without its lock and without making anything.
    pub fn peek(path: &Path, owner: u32, sandbox: &str) -> Result<Record, Error> {
        let known = Self::open_existing(path, owner)?.map_or(Ok(None), |store| store.load(sandbox))?;
        Ok(known.unwrap_or_else(|| Record::new(sandbox)))
    }

    /// Whether a sandbox has a record, be it one that cannot be understood.
    pub fn has(&self, sandbox: &str) -> bool {
        exists(&self.dir, &format!("{sandbox}.json"))
    }

    /// The sandboxes that have a record.
    pub fn sandboxes(&self) -> Vec<String> {
        let id = |name: &String| name.strip_suffix(".json").filter(|id| crate::oci::state::is_id(id)).map(str::to_owned);
        self.names().iter().filter_map(id).collect()
    }

    /// The names of the files in the directory.
    fn names(&self) -> Vec<String> {
        // A descriptor of its own: a shared one would share its place in the list.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let entries = openat(&self.dir, ".", flags, Mode::empty()).and_then(sys::list).unwrap_or_default();
        entries.into_iter().filter_map(|entry| entry.name.into_string().ok()).collect()
    }

    /// Writes the record whole or not at all.
    pub fn save(&self, record: &Record) -> Result<(), Error> {
        let name = format!("{}.json", record.sandbox);
        let temporary = temporary(&record.sandbox);
        let failed = |verb, errno| Error::path(verb, self.path.join(&name), errno);
        let bytes = serde_json::to_vec(record).map_err(|_| failed("write", Errno::EINVAL))?;
        // It could not be read again.
        if bytes.len() as u64 > LONGEST {
            return Err(failed("write", Errno::EFBIG));
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = openat(&self.dir, temporary.as_str(), flags, mode).map_err(|errno| failed("write", errno))?;
        let written = File::from(file).write_all(&bytes);
        let renamed = written
            .map_err(|error| failed("write", errno_of(&error)))
            .and_then(|()| renameat(&self.dir, temporary.as_str(), &self.dir, name.as_str()).map_err(|e| failed("rename", e)));
        if renamed.is_err() {
            let _ = unlinkat(&self.dir, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        renamed
    }

    /// Keeps a record that cannot be understood as `<id>.json.old`, so that it can be looked at.
    pub fn set_aside(&self, sandbox: &str) {
        let (from, to) = (format!("{sandbox}.json"), format!("{sandbox}.json.old"));
        let _ = renameat(&self.dir, from.as_str(), &self.dir, to.as_str());
    }

    /// Removes the record.
    pub fn forget(&self, sandbox: &str) -> Result<(), Error> {
        let name = format!("{sandbox}.json");
        match unlinkat(&self.dir, name.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(Error::path("remove", self.path.join(name), errno)),
        }
    }

    /// Removes whatever is left in the directory, and the directory: all but what a run that is still going on holds.
    pub fn clear_out(&self) {
        for name in self.names() {
            let is_aside = name.ends_with(".json.old") || name.ends_with(".json.tmp");
            if is_aside {
                let _ = unlinkat(&self.dir, name.as_str(), UnlinkatFlags::NoRemoveDir);
            } else if let Some(sandbox) = name.strip_suffix(".lock") {
                // Its file goes with it where there is no record.
                drop(self.try_lock(sandbox));
            }
        }
        let _ = unlinkat(AT_FDCWD, &self.path, UnlinkatFlags::RemoveDir);
    }

    /// Takes the sandbox's lock, waiting for it until the deadline.
    pub fn lock(&self, sandbox: &str, deadline: &Deadline) -> Result<Lock<'_>, Error> {
        let mut backoff = Backoff::default();
        loop {
            if let Some(lock) = self.try_lock(sandbox)? {
                return Ok(lock);
            }
            deadline.check("take the sandbox's lock: another hook of it is running")?;
            backoff.pause(deadline);
        }
    }

    /// Takes the sandbox's lock if nobody has it.
    pub fn try_lock(&self, sandbox: &str) -> Result<Option<Lock<'_>>, Error> {
        let name = format!("{sandbox}.lock");
        let failed = |errno| Error::path("lock", self.path.join(&name), errno);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = openat(&self.dir, name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed)?;
        let held = match Flock::lock(File::from(file), FlockArg::LockExclusiveNonblock) {
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            held => held.map_err(|(_, errno)| failed(errno))?,
        };
        // The file may have been unlinked between open and flock: then this lock is of nothing that others can find.
        let ours = fstat(&*held).map_err(failed)?;
        match fstatat(&self.dir, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(named) if (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino) => {
                Ok(Some(Lock { _held: held, dir: &self.dir, sandbox: sandbox.to_owned() }))
            }
            _ => Ok(None),
        }
    }
}

/// The name under which a sandbox's record is written, until it is whole.
fn temporary(sandbox: &str) -> String {
    format!(".{sandbox}.json.tmp")
}

/// A sandbox's lock, held until it is dropped. Its file goes with the record: only its holder may remove it. So does what a run left
/// that was killed while it wrote the record.
#[derive(Debug)]
pub struct Lock<'a> {
    _held: Flock<File>,
    dir: &'a OwnedFd,
    sandbox: String,
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        if !exists(self.dir, &format!("{}.json", self.sandbox)) {
            // They stay at the worst, and the next run takes them as they are.
            for name in [temporary(&self.sandbox), format!("{}.lock", self.sandbox)] {
                let _ = unlinkat(self.dir, name.as_str(), UnlinkatFlags::NoRemoveDir);
            }
        }
    }
}

fn exists(dir: &OwnedFd, name: &str) -> bool {
    fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::record::{Container, RecordedGroup};

    fn store(dir: &Path) -> Store {
        Store::open(&dir.join("state"), nix::unistd::getuid().as_raw()).unwrap()
    }

    #[test]
    fn a_record_is_read_back_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let mut record = Record::new("sb");
        record.groups.push(RecordedGroup { path: "/c/kata_x".into(), controllers: vec!["cpu".into()], inode: 7 });
        record.containers.insert("/b".into(), Container { id: "c".into(), ..Container::default() });
        store.save(&record).unwrap();
        assert_eq!(store.load("sb").unwrap(), Some(record.clone()));
        assert_eq!(store.sandboxes(), ["sb"]);
        assert!(record.knows(Path::new("/c/kata_x"), 7) && !record.knows(Path::new("/c/kata_x"), 8));
        store.forget("sb").unwrap();
        store.forget("sb").unwrap();
        assert_eq!(store.load("sb").unwrap(), None);
    }

    #[test]
    fn a_record_that_could_not_be_read_again_is_not_written_and_one_that_stands_is_not_understood() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let mut record = Record::new("sb");
        store.save(&record).unwrap();
        record.path = "x".repeat(16 << 20);
        let error = store.save(&record).unwrap_err().to_string();
        assert!(error.contains("write") && error.contains("sb.json: EFBIG"), "{error}");
        assert_eq!(store.load("sb").unwrap(), Some(Record::new("sb")));
        std::fs::write(dir.path().join("state/sb.json"), vec![b' '; (16 << 20) + 1]).unwrap();
        assert_eq!(store.load("sb").unwrap(), None);
    }

    #[test]
    fn a_torn_a_foreign_and_a_newer_record_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let newer = serde_json::to_string(&Record { schema: 2, ..Record::new("sb") }).unwrap();
        let others = serde_json::to_string(&Record::new("other")).unwrap();
        for text in ["", "{", "[]", &newer, &others] {
            std::fs::write(dir.path().join("state/sb.json"), text).unwrap();
            assert_eq!(store.load("sb").unwrap(), None, "{text}");
        }
        store.set_aside("sb");
        assert!(dir.path().join("state/sb.json.old").exists());
    }

    #[test]
    fn the_directory_and_the_record_are_their_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        store.save(&Record::new("sb")).unwrap();
        let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("state"), mode("state/sb.json")), (0o700, 0o600));

        let us = nix::unistd::getuid().as_raw();
        assert!(Store::open(&dir.path().join("state"), us + 1).unwrap_err().to_string().contains("must be root's own"));
        std::fs::set_permissions(dir.path().join("state"), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Store::open(&dir.path().join("state"), us).unwrap_err().to_string().contains("mode 0777"));
    }

    #[test]
    fn a_lock_is_one_runs_alone_and_removed_only_by_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let lock = store.try_lock("sb").unwrap().unwrap();
        assert!(store.try_lock("sb").unwrap().is_none());
        let soon = Deadline::after(Instant::now(), Duration::from_millis(20));
        assert!(store.lock("sb", &soon).unwrap_err().to_string().contains("another hook of it is running"));
        std::fs::write(dir.path().join("state/.sb.json.tmp"), "{").unwrap();
        drop(lock);
        assert_eq!(std::fs::read_dir(dir.path().join("state")).unwrap().count(), 0, "nor what was written half");
        let lock = store.try_lock("sb").unwrap().unwrap();
        store.save(&Record::new("sb")).unwrap();
        drop(lock);
        assert!(dir.path().join("state/sb.lock").exists(), "as long as there is a record");
    }
}
