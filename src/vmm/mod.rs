//! The VM: its processes, and which of their threads are vCPUs, with the proof.

pub mod debugfs;
pub mod find;
pub mod kinds;
pub mod runtime;
pub mod vcpu;

use nix::errno::Errno;

use crate::deadline::Deadline;
use crate::error::Error;
use crate::proc::{Membership, Process, Stat, unless_gone};
use crate::vmm::kinds::Role;
use crate::vmm::runtime::{Claim, NamedContainer};
use crate::vmm::vcpu::Vcpus;

/// A running VM, as far as it is placed.
#[derive(Debug)]
pub struct Vm {
    /// The VMM's kind: "qemu".
    pub kind: String,
    /// The VMM and its helpers, the VMM first.
    pub processes: Vec<Member>,
    /// The VMM's vCPU threads.
    pub vcpus: Vcpus,
    /// The VMM is the container runtime's shim itself (Dragonball): its process is never moved.
    pub is_shim: bool,
    /// The sandbox's shims, whose children may be helpers; not one that is the VMM.
    pub shims: Vec<Process>,
    /// The processes that Kata's own files name.
    pub claims: Vec<Claim>,
    /// The containers in it that they name.
    pub containers: Vec<NamedContainer>,
    /// This run has put the whole VMM under the vCPUs' limit, when these threads were told to be vCPUs: whoever else is there came
    /// along, or was born there since.
    pub brought_in: Option<Vec<i32>>,
}

impl Vm {
    /// The VMM.
    pub fn vmm(&self) -> Option<&Member> {
        self.processes.first()
    }

    /// Whether `tid` is one of the vCPU threads.
    pub fn is_vcpu(&self, tid: i32) -> bool {
        self.vcpus.threads.binary_search_by_key(&tid, |vcpu| vcpu.tid).is_ok()
    }
}

/// One process of the VM.
#[derive(Debug)]
pub struct Member {
    pub process: Process,
    /// Start time in clock ticks since boot.
    pub start: u64,
    pub role: Role,
    /// Lowest number first.
    pub threads: Vec<Thread>,
}

/// One thread of it.
#[derive(Debug, Clone)]
pub struct Thread {
    pub tid: i32,
    /// Start time in clock ticks since boot.
    pub start: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// Made by the kernel inside the process.
    pub is_user_worker: bool,
    /// Ticks spent running a guest.
    pub guest_time: u64,
    /// The groups it is in, once it has been asked: the lists of the sandbox's own groups tell of most.
    pub groups: Option<Membership>,
}

impl Thread {
    /// Whether it is a vCPU's, whatever is told: guest time is counted for these alone. Not every kind of KVM counts it.
    pub fn has_run_a_guest(&self) -> bool {
        self.guest_time > 0 && !self.is_user_worker
    }
}

impl Member {
    /// A process of which the threads are still to be read.
    pub fn new(process: Process, start: u64, role: Role) -> Self {
        Self { process, start, role, threads: Vec::new() }
    }

    /// Reads its threads, unless they are those that are known; true if they were read. One that ends meanwhile is left out, and one that
    /// cannot be read is not taken for that. There can be any number of them: at the deadline it is an error that not all are known.
    pub fn look(&mut self, deadline: &Deadline) -> Result<bool, Error> {
        let tids = self.tids()?;
        let is_news = !self.threads.iter().map(|thread| thread.tid).eq(tids.iter().copied());
        if is_news {
            self.read(&tids, deadline)?;
        }
        self.locate_first();
        Ok(is_news)
    }

    /// Reads its threads anew, with what they do now.
    pub fn read_threads(&mut self, deadline: &Deadline) -> Result<(), Error> {
        let tids = self.tids()?;
        self.read(&tids, deadline)?;
        self.locate_first();
        Ok(())
    }

    fn tids(&self) -> Result<Vec<i32>, Error> {
        let tids = unless_gone(self.process.threads()).map_err(|errno| self.unread("task", errno))?;
        Ok(tids.unwrap_or_default())
    }

