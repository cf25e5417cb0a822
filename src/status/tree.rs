//! One sandbox as the tree of its groups, with everybody in them.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

use crate::cgroup::Part;
use crate::commands::printable;
use crate::status::words::{self, Look};
use crate::status::{Group, Sandbox, Source, Thread, ThreadRole, Verdict};
use crate::{foreign, order};

/// How wide the words before the facts are, with a gap.
const WORD: usize = 11;

/// A line of the tree, and what hangs on it.
struct Node {
    /// The first is never cut, as it may be a path that somebody wants to copy.
    lines: Vec<String>,
    below: Vec<Node>,
}

/// The tree.
pub fn draw(sandbox: &Sandbox, look: Look) -> String {
    let mut text = format!("{}  {}\n", printable(&sandbox.id), look.paint(sandbox.verdict, sandbox.verdict.word()));
    let groups = alike(&sandbox.groups);
    let trunk = if groups.is_empty() { " " } else { Branches::of(look).trunk };
    for (word, what) in facts(sandbox) {
        let indent = format!("{trunk}  {:WORD$}", "");
        let wrapped = wrap(&what, look.width.map(|width| width.saturating_sub(indent.chars().count())));
        for (index, part) in wrapped.iter().enumerate() {
            let _ = writeln!(text, "{trunk}  {:WORD$}{part}", if index == 0 { word } else { "" });
        }
    }
    let nodes: Vec<Node> = groups.iter().map(|groups| node(groups, sandbox)).collect();
    grow(&nodes, "", look, &mut text);
    text
}

/// What there is to say of the whole.
fn facts(sandbox: &Sandbox) -> Vec<(&'static str, String)> {
    let Sandbox { vcpus, limit, .. } = sandbox;
    let mut facts: Vec<(&str, String)> = Vec::new();
    facts.extend(sandbox.reasons.iter().map(|reason| ("why", printable(reason))));
    facts.extend(sandbox.notes.iter().map(|note| ("note", printable(note))));
    if let Some(vmm) = &sandbox.vmm {
        let of = vcpus.expected.map_or(String::new(), |expected| format!(" of {expected}"));
        let proof = vcpus.proof.map_or(String::new(), |proof| format!(", told by {proof}"));
        let found = format!("{}{of} vCPUs{proof}", vcpus.found);
        facts.push(("VMM", format!("{} {}, {found}", printable(&vmm.kind), vmm.pid)));
        let source = match limit.source {
            Source::Containers if sandbox.verdict == Verdict::Placed => ": what its containers ask for",
            Source::Pod => ": what the groups above allow",
            Source::Containers | Source::None => "",
        };
        facts.push(("limit", format!("{}{source}", printable(&words::limit(limit)))));
    }
    let throttled = sandbox.throttled().filter(|throttled| throttled.periods > 0);
    facts.extend(throttled.map(|throttled| {
        let (share, waited) = (words::share(throttled), words::duration(throttled.usec));
        ("throttled", format!("{} of {} periods ({share}), {waited} in all", throttled.periods, throttled.of_periods))
    }));
    facts.extend(sandbox.memory().map(|memory| ("memory", words::bytes(memory))));
    facts.extend(sandbox.containers.iter().map(|one| ("for", format!("{} in {}", printable(&one.id), printable(&one.bundle)))));
    facts
}

/// Groups that are the same in several hierarchies are drawn once.
fn alike(groups: &[Group]) -> Vec<Vec<&Group>> {
    let mut alike: Vec<Vec<&Group>> = Vec::new();
    for group in groups {
        let is_same = |other: &&Group| {
            let key = |group: &Group| (group.level.path.rel.clone(), group.ours, group.is_own, group.role);
            key(other) == key(group) && other.threads == group.threads
        };
        match alike.iter_mut().find(|same| same.first().is_some_and(is_same)) {
            Some(same) => same.push(group),
            None => alike.push(vec![group]),
        }
    }
    // First what is limited, last what is somebody else's.
    order::sort_by_key(&mut alike, |same| same.first().map(|group| (!group.is_own, group.role != Part::Constrained)));
    alike
}

