//! The few system calls that no crate of ours wraps, or only at a price: extended attributes, entries and links of an open
//! directory, a file system mounted nowhere, a terminal's width. Everything `unsafe` in this program is in this file: the compiler
//! denies it everywhere else (Cargo.toml, `unsafe_code`).

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

/// Sets an extended attribute of an open file or directory (setxattr(2)).
pub fn set_xattr(fd: impl AsFd, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed and so open, `name` ends in NUL, and pointer and length are of one living slice.
    let done = unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(done).map(drop)
}

/// Reads an extended attribute of at most 4,352 bytes of an open file or directory (getxattr(2)).
pub fn get_xattr(fd: impl AsFd, name: &CStr) -> Result<Vec<u8>, Errno> {
    // The longest mark: an id, and a path of PATH_MAX.
    let mut value = vec![0_u8; 4096 + 256];
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: as above, and the kernel writes at most `value.len()` bytes into `value`.
    let length = unsafe { libc::fgetxattr(fd, name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    let length = Errno::result(length)?;
    value.truncate(usize::try_from(length).unwrap_or(0));
    Ok(value)
}

/// The columns of the terminal that `fd` is, if it is one and says so (TIOCGWINSZ, ioctl_tty(2)).
pub fn terminal_width(fd: impl AsFd) -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is borrowed and so open, and the kernel writes one `winsize` into the one that is pointed to.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (done == 0 && size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// What a link says that `name` in `dir` is (readlink(2)), of at most 4,096 bytes.
pub fn read_link(dir: impl AsFd, name: &CStr) -> Result<Vec<u8>, Errno> {
    let mut target = [0_u8; 4096];
    let fd = dir.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed and so open, `name` ends in NUL, and the kernel writes at most `target.len()` bytes there.
    let length = unsafe { libc::readlinkat(fd, name.as_ptr(), target.as_mut_ptr().cast(), target.len()) };
    let length = usize::try_from(Errno::result(length)?).unwrap_or(0);
    Ok(target.get(..length).unwrap_or_default().to_vec())
}

/// Which file somebody else's program is, whose it is and what it allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// Major and minor number of the device that it is on.
    pub device: (u32, u32),
    pub inode: u64,
    pub owner: u32,
    /// With the bits that say what kind of file it is (inode(7)).
    pub mode: u32,
}

/// Tells which file `name` in `dir` is, from what the kernel knows already (statx(2), `AT_STATX_DONT_SYNC`): on a file system of a tenant's
/// own it is he who would be asked, and who might never answer.
///
/// # Errors
/// ENOSYS before Linux 4.11; EPERM where a filter does not know it.
pub fn cached_file_id(dir: impl AsFd, name: &CStr) -> Result<FileId, Errno> {
    // SAFETY: numbers and padding, for which zeros will do.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let fd = dir.as_fd().as_raw_fd();
    let (flags, mask) = (libc::AT_STATX_DONT_SYNC, libc::STATX_BASIC_STATS);
    // SAFETY: the descriptor is borrowed and so open, `name` ends in NUL, and the kernel writes one `statx` into the one that is pointed to.
    let done = unsafe { libc::syscall(libc::SYS_statx, fd, name.as_ptr(), flags, mask, &raw mut stat) };
    Errno::result(done)?;
    let (device, mode) = ((stat.stx_dev_major, stat.stx_dev_minor), u32::from(stat.stx_mode));
    Ok(FileId { device, inode: stat.stx_ino, owner: stat.stx_uid, mode })
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: CString,
    pub is_dir: bool,
}

/// Lists an open directory from where its descriptor stands, without `.` and `..` (getdents64(2)).
///
/// The C library asks four times more about the directory, and takes pages for it.
pub fn list(dir: impl AsFd) -> Result<Vec<Entry>, Errno> {
    let mut entries = Vec::new();
    for_each(dir, |entry| {
        entries.push(entry);
        true
    })?;
    Ok(entries)
}

/// Gives each entry of an open directory to `take`, which says whether to go on: for those that somebody else can fill.
pub fn for_each(dir: impl AsFd, mut take: impl FnMut(Entry) -> bool) -> Result<(), Errno> {
    let fd = dir.as_fd().as_raw_fd();
    loop {
        let mut buffer = [0_u8; 4096];
        // SAFETY: the descriptor is borrowed and so open, and the kernel writes at most `buffer.len()` bytes there.
        let length = unsafe { libc::syscall(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), buffer.len()) };
        let length = usize::try_from(Errno::result(length)?).unwrap_or(0);
        let mut records = buffer.get(..length).unwrap_or_default();
        if records.is_empty() {
            return Ok(());
        }
        while let Some((entry, rest)) = next_entry(records) {
            let is_one = entry.name.as_c_str() != c"." && entry.name.as_c_str() != c"..";
            if is_one && !take(entry) {
                return Ok(());
            }
            records = rest;
        }
    }
}

/// Takes a `struct linux_dirent64` apart: inode and offset, its own length at 16, the kind at 18, from 19 on the name, which ends in NUL.
fn next_entry(records: &[u8]) -> Option<(Entry, &[u8])> {
    let length = u16::from_ne_bytes(records.get(16..18)?.try_into().ok()?);
    let (record, rest) = records.split_at_checked(length.into())?;
    let name = CStr::from_bytes_until_nul(record.get(19..)?).ok()?;
    Some((Entry { name: name.to_owned(), is_dir: *record.get(18)? == libc::DT_DIR }, rest))
}

/// Mounts the file system `kind` read-only, attached to no place (fsopen(2), fsmount(2), Linux 5.2), and gives its root. It is
/// gone when the descriptor is closed.
pub fn mount_detached(kind: &CStr) -> Result<OwnedFd, Errno> {
    const FSOPEN_CLOEXEC: libc::c_long = 1;
    const FSCONFIG_CMD_CREATE: libc::c_long = 6;
    const FSMOUNT_CLOEXEC: libc::c_long = 1;
    const RDONLY_NOSUID_NODEV_NOEXEC: libc::c_long = 0xf;
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: fsopen reads the NUL-terminated name and a flag.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    let fd = libc::c_long::from(context.as_raw_fd());
    // SAFETY: FSCONFIG_CMD_CREATE takes no key and no value; both pointers are null as fsconfig(2) asks.
    Errno::result(unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, null, null, 0_i64) })?;
    // SAFETY: fsmount takes numbers only.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, RDONLY_NOSUID_NODEV_NOEXEC) })
}

