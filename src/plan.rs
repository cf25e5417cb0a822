//! What is to be done, as a value: ordered steps that `--dry-run` prints, the tests compare and [`crate::apply`] does.
//!
//! Nothing here reads or writes the host. The order is the kernel's: groups top down, values before any thread is in them (a
//! v1 cpuset takes none while it is empty, and no thread may ever be moved where its limit is not set yet), then all moves back
//! to back, processes before threads, since a process written to a group takes every thread of it along.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::cgroup::Part;
use crate::cgroup::demand::Demand;
use crate::cgroup::group::GroupPath;
use crate::cgroup::leftover::Leftover;
use crate::cgroup::site::{Level, Site};
use crate::cgroup::v1::{self, Assignment, Settings};
use crate::error::Error;
use crate::vmm::kinds::Role;
use crate::vmm::{Member, Thread, Vm};

/// One change of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make a group.
    Create(GroupPath),
    /// Write a value into one of its files.
    Set { group: GroupPath, file: &'static str, value: String },
    /// Move a process with all its threads.
    MoveProcess { pid: i32, start: u64, to: GroupPath, from: Option<GroupPath> },
    /// Move one thread. `start` is its process's start time, `thread_start` its own.
    MoveThread { pid: i32, tid: i32, start: u64, thread_start: u64, to: GroupPath, from: Option<GroupPath> },
    /// Move whatever is in a group to another: whole processes, or the threads that are in it.
    Drain { group: GroupPath, target: GroupPath, whole: bool },
    /// Remove a group; what enters it meanwhile goes to `drain` if that is given. One above others may stay if it is not empty.
    Remove { group: GroupPath, drain: Option<(GroupPath, bool)> },
}

/// The steps, and what there is to say about them.
#[derive(Debug, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// What acts on the vCPUs once the steps are done.
    pub limit: Option<(u64, u64)>,
    pub cpus: Option<String>,
    pub notes: Vec<String>,
}

impl Plan {
    /// Whether it would write once more what `error` says was refused.
    pub fn repeats(&self, error: &Error) -> bool {
        self.steps.iter().any(|step| match step {
            Step::Set { group, file, value } => error.is_refusal_of(&group.absolute().join(file), value),
            _ => false,
        })
    }
}

/// Plans everything that is missing for `vm` to be in the groups of `sites` under `demand`.
pub fn place(vm: &Vm, sites: &[Site], demand: &Demand) -> Result<Plan, Error> {
    let Settings { assignments, limit, cpus, notes } = v1::settings(sites, demand)?;
    let creates = sites.iter().flat_map(|site| &site.levels).filter(|level| level.standing.is_none());
    let mut steps: Vec<Step> = creates.map(|level| Step::Create(level.path.clone())).collect();
    steps.extend(assignments.into_iter().map(|(group, file, value)| Step::Set { group, file, value }));
    let processes = process_moves(vm, sites);
    let vcpus = vcpu_moves(vm, sites, &processes);
    steps.extend(processes);
    steps.extend(vcpus);
    steps.extend(stray_moves(vm, sites));
    Ok(Plan { steps, limit, cpus, notes })
}

/// Whole processes into the unconstrained groups, each that has a thread elsewhere.
fn process_moves(vm: &Vm, sites: &[Site]) -> Vec<Step> {
    let mut moves = Vec::new();
    for site in sites.iter().filter(|site| site.part == Part::Unconstrained) {
        // In a hierarchy that holds both parts, a vCPU thread's right place is the other group.
        let both = sites.iter().find(|other| other.part == Part::Constrained && other.group.hierarchy == site.group.hierarchy);
        for member in movable(vm) {
            let is_right = |thread: &Thread| {
                let place = site.place_of(thread);
                place.as_ref() == Some(&site.group)
                    || (vm.is_vcpu(thread.tid) && place.as_ref() == both.map(|both| &both.group))
            };
            if !member.threads.iter().all(is_right) {
                let from = member.leader().and_then(|thread| site.place_of(thread));
                moves.push(Step::MoveProcess { pid: member.process.pid, start: member.start, to: site.group.clone(), from });
            }
        }
    }
    moves
}

