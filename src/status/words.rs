//! How numbers and lists are said to a person.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use nix::sys::termios::{InputFlags, tcgetattr};

use crate::cgroup::file::{CPUS, EFFECTIVE_CPUS, SHARES, WEIGHT};
use crate::cgroup::mounts::Version;
use crate::cgroup::settings;
use crate::cgroup::{self, Part};
use crate::status::{Group, Limit, Throttled, Verdict};
use crate::sys;

/// What is written to.
///
/// Only a terminal gets colour, lines of its width and lines drawn with more than ASCII: what a program reads is the same everywhere.
/// Whether it shows UTF-8 is asked of the terminal itself, as no variable of the environment but `NO_COLOR` means anything here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Look {
    pub width: Option<usize>,
    pub has_colour: bool,
    pub is_utf8: bool,
}

impl Look {
    /// That of `out`; `no_color` is the variable of that name, which counts where it is not empty (no-color.org).
    pub fn of(out: &(impl IsTerminal + AsFd), no_color: Option<&str>) -> Self {
        if !out.is_terminal() {
            return Self::default();
        }
        // The kernel's consoles, terminal emulators and sshd set it where they show UTF-8 (IUTF8, termios(3)).
        let is_utf8 = tcgetattr(out).is_ok_and(|terminal| terminal.input_flags.contains(InputFlags::IUTF8));
        Self { width: sys::terminal_width(out), has_colour: no_color.is_none_or(str::is_empty), is_utf8 }
    }

    /// A verdict's word, or what stands for it, in its colour.
    pub fn paint(self, verdict: Verdict, text: &str) -> String {
        let colour = match verdict {
            Verdict::Placed => 32,
            Verdict::Incomplete => 33,
            Verdict::Unplaced => 36,
            Verdict::Orphan => 31,
        };
        if self.has_colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// The sign that there was more.
    pub fn more(self) -> &'static str {
        if self.is_utf8 { "…" } else { "..." }
    }

    /// The text, or as much of it as `width` has room for.
    pub fn shorten(self, text: &str, width: usize) -> String {
        if text.chars().count() <= width {
            return text.to_owned();
        }
        let sign = self.more();
        let room = width.saturating_sub(sign.chars().count());
        text.chars().take(room).chain(sign.chars()).take(width).collect()
    }
}

/// "1.50 CPU".
pub fn cpus(quota: u64, period: u64) -> String {
    let hundredths = quota.saturating_mul(100) / period.max(1);
    let thousandths = quota.saturating_mul(1000) / period.max(1);
    // A hundredth of little is much.
    if thousandths < 100 {
        format!("0.{thousandths:03} CPU")
    } else {
        format!("{}.{:02} CPU", hundredths / 100, hundredths % 100)
    }
}

/// "1.50 CPU (150000/100000)".
pub fn quota(limit: Option<settings::Limit>) -> String {
    limit.map_or("no CPU limit".to_owned(), |(quota, period)| format!("{} ({quota}/{period})", cpus(quota, period)))
}

/// What acts on the vCPU threads: "1.50 CPU (150000/100000), shares 1024, cpus 0-3".
pub fn limit(limit: &Limit) -> String {
    let weighed = [("shares", limit.shares), ("weight", limit.weight)];
    let weighed = weighed.into_iter().filter_map(|(word, value)| Some(format!("{word} {}", value?)));
    let list = (!limit.cpus.is_empty()).then(|| format!("cpus {}", limit.cpus));
    let quota = quota(limit.quota_us.map(|quota| (quota, limit.period_us)));
    std::iter::once(quota).chain(weighed).chain(list).collect::<Vec<_>>().join(", ")
}

/// What a group sets for who is in it, in the same words; nothing where that is nothing.
pub fn set_by(group: &Group) -> Vec<String> {
    let level = &group.level;
    let (is_constrained, version) = (group.role == Part::Constrained, level.path.hierarchy.version);
    let limit = || quota(cgroup::limit_of(level));
    let limit = (is_constrained && group.controllers.contains(&"cpu")).then(limit);
    let shares = level.value(SHARES).map(|shares| format!("shares {shares}"));
    // Within its domain the vCPU threads' group is weighed against nobody.
    let is_weighed = version == Version::V2 && !is_constrained;
    let weight = level.value(WEIGHT).filter(|_| is_weighed).map(|weight| format!("weight {weight}"));
    let list = level.value(EFFECTIVE_CPUS).or(level.value(CPUS)).filter(|list| is_constrained && !list.is_empty());
    let list = list.map(|list| format!("cpus {list}"));
    [limit, shares, weight, list].into_iter().flatten().collect()
}

