//! cgroup v1: a sandbox's groups in each hierarchy, what stands there already, and which values they are to have.
//!
//! The CPU hierarchies get `<dir>/kata_<base>` for the vCPU threads, memory gets `/kata/<dir>/kata_<base>` for the processes.
//! Kata Go with the cgroupfs driver makes `<dir>/kata_<base>` itself. Such a group is not ours: where it holds the VMM's other
//! threads too (sandbox_cgroup_only=true) ours is a child `vcpu` of it, else it is adopted: our values, restored in the end.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::cgroup::cpulist::CpuList;
use crate::cgroup::demand::{Cpus, Demand};
use crate::cgroup::group::{Group, GroupPath};
use crate::cgroup::mounts::{Hierarchy, Mounts, Version};
use crate::cgroup::path::SandboxPath;
use crate::cgroup::{Controller, Part};
use crate::error::Error;
use crate::record::Record;
use crate::vmm::{Thread, Vm};

/// The file of a limit, and the values that a group has or is to have.
pub type Values = BTreeMap<&'static str, String>;

const QUOTA: &str = "cpu.cfs_quota_us";
const PERIOD: &str = "cpu.cfs_period_us";
const SHARES: &str = "cpu.shares";
const RT_PERIOD: &str = "cpu.rt_period_us";
const RT_RUNTIME: &str = "cpu.rt_runtime_us";
const CPUS: &str = "cpuset.cpus";
const MEMS: &str = "cpuset.mems";

/// A sandbox's group in one hierarchy, with everything on the way to it.
#[derive(Debug, Clone)]
pub struct Site {
    pub part: Part,
    /// The group that is to hold the threads.
    pub group: GroupPath,
    /// From the top of the hierarchy down to the group.
    pub levels: Vec<Level>,
    /// It is Kata's own group that we use.
    pub is_adopted: bool,
}

/// A group on that way.
#[derive(Debug, Clone)]
pub struct Level {
    pub path: GroupPath,
    /// None if it is still to be made.
    pub standing: Option<Standing>,
}

/// A group that stands.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    pub inode: u64,
    /// The sandbox that it was made for, if by us.
    pub mark: Option<String>,
    /// We made it: it carries our mark, or the record knows its inode.
    pub is_ours: bool,
    pub values: Values,
}

impl Site {
    /// The group's own level.
    pub fn own(&self) -> Option<&Standing> {
        self.levels.last().and_then(|level| level.standing.as_ref())
    }

    /// The levels above the group, nearest first.
    pub fn above(&self) -> impl Iterator<Item = &Level> {
        self.levels.iter().rev().skip(1)
    }

    /// The controller by which a thread's place in this hierarchy is known.
    pub fn controller(&self) -> &'static str {
        self.group.hierarchy.controllers.first().map_or("", |controller| controller.name())
    }

    /// Where a thread is now in this hierarchy, if that is below the mount point.
    pub fn place_of(&self, thread: &Thread) -> Option<GroupPath> {
        let hierarchy = &self.group.hierarchy;
        Some(GroupPath::new(hierarchy, hierarchy.below_mount(thread.groups.v1(self.controller())?)?))
    }
}

/// Reads what stands at the sandbox's place in every v1 hierarchy.
pub fn survey(mounts: &Mounts, path: &SandboxPath, vm: &Vm, record: &Record) -> Result<Vec<Site>, Error> {
    let mut sites = Vec::new();
    for (hierarchy, part) in parts(mounts) {
        let group = GroupPath::new(hierarchy, path.v1(part));
        sites.push(site(group, part, vm, record)?);
    }
    Ok(sites)
}

