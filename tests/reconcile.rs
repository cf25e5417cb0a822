//! `reconcile`: what no hook announces is caught by it, and nothing of a sandbox that is gone stays.
//!
//! A crate of its own, because it looks at the whole host; but it only touches what was made under its own state directory.

mod testenv;

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::json;
use testenv::*;

/// One test at a time: each looks at the whole host, and on v2 all sandboxes share the weight of /kata.
static HOST: Mutex<()> = Mutex::new(());

fn alone() -> Option<(Env, MutexGuard<'static, ()>)> {
    let alone = HOST.lock().unwrap_or_else(PoisonError::into_inner);
    Some((Env::new()?, alone))
}

fn reconcile(env: &Env) -> Hook<'_> {
    env.hook("reconcile")
}

/// What it says of this environment; others may have things lying about.
fn said<'r>(env: &Env, run: &'r Run) -> Vec<&'r str> {
    run.stdout.lines().filter(|line| line.contains(&env.name)).collect()
}

/// It went well and had nothing to say.
#[track_caller]
fn assert_all_well(env: &Env) {
    let run = reconcile(env).run();
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
    assert!(said(env, &run).is_empty() && run.log.is_empty(), "{run:#?}");
}

/// It went well and did something, which the log says in one line.
#[track_caller]
fn assert_acts(env: &Env, result: &str) -> Run {
    let dry = reconcile(env).dry().run();
    let run = reconcile(env).run();
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
    assert!(!said(env, &run).is_empty(), "{run:#?}");
    // What all sandboxes share goes with the last of them, whichever test's that is; and who has just been killed may need a moment.
    let is_certain = |line: &&str| line.matches(&env.name).count() > 1 && !line.contains(" drain ");
    let own = |run| said(env, run).into_iter().filter(is_certain).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(own(&dry), own(&run), "what the dry run said");
    assert!(dry.log.is_empty(), "{dry:#?}");
    assert_eq!(run.logged(result).get("stage"), "reconcile");
    assert_all_well(env);
    run
}

fn record_of(env: &Env) -> PathBuf {
    env.state_dir().join(format!("{}.json", env.name))
}

#[test]
fn where_nothing_was_ever_placed_there_is_nothing_to_do() {
    let Some((env, _alone)) = alone() else { return };
    assert_all_well(&env);
    assert!(!env.state_dir().exists());
}

/// Who was given a group of his own makes as many in it as he likes.
#[test]
fn groups_within_each_other_by_the_thousand_are_in_nobodys_way() {
    let Some((env, _alone)) = alone() else { return };
    let mut sandbox = env.sandbox().start();
    sandbox.place(&env.bundle());
    let users = Group::new("cpu", &format!("{}/users", env.top()));
    users.make();
    let mut deepest = users.clone();
    for _ in 0..1100 {
        deepest = deepest.child("x");
        deepest.mkdir().unwrap();
    }
    sandbox.kill();
    fs::remove_file(record_of(&env)).unwrap();
    let few_descriptors = ["prlimit", "--nofile=256:256", "--"];
    let status = env.hook("status").arg(&env.name).under(few_descriptors).run();
    assert!(status.code == Some(0) && status.stdout.contains("orphan"), "{status:#?}");
    let run = reconcile(&env).under(few_descriptors).run();
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
    assert!(run.logged("released").get("removed") != "0" && !env.constrained("cpu").exists(), "{run:#?}");
    assert!(users.exists(), "somebody else's");
}

#[test]
fn a_vcpu_that_was_plugged_in_is_taken_up() {
    let Some((env, _alone)) = alone() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    sandbox.place(&env.bundle());
    assert_all_well(&env);
    sandbox.qmp().plug_cpu_2();
    let run = assert_acts(&env, "placed");
    assert!(said(&env, &run).iter().any(|line| line.starts_with(&format!("{} move-thread {}/", env.name, sandbox.pid))));
    assert_eq!(sandbox.vcpus().len(), 3);
    sandbox.assert_placed(&env.group());
}

