//! The files of a v1 group whose values matter (Documentation/admin-guide/cgroup-v1, Documentation/scheduler/sched-bwc).

use crate::cgroup::Controller;

/// µs of CPU time in a period; -1 is without limit.
pub const QUOTA: &str = "cpu.cfs_quota_us";
/// The period in µs.
pub const PERIOD: &str = "cpu.cfs_period_us";
/// The weight among siblings, 2 to 262144.
pub const SHARES: &str = "cpu.shares";
/// The realtime period in µs; there only where the kernel has realtime groups.
pub const RT_PERIOD: &str = "cpu.rt_period_us";
/// µs of realtime in a period.
pub const RT_RUNTIME: &str = "cpu.rt_runtime_us";
/// The CPUs that may be used.
pub const CPUS: &str = "cpuset.cpus";
/// The memory nodes that may be used.
pub const MEMS: &str = "cpuset.mems";

/// The files of a controller, in an order that the kernel takes when all are written.
pub fn of(controller: Controller) -> &'static [&'static str] {
    match controller {
        Controller::Cpu => &[SHARES, PERIOD, QUOTA, RT_PERIOD, RT_RUNTIME],
        Controller::Cpuset => &[CPUS, MEMS],
        Controller::Cpuacct | Controller::Memory => &[],
    }
}
