//! cgroup v1: the values that a sandbox's groups are to have.
//!
//! They are written in an order that the kernel takes and that never lets the guest have more in between than before or after.

use crate::cgroup::cpulist::CpuList;
use crate::cgroup::demand::Demand;
use crate::cgroup::file::{CPUS, MEMS, PERIOD, QUOTA, RT_PERIOD, RT_RUNTIME, SHARES};
use crate::cgroup::group::GroupPath;
use crate::cgroup::settings::{Limit, Settings, is_at_least};
use crate::cgroup::site::{Level, Site};
use crate::error::Error;

/// Decides the CPU time of a constrained group.
pub fn set_cpu(site: &Site, demand: &Demand, settings: &mut Settings) {
    let present = site.own().map(|own| &own.values);
    let mut wanted = vec![(SHARES, demand.shares.to_string())];
    let mut quota = demand.quota();
    settings.limit = quota.map(|quota| (quota, demand.period));
    if let Some((ancestor, limit)) = limit_above(site) {
        let is_reached = quota.is_none_or(|quota| is_at_least((quota, demand.period), limit));
        if is_reached {
            // The ancestor caps already. A quota of ours would forbid lowering it (EINVAL in kubelet's in-place resize).
            if let Some(quota) = quota {
                settings.note_cap((quota, demand.period), limit, ancestor);
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
    settings.assign(site, wanted);
}

/// Whether the kernel has realtime groups (CONFIG_RT_GROUP_SCHED): the file is at the top of the hierarchy then.
fn has_realtime(site: &Site) -> bool {
    let top = site.levels.first().and_then(|level| level.standing.as_ref());
    top.is_some_and(|top| top.values.contains_key(RT_RUNTIME))
}

/// The nearest group above that has a quota. v1 lets no group below it have more, so it is the tightest.
fn limit_above(site: &Site) -> Option<(&GroupPath, (u64, u64))> {
    site.above().find_map(|level| Some((&level.path, limit_of(level)?)))
}

/// The quota and period of a group that has a quota.
pub fn limit_of(level: &Level) -> Option<Limit> {
    let quota = level.value(QUOTA)?.parse::<u64>().ok().filter(|quota| *quota > 0)?;
    Some((quota, level.value(PERIOD)?.parse().ok()?))
}

/// Decides the CPUs and memory nodes of a group, and fills those of ours above it that are empty.
pub fn set_cpuset(site: &Site, demand: &Demand, settings: &mut Settings) -> Result<(), Error> {
    let mut wanted = Vec::new();
    for (file, asked) in [(CPUS, &demand.cpus), (MEMS, &demand.mems)] {
        let granted = fill_above(site, file, settings)?;
        let above = site.group.parent().unwrap_or_else(|| site.group.clone()).absolute();
        let list = settings.grant(asked, &granted, file, &above.join(file))?.to_string();
        if file == CPUS {
            settings.cpus = Some(list.clone());
        }
        wanted.push((file, list));
    }
    settings.assign(site, wanted);
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

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxCpu;

    use super::*;
    use crate::cgroup::Controller;
    use crate::cgroup::Part;
    use crate::cgroup::settings;
    use crate::cgroup::settings::{Assignment, is_same};
    use crate::cgroup::site::Standing;
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
        testing::site(controller.part(), group, levels)
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
        assert_eq!(settings.notes, ["cpuset.cpus 3-5 left out: not in /c/cpuset/pod/cpuset.cpus"]);
        let error = cpuset(&[Some(ALL), Some(pod), None], 2, r#"{"cpus":"5"}"#).unwrap_err().to_string();
        assert_eq!(
            error,
            "cpuset.cpus \"5\": none of them is in /c/cpuset/pod/cpuset.cpus (1-2): ask for some of those, or widen that"
        );
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
}
