//! One line a run, to the system log.
//!
//! A datagram with RFC 3164's priority and no time stamp: the daemon stamps local ones itself, in its own zone. The socket is
//! ours and never blocks, since a stalled syslogd must not stall containers; what it will not take is dropped. Values come from
//! pods, so each is escaped and cut: nobody forges a line or floods the log.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::os::unix::net::UnixDatagram;

use syslog::{Facility, LogFormat, Severity};

use crate::config::{Config, LogLevel};
use crate::vmm::vcpu::Vcpus;

/// The longest value, and the longest line, in bytes.
const LONGEST_VALUE: usize = 256;
const LONGEST_LINE: usize = 1024;

/// The longest that stands before it: priority, name and pid.
const LONGEST_TAG: usize = "<30>kata-cgroup-hook[4194304]: ".len();

/// How a run ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Outcome {
    /// No VM sandbox: nothing is logged.
    #[default]
    NotOurs,
    Placed,
    Unchanged,
    Released,
    /// Placed, but some vCPU threads are not known, or helpers may not be.
    Partial,
    /// The VMM is not there yet.
    NotYet,
    /// Who was named as the VMM could not prove it, or the host has nothing that this version can use.
    Refused,
    Failed,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::NotOurs => "-",
            Self::Placed => "placed",
            Self::Unchanged => "unchanged",
            Self::Released => "released",
            Self::Partial => "partial",
            Self::NotYet => "not-yet",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }

    fn severity(self) -> Severity {
        match self {
            Self::Failed => Severity::LOG_ERR,
            Self::Partial | Self::Refused => Severity::LOG_WARNING,
            _ => Severity::LOG_INFO,
        }
    }
}

/// What there is to say of a run; filled as it goes, so that a failed one still says how far it came.
#[derive(Debug, Default)]
pub struct Report {
    pub outcome: Outcome,
    pub sandbox: Option<String>,
    pub container: Option<String>,
    /// Kind and pid of the VMM.
    pub vmm: Option<(String, i32)>,
    pub vcpus: Option<Vcpus>,
    /// A runtime directory or a file in it does not count or could not be read, and may name more of the VM's processes.
    pub is_unread: bool,
    pub moved: usize,
    pub created: usize,
    pub removed: usize,
    /// Quota and period in µs.
    pub limit: Option<(u64, u64)>,
    pub cpus: Option<String>,
    pub took_ms: u128,
    /// Everything else, in words.
    pub notes: Vec<String>,
}

impl Report {
    /// Adds something in words, once.
    pub fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// Sends the report for `stage` where the configuration says, if it says so.
    pub fn send(&self, stage: impl fmt::Display, config: &Config) {
        let is_wanted = match self.outcome {
            Outcome::NotOurs => false,
            Outcome::Failed => true,
            _ => config.log_level > LogLevel::Error,
        };
        let Some(socket) = config.log_socket.as_ref().filter(|_| is_wanted) else {
            return;
        };
        let mut datagram = Vec::new();
        let formatted = Format.format(&mut datagram, self.outcome.severity(), &self.line(stage));
        // Nobody to tell that the log cannot be told.
        if let (Ok(()), Ok(log)) = (formatted, UnixDatagram::unbound()) {
            let _ = log.set_nonblocking(true).and_then(|()| log.send_to(&datagram, socket));
        }
    }

    /// The line without its priority: every key is always there.
    fn line(&self, stage: impl fmt::Display) -> String {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let number = |value: usize| value.to_string();
        let pairs = [
            ("stage", stage.to_string()),
            ("result", self.outcome.word().to_owned()),
            ("sandbox", text(&self.sandbox)),
            ("container", text(&self.container)),
            ("vmm", self.vmm.as_ref().map(|(kind, pid)| format!("{kind}:{pid}")).unwrap_or_default()),
            ("vcpus", self.vcpus.as_ref().map(count).unwrap_or_default()),
            ("moved", number(self.moved)),
            ("created", number(self.created)),
            ("removed", number(self.removed)),
            ("limit", self.limit.map(|(quota, period)| format!("{quota}/{period}")).unwrap_or_default()),
            ("cpus", text(&self.cpus)),
            ("took_ms", self.took_ms.to_string()),
            ("msg", self.notes.join("; ")),
        ];
        let mut line = String::new();
        for (key, value) in pairs {
            let _ = write!(line, "{}{key}=", if line.is_empty() { "" } else { " " });
            // What comes last gets what is left of the line.
            let room = LONGEST_LINE.saturating_sub(LONGEST_TAG + line.len());
            let _ = write!(line, "{}", Value(&value, room.min(LONGEST_VALUE)));
        }
        line
    }
}

