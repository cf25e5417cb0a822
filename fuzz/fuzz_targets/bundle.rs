//! A bundle's config.json: where oci-spec's own parser takes it as well, both have read the same; what the containers ask for
//! together is within what the kernel takes.
#![no_main]

use kata_cgroup_hook::cgroup::cpulist::CpuList;
use kata_cgroup_hook::cgroup::demand::{self, Demand};
use kata_cgroup_hook::oci::bundle::Bundle;
use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::Spec;

fuzz_target!(|data: &[u8]| {
    let Ok(bundle) = Bundle::parse(data) else { return };
    if let Ok(spec) = serde_json::from_slice::<Spec>(data) {
        let linux = spec.linux().as_ref();
        let path = linux.and_then(|linux| linux.cgroups_path().clone()).unwrap_or_default();
        let cpu = linux.and_then(|linux| linux.resources().as_ref()?.cpu().clone()).unwrap_or_default();
        assert_eq!((path.as_os_str(), cpu), (bundle.cgroups_path.as_ref(), bundle.cpu.clone()));
    }
    let _ = bundle.annotations.container_name();
    let of_pod = demand::of_pod(&bundle.annotations);
    check(&[&bundle.cpu]);
    if let Some(of_pod) = &of_pod {
        check(&[&bundle.cpu, of_pod, &bundle.cpu]);
    }
});

/// What `containers` ask for together, if that can be summed.
fn check(containers: &[&oci_spec::runtime::LinuxCpu]) {
    let Ok(demand) = Demand::of(containers.iter().copied()) else { return };
    assert!((2..=262_144).contains(&demand.shares));
    assert!(demand.period > 0);
    assert!(demand.quota().is_none_or(|quota| quota >= 1000));
    let is_unlimited = containers.iter().any(|cpu| cpu.quota().unwrap_or(-1) <= 0);
    assert_eq!(demand.cpus_worth.is_none(), is_unlimited, "one without a limit, and only that, makes the sum unlimited");
    for list in [&demand.cpus, &demand.mems] {
        assert_eq!(list.to_string().parse::<CpuList>().as_ref(), Ok(list));
    }
    let one = Demand::of(containers.iter().take(1).copied()).expect("part of what can be summed");
    assert_eq!(one.cpus.without(&demand.cpus), CpuList::default());
    for cpu in containers {
        assert!(cpu.period().unwrap_or(0) <= demand.period);
        assert!(cpu.shares().unwrap_or(0).min(262_144) <= demand.shares);
    }
}
