//! Control groups: where each controller lives, which groups are a sandbox's, what they are to hold.
//!
//! On cgroup v1 a thread is in one group of every hierarchy, each by itself, so the CPU controllers can hold the vCPU threads
//! alone while memory holds the whole processes. Where a controller lives is asked per controller: a host may mix v1 and v2.

pub mod cpulist;
pub mod demand;
pub mod file;
pub mod group;
pub mod leftover;
pub mod mounts;
pub mod path;
pub mod site;
pub mod v1;

/// The controllers that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    Cpu,
    Cpuacct,
    Cpuset,
    Memory,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Cpuacct, Self::Cpuset, Self::Memory];

    /// The kernel's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
        }
    }

    /// What a group of this controller is for.
    pub fn part(self) -> Part {
        if self == Self::Memory { Part::Unconstrained } else { Part::Constrained }
    }
}

/// The two parts of a sandbox's placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// vCPU threads, and only they, under the pod's CPU limits.
    Constrained,
    /// The VMM's and its helpers' processes, under no limit of ours.
    Unconstrained,
}
