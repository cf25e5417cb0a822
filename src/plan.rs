//! What is to be done, as a value: ordered steps that `--dry-run` prints, the tests compare and [`crate::apply`] does.
//!
//! Nothing here writes to the host, and all that is read is where a thread is that the groups' own lists do not show. The order is the
//! kernel's: groups top down, values before any thread is in them (a v1 cpuset takes none while it is empty, and no thread may ever be
//! moved where its limit is not set yet), then all moves back to back, processes before their threads, since a process written to
//! a group takes every thread of it along.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::cgroup::demand::Demand;
use crate::cgroup::group::GroupPath;
use crate::cgroup::leftover::Leftover;
use crate::cgroup::settings::{Assignment, Settings};
use crate::cgroup::site::Site;
use crate::cgroup::{self, Part, file, v2};
use crate::deadline::Deadline;
use crate::error::Error;
use crate::order;
use crate::vmm::kinds::Role;
use crate::vmm::{Member, Thread, Vm};

/// One change of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make a group.
    Create(GroupPath),
    /// Write a value into one of its files.
    Set { group: GroupPath, file: &'static str, value: String },
    /// Move a process with all its threads; those that come along from `apart` have a way back of their own.
    MoveProcess { pid: i32, start: u64, to: GroupPath, from: Option<GroupPath>, apart: Vec<Apart> },
    /// Move one thread. `start` is its process's start time, `thread_start` its own.
    MoveThread { pid: i32, tid: i32, start: u64, thread_start: u64, to: GroupPath, from: Option<GroupPath> },
    /// Move whatever is in a group to another: whole processes, or the threads that are in it.
    Drain { group: GroupPath, target: GroupPath, whole: bool },
    /// Remove a group; what enters it meanwhile goes to `drain` if that is given. One above others may stay if it is not empty.
    Remove { group: GroupPath, drain: Option<(GroupPath, bool)> },
}

/// A thread that is in another group than its process's first one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apart {
    pub tid: i32,
    /// In clock ticks since boot.
    pub start: u64,
    pub from: GroupPath,
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
    /// Whether it puts the whole of `vm`'s VMM under the vCPUs' limit, for the others to leave it.
    pub fn brings_in(&self, vm: &Vm, sites: &[Site]) -> bool {
        let vmm = vm.vmm().map(|vmm| vmm.process.pid);
        let is_limited = |group: &GroupPath| sites.iter().any(|site| site.part == Part::Constrained && site.group == *group);
        self.steps.iter().any(|step| matches!(step, Step::MoveProcess { pid, to, .. } if Some(*pid) == vmm && is_limited(to)))
    }

    /// Whether all that it does is to set what /kata weighs, which every sandbox that comes and goes changes for all.
    pub fn only_weighs_kata(&self) -> bool {
        let is_weight =
            |step: &Step| matches!(step, Step::Set { group, file, .. } if v2::sites::is_weight_of_kata(group, file));
        !self.steps.is_empty() && self.steps.iter().all(is_weight)
    }

    /// Whether it would write once more what `error` says was refused. A thread that follows its process is another case than
    /// the same thread by itself.
    pub fn repeats(&self, error: &Error) -> bool {
        let is_moved_along =
            |moved: i32| self.steps.iter().any(|step| matches!(step, Step::MoveProcess { pid, .. } if *pid == moved));
        self.steps.iter().any(|step| match step {
            Step::Set { group, file, value } => error.is_refusal_of(&group.absolute().join(file), value),
            Step::MoveThread { pid, tid, to, .. } => {
                error.is_refusal_of(&to.absolute().join(to.threads_file()), &tid.to_string()) && !is_moved_along(*pid)
            }
            _ => false,
        })
    }
}

/// The same for a VM of which only the groups' own lists have told who is where: they say who is right, and where one is not, all are
/// asked where they are.
pub fn place_who_is_elsewhere(vm: &mut Vm, sites: &[Site], demand: &Demand, deadline: &Deadline) -> Result<Plan, Error> {
    let plan = place(vm, sites, demand);
    let is_known = match &plan {
        Ok(plan) => plan.steps.iter().all(|step| !step.is_move()),
        Err(error) => !matches!(error, Error::OutOfSight { .. }),
    };
    if is_known {
        return plan;
    }
    for member in &mut vm.processes {
        if v2::sites::are_together(member, sites) { member.follow_first() } else { member.read_groups(deadline)? }
    }
    place(vm, sites, demand)
}

