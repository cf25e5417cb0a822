//! What is shown of the sandboxes on this host: `status`.
//!
//! A sandbox is read once, into the value that `--json` prints; table and tree are other words for the same.

pub mod groups;
pub mod limit;
pub mod table;
pub mod tree;
pub mod verdict;
pub mod words;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cgroup::Part;
use crate::cgroup::site::Level;
use crate::vmm::vcpu::Proof;

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub struct Report {
    pub schema: u32,
    pub version: &'static str,
    /// "v1", "v2" or "none" for each controller.
    pub mode: BTreeMap<String, String>,
    /// In the order of their ids.
    pub sandboxes: Vec<Sandbox>,
}

/// A VM sandbox, or what is left of one.
#[derive(Debug, Serialize)]
pub struct Sandbox {
    pub id: String,
    pub verdict: Verdict,
    /// What is missing, in words; none of a sandbox that is placed.
    pub reasons: Vec<String>,
    /// What else there is to say, such as whose limit caps the containers'.
    pub notes: Vec<String>,
    /// Whether there is a record of it that is understood.
    pub recorded: bool,
    pub vmm: Option<Vmm>,
    pub vcpus: VcpuCount,
    pub limit: Limit,
    /// The containers that the record knows.
    pub containers: Vec<Container>,
    /// Its groups that stand, and those of others that its threads are in.
    pub groups: Vec<Group>,
}

/// How a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// A hook would find nothing to do for it.
    Placed,
    /// Something of it is where it should be, and something is not.
    Incomplete,
    /// Nothing of it is in a group of ours.
    Unplaced,
    /// Its VM is gone, and groups or a record of ours are left.
    Orphan,
}

impl Verdict {
    /// All of them, the best first.
    pub const ALL: [Self; 4] = [Self::Placed, Self::Incomplete, Self::Unplaced, Self::Orphan];

    /// As it is written everywhere.
    pub fn word(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Incomplete => "incomplete",
            Self::Unplaced => "unplaced",
            Self::Orphan => "orphan",
        }
    }
}

/// The VMM that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vmm {
    pub kind: String,
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub start: u64,
}

/// How many of its vCPU threads were found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VcpuCount {
    /// `None` where KVM does not know: TCG, or no VMM.
    pub expected: Option<usize>,
    pub found: usize,
    pub parked: usize,
    /// The weakest proof that was needed; none where none was found.
    pub proof: Option<Proof>,
}

/// What acts on its vCPU threads where they are now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// µs of CPU time in a period; none is without limit.
    pub quota_us: Option<u64>,
    pub period_us: u64,
    /// cgroup v1.
    pub shares: Option<u64>,
    /// cgroup v2.
    pub weight: Option<u64>,
    pub cpus: String,
    pub mems: String,
    pub source: Source,
}

/// Whose limit it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The sum of what the containers ask for.
    Containers,
    /// A group above, which allows less.
    Pod,
    /// Nobody's.
    None,
}

/// A container of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Container {
    pub bundle: String,
    pub id: String,
}

/// A group with what is in it.
#[derive(Debug, Clone, Serialize)]
pub struct Group {
    /// Constrained is where its vCPU threads belong; every other is not.
    pub role: Part,
    pub controllers: Vec<&'static str>,
    pub path: String,
    /// Made by us. Kata's own may be used as well.
    pub ours: bool,
    /// Of the constrained group with the CPU controller.
    pub throttled: Option<Throttled>,
    /// Of the sandbox's own group with the memory controller.
    pub memory_bytes: Option<u64>,
    /// In a group of somebody else's those of the sandbox only.
    pub threads: Vec<Thread>,
    #[serde(skip)]
    pub level: Level,
    /// One of the sandbox's own, whoever made it.
    #[serde(skip)]
    pub is_own: bool,
}

/// How often the vCPU threads have reached their limit since the group was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Throttled {
    /// In so many periods they had to wait …
    pub periods: u64,
    /// … of so many in which they ran.
    pub of_periods: u64,
    /// Time waited, of all CPUs together.
    pub usec: u64,
}

/// A thread in a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Thread {
    pub pid: i32,
    pub tid: i32,
    pub name: String,
    pub role: ThreadRole,
    /// The vCPU's number, where it is known.
    pub vcpu: Option<u32>,
}

/// What a thread is to the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ThreadRole {
    Vcpu,
    Vmm,
    Helper,
    /// Not the sandbox's.
    Other,
}

impl Sandbox {
    /// How often its vCPU threads had to wait, where they have a limit of their own.
    pub fn throttled(&self) -> Option<Throttled> {
        self.groups.iter().find_map(|group| group.throttled)
    }

    /// The memory of the VMM and its helpers, in bytes.
    pub fn memory(&self) -> Option<u64> {
        self.groups.iter().find_map(|group| group.memory_bytes)
    }

