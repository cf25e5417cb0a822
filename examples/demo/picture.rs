//! A sandbox drawn as the tree of the groups that hold its threads, with the groups' limits and each thread's part.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::testenv::{CONTROLLERS, Group, Sandbox, place_of, threads_of};

pub(crate) struct Picture(Vec<String>);

/// Who is where: by group, the lines that describe its threads.
type Members = BTreeMap<String, Vec<String>>;

impl Picture {
    pub(crate) fn of(sandbox: &Sandbox<'_>) -> Picture {
        let threads = described_threads(sandbox);
        let mut hierarchies: Vec<(Vec<&str>, Members)> = Vec::new();
        for controller in CONTROLLERS {
            let members = members(&threads, controller);
            // What is the same in several hierarchies is drawn once.
            match hierarchies.iter_mut().find(|(_, same)| *same == members) {
                Some((controllers, _)) => controllers.push(controller),
                None => hierarchies.push((vec![controller], members)),
            }
        }
        let trees = hierarchies.iter().flat_map(|(controllers, members)| {
            let heading = format!("  {}", controllers.join(" + "));
            [heading].into_iter().chain(tree("/", controllers, members).into_iter().map(|line| format!("    {line}")))
        });
        Picture(trees.collect())
    }
}

impl fmt::Display for Picture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(formatter, "{line}"))
    }
}

/// Every thread of the sandbox's processes: its number, name and part.
fn described_threads(sandbox: &Sandbox<'_>) -> Vec<(i32, String)> {
    let vcpus: BTreeMap<i32, u64> = sandbox.vcpus().into_iter().map(|(index, tid)| (tid, index)).collect();
    let part = |pid: i32, tid: i32| match vcpus.get(&tid) {
        Some(index) => format!("vCPU {index}"),
        None if tid == sandbox.pid => "the VMM".into(),
        None if pid == sandbox.pid => "a thread of the VMM's".into(),
        None if Some(pid) == sandbox.virtiofsd_pid => "virtiofsd".into(),
        None => "virtiofsd's child".into(),
    };
    let described = |pid: i32| {
        threads_of(pid).into_iter().map(move |thread| {
            let line = format!("{pid}/{} {}: {}", thread.tid, thread.name, part(pid, thread.tid));
            (thread.tid, line)
        })
    };
    sandbox.processes().into_iter().flat_map(described).collect()
}

fn members(threads: &[(i32, String)], controller: &str) -> Members {
    let mut members = Members::new();
    for (tid, line) in threads {
        if let Some(place) = place_of(*tid, controller) {
            members.entry(place).or_default().push(line.clone());
        }
    }
    members
}

/// A group, its limits, its threads, and below it the groups on the way to more of them.
fn tree(path: &str, controllers: &[&str], members: &Members) -> Vec<String> {
    let prefix = format!("{}/", path.trim_end_matches('/'));
    let below = members.keys().filter_map(|place| place.strip_prefix(&prefix)).filter(|rest| !rest.is_empty());
    let children: BTreeSet<String> = below.filter_map(|rest| Some(format!("{prefix}{}", rest.split('/').next()?))).collect();
    let threads = members.get(path).into_iter().flatten().map(|line| format!("  · {line}"));
    let groups = children.iter().flat_map(|child| tree(child, controllers, members)).map(|line| format!("  {line}"));
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    [format!("/{name}{}", limits(path, controllers))].into_iter().chain(threads).chain(groups).collect()
}

fn limits(path: &str, controllers: &[&str]) -> String {
    let limits: Vec<String> = controllers.iter().filter_map(|controller| limit(&Group::new(controller, path))).collect();
    if path == "/" || limits.is_empty() { String::new() } else { format!("   [{}]", limits.join(", ")) }
}

fn limit(group: &Group) -> Option<String> {
    match group.controller.as_str() {
        "cpu" => {
            let quota = match group.value("cpu.cfs_quota_us").as_str() {
                "-1" => "no quota".to_owned(),
                quota => format!("quota {quota}/{}", group.value("cpu.cfs_period_us")),
            };
            Some(format!("{quota}, shares {}", group.value("cpu.shares")))
        }
        "cpuset" => Some(format!("cpus {}, mems {}", group.value("cpuset.cpus"), group.value("cpuset.mems"))),
        // The kernel writes "none" as the largest number of pages there is.
        "memory" => match group.value("memory.limit_in_bytes").as_str() {
            limit if limit.len() > 18 => Some("no memory limit".to_owned()),
            limit => Some(format!("memory limit {limit}")),
        },
        _ => None,
    }
}
