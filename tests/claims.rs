//! What SECURITY.md claims: each line of it names its tests, and these exist.
//!
//! That they pass, the other test crates say. A claim that loses its test, by a new name or by its end, is no claim any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

const DOCUMENT: &str = include_str!("../SECURITY.md");
const SOURCES: &str = env!("CARGO_MANIFEST_DIR");

/// The marks of lines that claim something: `- **B1** …` and `| C1 | …`, down to the section with the tests.
fn marks() -> BTreeSet<&'static str> {
    claims().lines().filter_map(mark_of).collect()
}

fn claims() -> &'static str {
    DOCUMENT.split_once("\n## Each line and its tests\n").expect("the section with the tests").0
}

/// A capital letter and a number.
fn mark_of(line: &str) -> Option<&str> {
    let text = line.strip_prefix("- **").or_else(|| line.strip_prefix("| "))?;
    let mark = text.split(['*', ' ']).next()?;
    let number = mark.strip_prefix(|letter: char| letter.is_ascii_uppercase())?;
    number.parse::<u32>().is_ok().then_some(mark)
}

/// What holds each mark, by the rows of the last table.
fn rows() -> BTreeMap<&'static str, Vec<&'static str>> {
    let table = DOCUMENT.split_once("\n## Each line and its tests\n").unwrap().1;
    let held_by = |row: &'static str| row.split('`').skip(1).step_by(2).collect();
    table.lines().filter_map(|line| Some((mark_of(line)?, held_by(line)))).collect()
}

/// Whether a test of this name stands in the sources: `crate::module::name`, or of the library `module::name`.
fn exists(name: &str) -> bool {
    let (module, test) = name.rsplit_once("::").unwrap();
    let module = module.replace("::", "/");
    let files = [format!("tests/{module}.rs"), format!("src/{module}.rs"), format!("src/{module}/mod.rs")];
    let function = format!("fn {test}(");
    let has_test = |text: String| text.split("#[test]").skip(1).any(|after| after.trim_start().starts_with(&function));
    files.iter().filter_map(|file| fs::read_to_string(Path::new(SOURCES).join(file)).ok()).any(has_test)
}

#[test]
fn every_line_that_claims_something_has_a_mark_and_every_mark_what_holds_it() {
    let sections = claims().split("\n## ").filter(|section| !section.starts_with("What it does not protect against"));
    // Of a table, all rows but its head and the rule below that.
    let is_row = |line: &str| line.starts_with("| ") && !line.starts_with("| | ");
    let claims_something = |line: &&str| line.starts_with("- ") || is_row(line);
    let unmarked: Vec<&str> =
        sections.flat_map(str::lines).filter(claims_something).filter(|line| mark_of(line).is_none()).collect();
    assert!(unmarked.is_empty(), "{unmarked:#?}");
    let rows = rows();
    assert_eq!(marks(), rows.keys().copied().collect());
    assert!(marks().len() > 40 && rows.values().all(|held_by| !held_by.is_empty()), "{rows:#?}");
}

/// A virtual machine has the programs alone.
fn has_sources() -> bool {
    let has_them = Path::new(SOURCES).join("src").exists();
    if !has_them {
        // Not by a macro, whose words the harness keeps to itself.
        std::io::stderr().write_all(b"\nskipped: no sources\n").unwrap();
    }
    has_them
}

fn sources_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources_below(&path) } else { vec![path] }).collect()
}

/// The compiler denies it, and whoever takes that back somewhere has to come by here.
#[test]
fn unsafe_code_is_allowed_in_sys_rs_alone() {
    if !has_sources() {
        return;
    }
    let src = Path::new(SOURCES).join("src");
    let says = |path: &PathBuf, word: &str| fs::read_to_string(path).unwrap().contains(word);
    let allowing: Vec<PathBuf> =
        sources_below(&src).into_iter().filter(|path| says(path, "unsafe_code") || says(path, "unsafe {")).collect();
    assert_eq!(allowing, [src.join("sys.rs")]);
    assert!(says(&Path::new(SOURCES).join("Cargo.toml"), "unsafe_code = \"deny\""));
}

/// NO_COLOR is for people who look at a table. What the environment says otherwise could lead root anywhere.
#[test]
fn the_environment_is_read_for_the_colours_of_a_table_alone() {
    if !has_sources() {
        return;
    }
    let src = Path::new(SOURCES).join("src");
    let reads = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let shipped = text.split("#[cfg(test)]").next().unwrap();
        ["env::var", "env::home", "env::temp", "current_dir", "getenv"].iter().any(|word| shipped.contains(word))
    };
    let reading: Vec<PathBuf> = sources_below(&src).into_iter().filter(reads).collect();
    assert_eq!(reading, [src.join("commands/status.rs")]);
    assert_eq!(fs::read_to_string(&reading[0]).unwrap().matches("env::var").count(), 1);
}

#[test]
fn every_test_that_is_named_exists() {
    if !has_sources() {
        return;
    }
    let named: Vec<&str> = rows().into_values().flatten().filter(|name| name.contains("::")).collect();
    let missing: Vec<&&str> = named.iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(named.len() > 80 && !exists("host::spoof::no_such_test") && !exists("host::spoof::impostors"));
}
