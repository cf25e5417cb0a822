//! What a sandbox's groups are to be given: only what differs from what stands there.

use std::path::Path;

use crate::cgroup::cpulist::CpuList;
use crate::cgroup::demand::Cpus;
use crate::cgroup::group::GroupPath;
use crate::cgroup::site::Site;
use crate::error::Error;

/// A value to write into a file of a group.
pub type Assignment = (GroupPath, &'static str, String);

/// A quota and its period, in µs.
pub type Limit = (u64, u64);

/// What the groups are to be given, in the order of writing, and what there is to say about it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub assignments: Vec<Assignment>,
    /// The limit that acts on the vCPUs, be it ours or an ancestor's; none is without limit.
    pub limit: Option<Limit>,
    /// The CPUs that they may use.
    pub cpus: Option<String>,
    pub notes: Vec<String>,
}

impl Settings {
    /// Adds what differs from what stands at the site's own group.
    pub fn assign(&mut self, site: &Site, wanted: Vec<(&'static str, String)>) {
        for (file, value) in wanted {
            let is_there = site.own().is_some_and(|own| own.values.get(file).is_some_and(|present| is_same(present, &value)));
            if !is_there {
                self.assignments.push((site.group.clone(), file, value));
            }
        }
    }

    /// What of `asked` a group can have of what the file `by` grants; all of that where nothing is asked.
    pub fn grant(&mut self, asked: &CpuList, granted: &CpuList, what: &'static str, by: &Path) -> Result<CpuList, Error> {
        if asked.is_empty() {
            return Ok(granted.clone());
        }
        let both = asked.and(granted);
        if both.is_empty() {
            let why = format!("none of them is in {} ({granted}): ask for some of those, or widen that", by.display());
            return Err(Error::Demand { what, value: asked.to_string(), why });
        }
        let lost = asked.without(&both);
        if !lost.is_empty() {
            self.notes.push(format!("{what} {lost} left out: not in {}", by.display()));
        }
        Ok(both)
    }

    /// Says that less is given than was asked for, and whose doing that is.
    pub fn note_cap(&mut self, asked: Limit, got: Limit, by: &GroupPath) {
        let of = |(quota, period): Limit| format!("{quota}/{period}");
        if asked != got {
            self.notes.push(format!("asked {}, capped at {} by {}", of(asked), of(got), by.absolute().display()));
        }
    }
}

/// Whether a limit is as wide as another or wider.
pub fn is_at_least(ours: Limit, theirs: Limit) -> bool {
    let cpus = |(quota, period): Limit| Cpus::of(i64::try_from(quota).ok()?, period);
    matches!((cpus(ours), cpus(theirs)), (Some(ours), Some(theirs)) if ours.is_at_least(theirs))
}

/// The same value, however it is written: the kernel's "0-1" is our "0-1", an engine's may be "0,1".
pub fn is_same(present: &str, wanted: &str) -> bool {
    let list = |text: &str| text.parse::<CpuList>();
    present == wanted.trim_end() || matches!((list(present), list(wanted)), (Ok(a), Ok(b)) if a == b && !a.is_empty())
}