/// "35.2 MiB".
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes == 0 {
        return "0".to_owned();
    }
    let (mut tenths, mut unit) = (bytes.saturating_mul(10) / 1024, 0);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        (tenths, unit) = (tenths / 1024, unit + 1);
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS.get(unit).unwrap_or(&""))
}

/// "41.2 s".
pub fn duration(usec: u64) -> String {
    match usec {
        0..1_000 => format!("{usec} us"),
        1_000..1_000_000 => format!("{}.{} ms", usec / 1_000, usec % 1_000 / 100),
        1_000_000..600_000_000 => format!("{}.{} s", usec / 1_000_000, usec % 1_000_000 / 100_000),
        _ => format!("{} min", usec / 60_000_000),
    }
}

/// In how many of a hundred periods they had to wait: "81%".
pub fn share(throttled: Throttled) -> String {
    let percent = throttled.periods.saturating_mul(100) / throttled.of_periods.max(1);
    if percent == 0 && throttled.periods > 0 { "<1%".to_owned() } else { format!("{percent}%") }
}

/// "cpu, cpuacct and cpuset".
pub fn list(words: &[impl AsRef<str>]) -> String {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    match words.split_last() {
        Some((last, before)) if !before.is_empty() => format!("{} and {last}", before.join(", ")),
        _ => words.concat(),
    }
}

/// "1 vCPU", "2 vCPUs".
pub fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use nix::pty::{Winsize, openpty};
    use nix::sys::termios::{SetArg, tcsetattr};

    use super::*;

    #[test]
    fn numbers_are_said_as_a_person_reads_them() {
        for (limit, said) in [
            ((150_000, 100_000), "1.50 CPU"),
            ((50_000, 100_000), "0.50 CPU"),
            ((1_000, 100_000), "0.010 CPU"),
            ((3_333_300, 100_000), "33.33 CPU"),
            ((100_000, 0), "100000.00 CPU"),
        ] {
            assert_eq!(cpus(limit.0, limit.1), said);
        }
        assert_eq!(quota(Some((150_000, 100_000))), "1.50 CPU (150000/100000)");
        assert_eq!(quota(None), "no CPU limit");
        for (number, said) in [
            (0, "0"),
            (1023, "0.9 KiB"),
            (1024, "1.0 KiB"),
            (1 << 20, "1.0 MiB"),
            (1536 << 20, "1.5 GiB"),
            (u64::MAX, "1638.3 PiB"),
        ] {
            assert_eq!(bytes(number), said);
        }
        for (usec, said) in [(0, "0 us"), (999, "999 us"), (1_500, "1.5 ms"), (41_230_000, "41.2 s"), (3_600_000_000, "60 min")]
        {
            assert_eq!(duration(usec), said);
        }
        let of_thousand = |periods| share(Throttled { periods, of_periods: 1000, usec: 0 });
        assert_eq!([0, 1, 10, 815, 1000].map(of_thousand), ["0%", "<1%", "1%", "81%", "100%"]);
        assert_eq!(share(Throttled::default()), "0%");
        assert_eq!([list(&["a"]), list(&["a", "b", "c"]), list(&[""; 0])], ["a", "a, b and c", ""]);
    }

    #[test]
    fn what_is_no_terminal_gets_neither_colour_nor_a_width_nor_lines_drawn() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let look = Look::of(&file, None);
        assert!(look.width.is_none() && !look.has_colour && !look.is_utf8, "{look:?}");
    }

    #[test]
    fn a_terminal_gets_colour_unless_told_and_what_it_says_it_can_show() {
        let look = |flags: InputFlags, no_color| {
            let pty = openpty(&Winsize { ws_row: 50, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }, None).unwrap();
            let mut terminal = tcgetattr(&pty.slave).unwrap();
            terminal.input_flags = flags;
            tcsetattr(&pty.slave, SetArg::TCSANOW, &terminal).unwrap();
            let look = Look::of(&std::fs::File::from(pty.slave), no_color);
            (look.width, look.has_colour, look.is_utf8)
        };
        assert_eq!(look(InputFlags::empty(), None), (Some(80), true, false));
        assert_eq!(look(InputFlags::IUTF8, Some("")), (Some(80), true, true));
        assert_eq!(look(InputFlags::IUTF8, Some("1")), (Some(80), false, true));
    }

    #[test]
    fn what_is_shortened_says_so() {
        let look = Look { is_utf8: true, ..Look::default() };
        assert_eq!([look.shorten("abcdef", 6), look.shorten("abcdef", 4)], ["abcdef", "abc…"]);
        let ascii = Look::default();
        assert_eq!([ascii.shorten("abcdef", 5), ascii.shorten("abcdef", 2)], ["ab...", ".."]);
    }
}