fn node(groups: &[&Group], sandbox: &Sandbox) -> Node {
    let Some(first) = groups.first() else { return Node { lines: Vec::new(), below: Vec::new() } };
    let whose = match (first.ours, first.is_own) {
        (true, _) => "ours",
        (false, true) => "Kata's own, used",
        (false, false) => "not ours",
    };
    let controllers: Vec<&str> = groups.iter().flat_map(|group| group.controllers.iter().copied()).collect();
    let set: Vec<String> = groups.iter().filter(|group| group.is_own).flat_map(|group| words::set_by(group)).collect();
    let set = if set.is_empty() { String::new() } else { format!(": {}", printable(&set.join(", "))) };
    let lines = vec![printable(&path_of(groups)), format!("{whose} ({}){set}", words::list(&controllers))];
    Node { lines, below: members(&first.threads, sandbox) }
}

/// The path, in the shell's words where there are several that differ in their mount point alone.
fn path_of(groups: &[&Group]) -> String {
    let paths: Vec<&str> = groups.iter().map(|group| group.path.as_str()).collect();
    let split = |group: &Group| {
        let mount = &group.level.path.hierarchy.mount;
        let name = mount.file_name()?.to_str()?.replace(',', "\\,");
        Some((mount.parent()?.to_path_buf(), name))
    };
    let parts: Option<Vec<_>> = groups.iter().map(|group| split(group)).collect();
    match (parts.as_deref(), groups.first()) {
        (Some([(dir, first), rest @ ..]), Some(group)) if !rest.is_empty() && rest.iter().all(|(other, _)| other == dir) => {
            let names: Vec<&str> =
                std::iter::once(first).chain(rest.iter().map(|(_, name)| name)).map(String::as_str).collect();
            let below = dir.join(format!("{{{}}}", names.join(",")));
            let rel = &group.level.path.rel;
            // join("") would leave a slash at the end.
            let path = if rel.as_os_str().is_empty() { below } else { below.join(rel) };
            foreign::as_text(path.as_os_str().as_bytes())
        }
        _ => paths.join(" "),
    }
}

/// Who is in a group: a process that is there with all its threads in a line, else each thread.
fn members(threads: &[Thread], sandbox: &Sandbox) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut pids: Vec<i32> = Vec::new();
    for thread in threads {
        if pids.contains(&thread.pid) {
            continue;
        }
        pids.push(thread.pid);
        let here: Vec<&Thread> = threads.iter().filter(|other| other.pid == thread.pid).collect();
        let leader = here.iter().find(|one| one.tid == one.pid);
        match leader {
            Some(leader) if here.len() > 1 && here.len() == sandbox.threads_of(thread.pid) => {
                nodes.push(leaf(&format!("{}  {}  {}, all {} threads", leader.pid, leader.name, role(leader), here.len())));
            }
            _ => nodes.extend(here.iter().map(|one| leaf(&format!("{}/{}  {}  {}", one.pid, one.tid, one.name, role(one))))),
        }
    }
    nodes
}

fn leaf(line: &str) -> Node {
    Node { lines: vec![printable(line)], below: Vec::new() }
}

fn role(thread: &Thread) -> String {
    match thread.role {
        ThreadRole::Vcpu => thread.vcpu.map_or("vCPU".to_owned(), |index| format!("vCPU {index}")),
        ThreadRole::Vmm => "VMM".to_owned(),
        ThreadRole::Helper => "helper".to_owned(),
        ThreadRole::Other => "not of this sandbox".to_owned(),
    }
}

/// What branches are drawn with.
struct Branches {
    trunk: &'static str,
    branch: &'static str,
    last: &'static str,
}

impl Branches {
    fn of(look: Look) -> Self {
        if look.is_utf8 {
            Self { trunk: "│", branch: "├─ ", last: "└─ " }
        } else {
            Self { trunk: "|", branch: "|- ", last: "`- " }
        }
    }
}

fn grow(nodes: &[Node], indent: &str, look: Look, text: &mut String) {
    let branches = Branches::of(look);
    for (index, node) in nodes.iter().enumerate() {
        let is_last = index + 1 == nodes.len();
        let (branch, below) = if is_last { (branches.last, " ") } else { (branches.branch, branches.trunk) };
        let below = format!("{indent}{below}  ");
        for (index, line) in node.lines.iter().enumerate() {
            if index == 0 {
                let _ = writeln!(text, "{indent}{branch}{line}");
                continue;
            }
            let trunk = if node.below.is_empty() { " " } else { branches.trunk };
            let hanging = format!("{below}{trunk}    ");
            let room = look.width.map(|width| width.saturating_sub(hanging.chars().count()));
            for part in wrap(line, room) {
                let _ = writeln!(text, "{hanging}{part}");
            }
        }
        grow(&node.below, &below, look, text);
    }
}

