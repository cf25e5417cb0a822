//! Releasing: values are given back, whoever is left is moved out, and the groups go.
//!
//! Here no failure ends anything: each is kept and the rest done. Nothing is ever killed; a group in which somebody stays, stays too, and is
//! named with them.

use std::collections::HashSet;
use std::time::Duration;

use nix::errno::Errno;

use super::moves::nearest_standing;
use super::{Apply, Done, is_used};
use crate::cgroup::file;
use crate::cgroup::group::GroupPath;
use crate::cgroup::mounts::Version;
use crate::deadline::Backoff;
use crate::error::Error;
use crate::order;
use crate::plan::Step;
use crate::proc;

/// How long the kernel's word that a group has become empty is waited for before it is looked again.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

impl Apply<'_> {
    /// Does the steps of releasing; goes on after failures and gives them all.
    pub fn release(&self, steps: &[Step], done: &mut Done) -> Vec<Error> {
        // What follows the removals can be given back only once the groups are gone.
        let is_remove = |step: &Step| matches!(step, Step::Remove { .. });
        let first = steps.iter().position(is_remove).unwrap_or(steps.len());
        let (before, rest) = steps.split_at(first);
        let (removes, after): (Vec<&Step>, Vec<&Step>) = rest.iter().partition(|step| is_remove(step));
        let mut errors = self.each(before, done);
        errors.extend(self.remove_all(&removes, done));
        errors.extend(self.each(after, done));
        // What cannot be moved out is refused when the group is emptied and again when it is removed.
        let mut told = HashSet::new();
        errors.retain(|error| told.insert(error.to_string()));
        errors
    }

    /// Does the steps but for removals, each whatever came of the one before it.
    fn each<'s>(&self, steps: impl IntoIterator<Item = &'s Step>, done: &mut Done) -> Vec<Error> {
        let step = |step: &Step| match step {
            Step::Set { group, file, value } => self.give_back(group, file, value, done),
            Step::MoveProcess { pid, start, to, .. } => self.send_home(*pid, *start, to, done),
            Step::Drain { group, target, whole } => self.drain(group, target, *whole, done),
            _ => Ok(()),
        };
        steps.into_iter().map(step).filter_map(Result::err).collect()
    }

    /// Removes groups. That one is empty shows only a while after its last thread left, so what is busy is tried again after all the rest,
    /// until the deadline: one group in use keeps no other from going.
    fn remove_all(&self, steps: &[&Step], done: &mut Done) -> Vec<Error> {
        let mut removes: Vec<(&GroupPath, Option<&(GroupPath, bool)>)> =
            steps.iter().filter_map(|step| as_remove(step)).collect();
        let (mut errors, mut backoff) = (Vec::new(), Backoff::default());
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
        // A group in one that stays may be what keeps it: then that says more.
        let is_within = |group: &GroupPath| group.parent().is_some_and(|above| waited_for.contains(&&above));
        let busy = removes.iter().filter(|(group, drain)| drain.is_some() || is_within(group));
        errors.extend(busy.map(|(group, _)| self.still_busy(group)));
        errors
    }

    /// Gives a group the value that it had; what it passes on only where nobody else has groups in it by now.
    fn give_back(&self, group: &GroupPath, file: &'static str, value: &str, done: &mut Done) -> Result<(), Error> {
        if file == file::SUBTREE && is_used(group)? {
            return Ok(());
        }
        self.set(group, file, value, done).map(drop)
    }

    /// Moves a process to where it came from.
    fn send_home(&self, pid: i32, start: u64, home: &GroupPath, done: &mut Done) -> Result<(), Error> {
        done.moved += usize::from(self.move_itself((pid, start), home, true)?);
        Ok(())
    }

    /// Moves everything in a group to another, again and again until nobody is in it or the same as before. Who is in a group of ours is the kernel's
    /// word; who has got the number of one of them since, and is younger than that word, is put back.
    fn drain(&self, group: &GroupPath, target: &GroupPath, whole: bool, done: &mut Done) -> Result<(), Error> {
        let file = group.list_of(whole);
        let Some(open) = group.open()? else { return Ok(()) };
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let (mut before, mut moved) = (Vec::new(), HashSet::new());
        let (mut refused, mut astray) = (Vec::new(), Vec::new());
        loop {
            let asked = proc::ticks_since_boot();
            let mut members = open.members(file)?;
            // Ourselves first: while we are in it, it cannot go.
            order::sort_by_key(&mut members, |member| *member != own);
            // If these are the same as before, they were refused or are just ending: the kernel takes their numbers and moves nobody. Removing
            // the group waits for them.
            if members.is_empty() || members == before {
                astray.extend(refused.into_iter().filter(|_| !members.is_empty()));
                return Error::all(astray);
            }
            self.deadline.check("empty a group")?;
            let to = nearest_standing(target)?;
            let writer = match to.writer(to.list_of(whole)) {
                // It went just now: the next above takes them.
                Ok(None) => continue,
                Err(error) if error.is_gone() => continue,
                Ok(Some(writer)) => writer,
                Err(error) => return Err(error),
            };
            refused.clear();
            for member in members.iter().take_while(|_| !self.deadline.has_passed()) {
                match writer.write(&member.to_string()) {
                    Ok(()) => {
                        done.moved += usize::from(moved.insert(*member));
                        if *member != own {
                            astray.extend(self.put_back_younger(*member, asked, &to, whole).err());
                        }
                    }
                    Err(error) if error.errno() == Some(Errno::ESRCH) => {}
                    // The others are moved all the same.
                    Err(error) => refused.push(error),
                }
            }
            before = members;
        }
    }

    /// Puts back who was born after the group was asked who is in it, at `asked` clock ticks since boot. One of its own that was born in that
    /// very tick goes beside its kin as well.
    fn put_back_younger(&self, id: i32, asked: u64, was_put: &GroupPath, whole: bool) -> Result<(), Error> {
        let start = self.proc.start_of(id).map_err(|errno| self.unread(id, errno))?;
        if start.is_some_and(|start| start >= asked) {
            self.put_where_it_was_born(id, &[was_put], whole)?;
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
                if group.children()?.iter().any(|child| !ours.contains(&child)) {
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

/// The group that a step removes, and where what enters it meanwhile goes.
fn as_remove(step: &Step) -> Option<(&GroupPath, Option<&(GroupPath, bool)>)> {
    match step {
        Step::Remove { group, drain } => Some((group, drain.as_ref())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::cgroup::Controller;
    use crate::cgroup::group::Mark;
    use crate::deadline::Deadline;
    use crate::proc::Proc;
    use crate::testing::{self, Fake, FakeProc, in_a_minute};

    fn apply<'a>(proc: &'a Proc, deadline: &'a Deadline) -> Apply<'a> {
        Apply { proc, deadline, mark: Mark { sandbox: "sb".into(), state_dir: "/run/sb".into() } }
    }

    /// A v1 hierarchy with a group that holds these threads, whatever is written elsewhere.
    fn group_of(members: &str) -> (tempfile::TempDir, GroupPath) {
        let dir = tempfile::tempdir().unwrap();
        let group = GroupPath::new(&testing::mounted_at(dir.path(), &[Controller::Cpu]), "pod/kata_sb");
        for path in [group.parent().unwrap(), group.clone()] {
            std::fs::create_dir(path.absolute()).unwrap();
            std::fs::write(path.absolute().join("tasks"), "").unwrap();
        }
        std::fs::write(group.absolute().join("tasks"), members).unwrap();
        (dir, group)
    }

    /// The kernel takes the number of one that is just ending, and moves nobody.
    #[test]
    fn who_is_just_ending_is_moved_once_and_left_to_the_removal_to_wait_for() {
        let (_dir, group) = group_of("7\n8\n");
        let (host, deadline, mut done) = (FakeProc::new(), in_a_minute(), Done::default());
        apply(&host.proc(), &deadline).drain(&group, &group.parent().unwrap(), false, &mut done).unwrap();
        assert_eq!(done.moved, 2);
    }

    #[test]
    fn a_group_of_any_number_is_not_emptied_past_the_deadline() {
        let (_dir, group) = group_of("7\n8\n");
        let (host, deadline) = (FakeProc::new(), Deadline::after(Instant::now(), Duration::ZERO));
        let drained = apply(&host.proc(), &deadline).drain(&group, &group.parent().unwrap(), false, &mut Done::default());
        assert!(drained.unwrap_err().to_string().contains("passed while about to empty a group"));
    }

    /// Who was written was moved, and ended before his number was given away: the one who has it now was never touched.
    #[test]
    fn who_got_a_number_only_after_its_move_is_left_where_he_is() {
        let (_dir, group) = group_of("");
        let (host, deadline) = (FakeProc::new(), in_a_minute());
        for pid in [50, 100] {
            host.add(&Fake { pid, parent: 50, ..Fake::default() });
        }
        let place = |pid: i32, cgroup: &str| {
            for dir in [format!("{pid}"), format!("{pid}/task/{pid}")] {
                std::fs::write(host.dir.path().join(dir).join("cgroup"), format!("1:cpu:{cgroup}\n")).unwrap();
            }
        };
        let home = GroupPath::new(&group.hierarchy, "home");
        std::fs::create_dir(home.absolute()).unwrap();
        let tasks = || std::fs::read_to_string(home.absolute().join("tasks")).unwrap();
        place(50, "/home");
        let (proc, was_put) = (host.proc(), group.parent().unwrap());
        for (is_at, written) in [("/elsewhere", ""), ("/pod", "100")] {
            std::fs::write(home.absolute().join("tasks"), "").unwrap();
            place(100, is_at);
            apply(&proc, &deadline).put_where_it_was_born(100, &[&group, &was_put], false).unwrap();
            assert_eq!(tasks(), written, "in {is_at}");
        }
    }

    #[test]
    fn at_the_end_controllers_are_not_taken_back_from_where_others_have_groups() {
        let (dir, host) = (tempfile::tempdir().unwrap(), FakeProc::new());
        let v2 = testing::unified_at(dir.path(), &[Controller::Cpu]);
        testing::make_v2(dir.path(), "kata", "cpu", "");
        testing::make_v2(dir.path(), "kata/others", "", "");
        let (proc, deadline) = (host.proc(), in_a_minute());
        let apply = apply(&proc, &deadline);
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
