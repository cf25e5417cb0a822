//! Hosts whose cgroup mounts are not all there: the hook in a mount namespace of its own, in which some are taken away.

use crate::testenv::{CPU_CONTROLLERS, Env, Group, Hierarchy, Hook, groups_named, hierarchies, skipped};

/// `hook` in a mount namespace of its own after `change`, a line of shell.
fn after<'e>(change: &str, hook: Hook<'e>) -> Hook<'e> {
    hook.under(["unshare", "--mount", "sh", "-c", &format!("{change} && exec \"$@\""), "sh"])
}

#[test]
fn a_controller_that_is_nowhere_mounted_is_left_out_and_said() {
    let Some(env) = Env::new() else { return };
    // One that a mount of its own can be taken away from.
    let cpus = Hierarchy::of("cpu").unwrap();
    let Some(hidden) = [Hierarchy::of("cpuset"), Hierarchy::of("memory")].into_iter().flatten().find(|it| *it != cpus) else {
        return skipped("no cgroup v1").unwrap_or_default();
    };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let hook = env.hook("prestart").state(bundle.state(sandbox.pid));
    let run = after(&format!("umount {}", hidden.mount), hook).run().succeeded();
    let left_out = format!("no {} controller", hidden.controllers.join(", "));
    assert!(run.logged("placed").get("msg").contains(&left_out), "{run:#?}");
    for controller in CPU_CONTROLLERS.into_iter().filter(|controller| !hidden.carries(controller)) {
        assert_eq!(env.constrained(controller).threads(), sandbox.vcpu_threads(), "{controller}");
    }
    assert!(groups_named(&env.name).iter().all(|group| group.hierarchy != hidden));
    // With the mount in sight the next run does the rest.
    env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_release_that_does_not_see_a_mount_does_the_rest_and_keeps_the_record_for_the_next() {
    let Some(env) = Env::new() else { return };
    let mut sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    sandbox.kill();
    let hidden = env.unconstrained().hierarchy;
    let record = env.state_dir().join(format!("{}.json", env.name));
    let hook = env.hook("poststop").state(bundle.state(sandbox.pid));
    let run = after(&format!("umount {}", hidden.mount), hook).run().failed_with(0);
    let unseen = format!("{} of its record is on no cgroup file system", env.unconstrained().path_on_host().display());
    assert!(run.logged("failed").get("msg").contains(&unseen) && run.stderr.contains(&unseen), "{run:#?}");
    assert!(groups_named(&env.name).iter().all(|group| group.hierarchy == hidden), "the rest has gone");
    assert!(env.unconstrained().exists() && record.exists());
    // With the mount in sight the next run does what is left.
    env.hook("poststop").state(bundle.state(sandbox.pid)).run().succeeded().logged("released");
    env.assert_no_groups();
    assert!(!record.exists());
}

#[test]
fn without_any_controller_nothing_is_done_and_nobody_is_failed() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let before = env.dump();
    let unmount = hierarchies().map(|hierarchy| format!("umount {}", hierarchy.mount)).collect::<Vec<_>>().join(" && ");
    for stage in ["prestart", "poststart", "poststop"] {
        let run = after(&unmount, env.hook(stage).state(bundle.state(sandbox.pid))).run().succeeded();
        if stage != "poststop" {
            assert_eq!(run.logged("refused").priority, 28);
        }
        before.assert_same(&env.dump(), stage);
    }
}

#[test]
fn a_read_only_mount_fails_the_way_in_with_what_was_written_where_and_why_and_all_is_undone() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let before = env.dump();
    let hook = env.hook("prestart").state(bundle.state(sandbox.pid));
    let cpuset = &Hierarchy::of("cpuset").unwrap().mount;
    let run = after(&format!("mount -o remount,bind,ro {cpuset}"), hook).run().failed_with(1);
    assert!(run.stderr.contains(&format!("create {cpuset}/")) && run.stderr.contains("EROFS"), "{run:#?}");
    before.assert_same(&env.dump(), "a read-only cpuset");
    sandbox.place(&bundle);
    sandbox.assert_placed(&env.group());
}

/// A group that lies over the mount of the cpu controller, as a container may see it, and the shell that puts it there.
fn inner_mount(env: &Env) -> (Group, String) {
    let inner = Group::new("cpu", &format!("{}/inner", env.top()));
    inner.make();
    let change = format!("mount --bind {} {}", inner.path_on_host().display(), inner.hierarchy.mount);
    (inner, change)
}

#[test]
fn a_mount_that_another_hides_is_not_the_one_that_is_used() {
    let Some(env) = Env::new() else { return };
    let mut sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let (inner, change) = inner_mount(&env);
    let from = inner.child("from");
    from.make();
    from.take_in(sandbox.pid);
    after(&change, env.hook("prestart").state(bundle.state(sandbox.pid))).run().succeeded().logged("placed");
    // What is seen at the mount point is the inner group, and below it ours was made.
    let placed = Group::new("cpu", &format!("{}{}", inner.path, env.constrained("cpu").path));
    assert_eq!(placed.threads(), sandbox.vcpu_threads());
    sandbox.kill();
    after(&change, env.hook("poststop").state(bundle.state(sandbox.pid))).run().succeeded().logged("released");
    assert!(!placed.exists());
}

#[test]
fn a_vmm_out_of_the_sight_of_a_mount_could_not_be_put_back_and_is_left_alone() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let (inner, change) = inner_mount(&env);
    let before = env.dump();
    let run = after(&change, env.hook("prestart").state(bundle.state(sandbox.pid))).run().failed_with(1);
    assert!(run.stderr.contains(&inner.hierarchy.mount) && run.stderr.contains("namespace"), "{run:#?}");
    before.assert_same(&env.dump(), "out of sight");
    sandbox.place(&bundle);
    sandbox.assert_placed(&env.group());
}
