//! Doing the steps: the only place that changes groups.
//!
//! On the way in the first failure ends it and everything that was done is undone; on the way out every failure is kept and
//! the rest done. Moves are one burst: after an idle spell the first waits milliseconds for a lock of the whole kernel
//! (`cgroup_threadgroup_rwsem`), those right behind it microseconds. A number that the kernel is given may have become
//! somebody else's in between: start times are compared before the burst and after it, and a stranger is put back.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use nix::errno::Errno;

use crate::cgroup::group::{Group, GroupPath, Writer};
use crate::deadline::{Backoff, Deadline};
use crate::error::Error;
use crate::plan::Step;
use crate::proc::Proc;

/// What has been done so far, and how to undo it.
#[derive(Debug, Default)]
pub struct Done {
    pub created: usize,
    pub removed: usize,
    pub moved: usize,
    /// Values written.
    pub set: usize,
    undo: Vec<Undo>,
}

/// How one change is taken back.
#[derive(Debug)]
enum Undo {
    Remove(GroupPath),
    Restore { group: GroupPath, file: &'static str, value: String },
    MoveBack(Move, GroupPath),
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

/// One write of a number into a group.
#[derive(Debug, Clone)]
struct Move {
    /// The process or thread.
    id: i32,
    start: u64,
    to: GroupPath,
    file: &'static str,
}

/// The means of doing steps.
#[derive(Debug)]
pub struct Apply<'a> {
    pub proc: &'a Proc,
    pub deadline: &'a Deadline,
    /// Whom new groups are marked for.
    pub sandbox: &'a str,
}

impl Apply<'_> {
    /// Does the steps of placing; the first failure ends it.
    pub fn place(&self, steps: &[Step], done: &mut Done) -> Result<Applied, Error> {
        let is_move = |step: &&Step| matches!(step, Step::MoveProcess { .. } | Step::MoveThread { .. });
        for step in steps.iter().filter(|step| !is_move(step)) {
            let applied = match step {
                Step::Create(group) => self.create(group, done)?,
                Step::Set { group, file, value } => self.set(group, file, value, done)?,
                _ => Applied::Whole,
            };
            if applied == Applied::Overtaken {
                return Ok(applied);
            }
        }
        let moves: Vec<(Move, Option<GroupPath>)> = steps.iter().filter_map(as_move).collect();
        if moves.is_empty() { Ok(Applied::Whole) } else { self.burst(&moves, done) }
    }

    /// Does the steps of releasing; goes on after failures and gives them all.
    ///
    /// That a group is empty shows only a while after its last thread left, so what is busy is tried again after all the rest,
    /// until the deadline: one group in use keeps no other from going.
    pub fn release(&self, steps: &[Step], done: &mut Done) -> Vec<Error> {
        let mut errors = Vec::new();
        let mut removes = Vec::new();
        for step in steps {
            let result = match step {
                Step::Set { group, file, value } => self.set(group, file, value, done).map(drop),
                Step::MoveProcess { pid, start, to, .. } => self.send_home(*pid, *start, to, done),
                Step::Drain { group, target, whole } => self.drain(group, target, *whole, done),
                Step::Remove { group, drain } => {
                    removes.push((group, drain.as_ref()));
                    Ok(())
                }
                _ => Ok(()),
            };
            errors.extend(result.err());
        }
        let mut backoff = Backoff::default();
        loop {
            removes.retain(|(group, drain)| match self.remove(group, *drain, done) {
                Ok(is_gone) => !is_gone,
                Err(error) => {
                    errors.push(error);
                    false
                }
            });
            let is_waited_for = removes.iter().any(|(_, drain)| drain.is_some());
            if !is_waited_for || self.deadline.left().is_zero() {
                break;
            }
            backoff.pause(self.deadline);
        }
        let busy = removes.iter().filter(|(_, drain)| drain.is_some());
        errors.extend(busy.map(|(group, _)| self.still_busy(group)));
        // What cannot be moved out is refused when the group is emptied and again when it is removed.
        let mut told = HashSet::new();
        errors.retain(|error| told.insert(error.to_string()));
        errors
    }

    /// Takes back everything in `done`, last first; gives what could not be.
    pub fn undo(&self, done: &mut Done) -> Vec<Error> {
        let mut errors = Vec::new();
        while let Some(undo) = done.undo.pop() {
            let result = match undo {
                Undo::Remove(group) => self.remove_own(&group),
                Undo::Restore { group, file, value } => write_if_standing(&group, file, &value),
                Undo::MoveBack(moved, from) => self.move_back(&moved, &from),
            };
            errors.extend(result.err());
        }
        errors
    }

    fn create(&self, group: &GroupPath, done: &mut Done) -> Result<Applied, Error> {
        self.deadline.check("create groups")?;
        match group.create(self.sandbox) {
            Ok(_) => {
                done.created += 1;
                done.undo.push(Undo::Remove(group.clone()));
                Ok(Applied::Whole)
            }
            Err(error) if matches!(error.errno(), Some(Errno::EEXIST | Errno::ENOENT)) => Ok(Applied::Overtaken),
            Err(error) => Err(error),
        }
    }