/// The v1 hierarchies with the part of a sandbox that each holds; both parts where cpu and memory are co-mounted.
pub fn parts(mounts: &Mounts) -> Vec<(&Rc<Hierarchy>, Part)> {
    let v1 = mounts.hierarchies.iter().filter(|hierarchy| hierarchy.version == Version::V1);
    let of_part = |part| move |hierarchy: &&Rc<Hierarchy>| hierarchy.controllers.iter().any(|one| one.part() == part);
    let unconstrained = v1.clone().filter(of_part(Part::Unconstrained)).map(|one| (one, Part::Unconstrained));
    let constrained = v1.filter(of_part(Part::Constrained)).map(|one| (one, Part::Constrained));
    unconstrained.chain(constrained).collect()
}

fn site(group: GroupPath, part: Part, vm: &Vm, record: &Record) -> Result<Site, Error> {
    let mut site = Site { part, levels: levels(&group, record)?, group, is_adopted: false };
    if part == Part::Unconstrained || site.own().is_none_or(|own| own.is_ours) {
        return Ok(site);
    }
    // The name is taken by somebody else: by Kata.
    let child = site.group.child("vcpu");
    let ours = level(&child, record)?;
    let is_made = ours.standing.as_ref().is_some_and(|standing| standing.is_ours);
    let is_adopted = record.adopted.iter().any(|adopted| adopted.path == site.group.absolute());
    if is_made || (!is_adopted && holds_vmm(&site, vm)) {
        site.levels.push(ours);
        site.group = child;
    } else {
        site.is_adopted = true;
    }
    Ok(site)
}

/// Whether the group holds the VMM itself: its first thread, which is no vCPU. Others may be born beside a vCPU and mean nothing.
fn holds_vmm(site: &Site, vm: &Vm) -> bool {
    let leader = vm.vmm().and_then(|vmm| vmm.leader()).filter(|leader| !vm.is_vcpu(leader.tid));
    leader.and_then(|leader| site.place_of(leader)).as_ref() == Some(&site.group)
}

fn levels(group: &GroupPath, record: &Record) -> Result<Vec<Level>, Error> {
    let top = GroupPath::new(&group.hierarchy, "");
    std::iter::once(top).chain(group.chain()).map(|path| level(&path, record)).collect()
}

/// Reads one level: whose it is, and the values that matter of the controllers that its hierarchy carries.
///
/// Ours is what carries our mark, what the record knows by its inode, and what a run that was killed had written down that it
/// was about to make, as long as nothing is in it.
pub fn level(path: &GroupPath, record: &Record) -> Result<Level, Error> {
    let gone = Level { path: path.clone(), standing: None };
    let Some(group) = path.open()? else { return Ok(gone) };
    let (inode, mark) = (group.inode()?, group.mark());
    let absolute = path.absolute();
    let is_left_by_us = || Ok(record.intended(&absolute) && group.members(path.threads_file())?.is_empty());
    let is_ours = mark.is_some() || record.knows(&absolute, inode) || is_left_by_us()?;
    let values = match read_values(&group, &path.hierarchy) {
        Err(error) if error.is_gone() => return Ok(gone),
        values => values?,
    };
    // In a group that has just gone no file is found either.
    let is_incomplete = path.hierarchy.carries(Controller::Cpuset) && !values.contains_key(CPUS);
    if is_incomplete && path.open()?.is_none() {
        return Ok(gone);
    }
    Ok(Level { path: path.clone(), standing: Some(Standing { inode, mark, is_ours, values }) })
}

fn read_values(group: &Group, hierarchy: &Hierarchy) -> Result<Values, Error> {
    let mut values = Values::new();
    let mut read = |files: &[&'static str]| -> Result<(), Error> {
        for file in files {
            if let Some(value) = group.read_if_there(file)? {
                values.insert(file, value);
            }
        }
        Ok(())
    };
    if hierarchy.carries(Controller::Cpu) {
        read(&[SHARES, PERIOD, QUOTA, RT_PERIOD, RT_RUNTIME])?;
    }
    if hierarchy.carries(Controller::Cpuset) {
        read(&[CPUS, MEMS])?;
    }
    Ok(values)
}

