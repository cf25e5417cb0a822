//! docs/kata-cgroup-hook.8.

use kata_cgroup_hook::cli::HELP;
use kata_cgroup_hook::config::Config;

use crate::{keys, options, run, words};

const PAGE: &str = include_str!("../../docs/kata-cgroup-hook.8");

/// The text of a section, by its heading.
fn section(heading: &str) -> &'static str {
    let (_, after) = PAGE.split_once(&format!("\n.Sh {heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    after.split("\n.Sh ").next().unwrap()
}

/// The words of those list items that have this macro.
fn items(section: &'static str, of: &str) -> Vec<&'static str> {
    let lines =
        section.lines().filter_map(|line| line.strip_prefix(".It ")).filter(|line| line.split(' ').any(|word| word == of));
    lines.flat_map(|line| line.split(' ')).collect()
}

#[test]
fn it_explains_every_word_of_the_command_line() {
    let explained = items(section("COMMANDS"), "Cm");
    for word in words() {
        assert!(explained.contains(&word), "{word}: {explained:?}");
    }
}

#[test]
fn it_explains_every_option() {
    let explained = items(section("OPTIONS"), "Fl");
    for option in options() {
        let written = option.replacen("--", "\\-", 1);
        assert!(explained.contains(&written.as_str()), "{option}: {explained:?}");
    }
}

#[test]
fn its_synopsis_is_that_of_the_help() {
    let shown: Vec<String> = section("SYNOPSIS").lines().map(as_typed).collect();
    let shown = shown.join(" ");
    let shown: Vec<&str> = shown.split("NAME ").skip(1).map(str::trim).collect();
    let usage = HELP.lines().filter_map(|line| line.get(7..)?.strip_prefix("kata-cgroup-hook "));
    assert_eq!(shown, usage.collect::<Vec<_>>());
}

/// A line of mdoc(7) as it is shown, as far as the synopsis needs it.
fn as_typed(line: &str) -> String {
    if line == ".Nm" {
        return "NAME".into();
    }
    let text = line.replace("Fl \\-", "--").replace("| \\-", "| --");
    let (is_optional, text) = match text.strip_prefix(".Op ") {
        Some(rest) => (true, rest.to_owned()),
        None => (false, text.trim_start_matches('.').to_owned()),
    };
    let text = text.replace("Ar ", "").replace("Cm ", "");
    if is_optional { format!("[{text}]") } else { text }
}

#[test]
fn it_explains_every_key_of_the_configuration_with_its_default() {
    let section = section("CONFIGURATION");
    let [top, rest] = section.splitn(2, "\n.Ss Table v2\n").collect::<Vec<_>>()[..] else { panic!("no table v2") };
    let [v2, vmm] = rest.splitn(2, "\n.Ss Tables vmm\n").collect::<Vec<_>>()[..] else { panic!("no tables vmm") };
    for (part, keys) in [top, v2, vmm].into_iter().zip(keys()) {
        let explained: Vec<&str> = part.split("\n.It Li ").skip(1).collect();
        let named: Vec<&str> = explained.iter().map(|item| item.lines().next().unwrap()).collect();
        for key in &keys {
            assert!(named.contains(&key.as_str()), "{key}: {named:?}");
        }
        assert_eq!(named.len(), keys.len(), "a key that there is not: {named:?}");
        for item in explained {
            assert!(item.contains("\nDefault:") || item.contains("\nRequired."), "{item}");
        }
    }
}

#[test]
fn the_defaults_that_it_states_are_those_that_hold() {
    let section = section("CONFIGURATION").replace("\\(dq", "\"");
    let with_default =
        section.split("\n.It Li ").filter_map(|item| Some((item.lines().next()?, item.split_once("\nDefault:\n.Ql ")?.1)));
    let settings: Vec<String> = with_default
        .map(|(key, default)| format!("{key} = {}", default.lines().next().unwrap().trim_end_matches(" .")))
        .collect();
    // Its last is of a table.
    let (domain, top) = settings.split_last().unwrap();
    let parsed = |text: &str| format!("{:#?}", Config::parse(text).unwrap());
    assert_eq!(parsed(&format!("{}\n[v2]\n{domain}", top.join("\n"))), parsed(""));
    assert_eq!(top.len(), 7, "{top:?}");
}

#[test]
fn it_names_every_key_and_every_result_of_the_log_line() {
    let explained = section("LOG");
    for key in [
        "stage",
        "result",
        "sandbox",
        "container",
        "vmm",
        "vcpus",
        "moved",
        "created",
        "removed",
        "limit",
        "cpus",
        "took_ms",
        "msg",
    ] {
        assert!(items(explained, "Li").contains(&key), "{key}");
    }
    for result in ["placed", "unchanged", "released", "not-yet", "partial", "refused", "failed"] {
        assert!(explained.contains(&format!(".Ql {result} ")), "{result}");
    }
}

#[test]
fn a_formatter_finds_nothing_wrong_with_it() {
    // What it knows of other pages is about this host, and matters of style are not errors.
    run("mandoc", &["-Tlint", "-Wwarning"], PAGE);
}
