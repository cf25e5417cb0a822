//! cgroup v2: the controllers that have to be passed on, and the values that a sandbox's groups are to have.
//!
//! A group has a controller's files only if the group above passes it on, so this goes from the top down, while nothing of the
//! sandbox is in the groups yet: enabling a controller over running threads would stop the whole host for a moment
//! (cgroup_threadgroup_rwsem), and memory must never be passed on by the domain, or it could hold no process (cgroup-v2.rst,
//! "No Internal Process Constraint"). What the pod's groups would do to a sandbox that stands apart from them is written on its own.

use crate::cgroup::Controller;
use crate::cgroup::cpulist::CpuList;
use crate::cgroup::demand::Demand;
use crate::cgroup::file::{CPUS, EFFECTIVE_CPUS, EFFECTIVE_MEMS, MAX, MEMS, SUBTREE, TYPE, WEIGHT};
use crate::cgroup::group::GroupPath;
use crate::cgroup::settings::{Assignment, Limit, Settings, is_at_least};
use crate::cgroup::site::{Level, Site};
use crate::cgroup::v2::sites::DEFAULT_WEIGHT;
use crate::error::Error;

/// The controllers of the vCPU threads' group: those that can be in a threaded one.
const THREADED: [Controller; 2] = [Controller::Cpu, Controller::Cpuset];

/// Decides the values of a sandbox's domain, of the vCPU threads' group in it, and of what leads there.
pub fn set(domain: &Site, vcpus: Option<&Site>, demand: &Demand, settings: &mut Settings) -> Result<(), Error> {
    pass_controllers_on(domain, vcpus, settings)?;
    if domain.group.hierarchy.carries(Controller::Cpu) {
        set_weights(domain, demand, settings);
    }
    let Some(vcpus) = vcpus else { return Ok(()) };
    if vcpus.group.hierarchy.carries(Controller::Cpuset) {
        set_cpuset(vcpus, domain, demand, settings)?;
    }
    if vcpus.group.hierarchy.carries(Controller::Cpu) {
        set_cpu(vcpus, demand, settings);
    }
    Ok(())
}

fn pass_controllers_on(domain: &Site, vcpus: Option<&Site>, settings: &mut Settings) -> Result<(), Error> {
    let hierarchy = &domain.group.hierarchy;
    // What the groups so far pass on: none can pass on what it does not have.
    let mut on_the_way = vec![Controller::Cpu, Controller::Cpuset, Controller::Memory];
    on_the_way.retain(|one| hierarchy.carries(*one));
    let Some((own, above)) = domain.levels.split_last() else { return Ok(()) };
    for level in above {
        refuse_threaded(level, is_apart(domain), false)?;
        if level.is_foreign() && !level.is_v2_root() {
            // In a group that is neither the root nor ours, memory is its owner's decision.
            let before = on_the_way.len();
            on_the_way.retain(|one| THREADED.contains(one) || passes_on(level, *one));
            if on_the_way.len() < before {
                let path = level.path.absolute();
                settings
                    .notes
                    .push(format!("the VMM's memory is not told from others': {} passes no memory on", path.display()));
            }
        }
        refuse_populated(level, &on_the_way, is_apart(domain))?;
        enable(level, &on_the_way, settings);
    }
    refuse_threaded(own, is_apart(domain), true)?;
    if is_apart(domain) && own.is_foreign() {
        return Err(Error::Foreign { path: own.path.absolute() });
    }
    if let Some(vcpus) = vcpus {
        // A run that was killed before it wrote the type has left it empty; somebody may have put a process there since.
        if vcpus.own().is_some_and(|own| own.is_populated) {
            return Err(Error::NotThreaded { path: vcpus.group.absolute() });
        }
        settings.assign(vcpus, vec![(TYPE, "threaded".to_owned())]);
        // That the domain holds threads is what it is for; with threaded controllers alone it may.
        on_the_way.retain(|one| THREADED.contains(one));
        enable(own, &on_the_way, settings);
    }
    Ok(())
}

/// A group can only be made a domain, and a domain hold processes, where every group above is a domain as well.
fn refuse_threaded(level: &Level, is_apart: bool, is_domain: bool) -> Result<(), Error> {
    match level.value(TYPE) {
        None | Some("domain") => Ok(()),
        Some("domain threaded") if is_domain => Ok(()),
        Some(kind) => Err(Error::NotADomain { path: level.path.absolute(), kind: kind.to_owned(), instead: instead(is_apart) }),
    }
}