/// A value to write into a file of a level's group.
pub type Assignment = (GroupPath, &'static str, String);

/// What the groups are to be given, in the order of writing, and what there is to say about it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub assignments: Vec<Assignment>,
    /// The quota and period in µs that act on the vCPUs, be they ours or an ancestor's; none is without limit.
    pub limit: Option<(u64, u64)>,
    /// The CPUs that they may use.
    pub cpus: Option<String>,
    pub notes: Vec<String>,
}

/// Decides the values of every group of `sites`: only those that differ from what stands there.
pub fn settings(sites: &[Site], demand: &Demand) -> Result<Settings, Error> {
    let mut settings = Settings::default();
    for site in sites.iter().filter(|site| site.part == Part::Constrained) {
        if site.group.hierarchy.carries(Controller::Cpuset) {
            set_cpuset(site, demand, &mut settings)?;
        }
        if site.group.hierarchy.carries(Controller::Cpu) {
            set_cpu(site, demand, &mut settings);
        }
    }
    // An unconstrained group in a hierarchy that carries cpuset as well takes no process while that is empty.
    let (anywhere, cpus) = (Demand::of([])?, settings.cpus.take());
    for site in sites.iter().filter(|site| site.part == Part::Unconstrained) {
        if site.group.hierarchy.carries(Controller::Cpuset) {
            set_cpuset(site, &anywhere, &mut settings)?;
        }
    }
    settings.cpus = cpus;
    Ok(settings)
}

fn set_cpu(site: &Site, demand: &Demand, settings: &mut Settings) {
    let present = site.own().map(|own| &own.values);
    let mut wanted = vec![(SHARES, demand.shares.to_string())];
    let mut quota = demand.quota();
    settings.limit = quota.map(|quota| (quota, demand.period));
    if let Some((ancestor, limit)) = limit_above(site) {
        let is_reached = quota.is_none_or(|quota| is_at_least((quota, demand.period), limit));
        if is_reached {
            // The ancestor caps already. A quota of ours would forbid lowering it (EINVAL in kubelet's in-place resize).
            if let Some(quota) = quota {
                let of = |(quota, period): (u64, u64)| format!("{quota}/{period}");
                let (asked, got) = (of((quota, demand.period)), of(limit));
                if asked != got {
                    settings.notes.push(format!("asked {asked}, capped at {got} by {}", ancestor.absolute().display()));
                }
            }
            quota = None;
            settings.limit = Some(limit);
        }
    }
    let period = (PERIOD, demand.period.to_string());
    let quota = (QUOTA, quota.map_or("-1".to_owned(), |quota| quota.to_string()));
    // Never looser in between than before or after: the longer period goes first, the shorter one last.
    let grows =
        present.and_then(|values| values.get(PERIOD)?.parse::<u64>().ok()).is_none_or(|present| demand.period >= present);
    wanted.extend(if grows { [period, quota] } else { [quota, period] });
    match demand.realtime {
        Some((period, runtime)) if present.is_none_or(|values| values.contains_key(RT_RUNTIME)) && has_realtime(site) => {
            wanted.extend([(RT_PERIOD, period.to_string()), (RT_RUNTIME, runtime.to_string())]);
        }
        Some(_) => settings.notes.push("realtime left out: this kernel has no realtime groups".into()),
        None => {}
    }
    assign(site, wanted, settings);
}

/// Whether the kernel has realtime groups (CONFIG_RT_GROUP_SCHED): the file is at the top of the hierarchy then.
fn has_realtime(site: &Site) -> bool {
    let top = site.levels.first().and_then(|level| level.standing.as_ref());
    top.is_some_and(|top| top.values.contains_key(RT_RUNTIME))
}

fn is_at_least(ours: (u64, u64), theirs: (u64, u64)) -> bool {
    let cpus = |(quota, period): (u64, u64)| Cpus::of(i64::try_from(quota).ok()?, period);
    matches!((cpus(ours), cpus(theirs)), (Some(ours), Some(theirs)) if ours.is_at_least(theirs))
}

