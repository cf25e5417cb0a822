//! `check`: whether this host and its engines let the hook do its work, a line a check.

use std::fmt::Write;

use serde::Serialize;

use crate::check::{self, Check, Places, State};
use crate::cli;
use crate::commands::{Exit, Host, printable};

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    checks: &'a [Check],
}

/// Checks this host; nothing is changed.
pub fn run(options: &cli::Check, host: &Host) -> Exit {
    let places = Places::this(host.proc.clone(), host.owner, host.is_root(), options.config.clone());
    let checks = check::all(&places);
    let stdout = if options.json { as_json(&checks) } else { as_text(&checks) };
    let failed: Vec<&str> = checks.iter().filter(|check| check.state == State::Failure).map(|check| check.id).collect();
    let stderr = (!failed.is_empty()).then(|| format!("kata-cgroup-hook: check: failed: {}", failed.join(", ")));
    Exit { code: u8::from(!failed.is_empty()), stdout, stderr }
}

fn as_json(checks: &[Check]) -> String {
    serde_json::to_string(&Report { schema: 1, checks }).map_or(String::new(), |json| json + "\n")
}

/// The word, the check, what was seen; below it what to do.
fn as_text(checks: &[Check]) -> String {
    let longest = checks.iter().map(|check| check.id.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Check { id, state, detail, fix } in checks {
        let _ = writeln!(text, "{:7}  {id:longest$}  {}", state.word(), printable(detail));
        if !fix.is_empty() {
            let _ = writeln!(text, "{:7}  {}", "", printable(fix));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks() -> [Check; 2] {
        let check = |id, state, detail: &str, fix: &str| Check { id, state, detail: detail.into(), fix: fix.into() };
        [check("a.long", State::Ok, "seen", ""), check("b", State::Failure, "a\x1b[1m\nb", "do \"it\"")]
    }

    #[test]
    fn text_has_a_line_a_check_and_the_remedy_below_it() {
        let expected = "ok       a.long  seen\nfailure  b       a\\u{1b}[1m\\nb\n         do \"it\"\n";
        assert_eq!(as_text(&checks()), expected);
    }

    #[test]
    fn json_is_as_the_contract_has_it() {
        let expected = "{\"schema\":1,\"checks\":[{\"id\":\"a.long\",\"state\":\"ok\",\"detail\":\"seen\",\"fix\":\"\"},\
            {\"id\":\"b\",\"state\":\"failure\",\"detail\":\"a\\u001b[1m\\nb\",\"fix\":\"do \\\"it\\\"\"}]}\n";
        assert_eq!(as_json(&checks()), expected);
    }
}
