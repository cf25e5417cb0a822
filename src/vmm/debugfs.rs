//! KVM's own word on which thread runs which vCPU: debugfs `kvm/<tid>-<fd>/vcpu<n>/pid`.
//!
//! The file holds the thread that last entered KVM_RUN (Linux 6.0, e36de87d34a7), whatever its VMM calls it. The directory is
//! named after the thread that made the VM and its descriptor there; it is found by the thread, as descriptors can be closed.
//! debugfs need not be mounted: it is opened detached, attached to no place. A mounted one is used as it is, since older kernels
//! reset its mount options when it is mounted once more (`debugfs_remount` before the fs_context conversion of Linux 6.10).

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::statfs::{FsType, fstatfs};

use crate::deadline::Deadline;
use crate::proc::number;
use crate::{foreign, order, sys};

/// DEBUGFS_MAGIC (linux/magic.h).
const MAGIC: i64 = 0x6462_6720;

/// One vCPU as KVM has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vcpu {
    /// Its number.
    pub index: u32,
    /// The thread that last ran it; 0 if none has. A dead one is of an unplugged vCPU that QEMU keeps parked.
    pub tid: i32,
}

/// Who may have made a VM that is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// A thread of the VMM's.
    OneOfThem,
    /// The same, or one that has ended.
    Anybody,
}

/// KVM's directory in debugfs, open for reading.
#[derive(Debug)]
pub struct Debugfs {
    kvm: OwnedFd,
}

impl Debugfs {
    /// Opens it: where the host has it mounted, else detached. An error where there is none to be had.
    pub fn open(mounted_at: Option<&Path>) -> Result<Self, Errno> {
        let root = match mounted_at.map(open_mounted) {
            Some(Ok(root)) => root,
            _ => sys::mount_detached(c"debugfs")?,
        };
        Self::beneath(&root)
    }

    /// KVM's directory beneath an open root.
    pub fn beneath(root: impl AsFd) -> Result<Self, Errno> {
        open_dir(root, "kvm").map(|kvm| Self { kvm })
    }

    /// The vCPUs of the VMs of a VMM with these `threads` (lowest number first), of which an honest one has one; `None` if KVM shows none, or
    /// not all in time. A VM is known by the thread that made it, whatever has become of its descriptor.
    ///
    /// Where none of them has made one, or not one of its `descriptors`, the maker may have ended: if it may be `Anybody`, all VMs are asked
    /// then who runs them.
    pub fn vcpus(&self, threads: &[i32], descriptors: &[u64], maker: Maker, deadline: &Deadline) -> Option<Vec<Vcpu>> {
        let names = list(open_dir(&self.kvm, ".").ok()?).ok()?;
        let vms = names.iter().filter_map(|name| vm_of(name).map(|(tid, fd)| (tid, fd, name)));
        let is_thread = |tid: i32| threads.binary_search(&tid).is_ok();
        let (made_by_us, others): (Vec<_>, Vec<_>) = vms.partition(|(tid, _, _)| is_thread(*tid));
        let mut vcpus = Vec::new();
        for (_, _, name) in &made_by_us {
            vcpus.extend(self.vcpus_in(name, deadline).ok()?);
        }
        let is_made_by_us = |descriptor: &u64| made_by_us.iter().any(|(_, fd, _)| fd == descriptor);
        let may_be_others = made_by_us.is_empty() || !descriptors.iter().all(is_made_by_us);
        if maker == Maker::Anybody && may_be_others {
            let is_run_by_us = |vcpus: &Vec<Vcpu>| vcpus.iter().any(|vcpu| is_thread(vcpu.tid));
            let of_others = others.iter().filter_map(|(_, _, name)| self.vcpus_in(name, deadline).ok().filter(is_run_by_us));
            vcpus.extend(of_others.flatten());
        }
        Some(vcpus).filter(|vcpus| !vcpus.is_empty() && !deadline.has_passed())
    }

    fn vcpus_in(&self, vm: &str, deadline: &Deadline) -> Result<Vec<Vcpu>, Errno> {
        if deadline.has_passed() {
            return Err(Errno::ETIMEDOUT);
        }
        let dir = open_dir(&self.kvm, vm)?;
        let mut vcpus = Vec::new();
        for name in list(&dir)? {
            let Some(index) = name.strip_prefix("vcpu").and_then(|index| index.parse().ok()) else {
                continue;
            };
            let file = foreign::open(&dir, Path::new(&format!("{name}/pid")))?;
            let tid = foreign::read_kernels(file, 64, number)?.ok_or(Errno::EINVAL)?;
            vcpus.push(Vcpu { index, tid });
        }
        order::sort_by_key(&mut vcpus, |vcpu| vcpu.index);
        Ok(vcpus)
    }
}

