//! The VM: its processes, and which of their threads are vCPUs, with the proof.

pub mod debugfs;
pub mod find;
pub mod kinds;
pub mod runtime;
pub mod vcpu;

use nix::errno::Errno;

use crate::proc::{Membership, Process};
use crate::vmm::kinds::Role;
use crate::vmm::runtime::NamedContainer;
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
    /// The containers in it that Kata's own files name.
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
    /// The groups it is in.
    pub groups: Membership,
}

impl Member {
    /// A process with its threads.
    pub fn read(process: Process, start: u64, role: Role) -> Self {
        let mut member = Self { process, start, role, threads: Vec::new() };
        member.read_threads();
        member
    }

    /// Reads its threads anew; one that ends meanwhile is left out. If they cannot be listed, what was known of them stays.
    pub fn read_threads(&mut self) {
        let thread = |tid: i32| {
            let stat = self.process.thread_stat(tid).ok().filter(|stat| !stat.is_dead())?;
            Some(Thread {
                tid,
                start: stat.start,
                name: stat.name,
                is_user_worker: stat.is_user_worker,
                guest_time: stat.guest_time,
                groups: self.process.membership(tid).ok()?,
            })
        };
        self.threads = match self.process.threads() {
            Ok(tids) => tids.into_iter().filter_map(thread).collect(),
            Err(Errno::ENOENT | Errno::ESRCH) => Vec::new(),
            Err(_) => return,
        };
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
