//! What was measured: as a table to read, as JSON to go on with, and held against what is to be reached.
#![allow(clippy::cast_precision_loss)] // No count here comes near 2^52.

use std::fmt::{self, Write};
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::measure::{Counts, Sample, Spell};
use crate::stage::{AGAIN, FLOOR_PLACE, FLOOR_RELEASE, NO_SANDBOX, NO_SANDBOX_BY_CONFIG, NOTHING, PLACE, RELEASE, TRUE};
use crate::testenv::{Hierarchy, Version, hierarchies};
use crate::{MANY_SANDBOXES, MANY_VCPUS, PROCESSES};

pub(crate) struct Report {
    runs: usize,
    kvm: bool,
    pub(crate) figures: Vec<Figure>,
    /// Of two vCPUs, and of many.
    pub(crate) counts: Vec<(String, Counts)>,
    pub(crate) counts_of_many: Vec<(String, Counts)>,
    pub(crate) at_once: Vec<AtOnce>,
    /// When one cold move had been made after a program's start that had waited so many microseconds first, in nanoseconds.
    pub(crate) late: Vec<(u64, Vec<u64>)>,
    pub(crate) size: u64,
}

/// How long the runs of one subject took under the same circumstances, in microseconds.
pub(crate) struct Figure {
    pub(crate) processes: usize,
    pub(crate) vcpus: usize,
    pub(crate) spell: Spell,
    pub(crate) subject: String,
    pub(crate) median: f64,
    pub(crate) p10: f64,
    pub(crate) p90: f64,
    /// The highest of all, in KiB.
    peak: u64,
}

/// The same subject of many sandboxes at once: of each round the median and the slowest.
pub(crate) struct AtOnce {
    pub(crate) subject: String,
    pub(crate) rounds: Vec<(Duration, Duration)>,
}

impl AtOnce {
    /// The medians of both, in milliseconds.
    fn milliseconds(&self) -> (f64, f64) {
        let middle = |mut all: Vec<Duration>| {
            all.sort_unstable();
            all[all.len() / 2].as_secs_f64() * 1e3
        };
        let (medians, slowest) = self.rounds.iter().copied().unzip();
        (middle(medians), middle(slowest))
    }
}

/// Something to be reached.
struct Goal {
    what: String,
    is: f64,
    at_most: f64,
    unit: &'static str,
}

impl Report {
    pub(crate) fn new(runs: usize, kvm: bool) -> Report {
        let (figures, counts, counts_of_many, at_once, late) = Default::default();
        Report { runs, kvm, figures, counts, counts_of_many, at_once, late, size: 0 }
    }

    pub(crate) fn add(&mut self, processes: usize, vcpus: usize, spell: Spell, samples: Vec<(String, Vec<Sample>)>) {
        for (subject, samples) in samples {
            let mut times: Vec<u64> = samples.iter().map(|sample| sample.nanoseconds).collect();
            times.sort_unstable();
            let part = |percent: usize| micros(times[(times.len() - 1) * percent / 100]);
            let (median, p10, p90) = (part(50), part(10), part(90));
            let peak = samples.iter().map(|sample| sample.peak_kib).max().unwrap_or(0);
            self.figures.push(Figure { processes, vcpus, spell, subject, median, p10, p90, peak });
        }
    }

    fn find(&self, processes: usize, vcpus: usize, spell: Spell, subject: &str) -> &Figure {
        let is_it = |figure: &&Figure| {
            (figure.processes, figure.vcpus, figure.spell, figure.subject.as_str()) == (processes, vcpus, spell, subject)
        };
        self.figures.iter().find(is_it).unwrap_or_else(|| panic!("{subject} was not measured"))
    }

    /// A median in the usual case: few processes, two vCPUs.
    fn median(&self, spell: Spell, subject: &str) -> f64 {
        self.find(PROCESSES[0], 2, spell, subject).median
    }

