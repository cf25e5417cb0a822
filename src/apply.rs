//! Doing the steps: the only place that changes groups.
//!
//! On the way in the first failure ends it and everything that was done is undone; on the way out every failure is kept and
//! the rest done. Moves are one burst: after an idle spell the first waits milliseconds for a lock of the whole kernel
//! (`cgroup_threadgroup_rwsem`), those right behind it microseconds. A number that the kernel is given may have become
//! somebody else's in between: before the burst and after it the process is asked whether the number is still one of its threads', and a
//! stranger is put back.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;

use crate::cgroup::file;
use crate::cgroup::group::{Group, GroupPath, Mark, Writer};
use crate::cgroup::mounts::{Hierarchy, Version};
use crate::cgroup::site::{Level, Site};
use crate::cgroup::v2::sites;
use crate::deadline::{Backoff, Deadline};
use crate::error::Error;
use crate::order;
use crate::plan::Step;
use crate::proc::{self, Proc, Process, unless_gone};

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

/// The start time of whoever bears a number, asked of /proc once: on v1 a thread is moved once for each controller.
struct Starts<'a> {
    apply: &'a Apply<'a>,
    known: HashMap<i32, Option<u64>>,
}

impl<'a> Starts<'a> {
    fn new(apply: &'a Apply) -> Self {
        Self { apply, known: HashMap::new() }
    }

    /// `None` where nobody bears it. One that cannot be looked at is not taken for gone.
    fn of(&mut self, id: i32) -> Result<Option<u64>, Error> {
        if let Some(start) = self.known.get(&id) {
            return Ok(*start);
        }
        let start = self.apply.proc.start_of(id).map_err(|errno| self.apply.unread(id, errno))?;
        self.known.insert(id, start);
        Ok(start)
    }
}

/// The threads of a process, listed once: as long as it is the same process, a number in there is no stranger's.
struct Listed<'a> {
    apply: &'a Apply<'a>,
    known: HashMap<(i32, u64), HashSet<i32>>,
}

impl<'a> Listed<'a> {
    fn new(apply: &'a Apply) -> Self {
        Self { apply, known: HashMap::new() }
    }

    /// None of a process that is gone. One that cannot be looked at is not taken for gone.
    fn of(&mut self, (pid, start): (i32, u64)) -> Result<&HashSet<i32>, Error> {
        let vacant = match self.known.entry((pid, start)) {
            Entry::Occupied(known) => return Ok(known.into_mut()),
            Entry::Vacant(vacant) => vacant,
        };
        let listed = self.apply.proc.process(pid).and_then(|process| {
            let Some(process) = process else { return Ok(Vec::new()) };
            if process.thread_stat(pid)?.start == start { process.threads() } else { Ok(Vec::new()) }
        });
        let listed = match listed {
            Err(Errno::ENOENT | Errno::ESRCH) => Vec::new(),
            listed => listed.map_err(|errno| self.apply.unread(pid, errno))?,
        };
        Ok(vacant.insert(listed.into_iter().collect()))
    }
}

/// One write of a number into a group.
#[derive(Debug, Clone)]
struct Move {
    /// The process, and when it started.
    process: (i32, u64),
    /// It, or a thread of it.
    id: i32,
    start: u64,
    to: GroupPath,
    file: &'static str,
}