/// Found of expected.
fn count(vcpus: &Vcpus) -> String {
    let expected = vcpus.expected.map_or("-".to_owned(), |expected| expected.to_string());
    format!("{}/{expected}", vcpus.threads.len())
}

/// RFC 3164 with our tag and without a time stamp.
struct Format;

impl LogFormat<&String> for Format {
    fn format<W: Write>(&self, out: &mut W, severity: Severity, line: &String) -> syslog::Result<()> {
        let priority = Facility::LOG_DAEMON as u8 | severity as u8;
        let tag = format!("<{priority}>kata-cgroup-hook[{}]: ", std::process::id());
        out.write_all(tag.as_bytes()).and_then(|()| out.write_all(line.as_bytes())).map_err(syslog::Error::Write)
    }
}

/// A value as the log has it: plain if it is of plain characters, else quoted and escaped; cut to so many bytes.
struct Value<'a>(&'a str, usize);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_./:,+@=()-".contains(&byte);
        if self.0.is_empty() {
            f.write_str("-")
        } else if self.0.len() <= self.1 && self.0.bytes().all(is_plain) {
            f.write_str(self.0)
        } else {
            let mut quoted = String::from("\"");
            for byte in self.0.bytes() {
                let escaped = match byte {
                    b'"' | b'\\' => format!("\\{}", char::from(byte)),
                    b'\n' => "\\n".to_owned(),
                    b' '..=b'~' => char::from(byte).to_string(),
                    byte => format!("\\x{byte:02x}"),
                };
                if quoted.len() + escaped.len() >= self.1 {
                    break;
                }
                quoted.push_str(&escaped);
            }
            write!(f, "{quoted}\"")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(report: &Report) -> String {
        report.line("poststart")
    }

    #[test]
    fn every_key_is_there_and_what_is_unknown_is_a_dash() {
        assert_eq!(
            line(&Report { outcome: Outcome::NotYet, ..Report::default() }),
            "stage=poststart result=not-yet sandbox=- container=- vmm=- vcpus=- moved=0 created=0 removed=0 limit=- cpus=- \
             took_ms=0 msg=-"
        );
    }

    #[test]
    fn a_placed_sandbox_reads_as_documented() {
        let report = Report {
            outcome: Outcome::Placed,
            sandbox: Some("sb".into()),
            container: Some("c1".into()),
            vmm: Some(("qemu".into(), 1234)),
            vcpus: Some(Vcpus { expected: Some(2), ..Vcpus::default() }),
            moved: 5,
            created: 4,
            limit: Some((150_000, 100_000)),
            cpus: Some("0-3".into()),
            took_ms: 8,
            notes: vec!["all well".into()],
            ..Report::default()
        };
        assert_eq!(
            line(&report),
            "stage=poststart result=placed sandbox=sb container=c1 vmm=qemu:1234 vcpus=0/2 moved=5 created=4 removed=0 \
             limit=150000/100000 cpus=0-3 took_ms=8 msg=\"all well\""
        );
    }

    #[test]
    fn values_cannot_forge_or_flood_a_line() {
        assert_eq!(Value("a\nb\" \\\u{7}ä", LONGEST_VALUE).to_string(), r#""a\nb\" \\\x07\xc3\xa4""#);
        let long = Value(&"x".repeat(70_000), LONGEST_VALUE).to_string();
        assert_eq!(long.len(), LONGEST_VALUE);
        let everywhere = || Some("\"".repeat(999));
        let (sandbox, container, cpus) = (everywhere(), everywhere(), everywhere());
        let report = Report { notes: vec!["\n".repeat(9999)], sandbox, container, cpus, ..Report::default() };
        let mut datagram = Vec::new();
        Format.format(&mut datagram, Severity::LOG_ERR, &line(&report)).unwrap();
        assert!(datagram.len() <= LONGEST_LINE && datagram.is_ascii() && !datagram.contains(&b'\n'));
        assert!(datagram.starts_with(b"<27>kata-cgroup-hook["));
        assert!(line(&report).ends_with("n\""), "the last value is closed: {}", line(&report));
    }

    #[test]
    fn severities_are_as_documented() {
        for (outcome, priority) in [(Outcome::Placed, "<30>"), (Outcome::Refused, "<28>"), (Outcome::Failed, "<27>")] {
            let mut datagram = Vec::new();
            Format.format(&mut datagram, outcome.severity(), &String::new()).unwrap();
            assert!(datagram.starts_with(priority.as_bytes()), "{outcome:?}");
        }
    }
}