/// Plans everything that is missing for `vm` to be in the groups of `sites` under `demand`.
pub fn place(vm: &Vm, sites: &[Site], demand: &Demand) -> Result<Plan, Error> {
    let Settings { assignments, limit, cpus, notes } = cgroup::settings(sites, demand)?;
    let mut steps: Vec<Step> = Vec::new();
    for level in sites.iter().flat_map(|site| &site.levels).filter(|level| level.standing.is_none()) {
        let create = Step::Create(level.path.clone());
        // On v2 the vCPU threads' group lies below the processes'.
        if !steps.contains(&create) {
            steps.push(create);
        }
    }
    steps.extend(assignments.into_iter().map(|(group, file, value)| Step::Set { group, file, value }));
    let processes = process_moves(vm, sites)?;
    let vcpus = vcpu_moves(vm, sites, &processes)?;
    let strays = stray_moves(vm, sites, &processes);
    steps.extend(processes);
    steps.extend(vcpus);
    steps.extend(strays);
    Ok(Plan { steps, limit, cpus, notes })
}

/// Whole processes into the unconstrained groups, each that has a thread elsewhere.
///
/// A whole process can be written to a threaded group of v2 from anywhere; its threads then move freely within the domain
/// (cgroup-v2.rst, "Threads").
fn process_moves(vm: &Vm, sites: &[Site]) -> Result<Vec<Step>, Error> {
    let mut moves = Vec::new();
    for site in sites.iter().filter(|site| site.part == Part::Unconstrained) {
        // In a hierarchy that holds both parts a thread in the other group needs no move of its whole process: it is a vCPU's,
        // or one that has strayed there and goes back by itself. But the first thread is no vCPU, and the last to leave: where that
        // is still there, a run was killed while the others were leaving.
        let both = other_part(site, sites);
        for member in movable(vm) {
            let may_be_apart = |thread: &Thread| thread.tid != member.process.pid || vm.is_vcpu(thread.tid);
            let is_right = |thread: &Thread| {
                let place = site.place_of(thread).or_else(|| both?.place_of(thread));
                let apart = both.filter(|_| may_be_apart(thread)).map(|both| &both.group);
                place.is_some() && [Some(&site.group), apart].contains(&place.as_ref())
            };
            if !member.threads.iter().all(is_right) {
                let from = origin(member, member.leader(), site)?;
                let (pid, start) = (member.process.pid, member.start);
                // Never a moment in which a vCPU thread is in the sandbox's groups and not under its limit: a run may be killed in
                // it. So where a process takes its vCPU threads along, all of them go under the limit, and the others leave it.
                let has_vcpus = !vm.vcpus.threads.is_empty() || member.threads.iter().any(Thread::has_run_a_guest);
                let under_limit = both.filter(|_| member.role == Role::Vmm && has_vcpus).map(|both| &both.group);
                let to = under_limit.unwrap_or(&site.group);
                let is_leaving = |thread: &Thread| {
                    under_limit.is_some() && !vm.is_vcpu(thread.tid) && (thread.tid == pid || !thread.has_run_a_guest())
                };
                let (mut leaving, staying): (Vec<&Thread>, Vec<&Thread>) =
                    member.threads.iter().partition(|thread| is_leaving(thread));
                let apart = apart_from(&from, member, &staying, site)?;
                moves.push(Step::MoveProcess { pid, start, to: to.clone(), from: Some(from), apart });
                order::sort_by_key(&mut leaving, |thread| thread.tid == pid);
                for thread in leaving {
                    moves.push(move_thread(member, thread, &site.group, Some(origin(member, Some(thread), site)?)));
                }
            }
        }
    }
    Ok(moves)
}

/// Those of a process's `threads` that are not where it comes `from`: it takes them along, and moved back it would take them there as well.
fn apart_from(from: &GroupPath, member: &Member, threads: &[&Thread], site: &Site) -> Result<Vec<Apart>, Error> {
    let own = |thread: &&Thread| {
        let (tid, start) = (thread.tid, thread.start);
        origin(member, Some(thread), site).map(|from| Apart { tid, start, from })
    };
    let all: Vec<Apart> = threads.iter().map(own).collect::<Result<_, Error>>()?;
    Ok(all.into_iter().filter(|apart| apart.from != *from).collect())
}

