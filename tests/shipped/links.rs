//! Each document's links lead to a file of the sources, and to a heading that it has.

use std::fs;
use std::path::{Path, PathBuf};

use crate::skipped;

const SOURCES: &str = env!("CARGO_MANIFEST_DIR");
const DOCUMENTS: [&str; 4] = ["", "docs", "packaging", "packaging/kubernetes"];

fn documents() -> Vec<PathBuf> {
    let files = DOCUMENTS.iter().flat_map(|dir| fs::read_dir(Path::new(SOURCES).join(dir)).unwrap());
    let paths = files.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// What stands in parentheses behind a text in brackets, and is no address.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://"))
}

/// A heading as its anchor: small letters, hyphens for blanks, nothing but words.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    kept.chars()
        .filter(|one| one.is_alphanumeric() || "- _".contains(*one))
        .map(|one| if one == ' ' { '-' } else { one })
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    if !Path::new(SOURCES).join("README.md").exists() {
        return skipped("no sources").unwrap_or_default();
    }
    let mut seen = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&text) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let file = if file.is_empty() { document.clone() } else { document.parent().unwrap().join(file) };
            assert!(file.exists(), "{}: {link}", document.display());
            let has = |text: String| text.lines().any(|line| line.starts_with('#') && anchor(line) == heading);
            assert!(heading.is_empty() || has(fs::read_to_string(&file).unwrap()), "{}: {link}", document.display());
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen}");
}