/// The nearest group above that has a quota. v1 lets no group below it have more, so it is the tightest.
fn limit_above(site: &Site) -> Option<(&GroupPath, (u64, u64))> {
    site.above().find_map(|level| {
        let values = &level.standing.as_ref()?.values;
        let quota = values.get(QUOTA)?.parse::<u64>().ok().filter(|quota| *quota > 0)?;
        Some((&level.path, (quota, values.get(PERIOD)?.parse().ok()?)))
    })
}

fn set_cpuset(site: &Site, demand: &Demand, settings: &mut Settings) -> Result<(), Error> {
    let mut wanted = Vec::new();
    for (file, asked) in [(CPUS, &demand.cpus), (MEMS, &demand.mems)] {
        let granted = fill_above(site, file, settings)?;
        let list = grant(asked, &granted, file, site, settings)?;
        if file == CPUS {
            settings.cpus = Some(list.clone());
        }
        wanted.push((file, list));
    }
    assign(site, wanted, settings);
    Ok(())
}

/// Fills every empty level of ours above the group from the one above it, and gives what the group can have.
///
/// A v1 cpuset begins empty and takes no thread until it is filled (ENOSPC, cpuset(7)); nor can it have what its parent has not.
fn fill_above(site: &Site, file: &'static str, settings: &mut Settings) -> Result<CpuList, Error> {
    let mut granted = CpuList::default();
    for level in site.levels.iter().rev().skip(1).rev() {
        let present = level.standing.as_ref().and_then(|standing| standing.values.get(file));
        let list: CpuList = present.map_or(Ok(CpuList::default()), |text| text.parse()).unwrap_or_default();
        if !list.is_empty() {
            granted = list;
        } else if level.standing.as_ref().is_some_and(|standing| !standing.is_ours) {
            return Err(Error::EmptyCpuset { file, path: level.path.absolute() });
        } else {
            settings.assignments.push((level.path.clone(), file, granted.to_string()));
        }
    }
    Ok(granted)
}

/// What of `asked` the group can have; all that is granted where nothing is asked.
fn grant(
    asked: &CpuList,
    granted: &CpuList,
    file: &'static str,
    site: &Site,
    settings: &mut Settings,
) -> Result<String, Error> {
    if asked.is_empty() {
        return Ok(granted.to_string());
    }
    let both = asked.and(granted);
    let above = site.group.parent().unwrap_or_else(|| site.group.clone()).absolute();
    if both.is_empty() {
        let why = format!("none of them is in {} ({granted})", above.join(file).display());
        return Err(Error::Demand { what: file, value: asked.to_string(), why });
    }
    let lost = asked.without(&both);
    if !lost.is_empty() {
        settings.notes.push(format!("{file} {lost} left out: not in {}", above.display()));
    }
    Ok(both.to_string())
}