/// Breaks a text at its blanks, so that no line is wider; a word that is stays whole.
fn wrap(text: &str, width: Option<usize>) -> Vec<String> {
    let Some(width) = width else { return vec![text.to_owned()] };
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Controller;
    use crate::status::testing::{group, placed, sandbox, thread};

    const UTF8: Look = Look { width: None, has_colour: false, is_utf8: true };

    #[test]
    fn the_tree_shows_groups_limits_and_everybody_by_name_and_number() {
        let expected = "\
x  placed
│  VMM        qemu 1234, 2 of 2 vCPUs, told by debugfs
│  limit      1.50 CPU (150000/100000), shares 1536, cpus 0-3: what its containers ask for
│  throttled  81 of 100 periods (81%), 1.2 s in all
│  memory     37.0 MiB
│  for        c in /run/b
├─ /c/{cpu,cpuset}/pod/kata_x
│  │    ours (cpu and cpuset): 1.50 CPU (150000/100000), shares 1536, cpus 0-3
│  └─ 1234/1236  CPU 0/KVM  vCPU 0
├─ /c/memory/kata/pod/kata_x
│  │    ours (memory)
│  └─ 1234  qemu  VMM, all 3 threads
└─ /c/{cpu,cpuset}
   │    not ours (cpu and cpuset)
   ├─ 1234/1234  qemu  VMM
   └─ 1234/1235  worker  VMM
";
        assert_eq!(draw(&placed("x"), UTF8), expected);
    }

    #[test]
    fn without_utf8_only_the_lines_differ() {
        let ascii = draw(&placed("x"), Look::default());
        assert!(ascii.is_ascii(), "{ascii}");
        let drawn = ascii.replace("|- ", "├─ ").replace("`- ", "└─ ").replace('|', "│");
        assert_eq!(drawn, draw(&placed("x"), UTF8));
    }

    #[test]
    fn words_are_wrapped_at_the_terminals_edge_and_paths_stay_whole() {
        let mut one = placed("x");
        one.reasons = vec!["a reason of many words, ".repeat(8)];
        let text = draw(&one, Look { width: Some(50), ..UTF8 });
        for line in text.lines() {
            assert!(line.chars().count() <= 50, "{line}");
        }
        assert!(text.contains("│             many words, a reason of"), "{text}");
        let narrow = draw(&one, Look { width: Some(20), ..UTF8 });
        assert!(narrow.contains("├─ /c/{cpu,cpuset}/pod/kata_x\n"), "{narrow}");
    }

    #[test]
    fn why_comes_first_and_no_group_leaves_no_trunk() {
        let text = draw(&sandbox("x", Verdict::Orphan), UTF8);
        assert!(text.starts_with("x  orphan\n   why        it lacks something\n"), "{text}");
        assert!(!text.contains('│'), "{text}");
    }

    #[test]
    fn strangers_and_groups_of_katas_are_told_apart() {
        let mut one = placed("x");
        let mut stranger = thread(99, "sleep", ThreadRole::Other);
        stranger.pid = 99;
        one.groups[0].threads.push(stranger);
        (one.groups[1].ours, one.groups[2].ours) = (false, false);
        let text = draw(&one, UTF8);
        assert!(text.contains("99/99  sleep  not of this sandbox\n"), "{text}");
        assert!(text.contains("Kata's own, used (cpu and cpuset): 1.50 CPU"), "{text}");
    }

    #[test]
    fn co_mounted_controllers_can_be_pasted_into_a_shell() {
        let mut one = placed("x");
        let mut both = group(Controller::Cpu, "pod/kata_x", true, &one.groups[1].threads.clone());
        both.level.path = crate::cgroup::group::GroupPath::new(
            &crate::testing::hierarchy(&[Controller::Cpu, Controller::Cpuacct]),
            "pod/kata_x",
        );
        one.groups[1] = both;
        let text = draw(&one, UTF8);
        assert!(text.contains("├─ /c/{cpu\\,cpuacct,cpuset}/pod/kata_x\n"), "{text}");
    }

    #[test]
    fn no_control_character_reaches_the_terminal() {
        let mut one = placed("x");
        for group in &mut one.groups {
            group.threads[0].name = "ev\x1b[2Jil\n".into();
        }
        one.notes = vec!["\x07".into()];
        one.containers[0].bundle = "/a\x1b\n".into();
        let text = draw(&one, Look::default());
        assert!(text.chars().all(|char| char == '\n' || !char.is_control()), "{text:?}");
        assert!(text.contains("ev\\u{1b}[2Jil\\n"), "{text}");
    }
}