/// The processes that may be moved: never the container runtime's shim.
fn movable(vm: &Vm) -> impl Iterator<Item = &Member> {
    vm.processes.iter().skip(usize::from(vm.is_shim))
}

/// vCPU threads into the constrained groups, each that is not there or that a move of its process takes away.
fn vcpu_moves(vm: &Vm, sites: &[Site], processes: &[Step]) -> Vec<Step> {
    let mut moves = Vec::new();
    let Some(vmm) = vm.vmm() else { return moves };
    for site in sites.iter().filter(|site| site.part == Part::Constrained) {
        let takes_along = |step: &Step| match step {
            Step::MoveProcess { pid, to, .. } => *pid == vmm.process.pid && to.hierarchy == site.group.hierarchy,
            _ => false,
        };
        let is_taken_away = processes.iter().any(takes_along);
        for vcpu in &vm.vcpus.threads {
            let Some(thread) = vmm.threads.iter().find(|thread| thread.tid == vcpu.tid) else {
                continue;
            };
            let from = site.place_of(thread);
            if is_taken_away || from.as_ref() != Some(&site.group) {
                moves.push(move_thread(vmm, thread, &site.group, from));
            }
        }
    }
    moves
}

/// Threads that are no vCPUs out of the constrained groups: kernel workers are born beside the vCPU thread that made them.
///
/// As long as some vCPUs could not be told this time, a thread of the VMM in there may be one that an earlier run could: it stays.
/// They go where their process's first thread is, or, where that is in there too, to the group above.
fn stray_moves(vm: &Vm, sites: &[Site]) -> Vec<Step> {
    let mut moves = Vec::new();
    for site in sites.iter().filter(|site| site.part == Part::Constrained) {
        for member in &vm.processes {
            let is_stray = |thread: &&Thread| {
                let is_told = thread.is_user_worker || member.role != Role::Vmm || vm.vcpus.are_all_known();
                is_told && !vm.is_vcpu(thread.tid) && site.place_of(thread).as_ref() == Some(&site.group)
            };
            let strays = member.threads.iter().filter(is_stray);
            let leader = member.leader().and_then(|leader| site.place_of(leader)).filter(|place| *place != site.group);
            let Some(target) = leader.or_else(|| above_ours(site)) else {
                continue;
            };
            // Undoing must not bring them back into a group that is to go: they stay where they are then.
            moves.extend(strays.map(|thread| move_thread(member, thread, &target, Some(target.clone()))));
        }
    }
    moves
}

fn move_thread(member: &Member, thread: &Thread, to: &GroupPath, from: Option<GroupPath>) -> Step {
    let (pid, tid) = (member.process.pid, thread.tid);
    Step::MoveThread { pid, tid, start: member.start, thread_start: thread.start, to: to.clone(), from }
}

/// The nearest group above a site's that is not ours.
fn above_ours(site: &Site) -> Option<GroupPath> {
    let is_foreign = |level: &&Level| level.standing.as_ref().is_some_and(|standing| !standing.is_ours);
    site.above().find(is_foreign).map(|level| level.path.clone())
}

/// Plans the removal of what is left of a sandbox: adopted groups get their own values back, ours are emptied and removed.
pub fn release(leftovers: &[Leftover], restore: Vec<Assignment>) -> Plan {
    let mut steps: Vec<Step> = restore.into_iter().map(|(group, file, value)| Step::Set { group, file, value }).collect();
    let groups = || leftovers.iter().filter_map(|left| left.group.as_ref());
    let going_home = |(pid, start, home): &(i32, u64, GroupPath)| Step::MoveProcess {
        pid: *pid,
        start: *start,
        to: home.clone(),
        from: None,
    };
    steps.extend(groups().flat_map(|group| &group.homes).map(going_home));
    for group in groups().filter(|group| group.is_occupied) {
        steps.push(Step::Drain { group: group.path.clone(), target: group.target.clone(), whole: group.whole });
    }
    for left in leftovers {
        let own =
            left.group.iter().map(|own| Step::Remove { group: own.path.clone(), drain: Some((own.target.clone(), own.whole)) });
        let above = left.prune.iter().map(|group| Step::Remove { group: group.clone(), drain: None });
        for step in own.chain(above) {
            if !steps.contains(&step) {
                steps.push(step);
            }
        }
    }
    Plan { steps, ..Plan::default() }
}

