//! Control groups: where each controller lives, which groups are a sandbox's, what they are to hold.
//!
//! On cgroup v1 a thread is in one group of every hierarchy, each by itself, so the CPU controllers can hold the vCPU threads
//! alone while memory holds the whole processes. v2 has one hierarchy, in which a thread can only be in its process's group or in
//! a threaded one below it: so the vCPU threads' group lies within the processes'. Where a controller lives is asked per
//! controller: a host may mix v1 and v2.

pub mod cpulist;
pub mod demand;
pub mod file;
pub mod group;
pub mod leftover;
pub mod mounts;
pub mod orphan;
pub mod path;
pub mod settings;
pub mod site;
pub mod v1;
pub mod v2;

use demand::Demand;
use mounts::{Mounts, Version};
use path::{Domain, SandboxPath};
use serde::Serialize;
use settings::{Limit, Settings};
use site::{Level, Site};

use crate::error::Error;
use crate::order;
use crate::record::Record;
use crate::vmm::Vm;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// vCPU threads, and only they, under the pod's CPU limits.
    Constrained,
    /// The VMM's and its helpers' processes, under no limit of ours.
    Unconstrained,
}

/// Reads what stands at the sandbox's place in every hierarchy: the processes' groups first.
pub fn survey(mounts: &Mounts, path: &SandboxPath, domain: Domain, vm: &Vm, record: &Record) -> Result<Vec<Site>, Error> {
    let mut sites = v1::sites::survey(mounts, path, vm, record)?;
    if let Some(hierarchy) = mounts.v2() {
        sites.extend(v2::sites::survey(hierarchy, path, domain, vm, record)?);
    }
    order::sort_by_key(&mut sites, |site| site.part == Part::Constrained);
    sites.iter_mut().for_each(Site::read_members);
    Ok(sites)
}

/// The limit that the nearest of the groups has which cgroupsPath lies in, in µs: kubelet's for the pod.
pub fn limit_of_pod(sites: &[Site], path: &SandboxPath) -> Option<Limit> {
    let is_limited = |site: &&Site| site.part == Part::Constrained && site.group.hierarchy.carries(Controller::Cpu);
    let site = sites.iter().find(is_limited)?;
    match site.group.hierarchy.version {
        Version::V1 => {
            let of_pod = site.levels.iter().rev().filter(|level| path.pod().starts_with(&level.path.rel));
            of_pod.into_iter().find_map(limit_of)
        }
        Version::V2 => site.pod.iter().rev().find_map(limit_of),
    }
}

/// The quota and period of a group that has a quota.
pub fn limit_of(level: &Level) -> Option<Limit> {
    match level.path.hierarchy.version {
        Version::V1 => v1::values::limit_of(level),
        Version::V2 => v2::values::limit_of(level),
    }
}

/// Decides the values of every group of `sites`.
pub fn settings(sites: &[Site], demand: &Demand) -> Result<Settings, Error> {
    let mut settings = Settings::default();
    let of_version = |version| sites.iter().filter(move |site| site.group.hierarchy.version == version);
    for site in of_version(Version::V1).filter(|site| site.part == Part::Constrained) {
        if site.group.hierarchy.carries(Controller::Cpuset) {
            v1::values::set_cpuset(site, demand, &mut settings)?;
        }
        if site.group.hierarchy.carries(Controller::Cpu) {
            v1::values::set_cpu(site, demand, &mut settings);
        }
    }
    // An unconstrained group in a hierarchy that carries cpuset as well takes no process while that is empty.
    let (anywhere, cpus) = (Demand::of([])?, settings.cpus.take());
    for site in of_version(Version::V1).filter(|site| site.part == Part::Unconstrained) {
        if site.group.hierarchy.carries(Controller::Cpuset) {
            v1::values::set_cpuset(site, &anywhere, &mut settings)?;
        }
    }
    settings.cpus = cpus;
    let vcpus = of_version(Version::V2).find(|site| site.part == Part::Constrained);
    if let Some(domain) = of_version(Version::V2).find(|site| site.part == Part::Unconstrained) {
        v2::values::set(domain, vcpus, demand, &mut settings)?;
    }
    Ok(settings)
}
