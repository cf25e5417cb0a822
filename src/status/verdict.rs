//! How a sandbox is, and what is missing: what a hook would do for it, told as a state.
//!
//! The plan that would be carried out is the measure, so that `status` can call nothing placed where a hook would find work, nor the
//! other way round.

use crate::cgroup::file::{SUBTREE, TYPE};
use crate::cgroup::group::GroupPath;
use crate::cgroup::site::{Level, Site};
use crate::cgroup::v2::sites::is_weight_of_kata;
use crate::cgroup::{Controller, Part};
use crate::plan::{Plan, Step};
use crate::status::words;
use crate::status::{Group, Thread, ThreadRole, Verdict};
use crate::vmm::Vm;
use crate::vmm::kinds::Role;

/// Whether anything of the sandbox is in a group of ours.
pub fn is_held(groups: &[Group]) -> bool {
    let is_its = |thread: &Thread| thread.role != ThreadRole::Other;
    groups.iter().any(|group| group.ours && group.threads.iter().any(is_its))
}

/// The verdict on a sandbox with a VM, for which these things are missing.
pub fn of_living(groups: &[Group], missing: &[String]) -> Verdict {
    match (is_held(groups), missing.is_empty()) {
        (false, _) => Verdict::Unplaced,
        (true, false) => Verdict::Incomplete,
        (true, true) => Verdict::Placed,
    }
}

/// Who is still in groups that are to go.
pub fn occupied(groups: &[Group]) -> Vec<String> {
    let holding = groups.iter().filter(|group| !group.threads.is_empty());
    let who = |group: &Group| {
        let few: Vec<String> = group.threads.iter().take(3).map(|one| format!("{} ({})", one.tid, one.name)).collect();
        let more = group.threads.len().saturating_sub(few.len());
        if more > 0 { format!("{} and {more} more", few.join(", ")) } else { few.join(", ") }
    };
    holding.map(|group| format!("{} still holds {}", group.path, who(group))).collect()
}

/// What the steps of a plan are needed for, each thread once.
pub fn missing(plan: &Plan, vm: &Vm, sites: &[Site]) -> Vec<String> {
    let mut lacks = Lacks::default();
    for step in &plan.steps {
        match step {
            Step::Create(group) => lacks.add("it has no", sites.iter().filter(|site| site.group == *group), ""),
            Step::Set { group, file, .. } if is_weight_of_kata(group, file) => {}
            Step::Set { group, file, value } => lacks.values.push(unset(group, file, value, sites)),
            Step::MoveProcess { pid, from, to, .. } => {
                let member = vm.processes.iter().find(|member| member.process.pid == *pid);
                let role = if member.is_some_and(|member| member.role == Role::Vmm) { "the VMM" } else { "helper" };
                // On v2 it goes by way of the vCPU threads' group.
                let own = sites.iter().filter(|site| site.group.hierarchy == to.hierarchy && site.part == Part::Unconstrained);
                lacks.add(&format!("{role} {pid} is not in its"), own, &but_in(from.as_ref()));
            }
            Step::MoveThread { pid, tid, from, to, .. } => match vm.vcpus.threads.iter().find(|vcpu| vcpu.tid == *tid) {
                Some(vcpu) => {
                    let index = vcpu.index.map_or(String::new(), |index| format!(" {index}"));
                    let own = sites.iter().filter(|site| site.group == *to);
                    lacks.add(&format!("vCPU{index} (thread {pid}/{tid}) is not in its"), own, &but_in(from.as_ref()));
                }
                None if is_moved_along(*pid, to, plan) => {}
                None => {
                    let limited =
                        sites.iter().filter(|site| site.group.hierarchy == to.hierarchy && site.part == Part::Constrained);
                    lacks.add(&format!("thread {pid}/{tid} is no vCPU and in the vCPUs'"), limited, "");
                }
            },
            Step::Drain { .. } | Step::Remove { .. } => {}
        }
    }
    lacks.sentences()
}

/// Whether a thread's process is moved in the same hierarchy, which says it all.
fn is_moved_along(pid: i32, to: &GroupPath, plan: &Plan) -> bool {
    let is_its = |step: &Step| matches!(step, Step::MoveProcess { pid: moved, to: group, .. } if *moved == pid && group.hierarchy == to.hierarchy);
    plan.steps.iter().any(is_its)
}