impl fmt::Display for Step {
    /// As documented: one space between fields, `\n` and `\x20` escapes inside them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = |group: &GroupPath| escape(&group.absolute());
        match self {
            Self::Create(group) => write!(f, "create {}", path(group)),
            Self::Set { group, file, value } => {
                write!(f, "set {} {}", escape(&group.absolute().join(file)), escape(Path::new(value)))
            }
            Self::MoveProcess { pid, start, to, .. } => write!(f, "move-process {pid} {start} {}", path(to)),
            Self::MoveThread { pid, tid, start, to, .. } => write!(f, "move-thread {pid}/{tid} {start} {}", path(to)),
            Self::Drain { group, target, .. } => write!(f, "drain {} {}", path(group), path(target)),
            Self::Remove { group, .. } => write!(f, "remove {}", path(group)),
        }
    }
}

/// A field without blanks: `\n` for a line end, `\xNN` for what is neither a printable character nor plain.
fn escape(field: &Path) -> String {
    let mut text = String::new();
    for byte in field.as_os_str().as_bytes() {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'!'..=b'[' | b']'..=b'~' => text.push(char::from(*byte)),
            byte => text.extend(format!("\\x{byte:02x}").chars()),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Controller;
    use crate::cgroup::leftover::Occupied;
    use crate::cgroup::site::Standing;
    use crate::proc::Process;
    use crate::testing;
    use crate::vmm::vcpu::{Proof, Vcpu, Vcpus};

    /// A site at `rel` of which the first `standing` levels stand, the last `ours` of all being ours.
    fn site(controllers: &[Controller], part: Part, rel: &str, standing: usize, ours: usize) -> Site {
        let group = GroupPath::new(&testing::hierarchy(controllers), rel);
        let paths: Vec<GroupPath> = std::iter::once(GroupPath::new(&group.hierarchy, "")).chain(group.chain()).collect();
        let count = paths.len();
        let level = |(index, path): (usize, GroupPath)| {
            let is_ours = index + ours >= count;
            Level { path, standing: (index < standing).then(|| Standing { is_ours, ..Standing::default() }) }
        };
        let levels = paths.into_iter().enumerate().map(level).collect();
        Site { part, group, levels, is_adopted: false }
    }

    /// A VMM of a first thread and a vCPU, each in the groups that are given, and a helper in those of the first.
    fn vm(first: &str, vcpu: &str) -> Vm {
        let member = |pid, role, threads| Member { process: Process::nobody(pid), start: 400, role, threads };
        let threads = vec![testing::thread(100, first), testing::thread(101, vcpu)];
        let helper = member(200, Role::Helper, vec![testing::thread(200, first)]);
        Vm {
            kind: "qemu".into(),
            processes: vec![member(100, Role::Vmm, threads), helper],
            vcpus: Vcpus {
                threads: vec![Vcpu { tid: 101, start: 500, index: Some(0), proof: Proof::Name }],
                expected: Some(1),
                parked: 0,
            },
            is_shim: false,
        }
    }

    fn lines(plan: &Plan) -> Vec<String> {
        plan.steps.iter().map(ToString::to_string).collect()
    }

    fn demand() -> Demand {
        Demand::of([]).unwrap()
    }

    const MEMORY: &[Controller] = &[Controller::Memory];
    const CPUACCT: &[Controller] = &[Controller::Cpuacct];

    fn sites(standing: usize, ours: usize) -> Vec<Site> {
        vec![
            site(MEMORY, Part::Unconstrained, "kata/kata_x", standing, ours),
            site(CPUACCT, Part::Constrained, "pod/kata_x", standing, ours),
        ]
    }

    #[test]
    fn groups_come_first_then_processes_then_threads() {
        let plan = place(&vm("1:memory:/;2:cpuacct:/", "1:memory:/;2:cpuacct:/"), &sites(1, 0), &demand()).unwrap();
        let expected = [
            "create /c/memory/kata",
            "create /c/memory/kata/kata_x",
            "create /c/cpuacct/pod",
            "create /c/cpuacct/pod/kata_x",
            "move-process 100 400 /c/memory/kata/kata_x",
            "move-process 200 400 /c/memory/kata/kata_x",
            "move-thread 100/101 400 /c/cpuacct/pod/kata_x",
        ];
        assert_eq!(lines(&plan), expected);
    }

    #[test]
    fn what_is_in_its_place_is_not_moved() {
        let vm = vm("1:memory:/kata/kata_x;2:cpuacct:/", "1:memory:/kata/kata_x;2:cpuacct:/pod/kata_x");
        assert_eq!(lines(&place(&vm, &sites(3, 1), &demand()).unwrap()), Vec::<String>::new());
    }

    #[test]
    fn a_process_with_one_thread_elsewhere_is_moved_whole() {
        let vm = vm("1:memory:/kata/kata_x;2:cpuacct:/", "1:memory:/;2:cpuacct:/pod/kata_x");
        let plan = place(&vm, &sites(3, 1), &demand()).unwrap();
        assert_eq!(lines(&plan), ["move-process 100 400 /c/memory/kata/kata_x"]);
    }

    #[test]
    fn a_process_that_is_the_shim_itself_is_never_moved_but_its_vcpus_are() {
        let mut vm = vm("1:memory:/;2:cpuacct:/", "1:memory:/;2:cpuacct:/");
        vm.is_shim = true;
        vm.processes.truncate(1);
        assert_eq!(lines(&place(&vm, &sites(3, 1), &demand()).unwrap()), ["move-thread 100/101 400 /c/cpuacct/pod/kata_x"]);
    }

    #[test]
    fn a_thread_that_is_no_vcpu_leaves_the_constrained_group_for_its_leaders() {
        let mut vm = vm("1:memory:/kata/kata_x;2:cpuacct:/pod", "1:memory:/kata/kata_x;2:cpuacct:/pod/kata_x");
        let stray = testing::thread(102, "1:memory:/kata/kata_x;2:cpuacct:/pod/kata_x");
        vm.processes[0].threads.push(stray);
        let plan = place(&vm, &sites(3, 1), &demand()).unwrap();
        assert_eq!(lines(&plan), ["move-thread 100/102 400 /c/cpuacct/pod"]);
        // Undone, it does not come back.
        let Step::MoveThread { to, from, .. } = &plan.steps[0] else { panic!("{plan:?}") };
        assert_eq!(from.as_ref(), Some(to));
    }

    #[test]
    fn while_vcpus_are_missing_a_thread_in_the_constrained_group_may_be_one_and_stays() {
        let mut vm = vm("1:memory:/kata/kata_x;2:cpuacct:/pod", "1:memory:/kata/kata_x;2:cpuacct:/pod/kata_x");
        let stray = testing::thread(102, "1:memory:/kata/kata_x;2:cpuacct:/pod/kata_x");
        let worker = Thread { is_user_worker: true, tid: 103, ..stray.clone() };
        vm.processes[0].threads.extend([stray, worker]);
        for expected in [Some(2), None] {
            vm.vcpus.expected = expected;
            assert_eq!(lines(&place(&vm, &sites(3, 1), &demand()).unwrap()), ["move-thread 100/103 400 /c/cpuacct/pod"]);
        }
    }

    #[test]
    fn where_the_leader_is_in_there_too_they_leave_for_the_nearest_group_that_is_not_ours() {
        let everything = "1:memory:/kata/kata_x;2:cpuacct:/pod/kata_x";
        let vm = vm(everything, everything);
        let plan = place(&vm, &sites(3, 2), &demand()).unwrap();
        assert_eq!(lines(&plan), ["move-thread 100/100 400 /c/cpuacct", "move-thread 200/200 400 /c/cpuacct"]);
        let plan = place(&vm, &sites(3, 1), &demand()).unwrap();
        assert_eq!(lines(&plan), ["move-thread 100/100 400 /c/cpuacct/pod", "move-thread 200/200 400 /c/cpuacct/pod"]);
    }

    #[test]
    fn where_both_parts_share_a_hierarchy_a_vcpu_is_right_in_the_constrained_one() {
        let both = &[Controller::Cpuacct, Controller::Memory];
        let sites = [site(both, Part::Unconstrained, "kata/kata_x", 3, 1), site(both, Part::Constrained, "pod/kata_x", 3, 1)];
        let placed = vm("1:cpuacct,memory:/kata/kata_x", "1:cpuacct,memory:/pod/kata_x");
        assert_eq!(lines(&place(&placed, &sites, &demand()).unwrap()), Vec::<String>::new());
        let fresh = vm("1:cpuacct,memory:/", "1:cpuacct,memory:/");
        let moves = lines(&place(&fresh, &sites, &demand()).unwrap());
        assert!(moves[0].starts_with("move-process 100") && moves[2].starts_with("move-thread 100/101"), "{moves:?}");
        // A process that is moved takes its vCPU along, which is brought back in the same burst.
        let half = vm("1:cpuacct,memory:/", "1:cpuacct,memory:/pod/kata_x");
        let moves = lines(&place(&half, &sites, &demand()).unwrap());
        assert!(moves[0].starts_with("move-process 100") && moves[2].starts_with("move-thread 100/101"), "{moves:?}");
    }

    #[test]
    fn where_both_parts_share_a_hierarchy_a_helper_that_is_moved_takes_no_vcpu_along() {
        let both = &[Controller::Cpuacct, Controller::Memory];
        let sites = [site(both, Part::Unconstrained, "kata/kata_x", 3, 1), site(both, Part::Constrained, "pod/kata_x", 3, 1)];
        let mut vm = vm("1:cpuacct,memory:/kata/kata_x", "1:cpuacct,memory:/pod/kata_x");
        vm.processes[1].threads = vec![testing::thread(200, "1:cpuacct,memory:/")];
        let moves = lines(&place(&vm, &sites, &demand()).unwrap());
        assert_eq!(moves, ["move-process 200 400 /c/cpuacct,memory/kata/kata_x"]);
    }

    #[test]
    fn a_process_that_is_moved_elsewhere_takes_no_vcpu_out_of_another_hierarchy() {
        let vm = vm("1:memory:/;2:cpuacct:/", "1:memory:/;2:cpuacct:/pod/kata_x");
        let moves = lines(&place(&vm, &sites(3, 1), &demand()).unwrap());
        assert!(moves.iter().all(|line| line.starts_with("move-process")), "{moves:?}");
    }

    #[test]
    fn a_plan_repeats_a_refused_write_only_if_file_and_value_are_the_same() {
        let group = GroupPath::new(&testing::hierarchy(CPUACCT), "a");
        let set = Step::Set { group: group.clone(), file: "cpu.shares", value: "5".into() };
        let plan = Plan { steps: vec![Step::Create(group), set], ..Plan::default() };
        let refused = |file: &str, value| Error::write(Path::new("/c/cpuacct/a").join(file), value, nix::errno::Errno::EINVAL);
        assert!(plan.repeats(&refused("cpu.shares", "5")));
        assert!(!plan.repeats(&refused("cpu.shares", "6")));
        assert!(!plan.repeats(&refused("cpu.other", "5")));
        assert!(!plan.repeats(&Error::State("x".into())));
    }

    #[test]
    fn a_release_restores_then_drains_then_removes_bottom_up_each_once() {
        let group = |rel: &str| GroupPath::new(&testing::hierarchy(CPUACCT), rel);
        let left = |rel: &str, is_occupied| Leftover {
            group: Some(Occupied { path: group(rel), is_occupied, target: group(""), whole: false, homes: vec![] }),
            prune: vec![group("pod")],
        };
        let leftovers = [left("pod/a", true), left("pod/b", false), Leftover { group: None, prune: vec![group("other")] }];
        let plan = release(&leftovers, vec![(group("adopted"), "cpu.shares", "5".into())]);
        let expected = [
            "set /c/cpuacct/adopted/cpu.shares 5",
            "drain /c/cpuacct/pod/a /c/cpuacct",
            "remove /c/cpuacct/pod/a",
            "remove /c/cpuacct/pod",
            "remove /c/cpuacct/pod/b",
            "remove /c/cpuacct/other",
        ];
        assert_eq!(lines(&plan), expected);
    }

    #[test]
    fn fields_have_no_blanks_and_can_be_told_apart() {
        let group = GroupPath::new(&testing::hierarchy(CPUACCT), "a b\nc\\d\u{e4}~!");
        assert_eq!(Step::Create(group).to_string(), r"create /c/cpuacct/a\x20b\nc\x5cd\xc3\xa4~!");
    }
}
