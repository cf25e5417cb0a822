//! A made-up host: where each controller is, what has happened to its groups so far, who runs on it, what a sandbox asks for.
//!
//! What has happened went through the made-up kernel, which refused what a real one would: so what stands is what can stand.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kata_cgroup_hook::cgroup::demand::Demand;
use kata_cgroup_hook::cgroup::file::{CPUS, MAX, MEMS, PERIOD, QUOTA, SHARES, SUBTREE, TYPE, WEIGHT};
use kata_cgroup_hook::cgroup::mounts::Version;
use kata_cgroup_hook::cgroup::path::{Domain, SandboxPath, VCPUS};
use kata_cgroup_hook::cgroup::{Controller, Part};
use kata_cgroup_hook::oci::sandbox::{Role, Sandbox};
use kata_cgroup_hook::record::{Record, RecordedGroup, RecordedProcess};
use kata_cgroup_hook::vmm::kinds;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use nix::sys::stat::{major, minor, stat};
use oci_spec::runtime::LinuxCpu;

use crate::cast::Cast;
use crate::kernel::Kernel;
use crate::tree::Tree;

/// The sandbox's id.
pub const ID: &str = "sb";

#[derive(Arbitrary, Debug)]
pub struct Host {
    cpu: Where,
    cpuacct: Where,
    cpuset: Where,
    memory: Where,
    /// Only a container's groups are mounted.
    is_in_container: bool,
    is_in_pod: bool,
    cgroups_path: CgroupsPath,
    is_workload: bool,
    pub cast: Cast,
    asked: Vec<Asked>,
    past: Vec<Past>,
}

/// Where a controller is; those with the same number are mounted together.
#[derive(Arbitrary, Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    V1(u8),
    V2,
    Nowhere,
}

#[derive(Arbitrary, Debug)]
enum CgroupsPath {
    Kubepods,
    Slice,
    Top,
    None,
    Climbing,
    InKata,
}

/// What a container asks for.
#[derive(Arbitrary, Debug)]
struct Asked {
    quota: Option<u16>,
    period: Option<u8>,
    shares: Option<u16>,
    cpus: Option<u8>,
    mems: Option<u8>,
}

/// What somebody has done.
#[derive(Arbitrary, Debug)]
enum Past {
    /// Made a group, with those above it; we, if it is ours, and then the record knows it.
    Made {
        place: Place,
        is_ours: bool,
        is_left_empty: bool,
    },
    Wrote {
        place: Place,
        value: Value,
    },
    Moved {
        who: u8,
        is_whole: bool,
        place: Place,
    },
    /// Took a process out of a container's groups, if only those are mounted.
    TookOut {
        who: u8,
        tree: u8,
    },
}

#[derive(Arbitrary, Debug)]
struct Place {
    tree: u8,
    group: Landmark,
}

/// A group that means something to the sandbox.
#[derive(Arbitrary, Debug)]
enum Landmark {
    Top,
    /// A group that cgroupsPath lies in, from the top down.
    Pod(u8),
    /// `<dir>/kata_<base>`, and within it.
    Own,
    OwnVcpus,
    /// `<dir>/<base>`.
    Unprefixed,
    /// What stands for those below /kata.
    Mirror(u8),
    Domain,
    DomainVcpus,
    /// Somebody else's.
    Aside,
}

#[derive(Arbitrary, Debug)]
enum Value {
    Shares(u16),
    Quota(u16),
    NoQuota,
    Period(u8),
    Cpus(u8),
    Mems(u8),
    Weight(u16),
    Max(u16, u8),
    PassOn(u8),
    Threaded,
}

/// A host in a directory, and a sandbox on it that is to be placed.
pub struct Laid {
    pub kernel: Kernel,
    pub path: SandboxPath,
    pub domain: Domain,
    pub demand: Demand,
    pub record: Record,
    /// The groups of each tree that the record knows to be ours.
    pub ours: BTreeSet<(usize, PathBuf)>,
}

fn list(number: u8) -> &'static str {
    ["0-1", "0-3", "2", "2-5", "0-7", "1,3", "7", "6-9", "9", ""][usize::from(number) % 10]
}

fn nodes(number: u8) -> &'static str {
    ["0", "1", "0-1", ""][usize::from(number) % 4]
}

fn period(number: u8) -> u64 {
    [100_000, 50_000, 1000, 1_000_000, 33_333][usize::from(number) % 5]
}

/// From the least that the kernel takes to some ten CPUs.
fn quota(number: u16) -> u64 {
    1000 + u64::from(number) * 17
}

impl Host {
    /// Whether nothing has happened yet that could be in the way of placing.
    pub fn is_fresh(&self) -> bool {
        let is_impossible = |asked: &Asked| asked.cpus.is_some_and(|cpus| list(cpus) == "9");
        self.past.is_empty() && !self.is_in_container && !self.asked().iter().any(is_impossible)
    }