/// A group with threads of its own in it cannot be made to pass controllers on: that would stop all of them, and bar it from
/// having domains in it. Somebody may have put them into one of ours as well.
fn refuse_populated(level: &Level, controllers: &[Controller], is_apart: bool) -> Result<(), Error> {
    let missing = missing(level, controllers);
    if !level.standing.as_ref().is_some_and(|standing| standing.is_populated) || missing.is_empty() {
        return Ok(());
    }
    let controllers = missing.join(", ");
    Err(Error::Populated { path: level.path.absolute(), controllers, instead: instead(is_apart) })
}

/// What else can be done about a group in the pod.
fn instead(is_apart: bool) -> &'static str {
    if is_apart { "" } else { ", or set [v2] domain = \"kata\"" }
}

/// What a domain is made to pass on, as it is written.
pub fn passed_on_by_a_domain() -> String {
    format!("+{}", THREADED.map(Controller::name).join(" +"))
}

/// Lets the groups in this one have `controllers`.
fn enable(level: &Level, controllers: &[Controller], settings: &mut Settings) {
    let missing = missing(level, controllers);
    if !missing.is_empty() {
        settings.assignments.push((level.path.clone(), SUBTREE, format!("+{}", missing.join(" +"))));
    }
}

/// Those of `controllers` that a group does not pass on.
fn missing(level: &Level, controllers: &[Controller]) -> Vec<&'static str> {
    controllers.iter().filter(|one| !passes_on(level, **one)).map(|one| one.name()).collect()
}

fn passes_on(level: &Level, controller: Controller) -> bool {
    level.value(SUBTREE).unwrap_or_default().split_whitespace().any(|name| name == controller.name())
}

/// A weight acts among siblings. So the domain has the sandbox's, where the domain is among its likes; the groups that stand for
/// others have theirs; and /kata, which stands for the root, weighs as much as all in it together, for those would compete with
/// the root's other groups one by one.
fn set_weights(domain: &Site, demand: &Demand, settings: &mut Settings) {
    let own = weight_of(demand.shares);
    let assign = |assignments: &mut Vec<Assignment>, level: &Level, weight: u64| {
        let present = level.value(WEIGHT).map_or(Some(DEFAULT_WEIGHT), |text| text.parse().ok());
        if present != Some(weight) {
            assignments.push((level.path.clone(), WEIGHT, weight.to_string()));
        }
    };
    match domain.levels.as_slice() {
        [_, kata, mirrors @ .., last] if is_apart(domain) => {
            let first = mirrors.first().map_or(own, |level| mirrored_weight(level, domain));
            if kata.is_foreign() {
                settings.notes.push(format!("{} is not ours: its cpu.weight stays as it is", kata.path.absolute().display()));
            } else {
                assign(&mut settings.assignments, kata, together(first, &domain.neighbours));
            }
            for level in mirrors.iter().filter(|level| !level.is_foreign()) {
                assign(&mut settings.assignments, level, mirrored_weight(level, domain));
            }
            assign(&mut settings.assignments, last, own);
        }
        levels => levels.last().into_iter().for_each(|level| assign(&mut settings.assignments, level, own)),
    }
}

/// Whether the domain is outside the groups that cgroupsPath lies in: below /kata.
fn is_apart(domain: &Site) -> bool {
    domain.group.parent().as_ref() != domain.pod.last().map(|level| &level.path)
}

/// What a group weighs together with its neighbours, within what the kernel takes.
pub fn together(own: u64, neighbours: &[(String, u64)]) -> u64 {
    neighbours.iter().fold(own, |sum, (_, weight)| sum.saturating_add(*weight)).clamp(1, HEAVIEST)
}

/// The kernel takes no more.
const HEAVIEST: u64 = 10_000;