    fn read(&mut self, tids: &[i32], deadline: &Deadline) -> Result<(), Error> {
        let thread = |tid: &i32| {
            in_time(deadline)?;
            let unread = |errno| self.unread(&format!("task/{tid}/stat"), errno);
            let stat = unless_gone(self.process.thread_stat(*tid)).map_err(unread)?.filter(|stat| !stat.is_dead());
            Ok(stat.map(|stat| {
                let Stat { start, name, is_user_worker, guest_time, .. } = stat;
                Thread { tid: *tid, start, name, is_user_worker, guest_time, groups: None }
            }))
        };
        self.threads = tids.iter().filter_map(|tid| thread(tid).transpose()).collect::<Result<_, Error>>()?;
        Ok(())
    }

    /// Asks the first thread where it is; the others may be elsewhere by now.
    fn locate_first(&mut self) {
        for thread in &mut self.threads {
            let is_first = thread.tid == self.process.pid;
            thread.groups = is_first.then(|| self.process.membership(thread.tid).ok()).flatten();
        }
    }

    /// Asks every thread where it is; one that has ended is left out.
    pub fn read_groups(&mut self, deadline: &Deadline) -> Result<(), Error> {
        let groups = |thread: &Thread| {
            in_time(deadline)?;
            let unread = |errno| self.unread(&format!("task/{}/cgroup", thread.tid), errno);
            unless_gone(self.process.membership(thread.tid)).map_err(unread)
        };
        let groups: Vec<Option<Membership>> = self.threads.iter().map(groups).collect::<Result<_, Error>>()?;
        self.threads.iter_mut().zip(groups).for_each(|(thread, groups)| thread.groups = groups);
        self.threads.retain(|thread| thread.groups.is_some());
        Ok(())
    }

    /// The error for one of its files, below its directory, that cannot be read.
    pub fn unread(&self, file: &str, errno: Errno) -> Error {
        Error::path("read", format!("/proc/{}/{file}", self.process.pid), errno)
    }

    /// Takes every thread to be where the first one is.
    pub fn follow_first(&mut self) {
        let groups = self.thread(self.process.pid).and_then(|first| first.groups.clone());
        self.threads.iter_mut().for_each(|thread| thread.groups.clone_from(&groups));
    }

    /// Its first thread, whose number is the process's; another where that could not be read.
    pub fn leader(&self) -> Option<&Thread> {
        self.thread(self.process.pid).or(self.threads.first())
    }

    /// Its thread of this number.
    pub fn thread(&self, tid: i32) -> Option<&Thread> {
        self.threads.get(self.threads.binary_search_by_key(&tid, |thread| thread.tid).ok()?)
    }
}

/// An error once there is no time to look at another thread.
fn in_time(deadline: &Deadline) -> Result<(), Error> {
    if deadline.has_passed() { Err(deadline.passed("look at the VMM's threads")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::testing::{Fake, FakeProc};

    #[test]
    fn threads_are_read_again_where_others_have_come_and_asked_where_they_are_only_on_demand() {
        let host = FakeProc::new();
        host.add(&Fake { threads: vec![101], ..Fake::default() });
        let mut member = Member::new(host.proc().process(100).unwrap().unwrap(), 6000, Role::Vmm);
        let deadline = Deadline::after(Instant::now(), Duration::from_secs(60));
        let asked = |member: &Member| -> Vec<bool> { member.threads.iter().map(|thread| thread.groups.is_some()).collect() };
        assert!(member.look(&deadline).unwrap());
        assert_eq!(asked(&member), [true, false], "the first alone");
        member.read_groups(&deadline).unwrap();
        assert_eq!(asked(&member), [true, true]);
        assert!(!member.look(&deadline).unwrap());
        assert_eq!(asked(&member), [true, false], "the others may be elsewhere by now");
        host.add(&Fake { threads: vec![101, 102], ..Fake::default() });
        assert!(member.look(&deadline).unwrap());
        assert_eq!(member.threads.len(), 3);
        let passed = Deadline::after(Instant::now(), Duration::ZERO);
        for result in [member.read_threads(&passed), member.read_groups(&passed)] {
            assert!(result.unwrap_err().to_string().contains("passed while about to look at the VMM's threads"));
        }
    }
}
