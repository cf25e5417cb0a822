//! Groups that carry our mark, wherever they are: what is left where a record was lost and its sandbox has ended.
//!
//! The only place that walks whole hierarchies; no hook does, only `reconcile`. What has a name of ours and no mark cannot be proved
//! to be ours: it is told and left.

use std::ffi::OsStr;

use crate::cgroup::group::{Group, GroupPath, Mark};
use crate::cgroup::mounts::{Mounts, Version};
use crate::error::Error;
use crate::record::Record;

/// A group that we made, or that is named as if.
#[derive(Debug)]
pub struct Found {
    pub path: GroupPath,
    pub inode: u64,
    /// None where it only has the name.
    pub mark: Option<Mark>,
}

/// Every group with our mark or a name of ours, the deepest first.
pub fn all(mounts: &Mounts) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    for hierarchy in &mounts.hierarchies {
        let top = GroupPath::new(hierarchy, "");
        if let Some(group) = top.open()? {
            walk(&top, &group, &mut found)?;
        }
    }
    Ok(found)
}

/// Those that none of `records` knows.
pub fn unknown_to(records: &[Record], found: Vec<Found>) -> Vec<Found> {
    let is_known = |found: &Found| {
        let path = found.path.absolute();
        let is_adopted = |record: &Record| record.adopted.iter().any(|adopted| adopted.path == path);
        let knows = |record: &Record| record.knows(&path, found.inode) || record.intended(&path) || is_adopted(record);
        records.iter().any(knows)
    };
    found.into_iter().filter(|found| !is_known(found)).collect()
}

fn walk(path: &GroupPath, group: &Group, found: &mut Vec<Found>) -> Result<(), Error> {
    for name in group.children()? {
        // It may have gone meanwhile.
        if let Some(child) = group.child(OsStr::new(&name))? {
            walk(&path.child(&name), &child, found)?;
        }
    }
    let mark = group.mark();
    let is_named = path.rel.file_name().and_then(OsStr::to_str).is_some_and(is_like_ours);
    if mark.is_some() || is_named {
        found.push(Found { path: path.clone(), inode: group.inode()?, mark });
    }
    Ok(())
}

/// A name that we give, and Kata too; but for the directory of Kata's own that it leaves.
fn is_like_ours(name: &str) -> bool {
    name.starts_with("kata_") && name != "kata_overhead"
}

/// Who is in a group itself; nobody in one that has gone.
pub fn members(path: &GroupPath) -> Result<Vec<i32>, Error> {
    match path.members(path.threads_file()) {
        // A group on v2 that is no domain holds nobody, and its list cannot be read (cgroup-v2.rst, "Threads").
        Err(error) if path.hierarchy.version == Version::V2 && error.errno() == Some(nix::errno::Errno::EOPNOTSUPP) => {
            Ok(Vec::new())
        }
        members => members,
    }
}
