//! A sandbox's site in a hierarchy: which group is to hold its threads, and what stands there and above already.
//!
//! Which group that is has rules of its own on v1 and on v2 (their `sites`); how it is read is the same.

use std::collections::BTreeMap;

use crate::cgroup::group::{Group, GroupPath};
use crate::cgroup::mounts::{Hierarchy, Version};
use crate::cgroup::{Part, file};
use crate::error::Error;
use crate::record::Record;
use crate::vmm::Thread;

/// The file of a limit, and the values that a group has or is to have.
pub type Values = BTreeMap<&'static str, String>;

/// A sandbox's group in one hierarchy, with everything on the way to it.
#[derive(Debug, Clone)]
pub struct Site {
    pub part: Part,
    /// The group that is to hold the threads.
    pub group: GroupPath,
    /// From the top of the hierarchy down to the group.
    pub levels: Vec<Level>,
    /// It is somebody else's group that we use: Kata's own.
    pub is_adopted: bool,
    /// On v2 the groups that cgroupsPath lies in, top first: those that would limit and weigh the sandbox if it were there.
    pub pod: Vec<Level>,
    /// On v2 the groups in /kata that lead to other sandboxes, and what each weighs among its siblings.
    pub neighbours: Vec<(String, u64)>,
}

/// A group on that way.
#[derive(Debug, Clone)]
pub struct Level {
    pub path: GroupPath,
    /// None if it is still to be made.
    pub standing: Option<Standing>,
}

/// A group that stands.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    pub inode: u64,
    /// The sandbox that it was made for, if by us.
    pub mark: Option<String>,
    /// We made it: it carries our mark, or the record knows its inode.
    pub is_ours: bool,
    /// Threads are in it itself. Asked only where it decides something: of groups on v2 that are not ours.
    pub is_populated: bool,
    pub values: Values,
}

impl Site {
    /// The group's own level.
    pub fn own(&self) -> Option<&Standing> {
        self.levels.last().and_then(|level| level.standing.as_ref())
    }

    /// The levels above the group, nearest first.
    pub fn above(&self) -> impl Iterator<Item = &Level> {
        self.levels.iter().rev().skip(1)
    }

    /// Where a thread is now in this hierarchy, if that is below the mount point.
    pub fn place_of(&self, thread: &Thread) -> Option<GroupPath> {
        let hierarchy = &self.group.hierarchy;
        Some(GroupPath::new(hierarchy, hierarchy.place_in(&thread.groups)?))
    }
}

impl Level {
    /// It stands and somebody else made it.
    pub fn is_foreign(&self) -> bool {
        self.standing.as_ref().is_some_and(|standing| !standing.is_ours)
    }

    /// It is the root of all v2 groups, which alone has no type: it takes processes whatever it passes on. The top of a mount is
    /// not always that.
    pub fn is_v2_root(&self) -> bool {
        self.standing.as_ref().is_some_and(|standing| !standing.values.contains_key(file::TYPE))
    }

    /// What one of its files holds; nothing where it does not stand or the kernel has no such file.
    pub fn value(&self, file: &str) -> Option<&str> {
        self.standing.as_ref()?.values.get(file).map(String::as_str)
    }
}

/// The levels from the top down to the group, in one walk.
pub fn levels(group: &GroupPath, record: &Record) -> Result<Vec<Level>, Error> {
    let top = GroupPath::new(&group.hierarchy, "");
    let mut open = Some(Group::top(&group.hierarchy)?);
    let mut levels = Vec::new();
    for path in std::iter::once(top).chain(group.chain()) {
        if let Some(name) = path.rel.file_name() {
            open = open.as_ref().map_or(Ok(None), |above| above.child(name))?;
        }
        let standing = open.as_ref().map_or(Ok(None), |group| standing(&path, group, record))?;
        levels.push(Level { path, standing });
    }
    Ok(levels)
}

/// Reads one level.
pub fn level(path: &GroupPath, record: &Record) -> Result<Level, Error> {
    let standing = path.open()?.map_or(Ok(None), |group| standing(path, &group, record))?;
    Ok(Level { path: path.clone(), standing })
}

/// Reads a group that stands: whose it is, and the values that matter of the controllers that its hierarchy carries; `None` if
/// it has gone meanwhile.
///
/// Ours is what carries our mark, what the record knows by its inode, and what a run that was killed had written down that it
/// was about to make, as long as nothing is in it.
fn standing(path: &GroupPath, group: &Group, record: &Record) -> Result<Option<Standing>, Error> {
    let (inode, mark) = (group.inode()?, group.mark().map(|mark| mark.sandbox));
    let absolute = path.absolute();
    let is_left_by_us = || Ok(record.intended(&absolute) && group.members(path.threads_file())?.is_empty());
    let is_ours = mark.is_some() || record.knows(&absolute, inode) || is_left_by_us()?;
    let values = match read_values(group, &path.hierarchy) {
        Err(error) if error.is_gone() => return Ok(None),
        values => values?,
    };
    // In a group that has just gone no file is found either.
    let is_incomplete = file::certain(&path.hierarchy).is_some_and(|file| !values.contains_key(file));
    if is_incomplete && path.open()?.is_none() {
        return Ok(None);
    }
    let is_asked = path.hierarchy.version == Version::V2 && !is_ours && values.contains_key(file::TYPE);
    let is_populated = is_asked && !group.members(path.threads_file())?.is_empty();
    Ok(Some(Standing { inode, mark, is_ours, is_populated, values }))
}

/// The values of a group that matter here; one that the kernel has no file for is missing.
fn read_values(group: &Group, hierarchy: &Hierarchy) -> Result<Values, Error> {
    let read = |name: &'static str| group.read_if_there(name).map(|value| value.map(|value| (name, value))).transpose();
    file::of(hierarchy).filter_map(read).collect()
}
