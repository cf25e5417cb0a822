//! A VM of one mode: runs the programs in it, and makes cases of what libtest prints there.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::programs::{PROGRAM, Programs};
use crate::report::{Arguments, Outcome, Report};

const RUN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vm/run");

/// Seconds that all of the cases may take in one mode: several times what they need on two idle CPUs.
const TIMEOUT: &str = "2400";

/// How long a VM may say nothing. The slowest case needs about a quarter of a minute on an emulated CPU, one thing at a time.
const SILENCE: Duration = Duration::from_secs(120);

/// How long a VM may take until it says anything: several times what it needs for that.
const BOOT: Duration = Duration::from_secs(60);

/// How long after `run` QEMU is there, where there is an image.
const A_MOMENT: Duration = Duration::from_secs(10);

/// A VM that falls silent or ends before its job is no case's fault as long as the next one does neither: an emulator may hang or
/// break down, which is seldom.
const MOST_BOOTS: usize = 3;

/// Runs the cases in a VM of this mode, and in another what one left over that did not get to its end. A case that nothing came back
/// of has failed.
pub(crate) fn run(mode: &str, programs: &Programs, arguments: &Arguments, report: &mut Report) {
    let start = Instant::now();
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm").join(mode);
    let _ = fs::remove_dir_all(&dir);
    let mut reader = Reader::new(mode, programs.cases().map(|case| format!("{mode}::{case}")).collect(), report);
    for boot in 1..=MOST_BOOTS {
        let vm = Vm { mode, dir: if boot == 1 { dir.clone() } else { dir.join(format!("boot-{boot}")) } };
        let left = programs.only(|case| reader.waiting.contains(&format!("{mode}::{case}")));
        let end = vm.run(&left, arguments, &mut reader);
        if matches!(end, End::Itself(_)) || reader.waiting.is_empty() || boot == MOST_BOOTS {
            reader.finish(|| format!("no result came back: the VM {end}\n{}", vm.last_words()));
            break;
        }
        let left = reader.waiting.len();
        println!("=== vm {mode}: it {end}; {left} cases go to another\n{}", vm.last_words());
    }
    fs::write(dir.join("times.log"), reader.times_by_length()).unwrap();
    println!("=== vm {mode}: {} s; logs in {}", start.elapsed().as_secs(), dir.display());
}

/// One boot of a mode, and where its logs are.
struct Vm<'m> {
    mode: &'m str,
    dir: PathBuf,
}

/// How a VM ended.
#[derive(PartialEq, Eq)]
enum End {
    Itself(ExitStatus),
    BeforeItsJob(ExitStatus),
    Silent(Duration),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Itself(status) => write!(f, "has ended with {status}"),
            End::BeforeItsJob(status) => write!(f, "has ended before its job ({status})"),
            End::Silent(time) => write!(f, "said nothing for {} s and was ended", time.as_secs()),
        }
    }
}

