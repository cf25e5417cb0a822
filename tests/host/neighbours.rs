//! Hooks beside each other: what one run, or somebody else's container, must not take from a sandbox that is placed.

use std::fs;
use std::time::{Duration, SystemTime};

use crate::testenv::{Engine, Env, Guest, Kind, Strace};

#[test]
fn a_vcpu_that_can_no_longer_be_told_stays_under_its_limit() {
    let Some(env) = Env::with_kvm() else { return };
    let sandbox = env.kvm_sandbox().guest(Guest::Spinning).start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    // The same sandbox once more, with KVM's own word taken away.
    let strace = Strace::without_debugfs(&env);
    env.hook("poststart").state(bundle.state(sandbox.pid)).under(strace.wrapper()).run().succeeded();
    assert!(!strace.tampered().is_empty(), "the hook was expected to ask for debugfs");
    sandbox.assert_vcpus_in(&env.group());
}

#[test]
fn an_annotation_of_another_engines_makes_no_container_part_of_somebody_elses_sandbox() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    sandbox.place(&env.bundle());
    let before = env.dump();
    // CRI-O copies a pod's annotations onto its containers, beside its own.
    for kind in ["sandbox", "container"] {
        let tenant = env
            .bundle_of(Engine::CriO, Kind::Workload, "kch-test-nobody", "evil")
            .annotate("io.kubernetes.cri.container-type", kind)
            .annotate("io.kubernetes.cri.sandbox-id", &env.name)
            .write();
        for stage in ["prestart", "poststart", "poststop"] {
            env.hook(stage).state(tenant.state(sandbox.pid)).run().was_silent();
        }
        fs::remove_dir_all(env.dir.join("bundles/evil")).unwrap();
    }
    before.assert_same(&env.dump(), "a tenant's annotations");
    // Under the sandbox's own name there is no pause container but the sandbox's.
    let tenant = env.bundle_of(Engine::Containerd, Kind::Sandbox, &env.name, "evil");
    env.hook("poststop").state(tenant.state(sandbox.pid)).run().was_silent();
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_vmm_that_cannot_prove_itself_any_more_is_not_taken_for_dead() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let workload = env.bundle_of(Engine::CriO, Kind::Workload, &env.name, "c0ffee");
    sandbox.place(&workload);
    // The record is lost, and the clock was set: the pid file is older than the VMM.
    fs::remove_file(env.state_dir().join(format!("{}.json", env.name))).unwrap();
    fs::remove_dir_all(sandbox.runtime_dir("sbs")).unwrap();
    let pid_file = fs::File::options().write(true).open(sandbox.runtime_dir("vm").join("pid")).unwrap();
    pid_file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    let run = env.hook("poststop").state(workload.state_with_id(&env.name, 0)).run().succeeded();
    run.logged("refused");
    sandbox.assert_vcpus_in(&format!("{}/pod/kata_{}", env.top(), env.name));
    pid_file.set_modified(SystemTime::now()).unwrap();
    sandbox.release(&env.bundle_of(Engine::CriO, Kind::Sandbox, &env.name, &env.name)).logged("released");
    env.assert_no_groups();
}

#[test]
fn of_many_hooks_of_one_sandbox_at_once_one_places_and_the_others_find_it_done() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let hooks: Vec<_> = (0..8).map(|_| env.hook("poststart").state(bundle.state(sandbox.pid)).start()).collect();
    for hook in hooks {
        assert_eq!(hook.wait().code, Some(0));
    }
    sandbox.assert_placed(&env.group());
    let run = env.hook("poststart").dry().state(bundle.state(sandbox.pid)).run();
    assert!(run.own_steps().is_empty(), "{run:#?}");
}

#[test]
fn a_limit_above_that_shrinks_is_planned_with() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let pod = env.pod("cpu");
    pod.make();
    pod.set_quota(200_000);
    sandbox.place(&bundle);
    let own = env.constrained("cpu");
    assert_eq!((own.quota(), own.cap()), (Some(150_000), Some((150_000, 100_000))));
    // v1 lets nobody lower a group below what one in it has; so ours lets go first, as an in-place resize would have to.
    own.set_quota(None);
    pod.set_quota(100_000);
    let run = env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded();
    assert_eq!(run.only_log_line().get("limit"), "100000/100000");
    assert_eq!(own.cap(), Some((100_000, 100_000)));
    // A quota of ours would keep the pod's from being lowered again.
    assert!(!own.is_below(&pod) || own.quota().is_none());
    sandbox.assert_vcpus_in(&env.group());
}
