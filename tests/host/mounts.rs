//! Hosts whose cgroup mounts are not all there: the hook in a mount namespace of its own, in which some are taken away.

use std::collections::BTreeSet;

use crate::testenv::{CONTROLLERS, Env, Group, Hook, mount_of};

/// `hook` in a mount namespace of its own after `change`, a line of shell.
fn after<'e>(change: &str, hook: Hook<'e>) -> Hook<'e> {
    hook.under(["unshare", "--mount", "sh", "-c", &format!("{change} && exec \"$@\""), "sh"])
}

#[test]
fn a_controller_that_is_nowhere_mounted_is_left_out_and_said() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let hook = env.hook("prestart").state(bundle.state(sandbox.pid));
    let run = after(&format!("umount {}", mount_of("cpuset").unwrap()), hook).run().succeeded();
    assert!(run.logged("placed").get("msg").contains("no cpuset controller"), "{run:#?}");
    for controller in ["cpu", "cpuacct"] {
        assert_eq!(Group::new(controller, &env.group()).threads(), sandbox.vcpu_threads(), "{controller}");
    }
    assert!(!Group::new("cpuset", &env.group()).exists());
    // With the mount in sight the next run does the rest.
    env.hook("poststart").state(bundle.state(sandbox.pid)).run().succeeded().logged("placed");
    sandbox.assert_placed(&env.group());
}

#[test]
fn without_any_controller_nothing_is_done_and_nobody_is_failed() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let before = env.dump();
    let mounts: BTreeSet<&str> = CONTROLLERS.iter().filter_map(|controller| mount_of(controller)).collect();
    let unmount = mounts.iter().map(|mount| format!("umount {mount}")).collect::<Vec<_>>().join(" && ");
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
    let cpuset = mount_of("cpuset").unwrap();
    let run = after(&format!("mount -o remount,bind,ro {cpuset}"), hook).run().failed_with(1);
    assert!(run.stderr.contains(&format!("create {cpuset}/")) && run.stderr.contains("EROFS"), "{run:#?}");
    before.assert_same(&env.dump(), "a read-only cpuset");
    sandbox.place(&bundle);
    sandbox.assert_placed(&env.group());
}

#[test]
fn a_mount_that_another_hides_is_not_the_one_that_is_used() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    let inner = Group::new("cpu", &format!("{}/inner", env.top()));
    inner.make();
    let change = format!("mount --bind {} {}", inner.path_on_host().display(), mount_of("cpu").unwrap());
    let run = after(&change, env.hook("prestart").state(bundle.state(sandbox.pid))).run().succeeded();
    run.logged("placed");
    // What is seen at the mount point is the inner group, and below it ours was made.
    let placed = Group::new("cpu", &format!("{}/inner{}", env.top(), env.group()));
    assert_eq!(placed.threads(), sandbox.vcpu_threads());
    after(&change, env.hook("poststop").state(bundle.state(sandbox.pid))).run().succeeded().logged("released");
    assert!(!placed.exists());
}
