//! Whether KVM itself says which threads are vCPUs.

use nix::errno::Errno;

use crate::cgroup::mounts::Mounts;
use crate::check::{Check, Places};
use crate::vmm::debugfs::Debugfs;

/// What there is to judge by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    /// As Rust calls it.
    pub(super) architecture: &'a str,
    pub(super) release: Option<(u32, u32)>,
    /// Whether the kernel has debugfs at all.
    pub(super) has_debugfs: Option<bool>,
    pub(super) is_mounted: bool,
    /// What came of opening KVM's directory there.
    pub(super) opened: Result<(), Errno>,
    pub(super) is_root: bool,
}

impl Seen<'_> {
    /// What is seen on a host.
    pub(super) fn of(places: &Places, mounts: &Mounts) -> Self {
        Self {
            architecture: std::env::consts::ARCH,
            release: places.proc.kernel_release(),
            has_debugfs: places.proc.knows_file_system("debugfs"),
            is_mounted: mounts.debugfs.is_some(),
            opened: Debugfs::open(mounts.debugfs.as_deref()).map(drop),
            is_root: places.is_root,
        }
    }
}

/// Judges it.
pub(super) fn debugfs(seen: &Seen) -> Check {
    const ID: &str = "kvm.debugfs";
    const WITHOUT: &str = "vCPU threads are told by their names, by KVM_RUN or by guest time";
    const NAMES: &str = "use VMMs that name their vCPU threads (QEMU 11, or an older one with debug-threads=on)";
    let (Some(release), Some(has_debugfs)) = (seen.release, seen.has_debugfs) else {
        return Check::skipped(ID, "the kernel's version and file systems are not known", "run it where /proc is mounted");
    };
    let (major, minor) = release;
    if release < (6, 0) {
        let detail = format!("Linux {major}.{minor}: before 6.0 KVM does not say which threads are vCPUs; {WITHOUT}");
        return Check::warning(ID, detail, format!("use Linux 6.0 or newer, or {NAMES}"));
    }
    if seen.architecture != "x86_64" {
        let detail = format!("on {} KVM does not say which threads are vCPUs; {WITHOUT}", seen.architecture);
        return Check::warning(ID, detail, NAMES);
    }
    if !has_debugfs {
        let detail = format!("this kernel has no debugfs; {WITHOUT}");
        return Check::warning(ID, detail, format!("use a kernel with CONFIG_DEBUG_FS, or {NAMES}"));
    }
    let how = if seen.is_mounted { "mounted" } else { "not mounted, and read all the same" };
    match seen.opened {
        Ok(()) => Check::ok(ID, format!("Linux {major}.{minor}, debugfs {how}")),
        Err(Errno::ENOENT) => {
            Check::skipped(ID, "debugfs has no kvm directory: KVM is not loaded", "modprobe kvm_intel or kvm_amd")
        }
        Err(errno) if !seen.is_root => Check::skipped(ID, format!("debugfs cannot be read: {errno}"), "run it as root"),
        Err(errno) => {
            let detail = format!("debugfs cannot be read: {errno}; {WITHOUT}");
            Check::warning(ID, detail, format!("allow it (kernel lockdown or debugfs=off forbid it), or {NAMES}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;

    const GOOD: Seen = Seen {
        architecture: "x86_64",
        release: Some((6, 0)),
        has_debugfs: Some(true),
        is_mounted: true,
        opened: Ok(()),
        is_root: true,
    };

    #[test]
    fn kvm_says_it_where_all_is_there() {
        assert_eq!(debugfs(&GOOD).state, State::Ok);
        assert_eq!(debugfs(&Seen { is_mounted: false, ..GOOD }).state, State::Ok);
    }

    #[test]
    fn what_is_missing_is_named() {
        let warned = |seen: &Seen, needle: &str| {
            let check = debugfs(seen);
            assert!(check.state == State::Warning && check.detail.contains(needle) && !check.fix.is_empty(), "{check:?}");
        };
        warned(&Seen { release: Some((5, 19)), ..GOOD }, "Linux 5.19");
        warned(&Seen { architecture: "aarch64", ..GOOD }, "aarch64");
        warned(&Seen { has_debugfs: Some(false), ..GOOD }, "no debugfs");
        warned(&Seen { opened: Err(Errno::EPERM), ..GOOD }, "EPERM");
    }

    #[test]
    fn what_cannot_be_known_is_skipped() {
        for seen in [
            Seen { release: None, ..GOOD },
            Seen { has_debugfs: None, ..GOOD },
            Seen { opened: Err(Errno::ENOENT), ..GOOD },
            Seen { opened: Err(Errno::EPERM), is_root: false, ..GOOD },
        ] {
            let check = debugfs(&seen);
            assert!(check.state == State::Skipped && !check.detail.is_empty(), "{check:?}");
        }
    }
}
