//! cgroupsPath in all its forms, and the groups each of them leads to.

use crate::testenv::*;

/// A dry run would put the vCPU threads and the processes in the groups of this path.
#[track_caller]
fn assert_leads_to(env: &Env, state: &str, path: &str, why: &str) {
    let dry = env.hook("prestart").state(state).dry().run();
    dry.assert_moves_to(path, why);
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
        assert_leads_to(&env, &bundle.state(sandbox.pid), &expected, &format!("cgroupsPath {form:?}"));
    }
}

#[test]
fn a_bundle_without_cgroups_path_gets_the_sandboxs_name_below_vc() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let mut bundle = env.bundle();
    bundle.config["linux"].as_object_mut().unwrap().remove("cgroupsPath");
    let bundle = bundle.write();
    assert_leads_to(&env, &bundle.state(sandbox.pid), &format!("/vc/kata_{}", env.name), "no cgroupsPath");
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
    parent.set_quota(180_000);
    let bundle = env.bundle().cgroups_path(&format!("{slice}-a.slice:cri:{id}"));
    let values = |dump: &Dump| {
        dump.lines_with(&slice).into_iter().filter(|line| !line.contains("holds")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = values(&env.dump());
    sandbox.place(&bundle);
    assert_eq!((parent.quota(), parent.share()), (Some(180_000), share_of(1024)));
    // On v2 alone it lets groups pass controllers on.
    let now = values(&env.dump());
    let changed: Vec<&String> = before.iter().filter(|line| !now.contains(line) && !line.contains("subtree_control")).collect();
    assert!(!before.is_empty() && changed.is_empty(), "{changed:#?} of {now:#?}");
    sandbox.release(&bundle);
    assert_eq!(before, values(&env.dump()));
}
