//! Reading files that somebody else wrote, or could have put in the place of one.
//!
//! A bundle's config.json may be a fifo that nobody will ever write to, a device, a link to something of root's, or twenty
//! megabytes. So such a file is opened without following links and without blocking, must be regular, and is read to a bound.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::read;

/// Opens `name` in `dir` for reading: no link as its last part, no waiting for the other end of a fifo.
pub fn open(dir: impl AsFd, name: &Path) -> Result<File, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    openat(dir, name, flags, Mode::empty()).map(File::from)
}

/// Opens what lies at `path` beneath `dir`, following no link on the way: in one call, or part by part where there is none for that, as
/// before Linux 5.6 and under a filter.
pub fn open_beneath(dir: impl AsFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(&dir, path, how) {
        Err(Errno::ENOSYS | Errno::EPERM) => walk_beneath(dir, path, flags),
        opened => opened,
    }
}

fn walk_beneath(dir: impl AsFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let way = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut above: Option<OwnedFd> = None;
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        if !matches!(part, Component::Normal(_) | Component::CurDir) {
            return Err(Errno::EXDEV);
        }
        let flags = if parts.peek().is_some() { way } else { flags };
        let dir = above.as_ref().map_or(dir.as_fd(), AsFd::as_fd);
        let below = openat(dir, part.as_os_str(), flags | OFlag::O_NOFOLLOW, Mode::empty())?;
        above = Some(below);
    }
    above.ok_or(Errno::ENOENT)
}

/// The content of the regular file `name` in `dir`, of at most `limit` bytes, and whose it is.
///
/// # Errors
/// ELOOP for a link, EINVAL for what is no regular file, EFBIG for more than `limit` bytes; else what the kernel said.
pub fn read_file(dir: impl AsFd, name: &Path, limit: u64) -> Result<(Vec<u8>, FileStat), Errno> {
    read_open(&open(dir, name)?, limit)
}

/// The content and owner of a file already open, with the same rules.
pub fn read_open(file: &File, limit: u64) -> Result<(Vec<u8>, FileStat), Errno> {
    let stat = fstat(file)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(Errno::EINVAL);
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    // One byte more than may be is enough to know.
    let mut bytes = vec![0; usize::try_from(size.min(limit + 1)).map_err(|_| Errno::EFBIG)?];
    let length = read_once(file, &mut bytes)?;
    bytes.truncate(length);
    if size == 0 || bytes.len() as u64 != size {
        let rest = read_pieces(file, limit.saturating_sub(length as u64), |_| false)?;
        bytes.extend(rest);
    }
    if bytes.len() as u64 > limit { Err(Errno::EFBIG) } else { Ok((bytes, stat)) }
}

/// What `parse` makes of one of the kernel's own files, open as `fd`, of at most `limit` bytes: EFBIG for more.
///
/// They have no size to go by. But the kernel fills a page with what it tells before it hands it over (`seq_read_iter` in
/// fs/seq_file.c), so less than half of one is all, as long as no single line has the other half; and that needs no heap.
pub fn read_kernels<T>(fd: impl AsFd, limit: u64, parse: impl FnOnce(&[u8]) -> T) -> Result<T, Errno> {
    let mut page = [0; PAGE];
    let length = read_once(&fd, &mut page)?;
    let first = page.get(..length).unwrap_or_default();
    if is_all(length) {
        return if length as u64 > limit { Err(Errno::EFBIG) } else { Ok(parse(first)) };
    }
    let rest = read_pieces(fd, limit.saturating_sub(length as u64), is_all)?;
    Ok(parse(&[first, &rest].concat()))
}

/// How much is read at once, and what the kernel fills at least where it has that much to tell.
const PAGE: usize = 4096;

fn is_all(length: usize) -> bool {
    length < PAGE / 2
}

/// Reads piece by piece to the end, or until that is known to be reached, from how long the last piece was.
fn read_pieces(fd: impl AsFd, limit: u64, is_end: impl Fn(usize) -> bool) -> Result<Vec<u8>, Errno> {
    let (mut bytes, mut page) = (Vec::new(), [0; PAGE]);
    loop {
        let length = read_once(&fd, &mut page)?;
        bytes.extend_from_slice(page.get(..length).unwrap_or_default());
        if bytes.len() as u64 > limit {
            return Err(Errno::EFBIG);
        }
        if length == 0 || is_end(length) {
            return Ok(bytes);
        }
    }
}

fn read_once(fd: impl AsFd, page: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match read(&fd, page) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// What somebody else chose, as text: bytes that are not UTF-8 as `\xNN`.
pub fn as_text(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

/// Whether nobody but `owner` can have written what `stat` describes.
pub fn is_only_of(stat: &FileStat, owner: u32) -> bool {
    stat.st_uid == owner && stat.st_mode & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::fcntl::AT_FDCWD;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn only_regular_files_within_the_bound_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "12345").unwrap();
        symlink(path("file"), path("link")).unwrap();
        mkfifo(&path("fifo"), Mode::S_IRWXU).unwrap();

        assert_eq!(read_file(AT_FDCWD, &path("file"), 5).unwrap().0, b"12345");
        assert_eq!(read_file(AT_FDCWD, &path("file"), 4).unwrap_err(), Errno::EFBIG);
        assert_eq!(read_file(AT_FDCWD, &path("link"), 5).unwrap_err(), Errno::ELOOP);
        assert_eq!(read_file(AT_FDCWD, &path("fifo"), 5).unwrap_err(), Errno::EINVAL);
        assert_eq!(read_file(AT_FDCWD, dir.path(), 5).unwrap_err(), Errno::EINVAL);
        assert_eq!(read_file(AT_FDCWD, &path("gone"), 5).unwrap_err(), Errno::ENOENT);
    }

    type Open = fn(&File, &Path, OFlag) -> Result<OwnedFd, Errno>;

    #[test]
    fn nothing_outside_and_nothing_by_way_of_a_link_is_opened_in_one_call_or_part_by_part() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/file"), "").unwrap();
        symlink("a", dir.path().join("link")).unwrap();
        symlink("file", dir.path().join("a/b/link")).unwrap();
        let top = File::open(dir.path()).unwrap();
        let ways: [Open; 2] =
            [|dir, path, flags| open_beneath(dir, path, flags), |dir, path, flags| walk_beneath(dir, path, flags)];
        for open in ways {
            let open = |path: &str| open(&top, Path::new(path), OFlag::O_RDONLY);
            for path in [".", "a", "a/b", "a/b/file"] {
                assert!(open(path).is_ok(), "{path}");
            }
            assert_eq!(open("a/c/file").unwrap_err(), Errno::ENOENT);
            for path in ["link", "link/b/file", "a/b/link", "..", "../a", "/", "/proc", ""] {
                assert!(open(path).is_err(), "{path}");
            }
        }
    }
}
