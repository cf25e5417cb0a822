//! A shim that does as it is told: the process between the engine and everything else.
//!
//! Real shims are the parent of QEMU and of the hook, and that is what the hook may learn from them. This one is a shell under
//! the shim's name, in a file of root's, which runs the lines it is given. A shell has one thread; for what only a shim of
//! several threads can show, the test program itself stands in.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::env::{Env, copy_program, set_mode, write_file};
use super::hook::{Hook, Run};
use super::process::{Process, start_time};

/// Tells the test program that it is to be a shim.
const BE_A_SHIM: &str = "KCH_TEST_BE_A_SHIM";

pub(crate) struct Shim<'e> {
    env: &'e Env,
    pub(crate) process: Process,
    /// The thread that starts its children; not the first where it has several.
    pub(crate) thread: i32,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// What it started, with the start time of each: all of it ends with the shim.
    started: Vec<(i32, Option<u64>)>,
}

impl Drop for Shim<'_> {
    fn drop(&mut self) {
        for (pid, start) in &self.started {
            if start.is_some() && start_time(*pid) == *start {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
        }
    }
}

impl Env {
    /// The shim's file: root's own, and nobody else's to write.
    pub(crate) fn shim_file(&self) -> PathBuf {
        let file = self.dir.join("containerd-shim-kata-v2");
        if !file.exists() {
            copy_program("/bin/bash", &file);
        }
        file
    }

    /// A row for the table of kinds, as the table has the usual places only.
    pub(crate) fn shim_row(&self) -> String {
        row_of_shim(&self.shim_file())
    }

    pub(crate) fn shim(&self, sandbox: &str) -> Shim<'_> {
        let script = self.dir.join("shim.sh");
        write_file(&script, 0o644, "while IFS= read -r line; do eval \"$line\"; echo \"done $?\"; done\n");
        let mut command = Process::command(self.shim_file());
        command.arg(script).args(["-namespace", "k8s.io", "-id", sandbox]).stdin(Stdio::piped()).stdout(Stdio::piped());
        // A shell tells its terminal of each child that was killed.
        let process = Process::spawn(command.stderr(File::create(self.dir.join("shim.stderr")).unwrap()));
        let thread = process.pid();
        Shim::new(self, process, thread)
    }

    /// This test program as a shim of several threads, with the row that makes it one: `test` has to call [`be_a_shim`].
    pub(crate) fn threaded_shim(&self, sandbox: &str, test: &str) -> (Shim<'_>, String) {
        let program = std::env::current_exe().unwrap();
        // Cargo leaves it writable for its group, by the umask; one that may not be changed needs no change.
        if fs::metadata(&program).unwrap().permissions().mode() & 0o022 != 0 {
            set_mode(&program, 0o755);
        }
        let mut command = Process::command(&program);
        command
            .args([test, sandbox, "--exact", "--nocapture"])
            .env(BE_A_SHIM, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut shim = Shim::new(self, Process::spawn(&mut command), 0);
        shim.thread = shim.read_until("thread ").1;
        (shim, row_of_shim(&program))
    }
}

fn row_of_shim(file: &Path) -> String {
    format!("[[vmm]]\nname = \"test-shim\"\nrole = \"shim\"\nexecutables = [\"{}\"]\n", file.display())
}

/// Does what [`Shim::start`] asks for until nobody asks any more, on a thread that is not the process's first; nothing where
/// the test program is not told to.
pub(crate) fn be_a_shim() {
    if std::env::var_os(BE_A_SHIM).is_none() {
        return;
    }
    println!("\nthread {}", nix::unistd::gettid());
    let mut children = Vec::new();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let started = line.strip_suffix(" & echo $!").expect("only a program to start");
        children.push(Command::new("sh").args(["-c", &format!("exec {started}")]).spawn().unwrap());
        println!("{}\ndone 0", children.last().unwrap().id());
    }
    for child in &mut children {
        child.kill().unwrap();
    }
}

impl<'e> Shim<'e> {
    fn new(env: &'e Env, mut process: Process, thread: i32) -> Shim<'e> {
        env.watch(process.pid());
        let input = process.child().stdin.take().unwrap();
        let output = BufReader::new(process.child().stdout.take().unwrap());
        Shim { env, process, thread, input, output, started: Vec::new() }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Runs one line of shell in the shim itself; what it printed, and its status.
    fn run(&mut self, line: &str) -> (String, i32) {
        writeln!(self.input, "{line}").unwrap();
        self.read_until("done ")
    }

    /// What it says before a line that begins with this word, and the number after it.
    fn read_until(&mut self, word: &str) -> (String, i32) {
        let mut said = String::new();
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the shim has gone: {said}");
            if let Some(number) = line.strip_prefix(word) {
                return (said, number.trim_end().parse().unwrap());
            }
            said.push_str(&line);
        }
    }

    /// Starts a program as the shim's child, in the background, and says which process it is.
    pub(crate) fn start(&mut self, words: &[String]) -> i32 {
        let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        let log = quoted(&self.env.dir.join("shim.log").to_string_lossy());
        let (said, _) = self.run(&format!("{} </dev/null >>{log} 2>&1 & echo $!", words.join(" ")));
        let pid = said.trim().parse().unwrap();
        self.env.watch(pid);
        self.started.push((pid, start_time(pid)));
        pid
    }

    /// Runs the hook as the shim's child.
    pub(crate) fn run_hook(&mut self, hook: &Hook<'_>) -> Run {
        let [stdin, stdout, stderr] = ["stdin", "stdout", "stderr"].map(|name| self.env.dir.join(format!("hook.{name}")));
        fs::write(&stdin, hook.stdin_text()).unwrap();
        let words: Vec<String> = hook.command_line().iter().map(|word| quoted(&word.to_string_lossy())).collect();
        let command = words.join(" ");
        let redirected = [("<", &stdin), (">", &stdout), ("2>", &stderr)];
        let redirected = redirected.map(|(sign, path)| format!("{sign}{}", quoted(&path.to_string_lossy())));
        let (_, status) = self.run(&format!("{command} {}", redirected.join(" ")));
        Run {
            code: (status < 128).then_some(status),
            signal: (status > 128).then(|| status - 128),
            stdout: fs::read_to_string(stdout).unwrap(),
            stderr: fs::read_to_string(stderr).unwrap(),
            log: self.env.log.take(),
            command,
        }
    }
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
