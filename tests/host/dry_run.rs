//! `--dry-run`: the same plan, said and not done.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::testenv::*;

#[test]
fn a_dry_run_says_what_the_next_run_does_and_does_nothing() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let hook = env.hook("prestart").state(env.bundle().state(sandbox.pid));
    let before = env.dump();
    let dry = hook.clone().dry().run();
    before.assert_same(&env.dump(), "a dry run");
    assert!(dry.log.is_empty() && !env.state_dir().exists(), "no log and no record: {dry:#?}");
    let steps = dry.own_steps();

    let created: Vec<&str> = arguments(&steps, "create").into_iter().map(|words| words[0]).collect();
    for path in &created {
        // What all sandboxes share another test may have made by now.
        assert!(!path.contains(&env.name) || !Path::new(path).exists(), "{path} is there already");
        let parent = Path::new(path).parent().unwrap();
        let is_shared = !parent.to_string_lossy().contains(&env.name);
        assert!(
            is_shared
                || parent.exists()
                || created.iter().take_while(|made| made != &path).any(|made| Path::new(made) == parent),
            "top down: {steps:#?}"
        );
    }
    let places = follow(&steps, |places| {
        // At no time is a vCPU thread in the sandbox's groups and not under its limit.
        for domain in unlimited_domains_at(&env.group()) {
            for tid in sandbox.vcpu_threads() {
                assert_ne!(places.get(&(domain.hierarchy.mount.clone(), tid)), Some(&domain.path_on_host()), "{steps:#?}");
            }
        }
    });
    let place = |group: &Group, tid: i32| places.get(&(group.hierarchy.mount.clone(), tid)).cloned();
    for group in CPU_CONTROLLERS.map(|controller| env.constrained(controller)) {
        for tid in sandbox.vcpu_threads() {
            assert_eq!(place(&group, tid), Some(group.path_on_host()), "{steps:#?}");
        }
    }
    for domain in domains_at(&env.group()) {
        for tid in sandbox.processes().into_iter().flat_map(threads_of).map(|thread| thread.tid) {
            let is_apart = domain.hierarchy.version == Version::V2 && sandbox.vcpu_threads().contains(&tid);
            assert!(is_apart || place(&domain, tid) == Some(domain.path_on_host()), "{tid}: {steps:#?}");
        }
    }
    let first_move = steps.iter().position(|step| step.starts_with("move-")).unwrap();
    assert!(steps[first_move..].iter().all(|step| step.starts_with("move-")), "limits stand before anybody is in: {steps:#?}");

    hook.clone().run().succeeded().logged("placed");
    assert!(created.iter().all(|path| Path::new(path).is_dir()), "{created:#?}");
    for words in arguments(&steps, "set") {
        let value = std::fs::read_to_string(words[0]).unwrap();
        assert!(says(value.trim_end(), &words[1].replace("\\x20", " ")), "{words:?}: {value}");
    }
    let again = hook.dry().run();
    assert!(again.own_steps().is_empty(), "{again:#?}");
}

#[test]
fn a_dry_release_says_what_the_next_release_does_and_does_nothing() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    let before = env.dump();
    let dry = env.hook("poststop").state(bundle.state(sandbox.pid)).dry().run();
    before.assert_same(&env.dump(), "a dry run");
    let steps = dry.steps();
    let removed: Vec<&str> = arguments(&steps, "remove").into_iter().map(|words| words[0]).collect();
    for controller in CPU_CONTROLLERS {
        let path = env.constrained(controller).path_on_host();
        assert!(removed.iter().any(|removed| Path::new(removed) == path), "{steps:#?}");
    }
    sandbox.release(&bundle);
    assert!(removed.iter().all(|path| !Path::new(path).exists() || path.ends_with("/kata")), "{removed:#?}");
}

#[test]
fn what_is_no_vm_sandbox_takes_no_steps() {
    let Some(env) = Env::new() else { return };
    for stage in ["prestart", "createRuntime", "poststart", "poststop"] {
        let dry = env.hook(stage).state(env.bundle().state(1)).dry().run();
        assert_eq!(
            (dry.code, dry.stdout.as_str(), dry.stderr.as_str()),
            (Some(0), "0 steps: not a VM sandbox\n", ""),
            "{stage}"
        );
    }
}

#[test]
fn a_path_with_blanks_is_one_word() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let bundle = env.bundle().cgroups_path(&format!("{}/a b/c", env.top()));
    let dry = env.hook("prestart").state(bundle.state(sandbox.pid)).dry().run();
    let steps = dry.steps();
    assert!(steps.iter().any(|step| step.ends_with(&format!(r"{}/a\x20b/kata_c", env.top()))), "{steps:#?}");
}

/// Whether a file that reads like this has been told that; v2's list of controllers is told `+cpu` and then reads `cpu`.
fn says(value: &str, told: &str) -> bool {
    let lists = |word: &str| word.strip_prefix('+').is_some_and(|name| value.split(' ').any(|listed| listed == name));
    value == told || told.split(' ').all(lists)
}

/// The words after this one, of every step that begins with it.
fn arguments<'s>(steps: &[&'s str], verb: &str) -> Vec<Vec<&'s str>> {
    let words = steps.iter().map(|step| step.split(' ').collect::<Vec<_>>());
    words.filter(|words| words[0] == verb).map(|words| words[1..].to_vec()).collect()
}

/// Which group each thread is put into, by the mount of the hierarchy and the thread.
type Places = BTreeMap<(String, i32), PathBuf>;

/// Does the moves of a plan on paper, and shows where everybody is after each.
fn follow(steps: &[&str], mut look: impl FnMut(&Places)) -> Places {
    let mut places = Places::new();
    for step in steps.iter().filter(|step| step.starts_with("move-")) {
        let words: Vec<&str> = step.split(' ').collect();
        let pid: i32 = words[1].split('/').next().unwrap().parse().unwrap();
        assert_eq!(words[2].parse().ok(), start_time(pid), "{step}");
        let threads = match words[1].split_once('/') {
            Some((_, tid)) => vec![tid.parse().unwrap()],
            None => threads_of(pid).into_iter().map(|thread| thread.tid).collect(),
        };
        let group = PathBuf::from(words[3]);
        let mount = hierarchies().map(|hierarchy| &hierarchy.mount).find(|mount| group.starts_with(mount)).unwrap();
        places.extend(threads.into_iter().map(|tid| ((mount.clone(), tid), group.clone())));
        look(&places);
    }
    places
}