impl Vm<'_> {
    fn run(&self, programs: &Programs, arguments: &Arguments, reader: &mut Reader) -> End {
        let job = self.dir.join("job");
        fs::create_dir_all(&job).unwrap();
        programs.write_job(&job, &arguments.for_guest());
        let pidfile = self.dir.join("pid");
        let mut run = Command::new(RUN)
            .args([Path::new(self.mode), &job])
            .env("VM_CONSOLE", self.console())
            .env("VM_PIDFILE", &pidfile)
            .env("VM_TIMEOUT", std::env::var("VM_TIMEOUT").as_deref().unwrap_or(TIMEOUT))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{RUN}: {error}"));
        let mut log = File::create(self.output()).unwrap();
        let lines = lines_of(run.stdout.take().unwrap());
        let (mut patience, mut silent) = (BOOT, None);
        loop {
            match lines.recv_timeout(patience) {
                Ok(line) => {
                    patience = SILENCE;
                    log.write_all(&line).unwrap();
                    reader.line(String::from_utf8_lossy(&line).trim_end());
                }
                // Building an image takes its time as well, and then there is no QEMU yet, or it has just been started.
                Err(RecvTimeoutError::Timeout) => silent = silent.or(terminate(&pidfile, patience)),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = run.wait().unwrap();
        fs::remove_dir_all(&job).unwrap();
        reader.end_output();
        if let Some(time) = silent {
            return End::Silent(time);
        }
        match status.code() {
            // What `run` says where QEMU has failed, or no job's status has come; 124 is the timeout of them all.
            None | Some(125..) => End::BeforeItsJob(status),
            Some(_) => End::Itself(status),
        }
    }

    fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    fn output(&self) -> PathBuf {
        self.dir.join("output.log")
    }

    fn last_words(&self) -> String {
        let (output, console) = (end_of(&self.output()), end_of(&self.console()));
        format!("--- its last words:\n{output}\n--- its kernel's:\n{console}")
    }
}

/// The lines of a pipe, as they come.
fn lines_of(pipe: ChildStdout) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        loop {
            let mut line = Vec::new();
            let is_end = pipe.read_until(b'\n', &mut line).unwrap() == 0;
            if is_end || sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Ends the process that the file names, if it has run for so long, and says how long that is.
fn terminate(pidfile: &Path, patience: Duration) -> Option<Duration> {
    let age = fs::metadata(pidfile).and_then(|file| file.modified()).ok()?.elapsed().ok()?;
    let pid = fs::read_to_string(pidfile).ok()?.trim().parse().ok().filter(|_| age + A_MOMENT >= patience)?;
    kill(Pid::from_raw(pid), Signal::SIGTERM).ok().map(|()| patience)
}

/// Reads what libtest prints in the VM.
struct Reader<'r> {
    mode: &'r str,
    report: &'r mut Report,
    /// Whose output it is.
    program: String,
    /// The cases of which nothing is known yet.
    waiting: BTreeSet<String>,
    all: BTreeSet<String>,
    /// With one test thread, a case is named when it starts and its outcome follows on a line of its own.
    started: String,
    /// The case whose output is being read, and that output.
    printing: Option<(String, String)>,
    /// How long after the one before each has ended: with one test thread, how long it took.
    times: Vec<(Duration, String)>,
    last: Instant,
}

impl<'r> Reader<'r> {
    fn new(mode: &'r str, cases: BTreeSet<String>, report: &'r mut Report) -> Reader<'r> {
        Reader {
            mode,
            report,
            program: String::new(),
            waiting: cases.clone(),
            all: cases,
            started: String::new(),
            printing: None,
            times: Vec::new(),
            last: Instant::now(),
        }
    }

    fn line(&mut self, line: &str) {
        if let Some(program) = line.strip_prefix(PROGRAM) {
            self.end_output();
            program.clone_into(&mut self.program);
        } else if let Some(case) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.end_output();
            self.printing = Some((self.name_of(case), String::new()));
        } else if ["failures:", "successes:"].contains(&line) || line.starts_with("test result: ") {
            self.end_output();
        } else if let Some((_, output)) = &mut self.printing {
            output.push_str(line);
            output.push('\n');
        } else if let Some(reason) = line.strip_prefix("skipped: ") {
            println!("skipped: {}: {reason}", self.mode);
        } else if let Some((case, word)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ...")) {
            self.started = self.name_of(case.trim_end_matches(" - should panic"));
            self.outcome(word.trim());
        } else {
            self.outcome(line);
        }
    }

    /// The case that was named last has ended so; nothing where that is no outcome, or no case that is waited for.
    fn outcome(&mut self, word: &str) {
        let outcome = match word.split(',').next() {
            Some("ok") => Outcome::Passed,
            Some("FAILED") => Outcome::Failed,
            Some("ignored") => Outcome::Ignored,
            _ => return,
        };
        if self.waiting.remove(&self.started) {
            self.report.case(&self.started, outcome);
            let now = Instant::now();
            self.times.push((now - self.last, self.started.clone()));
            self.last = now;
        }
    }

    /// The longest first, in seconds.
    fn times_by_length(&mut self) -> String {
        self.times.sort_by(|a, b| b.cmp(a));
        let lines: Vec<String> = self.times.iter().map(|(time, case)| format!("{:6.1} {case}", time.as_secs_f32())).collect();
        lines.join("\n")
    }

    fn name_of(&self, case: &str) -> String {
        format!("{}::{}::{case}", self.mode, self.program)
    }

    fn end_output(&mut self) {
        if let Some((case, output)) = self.printing.take().filter(|(case, _)| self.all.contains(case)) {
            self.report.detail(&case, &output);
        }
    }

    /// What is still waited for has failed, and the first of it says why.
    fn finish(&mut self, why: impl FnOnce() -> String) {
        for case in &self.waiting {
            self.report.case(case, Outcome::Failed);
        }
        if let Some(first) = self.waiting.first() {
            self.report.detail(first, &why());
        }
    }
}

/// The last lines of a file, marked as somebody else's words: who reads this output would take a `skipped: ...` or a
/// `test result: ...` among them for a word about this host.
fn end_of(file: &Path) -> String {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<String> = text.lines().map(|line| format!("> {line}")).collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
