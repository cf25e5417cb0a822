//! The end of the log socket that a syslog daemon would hold.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

pub(crate) struct LogSocket(UnixDatagram);

/// One datagram, taken apart.
#[derive(Clone, Debug)]
pub(crate) struct LogLine {
    pub raw: String,
    pub priority: u8,
    pub pid: u32,
    fields: Vec<(String, String)>,
}

impl LogSocket {
    pub(crate) fn bind(path: &Path) -> LogSocket {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_nonblocking(true).unwrap();
        LogSocket(socket)
    }

    /// What has arrived since the last call.
    pub(crate) fn take(&self) -> Vec<LogLine> {
        let mut lines = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            match self.0.recv(&mut buffer) {
                Ok(length) => lines.push(LogLine::parse(std::str::from_utf8(&buffer[..length]).expect("a log line in UTF-8"))),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return lines,
                Err(error) => panic!("the log socket: {error}"),
            }
        }
    }
}

impl LogLine {
    /// Takes `<30>kata-cgroup-hook[PID]: key=value key="quoted \"value\""` apart, and fails on anything else.
    pub(crate) fn parse(raw: &str) -> LogLine {
        let bad = |what: &str| -> ! { panic!("{what} in log line: {raw}") };
        let Some((priority, rest)) = raw.strip_prefix('<').and_then(|rest| rest.split_once('>')) else { bad("no priority") };
        let Some((pid, rest)) = rest.strip_prefix("kata-cgroup-hook[").and_then(|rest| rest.split_once("]: ")) else {
            bad("no tag")
        };
        let mut fields = Vec::new();
        let mut rest = rest.trim_end_matches('\n');
        while !rest.is_empty() {
            let Some((key, after)) = rest.split_once('=') else { bad("no key") };
            let (value, after) = match after.strip_prefix('"') {
                None => after.split_once(' ').unwrap_or((after, "")),
                Some(quoted) => {
                    let Some(end) = closing_quote(quoted) else { bad("an open quote") };
                    (&quoted[..end], quoted[end + 1..].trim_start_matches(' '))
                }
            };
            fields.push((key.to_owned(), value.to_owned()));
            rest = after;
        }
        LogLine {
            raw: raw.to_owned(),
            priority: priority.parse().unwrap_or_else(|_| bad("no priority")),
            pid: pid.parse().unwrap_or_else(|_| bad("no pid")),
            fields,
        }
    }

    /// A value as it stands in the line, without its quotes.
    #[track_caller]
    pub(crate) fn get(&self, key: &str) -> &str {
        let field = self.fields.iter().find(|(name, _)| name == key);
        field.map_or_else(|| panic!("no {key}= in log line: {}", self.raw), |(_, value)| value)
    }

    pub(crate) fn keys(&self) -> Vec<&str> {
        self.fields.iter().map(|(key, _)| key.as_str()).collect()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|(_, value)| value.as_str())
    }
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, letter)| {
        let closes = letter == '"' && !escaped;
        escaped = letter == '\\' && !escaped;
        closes.then_some(at)
    })
}