#[test]
fn threads_that_somebody_moved_away_come_back() {
    let Some((env, _alone)) = alone() else { return };
    let sandbox = env.sandbox().start();
    let (homes, bundle) = (everywhere("/"), env.bundle());
    sandbox.place(&bundle);
    // On v2 that takes the whole process along, as it does when Kata does it.
    for top in &homes {
        top.take_in(sandbox.pid);
    }
    assert_acts(&env, "placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_pod_that_was_resized_is_followed() {
    let Some((env, _alone)) = alone() else { return };
    let sandbox = env.sandbox().start();
    env.pod("cpu").make();
    env.pod("cpu").set_quota(150_000);
    sandbox.place(&env.bundle_of(Engine::CriO, Kind::Workload, &env.name, "c0ffee"));
    let cap = || env.constrained("cpu").cap();
    assert_eq!(cap(), Some((150_000, 100_000)));
    for quota in [300_000, 100_000] {
        env.pod("cpu").set_quota(quota);
        let run = reconcile(&env).run();
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
        assert_eq!(cap(), Some((quota, 100_000)));
        assert_all_well(&env);
    }
}

#[test]
fn a_pods_new_cpus_are_followed() {
    let Some((env, _alone)) = alone() else { return };
    let sandbox = env.sandbox().start();
    let pod = env.pod("cpuset");
    pod.make();
    pod.set("cpuset.cpus", "0");
    sandbox.place(&env.bundle());
    assert_eq!(env.constrained("cpuset").cpus(), "0");
    pod.set("cpuset.cpus", "0-1");
    reconcile(&env).run();
    assert_eq!(env.constrained("cpuset").cpus(), "0-1");
    assert_all_well(&env);
}

#[test]
fn a_sandbox_whose_vm_is_gone_is_released() {
    let Some((env, _alone)) = alone() else { return };
    let mut sandbox = env.sandbox().virtiofsd().start();
    let workload = env.bundle_of(Engine::CriO, Kind::Workload, &env.name, "c0ffee");
    sandbox.place(&workload);
    env.hook("poststop").state(workload.state_with_id(&env.name, sandbox.pid)).run().succeeded();
    assert_all_well(&env);
    sandbox.assert_placed(&env.group());
    sandbox.kill();
    assert_acts(&env, "released");
    env.assert_no_groups();
    assert!(!record_of(&env).exists());
}

#[test]
fn a_run_that_was_killed_is_completed() {
    let Some((env, _alone)) = alone() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle();
    for call in ["mkdirat:signal=KILL:when=3", "write:signal=KILL:when=6"] {
        let strace = Strace::inject(&env, &[call]);
        let killed = env.hook("prestart").state(bundle.state(sandbox.pid)).under(strace.wrapper()).run();
        assert_ne!(killed.code, Some(0), "{killed:#?}");
        let run = reconcile(&env).run();
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
        sandbox.assert_placed(&env.group());
        sandbox.release(&bundle).logged("released");
        env.assert_no_groups();
    }
}

#[test]
fn groups_of_ours_that_no_record_knows_go_unless_somebody_is_in_them() {
    let Some((env, _alone)) = alone() else { return };
    let mut sandbox = env.sandbox().start();
    sandbox.place(&env.bundle());
    fs::remove_file(record_of(&env)).unwrap();
    let run = reconcile(&env).run();
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
    let lines = said(&env, &run);
    let holds = format!("holds {} (qemu-system-x86)", sandbox.pid);
    assert!(lines.iter().any(|line| line.starts_with(&format!("{} left: ", env.name)) && line.contains(&holds)), "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains(" left: ")), "{lines:#?}");
    sandbox.assert_placed(&env.group());
    sandbox.kill();
    assert_acts(&env, "released");
    env.assert_no_groups();
}

#[test]
fn what_has_a_name_of_ours_and_no_mark_is_told_and_left() {
    let Some((env, _alone)) = alone() else { return };
    let group = Group::new("cpu", &format!("{}/kata_{}", env.top(), env.name));
    group.make();
    let run = reconcile(&env).run();
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
    let expected = format!(
        "- left: {} is empty, and nothing proves that it is ours: remove it (rmdir) if nobody uses it",
        group.path_on_host().display()
    );
    assert!(said(&env, &run).contains(&expected.as_str()), "{run:#?}");
    assert!(group.exists());
    // What a user calls so in a group of his own is nobody's business.
    chown(group.path_on_host(), Some(65534), None).unwrap();
    assert_all_well(&env);
    // Another state directory's are another hook's.
    let other = env.sandbox().start();
    other.place(&env.bundle());
    env.configure(&format!("state-dir = \"{}\"\n", env.dir.join("elsewhere").display()));
    let run = reconcile(&env).run();
    assert!(!said(&env, &run).iter().any(|line| line.contains("remove")), "{run:#?}");
    env.configure("");
    other.release(&env.bundle()).logged("released");
}

#[test]
fn a_sandbox_that_a_hook_is_working_on_is_skipped_and_said() {
    let Some((env, _alone)) = alone() else { return };
    let mut sandbox = env.sandbox().start();
    sandbox.place(&env.bundle());
    sandbox.kill();
    let lock =
        fs::File::options().write(true).create(true).truncate(false).open(record_of(&env).with_extension("lock")).unwrap();
    let lock = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let run = reconcile(&env).run();
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
    assert_eq!(said(&env, &run), [format!("{} skipped: another run is working on it", env.name)]);
    drop(lock);
    assert_acts(&env, "released");
}

#[test]
fn a_record_that_is_not_understood_is_told_and_left_to_the_next_hook() {
    let Some((env, _alone)) = alone() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    fs::write(record_of(&env), "{").unwrap();
    let run = reconcile(&env).run();
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
    assert!(run.stdout.contains("its record is not understood"), "{run:#?}");
    sandbox.assert_placed(&env.group());
    env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded();
    assert_all_well(&env);
}

#[test]
fn a_record_that_is_not_understood_goes_out_of_the_way_once_the_vm_is_gone() {
    let Some((env, _alone)) = alone() else { return };
    let mut sandbox = env.sandbox().start();
    sandbox.place(&env.bundle());
    fs::write(record_of(&env), "{").unwrap();
    // Its files stay, as when Kata was killed as well.
    sandbox.kill();
    let planned = reconcile(&env).dry().run();
    assert!(said(&env, &planned).iter().any(|line| line.contains(" remove ")), "{planned:#?}");
    assert_eq!(fs::read(record_of(&env)).unwrap(), b"{");
    let run = reconcile(&env).run();
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
    env.assert_no_groups();
    assert!(!record_of(&env).exists() && record_of(&env).with_extension("json.old").exists());
}

#[test]
fn where_one_sandbox_fails_the_others_are_done_all_the_same() {
    let Some((env, _alone)) = alone() else { return };
    let ids = ["a", "b", "c"];
    let mut sandboxes = ids.map(|id| env.sandbox().id(id).start());
    for sandbox in &sandboxes {
        let bundle = env.bundle_of(Engine::Single, Kind::Workload, &sandbox.id, &sandbox.id);
        sandbox.place(&bundle.cgroups_path(&format!("{}/{}", env.top(), sandbox.id)));
    }
    sandboxes.iter_mut().for_each(Sandbox::kill);
    let group = constrained_at(&format!("{}/kata_{}", env.top(), sandboxes[1].id), "cpu");
    let theirs = group.child("theirs");
    theirs.mkdir().unwrap();
    env.configure("deadline-ms = 500\n");
    let run = reconcile(&env).run();
    assert_eq!(run.code, Some(1), "{run:#?}");
    let words = format!("kata-cgroup-hook: reconcile: {}: ", sandboxes[1].id);
    assert!(run.stderr.starts_with(&words) && run.stderr.contains("theirs"), "{run:#?}");
    assert_eq!(run.stderr.lines().count(), 1, "{run:#?}");
    for (sandbox, is_left) in sandboxes.iter().zip([false, true, false]) {
        assert_eq!(env.state_dir().join(format!("{}.json", sandbox.id)).exists(), is_left, "{}", sandbox.id);
    }
    assert!(theirs.remove_tree());
    env.configure("");
    assert_acts(&env, "released");
    env.assert_no_groups();
}

#[test]
fn release_all_leaves_nothing_of_ours_and_everybody_alive() {
    let Some((env, _alone)) = alone() else { return };
    let sandboxes = ["a", "b"].map(|id| env.sandbox().id(id).virtiofsd().start());
    let homes = || CONTROLLERS.map(|controller| place_of(sandboxes[1].pid, controller));
    let before = homes();
    for sandbox in &sandboxes {
        let bundle = env.bundle_of(Engine::Single, Kind::Workload, &sandbox.id, &sandbox.id);
        sandbox.place(&bundle.cgroups_path(&format!("{}/{}", env.top(), sandbox.id)));
    }
    // One record is lost, one set aside; and the hook is switched off already.
    fs::remove_file(env.state_dir().join(format!("{}.json", sandboxes[0].id))).unwrap();
    fs::write(env.state_dir().join("odd.json.old"), "{").unwrap();
    env.configure("mode = \"off\"\n");
    assert_all_well(&env);
    let run = reconcile(&env).arg("--release-all").run();
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
    env.assert_no_groups();
    assert!(!env.state_dir().exists());
    for sandbox in &sandboxes {
        assert!(sandbox.processes().into_iter().all(is_alive));
    }
    assert_eq!(before, homes(), "the one whose record was there is where it came from");
    let again = reconcile(&env).arg("--release-all").run();
    assert_eq!((again.code, again.stderr.as_str()), (Some(0), ""), "{again:#?}");
    assert!(said(&env, &again).is_empty(), "{again:#?}");
}

#[test]
fn observing_changes_nothing() {
    let Some((env, _alone)) = alone() else { return };
    let mut sandbox = env.sandbox().start();
    sandbox.place(&env.bundle());
    sandbox.kill();
    env.configure("mode = \"observe\"\n");
    let before = env.dump();
    let run = reconcile(&env).run();
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
    assert!(said(&env, &run).iter().any(|line| line.contains(" remove ")), "{run:#?}");
    before.assert_same(&env.dump(), "observing");
    env.configure("");
    assert_acts(&env, "released");
}

#[test]
fn who_is_not_root_and_a_wrong_configuration_are_told() {
    let Some((env, _alone)) = alone() else { return };
    env.configure("mod = \"off\"\n");
    let run = reconcile(&env).run();
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.lines().count()), (Some(1), "", 1), "{run:#?}");
    assert!(run.stderr.contains("mod"), "{run:#?}");
    env.configure("");
    let binary = env.dir.join("kata-cgroup-hook");
    copy_program(hook_binary(), &binary);
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let run = reconcile(&env).binary(&binary).under(nobody).run();
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{run:#?}");
    assert!(run.stderr.contains("run it as root of the host"), "{run:#?}");
}

#[test]
fn a_group_that_leads_to_anothers_stays() {
    let Some((env, _alone)) = alone() else { return };
    let mut sandboxes = ["a", "b"].map(|id| env.sandbox().id(id).start());
    for sandbox in &sandboxes {
        let bundle = env.bundle_of(Engine::Single, Kind::Workload, &sandbox.id, &sandbox.id);
        let cpu = json!({ "quota": 50_000, "period": 100_000 });
        sandbox.place(&bundle.cgroups_path(&format!("{}/{}", env.top(), sandbox.id)).cpu(cpu));
    }
    // The first made what leads there, and ends without a record.
    fs::remove_file(env.state_dir().join(format!("{}.json", sandboxes[0].id))).unwrap();
    sandboxes[0].kill();
    let run = assert_acts(&env, "released");
    assert!(!run.stdout.contains(&sandboxes[1].id), "{run:#?}");
    sandboxes[1].assert_placed(&format!("{}/kata_{}", env.top(), sandboxes[1].id));
    sandboxes[1].kill();
    assert_acts(&env, "released");
    env.assert_no_groups();
}
