//! What a program costs: time and memory by launch.c, system calls by strace, instructions by valgrind.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Barrier, OnceLock};
use std::time::{Duration, Instant};

use crate::stage::{Stage, Subject};
use crate::testenv::{Call, Group, Process, Strace, is_installed};

/// The C programs beside this, built.
pub(crate) struct Tools {
    launch: PathBuf,
    crowd: PathBuf,
}

static FLOOR: OnceLock<PathBuf> = OnceLock::new();

pub(crate) fn floor() -> &'static Path {
    FLOOR.get().expect("the tools to be known")
}

impl Tools {
    pub(crate) fn in_dir(dir: &Path) -> Tools {
        let tool = |name: &str| {
            let path = dir.join(name);
            path.canonicalize().unwrap_or_else(|error| panic!("{}: {error}: make bench builds it", path.display()))
        };
        FLOOR.get_or_init(|| tool("floor"));
        Tools { launch: tool("launch"), crowd: tool("crowd") }
    }
}

/// How long nobody has moved anything between groups before a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Spell {
    /// A process has been moved just before, so the kernel's lock for moves is still at hand.
    Warm,
    /// Nothing at all for half a second.
    Cold,
}

impl Spell {
    pub(crate) const BOTH: [Spell; 2] = [Spell::Warm, Spell::Cold];
}

impl fmt::Display for Spell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Spell::Warm => "warm",
            Spell::Cold => "cold",
        })
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) nanoseconds: u64,
    pub(crate) peak_kib: u64,
}

/// Runs every subject so many times, one after the other, and gives the samples of each.
pub(crate) fn in_turn(tools: &Tools, stage: &Stage, spell: Spell, runs: usize) -> Vec<(String, Vec<Sample>)> {
    let mut samples: Vec<(String, Vec<Sample>)> =
        stage.subjects.iter().map(|subject| (subject.name.to_owned(), vec![])).collect();
    let idler = Idler::new(stage);
    for run in 0..runs {
        for (subject, (_, samples)) in stage.subjects.iter().zip(&mut samples) {
            if spell == Spell::Warm {
                idler.move_it();
            }
            samples.push(once(tools, stage, subject, spell));
            if let Some(leaves) = subject.leaves.filter(|_| run == 0) {
                stage.assert_left(leaves);
            }
        }
    }
    samples
}

/// How long after a program's start one move has been made that it asks for after `pauses`, in microseconds, all of them cold.
///
/// The kernel's wait depends on when it begins: whoever comes too late for the grace period that the program's own start has set
/// off waits for the end of that, and for the next.
pub(crate) fn late_moves(tools: &Tools, stage: &Stage, pauses: &[u64], runs: usize) -> Vec<(u64, Vec<u64>)> {
    let idler = Idler::new(stage);
    let (to, back) = (idler.group.path_on_host(), idler.group.parent().expect("a group above").path_on_host());
    let late = |pause: u64| {
        let moves = [&to, &back].map(|group| format!("write {}/cgroup.procs {}\n", group.display(), idler.process.pid()));
        Subject::of_floor(stage.env, "a late move", &format!("late-{pause}"), &format!("pause {pause}\n{}", moves.concat()))
    };
    let mut samples: Vec<(u64, Subject, Vec<u64>)> = pauses.iter().map(|pause| (*pause, late(*pause), vec![])).collect();
    for _ in 0..runs {
        for (_, subject, samples) in &mut samples {
            samples.push(once(tools, stage, subject, Spell::Cold).nanoseconds);
        }
    }
    samples.into_iter().map(|(pause, _, samples)| (pause, samples)).collect()
}

fn once(tools: &Tools, stage: &Stage, subject: &Subject, spell: Spell) -> Sample {
    let idle = if spell == Spell::Cold { "500" } else { "0" };
    let output = Command::new(&tools.launch).arg(idle).arg(&subject.stdin).args(&subject.command).output();
    let output = output.expect("launch to be started");
    let said = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<u64> = said.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [nanoseconds, peak_kib, 0] = numbers[..] else {
        panic!("{}: {said}{}", subject.name, String::from_utf8_lossy(&output.stderr));
    };
    let logged: Vec<String> = stage.env.log.take().iter().map(|line| line.get("result").to_owned()).collect();
    assert_eq!(logged, subject.logs.into_iter().collect::<Vec<_>>(), "{}", subject.name);
    Sample { nanoseconds, peak_kib }
}

/// A process that is moved to and fro where the sandbox is not.
struct Idler {
    process: Process,
    group: Group,
}