    fn set(&self, path: &GroupPath, file: &'static str, value: &str, done: &mut Done) -> Result<Applied, Error> {
        self.deadline.check("set limits")?;
        let Some(group) = path.open()? else {
            return Ok(Applied::Overtaken);
        };
        let before = match group.read_if_there(file).and_then(|before| group.write(file, value).map(|()| before)) {
            Err(error) if error.is_gone() => return Ok(Applied::Overtaken),
            before => before?,
        };
        done.set += 1;
        // An empty cpuset cannot be made empty again while it is in use; then the group is new and goes as a whole.
        if let Some(value) = before.filter(|before| !before.is_empty()) {
            done.undo.push(Undo::Restore { group: path.clone(), file, value });
        }
        Ok(Applied::Whole)
    }

    /// All moves back to back, with nothing read in between.
    fn burst(&self, moves: &[(Move, Option<GroupPath>)], done: &mut Done) -> Result<Applied, Error> {
        let mut writers: HashMap<(PathBuf, &str), Writer> = HashMap::new();
        for (step, _) in moves {
            if let Entry::Vacant(vacant) = writers.entry((step.to.absolute(), step.file)) {
                let Some(group) = step.to.open()? else { return Ok(Applied::Overtaken) };
                vacant.insert(group.writer(step.file)?);
            }
        }
        let is_itself = |step: &Move| self.proc.start_of(step.id) == Some(step.start);
        let ready: Vec<(&Move, &Option<GroupPath>, String, Option<&Writer>)> = moves
            .iter()
            .filter(|(step, _)| is_itself(step))
            .map(|(step, from)| (step, from, step.id.to_string(), writers.get(&(step.to.absolute(), step.file))))
            .collect();
        self.deadline.check("move threads")?;
        let mut failure = None;
        let mut written = Vec::with_capacity(ready.len());
        for (step, from, id, writer) in &ready {
            let Some(writer) = writer else { continue };
            match writer.write(id) {
                Ok(()) => written.push((*step, *from)),
                // It ended meanwhile: nothing to place.
                Err(error) if error.errno() == Some(Errno::ESRCH) => {}
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        done.moved += written.len();
        // Undone last first, and processes must go back before threads here too: each takes all its threads along.
        written.sort_by_key(|(step, _)| step.file == "cgroup.procs");
        for (step, from) in &written {
            let from = (*from).clone().unwrap_or_else(|| GroupPath::new(&step.to.hierarchy, ""));
            done.undo.push(Undo::MoveBack((*step).clone(), from));
        }
        let put_back: Vec<Error> = written.iter().filter_map(|(step, _)| self.put_back_stranger(step).err()).collect();
        failure.or(put_back.into_iter().next()).map_or(Ok(Applied::Whole), Err)
    }

    /// Puts back whoever got the number of a process that ended, to where it was born: beside its parent.
    fn put_back_stranger(&self, step: &Move) -> Result<(), Error> {
        let Ok(Some(process)) = self.proc.process(step.id) else {
            return Ok(());
        };
        let Some(stat) = process.stat().ok().filter(|stat| stat.start != step.start) else {
            return Ok(());
        };
        let hierarchy = &step.to.hierarchy;
        let controller = hierarchy.controllers.first().map_or("", |controller| controller.name());
        let parent = self.proc.process(stat.parent).ok().flatten();
        let home = parent.and_then(|parent| parent.membership(stat.parent).ok());
        let rel = home.as_ref().and_then(|home| hierarchy.below_mount(home.v1(controller)?)).unwrap_or("".as_ref());
        ignoring_the_dead(write_if_standing(&GroupPath::new(hierarchy, rel), step.file, &step.id.to_string()))
    }

    /// Moves one back to where it was; to the nearest group above that where it no longer stands.
    fn move_back(&self, moved: &Move, from: &GroupPath) -> Result<(), Error> {
        if self.proc.start_of(moved.id) != Some(moved.start) {
            return Ok(());
        }
        let group = nearest_standing(from)?;
        ignoring_the_dead(group.write(moved.file, &moved.id.to_string()))
    }

    /// Removes a group that this run made, once what was in it has been moved back.
    fn remove_own(&self, group: &GroupPath) -> Result<(), Error> {
        let mut backoff = Backoff::default();
        loop {
            match group.remove() {
                Ok(()) | Err(Errno::ENOENT) => return Ok(()),
                Err(Errno::EBUSY | Errno::ENOTEMPTY) if !self.deadline.left().is_zero() => {
                    // Another sandbox may have made its groups below a parent of ours: then it has become theirs as well.
                    if has_children(group) {
                        return Ok(());
                    }
                    backoff.pause(self.deadline);
                }
                Err(errno) => return Err(Error::path("remove", group.absolute(), errno)),
            }
        }
    }

    /// Moves a process to where it came from.
    fn send_home(&self, pid: i32, start: u64, home: &GroupPath, done: &mut Done) -> Result<(), Error> {
        if self.proc.start_of(pid) == Some(start) {
            ignoring_the_dead(nearest_standing(home)?.write("cgroup.procs", &pid.to_string()))?;
            done.moved += 1;
        }
        Ok(())
    }

    /// Moves everything in a group to another, again and again until nothing is in it. Who is in a group of ours is the kernel's
    /// word, so there is no identity to compare.
    fn drain(&self, group: &GroupPath, target: &GroupPath, whole: bool, done: &mut Done) -> Result<(), Error> {
        let file = if whole { "cgroup.procs" } else { group.threads_file() };
        let Some(open) = group.open()? else { return Ok(()) };
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let mut backoff = Backoff::default();
        loop {
            let mut members = open.members(file)?;
            if members.is_empty() {
                return Ok(());
            }
            // Ourselves first: while we are in it, it cannot go.
            members.sort_by_key(|member| *member != own);
            self.deadline.check("empty a group")?;
            let writer = match nearest_standing(target)?.writer(file) {
                // It went just now: the next above takes them.
                Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ENODEV)) => continue,
                writer => writer?,
            };
            let (before, mut refused) = (done.moved, Vec::new());
            for member in members {
                match writer.write(&member.to_string()) {
                    Ok(()) => done.moved += 1,
                    Err(error) if error.errno() == Some(Errno::ESRCH) => {}
                    // The others are moved all the same.
                    Err(error) => refused.push(error),
                }
            }
            if done.moved > before {
                continue;
            }
            Error::all(refused)?;
            // Only threads that are just ending: give them the time for it.
            backoff.pause(self.deadline);
        }
    }

