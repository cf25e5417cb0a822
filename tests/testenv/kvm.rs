//! A virtual machine with nothing in it, made by hand: for what a VMM that a guest has taken over does with KVM's descriptors.
//!
//! No guest runs in it, so no guest time is counted. But KVM keeps in mind which thread has run which vCPU last, and that is what the hook
//! asks for (debugfs, `kvm/<tid>-<fd>/vcpu<n>/pid`).

#![allow(unsafe_code)] // KVM has no other interface than ioctl(2).

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::libc::{Ioctl, c_ulong, ioctl};

/// linux/kvm.h: `_IO(0xAE, 0x01)`, `_IO(0xAE, 0x41)` and `_IO(0xAE, 0x80)`.
const CREATE_VM: Ioctl = 0xae01;
const CREATE_VCPU: Ioctl = 0xae41;
const RUN: Ioctl = 0xae80;

/// One of them, which ends with the last of its descriptors.
pub(crate) struct Vm(OwnedFd);

impl Vm {
    pub(crate) fn make() -> Vm {
        let kvm = File::options().read(true).write(true).open("/dev/kvm").expect("/dev/kvm");
        Vm(made_by(&kvm, CREATE_VM, 0))
    }

    /// Its vCPU of that number, which whoever shares this process's memory can run.
    pub(crate) fn vcpu(&self, number: u32) -> Vcpu {
        Vcpu(made_by(&self.0, CREATE_VCPU, number.into()))
    }
}

pub(crate) struct Vcpu(OwnedFd);

impl Vcpu {
    /// Runs it for as long as it can: without memory that is a moment, again and again. After the first, KVM knows who does.
    pub(crate) fn run_for_ever(&self, is_known: impl Fn()) -> ! {
        loop {
            // SAFETY: an open descriptor and a number; the kernel touches none of our memory for it.
            unsafe { ioctl(self.0.as_raw_fd(), RUN, 0 as c_ulong) };
            is_known();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn made_by(of: &impl AsRawFd, request: Ioctl, argument: c_ulong) -> OwnedFd {
    // SAFETY: an open descriptor and two numbers; the kernel touches none of our memory for it.
    let made = unsafe { ioctl(of.as_raw_fd(), request, argument) };
    let made = nix::errno::Errno::result(made).unwrap_or_else(|errno| panic!("ioctl {request:#x}: {errno}"));
    // SAFETY: the kernel has just made it for us.
    unsafe { OwnedFd::from_raw_fd(made) }
}
