//! Doing the steps: the only place that changes groups.
//!
//! On the way in the first failure ends it and everything that was done is undone; on the way out every failure is kept and the rest done
//! ([`release`]). Moves are one burst, and nobody stays moved who only got the number of one that ended ([`moves`]).

mod moves;
mod release;

use std::path::PathBuf;

use nix::errno::Errno;

use crate::cgroup::file;
use crate::cgroup::group::{GroupPath, Mark};
use crate::cgroup::mounts::Version;
use crate::cgroup::site::{Level, Site};
use crate::cgroup::v2::sites;
use crate::deadline::{Backoff, Deadline};
use crate::error::Error;
use crate::plan::Step;
use crate::proc::Proc;
use moves::Move;

/// What has been done so far, and how to undo it.
#[derive(Debug, Default)]
pub struct Done {
    pub created: usize,
    pub removed: usize,
    pub moved: usize,
    /// Values written, but for the weight of /kata.
    pub set: usize,
    /// The groups that were made, with their inodes: by these the record knows those that could not be marked.
    pub made: Vec<(PathBuf, u64)>,
    undo: Vec<Undo>,
}

/// How one change is taken back.
#[derive(Debug)]
enum Undo {
    Remove(GroupPath),
    Restore { group: GroupPath, file: &'static str, value: String },
    MoveBack { id: i32, start: u64, whole: bool, to: GroupPath },
}

/// How far the steps of placing came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// All of them are done.
    Whole,
    /// The host had changed under the plan: a group that was to be made stands, or one that stood is gone. Other hooks share our
    /// parents: plan again.
    Overtaken,
}

/// The means of doing steps.
#[derive(Debug)]
pub struct Apply<'a> {
    pub proc: &'a Proc,
    pub deadline: &'a Deadline,
    /// The mark of new groups.
    pub mark: Mark,
}