    fn asked(&self) -> &[Asked] {
        &self.asked[..self.asked.len().min(4)]
    }

    /// Lets everything happen and lays it into a directory: `cgroup`, `proc`, `run` and `bin` in it.
    pub fn lay(&self, at: &Path) -> Laid {
        let path = self.path();
        let mut kernel = Kernel::new(self.trees(at));
        self.cast.enter(&mut kernel);
        let mut ours = BTreeSet::new();
        if !kernel.trees.is_empty() {
            // What the kernel refuses did not happen.
            for past in self.past.iter().take(16) {
                let _ = past.happen(&mut kernel, &path, &mut ours);
            }
        }
        for dir in ["proc/self", "run/sb"] {
            std::fs::create_dir_all(at.join(dir)).expect("a directory");
        }
        self.cast.lay(at, &at.join("run/sb"));
        kernel.lay();
        lay_groups_of_threads(&kernel, at);
        std::fs::write(at.join("proc/self/mountinfo"), mount_table(&kernel)).expect("a file");
        let domain = if self.is_in_pod { Domain::Pod } else { Domain::Kata };
        let asked: Vec<LinuxCpu> = self.asked().iter().map(Asked::cpu).collect();
        let demand = Demand::of(&asked).expect("what can be summed");
        let record = self.record(&kernel, &path, &ours);
        Laid { kernel, path, domain, demand, record, ours }
    }

    fn path(&self) -> SandboxPath {
        let text = match self.cgroups_path {
            CgroupsPath::Kubepods => "/kubepods/pod7/sb",
            CgroupsPath::Slice => "kubepods-pod7.slice:crio:sb",
            CgroupsPath::Top => "/sb",
            CgroupsPath::None => "",
            CgroupsPath::Climbing => "../../a/../../sb",
            CgroupsPath::InKata => "/kata/pod7/sb",
        };
        let role = if self.is_workload { Role::Workload } else { Role::Single };
        SandboxPath::derive(text, &Sandbox { id: ID.to_owned(), role }).expect("a path that can be")
    }

    fn trees(&self, at: &Path) -> Vec<Tree> {
        let wheres = [self.cpu, self.cpuacct, self.cpuset, self.memory];
        let mut trees = Vec::new();
        let kinds = (0..4).map(|number| (Version::V1, Where::V1(number))).chain([(Version::V2, Where::V2)]);
        for (number, (version, place)) in kinds.enumerate() {
            let is_here = |(controller, found): &(Controller, Where)| match (found, place) {
                (Where::V1(found), Where::V1(number)) => found % 4 == number,
                // v2 has none.
                (Where::V2, Where::V2) => *controller != Controller::Cpuacct,
                _ => false,
            };
            let found = Controller::ALL.into_iter().zip(wheres).filter(is_here);
            let controllers: Vec<Controller> = found.map(|(controller, _)| controller).collect();
            if !controllers.is_empty() {
                let root = if self.is_in_container { "/docker/c" } else { "/" };
                trees.push(Tree::new(version, controllers, at.join(format!("cgroup/{number}")), root));
            }
        }
        trees
    }

    fn record(&self, kernel: &Kernel, path: &SandboxPath, ours: &BTreeSet<(usize, PathBuf)>) -> Record {
        let process = |(pid, start, role): (i32, u64, kinds::Role)| RecordedProcess {
            pid,
            start,
            role: if role == kinds::Role::Vmm { "vmm" } else { "helper" }.to_owned(),
            ..RecordedProcess::default()
        };
        Record {
            path: path.as_text(),
            groups: ours.iter().map(|(n, path)| recorded(&kernel.trees[*n].mount.join(path))).collect(),
            processes: self.cast.recorded().into_iter().map(process).collect(),
            ..Record::new(ID)
        }
    }
}

/// A group that stands, as the record has it.
pub fn recorded(path: &Path) -> RecordedGroup {
    let inode = std::fs::metadata(path).expect("a group that stands").ino();
    RecordedGroup { path: path.to_path_buf(), inode, ..RecordedGroup::default() }
}

/// Writes /proc/PID/task/TID/cgroup of every thread.
pub fn lay_groups_of_threads(kernel: &Kernel, at: &Path) {
    for (tid, thread) in &kernel.threads {
        let file = at.join(format!("proc/{}/task/{tid}/cgroup", thread.process));
        std::fs::write(file, kernel.membership(*tid)).expect("a file");
    }
}

/// /proc/self/mountinfo.
fn mount_table(kernel: &Kernel) -> String {
    let line = |tree: &Tree| {
        let device = stat(&tree.mount).expect("a directory").st_dev;
        let names: Vec<&str> = tree.controllers.iter().map(|one| one.name()).collect();
        let kind = match tree.version {
            Version::V1 => format!("cgroup cgroup rw,{}", names.join(",")),
            Version::V2 => "cgroup2 cgroup2 rw".to_owned(),
        };
        let (root, mount) = (tree.root.display(), tree.mount.display());
        format!("31 23 {}:{} {root} {mount} rw - {kind}\n", major(device), minor(device))
    };
    kernel.trees.iter().map(line).collect()
}

