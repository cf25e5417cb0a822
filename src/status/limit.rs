//! What acts on a sandbox's vCPU threads now: read where they are, whoever wrote it there.

use crate::cgroup::file::{CPUS, EFFECTIVE_CPUS, EFFECTIVE_MEMS, MEMS, SHARES, WEIGHT};
use crate::cgroup::mounts::Version;
use crate::cgroup::settings::{self, is_at_least};
use crate::cgroup::site::{self, Level};
use crate::cgroup::{self, Controller, Part, demand};
use crate::error::Error;
use crate::record::Record;
use crate::status::{Group, Limit, Source, ThreadRole};

impl Default for Limit {
    fn default() -> Self {
        Self {
            quota_us: None,
            period_us: demand::DEFAULT_PERIOD,
            shares: None,
            weight: None,
            cpus: String::new(),
            mems: String::new(),
            source: Source::None,
        }
    }
}

/// What is known of whose limit could act.
#[derive(Debug, Default)]
pub struct Asked {
    /// What the containers ask for together.
    pub by_containers: Option<settings::Limit>,
    /// What the pod's own groups allow.
    pub by_pod: Option<settings::Limit>,
}

/// Reads what acts where the vCPU threads are.
pub fn read(groups: &[Group], record: &Record, asked: &Asked) -> Result<Limit, Error> {
    let mut limit = Limit::default();
    if let Some(group) = holder(groups, Controller::Cpu) {
        let levels = site::levels(&group.level.path, record)?;
        if let Some((level, (quota, period))) = tightest(&levels) {
            (limit.quota_us, limit.period_us) = (Some(quota), period);
            limit.source = source((quota, period), level.path == group.level.path && group.is_own, asked);
        }
        let number = |level: Option<&Level>, file| level.and_then(|level| level.value(file)?.parse().ok());
        match group.level.path.hierarchy.version {
            Version::V1 => limit.shares = number(levels.last(), SHARES),
            // In its domain the vCPU threads' group has nobody to be weighed against.
            Version::V2 => limit.weight = number(levels.iter().rev().nth(usize::from(group.role == Part::Constrained)), WEIGHT),
        }
    }
    if let Some(group) = holder(groups, Controller::Cpuset) {
        (limit.cpus, limit.mems) = lists(&group.level);
    }
    Ok(limit)
}

/// The group of this controller that the vCPU threads are in, where there are several the constrained one; while none is found,
/// where they belong.
fn holder(groups: &[Group], controller: Controller) -> Option<&Group> {
    let of_it = || groups.iter().filter(|group| group.level.path.hierarchy.carries(controller));
    let mut holding = of_it().filter(|group| group.threads.iter().any(|thread| thread.role == ThreadRole::Vcpu));
    holding.next().or_else(|| of_it().find(|group| group.role == Part::Constrained))
}

/// The level that allows least.
fn tightest(levels: &[Level]) -> Option<(&Level, settings::Limit)> {
    let limited = levels.iter().rev().filter_map(|level| Some((level, cgroup::limit_of(level)?)));
    limited.reduce(|tightest, other| if is_at_least(other.1, tightest.1) { tightest } else { other })
}

fn source(limit: settings::Limit, is_of_own_group: bool, asked: &Asked) -> Source {
    let is_as =
        |asked: Option<settings::Limit>| asked.is_some_and(|asked| is_at_least(limit, asked) && is_at_least(asked, limit));
    // On v2 what the pod allows is written into the sandbox's own group.
    let is_pods = !is_of_own_group || is_as(asked.by_pod);
    if is_pods && !is_as(asked.by_containers) { Source::Pod } else { Source::Containers }
}

/// The CPUs and memory nodes that a group comes to.
fn lists(level: &Level) -> (String, String) {
    let value = |effective, file| level.value(effective).or(level.value(file)).unwrap_or_default().to_owned();
    (value(EFFECTIVE_CPUS, CPUS), value(EFFECTIVE_MEMS, MEMS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn it_is_the_pods_where_the_pod_allows_less() {
        let asked = |by_containers, by_pod| Asked { by_containers, by_pod };
        let half = (50_000, 100_000);
        assert_eq!(source(half, true, &asked(Some(half), None)), Source::Containers);
        assert_eq!(source(half, true, &asked(Some((25_000, 50_000)), Some(half))), Source::Containers, "they agree");
        assert_eq!(source(half, true, &asked(Some((80_000, 100_000)), Some(half))), Source::Pod, "written on v2");
        assert_eq!(source(half, false, &asked(Some((80_000, 100_000)), Some(half))), Source::Pod, "above on v1");
        assert_eq!(source(half, false, &asked(None, None)), Source::Pod);
    }

    #[test]
    fn the_tightest_of_all_levels_acts_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = testing::mounted_at(dir.path(), &[Controller::Cpu]);
        let group = crate::cgroup::group::GroupPath::new(&hierarchy, "pod/x");
        let limit = |rel: &str, quota: &str| {
            std::fs::create_dir_all(hierarchy.mount.join(rel)).unwrap();
            std::fs::write(hierarchy.mount.join(rel).join("cpu.cfs_quota_us"), quota).unwrap();
            std::fs::write(hierarchy.mount.join(rel).join("cpu.cfs_period_us"), "100000").unwrap();
        };
        let acting = || {
            let levels = site::levels(&group, &Record::new("x")).unwrap();
            tightest(&levels).map(|(level, limit)| (level.path.rel.display().to_string(), limit.0))
        };
        limit("pod/x", "-1");
        assert_eq!(acting(), None);
        limit("pod", "90000");
        assert_eq!(acting(), Some(("pod".into(), 90_000)));
        limit("pod/x", "70000");
        assert_eq!(acting(), Some(("pod/x".into(), 70_000)));
        limit("pod/x", "90000");
        assert_eq!(acting(), Some(("pod/x".into(), 90_000)), "the nearest of equals");
    }
}
