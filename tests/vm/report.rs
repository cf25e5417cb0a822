//! What libtest would print, for cases that ran elsewhere: the same words, so that people and tools find what they know.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Instant;

use lexopt::prelude::*;

/// What `cargo test -- ...` may say. What only makes sense within one process is taken and left alone.
#[derive(Debug, Default)]
pub(crate) struct Arguments {
    pub list: bool,
    filters: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    show_output: bool,
    test_threads: Option<u32>,
}

impl Arguments {
    pub(crate) fn parse() -> Arguments {
        Arguments::try_parse().unwrap_or_else(|error| {
            eprintln!("{error}");
            std::process::exit(2);
        })
    }

    fn try_parse() -> Result<Arguments, lexopt::Error> {
        let mut arguments = Arguments::default();
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("list") => arguments.list = true,
                Long("exact") => arguments.exact = true,
                Long("show-output" | "nocapture" | "no-capture") => arguments.show_output = true,
                Long("skip") => arguments.skip.push(parser.value()?.string()?),
                Long("test-threads") => arguments.test_threads = Some(parser.value()?.parse()?),
                Long("format" | "color") => drop(parser.value()?),
                Value(filter) => arguments.filters.push(filter.string()?),
                other => return Err(other.unexpected()),
            }
        }
        Ok(arguments)
    }

    /// Whether a case is asked for by its whole name.
    pub(crate) fn choose(&self, case: &str) -> bool {
        let matches = |filter: &String| if self.exact { case == filter } else { case.contains(filter.as_str()) };
        (self.filters.is_empty() || self.filters.iter().any(matches)) && !self.skip.iter().any(matches)
    }

    /// What the programs in the VM are told.
    pub(crate) fn for_guest(&self) -> String {
        // There are two CPUs. More at once get into each other's way in /kata, which all sandboxes share.
        let mut options = format!("--test-threads={}", self.test_threads.unwrap_or(2));
        if self.show_output {
            options.push_str(" --show-output");
        }
        options
    }
}

/// How a case went.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    Passed,
    Ignored,
    Failed,
}

/// The cases so far. Each is said when it is known, what a failed one printed is said in the end.
pub(crate) struct Report {
    start: Instant,
    passed: usize,
    ignored: usize,
    failed: Vec<String>,
    details: String,
}

impl Report {
    pub(crate) fn new(cases: usize) -> Report {
        println!("\nrunning {cases} test{}", if cases == 1 { "" } else { "s" });
        Report { start: Instant::now(), passed: 0, ignored: 0, failed: Vec::new(), details: String::new() }
    }

    pub(crate) fn case(&mut self, name: &str, outcome: Outcome) {
        let word = match outcome {
            Outcome::Passed => "ok",
            Outcome::Ignored => "ignored",
            Outcome::Failed => "FAILED",
        };
        println!("test {name} ... {word}");
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Ignored => self.ignored += 1,
            Outcome::Failed => self.failed.push(name.to_owned()),
        }
    }

    /// What a case printed, or whatever else explains how it went.
    pub(crate) fn detail(&mut self, name: &str, text: &str) {
        writeln!(self.details, "---- {name} stdout ----\n{}\n", text.trim_end()).unwrap();
    }

    pub(crate) fn finish(self) -> ExitCode {
        let Report { start, passed, ignored, failed, details } = self;
        if !details.is_empty() {
            println!("\noutput:\n\n{details}");
        }
        if !failed.is_empty() {
            println!("\nfailures:");
            for name in &failed {
                println!("    {name}");
            }
        }
        let (word, code) = if failed.is_empty() { ("ok", ExitCode::SUCCESS) } else { ("FAILED", ExitCode::from(101)) };
        println!(
            "\ntest result: {word}. {passed} passed; {} failed; {ignored} ignored; 0 measured; 0 filtered out; finished in {:.2}s\n",
            failed.len(),
            start.elapsed().as_secs_f64()
        );
        code
    }
}
