//! All sandboxes, a line each: to be read at a glance on a host with a hundred.
//!
//! What needs a look stands last, next to the prompt, below it how many there are of each kind.

use std::fmt::Write;

use crate::commands::printable;
use crate::order;
use crate::status::words::{self, Look};
use crate::status::{Sandbox, Verdict};

/// No id is shortened to less.
const SHORTEST_ID: usize = 12;
/// Less of a reason says nothing; this much of one is worth more than the rest of an id.
const SHORTEST_REASON: usize = 16;
const WORTHY_REASON: usize = 40;
/// Between two columns.
const GAP: usize = 2;

const HEADINGS: [&str; 7] = ["SANDBOX", "VMM", "VCPUS", "LIMIT", "THROTTLED", "MEMORY", "VERDICT"];
const ID: usize = 0;
const VERDICT: usize = HEADINGS.len() - 1;
/// These go first where there is no room, in this order.
const DISPENSABLE: [usize; 5] = [5, 4, 3, 1, 2];

/// What to do about what is not placed.
const HINT: &str = "`status SANDBOX` says more; `reconcile` completes those with a record and removes orphans\n";

type Cells = [String; HEADINGS.len()];

/// The table.
pub fn draw(sandboxes: &[Sandbox], look: Look) -> String {
    if sandboxes.is_empty() {
        return "no VM sandbox on this host\n".to_owned();
    }
    let mut sorted: Vec<&Sandbox> = sandboxes.iter().collect();
    order::sort_by_key(&mut sorted, |sandbox| sandbox.verdict);
    let rows: Vec<Cells> = sorted.iter().map(|sandbox| cells(sandbox)).collect();
    let widths = widths(&rows, look);
    let mut text = line(&HEADINGS.map(str::to_owned), &widths, look, |cell| cell);
    text.push('\n');
    for (sandbox, row) in sorted.iter().zip(&rows) {
        text += &line(row, &widths, look, |cell| look.paint(sandbox.verdict, &cell));
        text += &reason(sandbox, &widths, look);
        text.push('\n');
    }
    text + &summary(sandboxes, look)
}

fn cells(sandbox: &Sandbox) -> Cells {
    let none = || "-".to_owned();
    let Sandbox { vcpus, limit, .. } = sandbox;
    let vmm = sandbox.vmm.as_ref();
    [
        printable(&sandbox.id),
        vmm.map_or_else(none, |vmm| format!("{} {}", printable(&vmm.kind), vmm.pid)),
        vmm.map_or_else(none, |_| {
            format!("{}/{}", vcpus.found, vcpus.expected.map_or("?".to_owned(), |expected| expected.to_string()))
        }),
        vmm.map_or_else(none, |_| limit.quota_us.map_or("none".to_owned(), |quota| words::cpus(quota, limit.period_us))),
        sandbox.throttled().map_or_else(none, words::share),
        sandbox.memory().map_or_else(none, words::bytes),
        sandbox.verdict.word().to_owned(),
    ]
}

/// How wide each column is, 0 for one that is left out: the id takes what the others leave, and columns go where that is too little.
fn widths(rows: &[Cells], look: Look) -> [usize; HEADINGS.len()] {
    let mut widths = HEADINGS.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let (Some(room), longest) = (look.width, widths[ID]) else { return widths };
    widths[ID] = longest.min(shortest_distinct(rows, look));
    for column in DISPENSABLE {
        let is_too_wide = total(&widths) > room;
        widths.get_mut(column).filter(|_| is_too_wide).into_iter().for_each(|width| *width = 0);
    }
    let is_all_well = rows.iter().all(|row| row[VERDICT] == Verdict::Placed.word());
    let reserved = if is_all_well { 0 } else { WORTHY_REASON };
    widths[ID] += room.saturating_sub(total(&widths) + reserved).min(longest - widths[ID]);
    widths
}