impl Idler {
    fn new(stage: &Stage) -> Idler {
        let group = Group::new("cpu", &format!("/{}-idler", stage.env.name));
        group.make();
        Idler { process: Process::sleeping(), group }
    }

    fn move_it(&self) {
        self.group.take_in(self.process.pid());
        self.group.parent().expect("a group above").take_in(self.process.pid());
    }
}

impl Drop for Idler {
    fn drop(&mut self) {
        self.process.kill();
        self.group.remove_tree();
    }
}

/// What a run does, whatever the machine's mood.
#[derive(Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) calls: usize,
    pub(crate) moves: usize,
    /// Calls between the first move and the last that are none.
    pub(crate) between_moves: usize,
    pub(crate) instructions: Option<u64>,
}

impl Counts {
    pub(crate) fn of(stage: &Stage, subject: &Subject) -> Counts {
        let strace = Strace::inject(stage.env, &[]);
        let run = |wrapper: Vec<std::ffi::OsString>| {
            let words: Vec<_> = wrapper.into_iter().chain(subject.command.iter().cloned()).collect();
            let stdin = File::open(&subject.stdin).expect("the subject's stdin");
            Command::new(&words[0]).args(&words[1..]).stdin(stdin).output().ok()
        };
        let traced = run(strace.wrapper()).expect("strace to be started");
        assert!(traced.status.success(), "{}: {traced:?}", subject.name);
        let trace = strace.trace();
        let calls: Vec<Call> = trace.lines().filter(|line| !line.contains("resumed>")).filter_map(Call::parse).collect();
        let moves: Vec<usize> = (0..calls.len()).filter(|index| is_move(&calls[*index])).collect();
        let span = moves.first().zip(moves.last()).map_or(0, |(first, last)| last - first + 1);
        // The virtual machines are without.
        let instructions = is_installed("valgrind").then(|| {
            // Its steps are done by now: for valgrind it is brought to where it was, and by valgrind to where it is.
            if let Some(undoing) = stage.undoing(subject) {
                let stdin = File::open(&undoing.stdin).expect("its stdin");
                let status = Command::new(&undoing.command[0]).args(&undoing.command[1..]).stdin(stdin).status();
                assert!(status.expect("it to be started").success(), "{}", undoing.name);
            }
            let output = run(callgrind()).expect("valgrind to be started");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let collected = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
            collected.unwrap_or_else(|| panic!("{}: {said}", subject.name))
        });
        stage.env.log.take();
        Counts { calls: calls.len(), moves: moves.len(), between_moves: span - moves.len(), instructions }
    }
}

fn callgrind() -> Vec<std::ffi::OsString> {
    ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"].map(Into::into).to_vec()
}

fn is_move(call: &Call) -> bool {
    call.name == "write" && call.is_on_group() && ["tasks", "cgroup.procs", "cgroup.threads"].contains(&call.file_name())
}

/// Processes that sleep, so that the host has so many in all.
pub(crate) struct Crowd(Option<Child>);

impl Crowd {
    pub(crate) fn up_to(tools: &Tools, processes: usize) -> Crowd {
        let is_process = |name: &std::ffi::OsStr| name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
        let present =
            std::fs::read_dir("/proc").expect("/proc").flatten().filter(|entry| is_process(&entry.file_name())).count();
        let missing = processes.saturating_sub(present);
        if missing == 0 {
            return Crowd(None);
        }
        let mut command = Command::new(&tools.crowd);
        let child = command.arg(missing.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("a crowd to be started");
        let mut ready = [0; 6];
        child.stdout.as_mut().expect("its stdout").read_exact(&mut ready).expect("a crowd that is ready");
        Crowd(Some(child))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // Its stdin is closed by waiting, and with it they go.
            let _ = child.wait();
        }
    }
}

/// Starts all of them in the same moment and says how long after it each had ended.
pub(crate) fn at_once(subjects: Vec<&Subject>) -> Vec<Duration> {
    let gate = Barrier::new(subjects.len());
    let run = |subject: &Subject| {
        let mut command = Command::new(&subject.command[0]);
        command.args(&subject.command[1..]).stdin(File::open(&subject.stdin).expect("its stdin"));
        gate.wait();
        let start = Instant::now();
        let status = command.status().expect("it to be started");
        let took = start.elapsed();
        assert!(status.success(), "{}: {status}", subject.name);
        took
    };
    std::thread::scope(|scope| {
        let run = &run;
        let runs: Vec<_> = subjects.into_iter().map(|subject| scope.spawn(move || run(subject))).collect();
        runs.into_iter().map(|run| run.join().expect("a run that ends well")).collect()
    })
}
