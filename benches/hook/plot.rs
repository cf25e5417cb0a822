//! The medians as bars: what the hook takes beside what the floor takes, on one scale for each spell.

use std::fmt::Write;

use crate::measure::Spell;
use crate::report::{Figure, Report};
use crate::stage::{AGAIN, FLOOR_PLACE, FLOOR_RELEASE, NO_SANDBOX, NOTHING, PLACE, RELEASE, TRUE};

const ROWS: [&str; 8] = [TRUE, NOTHING, NO_SANDBOX, AGAIN, FLOOR_PLACE, PLACE, FLOOR_RELEASE, RELEASE];
const WIDTH: f64 = 960.0;
const LEFT: f64 = 150.0;
const BAR: f64 = 14.0;

/// An SVG, wide enough for a page.
pub(crate) fn of(report: &Report) -> String {
    let (mut body, mut y) = (String::new(), 10.0);
    for spell in Spell::BOTH {
        let figures: Vec<&Figure> = report.figures.iter().filter(|figure| figure.spell == spell && figure.vcpus == 2).collect();
        let longest = figures.iter().map(|figure| figure.p90).fold(1.0, f64::max);
        y += 20.0;
        let _ = writeln!(
            body,
            r#"<text x="{LEFT}" y="{y}" class="head">{spell}: microseconds, the median and from 10 to 90 %, with so many processes</text>"#
        );
        for row in ROWS {
            y += 8.0;
            for figure in figures.iter().filter(|figure| figure.subject == row) {
                y += BAR + 2.0;
                bar(&mut body, figure, y, longest);
            }
        }
        y += 16.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y}\" viewBox=\"0 0 {WIDTH} {y}\">\n\
         <style>text {{ font: 11px sans-serif }} .head {{ font-weight: bold }} .hook {{ fill: #2a6f97 }} .floor {{ fill: #a9bcc6 }}\n\
         line {{ stroke: #222 }}</style>\n<rect width=\"{WIDTH}\" height=\"{y}\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

/// One bar that stands on `y`, with its name, its range and its median.
fn bar(body: &mut String, figure: &Figure, y: f64, longest: f64) {
    let at = |micros: f64| micros / longest * (WIDTH - LEFT - 60.0);
    let class = if [TRUE, NOTHING, FLOOR_PLACE, FLOOR_RELEASE].contains(&&*figure.subject) { "floor" } else { "hook" };
    let (top, text, middle) = (y - BAR, y - 3.0, y - BAR / 2.0);
    let label = format!("{}, {}", figure.subject, figure.processes);
    let (width, low, high) = (at(figure.median), LEFT + at(figure.p10), LEFT + at(figure.p90));
    let _ = writeln!(
        body,
        r#"<text x="{0}" y="{text}" text-anchor="end">{label}</text><rect x="{LEFT}" y="{top}" width="{width:.1}" height="{BAR}" class="{class}"/>
<line x1="{low:.1}" x2="{high:.1}" y1="{middle}" y2="{middle}"/><text x="{1:.1}" y="{text}">{2:.0}</text>"#,
        LEFT - 6.0,
        high + 5.0,
        figure.median
    );
}
