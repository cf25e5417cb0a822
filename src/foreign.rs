//! Reading files that somebody else wrote, or could have put in the place of one.
//!
//! A bundle's config.json may be a fifo that nobody will ever write to, a device, a link to something of root's, or twenty
//! megabytes. So such a file is opened without following links and without blocking, must be regular, and is read to a bound. The
//! kernel's own files, which have no size and which others can make long, are read to one as well.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, major, minor};
use nix::unistd::read;

use crate::sys::{self, FileId};

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

/// Gives each line of one of the kernel's own files to `take`, without its end; of one that has more than 64 KiB, that much.
///
/// For files that others can make long: no more than a line of them is held.
pub fn for_each_line(fd: impl AsFd, mut take: impl FnMut(&[u8])) -> Result<(), Errno> {
    let (mut line, mut page) = (Vec::new(), [0; PAGE]);
    loop {
        let length = read_once(&fd, &mut page)?;
        let mut rest = page.get(..length).unwrap_or_default();
        if rest.is_empty() {
            break;
        }
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (piece, after) = rest.split_at(end);
            extend(&mut line, piece);
            take(&line);
            line.clear();
            rest = after.get(1..).unwrap_or_default();
        }
        extend(&mut line, rest);
    }
    if !line.is_empty() {
        take(&line);
    }
    Ok(())
}

const LONGEST_LINE: usize = 64 << 10;

fn extend(line: &mut Vec<u8>, piece: &[u8]) {
    line.extend(piece.iter().take(LONGEST_LINE.saturating_sub(line.len())));
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

/// Which file `name` in `dir` is, without asking whoever serves it where the kernel can do without.
pub fn file_id(dir: impl AsFd, name: &CStr) -> Result<FileId, Errno> {
    match sys::cached_file_id(&dir, name) {
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let stat = fstatat(&dir, name, AtFlags::empty())?;
            let half = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
            let device = (half(major(stat.st_dev)), half(minor(stat.st_dev)));
            Ok(FileId { device, inode: stat.st_ino, owner: stat.st_uid, mode: stat.st_mode })
        }
        told => told,
    }
}

/// Whether nobody but `owner` can have written what `stat` describes.
pub fn is_only_of(stat: &FileStat, owner: u32) -> bool {
    is_writable_by_none_but(owner, stat.st_uid, stat.st_mode)
}

/// Whether it is a regular file that nobody but `owner` can have written.
pub fn is_regular_and_only_of(file: &FileId, owner: u32) -> bool {
    let is_regular = SFlag::from_bits_truncate(file.mode) & SFlag::S_IFMT == SFlag::S_IFREG;
    is_regular && is_writable_by_none_but(owner, file.owner, file.mode)
}

fn is_writable_by_none_but(owner: u32, uid: u32, mode: u32) -> bool {
    uid == owner && mode & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

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

    #[test]
    fn a_file_is_told_in_the_same_way_whether_or_not_the_kernel_asks_who_serves_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let (top, stat) = (File::open(dir.path()).unwrap(), std::fs::metadata(dir.path().join("file")).unwrap());
        let told = file_id(&top, c"file").unwrap();
        let device = (major(stat.dev()), minor(stat.dev()));
        assert_eq!((u64::from(told.device.0), u64::from(told.device.1)), device);
        assert_eq!((told.inode, told.owner, told.mode), (stat.ino(), stat.uid(), stat.mode()));
        assert!(is_regular_and_only_of(&told, stat.uid()) && !is_regular_and_only_of(&told, stat.uid() + 1));
        assert!(!is_regular_and_only_of(&FileId { mode: told.mode | 0o020, ..told }, stat.uid()));
        assert!(!is_regular_and_only_of(&file_id(&top, c".").unwrap(), stat.uid()), "a directory");
        assert_eq!(file_id(&top, c"gone"), Err(Errno::ENOENT));
    }

    #[test]
    fn of_a_file_of_many_long_lines_one_is_held_at_a_time_and_no_more_than_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("first\n\n{}\nlast", "x".repeat(LONGEST_LINE + PAGE));
        std::fs::write(dir.path().join("file"), text).unwrap();
        let mut lines = Vec::new();
        for_each_line(File::open(dir.path().join("file")).unwrap(), |line| lines.push(line.to_vec())).unwrap();
        assert_eq!([&lines[0][..], &lines[1], &lines[3]], [&b"first"[..], b"", b"last"]);
        assert_eq!((lines.len(), lines[2].len()), (4, LONGEST_LINE));
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