    /// Removes a group, after moving out what has entered it meanwhile; false if it is still busy. A group of somebody else's
    /// in it will not go by waiting.
    fn remove(&self, group: &GroupPath, drain: Option<&(GroupPath, bool)>, done: &mut Done) -> Result<bool, Error> {
        match group.remove() {
            Ok(()) => {
                done.removed += 1;
                Ok(true)
            }
            Err(Errno::ENOENT) => Ok(true),
            Err(Errno::EBUSY | Errno::ENOTEMPTY) => {
                let Some((target, whole)) = drain else { return Ok(false) };
                if has_children(group) {
                    return Err(self.still_busy(group));
                }
                self.drain(group, target, *whole, done).map(|()| false)
            }
            Err(errno) => Err(Error::path("remove", group.absolute(), errno)),
        }
    }

    fn still_busy(&self, group: &GroupPath) -> Error {
        Error::Path { verb: "remove", path: group.absolute(), errno: Errno::EBUSY, hint: self.who_is_in(group) }
    }

    /// Who still lives in a group, for the message that says why it stays.
    fn who_is_in(&self, path: &GroupPath) -> String {
        let Ok(Some(group)) = path.open() else { return String::new() };
        let name = |tid: &i32| {
            let stat = self.proc.process(*tid).ok().flatten().and_then(|process| process.stat().ok());
            stat.map_or(tid.to_string(), |stat| {
                format!("{tid} ({}, state {})", String::from_utf8_lossy(&stat.name), char::from(stat.state))
            })
        };
        let members = group.members(path.threads_file()).unwrap_or_default();
        let mut who: Vec<String> = members.iter().take(4).map(name).collect();
        who.extend(group.children().unwrap_or_default().into_iter().take(4).map(|child| format!("group {child}")));
        if who.is_empty() { String::new() } else { format!(" (still in it: {})", who.join(", ")) }
    }
}

fn as_move(step: &Step) -> Option<(Move, Option<GroupPath>)> {
    match step {
        Step::MoveProcess { pid, start, to, from } => {
            let step = Move { id: *pid, start: *start, to: to.clone(), file: "cgroup.procs" };
            Some((step, from.clone()))
        }
        Step::MoveThread { tid, thread_start, to, from, .. } => {
            let step = Move { id: *tid, start: *thread_start, to: to.clone(), file: to.threads_file() };
            Some((step, from.clone()))
        }
        _ => None,
    }
}

/// The group at `path`, or the nearest above it that stands.
fn nearest_standing(path: &GroupPath) -> Result<Group, Error> {
    let mut path = path.clone();
    loop {
        match (path.open()?, path.parent()) {
            (Some(group), _) => return Ok(group),
            (None, Some(parent)) => path = parent,
            (None, None) => return Err(Error::path("open", path.absolute(), Errno::ENOENT)),
        }
    }
}

fn has_children(group: &GroupPath) -> bool {
    let children = group.open().ok().flatten().and_then(|group| group.children().ok());
    children.is_some_and(|children| !children.is_empty())
}

fn write_if_standing(path: &GroupPath, file: &str, value: &str) -> Result<(), Error> {
    path.open()?.map_or(Ok(()), |group| group.write(file, value))
}

fn ignoring_the_dead(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.errno() == Some(Errno::ESRCH) => Ok(()),
        result => result,
    }
}
