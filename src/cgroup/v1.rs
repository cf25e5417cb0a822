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
    if is_made || holds_vmm_threads(&site, vm) {
        site.levels.push(ours);
        site.group = child;
    } else {
        site.is_adopted = true;
    }
    Ok(site)
}

/// Whether the group holds threads of the VMM that are no vCPUs. Kernel workers do not count: they are born beside the vCPU
/// that made them.
fn holds_vmm_threads(site: &Site, vm: &Vm) -> bool {
    let others = vm.vmm().into_iter().flat_map(|vmm| &vmm.threads);
    others
        .filter(|thread| !thread.is_user_worker && !vm.is_vcpu(thread.tid))
        .any(|thread| site.place_of(thread).as_ref() == Some(&site.group))
}

fn levels(group: &GroupPath, record: &Record) -> Result<Vec<Level>, Error> {
    let top = GroupPath::new(&group.hierarchy, "");
    std::iter::once(top).chain(group.chain()).map(|path| level(&path, record)).collect()
}

/// Reads one level: whose it is, and the values that matter of the controllers that its hierarchy carries.
pub fn level(path: &GroupPath, record: &Record) -> Result<Level, Error> {
    let Some(group) = path.open()? else {
        return Ok(Level { path: path.clone(), standing: None });
    };
    let (inode, mark) = (group.inode()?, group.mark());
    let is_ours = mark.is_some() || record.knows(&path.absolute(), inode);
    let standing = Standing { inode, mark, is_ours, values: read_values(&group, &path.hierarchy)? };
    Ok(Level { path: path.clone(), standing: Some(standing) })
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
    pub shares: Option<u64>,
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
    settings.shares = Some(demand.shares);
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
            return Err(Error::Demand {
                what: file,
                value: String::new(),
                why: format!("empty in {}, which is not ours to fill: write a list into it", level.path.absolute().display()),
            });
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
