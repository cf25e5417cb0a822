//! How much CPU a sandbox asks for: the sum over its containers.
//!
//! Exactly: CPU time is added as fractions, so that 1 CPU over 50 ms and 1 CPU over 100 ms make 2 CPUs, where Kata 1.9 added
//! the quotas alone and made 1.5. One container without a limit makes the sandbox unlimited, as kubelet has it for the pod; -1
//! and 0 are "no limit" and never added. Where all periods agree and nobody is unlimited, this is what Kata 1.9 computed.

use oci_spec::runtime::LinuxCpu;

use crate::cgroup::cpulist::CpuList;
use crate::error::Error;
use crate::oci::state::Annotations;

/// The kernel's period where nobody states one, in µs.
pub const DEFAULT_PERIOD: u64 = 100_000;
/// The kernel's realtime period where nobody states one, in µs (`def_rt_bandwidth`, sched-rt-group.rst): it takes no 0.
const DEFAULT_REALTIME_PERIOD: u64 = 1_000_000;
/// The kernel's shares where nobody states any.
pub const DEFAULT_SHARES: u64 = 1024;
/// The kernel takes no quota below this, in µs (`min_cfs_quota_period`, kernel/sched/core.c).
const LEAST_QUOTA: u64 = 1000;

/// An exact number of CPUs: `.0 / .1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus(u128, u128);

impl Cpus {
    /// `quota / period`, both in µs; `None` for what is no limit.
    pub fn of(quota: i64, period: u64) -> Option<Self> {
        let quota = u128::try_from(quota).ok().filter(|quota| *quota > 0)?;
        Some(Self(quota, u128::from(period).max(1)))
    }

    /// The sum, exactly; `None` where it cannot be held.
    fn plus(self, other: Self) -> Option<Self> {
        let numerator = self.0.checked_mul(other.1)?.checked_add(other.0.checked_mul(self.1)?)?;
        let denominator = self.1.checked_mul(other.1)?;
        let divisor = greatest_common_divisor(numerator, denominator);
        Some(Self(numerator / divisor, denominator / divisor))
    }

    /// The CPU time in a period, in µs, rounded down.
    fn in_period(self, period: u64) -> Option<u64> {
        u64::try_from(self.0.checked_mul(u128::from(period))? / self.1).ok()
    }

    /// Whether it is as much as `other` or more.
    pub fn is_at_least(self, other: Self) -> bool {
        // Quotas and periods that the kernel has taken are far below 2^63, so this cannot overflow.
        match (self.0.checked_mul(other.1), other.0.checked_mul(self.1)) {
            (Some(ours), Some(others)) => ours >= others,
            _ => false,
        }
    }
}

fn greatest_common_divisor(a: u128, b: u128) -> u128 {
    if b == 0 { a.max(1) } else { greatest_common_divisor(b, a % b) }
}

/// What a sandbox's vCPUs are to get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// CPU time; `None` is without limit.
    pub cpus_worth: Option<Cpus>,
    /// The largest period that a container states, in µs.
    pub period: u64,
    /// The largest of the containers' shares, within what the kernel takes.
    pub shares: u64,
    /// Realtime period and runtime in µs, summed as Kata does.
    pub realtime: Option<(u64, u64)>,
    /// The CPUs that any container names; empty means any.
    pub cpus: CpuList,
    /// The memory nodes that any container names; empty means any.
    pub mems: CpuList,
}