/// Where a thread is now, to be put back there; nobody is moved who could not be.
fn origin(member: &Member, thread: Option<&Thread>, site: &Site) -> Result<GroupPath, Error> {
    let out_of_sight = || Error::OutOfSight { pid: member.process.pid, mount: site.group.hierarchy.mount.clone() };
    thread.and_then(|thread| site.place_of(thread)).ok_or_else(out_of_sight)
}

/// The site of the other part in the same hierarchy: on v2, and where v1 has cpu and memory mounted together.
fn other_part<'a>(site: &Site, sites: &'a [Site]) -> Option<&'a Site> {
    sites.iter().find(|other| other.part != site.part && other.group.hierarchy == site.group.hierarchy)
}

/// Whether one of these moves takes all threads of `pid` to another group of the site's hierarchy.
fn is_taken_along(pid: i32, site: &Site, processes: &[Step]) -> bool {
    processes.iter().any(|step| match step {
        Step::MoveProcess { pid: moved, to, .. } => *moved == pid && to.hierarchy == site.group.hierarchy,
        _ => false,
    })
}

/// The processes that may be moved: never the container runtime's shim.
fn movable(vm: &Vm) -> impl Iterator<Item = &Member> {
    vm.processes.iter().skip(usize::from(vm.is_shim))
}

/// vCPU threads into the constrained groups, each that is not there and that no move of its process takes there.
fn vcpu_moves(vm: &Vm, sites: &[Site], processes: &[Step]) -> Result<Vec<Step>, Error> {
    let mut moves = Vec::new();
    let Some(vmm) = vm.vmm() else { return Ok(moves) };
    for site in sites.iter().filter(|site| site.part == Part::Constrained) {
        if is_taken_along(vmm.process.pid, site, processes) {
            continue;
        }
        for vcpu in &vm.vcpus.threads {
            let Some(thread) = vmm.thread(vcpu.tid) else { continue };
            let from = origin(vmm, Some(thread), site)?;
            if from != site.group {
                moves.push(move_thread(vmm, thread, &site.group, Some(from)));
            }
        }
    }
    Ok(moves)
}

