//! The other test crates once more, in virtual machines: one for each way in which a host can have its cgroups.
//!
//! A host has one cgroup mode and one KVM, a developer's laptop no root for tests to play with. So the same programs that run
//! on this host run in a VM of each mode (`run` has the list and boots it, `image` builds what it boots), and what comes
//! back are ordinary cases: `v2::host::place::a_second_run_touches_nothing` is one of them, can be asked for by any part of
//! that name, and fails by it.
//!
//! Which modes, `KCH_VM_MODES` says (`make test` and `make test-all` do). Without it there is no case here and nothing is built
//! or booted: `cargo test` alone stays a matter of seconds.
//!
//! No libtest underneath: there the runner waits for one case after the other, here a VM runs them all and says how each went.

mod machine;
mod programs;
mod report;

use std::process::ExitCode;

use programs::Programs;
use report::{Arguments, Report};

fn main() -> ExitCode {
    let modes = std::env::var("KCH_VM_MODES").unwrap_or_default();
    let modes: Vec<&str> = modes.split_whitespace().collect();
    let arguments = Arguments::parse();
    if modes.is_empty() {
        return Report::new(0).finish();
    }
    let programs = Programs::build();
    let chosen: Vec<(&str, Programs)> =
        modes.iter().map(|&mode| (mode, programs.only(|case| arguments.choose(&format!("{mode}::{case}"))))).collect();
    if arguments.list {
        for (mode, programs) in &chosen {
            programs.cases().for_each(|case| println!("{mode}::{case}: test"));
        }
        return ExitCode::SUCCESS;
    }
    let mut report = Report::new(chosen.iter().map(|(_, programs)| programs.cases().count()).sum());
    for (mode, programs) in chosen.iter().filter(|(_, programs)| programs.cases().next().is_some()) {
        machine::run(mode, programs, &arguments, &mut report);
    }
    report.finish()
}