impl Demand {
    /// Sums what `containers` ask for. None at all ask for nothing: no limit, the kernel's shares, any CPU.
    pub fn of<'a>(containers: impl IntoIterator<Item = &'a LinuxCpu>) -> Result<Self, Error> {
        let mut demand =
            Self { cpus_worth: None, period: 0, shares: 0, realtime: None, cpus: CpuList::default(), mems: CpuList::default() };
        let mut limits = Vec::new();
        let (mut realtime_period, mut realtime_runtime) = (0_u64, 0_u64);
        for cpu in containers {
            let period = cpu.period().filter(|period| *period > 0);
            limits.push(Cpus::of(cpu.quota().unwrap_or(-1), period.unwrap_or(DEFAULT_PERIOD)));
            demand.period = demand.period.max(period.unwrap_or(0));
            demand.shares = demand.shares.max(cpu.shares().unwrap_or(0));
            realtime_period = realtime_period.saturating_add(cpu.realtime_period().unwrap_or(0));
            let runtime = u64::try_from(cpu.realtime_runtime().unwrap_or(0)).unwrap_or(0);
            realtime_runtime = realtime_runtime.saturating_add(runtime);
            demand.cpus = demand.cpus.or(&list("resources.cpu.cpus", cpu.cpus().as_deref())?);
            demand.mems = demand.mems.or(&list("resources.cpu.mems", cpu.mems().as_deref())?);
        }
        if demand.period == 0 {
            demand.period = DEFAULT_PERIOD;
        }
        demand.shares = if demand.shares == 0 { DEFAULT_SHARES } else { demand.shares.clamp(2, 262_144) };
        let realtime_period = if realtime_period == 0 { DEFAULT_REALTIME_PERIOD } else { realtime_period };
        demand.realtime = (realtime_runtime > 0).then_some((realtime_period, realtime_runtime));
        demand.cpus_worth = sum(&limits)?;
        // Uncounted, it would be no limit.
        if demand.cpus_worth.is_some() && demand.quota().is_none() {
            return Err(too_large(&limits));
        }
        Ok(demand)
    }

    /// The same, limited by the pod's own groups alone.
    #[must_use]
    pub fn of_the_pod_alone(self) -> Self {
        Self { cpus_worth: None, cpus: CpuList::default(), mems: CpuList::default(), ..self }
    }

    /// The quota in µs for [`Self::period`]; `None` is without limit.
    pub fn quota(&self) -> Option<u64> {
        self.cpus_worth?.in_period(self.period).map(|quota| quota.max(LEAST_QUOTA))
    }
}

/// Σ, or no limit where there is none to add or somebody has none.
fn sum(limits: &[Option<Cpus>]) -> Result<Option<Cpus>, Error> {
    let Some(known) = limits.iter().copied().collect::<Option<Vec<Cpus>>>() else {
        return Ok(None);
    };
    let mut sum: Option<Cpus> = None;
    for limit in known {
        sum = Some(match sum {
            None => limit,
            Some(sum) => sum.plus(limit).ok_or_else(|| too_large(limits))?,
        });
    }
    Ok(sum)
}

fn too_large(limits: &[Option<Cpus>]) -> Error {
    let limits: Vec<&Cpus> = limits.iter().flatten().collect();
    Error::Demand { what: "sum of quota/period", value: format!("{limits:?}"), why: "larger than can be counted".into() }
}

fn list(what: &'static str, text: Option<&str>) -> Result<CpuList, Error> {
    let text = text.unwrap_or_default();
    text.parse().map_err(|why| Error::Demand { what, value: text.to_owned(), why })
}