    fn goals(&self) -> Vec<Goal> {
        let goal = |what: &str, is, at_most, unit| Goal { what: what.to_owned(), is, at_most, unit };
        let ratio = |spell, subject, to| self.median(spell, subject) / self.median(spell, to);
        let more = |subject, than| (self.median(Spell::Warm, subject) - self.median(Spell::Warm, than)) / 1e3;
        let calls = |counts: &[(String, Counts)], subject| of(counts, subject).map_or(f64::NAN, |counts| counts.calls as f64);
        let per_vcpu =
            |subject| (calls(&self.counts_of_many, subject) - calls(&self.counts, subject)) / (MANY_VCPUS - 2) as f64;
        let between = of(&self.counts_of_many, PLACE).map_or(f64::NAN, |counts| counts.between_moves as f64);
        let moves_again = of(&self.counts, AGAIN).map_or(f64::NAN, |counts| counts.moves as f64);
        let cpu_is_on_v1 = Hierarchy::of("cpu").is_some_and(|hierarchy| hierarchy.version == Version::V1);
        let growth = |subject| {
            self.find(PROCESSES[2], 2, Spell::Warm, subject).median / self.find(PROCESSES[0], 2, Spell::Warm, subject).median
        };
        let is_hooks = |figure: &&Figure| [NO_SANDBOX, NO_SANDBOX_BY_CONFIG, PLACE, AGAIN, RELEASE].contains(&&*figure.subject);
        let peak = self.figures.iter().filter(is_hooks).map(|figure| figure.peak).max().unwrap_or(0);
        let mut goals = vec![
            goal("not a VM sandbox / /bin/true", ratio(Spell::Warm, NO_SANDBOX, TRUE), 0.6, ""),
            goal("the same by config.json / /bin/true", ratio(Spell::Warm, NO_SANDBOX_BY_CONFIG, TRUE), 0.6, ""),
            goal("not a VM sandbox: system calls", calls(&self.counts, NO_SANDBOX), 45.0, ""),
            goal("the same by config.json: system calls", calls(&self.counts, NO_SANDBOX_BY_CONFIG), 45.0, ""),
            goal("place, cold / floor", ratio(Spell::Cold, PLACE, FLOOR_PLACE), 1.25, ""),
            goal("place, warm − floor", more(PLACE, FLOOR_PLACE), 1.0, " ms"),
            goal("place again: moves", moves_again, 0.0, ""),
            goal("place again − not a VM sandbox", more(AGAIN, NO_SANDBOX), 1.2, " ms"),
            goal("release, cold / floor", ratio(Spell::Cold, RELEASE, FLOOR_RELEASE), 1.25, ""),
        ];
        goals.extend([NO_SANDBOX, PLACE, AGAIN, RELEASE].map(|subject| {
            goal(&format!("{subject}: {} processes / {}", PROCESSES[2], PROCESSES[0]), growth(subject), 1.1, "")
        }));
        goals.extend([
            goal(&format!("{MANY_VCPUS} vCPUs: calls between two moves"), between, 0.0, ""),
            goal(
                &format!("{MANY_VCPUS} vCPUs: calls per vCPU beyond the floor's"),
                per_vcpu(PLACE) - per_vcpu(FLOOR_PLACE),
                if cpu_is_on_v1 { 12.0 } else { 8.0 },
                "",
            ),
            goal("peak memory", peak as f64 / 1024.0, 3.0, " MiB"),
            goal("binary", self.size as f64 / f64::from(1 << 20), 1.0, " MiB"),
        ]);
        goals
    }

    /// The pauses before one move, and the median of when it had been made, both in microseconds.
    fn late_moves(&self) -> impl Iterator<Item = (u64, f64)> {
        self.late.iter().map(|(pause, samples)| {
            let mut samples = samples.clone();
            samples.sort_unstable();
            (*pause, micros(samples[samples.len() / 2]))
        })
    }

    /// How much longer it takes to place many vCPUs than two.
    fn growth_with_vcpus(&self, spell: Spell) -> f64 {
        self.find(PROCESSES[0], MANY_VCPUS, spell, PLACE).median / self.median(spell, PLACE)
    }

    pub(crate) fn json(&self) -> Value {
        let times = self.figures.iter().map(|figure| {
            json!({
                "processes": figure.processes, "vcpus": figure.vcpus, "spell": figure.spell.to_string(), "subject": figure.subject,
                "median_us": figure.median, "p10_us": figure.p10, "p90_us": figure.p90, "peak_kib": figure.peak,
            })
        });
        let counts = [(2, &self.counts), (MANY_VCPUS, &self.counts_of_many)].into_iter().flat_map(|(vcpus, counts)| {
            counts.iter().map(move |(subject, counts)| {
                json!({
                    "vcpus": vcpus, "subject": subject, "system_calls": counts.calls, "moves": counts.moves,
                    "calls_between_moves": counts.between_moves, "instructions": counts.instructions,
                })
            })
        });
        let at_once = self.at_once.iter().map(|found| {
            let (median, slowest) = found.milliseconds();
            json!({ "sandboxes": MANY_SANDBOXES, "subject": found.subject, "median_ms": median, "slowest_ms": slowest })
        });
        let late = self.late_moves().map(|(pause, made)| json!({ "asked_for_after_us": pause, "made_after_us": made }));
        let growth = Spell::BOTH.map(|spell| (spell.to_string(), Value::from(self.growth_with_vcpus(spell))));
        let goals = self.goals().into_iter().map(|goal| {
            json!({ "goal": goal.what, "is": goal.is, "at_most": goal.at_most, "unit": goal.unit.trim(), "reached": goal.is_reached() })
        });
        json!({
            "machine": machine(), "kvm": self.kvm, "runs": self.runs, "binary_bytes": self.size,
            "times": times.collect::<Vec<_>>(), "counts": counts.collect::<Vec<_>>(),
            "place_with_many_vcpus_to_two": serde_json::Map::from_iter(growth),
            "at_once": at_once.collect::<Vec<_>>(), "one_move_cold": late.collect::<Vec<_>>(), "goals": goals.collect::<Vec<_>>(),
        })
    }
}