/// `<tid>-<fd>`, with whatever a later kernel puts behind it.
fn vm_of(name: &str) -> Option<(i32, u64)> {
    let (tid, rest) = name.split_once('-')?;
    let digits = rest.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(rest.len());
    Some((tid.parse().ok()?, rest[..digits].parse().ok()?))
}

fn open_mounted(at: &Path) -> Result<OwnedFd, Errno> {
    let root = open_dir(AT_FDCWD, at)?;
    let is_debugfs = fstatfs(&root)?.filesystem_type() == FsType(MAGIC as _);
    if is_debugfs { Ok(root) } else { Err(Errno::ENODEV) }
}

fn open_dir<P: nix::NixPath + ?Sized>(at: impl AsFd, path: &P) -> Result<OwnedFd, Errno> {
    openat(at, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())
}

fn list(dir: impl AsFd) -> Result<Vec<String>, Errno> {
    Ok(sys::list(dir)?.into_iter().filter_map(|entry| entry.name.into_string().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A debugfs as KVM fills it, in a temporary directory.
    fn debugfs(vms: &[(&str, &[(u32, i32)])]) -> (tempfile::TempDir, Debugfs) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("kvm")).unwrap();
        for (vm, vcpus) in vms {
            for (index, tid) in *vcpus {
                let vcpu = dir.path().join("kvm").join(vm).join(format!("vcpu{index}"));
                std::fs::create_dir_all(&vcpu).unwrap();
                std::fs::write(vcpu.join("pid"), format!("{tid}\n")).unwrap();
            }
            std::fs::write(dir.path().join("kvm").join(vm).join("exits"), "1\n").unwrap();
        }
        let open = Debugfs::beneath(std::fs::File::open(dir.path()).unwrap()).unwrap();
        (dir, open)
    }

    fn vcpus(debugfs: &Debugfs, threads: &[i32], descriptors: &[u64]) -> Option<Vec<Vcpu>> {
        debugfs.vcpus(threads, descriptors, Maker::Anybody, &crate::testing::in_a_minute())
    }

    fn tids(vcpus: Option<Vec<Vcpu>>) -> Option<Vec<i32>> {
        vcpus.map(|vcpus| vcpus.iter().map(|vcpu| vcpu.tid).collect())
    }

    #[test]
    fn a_vm_is_found_by_the_thread_that_made_it() {
        let (_dir, debugfs) = debugfs(&[("100-11", &[(1, 102), (0, 101)]), ("200-11", &[(0, 201)])]);
        assert_eq!(tids(vcpus(&debugfs, &[100, 101, 102], &[11])), Some(vec![101, 102]));
        assert_eq!(tids(vcpus(&debugfs, &[100, 101, 102], &[])), Some(vec![101, 102]), "whatever has become of its descriptor");
        assert_eq!(vcpus(&debugfs, &[300], &[11]), None);
    }

    #[test]
    fn a_vm_whose_maker_is_gone_is_found_by_its_vcpus() {
        let (_dir, debugfs) = debugfs(&[("7-11", &[(0, 201)]), ("8-11-x", &[(0, 101)])]);
        assert_eq!(tids(vcpus(&debugfs, &[100, 101], &[11])), Some(vec![101]));
        for descriptors in [&[12][..], &[]] {
            assert_eq!(
                tids(vcpus(&debugfs, &[100, 101], descriptors)),
                Some(vec![101]),
                "whatever has become of its descriptor"
            );
        }
    }

    #[test]
    fn a_vmm_without_a_descriptor_of_kvms_has_no_vm_that_others_made() {
        let (_dir, debugfs) = debugfs(&[("7-11", &[(0, 101)])]);
        assert_eq!(debugfs.vcpus(&[100, 101], &[], Maker::OneOfThem, &crate::testing::in_a_minute()), None);
        assert_eq!(tids(vcpus(&debugfs, &[100, 101], &[])), Some(vec![101]));
    }

    #[test]
    fn names_that_are_no_vms_are_passed_over() {
        assert_eq!(vm_of("2834-11"), Some((2834, 11)));
        assert_eq!(vm_of("2834-11.2"), Some((2834, 11)));
        for name in ["blocking", "-", "1-", "-1", "a-1", "99999999999-1"] {
            assert_eq!(vm_of(name), None, "{name}");
        }
    }
}