/// The weight of the group that a group below /kata stands for.
fn mirrored_weight(level: &Level, domain: &Site) -> u64 {
    let original = level.path.rel.strip_prefix("kata").ok();
    // A pod within /kata itself is none of the root's: its weight would go into its own.
    let originals = domain.pod.iter().filter(|pod| !pod.path.rel.starts_with("kata"));
    let original = originals.into_iter().find(|pod| Some(pod.path.rel.as_path()) == original);
    let weight = original.and_then(|original| original.value(WEIGHT)?.parse().ok()).unwrap_or(DEFAULT_WEIGHT);
    // A group that runs only when nobody else does (cpu.idle) reads 0, which cannot be written.
    weight.max(1)
}

/// The weight that is to the default weight what the shares are to the default shares, as the kernel has it
/// (`sched_weight_from_cgroup`, kernel/sched/sched.h). Engines have used two other formulas.
fn weight_of(shares: u64) -> u64 {
    ((shares * DEFAULT_WEIGHT + 512) / 1024).clamp(1, HEAVIEST)
}

/// What is asked, of what the pod has, of what there is where the sandbox is: a pod's CPUs may be its own alone
/// (cpuset.cpus.partition), and then are nowhere else.
fn set_cpuset(vcpus: &Site, domain: &Site, demand: &Demand, settings: &mut Settings) -> Result<(), Error> {
    let mut wanted = Vec::new();
    for (file, effective, asked) in [(CPUS, EFFECTIVE_CPUS, &demand.cpus), (MEMS, EFFECTIVE_MEMS, &demand.mems)] {
        let Some((inherited, above)) = nearest_list(&domain.levels, effective) else { continue };
        let of_pod = nearest_list(&vcpus.pod, effective).filter(|_| is_apart(domain));
        let mut list = asked.clone();
        for (granted, by) in of_pod.into_iter().chain([(inherited.clone(), above)]) {
            list = settings.grant(&list, &granted, file, &by.absolute().join(effective))?;
        }
        if file == CPUS {
            settings.cpus = Some(list.to_string());
        }
        // Nothing asked and nothing taken away: a list that is empty follows the group above, also when the host's CPUs change. One
        // that was filled cannot be emptied while threads are in the group (ENOSPC; validate_change, kernel/cgroup/cpuset.c).
        let is_inherited = asked.is_empty() && inherited == list;
        let is_empty = vcpus.levels.last().and_then(|own| own.value(file)).unwrap_or_default().is_empty();
        if !is_inherited || !is_empty {
            wanted.push((file, list.to_string()));
        }
    }
    settings.assign(vcpus, wanted);
    Ok(())
}

/// The list of the nearest group that has one, and that group.
fn nearest_list(levels: &[Level], file: &str) -> Option<(CpuList, GroupPath)> {
    levels.iter().rev().find_map(|level| {
        let list: CpuList = level.value(file)?.parse().ok()?;
        Some((list, level.path.clone()))
    })
}

/// The tightest of what is asked and of every limit that the pod's groups have. A group may be given more than one above it has,
/// but it would not get it.
fn set_cpu(vcpus: &Site, demand: &Demand, settings: &mut Settings) {
    let asked = demand.quota().map(|quota| (quota, demand.period));
    let mut limit = asked;
    for level in &vcpus.pod {
        let Some(theirs) = limit_of(level) else { continue };
        if limit.is_none_or(|limit| !is_at_least(theirs, limit)) {
            limit = Some(theirs);
        }
    }
    let tightest = vcpus.pod.iter().find(|level| limit_of(level) == limit);
    if let (Some(asked), Some(got), Some(by)) = (asked, limit, tightest) {
        settings.note_cap(asked, got, &by.path);
    }
    if demand.realtime.is_some() {
        settings.notes.push("realtime left out: cgroup v2 has no realtime limits".into());
    }
    settings.limit = limit;
    let max = limit.map_or(format!("max {}", demand.period), |(quota, period)| format!("{quota} {period}"));
    settings.assign(vcpus, vec![(MAX, max)]);
}

