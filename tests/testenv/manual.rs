//! docs/troubleshooting.md, as who has met a message uses it.

use std::collections::BTreeSet;

/// What stands in a message for what only the moment tells.
pub(crate) const HOLE: char = '…';

const DOCUMENT: &str = include_str!("../../docs/troubleshooting.md");

/// The messages in its tables: what stands between backticks in the first column.
pub(crate) fn explained() -> BTreeSet<String> {
    let tables = DOCUMENT.split("\n## What a message means\n").nth(1).expect("the tables");
    let rows = tables.lines().filter_map(|line| line.strip_prefix("| "));
    let columns = rows.filter_map(|row| row.split(" | ").next());
    columns.flat_map(|column| column.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// Whether it has three words at least, as what is said to people has.
pub(crate) fn is_sentence(text: &str) -> bool {
    let is_word = |word: &&str| word.chars().filter(|char| char.is_alphabetic()).count() > 1;
    text.split_whitespace().filter(is_word).count() > 2
}

/// Whether `text` holds this message, whatever stands in its holes.
pub(crate) fn holds(text: &str, message: &str) -> bool {
    let mut rest = Some(text);
    for piece in message.split(HOLE) {
        rest = rest.and_then(|rest| rest.split_once(piece.trim())).map(|(_, after)| after);
    }
    rest.is_some()
}

/// Whether who looks up `text` finds what it means: a sentence of the tables, or the kernel's word for what failed.
pub(crate) fn explains(text: &str) -> bool {
    let names_errno = text.split(": E").skip(1).any(|rest| rest.starts_with(|char: char| char.is_ascii_uppercase()));
    names_errno || explained().iter().any(|message| is_sentence(message) && holds(text, message))
}