/// Where somebody is instead, as the kernel calls it.
fn but_in(from: Option<&GroupPath>) -> String {
    from.map_or(String::new(), |from| format!(" but in {}", from.in_kernel().display()))
}

/// A file that holds something else than it should.
fn unset(group: &GroupPath, file: &'static str, value: &str, sites: &[Site]) -> String {
    let level: Option<&Level> = sites.iter().flat_map(|site| &site.levels).find(|level| level.path == *group);
    let present = level.and_then(|level| level.value(file)).unwrap_or_default();
    let path = group.absolute();
    let path = path.display();
    match file {
        SUBTREE => format!("{} not passed on by {path}", value.replace('+', "")),
        TYPE => format!("not a threaded group: {path}"),
        _ if present.is_empty() => format!("{file} is not set, should be {value}: {path}"),
        _ => format!("{file} is {present}, should be {value}: {path}"),
    }
}

/// What is lacking in several hierarchies at once is said in one sentence.
#[derive(Debug, Default)]
struct Lacks {
    of_groups: Vec<Lack>,
    values: Vec<String>,
}

#[derive(Debug)]
struct Lack {
    what: String,
    controllers: Vec<&'static str>,
    groups: usize,
    instead: String,
}

impl Lacks {
    /// Notes that `what` is so of the groups of `sites`.
    fn add<'a>(&mut self, what: &str, sites: impl Iterator<Item = &'a Site>, instead: &str) {
        for site in sites {
            let known = self.of_groups.iter_mut().position(|lack| lack.what == what && lack.instead == instead);
            let index = known.unwrap_or_else(|| {
                let lack = Lack { what: what.to_owned(), controllers: Vec::new(), groups: 0, instead: instead.to_owned() };
                self.of_groups.push(lack);
                self.of_groups.len() - 1
            });
            let Some(lack) = self.of_groups.get_mut(index) else { return };
            lack.groups += 1;
            let names = site.group.hierarchy.controllers_of(site.part).map(Controller::name);
            let new: Vec<&str> = names.filter(|name| !lack.controllers.contains(name)).collect();
            lack.controllers.extend(new);
        }
    }

    fn sentences(self) -> Vec<String> {
        let sentence = |lack: &Lack| {
            let groups = if lack.groups == 1 { "group" } else { "groups" };
            format!("{} {} {groups}{}", lack.what, words::list(&lack.controllers), lack.instead)
        };
        self.of_groups.iter().map(sentence).chain(self.values).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::file::{QUOTA, WEIGHT};
    use crate::cgroup::site::Standing;
    use crate::status::testing::{group, thread};
    use crate::testing;

    /// A VMM 100 with a vCPU 101 and another thread 102.
    fn vm() -> Vm {
        let threads = [100, 101, 102].map(|tid| testing::thread(tid, "0::/")).to_vec();
        testing::vm(threads, 101)
    }

    fn site(part: Part, group: GroupPath, values: &[(&'static str, &str)]) -> Site {
        let values = values.iter().map(|(file, value)| (*file, (*value).to_owned())).collect();
        let level = Level { path: group.clone(), standing: Some(Standing { values, ..Standing::default() }) };
        testing::site(part, group, vec![level])
    }

    fn v1(controller: Controller, rel: &str) -> GroupPath {
        GroupPath::new(&testing::hierarchy(&[controller]), rel)
    }

    fn moved(tid: i32, to: &GroupPath, from: &str) -> Step {
        let from = Some(GroupPath::new(&to.hierarchy, from));
        Step::MoveThread { pid: 100, tid, start: 400, thread_start: 500, to: to.clone(), from }
    }

    fn missing_for(steps: Vec<Step>, sites: &[Site]) -> Vec<String> {
        missing(&Plan { steps, ..Plan::default() }, &vm(), sites)
    }

    #[test]
    fn what_lacks_in_several_hierarchies_is_one_sentence() {
        let groups = [Controller::Cpu, Controller::Cpuset].map(|one| v1(one, "pod/kata_x"));
        let sites = groups.clone().map(|group| site(Part::Constrained, group, &[]));
        let both = |step: fn(&GroupPath) -> Step| groups.iter().map(step).collect::<Vec<_>>();
        let astray = missing_for(both(|group| moved(101, group, "a")), &sites);
        assert_eq!(astray, ["vCPU 0 (thread 100/101) is not in its cpu and cpuset groups but in /a"]);
        let stray = missing_for(both(|group| moved(102, &GroupPath::new(&group.hierarchy, ""), "")), &sites);
        assert_eq!(stray, ["thread 100/102 is no vCPU and in the vCPUs' cpu and cpuset groups"]);
        let gone = missing_for(both(|group| Step::Create(group.clone())), &sites);
        assert_eq!(gone, ["it has no cpu and cpuset groups"]);
        let apart = missing_for(vec![moved(101, &groups[0], "a"), moved(101, &groups[1], "b")], &sites);
        assert_eq!(apart.len(), 2, "{apart:?}");
    }

    #[test]
    fn a_value_is_told_with_what_it_should_be() {
        let group = v1(Controller::Cpu, "pod/kata_x");
        let sites = [site(Part::Constrained, group.clone(), &[(QUOTA, "7")])];
        let set = |file, value: &str| Step::Set { group: group.clone(), file, value: value.into() };
        assert_eq!(missing_for(vec![set(QUOTA, "5")], &sites), ["cpu.cfs_quota_us is 7, should be 5: /c/cpu/pod/kata_x"]);
        let others = [set("cpu.shares", "9"), set(SUBTREE, "+cpu +cpuset"), set(TYPE, "threaded")];
        let expected = [
            "cpu.shares is not set, should be 9: /c/cpu/pod/kata_x",
            "cpu cpuset not passed on by /c/cpu/pod/kata_x",
            "not a threaded group: /c/cpu/pod/kata_x",
        ];
        assert_eq!(missing_for(others.to_vec(), &sites), expected);
    }

    #[test]
    fn on_v2_a_vmm_that_was_moved_away_is_one_sentence_too() {
        let all = [Controller::Cpu, Controller::Cpuset, Controller::Memory];
        let domain = GroupPath::new(&testing::unified(&all), "kata/kata_x");
        let vcpus = domain.child("vcpu");
        let sites = [site(Part::Unconstrained, domain.clone(), &[]), site(Part::Constrained, vcpus.clone(), &[])];
        let from = Some(GroupPath::new(&domain.hierarchy, "engine"));
        let whole = Step::MoveProcess { pid: 100, start: 400, to: vcpus, from, apart: Vec::new() };
        let steps = vec![whole, moved(102, &domain, "engine"), moved(100, &domain, "engine")];
        assert_eq!(missing_for(steps, &sites), ["the VMM 100 is not in its cpu, cpuset and memory group but in /engine"]);
    }

    #[test]
    fn what_all_sandboxes_weigh_together_is_no_fault_of_one() {
        let kata = GroupPath::new(&testing::unified(&[Controller::Cpu]), "kata");
        let weigh = |group: &GroupPath| Step::Set { group: group.clone(), file: WEIGHT, value: "5".into() };
        assert_eq!(missing_for(vec![weigh(&kata)], &[]), Vec::<String>::new());
        assert_eq!(missing_for(vec![weigh(&kata.child("kata_x"))], &[]).len(), 1);
    }

    #[test]
    fn a_sandbox_is_unplaced_while_nothing_of_it_is_in_a_group_of_ours() {
        let (own, stranger) = (thread(101, "a", ThreadRole::Vcpu), thread(9, "b", ThreadRole::Other));
        let held = |is_ours, who: &Thread| [group(Controller::Cpu, "x", is_ours, std::slice::from_ref(who))];
        let reason = ["something".to_owned()];
        assert_eq!(of_living(&held(true, &own), &[]), Verdict::Placed);
        assert_eq!(of_living(&held(true, &own), &reason), Verdict::Incomplete);
        assert_eq!(of_living(&held(false, &own), &[]), Verdict::Unplaced);
        assert_eq!(of_living(&held(true, &stranger), &[]), Verdict::Unplaced);
        assert_eq!(occupied(&held(true, &stranger)), ["/c/cpu/x still holds 9 (b)"]);
    }
}
