//! Moving processes and threads, and putting back who was moved by mistake.
//!
//! Moves are one burst: after an idle spell the first waits milliseconds for a lock of the whole kernel (`cgroup_threadgroup_rwsem`), those
//! right behind it microseconds. A number that the kernel is given may have become somebody else's in between: before the burst and
//! after it the process is asked whether the number is still one of its threads', and a stranger is put back.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::{Applied, Apply, Done, Undo};
use crate::cgroup::file;
use crate::cgroup::group::{Group, GroupPath, Writer};
use crate::cgroup::mounts::{Hierarchy, Version};
use crate::error::Error;
use crate::order;
use crate::plan::{Apart, Step};
use crate::proc::{Process, unless_gone};

/// One write of a number into a group.
#[derive(Debug, Clone)]
pub(super) struct Move {
    /// The process, and when it started.
    process: (i32, u64),
    /// It, or a thread of it.
    id: i32,
    start: u64,
    to: GroupPath,
    /// With all its threads.
    whole: bool,
    /// Those of them that go back elsewhere.
    apart: Vec<Apart>,
}

impl Move {
    /// The move that a step asks for, and where it was found.
    pub(super) fn of(step: &Step) -> Option<(Self, Option<GroupPath>)> {
        match step {
            Step::MoveProcess { pid, start, to, from, apart } => {
                let (process, to, apart) = ((*pid, *start), to.clone(), apart.clone());
                let step = Self { process, id: *pid, start: *start, to, whole: true, apart };
                Some((step, from.clone()))
            }
            Step::MoveThread { pid, tid, start, thread_start, to, from } => {
                let (process, to) = ((*pid, *start), to.clone());
                let step = Self { process, id: *tid, start: *thread_start, to, whole: false, apart: Vec::new() };
                Some((step, from.clone()))
            }
            _ => None,
        }
    }

    /// The file that it is written to.
    fn file(&self) -> &'static str {
        self.to.list_of(self.whole)
    }
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
        let threads = unless_gone(self.apply.proc.process(pid).and_then(|process| match process {
            Some(process) if process.thread_stat(pid)?.start == start => process.threads(),
            _ => Ok(Vec::new()),
        }));
        let threads = threads.map_err(|errno| self.apply.unread(pid, errno))?;
        Ok(vacant.insert(threads.into_iter().flatten().collect()))
    }
}