/// Adds what differs from what stands there.
fn assign(site: &Site, wanted: Vec<(&'static str, String)>, settings: &mut Settings) {
    for (file, value) in wanted {
        let is_there = site.own().is_some_and(|own| own.values.get(file).is_some_and(|present| is_same(present, &value)));
        if !is_there {
            settings.assignments.push((site.group.clone(), file, value));
        }
    }
}

/// The same value, however it is written: the kernel's "0-1" is our "0-1", an engine's may be "0,1".
fn is_same(present: &str, wanted: &str) -> bool {
    let list = |text: &str| text.parse::<CpuList>();
    present == wanted || matches!((list(present), list(wanted)), (Ok(a), Ok(b)) if a == b && !a.is_empty())
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxCpu;

    use super::*;
    use crate::testing;

    /// The files of a level and what is in them; `None` for one that is to be made.
    type Fake<'a> = Option<&'a [(&'static str, &'static str)]>;

    /// A site at `rel` whose levels are these, top first; `ours` from that level on.
    fn site(controller: Controller, rel: &str, fakes: &[Fake], ours: usize) -> Site {
        let group = GroupPath::new(&testing::hierarchy(&[controller]), rel);
        let paths: Vec<GroupPath> = std::iter::once(GroupPath::new(&group.hierarchy, "")).chain(group.chain()).collect();
        assert_eq!(paths.len(), fakes.len());
        let standing = |is_ours: bool, values: &[(&'static str, &str)]| {
            let values = values.iter().map(|(file, value)| (*file, (*value).to_owned())).collect();
            Standing { is_ours, values, ..Standing::default() }
        };
        let mut levels = Vec::new();
        for (index, (path, fake)) in paths.into_iter().zip(fakes).enumerate() {
            levels.push(Level { path, standing: fake.map(|values| standing(index >= ours, values)) });
        }
        Site { part: controller.part(), group, levels, is_adopted: false }
    }

    fn demand(json: &str) -> Demand {
        Demand::of(&[serde_json::from_str::<LinuxCpu>(json).unwrap()]).unwrap()
    }

    /// What is written, as "path/file value".
    fn written(settings: &Settings) -> Vec<String> {
        let line = |(group, file, value): &Assignment| format!("{} {value}", group.rel.join(file).display());
        settings.assignments.iter().map(line).collect()
    }

    fn cpu(values: &[Fake], json: &str) -> Settings {
        settings(&[site(Controller::Cpu, "pod/kata_x", values, 2)], &demand(json)).unwrap()
    }

    const LIMITED: &[(&str, &str)] = &[(QUOTA, "100000"), (PERIOD, "100000")];
    const UNLIMITED: &[(&str, &str)] = &[(QUOTA, "-1"), (PERIOD, "100000")];

    #[test]
    fn a_new_group_gets_shares_period_and_quota_in_this_order() {
        let settings = cpu(&[Some(&[]), None, None], r#"{"shares":512,"quota":50000,"period":100000}"#);
        let expected =
            ["pod/kata_x/cpu.shares 512", "pod/kata_x/cpu.cfs_period_us 100000", "pod/kata_x/cpu.cfs_quota_us 50000"];
        assert_eq!(written(&settings), expected);
        assert_eq!(settings.limit, Some((50_000, 100_000)));
    }

    #[test]
    fn what_stands_as_it_should_is_not_written_again() {
        let own: &[_] = &[(SHARES, "512"), (PERIOD, "100000"), (QUOTA, "50000")];
        let asked = r#"{"shares":512,"quota":50000,"period":100000}"#;
        assert_eq!(written(&cpu(&[Some(&[]), Some(UNLIMITED), Some(own)], asked)), Vec::<String>::new());
        let less = r#"{"shares":512,"quota":40000,"period":100000}"#;
        assert_eq!(written(&cpu(&[Some(&[]), Some(UNLIMITED), Some(own)], less)), ["pod/kata_x/cpu.cfs_quota_us 40000"]);
    }

    #[test]
    fn a_limit_that_is_no_more_is_reset() {
        let own: &[_] = &[(SHARES, "512"), (PERIOD, "100000"), (QUOTA, "50000")];
        let settings = cpu(&[Some(&[]), Some(UNLIMITED), Some(own)], "{}");
        assert_eq!(written(&settings), ["pod/kata_x/cpu.shares 1024", "pod/kata_x/cpu.cfs_quota_us -1"]);
        assert_eq!(settings.limit, None);
    }

    #[test]
    fn between_two_writes_the_limit_is_never_looser_than_before_or_after() {
        let own: &[_] = &[(SHARES, "1024"), (PERIOD, "100000"), (QUOTA, "100000")];
        let shorter = written(&cpu(&[Some(&[]), Some(UNLIMITED), Some(own)], r#"{"quota":50000,"period":50000}"#));
        assert_eq!(shorter, ["pod/kata_x/cpu.cfs_quota_us 50000", "pod/kata_x/cpu.cfs_period_us 50000"]);
        let longer = written(&cpu(&[Some(&[]), Some(UNLIMITED), Some(own)], r#"{"quota":200000,"period":200000}"#));
        assert_eq!(longer, ["pod/kata_x/cpu.cfs_period_us 200000", "pod/kata_x/cpu.cfs_quota_us 200000"]);
    }

    #[test]
    fn under_an_ancestor_that_caps_already_ours_stays_unlimited() {
        for (quota, capped) in [(150_000, true), (100_000, true), (99_999, false)] {
            let asked = format!(r#"{{"quota":{quota},"period":100000}}"#);
            let settings = cpu(&[Some(&[]), Some(LIMITED), None], &asked);
            let ours = if capped { "-1".to_owned() } else { quota.to_string() };
            assert_eq!(written(&settings).last().unwrap(), &format!("pod/kata_x/cpu.cfs_quota_us {ours}"));
            assert_eq!(settings.limit, Some((quota.min(100_000), 100_000)));
            assert_eq!(settings.notes.is_empty(), quota <= 100_000, "{:?}", settings.notes);
        }
        let unlimited = cpu(&[Some(&[]), Some(LIMITED), None], "{}");
        assert_eq!((unlimited.limit, unlimited.notes.len()), (Some((100_000, 100_000)), 0));
    }

    #[test]
    fn ratios_are_compared_whatever_their_periods() {
        let settings = cpu(&[Some(&[]), Some(LIMITED), None], r#"{"quota":50000,"period":50000}"#);
        assert_eq!(written(&settings).last().unwrap(), "pod/kata_x/cpu.cfs_quota_us -1");
    }

    #[test]
    fn the_nearest_ancestor_with_a_limit_counts() {
        let values: &[Fake] = &[Some(&[]), Some(LIMITED), Some(UNLIMITED), None];
        let sites = [site(Controller::Cpu, "a/b/kata_x", values, 3)];
        let settings = settings(&sites, &demand(r#"{"quota":200000,"period":100000}"#)).unwrap();
        assert_eq!(settings.limit, Some((100_000, 100_000)));
        assert_eq!(settings.notes, ["asked 200000/100000, capped at 100000/100000 by /c/cpu/a"]);
    }

    #[test]
    fn realtime_is_written_where_the_kernel_has_it_and_else_said() {
        let asked = r#"{"realtimeRuntime":10000,"realtimePeriod":1000000}"#;
        let without = cpu(&[Some(&[]), None, None], asked);
        assert_eq!(without.notes, ["realtime left out: this kernel has no realtime groups"]);
        assert!(written(&without).iter().all(|line| !line.contains("rt_")));
        let with = cpu(&[Some(&[(RT_RUNTIME, "950000")]), None, None], asked);
        let lines = written(&with);
        assert_eq!(lines[3..], ["pod/kata_x/cpu.rt_period_us 1000000", "pod/kata_x/cpu.rt_runtime_us 10000"]);
    }

    const ALL: &[(&str, &str)] = &[(CPUS, "0-3"), (MEMS, "0-1")];
    const EMPTY: &[(&str, &str)] = &[(CPUS, ""), (MEMS, "")];

    fn cpuset(values: &[Fake], ours: usize, json: &str) -> Result<Settings, Error> {
        settings(&[site(Controller::Cpuset, "pod/kata_x", values, ours)], &demand(json))
    }

    #[test]
    fn every_level_to_be_made_is_filled_before_the_group_is() {
        let settings = cpuset(&[Some(ALL), None, None], 1, r#"{"cpus":"1","mems":"0"}"#).unwrap();
        let expected = ["pod/cpuset.cpus 0-3", "pod/cpuset.mems 0-1", "pod/kata_x/cpuset.cpus 1", "pod/kata_x/cpuset.mems 0"];
        assert_eq!(written(&settings), expected);
        assert_eq!(settings.cpus.as_deref(), Some("1"));
    }

    #[test]
    fn a_half_made_level_of_ours_is_filled_and_an_empty_foreign_one_is_an_error() {
        let settings = cpuset(&[Some(ALL), Some(EMPTY), None], 1, "{}").unwrap();
        assert_eq!(written(&settings)[0], "pod/cpuset.cpus 0-3");
        let error = cpuset(&[Some(ALL), Some(EMPTY), None], 2, "{}").unwrap_err().to_string();
        assert_eq!(error, "cpuset.cpus is empty in /c/cpuset/pod, which is not ours to fill: write a list into it");
    }

    #[test]
    fn cpus_that_the_group_above_lacks_are_left_out_and_said() {
        let pod: &[_] = &[(CPUS, "1-2"), (MEMS, "0")];
        let settings = cpuset(&[Some(ALL), Some(pod), None], 2, r#"{"cpus":"2-5"}"#).unwrap();
        assert_eq!(settings.cpus.as_deref(), Some("2"));
        assert_eq!(settings.notes, ["cpuset.cpus 3-5 left out: not in /c/cpuset/pod"]);
        let error = cpuset(&[Some(ALL), Some(pod), None], 2, r#"{"cpus":"5"}"#).unwrap_err().to_string();
        assert_eq!(error, "cpuset.cpus \"5\": none of them is in /c/cpuset/pod/cpuset.cpus (1-2)");
        let error = cpuset(&[Some(ALL), Some(pod), None], 2, r#"{"mems":"7"}"#).unwrap_err().to_string();
        assert!(error.contains("cpuset.mems"), "{error}");
    }

    #[test]
    fn a_list_that_is_the_same_however_it_is_written_is_not_written_again() {
        let own: &[_] = &[(CPUS, "0,1,2,3"), (MEMS, "0-1")];
        assert_eq!(written(&cpuset(&[Some(ALL), Some(ALL), Some(own)], 2, "{}").unwrap()), Vec::<String>::new());
        assert!(!is_same("", "0"));
        assert!(!is_same("100000", "50000"));
    }

    #[test]
    fn an_unconstrained_group_that_shares_its_hierarchy_with_cpuset_is_filled_too() {
        let mut site = site(Controller::Cpuset, "kata/kata_x", &[Some(ALL), None, None], 1);
        site.part = Part::Unconstrained;
        let settings = settings(&[site], &demand(r#"{"cpus":"1"}"#)).unwrap();
        assert_eq!(written(&settings)[2], "kata/kata_x/cpuset.cpus 0-3");
        assert_eq!(settings.cpus, None);
    }

    mod survey {
        use super::*;
        use crate::cgroup::path::SandboxPath;
        use crate::proc::Process;
        use crate::record::{Adopted, RecordedGroup};
        use crate::vmm::kinds::Role;
        use crate::vmm::vcpu::{Proof, Vcpu, Vcpus};
        use crate::vmm::{Member, Vm};

        /// A VMM whose first thread is in `first` of the cpu hierarchy and whose only vCPU in `vcpu`.
        fn vm(first: &str, vcpu: &str) -> Vm {
            let threads = vec![
                testing::thread(100, &format!("1:cpu:{first}")),
                testing::thread(101, &format!("1:cpu:{vcpu}")),
                Thread { is_user_worker: true, ..testing::thread(102, &format!("1:cpu:{vcpu}")) },
            ];
            let vcpus = vec![Vcpu { tid: 101, start: 500, index: Some(0), proof: Proof::Debugfs }];
            Vm {
                kind: "qemu".into(),
                processes: vec![Member { process: Process::nobody(100), start: 400, role: Role::Vmm, threads }],
                vcpus: Vcpus { threads: vcpus, expected: Some(1), parked: 0 },
                is_shim: false,
            }
        }

        fn cpu_site(dir: &std::path::Path, vm: &Vm, record: &Record) -> Site {
            let path = SandboxPath::recorded("pod/kata_x").unwrap();
            let sites = survey(&testing::mounts(dir), &path, vm, record).unwrap();
            assert_eq!(sites.len(), 4);
            sites.into_iter().find(|site| site.controller() == "cpu").unwrap()
        }

        #[test]
        fn where_nothing_stands_everything_is_to_be_made() {
            let dir = tempfile::tempdir().unwrap();
            let site = cpu_site(dir.path(), &vm("/", "/"), &Record::new("sb"));
            assert!(site.own().is_none() && !site.is_adopted);
            assert_eq!(site.levels.iter().filter(|level| level.standing.is_none()).count(), 2);
        }

        #[test]
        fn a_group_of_katas_with_the_vmms_other_threads_in_it_gets_a_child_of_ours() {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join("cpu/pod/kata_x")).unwrap();
            let site = cpu_site(dir.path(), &vm("/pod/kata_x", "/pod/kata_x"), &Record::new("sb"));
            assert_eq!(site.group.rel, std::path::Path::new("pod/kata_x/vcpu"));
            assert!(!site.is_adopted && site.own().is_none());
        }

        #[test]
        fn a_group_of_katas_with_vcpus_alone_in_it_is_adopted_kernel_workers_or_not() {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join("cpu/pod/kata_x")).unwrap();
            std::fs::write(dir.path().join("cpu/pod/kata_x/cpu.shares"), "77\n").unwrap();
            let site = cpu_site(dir.path(), &vm("/", "/pod/kata_x"), &Record::new("sb"));
            assert!(site.is_adopted);
            assert_eq!(site.own().unwrap().values[SHARES], "77");
        }

        #[test]
        fn an_adopted_group_stays_adopted_whatever_is_born_in_it() {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join("cpu/pod/kata_x")).unwrap();
            let mut vm = vm("/", "/pod/kata_x");
            vm.processes[0].threads.push(testing::thread(103, "1:cpu:/pod/kata_x"));
            assert!(cpu_site(dir.path(), &vm, &Record::new("sb")).is_adopted, "a thread born beside a vCPU");
            let mut record = Record::new("sb");
            record.adopted.push(Adopted { path: dir.path().join("cpu/pod/kata_x"), ..Adopted::default() });
            let vm = super::survey::vm("/pod/kata_x", "/pod/kata_x");
            assert!(cpu_site(dir.path(), &vm, &record).is_adopted, "adopted before");
        }

        #[test]
        fn a_child_that_is_ours_already_stays_the_place() {
            use std::os::unix::fs::MetadataExt;
            let dir = tempfile::tempdir().unwrap();
            let child = dir.path().join("cpu/pod/kata_x/vcpu");
            std::fs::create_dir_all(&child).unwrap();
            let mut record = Record::new("sb");
            let inode = std::fs::metadata(&child).unwrap().ino();
            record.groups.push(RecordedGroup { path: child, controllers: vec!["cpu".into()], inode });
            // Even when Kata has moved its other threads elsewhere meanwhile.
            let site = cpu_site(dir.path(), &vm("/", "/pod/kata_x/vcpu"), &record);
            assert_eq!(site.group.rel, std::path::Path::new("pod/kata_x/vcpu"));
            assert!(site.own().unwrap().is_ours);
        }

        #[test]
        fn a_group_that_the_record_knows_by_its_inode_is_ours_and_by_its_name_alone_is_not() {
            use std::os::unix::fs::MetadataExt;
            let dir = tempfile::tempdir().unwrap();
            let group = dir.path().join("cpu/pod/kata_x");
            std::fs::create_dir_all(&group).unwrap();
            let inode = std::fs::metadata(&group).unwrap().ino();
            let mut record = Record::new("sb");
            record.groups.push(RecordedGroup { path: group, controllers: vec!["cpu".into()], inode });
            assert!(cpu_site(dir.path(), &vm("/", "/"), &record).own().unwrap().is_ours);
            record.groups[0].inode += 1;
            assert!(cpu_site(dir.path(), &vm("/", "/"), &record).is_adopted);
        }
    }
}