/// Threads that are no vCPUs out of the constrained groups: kernel workers are born beside the vCPU thread that made them.
///
/// As long as some vCPUs could not be told this time, a thread of the VMM in there may be one that an earlier run could: it stays. So does
/// one that has run a guest, whatever is told: a VMM that a guest has taken over can close descriptors and show another VM.
/// They go to the processes' group where that is in the same hierarchy; else where their process's first thread is, or, where
/// that is in there too, to the group above.
fn stray_moves(vm: &Vm, sites: &[Site], processes: &[Step]) -> Vec<Step> {
    let mut moves = Vec::new();
    for site in sites.iter().filter(|site| site.part == Part::Constrained) {
        let own = other_part(site, sites).map(|site| site.group.clone());
        // A process that is moved takes its strays along.
        for member in vm.processes.iter().filter(|member| !is_taken_along(member.process.pid, site, processes)) {
            let is_stray = |thread: &&Thread| {
                let came_along = vm.brought_in.as_ref().is_some_and(|vcpus| vcpus.binary_search(&thread.tid).is_err());
                let is_told = thread.is_user_worker || member.role != Role::Vmm || vm.vcpus.are_all_known() || came_along;
                let may_be_vcpu = vm.is_vcpu(thread.tid) || (member.role == Role::Vmm && thread.has_run_a_guest());
                is_told && !may_be_vcpu && site.place_of(thread).as_ref() == Some(&site.group)
            };
            let strays = member.threads.iter().filter(is_stray);
            let leader = member.leader().and_then(|leader| site.place_of(leader)).filter(|place| *place != site.group);
            let Some(target) = own.clone().or(leader).or_else(|| above_ours(site)) else {
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
    site.above().find(|level| level.is_foreign()).map(|level| level.path.clone())
}

/// Plans the removal of what is left of a sandbox: adopted groups get their own values back, ours are emptied and removed.
pub fn release(leftovers: &[Leftover], restore: Vec<Assignment>) -> Plan {
    // A controller is taken back from below an adopted group once ours is gone from there: until then it limits the threads.
    let (controllers, values): (Vec<_>, Vec<_>) = restore.into_iter().partition(|(_, file, _)| *file == file::SUBTREE);
    let set = |(group, file, value)| Step::Set { group, file, value };
    let mut steps: Vec<Step> = values.into_iter().map(set).collect();
    let groups = || leftovers.iter().filter_map(|left| left.group.as_ref());
    let going_home = |(pid, start, home): &(i32, u64, GroupPath)| Step::MoveProcess {
        pid: *pid,
        start: *start,
        to: home.clone(),
        from: None,
        apart: Vec::new(),
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
    steps.extend(controllers.into_iter().map(set));
    Plan { steps, ..Plan::default() }
}

impl Step {
    /// Whether it moves a process or a thread.
    pub fn is_move(&self) -> bool {
        matches!(self, Self::MoveProcess { .. } | Self::MoveThread { .. })
    }

    /// Where what is to be moved was found.
    pub fn from(&self) -> Option<&GroupPath> {
        match self {
            Self::MoveProcess { from, .. } | Self::MoveThread { from, .. } => from.as_ref(),
            _ => None,
        }
    }
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
    use crate::cgroup::site::{Level, Standing};
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
        testing::site(part, group, levels)
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
            shims: Vec::new(),
            claims: Vec::new(),
            containers: Vec::new(),
            brought_in: None,
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
    fn who_is_in_his_place_by_the_groups_own_lists_is_not_asked_where_he_is() {
        let mut vm = vm("", "");
        vm.processes.iter_mut().flat_map(|member| &mut member.threads).for_each(|thread| thread.groups = None);
        let mut sites = sites(3, 1);
        (sites[0].members, sites[1].members) = (vec![100, 101, 200], vec![101]);
        let deadline = Deadline::after(std::time::Instant::now(), std::time::Duration::from_secs(60));
        assert_eq!(lines(&place_who_is_elsewhere(&mut vm, &sites, &demand(), &deadline).unwrap()), Vec::<String>::new());
        assert!(vm.processes.iter().flat_map(|member| &member.threads).all(|thread| thread.groups.is_none()));
        // Where the list says no, he is asked; these are nobody, and answer nothing.
        sites[1].members.clear();
        let _ = place_who_is_elsewhere(&mut vm, &sites, &demand(), &deadline);
        assert!(vm.processes.iter().all(|member| member.threads.is_empty()));
    }

    #[test]
    fn a_process_with_one_thread_elsewhere_is_moved_whole() {
        let vm = vm("1:memory:/kata/kata_x;2:cpuacct:/", "1:memory:/;2:cpuacct:/pod/kata_x");
        let plan = place(&vm, &sites(3, 1), &demand()).unwrap();
        assert_eq!(lines(&plan), ["move-process 100 400 /c/memory/kata/kata_x"]);
        // Moved back to where its first thread is, it must not take the other there.
        let Step::MoveProcess { apart, .. } = &plan.steps[0] else { panic!("{plan:?}") };
        let apart: Vec<_> = apart.iter().map(|apart| (apart.tid, apart.from.absolute())).collect();
        assert_eq!(apart, [(101, "/c/memory".into())]);
    }

    #[test]
    fn nobody_is_moved_who_could_not_be_put_back() {
        let error = place(&vm("1:memory:/", "1:memory:/"), &sites(1, 0), &demand()).unwrap_err().to_string();
        assert!(error.starts_with("process 100 is in a group that is not below /c/cpuacct as the hook sees it"), "{error}");
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
    fn a_thread_that_has_run_a_guest_stays_under_its_limit_though_all_vcpus_are_found_elsewhere() {
        let mut vm = vm("1:memory:/kata/kata_x;2:cpuacct:/pod", "1:memory:/kata/kata_x;2:cpuacct:/pod/kata_x");
        let hidden = Thread { guest_time: 1, ..testing::thread(102, "1:memory:/kata/kata_x;2:cpuacct:/pod/kata_x") };
        let worker = Thread { is_user_worker: true, tid: 103, ..hidden.clone() };
        vm.processes[0].threads.extend([hidden, worker]);
        assert!(vm.vcpus.are_all_known());
        assert_eq!(lines(&place(&vm, &sites(3, 1), &demand()).unwrap()), ["move-thread 100/103 400 /c/cpuacct/pod"]);
    }

    #[test]
    fn where_a_process_is_moved_under_the_limit_whoever_has_run_a_guest_stays_there() {
        let both = &[Controller::Cpuacct, Controller::Memory];
        let sites = [site(both, Part::Unconstrained, "kata/kata_x", 3, 1), site(both, Part::Constrained, "pod/kata_x", 3, 1)];
        let mut vm = vm("1:cpuacct,memory:/", "1:cpuacct,memory:/");
        vm.processes[0].threads.push(Thread { guest_time: 1, ..testing::thread(102, "1:cpuacct,memory:/") });
        let lines = lines(&place(&vm, &sites, &demand()).unwrap());
        assert!(lines.iter().any(|line| line.starts_with("move-thread 100/100 ")), "{lines:?}");
        assert!(!lines.iter().any(|line| line.starts_with("move-thread 100/102 ")), "{lines:?}");
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
        // The whole process goes under the limit, and its other threads leave it: no vCPU is in our groups without one.
        let expected = [
            "move-process 100 400 /c/cpuacct,memory/pod/kata_x",
            "move-thread 100/100 400 /c/cpuacct,memory/kata/kata_x",
            "move-process 200 400 /c/cpuacct,memory/kata/kata_x",
        ];
        assert_eq!(lines(&place(&fresh, &sites, &demand()).unwrap()), expected);
        let half = vm("1:cpuacct,memory:/", "1:cpuacct,memory:/pod/kata_x");
        assert_eq!(lines(&place(&half, &sites, &demand()).unwrap()), expected);
        // One whose vCPUs cannot be told is not put under their limit as a whole.
        let mut untold = vm("1:cpuacct,memory:/", "1:cpuacct,memory:/");
        untold.vcpus.threads.clear();
        let expected =
            ["move-process 100 400 /c/cpuacct,memory/kata/kata_x", "move-process 200 400 /c/cpuacct,memory/kata/kata_x"];
        assert_eq!(lines(&place(&untold, &sites, &demand()).unwrap()), expected);
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

    /// A domain that stands, with the vCPU threads' group in it.
    fn unified_sites(standing: usize) -> Vec<Site> {
        let all = [Controller::Cpu, Controller::Cpuset, Controller::Memory];
        let group = GroupPath::new(&testing::unified(&all), "kata/kata_x");
        let mut levels: Vec<Level> = std::iter::once(GroupPath::new(&group.hierarchy, ""))
            .chain(group.child("vcpu").chain())
            .map(|path| Level { path, standing: None })
            .collect();
        for (depth, level) in levels.iter_mut().take(standing).enumerate() {
            let of_group: &[(&'static str, &str)] = match depth {
                0 | 1 => &[("cgroup.subtree_control", "cpu cpuset memory")],
                2 => &[("cgroup.subtree_control", "cpu cpuset")],
                _ => &[("cgroup.type", "threaded"), ("cpu.max", "max 100000")],
            };
            let values = of_group.iter().map(|(file, value)| (*file, (*value).to_owned())).collect();
            level.standing = Some(Standing { is_ours: depth > 0, values, ..Standing::default() });
        }
        let vcpus = testing::site(Part::Constrained, group.child("vcpu"), levels.clone());
        levels.pop();
        vec![testing::site(Part::Unconstrained, group, levels), vcpus]
    }

    #[test]
    fn on_v2_the_way_to_both_groups_is_made_once_and_the_whole_vmm_goes_under_the_limit_first() {
        let plan = place(&vm("0::/engine", "0::/engine"), &unified_sites(1), &demand()).unwrap();
        let lines = lines(&plan);
        let creates: Vec<&String> = lines.iter().filter(|line| line.starts_with("create")).collect();
        assert_eq!(creates, ["create /c2/kata", "create /c2/kata/kata_x", "create /c2/kata/kata_x/vcpu"]);
        let moves = [
            "move-process 100 400 /c2/kata/kata_x/vcpu",
            "move-thread 100/100 400 /c2/kata/kata_x",
            "move-process 200 400 /c2/kata/kata_x",
        ];
        assert_eq!(lines[lines.len() - 3..], moves);
    }

    #[test]
    fn on_v2_a_thread_that_is_no_vcpu_goes_back_to_its_processs_group() {
        let mut vm = vm("0::/kata/kata_x", "0::/kata/kata_x/vcpu");
        let place = |vm: &Vm| lines(&place(vm, &unified_sites(4), &demand()).unwrap());
        assert_eq!(place(&vm), Vec::<String>::new());
        vm.processes[0].threads.push(testing::thread(102, "0::/kata/kata_x/vcpu"));
        assert_eq!(place(&vm), ["move-thread 100/102 400 /c2/kata/kata_x"]);
    }

    #[test]
    fn on_v2_a_vmm_that_a_killed_run_left_under_the_limit_leaves_it_though_no_thread_can_be_told_for_sure() {
        let apart = "0::/kata/kata_x/vcpu";
        let mut vm = vm(apart, apart);
        vm.processes[0].threads.push(testing::thread(102, apart));
        vm.processes[1].threads = vec![testing::thread(200, "0::/kata/kata_x")];
        vm.vcpus.expected = None;
        let expected = [
            "move-process 100 400 /c2/kata/kata_x/vcpu",
            "move-thread 100/102 400 /c2/kata/kata_x",
            "move-thread 100/100 400 /c2/kata/kata_x",
        ];
        assert_eq!(lines(&place(&vm, &unified_sites(4), &demand()).unwrap()), expected, "the first thread last");
    }

    #[test]
    fn on_v2_who_came_along_unseen_leaves_though_not_all_vcpus_are_known() {
        let sites = unified_sites(4);
        let fresh = vm("0::/engine", "0::/engine");
        assert!(place(&fresh, &sites, &demand()).unwrap().brings_in(&fresh, &sites));
        let mut vm = vm("0::/kata/kata_x", "0::/kata/kata_x/vcpu");
        vm.processes[0].threads.push(testing::thread(102, "0::/kata/kata_x/vcpu"));
        vm.vcpus.expected = None;
        assert_eq!(lines(&place(&vm, &sites, &demand()).unwrap()), Vec::<String>::new(), "it may be a vCPU of an earlier run");
        vm.brought_in = Some(vec![101, 102]);
        assert_eq!(lines(&place(&vm, &sites, &demand()).unwrap()), Vec::<String>::new(), "it was one at first");
        vm.brought_in = Some(vec![101]);
        assert_eq!(lines(&place(&vm, &sites, &demand()).unwrap()), ["move-thread 100/102 400 /c2/kata/kata_x"]);
    }

    #[test]
    fn on_v2_what_had_strayed_leaves_with_the_others() {
        let mut vm = vm("0::/engine", "0::/kata/kata_x/vcpu");
        vm.processes[0].threads.push(testing::thread(102, "0::/kata/kata_x/vcpu"));
        let moves = lines(&place(&vm, &unified_sites(4), &demand()).unwrap());
        let of_vmm: Vec<&String> = moves.iter().filter(|line| line.contains(" 100")).collect();
        let expected = [
            "move-process 100 400 /c2/kata/kata_x/vcpu",
            "move-thread 100/102 400 /c2/kata/kata_x",
            "move-thread 100/100 400 /c2/kata/kata_x",
        ];
        assert_eq!(of_vmm, expected);
    }

    #[test]
    fn a_refused_move_of_a_thread_is_repeated_only_without_its_process() {
        let sites = unified_sites(4);
        let error = Error::write("/c2/kata/kata_x/vcpu/cgroup.threads", "101", nix::errno::Errno::EOPNOTSUPP);
        assert!(error.is_of_the_moment());
        let alone = place(&vm("0::/kata/kata_x", "0::/kata/kata_x"), &sites, &demand()).unwrap();
        assert!(alone.repeats(&error));
        let together = place(&vm("0::/engine", "0::/engine"), &sites, &demand()).unwrap();
        assert!(!together.repeats(&error));
    }

    #[test]
    fn what_kata_weighs_alone_is_told_from_everything_else() {
        let v2 = testing::unified(&[Controller::Cpu]);
        let weigh =
            |group: &str| Step::Set { group: GroupPath::new(&v2, group), file: cgroup::file::WEIGHT, value: "200".into() };
        let plan = |steps: Vec<Step>| Plan { steps, ..Plan::default() };
        assert!(plan(vec![weigh("kata")]).only_weighs_kata());
        assert!(!plan(vec![weigh("kata"), weigh("kata/kata_x")]).only_weighs_kata());
        assert!(!plan(vec![]).only_weighs_kata());
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
