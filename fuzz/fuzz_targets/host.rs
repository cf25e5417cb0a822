//! A whole host: nobody is moved without evidence, nothing is done that the kernel refuses, in the order that keeps the guest under its
//! limit, and what was done is all there was to do.
#![no_main]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use kata_cgroup_hook::cgroup::group::GroupPath;
use kata_cgroup_hook::cgroup::mounts::Mounts;
use kata_cgroup_hook::cgroup::site::Site;
use kata_cgroup_hook::cgroup::{self, Controller, Part, file};
use kata_cgroup_hook::deadline::Deadline;
use kata_cgroup_hook::error::Error;
use kata_cgroup_hook::plan::{self, Plan, Step};
use kata_cgroup_hook::proc::Proc;
use kata_cgroup_hook::record::{Adopted, Record};
use kata_cgroup_hook::vmm::find::{Child, Search};
use kata_cgroup_hook::vmm::kinds::{Kinds, Role};
use kata_cgroup_hook::vmm::runtime::RuntimeDirs;
use kata_cgroup_hook::vmm::{Member, Vm, vcpu};
use kata_cgroup_hook_fuzz::host::{Host, ID, Laid, lay_groups_of_threads, recorded};
use kata_cgroup_hook_fuzz::kernel::Kernel;
use kata_cgroup_hook_fuzz::tree::Tree;
use kata_cgroup_hook_fuzz::{is_below, owner};
use libfuzzer_sys::fuzz_target;
use nix::errno::Errno;

fuzz_target!(|host: Host| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let at = dir.path();
    let mut laid = host.lay(at);
    let proc = Proc::new(at.join("proc"));
    let mounts = Mounts::read(&proc).expect("a mount table");
    let dirs = RuntimeDirs::of(ID, &[at.join("run")], owner());
    assert_eq!(dirs.is_empty(), host.cast.is_dir_loose);
    if dirs.is_empty() || mounts.of_controller(Controller::Cpu).is_none() {
        return ends("nobody is trusted, or nothing can be limited");
    }
    let hook = Hook { host: &host, proc, mounts, dirs, kinds: Kinds::default() };
    let Some(mut vm) = hook.find(&laid.record) else { return ends("no VMM") };
    let (sites, plan) = match hook.plan(&mut vm, &laid) {
        Ok(plan) => plan,
        Err(why) => {
            assert!(!host.is_fresh(), "nothing is in the way: {why}");
            return ends("no plan");
        }
    };
    check_moves(&plan.steps, &host, &laid.kernel);
    check_targets(&plan.steps, &laid, &sites);
    check_order(&plan.steps);
    if !apply(&plan.steps, &sites, &vm, &mut laid.kernel) {
        return ends("what the kernel refuses");
    }
    check_places(&vm, &sites, &laid.kernel);
    check_limit(&vm, &sites, &laid);

    // What stands now is all that there was to do.
    laid.kernel.lay();
    lay_groups_of_threads(&laid.kernel, at);
    remember(&mut laid.record, &plan, &sites);
    let mut vm = hook.find(&laid.record).expect("the same VMM again");
    let (_, again) = hook.plan(&mut vm, &laid).expect("a plan as before");
    assert_eq!(again.steps, [], "after {:#?}", plan.steps);
});

/// A host that ends here has nothing more to be checked; one that is known to get further must not (`make fuzz` has those of the corpus
/// run so), or the target would check less and less and find nothing.
fn ends(why: &str) {
    assert!(std::env::var_os("KCH_FUZZ_WHOLE").is_none(), "it ends early: {why}");
}

fn deadline() -> Deadline {
    Deadline::after(Instant::now(), Duration::from_secs(60))
}

/// The hook's way from what can be read to a plan, as src/commands joins it; without debugfs.
struct Hook<'a> {
    host: &'a Host,
    proc: Proc,
    mounts: Mounts,
    dirs: RuntimeDirs,
    kinds: Kinds,
}