/// How short ids may become so that each can still be told from the others.
fn shortest_distinct(rows: &[Cells], look: Look) -> usize {
    let mut ids: Vec<&str> = rows.iter().map(|row| row[ID].as_str()).collect();
    order::sort(&mut ids);
    let in_common = |(one, other): (&&str, &&str)| one.chars().zip(other.chars()).take_while(|(a, b)| a == b).count();
    let longest = ids.iter().zip(ids.iter().skip(1)).map(in_common).max().unwrap_or(0);
    SHORTEST_ID.max(longest + 1 + look.more().chars().count())
}

fn total(widths: &[usize]) -> usize {
    let shown = || widths.iter().filter(|width| **width > 0);
    shown().sum::<usize>() + GAP * shown().count().saturating_sub(1)
}

/// A line without its end. The last column is not filled up.
fn line(cells: &Cells, widths: &[usize; HEADINGS.len()], look: Look, paint: impl Fn(String) -> String) -> String {
    let mut line = String::new();
    for (column, (cell, width)) in cells.iter().zip(widths).enumerate().filter(|(_, (_, width))| **width > 0) {
        match column {
            ID => {
                let _ = write!(line, "{:width$}", look.shorten(cell, *width));
            }
            VERDICT => {
                let _ = write!(line, "{:GAP$}{}", "", paint(cell.clone()));
            }
            _ => {
                let _ = write!(line, "{:GAP$}{cell:width$}", "");
            }
        }
    }
    line
}

/// What is the matter, as far as there is room.
fn reason(sandbox: &Sandbox, widths: &[usize; HEADINGS.len()], look: Look) -> String {
    let Some(reason) = sandbox.reasons.first() else { return String::new() };
    let more = sandbox.reasons.len() - 1;
    let reason = printable(reason) + &if more > 0 { format!(" (and {more} more)") } else { String::new() };
    let taken = total(widths) - widths[VERDICT] + sandbox.verdict.word().len() + ": ".len();
    match look.width.map(|width| width.saturating_sub(taken)) {
        None => format!(": {reason}"),
        Some(room) if room >= SHORTEST_REASON => format!(": {}", look.shorten(&reason, room)),
        Some(_) => String::new(),
    }
}