impl Apply<'_> {
    /// All moves back to back, with nothing read in between.
    pub(super) fn burst(&self, moves: &[(Move, Option<GroupPath>)], done: &mut Done) -> Result<Applied, Error> {
        let mut writers: HashMap<(PathBuf, &str), Writer> = HashMap::new();
        for (step, _) in moves {
            if let Entry::Vacant(vacant) = writers.entry((step.to.absolute(), step.file())) {
                let Some(writer) = step.to.writer(step.file())? else { return Ok(Applied::Overtaken) };
                vacant.insert(writer);
            }
        }
        let mut ready: Vec<(&Move, &Option<GroupPath>, String, Option<&Writer>)> = Vec::with_capacity(moves.len());
        let mut listed = Listed::new(self);
        for (step, from) in moves {
            if listed.of(step.process)?.contains(&step.id) {
                ready.push((step, from, step.id.to_string(), writers.get(&(step.to.absolute(), step.file()))));
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
        order::sort_by_key(&mut written, |(step, _)| step.whole);
        for (step, from) in &written {
            let from = (*from).clone().unwrap_or_else(|| GroupPath::new(&step.to.hierarchy, ""));
            for Apart { tid, start, from } in &step.apart {
                done.undo.push(Undo::MoveBack { id: *tid, start: *start, whole: false, to: from.clone() });
            }
            done.undo.push(Undo::MoveBack { id: step.id, start: step.start, whole: step.whole, to: from });
        }
        let (mut listed, mut starts) = (Listed::new(self), Starts::new(self));
        // Whole processes first, as they take their threads along.
        let backwards: Vec<&Move> = written.iter().rev().map(|(step, _)| *step).collect();
        let put_back: Vec<Error> = backwards
            .iter()
            .filter_map(|step| self.put_back_stranger(step, &backwards, &mut listed, &mut starts).err())
            .collect();
        match (put_back.into_iter().next(), failure) {
            (Some(error), _) => Err(error),
            (None, Some(error)) if error.is_gone() => Ok(Applied::Overtaken),
            (None, failure) => failure.map_or(Ok(Applied::Whole), Err),
        }
    }

    /// Whether the number is still that process's or thread's. One that cannot be looked at is not taken for gone.
    pub(super) fn is_itself(&self, id: i32, start: u64) -> Result<bool, Error> {
        self.proc.start_of(id).map(|now| now == Some(start)).map_err(|errno| self.unread(id, errno))
    }

    pub(super) fn unread(&self, id: i32, errno: Errno) -> Error {
        Error::path("read", self.proc.stat_path(id), errno)
    }

    /// Puts back whoever got the number of a process that ended, from any group that this number was `moved` to.
    fn put_back_stranger(&self, step: &Move, moved: &[&Move], listed: &mut Listed, starts: &mut Starts) -> Result<(), Error> {
        // One list for all threads of a process; each by itself is asked only where it is not there.
        let is_still_its = listed.of(step.process)?.contains(&step.id);
        if is_still_its || starts.of(step.id)?.is_none_or(|start| start == step.start) {
            return Ok(());
        }
        let is_same = |other: &&&Move| other.id == step.id && other.to.hierarchy == step.to.hierarchy;
        let was_put: Vec<&GroupPath> = moved.iter().filter(is_same).map(|other| &other.to).collect();
        self.put_where_it_was_born(step.id, &was_put, step.whole)
    }

    /// Puts whoever bears a number now to where it was born: beside its parent, or, a single thread, beside its process's first. Only if it is
    /// where that number `was_put`, one of these groups of one hierarchy: who got it later was never moved.
    pub(super) fn put_where_it_was_born(&self, id: i32, was_put: &[&GroupPath], whole: bool) -> Result<(), Error> {
        let Some(hierarchy) = was_put.first().map(|group| &group.hierarchy) else { return Ok(()) };
        let place = self.place_of(id, hierarchy)?;
        if !was_put.iter().any(|group| place.as_ref() == Some(&group.rel)) {
            return Ok(());
        }
        // A parent may end while it is asked; then there is another.
        for _ in 0..2 {
            let Some(kin) = self.kin_of(id, whole)? else { return Ok(()) };
            let home = self.place_of(kin, hierarchy)?.map(|rel| GroupPath::new(hierarchy, rel));
            if let Some(writer) = home.map_or(Ok(None), |home| home.writer(home.list_of(whole)))? {
                return ignoring_the_dead(writer.write(&id.to_string()));
            }
        }
        // Anywhere else it might be out of its own limits.
        Err(Error::Astray { id, mount: hierarchy.mount.clone() })
    }

    /// Beside whom it was born; `None` if it has ended. A thread that is written to the list of processes takes its whole process along,
    /// its first thread too.
    fn kin_of(&self, id: i32, whole: bool) -> Result<Option<i32>, Error> {
        let kin = |process: Process| match process.status()?.thread_group {
            group if group == id || whole => process.thread_stat(id).map(|stat| stat.parent),
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

    /// Moves who bears a number if it is the one that is meant; whether it was. It goes to the nearest group above where that one does not stand
    /// any more. Who got the number meanwhile is put back.
    pub(super) fn move_itself(&self, (id, start): (i32, u64), to: &GroupPath, whole: bool) -> Result<bool, Error> {
        if !self.is_itself(id, start)? {
            return Ok(false);
        }
        let to = nearest_standing(to)?;
        let Some(writer) = to.writer(to.list_of(whole))? else { return self.move_itself((id, start), &to, whole) };
        ignoring_the_dead(writer.write(&id.to_string()))?;
        let now = self.proc.start_of(id).map_err(|errno| self.unread(id, errno))?;
        if now.is_some_and(|now| now != start) {
            self.put_where_it_was_born(id, &[&to], whole)?;
        }
        Ok(true)
    }
}

/// The group at `path`, or the nearest above it that stands and, on v2, can hold a process.
pub(super) fn nearest_standing(path: &GroupPath) -> Result<GroupPath, Error> {
    let mut nearest = path.clone();
    loop {
        let can_hold = |group: &Group| nearest == *path || nearest.hierarchy.version == Version::V1 || passes_nothing_on(group);
        match (nearest.open()?, nearest.parent()) {
            (Some(group), Some(parent)) if !can_hold(&group) => nearest = parent,
            (Some(_), _) => return Ok(nearest),
            (None, Some(parent)) => nearest = parent,
            (None, None) => return Err(Error::path("open", nearest.absolute(), Errno::ENOENT)),
        }
    }
}

fn passes_nothing_on(group: &Group) -> bool {
    group.read(file::SUBTREE).is_ok_and(|controllers| controllers.is_empty())
}

/// One that has ended is nowhere to be moved.
fn ignoring_the_dead(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.errno() == Some(Errno::ESRCH) => Ok(()),
        result => result,
    }
}