impl Hook<'_> {
    /// The VM, if one has proved itself: one does if its evidence is complete.
    fn find(&self, record: &Record) -> Option<Vm> {
        let (said, recorded) = (self.dirs.read(owner()), record.identities());
        let search = Search {
            proc: &self.proc,
            kinds: &self.kinds,
            dirs: &self.dirs,
            claims: &said.claims,
            hint: self.host.cast.hint(),
            parent: Some(self.host.cast.our_parent()),
            recorded: &recorded,
            owner: owner(),
            deadline: &deadline(),
        };
        let mut found = search.find();
        let Some(vmm) = found.vmm else {
            assert_eq!(self.host.cast.vmms(), [0; 0], "{:?}", found.refused);
            return None;
        };
        let mut vm = Vm {
            kind: vmm.kind.name.clone(),
            is_shim: self.kinds.is_shim_too(vmm.kind),
            vcpus: vcpu::Vcpus::default(),
            containers: said.containers,
            brought_in: None,
            shims: Vec::new(),
            claims: Vec::new(),
            processes: vec![Member::new(vmm.process, vmm.start, Role::Vmm)],
        };
        let shims = found.shims.iter().map(|shim| &shim.process);
        let children = shims.chain([&vm.processes[0].process]).flat_map(Child::all_of).collect();
        let known = [vm.processes[0].process.pid];
        let helpers = search.helpers(children, &known, &mut found.refused).into_iter();
        vm.processes.extend(helpers.map(|helper| Member::new(helper.process, helper.start, Role::Helper)));
        vm.processes.iter_mut().for_each(|member| assert!(member.look(&deadline()).expect("threads")));
        let member = &vm.processes[0];
        vm.vcpus = vcpu::of(&self.proc, &member.process, &member.threads, &vmm.kind.vcpu_threads, None, &deadline())
            .expect("descriptors");
        let told: Vec<i32> = vm.vcpus.threads.iter().map(|vcpu| vcpu.tid).collect();
        assert_eq!(told, self.host.cast.vcpus(member.process.pid));
        Some(vm)
    }

    fn plan(&self, vm: &mut Vm, laid: &Laid) -> Result<(Vec<Site>, Plan), Error> {
        let sites = cgroup::survey(&self.mounts, &laid.path, laid.domain, vm, &laid.record)?;
        let plan = plan::place_who_is_elsewhere(vm, &sites, &laid.demand, &deadline())?;
        vm.processes.iter_mut().try_for_each(|member| member.read_groups(&deadline()))?;
        let asked = plan::place(vm, &sites, &laid.demand)?;
        assert_eq!(plan.steps, asked.steps, "who is right by the groups' lists is where he says he is");
        Ok((sites, plan))
    }
}

/// Only who has proved what he is, and could be put back, is moved, and the container runtime's shim never as a whole.
fn check_moves(steps: &[Step], host: &Host, kernel: &Kernel) {
    let proven = [host.cast.vmms(), host.cast.helpers()].concat();
    for step in steps {
        let (pid, is_in_sight) = match step {
            Step::MoveProcess { pid, to, .. } => (*pid, kernel.is_in_sight(kernel.tree_of(to), *pid)),
            Step::MoveThread { pid, tid, to, .. } => (*pid, kernel.is_thread_in_sight(kernel.tree_of(to), *tid)),
            _ => continue,
        };
        let is_whole = matches!(step, Step::MoveProcess { .. });
        assert!(proven.contains(&pid), "{step}: has not proved itself");
        assert!(is_in_sight, "{step}: is not in sight");
        assert!(!is_whole || !host.cast.is_shim(pid), "{step}: is the shim");
    }
}

/// Every group lies beneath a mount; in those that are somebody else's nothing is written but what they pass on, and what the
/// group that bears the sandbox's name is to hold.
fn check_targets(steps: &[Step], laid: &Laid, sites: &[Site]) {
    let mut made = BTreeSet::new();
    for step in steps {
        let group = match step {
            Step::Create(group) | Step::Set { group, .. } => group,
            Step::MoveProcess { to, .. } | Step::MoveThread { to, .. } => to,
            Step::Drain { .. } | Step::Remove { .. } => panic!("{step}: placing removes nothing"),
        };
        let n = laid.kernel.tree_of(group);
        assert!(is_below(&group.absolute(), &laid.kernel.trees[n].mount), "{step}");
        match step {
            Step::Create(group) => drop(made.insert((n, group.rel.clone()))),
            Step::Set { group, file, .. } if *file != file::SUBTREE => {
                let place = (n, group.rel.clone());
                let is_own = sites.iter().any(|site| site.group == *group);
                assert!(is_own || made.contains(&place) || laid.ours.contains(&place), "{step}: somebody else's");
            }
            _ => {}
        }
    }
}

/// Groups, then their values, then the moves: nobody is ever in a group without its limit.
fn check_order(steps: &[Step]) {
    let rank = |step: &Step| match step {
        Step::Create(_) => 0,
        Step::Set { .. } => 1,
        _ => 2,
    };
    assert!(steps.is_sorted_by_key(rank), "{steps:#?}");
}

/// Does the steps one by one: the kernel takes each; none brings a vCPU thread into the sandbox's groups outside of its limit, and none
/// leaves it more than it had before all of them and has after.
///
/// False if somebody has a group within the sandbox's on v1 that has what is to be taken from both: nothing but an error can come of
/// that.
fn apply(steps: &[Step], sites: &[Site], vm: &Vm, kernel: &mut Kernel) -> bool {
    let outside = unlimited(vm, sites, kernel);
    let mut limits = vec![limits_of(vm, kernel)];
    for step in steps {
        match (kernel.step(step), step) {
            (Ok(()), _) => {}
            (Err(Errno::EBUSY), Step::Set { group, file: file::CPUS | file::MEMS, .. })
            | (Err(Errno::EINVAL), Step::Set { group, file: file::QUOTA | file::PERIOD, .. })
                if kernel.has_groups_in(group) =>
            {
                return false;
            }
            (Err(errno), _) => panic!("{step}: {errno}, of {steps:#?}"),
        }
        assert!(unlimited(vm, sites, kernel).is_subset(&outside), "after {step} of {steps:#?}");
        limits.push(limits_of(vm, kernel));
    }
    let (first, last) = (&limits[0], &limits[limits.len() - 1]);
    for (now, step) in limits[1..].iter().zip(steps) {
        let is_bound = |n: usize| is_within(now[n], first[n]) || is_within(now[n], last[n]);
        assert!((0..now.len()).all(is_bound), "more in between, after {step} of {steps:#?}");
    }
    true
}

