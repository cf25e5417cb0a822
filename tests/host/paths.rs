//! cgroupsPath in all its forms, and the groups each of them leads to.

use crate::testenv::*;

/// Where a dry run would put the vCPU threads and the processes: the groups of the cpu and memory hierarchies.
fn groups_for(env: &Env, state: &str) -> (String, String) {
    let dry = env.hook("prestart").state(state).dry().run();
    let steps = dry.steps();
    let target = |verb: &str, controller: &str| {
        let mount = Group::new(controller, "").path_on_host().display().to_string();
        let mut targets: Vec<&str> = steps
            .iter()
            .filter(|step| step.starts_with(verb))
            .filter_map(|step| step.rsplit(' ').next()?.strip_prefix(&mount))
            .filter(|path| path.starts_with('/'))
            .collect();
        targets.dedup();
        assert_eq!(targets.len(), 1, "one group in {controller}: {steps:#?}");
        targets[0].to_owned()
    };
    (target("move-thread", "cpu"), target("move-process", "memory"))
}

#[test]
fn every_form_leads_to_a_group_below_the_mount() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let (id, slice) = (env.name.clone(), env.slice());
    let forms = [
        // As it stands.
        (format!("/{id}/pod/c"), format!("/{id}/pod/kata_c")),
        (format!("/{id}"), format!("/kata_{id}")),
        (format!("//{id}///pod//c/"), format!("/{id}/pod/kata_c")),
        // Cleaned; what would lead out leads to the top.
        (format!("/{id}/pod/../c"), format!("/{id}/kata_c")),
        (format!("/../../{id}/c"), format!("/{id}/kata_c")),
        // Relative: below /vc, and out of it on no account.
        (format!("{id}/c"), format!("/vc/{id}/kata_c")),
        (format!("./{id}/c"), format!("/vc/{id}/kata_c")),
        (format!("../../{id}/c"), format!("/vc/{id}/kata_c")),
        // Nothing to go by.
        (String::new(), format!("/vc/kata_{id}")),
        ("/".to_owned(), format!("/vc/kata_{id}")),
        ("/..".to_owned(), format!("/vc/kata_{id}")),
        (".".to_owned(), format!("/vc/kata_{id}")),
        // systemd's, as systemd nests slices.
        (format!("{slice}.slice:cri:{id}"), format!("/{slice}.slice/kata_cri-{id}.scope")),
        (
            format!("{slice}-a-b.slice:cri:{id}"),
            format!("/{slice}.slice/{slice}-a.slice/{slice}-a-b.slice/kata_cri-{id}.scope"),
        ),
        (format!("-.slice:cri:{id}"), format!("/kata_cri-{id}.scope")),
        // What only looks like it is a name.
        (format!("/{id}/a.slice:b:c"), format!("/{id}/kata_a.slice:b:c")),
        (format!("{id}:b:c"), format!("/vc/kata_{id}:b:c")),
        (format!("{slice}.slice:b:c:d"), format!("/vc/kata_{slice}.slice:b:c:d")),
    ];
    for (form, expected) in forms {
        let bundle = env.bundle().cgroups_path(&form);
        let groups = groups_for(&env, &bundle.state(sandbox.pid));
        assert_eq!(groups, (expected.clone(), format!("/kata{expected}")), "cgroupsPath {form:?}");
    }
}

#[test]
fn a_bundle_without_cgroups_path_gets_the_sandboxs_name_below_vc() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let mut bundle = env.bundle();
    bundle.config["linux"].as_object_mut().unwrap().remove("cgroupsPath");
    let bundle = bundle.write();
    let expected = format!("/vc/kata_{}", env.name);
    assert_eq!(groups_for(&env, &bundle.state(sandbox.pid)), (expected.clone(), format!("/kata{expected}")));
}

#[test]
fn each_kind_of_form_is_placed_and_released_for_real() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let (id, slice) = (env.name.clone(), env.slice());
    let forms = [
        (format!("/{id}"), format!("/kata_{id}")),
        (format!("../../{id}/c"), format!("/vc/{id}/kata_c")),
        (String::new(), format!("/vc/kata_{id}")),
        (format!("{slice}-a.slice:cri:{id}"), format!("/{slice}.slice/{slice}-a.slice/kata_cri-{id}.scope")),
    ];
    for (form, expected) in forms {
        let bundle = env.bundle().cgroups_path(&form);
        sandbox.place(&bundle);
        sandbox.assert_placed(&expected);
        sandbox.release(&bundle).logged("released");
        sandbox.assert_nowhere_below(&id);
        env.assert_no_groups();
    }
}

#[test]
fn nothing_is_set_or_removed_in_a_directory_that_somebody_else_made() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let (id, slice) = (env.name.clone(), env.slice());
    premake(&format!("/{slice}.slice/{slice}-a.slice"));
    let parent = Group::new("cpu", &format!("/{slice}.slice/{slice}-a.slice"));
    parent.set("cpu.cfs_quota_us", 180_000);
    let bundle = env.bundle().cgroups_path(&format!("{slice}-a.slice:cri:{id}"));
    let before = env.dump();
    sandbox.place(&bundle);
    assert_eq!((parent.value("cpu.cfs_quota_us").as_str(), parent.value("cpu.shares").as_str()), ("180000", "1024"));
    sandbox.release(&bundle);
    let values = |dump: &Dump| {
        dump.lines_with(&slice).into_iter().filter(|line| !line.contains("holds")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(values(&before), values(&env.dump()));
}
