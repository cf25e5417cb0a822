//! packaging/config.toml, as it is installed.

use kata_cgroup_hook::config::Config;

use crate::keys;

const FILE: &str = include_str!("../../packaging/config.toml");

fn parsed(text: &str) -> String {
    format!("{:#?}", Config::parse(text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

/// The lines that are a setting once the # before them is gone: no blank follows it.
fn settings() -> Vec<&'static str> {
    let uncommented = FILE.lines().filter_map(|line| line.strip_prefix('#'));
    uncommented.filter(|line| line.starts_with(|first: char| !first.is_whitespace())).collect()
}

/// The example of a table, which is indented.
fn example() -> String {
    FILE.lines().filter_map(|line| line.strip_prefix("#     ")).collect::<Vec<_>>().join("\n")
}

#[test]
fn it_sets_nothing_as_it_is_shipped() {
    assert_eq!(parsed(FILE), parsed(""));
    assert!(FILE.lines().all(|line| line.is_empty() || line.starts_with('#')), "{FILE}");
}

#[test]
fn what_it_shows_are_the_defaults() {
    assert_eq!(parsed(&settings().join("\n")), parsed(""));
}

#[test]
fn each_setting_that_it_shows_is_one() {
    let all = settings().join("\n");
    for setting in settings().into_iter().filter(|setting| setting.contains(" = ")) {
        let error = Config::parse(&all.replace(setting, &format!("x{setting}"))).unwrap_err();
        assert!(error.contains("unknown field"), "{setting}: {error}");
    }
}

#[test]
fn it_shows_every_key() {
    let [top, v2, vmm] = keys();
    let (settings, example) = (settings().join("\n"), example());
    let (top_text, v2_text) = settings.split_once("[v2]\n").unwrap();
    for (keys, text) in [(top, top_text), (v2, v2_text), (vmm, example.as_str())] {
        for key in keys {
            assert!(text.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key}: {text}");
        }
    }
}

#[test]
fn its_example_of_a_vmm_is_understood() {
    let config = Config::parse(&example()).unwrap();
    assert_eq!(config.kinds.of_name("my-vmm").unwrap().vcpu_threads.len(), 1);
}
