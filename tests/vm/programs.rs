//! The test programs that the VMs run, built so that they run in any of them.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, exit};

use serde_json::Value;

/// Statically linked, because the C library there is another than here.
const TARGET: &str = "x86_64-unknown-linux-musl";
/// What the job says before each program, so that its cases can be told from another's.
pub(crate) const PROGRAM: &str = "=== program ";
/// Names the directory of the packages that are to be tested, where there are any.
const PACKAGES: &str = "KCH_PACKAGES";
const SOURCES: &str = env!("CARGO_MANIFEST_DIR");

#[derive(Clone)]
pub(crate) struct Program {
    /// The test crate's.
    pub name: String,
    pub file: PathBuf,
    pub cases: Vec<String>,
    /// How many cases it has in all.
    pub all: usize,
}

pub(crate) struct Programs {
    pub programs: Vec<Program>,
    /// The hook that they are to test.
    pub hook: PathBuf,
}

impl Programs {
    /// Has cargo build every test crate but this one, and the hook; says why on stderr and ends where that fails.
    pub(crate) fn build() -> Programs {
        let output = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(["test", "--no-run", "--locked", "--profile", "vm", "--target", TARGET, "--test", "*"])
            .arg("--message-format=json-render-diagnostics")
            .current_dir(SOURCES)
            .stderr(Stdio::inherit())
            .output()
            .expect("cargo, which started this, to start again");
        if !output.status.success() {
            eprintln!("the tests could not be built for {TARGET}; where that target is missing, `make deps` installs it");
            exit(101);
        }
        let mut programs = Vec::new();
        let mut hook = None;
        for line in output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let message: Value = serde_json::from_slice(line).expect("cargo to speak JSON");
            let Some(file) = message["executable"].as_str().map(PathBuf::from) else { continue };
            let name = message["target"]["name"].as_str().unwrap_or_default();
            match message["target"]["kind"][0].as_str() {
                Some("test") if name != env!("CARGO_CRATE_NAME") => programs.push(Program::new(name, file)),
                Some("bin") => hook = Some(file),
                _ => {}
            }
        }
        // As cargo orders them: what looks for left-overs comes last, by its name.
        programs.sort_by(|a, b| a.name.cmp(&b.name));
        Programs { programs, hook: hook.expect("the hook among what cargo built") }
    }

    /// `PROGRAM::CASE` of each case.
    pub(crate) fn cases(&self) -> impl Iterator<Item = String> {
        self.programs.iter().flat_map(|program| program.cases.iter().map(|case| format!("{}::{case}", program.name)))
    }

    pub(crate) fn only(&self, wanted: impl Fn(&str) -> bool) -> Programs {
        let mut programs = self.programs.clone();
        for program in &mut programs {
            program.cases.retain(|case| wanted(&format!("{}::{case}", program.name)));
        }
        programs.retain(|program| !program.cases.is_empty());
        Programs { programs, hook: self.hook.clone() }
    }

    /// Fills a directory with a job for `run`: these programs with these cases, one after the other.
    pub(crate) fn write_job(&self, dir: &Path, options: &str) {
        let programs = dir.join("programs");
        fs::create_dir_all(&programs).unwrap();
        copy(&self.hook, &dir.join("kata-cgroup-hook"));
        let mut script = format!(
            "#!/bin/bash\n\
             # What the tests read from the sources, at the place they were built with.\n\
             mkdir -p '{parent}' && ln -sT /job/sources '{SOURCES}'\n\
             # Some tests want files that are root's, and change their mode.\n\
             cp -r /job/kata-cgroup-hook /job/programs /usr/local/lib/ && chown -R root:root /usr/local/lib\n\
             export KCH_TEST_HOOK=/usr/local/lib/kata-cgroup-hook KCH_TEST_VM=1 KCH_TEST_STRIDE=96 KCH_SOAK_SECONDS=5\n",
            parent = Path::new(SOURCES).parent().unwrap().display(),
        );
        if std::env::var_os(PACKAGES).is_some() {
            writeln!(script, "export {PACKAGES}=/job/packages").unwrap();
        }
        for Program { name, file, cases, all } in &self.programs {
            copy(file, &programs.join(name));
            let cases = if cases.len() == *all { String::new() } else { format!("--exact {}", cases.join(" ")) };
            writeln!(script, "echo '{PROGRAM}{name}'\n/usr/local/lib/programs/{name} --color never {options} {cases}").unwrap();
        }
        let run = dir.join("run");
        fs::write(&run, script).unwrap();
        fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).unwrap();
        if let Some(packages) = std::env::var_os(PACKAGES) {
            copy_tree(Path::new(&packages), &dir.join("packages"));
        }
        for path in ["hooks.d", "packaging", "tests/fixtures"] {
            copy_tree(&Path::new(SOURCES).join(path), &dir.join("sources").join(path));
        }
    }
}

impl Program {
    /// Statically linked as it is, it can say on this host what cases it has.
    fn new(name: &str, file: PathBuf) -> Program {
        let output = Command::new(&file).args(["--list", "--format=terse"]).output().expect("a test program to start");
        let list = String::from_utf8(output.stdout).expect("names in UTF-8");
        let cases: Vec<String> = list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
        Program { name: name.to_owned(), file, all: cases.len(), cases }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap_or_else(|error| panic!("{} to {}: {error}", from.display(), to.display()));
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() { copy_tree(&from, &to) } else { copy(&from, &to) }
    }
}
