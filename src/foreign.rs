//! Reading files that somebody else wrote, or could have put in the place of one.
//!
//! A bundle's config.json may be a fifo that nobody will ever write to, a device, a link to something of root's, or twenty
//! megabytes. So such a file is opened without following links and without blocking, must be regular, and is read to a bound.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::read;

/// Opens `name` in `dir` for reading: no link as its last part, no waiting for the other end of a fifo.
pub fn open(dir: impl AsFd, name: &Path) -> Result<File, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    openat(dir, name, flags, Mode::empty()).map(File::from)
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
    read_to_end(file, limit).map(|bytes| (bytes, stat))
}

/// Everything that can be read from `fd`, of at most `limit` bytes: EFBIG for more.
///
/// The kernel's own files say that they are empty, and the standard library then begins with 32 bytes; most of them fit here.
pub fn read_to_end(fd: impl AsFd, limit: u64) -> Result<Vec<u8>, Errno> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match read(&fd, &mut chunk) {
            Ok(0) => return Ok(bytes),
            Ok(length) => bytes.extend_from_slice(chunk.get(..length).unwrap_or_default()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        if bytes.len() as u64 > limit {
            return Err(Errno::EFBIG);
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
}
