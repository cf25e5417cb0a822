//! What was written, as somebody else reads it: cgroups-rs, the library that Kata's agent and runtime-rs use.

use std::collections::BTreeSet;

use cgroups_rs::cpu::CpuController;
use cgroups_rs::cpuset::CpuSetController;
use cgroups_rs::{Cgroup, Controller, hierarchies};
use serde_json::json;

use crate::testenv::*;

#[test]
fn another_library_reads_the_same_limits_and_the_same_threads() {
    let Some(env) = Env::new() else { return };
    // It has no mixed mode: where v2 is not all there is, it only looks at v1.
    if !hierarchies::is_cgroup2_unified_mode() && Group::new("cpu", "/").hierarchy.version == Version::V2 {
        return skipped("no cpu on cgroup v1").unwrap_or_default();
    }
    let sandbox = env.sandbox().start();
    let cpu = json!({ "quota": 70_000, "period": 50_000, "shares": 1536, "cpus": "1", "mems": "0" });
    sandbox.place(&env.bundle().cpu(cpu));
    let path = |controller| env.constrained(controller).path.trim_start_matches('/').to_owned();

    let group = Cgroup::load(hierarchies::auto(), path("cpu"));
    let cpu: &CpuController = group.controller_of().unwrap();
    assert_eq!((cpu.cfs_quota().unwrap(), cpu.cfs_period().unwrap()), (70_000, 50_000));
    let threads: BTreeSet<i32> = cpu.tasks().iter().map(|thread| i32::try_from(thread.pid).unwrap()).collect();
    assert_eq!(threads, sandbox.vcpu_threads());

    let group = Cgroup::load(hierarchies::auto(), path("cpuset"));
    let cpuset: &CpuSetController = group.controller_of().unwrap();
    assert_eq!((cpuset.cpuset().cpus, cpuset.cpuset().mems), (vec![(1, 1)], vec![(0, 0)]));

    // On v2 the domain has the weight, of which there is none without its controllers.
    let sharing = env.constrained("cpu");
    if sharing.hierarchy.version == Version::V1 {
        assert_eq!(cpu.shares().unwrap(), 1536);
    } else {
        let domain = Cgroup::load(hierarchies::auto(), sharing.parent().unwrap().path.trim_start_matches('/'));
        let cpu: &CpuController = domain.controller_of().unwrap();
        assert_eq!(cpu.shares().unwrap(), share_of(1536));
    }
}