/// A quota and its period; none is without limit.
type Limit = Option<(u64, u64)>;

/// What acts on each vCPU thread in each hierarchy that has limits.
fn limits_of(vm: &Vm, kernel: &Kernel) -> Vec<Limit> {
    let of_tree = |(n, tree): (usize, &Tree)| -> Vec<Limit> {
        vm.vcpus.threads.iter().map(|vcpu| tree.limit(kernel.place_of(vcpu.tid, n))).collect()
    };
    kernel.trees.iter().enumerate().flat_map(of_tree).collect()
}

fn is_within(limit: Limit, bound: Limit) -> bool {
    bound.is_none_or(|bound| limit.is_some_and(|limit| limit.0 * bound.1 <= bound.0 * limit.1))
}

/// The vCPU threads in a group of the sandbox that is for the others, where there is one for them in the same hierarchy.
fn unlimited(vm: &Vm, sites: &[Site], kernel: &Kernel) -> BTreeSet<i32> {
    let for_vcpus = |site: &&Site| site.part == Part::Constrained;
    let is_for_others = |other: &Site, site: &Site| other.part != site.part && other.group.hierarchy == site.group.hierarchy;
    let both = sites.iter().filter(for_vcpus).flat_map(|site| sites.iter().filter(|other| is_for_others(other, site)));
    let tids = vm.vcpus.threads.iter().map(|vcpu| vcpu.tid);
    both.flat_map(|other| tids.clone().filter(|tid| is_in(kernel, *tid, &other.group))).collect()
}

fn is_in(kernel: &Kernel, tid: i32, group: &GroupPath) -> bool {
    kernel.place_of(tid, kernel.tree_of(group)) == group.rel
}

/// The vCPU threads are where their limit is, and of the VM's others, if all of the former are known, nobody is; whole processes are
/// where memory is counted.
fn check_places(vm: &Vm, sites: &[Site], kernel: &Kernel) {
    let all_known = vm.vcpus.are_all_known();
    for site in sites.iter().filter(|site| site.part == Part::Constrained) {
        for (member, thread) in vm.processes.iter().flat_map(|member| member.threads.iter().map(move |thread| (member, thread)))
        {
            let (is_vcpu, is_inside) = (vm.is_vcpu(thread.tid), is_in(kernel, thread.tid, &site.group));
            assert!(is_inside || !is_vcpu, "vCPU {} is not in {}", thread.tid, site.group.absolute().display());
            let is_wrong = is_inside && !is_vcpu && (all_known || member.role == Role::Helper);
            assert!(!is_wrong, "{} is in {}", thread.tid, site.group.absolute().display());
        }
    }
    for site in sites.iter().filter(|site| site.part == Part::Unconstrained) {
        let are_both = |other: &&Site| other.group.hierarchy == site.group.hierarchy;
        for thread in vm.processes.iter().skip(usize::from(vm.is_shim)).flat_map(|member| &member.threads) {
            let is_inside = sites.iter().filter(are_both).any(|site| is_in(kernel, thread.tid, &site.group));
            assert!(is_inside, "{} is not in {}", thread.tid, site.group.absolute().display());
        }
    }
}

/// No vCPU thread may use more than was asked for, nor more than the pod has.
fn check_limit(vm: &Vm, sites: &[Site], laid: &Laid) {
    let is_limited = |site: &&Site| site.part == Part::Constrained && site.group.hierarchy.carries(Controller::Cpu);
    let Some(site) = sites.iter().find(is_limited) else { return };
    let tree = &laid.kernel.trees[laid.kernel.tree_of(&site.group)];
    let asked = laid.demand.quota().map(|quota| (quota, laid.demand.period));
    let bounds = [asked, tree.limit(standing(tree, laid.path.pod()))];
    for vcpu in &vm.vcpus.threads {
        let acting = tree.limit(laid.kernel.place_of(vcpu.tid, laid.kernel.tree_of(&site.group)));
        assert!(bounds.iter().all(|bound| is_within(acting, *bound)), "{acting:?} is more than one of {bounds:?}");
    }
}

fn standing<'a>(tree: &Tree, path: &'a Path) -> &'a Path {
    path.ancestors().find(|path| tree.stands(path)).expect("the top")
}

/// What a run writes into its record: the groups that it made, and those of Kata's that it uses.
fn remember(record: &mut Record, plan: &Plan, sites: &[Site]) {
    let made = plan.steps.iter().filter_map(|step| match step {
        Step::Create(group) => Some(recorded(&group.absolute())),
        _ => None,
    });
    record.groups.extend(made);
    for site in sites.iter().filter(|site| site.is_adopted) {
        let inode = site.own().expect("what is adopted stands").inode;
        record.adopted.push(Adopted { path: site.group.absolute(), inode, ..Adopted::default() });
    }
}