/// How long the kernel's word that a group has become empty is waited for before it is looked again.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

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
        let moves: Vec<(Move, Option<GroupPath>)> = steps.iter().filter_map(as_move).collect();
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

    /// Does the steps of releasing; goes on after failures and gives them all.
    ///
    /// That a group is empty shows only a while after its last thread left, so what is busy is tried again after all the rest,
    /// until the deadline: one group in use keeps no other from going.
    pub fn release(&self, steps: &[Step], done: &mut Done) -> Vec<Error> {
        let mut errors = Vec::new();
        let mut removes = Vec::new();
        let mut afterwards = Vec::new();
        for step in steps {
            let result = match step {
                Step::Set { group, file, value } if !removes.is_empty() => {
                    afterwards.push((group, *file, value));
                    Ok(())
                }
                Step::Set { group, file, value } => self.give_back(group, file, value, done),
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
            let mut left: Vec<&GroupPath> = removes.iter().map(|(group, _)| *group).collect();
            removes.retain(|(group, drain)| match self.remove(group, *drain, &left, done) {
                Ok(true) => {
                    left.retain(|other| other != group);
                    false
                }
                Ok(false) => true,
                Err(error) => {
                    errors.push(error);
                    false
                }
            });
            let waited_for = removes.iter().find(|(_, drain)| drain.is_some());
            let Some((group, _)) = waited_for.filter(|_| !self.deadline.left().is_zero()) else { break };
            self.wait_for_emptiness(group, &mut backoff);
        }
        let waited_for: Vec<&GroupPath> =
            removes.iter().filter(|(_, drain)| drain.is_some()).map(|(group, _)| *group).collect();
        // Where one of ours within it stays as well, that says more.
        let is_within = |group: &GroupPath| group.parent().is_some_and(|above| waited_for.contains(&&above));
        let busy = removes.iter().filter(|(group, drain)| drain.is_some() || is_within(group));
        errors.extend(busy.map(|(group, _)| self.still_busy(group)));
        errors.extend(afterwards.into_iter().filter_map(|(group, file, value)| self.give_back(group, file, value, done).err()));
        // What cannot be moved out is refused when the group is emptied and again when it is removed.
        let mut told = HashSet::new();
        errors.retain(|error| told.insert(error.to_string()));
        errors
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
                Undo::MoveBack(moved, from) => self.move_back(&moved, &from),
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

    /// Gives a group the value that it had; what it passes on only where nobody else has groups in it by now.
    fn give_back(&self, group: &GroupPath, file: &'static str, value: &str, done: &mut Done) -> Result<(), Error> {
        if file == file::SUBTREE && is_used(group)? {
            return Ok(());
        }
        self.set(group, file, value, done).map(drop)
    }

    /// All moves back to back, with nothing read in between.
    fn burst(&self, moves: &[(Move, Option<GroupPath>)], done: &mut Done) -> Result<Applied, Error> {
        let mut writers: HashMap<(PathBuf, &str), Writer> = HashMap::new();
        for (step, _) in moves {
            if let Entry::Vacant(vacant) = writers.entry((step.to.absolute(), step.file)) {
                let Some(writer) = step.to.writer(step.file)? else { return Ok(Applied::Overtaken) };
                vacant.insert(writer);
            }
        }
        let mut ready: Vec<(&Move, &Option<GroupPath>, String, Option<&Writer>)> = Vec::with_capacity(moves.len());
        let mut listed = Listed::new(self);
        for (step, from) in moves {
            if listed.of(step.process)?.contains(&step.id) {
                ready.push((step, from, step.id.to_string(), writers.get(&(step.to.absolute(), step.file))));
            }
        }
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
        order::sort_by_key(&mut written, |(step, _)| step.file == "cgroup.procs");
        for (step, from) in &written {
            let from = (*from).clone().unwrap_or_else(|| GroupPath::new(&step.to.hierarchy, ""));
            done.undo.push(Undo::MoveBack((*step).clone(), from));
        }
        let (mut listed, mut starts) = (Listed::new(self), Starts::new(self));
        let put_back: Vec<Error> =
            written.iter().filter_map(|(step, _)| self.put_back_stranger(step, &mut listed, &mut starts).err()).collect();
        match (put_back.into_iter().next(), failure) {
            (Some(error), _) => Err(error),
            (None, Some(error)) if error.is_gone() => Ok(Applied::Overtaken),
            (None, failure) => failure.map_or(Ok(Applied::Whole), Err),
        }
    }

    /// Whether the number is still that process's or thread's. One that cannot be looked at is not taken for gone.
    fn is_itself(&self, id: i32, start: u64) -> Result<bool, Error> {
        self.proc.start_of(id).map(|now| now == Some(start)).map_err(|errno| self.unread(id, errno))
    }

    fn unread(&self, id: i32, errno: Errno) -> Error {
        Error::path("read", self.proc.stat_path(id), errno)
    }

    /// Puts back whoever got the number of a process that ended.
    fn put_back_stranger(&self, step: &Move, listed: &mut Listed, starts: &mut Starts) -> Result<(), Error> {
        // One list for all threads of a process; each by itself is asked only where it is not there.
        let is_still_its = listed.of(step.process)?.contains(&step.id);
        if is_still_its || starts.of(step.id)?.is_none_or(|start| start == step.start) {
            return Ok(());
        }
        self.put_where_it_was_born(step.id, &step.to.hierarchy, step.file)
    }

    /// Puts whoever bears a number now to where it was born: beside its parent, or, a single thread, beside its process's first.
    fn put_where_it_was_born(&self, id: i32, hierarchy: &Rc<Hierarchy>, file: &'static str) -> Result<(), Error> {
        // A parent may end while it is asked; then there is another.
        for _ in 0..2 {
            let Some(kin) = self.kin_of(id, file == "cgroup.procs")? else { return Ok(()) };
            let home = self.place_of(kin, hierarchy)?.map(|rel| GroupPath::new(hierarchy, rel));
            if let Some(writer) = home.map_or(Ok(None), |home| home.writer(file))? {
                return ignoring_the_dead(writer.write(&id.to_string()));
            }
        }
        // Anywhere else it might be out of its own limits.
        Err(Error::Unsettled(format!(
            "process {id} got the number of one that ended while it was moved, and where it belongs in {} cannot be seen",
            hierarchy.mount.display()
        )))
    }

    /// Beside whom it was born; `None` if it has ended. A thread that is written to the list of processes takes its whole process along,
    /// its first thread too.
    fn kin_of(&self, id: i32, is_whole: bool) -> Result<Option<i32>, Error> {
        let kin = |process: Process| match process.status()?.thread_group {
            group if group == id || is_whole => process.thread_stat(id).map(|stat| stat.parent),
            group => Ok(group),
        };
        let kin = unless_gone(self.proc.process(id).and_then(|process| process.map(kin).transpose()));
        Ok(kin.map_err(|errno| self.unread(id, errno))?.flatten())
    }

    /// Where a process is, if it lives: of one that ends, the kernel says the top (`proc_cgroup_show`).
    fn place_of(&self, pid: i32, hierarchy: &Hierarchy) -> Result<Option<PathBuf>, Error> {
        let place = |process: Process| {
            let (membership, stat) = (process.membership(pid)?, process.thread_stat(pid)?);
            let is_leaving = stat.is_dead() || stat.is_exiting;
            Ok(hierarchy.place_in(&membership).filter(|_| !is_leaving).map(Path::to_path_buf))
        };
        let place = unless_gone(self.proc.process(pid).and_then(|process| process.map(place).transpose()));
        Ok(place.map_err(|errno| self.unread(pid, errno))?.flatten().flatten())
    }

    /// Moves one back to where it was; to the nearest group above that where it no longer stands.
    fn move_back(&self, moved: &Move, from: &GroupPath) -> Result<(), Error> {
        self.move_itself((moved.id, moved.start), from, moved.file).map(drop)
    }

    /// Moves who bears a number if it is the one that is meant; whether it was. Who got the number meanwhile is put back.
    fn move_itself(&self, (id, start): (i32, u64), to: &GroupPath, file: &'static str) -> Result<bool, Error> {
        if !self.is_itself(id, start)? {
            return Ok(false);
        }
        ignoring_the_dead(nearest_standing(to)?.write(file, &id.to_string()))?;
        let now = self.proc.start_of(id).map_err(|errno| self.unread(id, errno))?;
        if now.is_some_and(|now| now != start) {
            self.put_where_it_was_born(id, &to.hierarchy, file)?;
        }
        Ok(true)
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

    /// Moves a process to where it came from.
    fn send_home(&self, pid: i32, start: u64, home: &GroupPath, done: &mut Done) -> Result<(), Error> {
        done.moved += usize::from(self.move_itself((pid, start), home, "cgroup.procs")?);
        Ok(())
    }

    /// Moves everything in a group to another, again and again until nothing is in it. Who is in a group of ours is the kernel's
    /// word; who has got the number of one of them since, and is younger than that word, is put back.
    fn drain(&self, group: &GroupPath, target: &GroupPath, whole: bool, done: &mut Done) -> Result<(), Error> {
        let file = if whole { "cgroup.procs" } else { group.threads_file() };
        let Some(open) = group.open()? else { return Ok(()) };
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let (mut backoff, mut astray) = (Backoff::default(), Vec::new());
        loop {
            let asked = proc::ticks_since_boot();
            let mut members = open.members(file)?;
            if members.is_empty() {
                return Error::all(astray);
            }
            // Ourselves first: while we are in it, it cannot go.
            order::sort_by_key(&mut members, |member| *member != own);
            self.deadline.check("empty a group")?;
            let writer = match nearest_standing(target)?.writer(file) {
                // It went just now: the next above takes them.
                Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ENODEV)) => continue,
                writer => writer?,
            };
            let (mut moved, mut refused) = (Vec::new(), Vec::new());
            for member in members {
                match writer.write(&member.to_string()) {
                    Ok(()) => moved.push(member),
                    Err(error) if error.errno() == Some(Errno::ESRCH) => {}
                    // The others are moved all the same.
                    Err(error) => refused.push(error),
                }
            }
            done.moved += moved.len();
            let others = moved.iter().filter(|id| **id != own);
            astray.extend(others.filter_map(|id| self.put_back_younger(*id, asked, target, file).err()));
            if !moved.is_empty() {
                continue;
            }
            Error::all(refused)?;
            // Only threads that are just ending: give them the time for it.
            backoff.pause(self.deadline);
        }
    }

    /// Puts back who was born after the group was asked who is in it, at `asked` clock ticks since boot. One of its own that was born in that
    /// very tick goes beside its kin as well.
    fn put_back_younger(&self, id: i32, asked: u64, target: &GroupPath, file: &'static str) -> Result<(), Error> {
        let start = self.proc.start_of(id).map_err(|errno| self.unread(id, errno))?;
        if start.is_some_and(|start| start >= asked) {
            self.put_where_it_was_born(id, &target.hierarchy, file)?;
        }
        Ok(())
    }

    /// Waits until a group may have become empty. On v2 the kernel tells (cgroup-v2.rst, "populated"), a little late, as it
    /// tells no more than a hundred times a second; on v1 it has to be tried.
    fn wait_for_emptiness(&self, path: &GroupPath, backoff: &mut Backoff) {
        let events = match (path.hierarchy.version, path.open()) {
            (Version::V2, Ok(Some(group))) => group.events_while_populated(),
            _ => None,
        };
        match events {
            Some(events) => self.deadline.wait_for_event(&events, LONGEST_WAIT),
            None => backoff.pause(self.deadline),
        }
    }

    /// Removes a group, after moving out what has entered it meanwhile; false if it is still busy. A group in it that is not of
    /// `ours`, which are removed as well, will not go by waiting.
    fn remove(
        &self,
        group: &GroupPath,
        drain: Option<&(GroupPath, bool)>,
        ours: &[&GroupPath],
        done: &mut Done,
    ) -> Result<bool, Error> {
        match group.remove() {
            Ok(()) => {
                done.removed += 1;
                Ok(true)
            }
            Err(Errno::ENOENT) => Ok(true),
            Err(Errno::EBUSY | Errno::ENOTEMPTY) => {
                let Some((target, whole)) = drain else { return Ok(false) };
                if children(group)?.iter().any(|child| !ours.contains(&child)) {
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
            let step = Move { process: (*pid, *start), id: *pid, start: *start, to: to.clone(), file: "cgroup.procs" };
            Some((step, from.clone()))
        }
        Step::MoveThread { pid, tid, start, thread_start, to, from } => {
            let file = to.threads_file();
            let step = Move { process: (*pid, *start), id: *tid, start: *thread_start, to: to.clone(), file };
            Some((step, from.clone()))
        }
        _ => None,
    }
}

/// The group at `path`, or the nearest above it that stands and, on v2, can hold a process.
fn nearest_standing(path: &GroupPath) -> Result<Group, Error> {
    let mut nearest = path.clone();
    loop {
        let can_hold = |group: &Group| nearest == *path || nearest.hierarchy.version == Version::V1 || passes_nothing_on(group);
        match (nearest.open()?, nearest.parent()) {
            (Some(group), Some(parent)) if !can_hold(&group) => nearest = parent,
            (Some(group), _) => return Ok(group),
            (None, Some(parent)) => nearest = parent,
            (None, None) => return Err(Error::path("open", nearest.absolute(), Errno::ENOENT)),
        }
    }
}

fn passes_nothing_on(group: &Group) -> bool {
    group.read(file::SUBTREE).is_ok_and(|controllers| controllers.is_empty())
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

/// The groups that stand in one; none in one that does not stand itself.
fn children(group: &GroupPath) -> Result<Vec<GroupPath>, Error> {
    let names = group.open()?.map_or(Ok(Vec::new()), |open| open.children())?;
    Ok(names.iter().map(|name| group.child(name)).collect())
}

/// Whether there are groups in it. Those that are not ours may have limits by now, which would go with a controller that is taken back, without
/// a word from the kernel.
fn is_used(group: &GroupPath) -> Result<bool, Error> {
    children(group).map(|children| !children.is_empty())
}

fn write_if_standing(path: &GroupPath, file: &str, value: &str) -> Result<(), Error> {
    path.writer(file)?.map_or(Ok(()), |writer| writer.write(value))
}

fn ignoring_the_dead(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.errno() == Some(Errno::ESRCH) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::cgroup::Controller;
    use crate::testing::{self, FakeProc};

    #[test]
    fn at_the_end_controllers_are_not_taken_back_from_where_others_have_groups() {
        let (dir, host) = (tempfile::tempdir().unwrap(), FakeProc::new());
        let v2 = testing::unified_at(dir.path(), &[Controller::Cpu]);
        testing::make_v2(dir.path(), "kata", "cpu", "");
        testing::make_v2(dir.path(), "kata/others", "", "");
        let deadline = Deadline::after(Instant::now(), Duration::from_secs(60));
        let mark = Mark { sandbox: "sb".into(), state_dir: dir.path().into() };
        let apply = Apply { proc: &host.proc(), deadline: &deadline, mark };
        let step = Step::Set { group: GroupPath::new(&v2, "kata"), file: file::SUBTREE, value: "-cpu".into() };
        let passed_on = || std::fs::read_to_string(dir.path().join("kata/cgroup.subtree_control")).unwrap();
        for (is_used, left) in [(true, "cpu\n"), (false, "-cpu")] {
            if !is_used {
                std::fs::remove_dir_all(dir.path().join("kata/others")).unwrap();
            }
            let errors = apply.release(std::slice::from_ref(&step), &mut Done::default());
            assert!(errors.is_empty() && passed_on().starts_with(left), "{errors:?} {:?}", passed_on());
        }
    }
}
