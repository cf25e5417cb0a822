//! A sandbox's site in a hierarchy: which group is to hold its threads, and what stands there and above already.
//!
//! Which group that is has rules of its own on v1 and on v2 (their `sites`); how it is read is the same.

use std::collections::BTreeMap;

use crate::cgroup::group::{Group, GroupPath};
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
    /// The threads that are in the group, by its own list: lowest number first.
    pub members: Vec<i32>,
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
    /// Threads are in it itself. Asked only where it decides something: of the groups on v2 that may have to pass more on, or
    /// to become threaded.
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

    /// Where a thread is now in this hierarchy, if that is below the mount point; of one that was not asked, whether it is in the
    /// group.
    pub fn place_of(&self, thread: &Thread) -> Option<GroupPath> {
        let hierarchy = &self.group.hierarchy;
        match &thread.groups {
            Some(groups) => Some(GroupPath::new(hierarchy, hierarchy.place_in(groups)?)),
            None => self.members.binary_search(&thread.tid).is_ok().then(|| self.group.clone()),
        }
    }

    /// Reads who is in the group. A list that cannot be read is none: then everybody is asked.
    pub fn read_members(&mut self) {
        if self.own().is_some() {
            self.members = self.group.members(self.group.threads_file()).unwrap_or_default();
            self.members.sort_unstable();
        }
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
    let mut open = top.open()?;
    let mut levels = Vec::new();
    for path in std::iter::once(top).chain(group.chain()) {
        if let Some(name) = path.rel.file_name() {
            open = open.as_ref().map_or(Ok(None), |above| above.child(name))?;
        }
        let is_top = path.rel.as_os_str().is_empty();
        let above = || file::above(&path.hierarchy, is_top).collect();
        let files: Vec<&str> = if path == *group { file::of(&path.hierarchy).collect() } else { above() };
        let mut standing = open.as_ref().map_or(Ok(None), |group| standing(&path, group, record, files))?;
        if let (Some(standing), Some(open)) = (&mut standing, &open) {
            standing.is_populated = path != *group && is_populated(open, &path, standing)?;
        }
        levels.push(Level { path, standing });
    }
    Ok(levels)
}

/// Whether threads are in a group on v2, if that can matter: only a domain can be in the way, and one of ours that passes anything on holds
/// nobody. The root may pass on what it likes; it has no type.
fn is_populated(group: &Group, path: &GroupPath, standing: &Standing) -> Result<bool, Error> {
    let is_domain = standing.values.get(file::TYPE).is_some_and(|kind| kind == "domain");
    let passes_on = standing.values.get(file::SUBTREE).is_some_and(|controllers| !controllers.is_empty());
    Ok(is_domain && !(standing.is_ours && passes_on) && !group.members(path.threads_file())?.is_empty())
}

/// Reads the group that is to hold the vCPU threads on v2.
pub fn threaded(path: &GroupPath, record: &Record) -> Result<Level, Error> {
    let mut level = level(path, record)?;
    if level.value(file::TYPE) == Some("domain") {
        if let (Some(standing), Some(open)) = (&mut level.standing, path.open()?) {
            standing.is_populated = is_populated(&open, path, standing)?;
        }
    }
    Ok(level)
}

/// Reads one level.
pub fn level(path: &GroupPath, record: &Record) -> Result<Level, Error> {
    level_with(path, record, file::of(&path.hierarchy).collect())
}

/// Reads one level as far as it says whose it is, and whether threads can be moved there.
pub fn entry(path: &GroupPath, record: &Record) -> Result<Level, Error> {
    level_with(path, record, file::of_entry(&path.hierarchy).collect())
}

fn level_with(path: &GroupPath, record: &Record, files: Vec<&'static str>) -> Result<Level, Error> {
    let standing = path.open()?.map_or(Ok(None), |group| standing(path, &group, record, files))?;
    Ok(Level { path: path.clone(), standing })
}

/// Reads a group that stands: whose it is, and the values in these files; `None` if it has gone meanwhile.
///
/// Ours is what carries our mark, what the record knows by its inode, and what a run that was killed had written down that it
/// was about to make, as long as nothing is in it.
fn standing(path: &GroupPath, group: &Group, record: &Record, files: Vec<&'static str>) -> Result<Option<Standing>, Error> {
    let (inode, mark) = (group.inode()?, group.mark().map(|mark| mark.sandbox));
    let absolute = path.absolute();
    let is_left_by_us = || Ok(record.intended(&absolute) && group.members(path.threads_file())?.is_empty());
    let is_ours = mark.is_some() || record.knows(&absolute, inode) || is_left_by_us()?;
    let values = match read_values(group, files) {
        Err(error) if error.is_gone() => return Ok(None),
        values => values?,
    };
    // In a group that has just gone no file is found either.
    let is_incomplete = file::certain(&path.hierarchy).is_some_and(|file| !values.contains_key(file));
    if is_incomplete && path.open()?.is_none() {
        return Ok(None);
    }
    Ok(Some(Standing { inode, mark, is_ours, is_populated: false, values }))
}

/// The values in these files of a group; one that the kernel has no file for is missing.
fn read_values(group: &Group, files: Vec<&'static str>) -> Result<Values, Error> {
    let read = |name: &'static str| group.read_if_there(name).map(|value| value.map(|value| (name, value))).transpose();
    files.into_iter().filter_map(read).collect()
}
