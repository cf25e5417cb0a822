//! Which threads of a VMM are its vCPUs, and how that is known.
//!
//! No single sign is enough. QEMU before 11 names no thread unless it is told to, and Kata tells it only when debugging; a busy
//! vCPU shows no system call; the kernel's own worker in a VMM shows a vCPU's registers as its own; guest time is not counted
//! everywhere. So the proofs are taken in order, KVM's debugfs first, and the number of `kvm-vcpu` descriptors says when to stop.
//! "Every thread but the main one" would throttle the VMM's disks and network with the guest.

use std::collections::BTreeMap;
use std::fmt;

use nix::errno::Errno;
use serde::Serialize;

use crate::deadline::Deadline;
use crate::proc::{Proc, Process, unless_gone};
use crate::vmm::Thread;
use crate::vmm::debugfs::{self, Debugfs, Maker};
use crate::vmm::kinds::Pattern;

/// What a descriptor of a virtual machine is of.
pub const VM: &[u8] = b"anon_inode:kvm-vm";
/// `ioctl` and its request KVM_RUN (linux/kvm.h: `_IO(0xAE, 0x80)`).
const KVM_RUN: u64 = 0xae80;
#[cfg(target_arch = "x86_64")]
const IOCTL: u64 = 16;
/// The generic table's number: aarch64, riscv64 and loongarch64.
#[cfg(not(target_arch = "x86_64"))]
const IOCTL: u64 = 29;

/// What shows that a thread is a vCPU. The word for each is its name in small letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    /// KVM says so.
    Debugfs,
    /// The VMM named it so.
    Name,
    /// It was seen in KVM_RUN, or has spent time in a guest.
    Syscall,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debugfs => "debugfs",
            Self::Name => "name",
            Self::Syscall => "syscall",
        })
    }
}

/// A thread that runs a vCPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vcpu {
    pub tid: i32,
    /// Start time in clock ticks since boot.
    pub start: u64,
    /// The vCPU's number, where the proof tells it.
    pub index: Option<u32>,
    pub proof: Proof,
}

/// The vCPU threads found, and how many there should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vcpus {
    /// Lowest number first: names are believed without debugfs, and a VMM that a guest has taken over may have tens of thousands.
    pub threads: Vec<Vcpu>,
    /// How many vCPUs KVM has for this VMM, without the parked ones; `None` where it is not KVM's guest (TCG).
    pub expected: Option<usize>,
    /// vCPUs that were unplugged: QEMU keeps their descriptors, no thread runs them.
    pub parked: usize,
}

impl Vcpus {
    /// Whether some are known to be missing.
    pub fn is_partial(&self) -> bool {
        self.expected.is_some_and(|expected| self.threads.len() < expected)
    }

    /// Whether it is known how many there are, and all of them are found.
    pub fn are_all_known(&self) -> bool {
        self.expected == Some(self.threads.len())
    }

    /// The weakest proof that was needed.
    pub fn proof(&self) -> Option<Proof> {
        self.threads.iter().map(|vcpu| vcpu.proof).max()
    }
}

/// What the signs are read from.
#[derive(Debug)]
pub struct Signs<'a> {
    /// The VMM's threads, lowest number first.
    pub threads: &'a [Thread],
    /// How the VMM's kind names its vCPU threads.
    pub patterns: &'a [Pattern],
    /// The VMM's `kvm-vcpu` descriptors and the vCPU of each.
    pub descriptors: &'a BTreeMap<u64, u32>,
    /// KVM's own list, where it can be had.
    pub debugfs: Option<&'a [debugfs::Vcpu]>,
}

