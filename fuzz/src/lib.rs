//! What the fuzz targets share. A target is one noun whose bytes come from outside, and says what must hold of whatever was read,
//! not only that reading it does not panic. They use the library as the binary does: there is no switch for them in it.
//!
//! The target `host` is of all of them together, on a made-up [`host`]: its [`cast`] of processes, and a [`kernel`] whose [`tree`]s of
//! groups go by the real one's [`rules`].
//!
//! What is read from files lies in a temporary directory of each input's own; on a tmpfs (`TMPDIR=/dev/shm`) that costs little.

pub mod cast;
pub mod host;
pub mod kernel;
pub mod rules;
pub mod tree;

use std::path::{Component, Path};

/// The bytes up to the first line end, as text, and those behind it: in the corpora the first line says what the rest is.
pub fn first_line(data: &[u8]) -> Option<(&str, &[u8])> {
    let end = data.iter().position(|byte| *byte == b'\n')?;
    Some((std::str::from_utf8(&data[..end]).ok()?, &data[end + 1..]))
}

/// Whether a path is below `top` whatever the file system holds: by plain names alone.
pub fn is_below(path: &Path, top: &Path) -> bool {
    path.strip_prefix(top).is_ok_and(|below| below.components().all(|part| matches!(part, Component::Normal(_))))
}

/// The user that the files here belong to, whom the library is to believe.
pub fn owner() -> u32 {
    nix::unistd::geteuid().as_raw()
}