/// What a group's cpu.max says: "100000 100000"; none for "max 100000".
pub fn limit_of(level: &Level) -> Option<Limit> {
    let (quota, period) = level.value(MAX)?.split_once(' ')?;
    Some((quota.parse().ok()?, period.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxCpu;

    use super::*;
    use crate::cgroup::Part;
    use crate::cgroup::site::Standing;
    use crate::testing;

    const ALL: &[Controller] = &[Controller::Cpu, Controller::Cpuset, Controller::Memory];

    /// A group: its path below the mount, whether it is ours, and its files; `None` for one that is to be made.
    type Fake<'a> = (&'a str, bool, Option<&'a [(&'static str, &'static str)]>);

    fn levels(controllers: &[Controller], fakes: &[Fake]) -> Vec<Level> {
        let hierarchy = testing::unified(controllers);
        let level = |(rel, is_ours, values): &Fake| {
            let standing = values.map(|values| {
                let kind = [(TYPE, "domain")].into_iter().filter(|_| !rel.is_empty());
                let values = kind.chain(values.iter().copied()).map(|(file, value)| (file, value.to_owned())).collect();
                Standing { is_ours: *is_ours, values, ..Standing::default() }
            });
            Level { path: GroupPath::new(&hierarchy, *rel), standing }
        };
        fakes.iter().map(level).collect()
    }

    const ROOT: &[(&str, &str)] = &[(SUBTREE, "cpuset cpu memory"), (EFFECTIVE_CPUS, "0-3"), (EFFECTIVE_MEMS, "0")];

    /// A sandbox that is to be placed anew: the domain's levels, and the groups that cgroupsPath lies in.
    struct Host {
        controllers: &'static [Controller],
        levels: Vec<Level>,
        pod: Vec<Level>,
        neighbours: Vec<(String, u64)>,
        /// The vCPU threads' group, if it stands.
        vcpus: Option<Standing>,
    }

    impl Host {
        /// Below /kata, with a pod that stands and passes nothing down.
        fn apart(pod: &'static [(&'static str, &'static str)]) -> Self {
            let anew =
                [("", false, Some(ROOT)), ("kata", true, None), ("kata/pod", true, None), ("kata/pod/kata_x", true, None)];
            let pod = [("", false, Some(ROOT)), ("pod", false, Some(pod))];
            let (levels, pod) = (levels(ALL, &anew), levels(ALL, &pod));
            Self { controllers: ALL, levels, pod, neighbours: Vec::new(), vcpus: None }
        }

        /// Within a pod that stands.
        fn in_pod(pod: &'static [(&'static str, &'static str)]) -> Self {
            let all = levels(ALL, &[("", false, Some(ROOT)), ("pod", false, Some(pod)), ("pod/kata_x", true, None)]);
            Self { controllers: ALL, pod: all[..2].to_vec(), levels: all, neighbours: Vec::new(), vcpus: None }
        }

        fn settings(&self, demand: &str) -> Result<Settings, Error> {
            let demand = Demand::of(&[serde_json::from_str::<LinuxCpu>(demand).unwrap()]).unwrap();
            let group = self.levels.last().unwrap().path.clone();
            let site = |part, group, levels| Site {
                members: Vec::new(),
                pod: self.pod.clone(),
                neighbours: self.neighbours.clone(),
                ..testing::site(part, group, levels)
            };
            let domain = site(Part::Unconstrained, group.clone(), self.levels.clone());
            let vcpus = group.child("vcpu");
            let mut all = self.levels.clone();
            all.push(Level { path: vcpus.clone(), standing: self.vcpus.clone() });
            let vcpus = site(Part::Constrained, vcpus, all);
            let vcpus = Some(&vcpus).filter(|_| self.controllers != [Controller::Memory]);
            let mut settings = Settings::default();
            set(&domain, vcpus, &demand, &mut settings)?;
            Ok(settings)
        }

        /// What is written, as "path/file value".
        fn written(&self, demand: &str) -> Vec<String> {
            let line = |(group, file, value): &(GroupPath, &str, String)| format!("{} {value}", group.rel.join(file).display());
            self.settings(demand).unwrap().assignments.iter().map(line).collect()
        }
    }

    #[test]
    fn controllers_are_passed_on_from_the_top_down_and_memory_not_by_the_domain() {
        let expected = [
            "kata/cgroup.subtree_control +cpu +cpuset +memory",
            "kata/pod/cgroup.subtree_control +cpu +cpuset +memory",
            "kata/pod/kata_x/vcpu/cgroup.type threaded",
            "kata/pod/kata_x/cgroup.subtree_control +cpu +cpuset",
            "kata/pod/kata_x/cpu.weight 150",
            "kata/pod/kata_x/vcpu/cpu.max 150000 100000",
        ];
        assert_eq!(Host::apart(&[]).written(r#"{"shares":1536,"quota":150000,"period":100000}"#), expected);
    }

    #[test]
    fn only_what_the_hierarchy_carries_is_passed_on() {
        let mut host = Host::apart(&[]);
        host.controllers = &[Controller::Memory];
        let anew: [Fake; 3] = [("", false, Some(&[(SUBTREE, "")])), ("kata", true, None), ("kata/kata_x", true, None)];
        host.levels = levels(host.controllers, &anew);
        assert_eq!(host.written("{}"), ["cgroup.subtree_control +memory", "kata/cgroup.subtree_control +memory"]);
    }

    #[test]
    fn in_a_group_of_somebody_elses_memory_is_its_owners_decision() {
        let written = Host::in_pod(&[(TYPE, "domain"), (SUBTREE, "cpu")]).written("{}");
        assert_eq!(written[0], "pod/cgroup.subtree_control +cpuset");
    }

    #[test]
    fn a_populated_group_of_somebody_elses_is_named_with_what_it_lacks() {
        let mut host = Host::in_pod(&[(TYPE, "domain"), (SUBTREE, "cpu")]);
        host.levels[1].standing.as_mut().unwrap().is_populated = true;
        let error = host.settings("{}").unwrap_err().to_string();
        assert!(error.starts_with("/c2/pod holds processes and does not pass cpuset on"), "{error}");
        // With all that is needed passed on already, nothing has to be changed there.
        host.levels[1].standing.as_mut().unwrap().values.insert(SUBTREE, "cpu cpuset".into());
        assert!(host.settings("{}").is_ok());
    }

    #[test]
    fn one_of_ours_is_refused_as_well_where_somebody_put_a_process_into_it() {
        let mut host = Host::apart(&[]);
        host.levels[1] = levels(ALL, &[("kata", true, Some(&[(SUBTREE, "")]))]).remove(0);
        assert!(host.settings("{}").is_ok());
        host.levels[1].standing.as_mut().unwrap().is_populated = true;
        let error = host.settings("{}").unwrap_err().to_string();
        assert!(error.starts_with("/c2/kata holds processes and does not pass cpu, cpuset, memory on"), "{error}");
    }

    #[test]
    fn a_group_that_holds_processes_is_not_made_threaded() {
        let mut host = Host::in_pod(&[(SUBTREE, "cpu cpuset")]);
        let values = [(TYPE, "domain".to_owned())].into_iter().collect();
        host.vcpus = Some(Standing { is_ours: true, is_populated: true, values, ..Standing::default() });
        let error = host.settings("{}").unwrap_err().to_string();
        assert!(error.starts_with("/c2/pod/kata_x/vcpu holds processes and so cannot be made threaded"), "{error}");
        host.vcpus.as_mut().unwrap().is_populated = false;
        assert!(host.written("{}").contains(&"pod/kata_x/vcpu/cgroup.type threaded".to_owned()));
    }

    #[test]
    fn no_domain_is_made_in_a_threaded_group() {
        for kind in ["threaded", "domain threaded", "domain invalid"] {
            let mut host = Host::in_pod(&[(SUBTREE, "cpu cpuset")]);
            host.levels[1].standing.as_mut().unwrap().values.insert(TYPE, kind.into());
            let error = host.settings("{}").unwrap_err().to_string();
            assert!(error.starts_with(&format!("/c2/pod is \"{kind}\"")), "{error}");
        }
    }

    #[test]
    fn below_a_group_that_does_not_pass_memory_on_nobody_else_does() {
        let mut host = Host::apart(&[]);
        host.levels[1] = levels(ALL, &[("kata", false, Some(&[(SUBTREE, "")]))]).remove(0);
        let written = host.written("{}");
        assert_eq!(written[..2], ["kata/cgroup.subtree_control +cpu +cpuset", "kata/pod/cgroup.subtree_control +cpu +cpuset"]);
        host.levels[1].standing.as_mut().unwrap().values.insert(SUBTREE, "memory".into());
        assert_eq!(host.written("{}")[1], "kata/pod/cgroup.subtree_control +cpu +cpuset +memory");
    }

    #[test]
    fn a_domain_below_kata_that_is_not_ours_is_refused_and_one_of_katas_in_the_pod_is_not() {
        let mut host = Host::apart(&[]);
        host.levels[3] = levels(ALL, &[("kata/pod/kata_x", false, Some(&[]))]).remove(0);
        let error = host.settings("{}").unwrap_err().to_string();
        assert!(error.starts_with("/c2/kata/pod/kata_x stands already and is not ours"), "{error}");
        let mut host = Host::in_pod(&[]);
        host.levels[2] = levels(ALL, &[("pod/kata_x", false, Some(&[]))]).remove(0);
        assert!(host.settings("{}").is_ok());
    }

    #[test]
    fn in_katas_own_group_the_cpus_are_those_that_kata_left_it() {
        let mut host = Host::in_pod(&[(SUBTREE, "cpu cpuset"), (EFFECTIVE_CPUS, "0-1")]);
        host.levels[2] = levels(ALL, &[("pod/kata_x", false, Some(&[(EFFECTIVE_CPUS, "0")]))]).remove(0);
        assert_eq!(host.settings(r#"{"cpus":"0-1"}"#).unwrap().cpus.as_deref(), Some("0"));
    }

    #[test]
    fn a_pod_within_kata_has_no_weight_to_stand_for() {
        let mut host = Host::apart(&[]);
        let way: [Fake; 4] =
            [("", false, Some(ROOT)), ("kata", true, None), ("kata/kata", true, None), ("kata/kata/kata_x", true, None)];
        host.levels = levels(ALL, &way);
        host.pod = levels(ALL, &[("", false, Some(ROOT)), ("kata", true, Some(&[(WEIGHT, "300")]))]);
        assert!(host.written("{}").iter().all(|line| !line.contains("weight")), "{:?}", host.written("{}"));
    }

    #[test]
    fn a_half_made_sandbox_is_completed() {
        let mut host = Host::in_pod(&[(SUBTREE, "cpu cpuset")]);
        host.levels[2] = levels(ALL, &[("pod/kata_x", true, Some(&[(TYPE, "domain threaded"), (SUBTREE, "cpu")]))]).remove(0);
        let written = host.written("{}");
        assert_eq!(written[..2], ["pod/kata_x/vcpu/cgroup.type threaded", "pod/kata_x/cgroup.subtree_control +cpuset"]);
    }

    #[test]
    fn the_tightest_limit_of_the_pod_acts_on_a_sandbox_that_stands_apart() {
        let host = Host::apart(&[(MAX, "50000 50000")]);
        for (asked, got) in [(150_000, "50000 50000"), (100_000, "100000 100000"), (99_999, "99999 100000")] {
            let asked = format!(r#"{{"quota":{asked},"period":100000}}"#);
            assert_eq!(host.written(&asked).last().unwrap(), &format!("kata/pod/kata_x/vcpu/cpu.max {got}"));
        }
        assert_eq!(host.written("{}").last().unwrap(), "kata/pod/kata_x/vcpu/cpu.max 50000 50000");
        let settings = host.settings(r#"{"quota":150000,"period":100000}"#).unwrap();
        assert_eq!(settings.notes, ["asked 150000/100000, capped at 50000/50000 by /c2/pod"]);
        assert_eq!(settings.limit, Some((50_000, 50_000)));
        assert_eq!(Host::apart(&[(MAX, "max 100000")]).settings("{}").unwrap().limit, None);
    }

    #[test]
    fn without_a_limit_the_file_says_so() {
        assert_eq!(Host::apart(&[]).written("{}").last().unwrap(), "kata/pod/kata_x/vcpu/cpu.max max 100000");
    }

    #[test]
    fn the_pods_cpus_bound_those_of_a_sandbox_that_stands_apart() {
        let host = Host::apart(&[(EFFECTIVE_CPUS, "1-2"), (EFFECTIVE_MEMS, "0")]);
        let cpus = |demand| host.written(demand).into_iter().find(|line| line.contains("cpuset.cpus"));
        assert_eq!(cpus("{}").as_deref(), Some("kata/pod/kata_x/vcpu/cpuset.cpus 1-2"));
        assert_eq!(cpus(r#"{"cpus":"2-3"}"#).as_deref(), Some("kata/pod/kata_x/vcpu/cpuset.cpus 2"));
        let settings = host.settings(r#"{"cpus":"2-3"}"#).unwrap();
        assert_eq!((settings.cpus.as_deref(), settings.notes.len()), (Some("2"), 1));
        let error = host.settings(r#"{"cpus":"3"}"#).unwrap_err().to_string();
        assert_eq!(
            error,
            "cpuset.cpus \"3\": none of them is in /c2/pod/cpuset.cpus.effective (1-2): ask for some of those, or widen that"
        );
    }

    #[test]
    fn where_nothing_is_asked_and_nothing_taken_away_the_list_stays_empty() {
        for host in [Host::apart(&[]), Host::in_pod(&[(SUBTREE, "cpu cpuset"), (EFFECTIVE_CPUS, "1"), (EFFECTIVE_MEMS, "0")])] {
            assert!(host.written("{}").iter().all(|line| !line.contains("cpuset.cpus")));
        }
        assert_eq!(Host::in_pod(&[(EFFECTIVE_CPUS, "1")]).settings("{}").unwrap().cpus.as_deref(), Some("1"));
    }

    #[test]
    fn cpus_that_the_pod_has_to_itself_are_not_there_for_a_sandbox_that_stands_apart() {
        let mut host = Host::apart(&[(EFFECTIVE_CPUS, "2-3")]);
        host.levels[0].standing.as_mut().unwrap().values.insert(EFFECTIVE_CPUS, "0-1".into());
        let error = host.settings("{}").unwrap_err().to_string();
        assert_eq!(
            error,
            "cpuset.cpus \"2-3\": none of them is in /c2/cpuset.cpus.effective (0-1): ask for some of those, or widen that"
        );
        // Some of them may be there.
        host.levels[0].standing.as_mut().unwrap().values.insert(EFFECTIVE_CPUS, "0-2".into());
        let settings = host.settings("{}").unwrap();
        assert_eq!((settings.cpus.as_deref(), settings.notes.len()), (Some("2"), 1));
    }

    #[test]
    fn shares_become_the_weight_that_is_to_the_default_what_they_are_to_theirs() {
        for (shares, weight) in
            [(2, 1), (10, 1), (512, 50), (1024, 100), (1536, 150), (3072, 300), (102_400, 10_000), (262_144, 10_000)]
        {
            assert_eq!(weight_of(shares), weight, "{shares}");
        }
    }

    #[test]
    fn what_stands_for_the_pod_weighs_what_the_pod_does_and_kata_as_much_as_all_in_it() {
        let mut host = Host::apart(&[(WEIGHT, "39")]);
        host.neighbours = vec![("other".into(), 100), ("third".into(), 7)];
        let weights: Vec<_> = host.written("{}").into_iter().filter(|line| line.contains("cpu.weight")).collect();
        assert_eq!(weights, ["kata/cpu.weight 146", "kata/pod/cpu.weight 39"]);
        host.neighbours.push(("heavy".into(), 20_000));
        assert!(host.written("{}").contains(&"kata/cpu.weight 10000".to_owned()));
    }

    #[test]
    fn a_sandbox_of_the_top_level_counts_for_itself() {
        let mut host = Host::apart(&[]);
        host.levels = levels(ALL, &[("", false, Some(ROOT)), ("kata", true, None), ("kata/kata_x", true, None)]);
        host.pod = levels(ALL, &[("", false, Some(ROOT))]);
        let weights: Vec<_> = host.written(r#"{"shares":3072}"#).into_iter().filter(|line| line.contains("weight")).collect();
        assert_eq!(weights, ["kata/cpu.weight 300", "kata/kata_x/cpu.weight 300"]);
    }

    #[test]
    fn a_sandbox_in_its_pod_changes_no_weight_but_its_own() {
        let written = Host::in_pod(&[(SUBTREE, "cpu cpuset"), (WEIGHT, "39")]).written(r#"{"shares":512}"#);
        let weights: Vec<_> = written.iter().filter(|line| line.contains("weight")).collect();
        assert_eq!(weights, ["pod/kata_x/cpu.weight 50"]);
    }

    #[test]
    fn realtime_has_no_file_and_is_said() {
        let settings = Host::apart(&[]).settings(r#"{"realtimeRuntime":10000,"realtimePeriod":1000000}"#).unwrap();
        assert_eq!(settings.notes, ["realtime left out: cgroup v2 has no realtime limits"]);
    }
}