/// What containerd writes of the whole pod on its pause container; `None` where it writes nothing.
pub fn of_pod(annotations: &Annotations) -> Option<LinuxCpu> {
    let number = |text: &Option<String>| text.as_deref()?.parse::<i64>().ok();
    let positive = |text: &Option<String>| u64::try_from(number(text)?).ok();
    let mut cpu = LinuxCpu::default();
    cpu.set_quota(number(&annotations.sandbox_quota));
    cpu.set_period(positive(&annotations.sandbox_period));
    cpu.set_shares(positive(&annotations.sandbox_shares));
    (cpu != LinuxCpu::default()).then_some(cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(json: &str) -> LinuxCpu {
        serde_json::from_str(json).unwrap()
    }

    fn demand(containers: &[&str]) -> Demand {
        Demand::of(&containers.iter().map(|json| cpu(json)).collect::<Vec<_>>()).unwrap()
    }

    fn limit(containers: &[&str]) -> (Option<u64>, u64) {
        let demand = demand(containers);
        (demand.quota(), demand.period)
    }

    #[test]
    fn one_container_gets_what_it_asks_for() {
        let demand = demand(&[r#"{"shares":512,"quota":50000,"period":100000,"cpus":"0","mems":"0"}"#]);
        assert_eq!((demand.quota(), demand.period, demand.shares), (Some(50_000), 100_000, 512));
        assert_eq!((demand.cpus.to_string(), demand.mems.to_string()), ("0".into(), "0".into()));
    }

    /// What Kata 1.9 made of the same containers (virtcontainers/cgroups.go at 0075bf85ba, `cpuResources` and `validCPUResources`):
    /// quotas summed as they stand, periods and shares the largest, nothing where that is below 1.
    fn kata_1_9(containers: &[&str]) -> (Option<u64>, u64, u64) {
        let all: Vec<LinuxCpu> = containers.iter().map(|json| cpu(json)).collect();
        let quota: i64 = all.iter().filter_map(LinuxCpu::quota).sum();
        let period = all.iter().filter_map(LinuxCpu::period).max().unwrap_or(DEFAULT_PERIOD);
        let shares = all.iter().filter_map(LinuxCpu::shares).max().unwrap_or(DEFAULT_SHARES);
        (u64::try_from(quota).ok().filter(|quota| *quota > 0), period, shares)
    }

    #[test]
    fn where_periods_agree_and_all_are_limited_it_is_what_kata_1_9_made_of_it() {
        let table: [&[&str]; 6] = [
            &[r#"{"quota":50000,"period":100000,"shares":512}"#],
            &[r#"{"quota":50000,"period":100000,"shares":512}"#, r#"{"quota":100000,"period":100000,"shares":1024}"#],
            &[r#"{"quota":1000,"period":50000}"#, r#"{"quota":2000,"period":50000,"shares":2}"#],
            &[r#"{"quota":33333,"period":100000}"#, r#"{"quota":33333,"period":100000}"#, r#"{"quota":33334,"period":100000}"#],
            &[r#"{"quota":800000,"period":1000000,"shares":262144}"#, r#"{"quota":1,"period":1000000}"#],
            &[],
        ];
        for containers in table {
            let demand = demand(containers);
            let ours = (demand.quota(), demand.period, demand.shares);
            assert_eq!(ours, kata_1_9(containers), "{containers:?}");
        }
    }

    #[test]
    fn where_kata_1_9_was_wrong_it_is_what_was_asked_for() {
        type Row<'a> = (&'a [&'a str], (Option<u64>, u64), &'a str);
        let table: [Row; 6] = [
            (
                &[r#"{"quota":50000,"period":50000}"#, r#"{"quota":100000,"period":100000}"#],
                (Some(200_000), 100_000),
                "two CPUs, counted as 1.5 because the periods differ",
            ),
            (
                &[r#"{"quota":100000,"period":100000}"#, r#"{"quota":100000,"period":200000}"#],
                (Some(300_000), 200_000),
                "1.5 CPUs, counted as one",
            ),
            (
                &[r#"{"quota":100000,"period":100000}"#, r#"{"quota":-1,"period":100000}"#],
                (None, 100_000),
                "no limit, counted as 99,999 us",
            ),
            (
                &[r#"{"quota":100000,"period":100000}"#, r#"{"shares":2}"#],
                (None, 100_000),
                "a container without a limit, held to the other's",
            ),
            (
                &[r#"{"quota":-1}"#, r#"{"quota":50000,"period":100000}"#, r#"{"quota":-1}"#],
                (None, 100_000),
                "the same, counted as 49,998 us",
            ),
            (
                &[r#"{"quota":500,"period":100000}"#],
                (Some(1000), 100_000),
                "less than the kernel takes, which left it unlimited",
            ),
        ];
        for (containers, right, what) in table {
            let (quota, period, _) = kata_1_9(containers);
            assert_ne!((quota, period), right, "{what}: Kata was right");
            assert_eq!(limit(containers), right, "{what}");
        }
    }

    #[test]
    fn where_they_differ_it_is_the_true_sum() {
        assert_eq!(
            limit(&[r#"{"quota":50000,"period":50000}"#, r#"{"quota":100000,"period":100000}"#]),
            (Some(200_000), 100_000)
        );
        assert_eq!(limit(&[r#"{"quota":1,"period":3}"#, r#"{"quota":1,"period":7}"#]), (Some(1000), 7));
        assert_eq!(
            limit(&[r#"{"quota":20000,"period":30000}"#, r#"{"quota":10000,"period":100000}"#]),
            (Some(76_666), 100_000)
        );
    }

    #[test]
    fn no_limit_is_never_added_and_dominates() {
        for none in [r#"{"quota":-1,"period":100000}"#, r#"{"quota":0}"#, r#"{"quota":-100000}"#, "{}"] {
            assert_eq!(limit(&[none]).0, None, "{none}");
            assert_eq!(limit(&[none, r#"{"quota":50000,"period":100000}"#]).0, None, "{none}");
            assert_eq!(limit(&[r#"{"quota":50000,"period":100000}"#, none]).0, None, "{none}");
        }
    }

    #[test]
    fn a_sum_that_cannot_be_counted_is_an_error_and_not_no_limit() {
        let periods = [999_983, 999_979, 999_961, 999_959, 999_953, 999_931];
        let cpus = periods.map(|period| cpu(&format!(r#"{{"quota":{},"period":{period}}}"#, period / 4)));
        assert!(Demand::of(&cpus[..4]).unwrap().quota().is_some());
        let error = Demand::of(&cpus).unwrap_err().to_string();
        assert!(error.contains("larger than can be counted"), "{error}");
    }

    #[test]
    fn a_realtime_runtime_without_a_period_has_the_kernels() {
        let demand = |json| Demand::of([&cpu(json)]).unwrap().realtime;
        assert_eq!(demand(r#"{"realtimeRuntime":1000}"#), Some((1_000_000, 1000)));
        assert_eq!(demand(r#"{"realtimeRuntime":1000,"realtimePeriod":5000}"#), Some((5000, 1000)));
        assert_eq!(demand(r#"{"realtimePeriod":5000}"#), None);
    }

    #[test]
    fn nobody_asks_for_nothing() {
        let demand = demand(&[]);
        assert_eq!((demand.quota(), demand.period, demand.shares), (None, DEFAULT_PERIOD, DEFAULT_SHARES));
        assert!(demand.cpus.is_empty() && demand.realtime.is_none());
    }

    #[test]
    fn a_quota_without_a_period_is_of_the_kernels_period() {
        assert_eq!(limit(&[r#"{"quota":50000}"#]), (Some(50_000), 100_000));
        assert_eq!(limit(&[r#"{"quota":50000,"period":0}"#]), (Some(50_000), 100_000));
        assert_eq!(limit(&[r#"{"quota":50000}"#, r#"{"quota":50000,"period":200000}"#]), (Some(150_000), 200_000));
    }

    #[test]
    fn shares_stay_within_what_the_kernel_takes() {
        for (asked, got) in [(0, 1024), (1, 2), (2, 2), (262_144, 262_144), (262_145, 262_144)] {
            assert_eq!(demand(&[&format!(r#"{{"shares":{asked}}}"#)]).shares, got, "{asked}");
        }
    }

    #[test]
    fn realtime_is_summed_as_kata_does_and_nothing_is_nothing() {
        let both = [r#"{"realtimeRuntime":10,"realtimePeriod":100}"#, r#"{"realtimeRuntime":5,"realtimePeriod":100}"#];
        assert_eq!(demand(&both).realtime, Some((200, 15)));
        assert_eq!(demand(&[r#"{"realtimeRuntime":-1,"realtimePeriod":100}"#]).realtime, None);
        assert_eq!(demand(&[r#"{"realtimeRuntime":0}"#]).realtime, None);
    }

    #[test]
    fn cpu_lists_are_united_and_a_wrong_one_is_named() {
        let demand = demand(&[r#"{"cpus":"0-1","mems":"0"}"#, r#"{"cpus":"3,","mems":"1,"}"#]);
        assert_eq!((demand.cpus.to_string(), demand.mems.to_string()), ("0-1,3".into(), "0-1".into()));
        let error = Demand::of(&[cpu(r#"{"cpus":"0-x"}"#)]).unwrap_err().to_string();
        assert_eq!(error, "resources.cpu.cpus \"0-x\": \"x\" is no number below 65536");
    }

    #[test]
    fn sums_beyond_counting_are_an_error_and_not_a_small_limit() {
        let huge = |period: u64| cpu(&format!(r#"{{"quota":{},"period":{period}}}"#, i64::MAX));
        let many = [huge(u64::MAX), huge(u64::MAX - 1), huge(u64::MAX - 2)];
        assert!(Demand::of(&many).unwrap_err().to_string().contains("larger than can be counted"));
    }

    #[test]
    fn a_hundred_containers_are_still_summed_exactly() {
        let many: Vec<LinuxCpu> = (0..100).map(|_| cpu(r#"{"quota":33333,"period":100000}"#)).collect();
        let demand = Demand::of(&many).unwrap();
        assert_eq!((demand.quota(), demand.period), (Some(3_333_300), 100_000));
    }

    #[test]
    fn more_is_at_least_as_much_and_less_is_not() {
        let half = Cpus::of(50_000, 100_000).unwrap();
        assert!(half.is_at_least(Cpus::of(25_000, 50_000).unwrap()));
        assert!(half.is_at_least(Cpus::of(49_999, 100_000).unwrap()));
        assert!(!half.is_at_least(Cpus::of(50_001, 100_000).unwrap()));
    }

    #[test]
    fn containerds_pod_totals_are_read_from_the_pause_container() {
        let annotations = |json: &str| serde_json::from_str::<Annotations>(json).unwrap();
        let pod = of_pod(&annotations(
            r#"{"io.kubernetes.cri.sandbox-cpu-quota":"150000","io.kubernetes.cri.sandbox-cpu-period":"100000",
                "io.kubernetes.cri.sandbox-cpu-shares":"1536"}"#,
        ));
        assert_eq!(pod.unwrap(), cpu(r#"{"quota":150000,"period":100000,"shares":1536}"#));
        assert_eq!(of_pod(&annotations("{}")), None);
        assert_eq!(of_pod(&annotations(r#"{"io.kubernetes.cri.sandbox-cpu-quota":"lots"}"#)), None);
    }
}
