//! packaging/completions/: each shell itself is asked what it would complete.

use std::collections::BTreeSet;
use std::fs;

use crate::{options_of, run, words};

const BASH: &str = include_str!("../../packaging/completions/kata-cgroup-hook.bash");
const ZSH: &str = include_str!("../../packaging/completions/_kata-cgroup-hook");
const FISH: &str = include_str!("../../packaging/completions/kata-cgroup-hook.fish");

/// Where they look for the names of sandboxes.
const RECORDS: &str = "/run/kata-cgroup-hook";

type Completed = Option<BTreeSet<String>>;

fn set<'a>(words: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    words.into_iter().map(str::to_owned).collect()
}

/// What bash offers behind these words, the last of which is being typed.
fn bash(completion: &str, typed: &[&str]) -> Completed {
    let line: Vec<String> = typed.iter().map(|word| format!("'{word}'")).collect();
    let ask = format!(
        "{completion}\nCOMP_WORDS=(kata-cgroup-hook {}) COMP_CWORD={}\n_kata_cgroup_hook 2>&1\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
        line.join(" "),
        line.len(),
    );
    let said = run("bash", &["--norc", "--noprofile", "-s"], &ask)?;
    Some(set(said.lines().filter(|line| !line.is_empty())))
}

fn fish(completion: &str, typed: &[&str]) -> Completed {
    let ask = format!("{completion}\ncomplete -C 'kata-cgroup-hook {}'\n", typed.join(" "));
    let said = run("fish", &["--no-config"], &ask)?;
    Some(set(said.lines().map(|line| line.split('\t').next().unwrap())))
}

/// What zsh's own functions are told to offer once the first word is there: an editor, which a test has not, would show it.
fn zsh(completion: &str, first: &str) -> Completed {
    let state = if first.is_empty() { "word" } else { "rest" };
    let ask = format!(
        "_arguments() {{ if [[ $1 = -C ]]; then state={state} line=('{first}'); else print -l -- $@; fi }}\n\
         _describe() {{ print -l -- ${{(P)@[-1]}} }}\n{completion}",
    );
    let said = run("zsh", &["-f", "-s"], &ask)?;
    Some(set(said.lines().map(|line| line.split([':', '[']).next().unwrap())))
}

fn options(word: &str) -> BTreeSet<String> {
    set(options_of(word))
}

#[test]
fn bash_completes_the_first_word() {
    let Some(all) = bash(BASH, &[""]) else { return };
    assert_eq!(all, set(words().into_iter().chain(["--help", "--version"])));
    assert_eq!(bash(BASH, &["st"]), Some(set(["status"])));
    assert_eq!(bash(BASH, &["--config", "/c", "create"]), Some(set(["createContainer", "createRuntime"])));
}

#[test]
fn bash_completes_the_options_that_go_with_a_word_and_no_others() {
    for word in words() {
        let Some(offered) = bash(BASH, &[word, "--"]) else { return };
        assert_eq!(offered, options(word), "{word}");
    }
    assert_eq!(bash(BASH, &["reconcile", "--rel"]), Some(set(["--release-all"])));
}

#[test]
fn bash_completes_files_for_the_options_that_name_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("of mine.toml");
    fs::write(&file, "").unwrap();
    for option in ["--config", "--state"] {
        let typed = format!("{}/of", dir.path().display());
        let Some(offered) = bash(BASH, &["poststop", option, &typed]) else { return };
        assert_eq!(offered, set([file.to_str().unwrap()]));
    }
}

#[test]
fn a_sandbox_is_completed_by_its_record() {
    let dir = tempfile::tempdir().unwrap();
    let records = dir.path().to_str().unwrap();
    let here = |completion: &str| {
        assert!(completion.contains(RECORDS));
        completion.replace(RECORDS, records)
    };
    let none = BTreeSet::new();
    assert!(bash(&here(BASH), &["status", "3f"]).is_none_or(|offered| offered == none));
    assert!(fish(&here(FISH), &["status", ""]).is_none_or(|offered| offered == none));

    for name in ["3f2a.json", "3f2a.lock", "3f2b.json", "4c.json"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    assert!(bash(&here(BASH), &["status", "3f"]).is_none_or(|offered| offered == set(["3f2a", "3f2b"])));
    assert!(fish(&here(FISH), &["status", "3f"]).is_none_or(|offered| offered == set(["3f2a", "3f2b"])));
    // Its list is one word of the description that zsh gets.
    let ask = here(ZSH).replace("\"1:sandbox:($sandboxes)\"", "$sandboxes");
    assert!(zsh(&ask, "status").is_none_or(|offered| offered.is_superset(&set(["3f2a", "3f2b", "4c"]))));
}

#[test]
fn fish_completes_words_and_their_options() {
    let Some(all) = fish(FISH, &[""]) else { return };
    assert_eq!(all, set(words()));
    for word in words() {
        assert_eq!(fish(FISH, &[word, "--"]), Some(options(word)), "{word}");
    }
    assert!(fish(FISH, &["--"]).is_some_and(|offered| offered == set(["--help", "--version"])));
}

#[test]
fn zsh_completes_words_and_their_options() {
    let Some(all) = zsh(ZSH, "") else { return };
    assert_eq!(all, set(words()));
    for word in words() {
        let offered = zsh(ZSH, word).unwrap();
        let offered: BTreeSet<String> = offered.into_iter().filter(|word| word.starts_with("--")).collect();
        assert_eq!(offered, options(word), "{word}");
    }
    assert!(ZSH.starts_with("#compdef kata-cgroup-hook\n") && ZSH.contains("{-h,--help}") && ZSH.contains("{-V,--version}"));
}
