//! `make bench`: what a run of the hook costs, beside what the kernel's share of it costs (floor.c), and beside /bin/true.
//!
//! Everything is real: QEMU, virtiofsd, this host's cgroups, the binary that ships. All is measured in one run and in turn, so
//! that what else happens on the machine falls on everybody alike; what counts are the ratios. Nothing is measured that is not
//! checked as well: each run of the hook has to log what it should have done, and the floor has to bring the sandbox to where the
//! hook brings it.

mod floor;
mod measure;
mod plot;
mod report;
mod stage;
#[path = "../../tests/testenv/mod.rs"]
mod testenv;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use measure::{Counts, Crowd, Spell, Tools, at_once};
use report::Report;
use stage::{Stage, Subject};
use testenv::{CONTROLLERS, Env, Hierarchy, be_a_vmm, stand_in_row, use_binary};

/// How many processes the host is to have in all.
const PROCESSES: [usize; 3] = [100, 1000, 5000];
const MANY_VCPUS: usize = 64;
/// How long a program waits, in microseconds, before it asks for a move.
const PAUSES: [u64; 7] = [0, 1000, 2000, 4000, 6000, 8000, 12_000];
const MANY_SANDBOXES: usize = 100;
/// The first argument of a stand-in for a VMM.
const VMM: &str = "be-a-vmm";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Cargo has its own word for its benches.
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| *word != "--bench").collect();
    match arguments[..] {
        [VMM, ..] => be_a_vmm(),
        [hook, tools] => {
            if let Some(sentence) = what_is_missing(Path::new(hook)) {
                eprintln!("{sentence}");
                return ExitCode::FAILURE;
            }
            use_binary(&fs::canonicalize(hook).expect("a path of the hook"));
            let tools = PathBuf::from(tools);
            // A started process is told from this one by its name, which it has from the thread that starts it.
            let bench = std::thread::Builder::new().name("bench".into()).spawn(move || bench(&Tools::in_dir(&tools), &tools));
            if bench.expect("a thread").join().is_err() {
                return ExitCode::FAILURE;
            }
        }
        _ => {
            eprintln!("usage: cargo bench --bench hook -- PATH-OF-THE-HOOK DIRECTORY-OF-THE-TOOLS");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn what_is_missing(hook: &Path) -> Option<String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("measuring makes cgroups and moves threads between them: run it as root".into());
    }
    if let Some(controller) = CONTROLLERS.into_iter().find(|controller| Hierarchy::of(controller).is_none()) {
        return Some(format!("this host has no {controller} controller, which the measurements need"));
    }
    let programs = [hook.to_owned(), testenv::QEMU.into(), testenv::virtiofsd()];
    let missing = programs.iter().find(|program| !program.is_file())?;
    Some(format!("{} is missing: `make deps build` gets it", missing.display()))
}

fn runs() -> usize {
    std::env::var("KCH_BENCH_RUNS").map_or(50, |text| text.parse().expect("KCH_BENCH_RUNS: a number"))
}

fn bench(tools: &Tools, output: &Path) {
    let runs = runs();
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let mut report = Report::new(runs, kvm);

    let name = |number: usize| format!("kch-test-{}-{number:03}", std::process::id());
    {
        let env = Env::named(&name(0));
        let stage = Stage::set(&env, 2, kvm);
        println!("counting system calls and instructions");
        report.counts = stage.subjects.iter().map(|subject| (subject.name.to_owned(), Counts::of(&stage, subject))).collect();
        for processes in PROCESSES {
            let _crowd = Crowd::up_to(tools, processes);
            for spell in Spell::BOTH {
                println!("{processes} processes, {spell}: {runs} runs of each");
                report.add(processes, 2, spell, measure::in_turn(tools, &stage, spell, runs));
            }
        }
        println!("one move, cold, asked for later and later");
        report.late = measure::late_moves(tools, &stage, &PAUSES, runs);
    }
    {
        let env = Env::named(&name(1));
        let stage = Stage::set(&env, MANY_VCPUS, kvm);
        println!("{MANY_VCPUS} vCPUs");
        report.counts_of_many =
            stage.subjects.iter().map(|subject| (subject.name.to_owned(), Counts::of(&stage, subject))).collect();
        for spell in Spell::BOTH {
            report.add(PROCESSES[0], MANY_VCPUS, spell, measure::in_turn(tools, &stage, spell, runs.min(20)));
        }
    }
    println!("{MANY_SANDBOXES} sandboxes at once");
    report.at_once = many_at_once(&name(2), runs.min(10));

    report.size = fs::metadata(testenv::hook_binary()).expect("the hook").len();
    println!("\n{report}");
    write(&output.join("bench.json"), &format!("{:#}\n", report.json()));
    write(&output.join("bench.svg"), &plot::of(&report));
}

/// The hooks of this many sandboxes, all started in the same moment; then the same of the floor's. So many times.
fn many_at_once(name: &str, times: usize) -> Vec<report::AtOnce> {
    let env = Env::named(name);
    // The deadline is the one that is shipped.
    env.configure(&format!("deadline-ms = 5000\n{}", stand_in_row()));
    let sandboxes: Vec<_> = (0..MANY_SANDBOXES).map(|number| env.stand_in(&number.to_string(), VMM)).collect();
    let all: Vec<Vec<Subject>> = sandboxes.iter().map(|sandbox| stage::of_stand_in(&env, sandbox)).collect();
    let mut found: Vec<report::AtOnce> = Vec::new();
    for _ in 0..times {
        for (index, subject) in all[0].iter().enumerate() {
            let mut took = at_once(all.iter().map(|subjects| &subjects[index]).collect());
            // A release that is over its deadline says so nowhere else.
            let logged: Vec<String> = env.log.take().iter().map(|line| line.get("result").to_owned()).collect();
            assert!(logged.iter().all(|result| Some(result.as_str()) == subject.logs), "{}: {logged:?}", subject.name);
            took.sort_unstable();
            let (median, slowest) = (took[took.len() / 2], took[took.len() - 1]);
            match found.iter_mut().find(|known| known.subject == subject.name) {
                Some(known) => known.rounds.push((median, slowest)),
                None => found.push(report::AtOnce { subject: subject.name.to_owned(), rounds: vec![(median, slowest)] }),
            }
        }
    }
    found
}

fn write(path: &PathBuf, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    println!("written: {}", path.display());
}