impl Asked {
    fn cpu(&self) -> LinuxCpu {
        let mut cpu = LinuxCpu::default();
        cpu.set_quota(self.quota.map(|number| i64::try_from(quota(number)).expect("a small number")));
        cpu.set_period(self.period.map(period));
        cpu.set_shares(self.shares.map(u64::from));
        cpu.set_cpus(self.cpus.map(|number| list(number).to_owned()));
        cpu.set_mems(self.mems.map(|number| nodes(number).to_owned()));
        cpu
    }
}

impl Past {
    fn happen(
        &self,
        kernel: &mut Kernel,
        path: &SandboxPath,
        ours: &mut BTreeSet<(usize, PathBuf)>,
    ) -> Result<(), nix::errno::Errno> {
        match self {
            Self::Made { place, is_ours, is_left_empty } => {
                let (n, group) = place.find(kernel, path);
                let mut chain: Vec<&Path> = group.ancestors().collect();
                chain.pop();
                for group in chain.into_iter().rev().filter(|group| !kernel.trees[n].stands(group)).collect::<Vec<_>>() {
                    kernel.make(n, group)?;
                    if *is_ours {
                        ours.insert((n, group.to_path_buf()));
                    }
                    if !is_left_empty {
                        kernel.fill(n, group);
                    }
                }
                Ok(())
            }
            Self::Wrote { place, value } => {
                let (n, group) = place.find(kernel, path);
                let (file, value) = value.of(kernel.trees[n].version);
                kernel.write(n, &group, file, &value)
            }
            Self::Moved { who, is_whole, place } => {
                let (n, group) = place.find(kernel, path);
                match nth_thread(kernel, *who) {
                    Some((_, process)) if *is_whole => kernel.move_process(n, process, &group),
                    Some((tid, _)) => kernel.move_thread(n, tid, &group),
                    None => Ok(()),
                }
            }
            Self::TookOut { who, tree } => {
                let n = usize::from(*tree) % kernel.trees.len();
                let found = nth_thread(kernel, *who).filter(|_| kernel.trees[n].root != Path::new("/"));
                found.into_iter().for_each(|(_, process)| kernel.take_out(n, process));
                Ok(())
            }
        }
    }
}

/// A thread and its process.
fn nth_thread(kernel: &Kernel, number: u8) -> Option<(i32, i32)> {
    kernel.threads.iter().nth(usize::from(number)).map(|(tid, thread)| (*tid, thread.process))
}

impl Place {
    fn find(&self, kernel: &Kernel, path: &SandboxPath) -> (usize, PathBuf) {
        let down_to = |path: &Path, number: u8| path.components().take(usize::from(number) + 1).collect();
        let (own, domain) = (path.v1(Part::Constrained), path.v1(Part::Unconstrained));
        let group = match self.group {
            Landmark::Top => PathBuf::new(),
            Landmark::Pod(number) => down_to(path.pod(), number),
            Landmark::Own => own,
            Landmark::OwnVcpus => own.join(VCPUS),
            Landmark::Unprefixed => path.unprefixed(),
            Landmark::Mirror(number) => down_to(domain.parent().expect("/kata at least"), number),
            Landmark::Domain => domain,
            Landmark::DomainVcpus => domain.join(VCPUS),
            Landmark::Aside => "system.slice/containerd.service".into(),
        };
        (usize::from(self.tree) % kernel.trees.len(), group)
    }
}

impl Value {
    fn of(&self, version: Version) -> (&'static str, String) {
        match self {
            Self::Shares(shares) => (SHARES, shares.to_string()),
            Self::Quota(number) => (QUOTA, quota(*number).to_string()),
            Self::NoQuota if version == Version::V1 => (QUOTA, "-1".to_owned()),
            Self::NoQuota => (MAX, "max 100000".to_owned()),
            Self::Period(number) => (PERIOD, period(*number).to_string()),
            Self::Cpus(number) => (CPUS, list(*number).to_owned()),
            Self::Mems(number) => (MEMS, nodes(*number).to_owned()),
            Self::Weight(weight) => (WEIGHT, weight.to_string()),
            Self::Max(number, period_number) => (MAX, format!("{} {}", quota(*number), period(*period_number))),
            Self::PassOn(which) => (
                SUBTREE,
                ["+cpu", "+cpuset", "+memory", "+cpu +cpuset", "+cpu +cpuset +memory"][usize::from(*which) % 5].to_owned(),
            ),
            Self::Threaded => (TYPE, "threaded".to_owned()),
        }
    }
}
