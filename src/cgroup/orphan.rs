//! Groups that carry our mark, wherever they are: what is left where a record was lost and its sandbox has ended.
//!
//! The only place that walks whole hierarchies; no hook does, only `reconcile` and `status`. What has a name of ours and no mark cannot be proved
//! to be ours: it is told and left.

use std::ffi::OsStr;

use crate::cgroup::group::{Group, GroupPath, Mark};
use crate::cgroup::mounts::{Mounts, Version};
use crate::cgroup::path;
use crate::error::Error;
use crate::record::Record;

/// Nothing of ours lies deeper: on v2 a sandbox's place has /kata above it and `vcpu` in it. Whoever was given a group of his own may make
/// as many within each other as he likes, and each level of the way takes a descriptor.
const DEEPEST: usize = path::DEEPEST + 2;

/// A group that we made, or that is named as if.
#[derive(Debug)]
pub struct Found {
    pub path: GroupPath,
    pub inode: u64,
    /// None where it only has the name.
    pub mark: Option<Mark>,
}

/// Every group with our mark, or with a name of ours and `owner`'s, the deepest first: those that users have in groups of their own may be
/// called anything. Why a hierarchy could not be looked at to its end is added to `unseen`.
pub fn all(mounts: &Mounts, owner: u32, unseen: &mut Vec<Error>) -> Vec<Found> {
    let mut found = Vec::new();
    for hierarchy in &mounts.hierarchies {
        let top = GroupPath::new(hierarchy, "");
        let walked = top.open().and_then(|group| group.map_or(Ok(()), |group| walk(&top, &group, owner, DEEPEST, &mut found)));
        unseen.extend(walked.err());
    }
    found
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

/// Adds what there is in `group`, and in those within it as far as `levels` go.
fn walk(path: &GroupPath, group: &Group, owner: u32, levels: usize, found: &mut Vec<Found>) -> Result<(), Error> {
    let children = if levels > 0 { group.children()? } else { Vec::new() };
    for name in children {
        // It may have gone meanwhile.
        if let Some(child) = group.child(OsStr::new(&name))? {
            walk(&path.child(&name), &child, owner, levels - 1, found)?;
        }
    }
    let mark = group.mark();
    let is_named = path.rel.file_name().and_then(OsStr::to_str).is_some_and(is_like_ours);
    if mark.is_some() || (is_named && group.owner()? == owner) {
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