impl Goal {
    fn is_reached(&self) -> bool {
        self.is <= self.at_most
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; medians of {} runs; QEMU {} KVM", machine(), self.runs, if self.kvm { "with" } else { "without" })?;
        let mut seen = Vec::new();
        for figure in &self.figures {
            let circumstances = (figure.processes, figure.vcpus, figure.spell);
            if seen.last() != Some(&circumstances) {
                seen.push(circumstances);
                let (processes, vcpus, spell) = circumstances;
                writeln!(
                    f,
                    "\n{:<33}{:>8}{:>8}{:>8}{:>9}{:>10}",
                    format!("{spell}, {processes} processes, {vcpus} vCPUs"),
                    "p10 us",
                    "median",
                    "p90",
                    "/ true",
                    "/ floor"
                )?;
            }
            let beside =
                |subject: &str| figure.median / self.find(figure.processes, figure.vcpus, figure.spell, subject).median;
            let to_floor = floor_of(&figure.subject).map_or(String::new(), |floor| format!("{:.2}", beside(floor)));
            writeln!(
                f,
                "  {:<31}{:>8.0}{:>8.0}{:>8.0}{:>9.2}{to_floor:>10}",
                figure.subject,
                figure.p10,
                figure.median,
                figure.p90,
                beside(TRUE)
            )?;
        }
        for (vcpus, counts) in [(2, &self.counts), (MANY_VCPUS, &self.counts_of_many)] {
            writeln!(
                f,
                "\n{:<33}{:>8}{:>8}{:>10}{:>14}",
                format!("{vcpus} vCPUs"),
                "calls",
                "moves",
                "between",
                "instructions"
            )?;
            for (subject, counts) in counts {
                let instructions = counts.instructions.map_or("-".to_owned(), |number| number.to_string());
                writeln!(
                    f,
                    "  {subject:<31}{:>8}{:>8}{:>10}{instructions:>14}",
                    counts.calls, counts.moves, counts.between_moves
                )?;
            }
        }
        writeln!(f, "\n{:<33}{:>8}{:>8}", format!("{MANY_SANDBOXES} sandboxes at once, ms"), "median", "slowest")?;
        for found in &self.at_once {
            let (median, slowest) = found.milliseconds();
            writeln!(f, "  {:<31}{median:>8.0}{slowest:>8.0}", found.subject)?;
        }
        writeln!(f, "\none move, cold, us after the program's start")?;
        for (pause, made) in self.late_moves() {
            writeln!(f, "  asked for after {pause:>6}, made after {made:>6.0}")?;
        }
        let [warm, cold] = Spell::BOTH.map(|spell| self.growth_with_vcpus(spell));
        writeln!(f, "\n{MANY_VCPUS} vCPUs are placed in {warm:.2} times the time of 2, cold {cold:.2}")?;
        writeln!(f, "\nto reach")?;
        for goal in self.goals() {
            let mark = if goal.is_reached() { "reached" } else { "MISSED" };
            writeln!(f, "  {:<58}{:>8.2} of {:.2}{}  {mark}", goal.what, goal.is, goal.at_most, goal.unit)?;
        }
        Ok(())
    }
}

/// The floor under a subject.
fn floor_of(subject: &str) -> Option<&'static str> {
    match subject {
        PLACE => Some(FLOOR_PLACE),
        RELEASE => Some(FLOOR_RELEASE),
        AGAIN | NO_SANDBOX | NO_SANDBOX_BY_CONFIG => Some(NOTHING),
        _ => None,
    }
}

fn of<'c>(counts: &'c [(String, Counts)], subject: &str) -> Option<&'c Counts> {
    counts.iter().find(|(name, _)| name == subject).map(|(_, counts)| counts)
}

fn micros(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64() * 1e6
}

/// The machine in general words.
fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let is_virtual = read("/proc/cpuinfo").lines().any(|line| line.starts_with("flags") && line.contains(" hypervisor"));
    let kernel = read("/proc/sys/kernel/osrelease");
    let kernel: Vec<&str> = kernel.split('.').take(2).collect();
    let on = |version: Version| {
        let has = |hierarchy: &&Hierarchy| hierarchy.version == version;
        hierarchies().filter(has).flat_map(|hierarchy| hierarchy.controllers.clone()).collect::<Vec<_>>().join(" ")
    };
    let mut text = format!("{cpus} {}CPUs, Linux {}", if is_virtual { "virtual " } else { "" }, kernel.join("."));
    for (version, controllers) in [("v1", on(Version::V1)), ("v2", on(Version::V2))] {
        if !controllers.is_empty() {
            let _ = write!(text, ", cgroup {version}: {controllers}");
        }
    }
    text
}