/// Takes the new descriptor that a system call returned.
fn owned(returned: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = RawFd::try_from(Errno::result(returned)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The unwinder (Itanium C++ ABI, 1.2) of the binary that ships, which never unwinds: a panic says where it was, and is an abort.
///
/// A backtrace beside that would be numbers, since there are no symbols. In search of some, 300 kB of the standard library and of
/// libunwind would walk the stack, inflate debug information and unmangle names. A linker takes what it finds first: with this it has
/// no use for all that, and leaves it out. Tests unwind, and are linked with the real one.
#[cfg(panic = "abort")]
mod unwinder {
    use nix::libc::{c_int, c_void};

    /// No frame, and with that the end of the stack.
    // SAFETY: the ABI's name and arguments, of which it uses none; nothing else that is linked has this name, or linking would fail.
    #[unsafe(export_name = "_Unwind_Backtrace")]
    extern "C" fn backtrace(_each: *const c_void, _argument: *mut c_void) -> c_int {
        5
    }

    macro_rules! never_called {
        ($($name:literal)*) => { $(const _: () = {
            // SAFETY: as above; it takes no argument and does not return, whatever it is called with.
            #[unsafe(export_name = $name)]
            extern "C" fn never_called() -> ! {
                std::process::abort()
            }
        };)* };
    }

    // What functions that were compiled to be unwound refer to, beside their way out of a panic.
    never_called! {
        "_Unwind_Resume" "_Unwind_GetIPInfo" "_Unwind_GetDataRelBase" "_Unwind_GetTextRelBase"
        "_Unwind_GetLanguageSpecificData" "_Unwind_GetRegionStart" "_Unwind_SetGR" "_Unwind_SetIP"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_call_gives_its_errno() {
        let dir = std::fs::File::open("/proc").unwrap();
        assert!(get_xattr(&dir, c"trusted.none").is_err());
        assert!(mount_detached(c"no-such-file-system").is_err());
        assert!(list(std::fs::File::open("/proc/self/stat").unwrap()).is_err());
        assert!(read_link(&dir, c"version").is_err());
    }

    #[test]
    fn a_directory_is_listed_whole_and_its_links_are_read() {
        let dir = tempfile::tempdir().unwrap();
        // More than fit in one call.
        let long = "x".repeat(200);
        for number in 0..100 {
            std::fs::write(dir.path().join(format!("{number}{long}")), "").unwrap();
        }
        std::fs::create_dir(dir.path().join("dir")).unwrap();
        std::os::unix::fs::symlink("to nowhere", dir.path().join("link")).unwrap();
        let open = || std::fs::File::open(dir.path()).unwrap();
        let entries = list(open()).unwrap();
        assert_eq!(entries.len(), 102);
        assert_eq!(
            entries.iter().filter(|entry| entry.is_dir).map(|entry| entry.name.as_c_str()).collect::<Vec<_>>(),
            [c"dir"]
        );
        assert_eq!(read_link(open(), c"link").unwrap(), b"to nowhere");
    }
}