    /// How many threads of a process there are in all its groups.
    pub fn threads_of(&self, pid: i32) -> usize {
        let mut tids: Vec<i32> =
            self.groups.iter().flat_map(|group| &group.threads).filter(|one| one.pid == pid).map(|one| one.tid).collect();
        tids.sort_unstable();
        tids.dedup();
        tids.len()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::cgroup::Controller;
    use crate::cgroup::file::{CPUS, PERIOD, QUOTA, SHARES};
    use crate::cgroup::group::GroupPath;
    use crate::cgroup::site::Standing;
    use crate::testing::hierarchy;

    /// A sandbox without groups.
    pub(crate) fn sandbox(id: &str, verdict: Verdict) -> Sandbox {
        let reasons = if verdict == Verdict::Placed { vec![] } else { vec!["it lacks something".to_owned()] };
        Sandbox {
            id: id.to_owned(),
            verdict,
            reasons,
            notes: vec![],
            recorded: true,
            vmm: Some(Vmm { kind: "qemu".into(), pid: 1234, start: 5 }),
            vcpus: VcpuCount { expected: Some(2), found: 2, parked: 0, proof: Some(Proof::Debugfs) },
            limit: Limit {
                quota_us: Some(150_000),
                shares: Some(1536),
                cpus: "0-3".into(),
                mems: "0".into(),
                source: Source::Containers,
                ..Limit::default()
            },
            containers: vec![Container { bundle: "/run/b".into(), id: "c".into() }],
            groups: vec![],
        }
    }

    /// A group of one v1 hierarchy.
    pub(crate) fn group(controller: Controller, rel: &str, is_ours: bool, threads: &[Thread]) -> Group {
        let path = GroupPath::new(&hierarchy(&[controller]), rel);
        let values = [(QUOTA, "150000"), (PERIOD, "100000"), (SHARES, "1536"), (CPUS, "0-3")];
        let of_it = crate::cgroup::file::of(&path.hierarchy).collect::<Vec<_>>();
        let values = values.into_iter().filter(|(file, _)| of_it.contains(file)).map(|(file, value)| (file, value.to_owned()));
        let standing = Standing { is_ours, values: values.collect(), ..Standing::default() };
        let is_constrained = is_ours && controller.part() == Part::Constrained;
        let is_limited = is_constrained && controller == Controller::Cpu;
        Group {
            role: if is_constrained { Part::Constrained } else { Part::Unconstrained },
            controllers: vec![controller.name()],
            path: path.absolute().display().to_string(),
            ours: is_ours,
            throttled: is_limited.then_some(Throttled { periods: 81, of_periods: 100, usec: 1_250_000 }),
            memory_bytes: (is_ours && controller == Controller::Memory).then_some(37 << 20),
            threads: threads.to_vec(),
            level: Level { path, standing: Some(standing) },
            is_own: is_ours,
        }
    }

    pub(crate) fn thread(tid: i32, name: &str, role: ThreadRole) -> Thread {
        let vcpu = (role == ThreadRole::Vcpu).then_some(0);
        Thread { pid: 1234, tid, name: name.to_owned(), role, vcpu }
    }

    /// A QEMU of three threads, one of them a vCPU, placed on v1.
    pub(crate) fn placed(id: &str) -> Sandbox {
        let main = thread(1234, "qemu", ThreadRole::Vmm);
        let (worker, vcpu) = (thread(1235, "worker", ThreadRole::Vmm), thread(1236, "CPU 0/KVM", ThreadRole::Vcpu));
        let all = [main.clone(), worker.clone(), vcpu.clone()];
        let groups = vec![
            group(Controller::Memory, "kata/pod/kata_x", true, &all),
            group(Controller::Cpu, "pod/kata_x", true, std::slice::from_ref(&vcpu)),
            group(Controller::Cpuset, "pod/kata_x", true, &[vcpu]),
            group(Controller::Cpu, "", false, &[main.clone(), worker.clone()]),
            group(Controller::Cpuset, "", false, &[main, worker]),
        ];
        Sandbox { groups, ..sandbox(id, Verdict::Placed) }
    }

    #[test]
    fn json_has_the_keys_of_the_contract_in_its_words() {
        let report = Report { schema: 1, version: "0", mode: BTreeMap::new(), sandboxes: vec![placed("x")] };
        let json = serde_json::to_value(&report).unwrap();
        let sandbox = &json["sandboxes"][0];
        assert_eq!(sandbox["vmm"], serde_json::json!({ "kind": "qemu", "pid": 1234, "start": 5 }));
        assert_eq!(sandbox["vcpus"], serde_json::json!({ "expected": 2, "found": 2, "parked": 0, "proof": "debugfs" }));
        let group = &sandbox["groups"][1];
        assert_eq!(
            (&group["role"], &group["controllers"][0], &group["ours"]),
            (&"constrained".into(), &"cpu".into(), &true.into())
        );
        assert_eq!(group["threads"][0]["role"], "vcpu");
        assert!(group.get("level").is_none() && group.get("is_own").is_none(), "{group}");
        let orphan = Sandbox { vmm: None, vcpus: VcpuCount::default(), ..super::testing::sandbox("y", Verdict::Orphan) };
        let json = serde_json::to_value(&orphan).unwrap();
        assert_eq!((&json["verdict"], &json["vmm"], &json["vcpus"]["proof"]), (&"orphan".into(), &().into(), &().into()));
    }
}
