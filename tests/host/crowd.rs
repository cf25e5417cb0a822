//! Crowds: many hooks of one sandbox at once, and many sandboxes at once, end as one after the other would.
//!
//! A node that comes up after a reboot starts all its pods in the same seconds. What they have in common is the record of a sandbox,
//! which one run at a time may write, and the directories above their groups, which the last to leave takes away and the first to
//! come makes again. So is a record that an unlucky end has left behind.

use std::fs;
use std::ops::Range;
use std::path::Path;

use serde_json::{Value, json};

use crate::status::shown;
use crate::testenv::*;

/// The hooks end well, though their log lines may have found the socket full.
fn all_succeed<'e>(hooks: impl Iterator<Item = Hook<'e>>) {
    let started: Vec<_> = hooks.map(Hook::start).collect();
    for hook in started {
        hook.wait().succeeded();
    }
}

fn record_of(env: &Env, sandbox: &str) -> Value {
    let text = fs::read_to_string(env.state_dir().join(format!("{sandbox}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Containers of one sandbox that ask for a CPU's 50th part and something each, in directories of their own: no hook sees another's
/// bundle, so that only the record can add them up.
fn containers(env: &Env, how_many: u64) -> Vec<Bundle> {
    let container = |number: u64| {
        let mut bundle = env.bundle_of(Engine::Containerd, Kind::Workload, &env.name, &format!("c{number}"));
        fs::remove_dir_all(&bundle.dir).unwrap();
        bundle.dir = env.dir.join("apart").join(number.to_string()).join("bundle");
        bundle.cpu(json!({ "quota": 2000 + number, "period": 100_000, "shares": 2 + number }))
    };
    (0..how_many).map(container).collect()
}

fn sum_of(numbers: Range<usize>) -> Limits {
    let numbers = numbers.start as u64..numbers.end as u64;
    let shares = 2 + numbers.end - 1;
    Limits::none().quota(numbers.map(|number| 2000 + number).sum()).shares(shares)
}

/// What matters of a sandbox's state: its groups with their values, and the containers that the record knows.
fn state_of(env: &Env) -> (Vec<String>, Value) {
    let dump = env.dump();
    let groups = dump.lines_with(&env.top()).into_iter().filter(|line| !line.starts_with('/')).map(str::to_owned);
    (groups.collect(), record_of(env, &env.name)["containers"].clone())
}

#[test]
fn fifty_hooks_of_one_sandbox_at_once_end_as_one_after_the_other() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().start();
    let pause = env.bundle_of(Engine::Containerd, Kind::Sandbox, &env.name, &env.name);
    // An emulated CPU has enough to do with ten.
    let (all, fifth) = if stride() == 1 { (50, 10) } else { (10, 2) };
    let bundles = containers(&env, all as u64);
    let hooks = |stage: &'static str, range: Range<usize>| {
        let (env, sandbox) = (&env, &sandbox);
        let id = move |bundle: &Bundle| if stage == "poststop" { sandbox.id.clone() } else { bundle.id.clone() };
        bundles[range].iter().map(move |bundle| env.hook(stage).state(bundle.state_with_id(&id(bundle), sandbox.pid)))
    };
    hooks("createRuntime", 0..all).for_each(|hook| drop(hook.run().succeeded()));
    let one_by_one = state_of(&env);
    assert_eq!(env.limits(), sum_of(0..all));
    assert_eq!(one_by_one.1.as_object().unwrap().len(), all);
    sandbox.release(&pause).logged("released");

    all_succeed(hooks("createRuntime", 0..all));
    sandbox.assert_placed(&env.group());
    assert_eq!(state_of(&env), one_by_one);

    // Some leave while others come.
    all_succeed(hooks("poststop", 2 * fifth..all));
    assert_eq!(env.limits(), sum_of(0..2 * fifth));
    all_succeed(hooks("poststop", 0..fifth).chain(hooks("createRuntime", 2 * fifth..4 * fifth)));
    assert_eq!(env.limits(), sum_of(fifth..4 * fifth));
    all_succeed(hooks("poststop", fifth..4 * fifth));
    sandbox.assert_placed(&env.group());
    // Whose limits stay is a matter of luck: of the one that was the last to go.
    assert!((fifth..4 * fifth).any(|last| env.limits() == sum_of(last..last + 1)), "{:?}", env.limits());
    let record = record_of(&env, &env.name);
    assert_eq!((&record["state"], &record["containers"]), (&json!("idle"), &json!({})));
    sandbox.release(&pause).logged("released");
    env.assert_no_groups();
}

#[test]
fn told_to_this_program_is_a_vmm() {
    be_a_vmm();
}

const VMM: &str = "crowd::told_to_this_program_is_a_vmm";

/// A single container that is this sandbox, which its number tells from others.
fn bundle_of(env: &Env, sandbox: &StandIn, quota: u64) -> Bundle {
    let bundle = env.bundle_of(Engine::Single, Kind::Workload, &sandbox.id, &sandbox.id);
    bundle.cpu(json!({ "quota": quota, "period": 100_000 }))
}

/// What others have left is seen to, at the cost of whoever comes next: a container that waits to start pays for a few.
#[test]
fn a_start_looks_at_eight_of_the_others_and_an_end_at_all() {
    let Some(env) = Env::new() else { return };
    env.configure(&stand_in_row());
    let mut sandboxes: Vec<StandIn> = (0..21).map(|number| env.stand_in(&number.to_string(), VMM)).collect();
    let bundles: Vec<Bundle> = sandboxes.iter().map(|sandbox| bundle_of(&env, sandbox, 100_000)).collect();
    let hook = |stage: &str, number: usize| env.hook(stage).state(bundles[number].state(0)).run().succeeded();
    let records = || fs::read_dir(env.state_dir()).unwrap().filter(|entry| is_record(entry.as_ref().unwrap())).count();
    for number in 0..20 {
        hook("createRuntime", number).logged("placed");
    }
    assert_eq!(records(), 20);
    sandboxes.iter_mut().take(20).for_each(StandIn::kill);
    // Each run has 200 ms for it, which on a slow host is enough for fewer.
    hook("createRuntime", 20).logged("placed");
    assert!((21 - 8..=21).contains(&records()), "{}", records());
    for _ in 0..100 {
        hook("poststop", 20);
        if records() == 0 {
            break;
        }
    }
    assert_eq!(records(), 0);
    env.assert_no_groups();
}

fn is_record(entry: &fs::DirEntry) -> bool {
    entry.path().extension().is_some_and(|extension| extension == "json")
}

#[test]
fn two_hundred_sandboxes_at_once_are_placed_and_released() {
    let Some(env) = Env::new() else { return };
    env.configure(&stand_in_row());
    let number = (200 / stride()).max(10);
    let mut sandboxes: Vec<StandIn> = (0..number).map(|number| env.stand_in(&number.to_string(), VMM)).collect();
    let bundles: Vec<Bundle> = sandboxes.iter().zip(1000..).map(|(sandbox, quota)| bundle_of(&env, sandbox, quota)).collect();
    let group_of = |sandbox: &StandIn| format!("{}/pod/kata_{}", env.top(), sandbox.id);

    all_succeed(
        sandboxes.iter().zip(&bundles).map(|(sandbox, bundle)| env.hook("createRuntime").state(bundle.state(sandbox.pid()))),
    );
    for (sandbox, quota) in sandboxes.iter().zip(1000..) {
        sandbox.assert_placed(&group_of(sandbox));
        assert_eq!(limits_at(&group_of(sandbox)), Limits::none().quota(quota), "{}", sandbox.id);
    }

    // Every other one has ended by itself: whose hook comes first releases it as well.
    sandboxes.iter_mut().step_by(2).for_each(StandIn::kill);
    all_succeed(
        sandboxes.iter().zip(&bundles).map(|(sandbox, bundle)| env.hook("poststop").state(bundle.state(sandbox.pid()))),
    );
    env.assert_no_groups();
    assert_eq!(fs::read_dir(env.state_dir()).unwrap().count(), 0, "neither a record nor a lock is left");
    for sandbox in sandboxes.iter().skip(1).step_by(2) {
        let out = |tid: &i32| CONTROLLERS.iter().all(|controller| !place_of(*tid, controller).unwrap().contains(&env.name));
        assert!(sandbox.vcpu_threads().iter().all(out), "{}", sandbox.id);
    }
}

#[test]
fn a_parent_that_one_prunes_while_another_makes_its_group_below_it_fails_neither() {
    let Some(env) = Env::new() else { return };
    env.configure(&stand_in_row());
    let sandboxes = ["a", "b"].map(|suffix| env.stand_in(suffix, VMM));
    let below = format!("{}/a/shared/way/down", env.top());
    let bundles = [0, 1].map(|at: usize| {
        let sandbox = &sandboxes[at];
        bundle_of(&env, sandbox, 50_000).cgroups_path(&format!("{below}/{}", sandbox.id))
    });
    let group_of = |at: usize| format!("{below}/kata_{}", sandboxes[at].id);
    let hook = |stage: &str, at: usize| env.hook(stage).state(bundles[at].state(sandboxes[at].pid()));
    hook("createRuntime", 0).run().succeeded().logged("placed");
    let mut stays = 0;
    for _ in 0..100 / stride() {
        let comes = 1 - stays;
        all_succeed([hook("poststop", stays), hook("createRuntime", comes)].into_iter());
        sandboxes[comes].assert_placed(&group_of(comes));
        assert_eq!(limits_at(&group_of(comes)), Limits::none().quota(50_000));
        assert!(!constrained_at(&group_of(stays), "cpu").exists());
        stays = comes;
    }
    hook("poststop", stays).run().succeeded().logged("released");
    env.assert_no_groups();
}

/// What becomes of one sandbox, as `status` is to say it: the verdict, words of its reason, and how it comes about.
type Trouble = (&'static str, &'static str, Box<dyn Fn(&Env, &mut StandIn, &str)>);

fn troubles() -> [Trouble; 5] {
    let record = |env: &Env, id: &str| env.state_dir().join(format!("{id}.json"));
    [
        (
            "incomplete",
            "is not in its ",
            Box::new(|_, sandbox, group| {
                let cpu = constrained_at(group, "cpu");
                // On v2 a thread can go no further.
                let away = if cpu.hierarchy.version == Version::V1 { Group::new("cpu", "/") } else { cpu.parent().unwrap() };
                away.take_in_thread(*sandbox.vcpu_threads().first().unwrap());
            }),
        ),
        ("incomplete", " is 70000", Box::new(|_, _, group| constrained_at(group, "cpu").set_quota(70_000))),
        (
            "incomplete",
            "its record is not understood",
            Box::new(move |env, sandbox, _| fs::write(record(env, &sandbox.id), "{\"schema\":1,").unwrap()),
        ),
        (
            "incomplete",
            "its record is lost",
            Box::new(move |env, sandbox, _| fs::remove_file(record(env, &sandbox.id)).unwrap()),
        ),
        ("orphan", "has ended", Box::new(|_, sandbox, _| sandbox.kill())),
    ]
}

/// The table has a line for each sandbox; this one stands last with its verdict and the reason, and all others are placed.
#[track_caller]
fn assert_stands_out(env: &Env, all: usize, id: &str, verdict: &str, words: &str) {
    let table = shown(env.hook("status"));
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with(&env.name)).collect();
    let (last, others) = rows.split_last().unwrap();
    assert!(rows.len() == all && others.iter().all(|row| row.ends_with("  placed")), "{table}");
    assert!(last.starts_with(&format!("{id} ")) && last.contains(&format!("  {verdict}: ")) && last.contains(words), "{table}");
    let placed = if all > 1 { format!("{} placed, ", all - 1) } else { String::new() };
    let summary = format!("{all} sandbox{}: {placed}1 {verdict}\n", if all > 1 { "es" } else { "" });
    assert!(table.contains(&summary), "{summary}{table}");
    println!("{}\n", [table.lines().next().unwrap(), "…", last, &table[table.find(&summary).unwrap()..]].join("\n"));
}

#[test]
fn among_one_ten_and_a_hundred_sandboxes_the_one_in_trouble_stands_out_in_status() {
    // An emulated CPU has enough to do with ten.
    let sizes: &[usize] = if stride() == 1 { &[1, 10, 100] } else { &[1, 10] };
    for &all in sizes {
        let Some(env) = Env::new() else { return };
        env.configure(&stand_in_row());
        let mut sandboxes: Vec<StandIn> = (0..all).map(|number| env.stand_in(&number.to_string(), VMM)).collect();
        let bundles: Vec<Bundle> = sandboxes.iter().map(|sandbox| bundle_of(&env, sandbox, 50_000)).collect();
        let chosen = all / 2;
        let group = format!("{}/pod/kata_{}", env.top(), sandboxes[chosen].id);
        let place = |number: usize, sandbox: &StandIn| {
            env.hook("poststart").state(bundles[number].state(sandbox.pid())).run().succeeded();
        };
        sandboxes.iter().enumerate().filter(|(number, _)| *number != chosen).for_each(|(number, one)| place(number, one));
        assert_stands_out(&env, all, &sandboxes[chosen].id, "unplaced", "no hook has placed it");
        for (verdict, words, befall) in troubles() {
            place(chosen, &sandboxes[chosen]);
            let table = shown(env.hook("status"));
            assert!(table.contains(&format!(": {all} placed\n")), "{words}: {table}");
            befall(&env, &mut sandboxes[chosen], &group);
            assert_stands_out(&env, all, &sandboxes[chosen].id, verdict, words);
        }
        sandboxes.iter_mut().for_each(StandIn::kill);
        fs::remove_dir_all(env.dir.join("vm")).unwrap();
        assert_eq!(env.hook("reconcile").run().code, Some(0));
        env.assert_no_groups();
    }
}

/// What may have become of a record, what the log says of it, and how that comes about.
type Unlucky = (&'static str, &'static str, Box<dyn Fn(&Path)>);

fn unlucky_records(gone: i32) -> [Unlucky; 5] {
    let rewrite = |path: &Path, change: &dyn Fn(&mut Value)| {
        let mut record = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        change(&mut record);
        fs::write(path, record.to_string()).unwrap();
    };
    [
        ("missing", "no record", Box::new(|path| fs::remove_file(path).unwrap())),
        ("empty", "not understood", Box::new(|path| fs::write(path, "").unwrap())),
        (
            "torn",
            "not understood",
            Box::new(|path| {
                let text = fs::read(path).unwrap();
                fs::write(path, &text[..text.len() / 2]).unwrap();
            }),
        ),
        (
            "from a newer version",
            "not understood",
            Box::new(move |path| {
                rewrite(path, &|record| {
                    record["schema"] = json!(2);
                    record["something"] = json!({ "new": true });
                });
            }),
        ),
        (
            "of processes that are gone",
            "is gone",
            Box::new(move |path| {
                rewrite(path, &|record| {
                    for process in record["processes"].as_array_mut().unwrap() {
                        (process["pid"], process["start"]) = (json!(gone), json!(1));
                    }
                });
            }),
        ),
    ]
}

#[test]
fn a_record_that_is_lost_or_wrong_is_rebuilt_from_what_stands_and_the_log_says_so() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let pause = env.bundle_of(Engine::CriO, Kind::Sandbox, &env.name, &env.name);
    let workloads = ["one", "two"].map(|id| env.bundle_of(Engine::CriO, Kind::Workload, &env.name, id));
    let gone = {
        let mut process = Process::sleeping();
        process.kill();
        process.pid()
    };
    let path = env.state_dir().join(format!("{}.json", env.name));
    for (what, said, make) in unlucky_records(gone) {
        for workload in &workloads {
            env.hook("createRuntime").state(workload.state(sandbox.pid)).run().succeeded();
        }
        let before = record_of(&env, &env.name);
        make(&path);
        let run = env.hook("poststart").state(workloads[0].state_with_id(&env.name, sandbox.pid)).run().succeeded();
        assert!(run.only_log_line().get("msg").contains(said), "{what}: {run:#?}");
        sandbox.assert_placed(&env.group());
        assert_eq!(env.limits(), Limits::none().quota(300_000).shares(1536), "{what}");
        let after = record_of(&env, &env.name);
        for part in ["schema", "sandbox", "mode", "state", "groups", "containers"] {
            assert_eq!(after[part], before[part], "{what}: {part}");
        }
        let processes = |record: &Value| -> Vec<Value> {
            record["processes"].as_array().unwrap().iter().map(|one| json!([one["pid"], one["start"], one["role"]])).collect()
        };
        assert_eq!(processes(&after), processes(&before), "{what}");

        // At the end it is worth no more, and all goes.
        make(&path);
        sandbox.release(&pause).logged("released");
        env.assert_no_groups();
    }
}