/// "3 sandboxes: 2 placed, 1 orphan".
fn summary(sandboxes: &[Sandbox], look: Look) -> String {
    let count = |verdict: Verdict| sandboxes.iter().filter(|sandbox| sandbox.verdict == verdict).count();
    let kinds = Verdict::ALL.into_iter().filter(|verdict| count(*verdict) > 0);
    let kinds: Vec<String> =
        kinds.map(|verdict| look.paint(verdict, &format!("{} {}", count(verdict), verdict.word()))).collect();
    let all = if sandboxes.len() == 1 { "1 sandbox".to_owned() } else { format!("{} sandboxes", sandboxes.len()) };
    let hint = if count(Verdict::Placed) == sandboxes.len() { "" } else { HINT };
    format!("\n{all}: {}\n{hint}", kinds.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::testing::{placed, sandbox};

    const ID: &str = "3f2a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718";

    fn at(width: usize) -> Look {
        Look { width: Some(width), has_colour: false, is_utf8: true }
    }

    /// A hundred of them, of which some are in trouble.
    fn hundred() -> Vec<Sandbox> {
        let verdict = |number: usize| match number {
            7 => Verdict::Orphan,
            23 => Verdict::Unplaced,
            42 | 77 => Verdict::Incomplete,
            _ => Verdict::Placed,
        };
        (0..100).map(|number| sandbox(&format!("{number:02}{ID}"), verdict(number))).collect()
    }

    #[test]
    fn a_sandbox_is_a_line_with_all_that_an_operator_looks_for() {
        let expected = "\
SANDBOX  VMM        VCPUS  LIMIT     THROTTLED  MEMORY    VERDICT
x        qemu 1234  2/2    1.50 CPU  81%        37.0 MiB  placed

1 sandbox: 1 placed
";
        assert_eq!(draw(&[placed("x")], Look::default()), expected);
        assert_eq!(draw(&[], Look::default()), "no VM sandbox on this host\n");
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let mut one = sandbox("x", Verdict::Orphan);
        one.vmm = None;
        let text = draw(&[one], Look::default());
        assert!(text.contains("\nx        -    -      -      -          -       orphan: it lacks something\n"), "{text}");
        let mut one = sandbox("x", Verdict::Placed);
        (one.limit.quota_us, one.vcpus.expected) = (None, None);
        assert!(draw(&[one], Look::default()).contains("  2/?    none  "));
    }

    #[test]
    fn of_a_hundred_those_in_trouble_stand_last_and_are_counted() {
        let text = draw(&hundred(), Look::default());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1 + 100 + 1 + 2);
        let last: Vec<&str> =
            lines[97..101].iter().map(|line| line.split_whitespace().next().unwrap()).map(|id| &id[..2]).collect();
        assert_eq!(last, ["42", "77", "23", "07"]);
        assert_eq!(lines[102], "100 sandboxes: 96 placed, 2 incomplete, 1 unplaced, 1 orphan");
        assert_eq!(lines[103].to_owned() + "\n", HINT);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_none_lacks_its_verdict() {
        for width in [40, 60, 80, 100, 132, 200] {
            let text = draw(&hundred(), at(width));
            for line in text.lines().take(101) {
                assert!(line.chars().count() <= width, "{width}: {line}");
                let has_verdict = Verdict::ALL.iter().any(|verdict| line.contains(verdict.word()));
                assert!(has_verdict || line.contains("VERDICT"), "{width}: {line}");
            }
        }
        let narrow = draw(&hundred(), at(40));
        assert!(!narrow.contains("THROTTLED") && narrow.contains("003f2a4b5c6…  "), "{narrow}");
        let wide = draw(&hundred(), at(200));
        assert!(wide.contains(&format!("00{ID}  ")) && wide.contains("orphan: it lacks something"), "{wide}");
    }

    #[test]
    fn a_reason_is_worth_more_than_the_rest_of_an_id_but_no_two_ids_look_the_same() {
        let text = draw(&[sandbox(ID, Verdict::Incomplete)], at(120));
        assert!(text.contains("incomplete: it lacks something\n") && text.contains("3f2a4b5c"), "{text}");
        assert!(!text.contains(ID), "{text}");
        let twins =
            ["1", "2"].map(|end| sandbox(&format!("with-a-long-head-that-is-the-same-{end}-and-a-tail"), Verdict::Incomplete));
        let text = draw(&twins, at(80));
        assert!(text.contains("same-1…") && text.contains("same-2…"), "{text}");
    }

    #[test]
    fn further_reasons_are_counted() {
        let mut one = sandbox("x", Verdict::Incomplete);
        one.reasons.extend(["b".into(), "c".into()]);
        assert!(draw(&[one], Look::default()).contains("incomplete: it lacks something (and 2 more)\n"));
    }

    #[test]
    fn colour_is_the_verdicts_alone_and_moves_nothing() {
        let colourful = draw(&hundred(), Look { has_colour: true, ..at(80) });
        let plain = [32, 33, 36, 31]
            .iter()
            .fold(colourful.replace("\x1b[0m", ""), |text, colour| text.replace(&format!("\x1b[{colour}m"), ""));
        assert_eq!(plain, draw(&hundred(), at(80)));
        assert!(colourful.contains("\x1b[31morphan\x1b[0m"), "{colourful}");
    }

    #[test]
    fn no_control_character_reaches_the_terminal() {
        let mut one = sandbox("x\x1b[2J", Verdict::Incomplete);
        one.reasons = vec!["a\x1b]0;title\x07\nb".into()];
        one.vmm.as_mut().unwrap().kind = "q\rm".into();
        let text = draw(&[one], Look::default());
        assert!(text.chars().all(|char| char == '\n' || !char.is_control()), "{text:?}");
        assert!(text.contains("x\\u{1b}[2J  q\\rm 1234"), "{text}");
    }
}