impl Signs<'_> {
    /// Tells the vCPU threads; `system_call` is asked, only if the better proofs do not reach, what a thread is waiting in, and
    /// `may_run` whether a thread that was not among those listed may run a vCPU all the same.
    pub fn tell(&self, system_call: impl Fn(i32) -> Option<Vec<u64>>, may_run: impl Fn(i32) -> bool) -> Vcpus {
        let mut vcpus = Vcpus::default();
        let candidates: Vec<&Thread> = self.threads.iter().filter(|thread| !thread.is_user_worker).collect();
        let lives = |tid: i32| candidates.get(candidates.binary_search_by_key(&tid, |thread| thread.tid).ok()?);

        let listed = self.debugfs.unwrap_or_default();
        for known in listed {
            match lives(known.tid) {
                Some(thread) => vcpus.add(thread, Some(known.index), Proof::Debugfs),
                None if known.tid != 0 && !may_run(known.tid) => vcpus.parked += 1,
                None => {}
            }
        }
        // A process that shares the VMM's memory may hold the descriptor of a vCPU that the VMM has closed: KVM lists more then.
        vcpus.expected = match self.descriptors.len().max(listed.len()) {
            0 => None,
            count => Some(count.saturating_sub(vcpus.parked)),
        };
        if !vcpus.may_lack() {
            return vcpus;
        }
        for thread in &candidates {
            if let Some(index) = self.patterns.iter().find_map(|pattern| pattern.index_in(&thread.name)) {
                vcpus.add(thread, Some(index), Proof::Name);
            }
        }
        if self.descriptors.is_empty() || !vcpus.may_lack() {
            return vcpus;
        }
        for thread in &candidates {
            let index = system_call(thread.tid).and_then(|call| self.vcpu_run_by(&call));
            if index.is_some() || thread.has_run_a_guest() {
                vcpus.add(thread, index, Proof::Syscall);
            }
        }
        vcpus
    }

    /// The vCPU that a system call runs: `ioctl(fd, KVM_RUN)` on the descriptor of one.
    fn vcpu_run_by(&self, call: &[u64]) -> Option<u32> {
        match call {
            [IOCTL, fd, KVM_RUN, ..] => self.descriptors.get(fd).copied(),
            _ => None,
        }
    }
}

impl Vcpus {
    /// Whether a weaker proof might find more: some are missing, or nobody knows how many there are.
    fn may_lack(&self) -> bool {
        self.expected.is_none_or(|expected| self.threads.len() < expected)
    }

    /// Adds a thread unless it is known already by a better proof.
    fn add(&mut self, thread: &Thread, index: Option<u32>, proof: Proof) {
        if let Err(at) = self.threads.binary_search_by_key(&thread.tid, |known| known.tid) {
            self.threads.insert(at, Vcpu { tid: thread.tid, start: thread.start, index, proof });
        }
    }
}

/// Tells the vCPU threads of `process` from what /proc and debugfs show now.
///
/// Each descriptor is looked at, though KVM's list alone would do for an honest VMM: one that a guest has taken over can make a second VM
/// and show that.
pub fn of(
    proc: &Proc,
    process: &Process,
    threads: &[Thread],
    patterns: &[Pattern],
    debugfs: Option<&Debugfs>,
    deadline: &Deadline,
) -> Result<Vcpus, Errno> {
    let open = process.descriptors_of_kvm(deadline)?;
    let vms: Vec<u64> = open.iter().filter(|(_, what)| what == VM).map(|(fd, _)| *fd).collect();
    let vcpu = |what: &[u8]| std::str::from_utf8(what.strip_prefix(b"anon_inode:kvm-vcpu:")?).ok()?.parse().ok();
    let descriptors = open.iter().filter_map(|(fd, what)| Some((*fd, vcpu(what)?))).collect();
    let tids: Vec<i32> = threads.iter().map(|thread| thread.tid).collect();
    // A VMM without any is mostly no guest of KVM's; how many vCPUs it has nobody knows then, so that none is taken to be all.
    let maker = if open.is_empty() { Maker::OneOfThem } else { Maker::Anybody };
    let known = debugfs.and_then(|debugfs| debugfs.vcpus(&tids, &vms, maker, deadline));
    let signs = Signs { threads, patterns, descriptors: &descriptors, debugfs: known.as_deref() };
    let system_call = |tid| if deadline.has_passed() { None } else { process.system_call(tid).ok().flatten() };
    Ok(signs.tell(system_call, |tid| deadline.has_passed() || may_run_vcpu_of(process, proc, tid)))
}

