//! What people read of the hook, and docs/troubleshooting.md, which explains it: neither has anything that the other lacks.
//!
//! A message is any string of the sources that reads as a sentence, so that a new one cannot be forgotten here. What is not in the
//! table is listed below with the reason: it explains itself, or is no message.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[path = "../tests/testenv/manual.rs"]
mod manual;

use manual::{HOLE, explained, explains, is_sentence};

/// Files whose sentences say themselves what to do (`check` prints a line for it below each), or only name what is drawn.
const SELF_EXPLAINING: [&str; 6] =
    ["check/", "status/table.rs", "status/tree.rs", "status/words.rs", "testing.rs", "messages.rs"];

/// Sentences that are none: how they begin, and what they are.
const NO_MESSAGES: [(&str, &str); 4] = [
    ("Keeps a VM sandbox's vCPU threads", "the help"),
    ("prestart, createRuntime,", "the words of the command line, a part of other messages"),
    ("0 steps: ", "what a dry run ends with"),
    ("it lacks something", "a default that no verdict has"),
];

/// A string literal as it is read: without its escapes, each placeholder a hole, without brackets around it.
fn as_read(literal: &str) -> String {
    let mut text = String::new();
    let mut chars = literal.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\\' => match chars.next() {
                Some('\n') => while chars.next_if(|next| next.is_whitespace()).is_some() {},
                Some('n') | None => text.push(' '),
                Some(escaped) => text.push(escaped),
            },
            '{' | '}' if chars.next_if_eq(&char).is_some() => text.push(char),
            '{' => {
                while chars.next().is_some_and(|inside| inside != '}') {}
                text.push(HOLE);
            }
            _ => text.push(char),
        }
    }
    while text.contains("……") {
        text = text.replace("……", "…");
    }
    let text = text.trim();
    text.strip_prefix('(').and_then(|text| text.strip_suffix(')')).unwrap_or(text).to_owned()
}

/// The string literals of a source, its tests aside.
fn literals(source: &str) -> Vec<String> {
    let mut rest = source.split("#[cfg(test)]\nmod tests").next().unwrap();
    let mut found = Vec::new();
    while let Some(at) = rest.find(['"', '\'', '/']) {
        let (token, after) = rest[at..].split_at(1);
        rest = after;
        match token {
            "/" => {
                if let Some(comment) = rest.strip_prefix('/') {
                    rest = &comment[comment.find('\n').unwrap_or(comment.len())..];
                }
            }
            // A lifetime's is followed by no other at once.
            "'" => rest = ["\"'", "\\\"'", "\\''", "/'"].iter().find_map(|quote| rest.strip_prefix(quote)).unwrap_or(rest),
            _ => {
                let mut is_escaped = false;
                let is_end = |(_, char): &(usize, char)| {
                    let ends = *char == '"' && !is_escaped;
                    is_escaped = *char == '\\' && !is_escaped;
                    ends
                };
                let (end, _) = rest.char_indices().find(is_end).expect("a string that ends");
                found.push(as_read(&rest[..end]));
                rest = &rest[end + 1..];
            }
        }
    }
    found
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { sources(&path, found) } else { found.push(path) }
    }
}

/// Every string of the sources, with the file that it is in.
fn said() -> BTreeMap<String, PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut said = BTreeMap::new();
    for file in files {
        let name = file.strip_prefix(&root).unwrap().to_path_buf();
        if SELF_EXPLAINING.iter().all(|explaining| !name.to_str().unwrap().starts_with(explaining)) {
            let texts = literals(&std::fs::read_to_string(&file).unwrap());
            said.extend(texts.into_iter().map(|text| (text, name.clone())));
        }
    }
    said
}

#[test]
fn every_sentence_that_is_said_is_explained() {
    let explained = explained();
    let is_none = |text: &str| NO_MESSAGES.iter().any(|(begin, _)| text.starts_with(begin));
    let said = said();
    let missing: Vec<_> =
        said.iter().filter(|(text, _)| is_sentence(text) && !is_none(text) && !explained.contains(*text)).collect();
    assert!(missing.is_empty(), "not in docs/troubleshooting.md: {missing:#?}");
}

#[test]
fn nothing_is_explained_that_is_not_said() {
    let said = said();
    let gone: Vec<_> = explained().into_iter().filter(|text| !said.contains_key(text)).collect();
    assert!(gone.is_empty(), "in docs/troubleshooting.md and no longer in the sources: {gone:#?}");
    for (begin, what) in NO_MESSAGES {
        assert!(said.keys().any(|text| text.starts_with(begin)), "{what}");
    }
}

#[test]
fn strings_are_read_as_people_see_them() {
    let source =
        "a('\"', '\\'') // \"a comment\"\n + b(\"no {what} in \\\"{0}\\\": \\\n        {{x}} \\\\\") + \" ({a}{b} c)\"";
    assert_eq!(literals(source), ["no … in \"…\": {x} \\", "… c"]);
    assert!(is_sentence("no … in it") && !is_sentence("… of …") && !is_sentence("set … to"));
}

#[test]
fn a_message_is_found_in_the_document_whatever_is_in_its_holes() {
    for text in [
        "kata-cgroup-hook: status: no sandbox x on this host, but xy, xz",
        "kata-cgroup-hook: prestart: read /run/x: EACCES: Permission denied",
        "/etc/x.toml: wrong in line 3: unknown field `mod`",
    ] {
        assert!(explains(text), "{text}");
    }
    for text in
        ["kata-cgroup-hook: prestart: it did not work at all", "no sandbox of that name", "cannot read /run/x: Error 13"]
    {
        assert!(!explains(text), "{text}");
    }
}