impl Apply<'_> {
    /// Does the steps of placing; the first failure ends it.
    pub fn place(&self, steps: &[Step], done: &mut Done) -> Result<Applied, Error> {
        for step in steps.iter().filter(|step| !step.is_move()) {
            let applied = match step {
                Step::Create(group) => self.create(group, done)?,
                Step::Set { group, file, value } => self.set(group, file, value, done)?,
                _ => Applied::Whole,
            };
            if applied == Applied::Overtaken {
                return Ok(applied);
            }
        }
        let moves: Vec<(Move, Option<GroupPath>)> = steps.iter().filter_map(Move::of).collect();
        if moves.is_empty() { Ok(Applied::Whole) } else { self.burst(&moves, done) }
    }

    /// Marks what is ours by the record alone: a run may have been killed between making a group and marking it, and to other sandboxes,
    /// whose records do not know it, it would be somebody else's for ever.
    pub fn mark_ours(&self, sites: &[Site]) {
        let is_unmarked =
            |level: &&Level| level.standing.as_ref().is_some_and(|standing| standing.is_ours && standing.mark.is_none());
        for level in sites.iter().flat_map(|site| &site.levels).filter(is_unmarked) {
            if let Ok(Some(group)) = level.path.open() {
                group.set_mark(&self.mark);
            }
        }
    }

    /// Takes back everything in `done`, last first; gives what could not be.
    pub fn undo(&self, done: &mut Done) -> Vec<Error> {
        let mut errors = Vec::new();
        let mut enabled: Vec<(GroupPath, String)> = Vec::new();
        while let Some(undo) = done.undo.pop() {
            let result = match undo {
                Undo::Remove(group) => self.remove_own(&group),
                Undo::Restore { group, file, value } if file == file::SUBTREE => {
                    enabled.push((group, value));
                    Ok(())
                }
                Undo::Restore { group, file, value } => write_if_standing(&group, file, &value),
                Undo::MoveBack { id, start, whole, to } => self.move_itself((id, start), &to, whole).map(drop),
            };
            errors.extend(result.err());
        }
        let take_back = |(group, value): &(GroupPath, String)| match is_used(group) {
            Ok(true) => Ok(()),
            Ok(false) => write_if_standing(group, file::SUBTREE, value),
            Err(error) => Err(error),
        };
        let refused = enabled.iter().filter_map(|enabled| take_back(enabled).err());
        // One may have come just now, and use them itself.
        errors.extend(refused.filter(|error| error.errno() != Some(Errno::EBUSY)));
        errors
    }

    fn create(&self, group: &GroupPath, done: &mut Done) -> Result<Applied, Error> {
        self.deadline.check("create groups")?;
        match group.create(&self.mark) {
            Ok(made) => {
                done.created += 1;
                done.made.extend(made.inode().ok().map(|inode| (group.absolute(), inode)));
                done.undo.push(Undo::Remove(group.clone()));
                Ok(Applied::Whole)
            }
            Err(error) if matches!(error.errno(), Some(Errno::EEXIST | Errno::ENOENT)) => Ok(Applied::Overtaken),
            Err(error) => Err(error),
        }
    }

    fn set(&self, path: &GroupPath, file: &'static str, value: &str, done: &mut Done) -> Result<Applied, Error> {
        self.deadline.check("set limits")?;
        match write_over(path, file, value, done) {
            Err(error) if error.is_gone() => Ok(Applied::Overtaken),
            written => written,
        }
    }

    /// Removes a group that this run made, once what was in it has been moved back.
    fn remove_own(&self, group: &GroupPath) -> Result<(), Error> {
        let mut backoff = Backoff::default();
        loop {
            match group.remove() {
                Ok(()) | Err(Errno::ENOENT) => return Ok(()),
                Err(Errno::EBUSY | Errno::ENOTEMPTY) if !self.deadline.left().is_zero() => {
                    // Another sandbox may have made its groups below a parent of ours: then it has become theirs as well.
                    if is_used(group)? {
                        return Ok(());
                    }
                    backoff.pause(self.deadline);
                }
                Err(errno) => return Err(Error::path("remove", group.absolute(), errno)),
            }
        }
    }
}

/// Writes a value, and keeps in mind the one before it.
fn write_over(path: &GroupPath, file: &'static str, value: &str, done: &mut Done) -> Result<Applied, Error> {
    // What this run has made goes as a whole.
    let is_made = done.made.iter().any(|(made, _)| *made == path.absolute());
    let before = if is_made { None } else { value_of(path, file)? };
    let Some(writer) = path.writer(file)? else { return Ok(Applied::Overtaken) };
    writer.write(value)?;
    done.set += usize::from(!sites::is_weight_of_kata(path, file));
    if let Some(value) = before.and_then(|before| file::restoring(file, &before, value)) {
        done.undo.push(Undo::Restore { group: path.clone(), file, value });
    }
    Ok(Applied::Whole)
}

/// What stands in a file of a group, in words that can be written there again: for an empty v2 list what it comes to, since threads
/// may be in the group, under which a list cannot be emptied.
fn value_of(path: &GroupPath, file: &str) -> Result<Option<String>, Error> {
    let Some(group) = path.open()? else { return Ok(None) };
    let value = group.read_if_there(file)?;
    match file::effective(file).filter(|_| path.hierarchy.version == Version::V2 && value.as_deref() == Some("")) {
        Some(effective) => group.read_if_there(effective),
        None => Ok(value),
    }
}

/// Whether there are groups in it. Those that are not ours may have limits by now, which would go with a controller that is taken back, without
/// a word from the kernel.
fn is_used(group: &GroupPath) -> Result<bool, Error> {
    group.children().map(|children| !children.is_empty())
}

fn write_if_standing(path: &GroupPath, file: &str, value: &str) -> Result<(), Error> {
    path.writer(file)?.map_or(Ok(()), |writer| writer.write(value))
}