/// Whether a thread that is not among the listed ones may run one of its vCPUs: one that has come since, or of a process that shares its
/// memory, as only those can (`kvm_vcpu_ioctl`). Of what cannot be seen it is not ruled out.
fn may_run_vcpu_of(process: &Process, proc: &Proc, tid: i32) -> bool {
    if unless_gone(process.thread_stat(tid)) != Ok(None) {
        return true;
    }
    let shares_memory = |other: Process| Ok(other.stat()?.memory == process.stat()?.memory);
    let shares_memory = unless_gone(proc.process(tid).and_then(|other| other.map(shares_memory).transpose()));
    shares_memory.map_or(true, |shares| shares.flatten().unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, FakeProc};

    /// Threads as (tid, name); descriptors 14 and 15 are of vCPU 0 and 1.
    struct Vmm {
        threads: Vec<Thread>,
        descriptors: BTreeMap<u64, u32>,
        debugfs: Option<Vec<debugfs::Vcpu>>,
        calls: BTreeMap<i32, Vec<u64>>,
    }

    impl Vmm {
        fn of(names: &[&str]) -> Self {
            let thread = |(tid, name): (i32, &&str)| Thread {
                tid,
                start: 1000,
                name: name.as_bytes().to_vec(),
                is_user_worker: false,
                guest_time: 0,
                groups: None,
            };
            let threads = (1..).zip(names).map(thread).collect();
            let descriptors = BTreeMap::from([(14, 0), (15, 1)]);
            Self { threads, descriptors, debugfs: None, calls: BTreeMap::new() }
        }

        fn debugfs(mut self, vcpus: &[(u32, i32)]) -> Self {
            self.debugfs = Some(vcpus.iter().map(|&(index, tid)| debugfs::Vcpu { index, tid }).collect());
            self
        }

        fn tell(&self) -> Vcpus {
            let patterns = [Pattern::parse("CPU */KVM").unwrap()];
            let debugfs = self.debugfs.as_deref();
            let signs = Signs { threads: &self.threads, patterns: &patterns, descriptors: &self.descriptors, debugfs };
            signs.tell(|tid| self.calls.get(&tid).cloned(), |tid| tid == NEW)
        }

        fn found(&self) -> Vec<(i32, Option<u32>, Proof)> {
            self.tell().threads.iter().map(|vcpu| (vcpu.tid, vcpu.index, vcpu.proof)).collect()
        }
    }

    /// A thread that has come since the others were listed.
    const NEW: i32 = 77;

    const UNNAMED: &[&str] = &["qemu", "qemu", "qemu", "qemu", "kvm-nx-lpage-re"];

    #[test]
    fn debugfs_tells_unnamed_threads_and_ends_the_search() {
        let mut vmm = Vmm::of(UNNAMED).debugfs(&[(0, 3), (1, 4)]);
        vmm.threads[1].name = b"CPU 7/KVM".to_vec();
        vmm.calls.insert(1, vec![IOCTL, 14, KVM_RUN]);
        assert_eq!(vmm.found(), [(3, Some(0), Proof::Debugfs), (4, Some(1), Proof::Debugfs)]);
        assert!(!vmm.tell().is_partial());
        assert_eq!(vmm.tell().proof(), Some(Proof::Debugfs));
    }

    #[test]
    fn proofs_have_their_words() {
        assert_eq!(
            [Proof::Debugfs, Proof::Name, Proof::Syscall].map(|proof| proof.to_string()),
            ["debugfs", "name", "syscall"]
        );
    }

    #[test]
    fn names_tell_where_debugfs_does_not() {
        let vmm = Vmm::of(&["qemu", "call_rcu", "CPU 0/KVM", "CPU 1/KVM"]);
        assert_eq!(vmm.found(), [(3, Some(0), Proof::Name), (4, Some(1), Proof::Name)]);
    }

    #[test]
    fn kvm_run_on_a_vcpus_descriptor_tells_an_idle_vcpu_and_guest_time_a_busy_one() {
        let mut vmm = Vmm::of(UNNAMED);
        vmm.calls.insert(4, vec![IOCTL, 15, KVM_RUN, 0]);
        vmm.threads[2].guest_time = 9;
        assert_eq!(vmm.found(), [(3, None, Proof::Syscall), (4, Some(1), Proof::Syscall)]);
        assert_eq!(vmm.tell().expected, Some(2));
    }

    #[test]
    fn other_system_calls_other_ioctls_and_other_descriptors_tell_nothing() {
        let mut vmm = Vmm::of(UNNAMED);
        vmm.calls.insert(1, vec![IOCTL + 1, 14, KVM_RUN]);
        vmm.calls.insert(2, vec![IOCTL, 14, KVM_RUN + 1]);
        vmm.calls.insert(3, vec![IOCTL, 13, KVM_RUN]);
        vmm.calls.insert(4, vec![IOCTL, 14]);
        assert_eq!(vmm.found(), []);
        assert!(vmm.tell().is_partial());
    }

    #[test]
    fn the_kernels_worker_shows_a_vcpus_registers_and_is_none() {
        let mut vmm = Vmm::of(UNNAMED).debugfs(&[(0, 3), (1, 5)]);
        vmm.threads[4].is_user_worker = true;
        vmm.threads[4].guest_time = 9;
        vmm.threads[4].name = b"CPU 1/KVM".to_vec();
        vmm.calls.insert(5, vec![IOCTL, 15, KVM_RUN]);
        assert_eq!(vmm.found(), [(3, Some(0), Proof::Debugfs)]);
    }

    #[test]
    fn a_parked_vcpu_is_neither_expected_nor_missing() {
        let mut vmm = Vmm::of(UNNAMED).debugfs(&[(0, 3), (1, 4), (2, 4711)]);
        vmm.descriptors.insert(16, 2);
        let vcpus = vmm.tell();
        assert_eq!((vcpus.threads.len(), vcpus.expected, vcpus.parked), (2, Some(2), 1));
        assert!(!vcpus.is_partial());
    }

    #[test]
    fn a_vcpu_that_has_just_come_is_missing_and_not_parked() {
        let vmm = Vmm::of(UNNAMED).debugfs(&[(0, 3), (1, NEW)]);
        assert_eq!((vmm.tell().parked, vmm.tell().is_partial()), (0, true));
        assert!(!vmm.tell().are_all_known());
    }

    #[test]
    fn a_vcpu_that_never_ran_is_found_by_its_name_or_reported_missing() {
        let mut vmm = Vmm::of(UNNAMED).debugfs(&[(0, 3), (1, 0)]);
        assert_eq!((vmm.tell().parked, vmm.tell().is_partial()), (0, true));
        vmm.threads[3].name = b"CPU 1/KVM".to_vec();
        assert_eq!(vmm.found(), [(3, Some(0), Proof::Debugfs), (4, Some(1), Proof::Name)]);
        assert_eq!(vmm.tell().proof(), Some(Proof::Name));
    }

    #[test]
    fn without_kvm_only_names_tell_and_nobody_knows_how_many() {
        let mut vmm = Vmm::of(&["qemu", "CPU 0/KVM", "qemu"]);
        vmm.descriptors.clear();
        vmm.threads[2].guest_time = 9;
        assert_eq!(vmm.found(), [(2, Some(0), Proof::Name)]);
        assert_eq!((vmm.tell().expected, vmm.tell().is_partial()), (None, false));
    }

    /// QEMU 100 with threads 101 and 102, these descriptors, and these vCPUs of each VM in KVM's directory.
    fn qemu(descriptors: &[(u64, &str)], vms: &[(&str, &[(u32, i32)])]) -> (FakeProc, Debugfs, Process, Vec<Thread>) {
        let host = FakeProc::new();
        let executable = host.executable("qemu-system-x86_64");
        host.add(&Fake { executable, threads: vec![101, 102], ..Fake::default() });
        for (fd, what) in descriptors {
            let link = host.dir.path().join(format!("100/fd/{fd}"));
            std::os::unix::fs::symlink(format!("anon_inode:{what}"), link).unwrap();
        }
        for (vm, vcpus) in vms {
            for (vcpu, tid) in *vcpus {
                let dir = host.dir.path().join(format!("debugfs/kvm/{vm}/vcpu{vcpu}"));
                std::fs::create_dir_all(&dir).unwrap();
                std::fs::write(dir.join("pid"), format!("{tid}\n")).unwrap();
            }
        }
        let debugfs = Debugfs::beneath(std::fs::File::open(host.dir.path().join("debugfs")).unwrap()).unwrap();
        let process = host.proc().process(100).unwrap().unwrap();
        let threads: Vec<Thread> = [100, 101, 102].map(|tid| crate::testing::thread(tid, "1:cpu:/")).into();
        (host, debugfs, process, threads)
    }

    #[test]
    fn a_processs_descriptors_and_kvms_directory_are_read_together() {
        let descriptors = [(9, "kvm-vm"), (14, "kvm-vcpu:0"), (15, "kvm-vcpu:1")];
        let (host, debugfs, process, threads) = qemu(&descriptors, &[("100-9", &[(0, 102), (1, 101)])]);
        let vcpus = of(&host.proc(), &process, &threads, &[], Some(&debugfs), &crate::testing::in_a_minute()).unwrap();
        assert_eq!(
            vcpus.threads.iter().map(|vcpu| (vcpu.tid, vcpu.index)).collect::<Vec<_>>(),
            [(101, Some(1)), (102, Some(0))]
        );
        assert!(vcpus.are_all_known());
        // Without KVM's word and without names there is nobody to tell, and two are known to be missing.
        let vcpus = of(&host.proc(), &process, &threads, &[], None, &crate::testing::in_a_minute()).unwrap();
        assert_eq!((vcpus.threads.len(), vcpus.expected), (0, Some(2)));
    }

    #[test]
    fn a_second_vm_of_the_same_vmm_hides_no_vcpu_of_the_first() {
        let descriptors = [(7, "kvm-vm"), (8, "kvm-vcpu:0"), (9, "kvm-vm"), (14, "kvm-vcpu:0")];
        // The thread that made the first has ended.
        for maker in [100, 77] {
            let first = format!("{maker}-9");
            let vms: [(&str, &[(u32, i32)]); 2] = [("100-7", &[(0, 102)]), (&first, &[(0, 101)])];
            let (host, debugfs, process, threads) = qemu(&descriptors, &vms);
            let vcpus = of(&host.proc(), &process, &threads, &[], Some(&debugfs), &crate::testing::in_a_minute()).unwrap();
            assert!(vcpus.are_all_known());
            assert_eq!(vcpus.threads.iter().map(|vcpu| vcpu.tid).collect::<Vec<_>>(), [101, 102]);
        }
    }

    #[test]
    fn a_vcpu_in_a_process_that_shares_the_vmms_memory_is_not_taken_for_unplugged() {
        // Its descriptors may be that process's alone.
        for descriptors in [&[(9, "kvm-vm"), (14, "kvm-vcpu:0"), (15, "kvm-vcpu:1")][..], &[(9, "kvm-vm"), (14, "kvm-vcpu:0")]]
        {
            let (host, debugfs, process, threads) = qemu(descriptors, &[("100-9", &[(0, 101), (1, 300)])]);
            let told = || of(&host.proc(), &process, &threads, &[], Some(&debugfs), &crate::testing::in_a_minute()).unwrap();
            assert_eq!((told().parked, told().is_partial()), (1, false), "nobody bears that number");
            host.add(&Fake { pid: 300, memory: 2, ..Fake::default() });
            assert_eq!((told().parked, told().is_partial()), (1, false), "somebody else does");
            host.add(&Fake { pid: 300, ..Fake::default() });
            assert_eq!((told().parked, told().is_partial()), (0, true), "who shares its memory");
        }
    }
}
