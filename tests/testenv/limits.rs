//! What groups and threads may use, in the words of config.json, whichever interface the kernel says it in.

use super::cgroup::{Group, constrained_at};
use super::hierarchy::{Version, place_of};
use super::process::cpus_allowed;

/// The limits of a sandbox, as a container may ask for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// In µs of each period; `None` is without limit.
    pub quota: Option<u64>,
    pub period: u64,
    /// Against its siblings, as the host's interface counts it: `cpu.shares` on v1, `cpu.weight` on v2.
    pub share: u64,
    pub cpus: String,
    pub mems: String,
}

impl Limits {
    /// What somebody has whom nobody limits.
    pub(crate) fn none() -> Limits {
        let top = Group::new("cpuset", "/");
        Limits { quota: None, period: 100_000, share: share_of(1024), cpus: top.cpus(), mems: top.mems() }
    }

    pub(crate) fn quota(self, quota: u64) -> Limits {
        Limits { quota: Some(quota), ..self }
    }

    pub(crate) fn period(self, period: u64) -> Limits {
        Limits { period, ..self }
    }

    /// What the host's interface makes of these shares.
    pub(crate) fn shares(self, shares: u64) -> Limits {
        Limits { share: share_of(shares), ..self }
    }

    pub(crate) fn cpus(self, cpus: &str) -> Limits {
        Limits { cpus: cpus.to_owned(), ..self }
    }

    pub(crate) fn mems(self, mems: &str) -> Limits {
        Limits { mems: mems.to_owned(), ..self }
    }
}

/// The limits of the sandbox whose cgroupsPath leads to `path`: each read where it acts.
pub(crate) fn limits_at(path: &str) -> Limits {
    let (cpu, cpuset) = (constrained_at(path, "cpu"), constrained_at(path, "cpuset"));
    let (quota, period) = cpu.quota_and_period();
    // Below the domain there is nobody whom the vCPUs would have to share with: there the whole domain has the weight.
    let sharing = if cpu.hierarchy.version == Version::V2 { cpu.parent().unwrap() } else { cpu };
    Limits { quota, period, share: sharing.share(), cpus: cpuset.cpus(), mems: cpuset.mems() }
}

/// v1 takes shares as they are, v2 makes a weight of them, 1024 being 100.
pub(crate) fn share_of(shares: u64) -> u64 {
    match Group::new("cpu", "/").hierarchy.version {
        Version::V1 => shares,
        Version::V2 => ((shares * 100 + 512) / 1024).clamp(1, 10_000),
    }
}

impl Group {
    /// Its own quota, `None` being none; and the period that it would be counted in.
    pub(crate) fn quota_and_period(&self) -> (Option<u64>, u64) {
        let (quota, period) = match self.hierarchy.version {
            Version::V1 => (self.value("cpu.cfs_quota_us"), self.value("cpu.cfs_period_us")),
            Version::V2 => {
                let max = self.value("cpu.max");
                let (quota, period) = max.split_once(' ').unwrap_or_else(|| panic!("no limits in {self:?}: {max:?}"));
                (quota.to_owned(), period.to_owned())
            }
        };
        (quota.parse().ok(), period.parse().unwrap_or_else(|_| panic!("no period in {self:?}: {period:?}")))
    }

    pub(crate) fn quota(&self) -> Option<u64> {
        self.quota_and_period().0
    }

    /// In the period that it has.
    pub(crate) fn set_quota(&self, quota: impl Into<Option<u64>>) {
        let quota: Option<u64> = quota.into();
        match self.hierarchy.version {
            Version::V1 => self.set("cpu.cfs_quota_us", quota.map_or("-1".to_owned(), |quota| quota.to_string())),
            Version::V2 => self.set("cpu.max", quota.map_or("max".to_owned(), |quota| quota.to_string())),
        }
    }

    pub(crate) fn set_period(&self, period: u64) {
        match (self.hierarchy.version, self.quota()) {
            (Version::V1, _) => self.set("cpu.cfs_period_us", period),
            (Version::V2, Some(quota)) => self.set("cpu.max", format!("{quota} {period}")),
            (Version::V2, None) => self.set("cpu.max", format!("max {period}")),
        }
    }

    /// The tightest quota and period that act on its threads: its own, or those of a group above it.
    pub(crate) fn cap(&self) -> Option<(u64, u64)> {
        // The root has no limits, and on v2 no file for them; nor has a group there whose parent does not hand the controller down.
        let is_limited = |group: &Group| group.has("cpu.max") || group.has("cpu.cfs_quota_us");
        let levels = self.upwards().filter(|group| group.parent().is_some() && is_limited(group));
        let limits = levels.filter_map(|group| {
            let (quota, period) = group.quota_and_period();
            Some((quota?, period))
        });
        limits.min_by(|(quota, period), (other, others)| (quota * others).cmp(&(other * period)))
    }

    /// What it has against its siblings; see [`Limits::share`].
    pub(crate) fn share(&self) -> u64 {
        let value = self.value(self.share_file());
        value.parse().unwrap_or_else(|_| panic!("no share in {self:?}: {value:?}"))
    }

    /// As many shares as on v1, in the host's words.
    pub(crate) fn set_shares(&self, shares: u64) {
        self.set(self.share_file(), share_of(shares));
    }

    fn share_file(&self) -> &'static str {
        match self.hierarchy.version {
            Version::V1 => "cpu.shares",
            Version::V2 => "cpu.weight",
        }
    }

    pub(crate) fn cpus(&self) -> String {
        self.list("cpuset.cpus")
    }

    pub(crate) fn mems(&self) -> String {
        self.list("cpuset.mems")
    }

    /// On v2 a group whose list is empty has what the one above has.
    fn list(&self, file: &str) -> String {
        let list = self.value(file);
        if list.is_empty() && self.hierarchy.version == Version::V2 { self.value(&format!("{file}.effective")) } else { list }
    }

    /// How much CPU time its threads have had so far, in µs.
    pub(crate) fn time_used(&self) -> u64 {
        match self.hierarchy.version {
            Version::V1 => self.value("cpuacct.usage").parse::<u64>().unwrap() / 1000,
            Version::V2 => self.in_cpu_stat("usage_usec"),
        }
    }

    /// In how many periods its threads were held back.
    pub(crate) fn times_throttled(&self) -> u64 {
        self.in_cpu_stat("nr_throttled")
    }

    fn in_cpu_stat(&self, name: &str) -> u64 {
        let stat = self.value("cpu.stat");
        let value = stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {self:?}: {stat}"))
    }
}

/// The tightest quota and period that act on a thread, and the CPUs that it may run on.
pub(crate) type Freedom = (Option<(u64, u64)>, String);

/// What a thread may use of the CPUs.
pub(crate) fn freedom_of(tid: i32) -> Freedom {
    let cap = place_of(tid, "cpu").and_then(|place| Group::new("cpu", &place).cap());
    (cap, cpus_allowed(tid).unwrap_or_default())
}
