//! One sandbox as `status` sees it: what is known of it, what stands, and what a hook would still have to do.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use crate::cgroup::group::{GroupPath, locate};
use crate::cgroup::mounts::{Mounts, Version};
use crate::cgroup::orphan::Found;
use crate::cgroup::path::{SandboxPath, VCPUS};
use crate::cgroup::site::Site;
use crate::cgroup::{self, Controller, Part, leftover};
use crate::commands::settle::{BOUND_TO_SHIM, is_bound_to_shim, refuse_taken};
use crate::commands::vm::Clues;
use crate::commands::{Run, containers, reconcile, release, vm};
use crate::error::Error;
use crate::foreign;
use crate::plan::{self, Plan, Step};
use crate::record::{Progress, Record};
use crate::status::groups::Search;
use crate::status::limit::{self, Asked};
use crate::status::{Container, Group, Sandbox, VcpuCount, Verdict, Vmm, verdict, words};
use crate::vmm::Vm;
use crate::vmm::runtime::RuntimeDirs;

/// Looks at the sandbox `id`, of which there is this record (without one in it, it is not understood) and these marked groups that no
/// record knows; `None` if there is nothing of it.
pub(super) fn sandbox(
    run: &mut Run,
    mounts: &Mounts,
    id: &str,
    recorded: Option<&Option<Record>>,
    marked: &[Found],
) -> Result<Option<Sandbox>, Error> {
    let known = recorded.and_then(Option::as_ref);
    let record = known.cloned().unwrap_or_else(|| reconcile::record_of(id, marked));
    let dirs = RuntimeDirs::of(id, &run.config.runtime_dirs, run.host.owner);
    let clues = Clues { dirs: &dirs, hint: None };
    let mut vm = vm::find(run, clues, &record);
    if let Some(found) = &mut vm {
        let lives = vm::look(run, clues, &record, mounts, found, Some(Instant::now()))?;
        found.processes.iter_mut().try_for_each(|member| member.read_groups(run.deadline))?;
        vm = vm.filter(|_| lives);
    }
    let is_torn = recorded.is_some() && known.is_none();
    let seen = Seen { run, mounts, record, known, is_torn, marked, reasons: Vec::new() };
    match vm {
        Some(vm) => seen.living(&vm).map(Some),
        None => seen.ended(&dirs),
    }
}

struct Seen<'a, 'r> {
    run: &'a mut Run<'r>,
    mounts: &'a Mounts,
    /// The record, or what the marks make of it.
    record: Record,
    known: Option<&'a Record>,
    /// There is a record, which is not understood.
    is_torn: bool,
    marked: &'a [Found],
    reasons: Vec<String>,
}

impl Seen<'_, '_> {
    /// A sandbox with a VM.
    fn living(mut self, vm: &Vm) -> Result<Sandbox, Error> {
        self.run.report.notes.clear();
        self.reasons.extend(self.about_record());
        let path = SandboxPath::recorded(&self.record.path).or_else(|| place_of(self.marked));
        let (mut sites, mut asked, mut missing) = (Vec::new(), Asked::default(), Vec::new());
        if let Some(path) = path {
            sites = cgroup::survey(self.mounts, &path, self.run.config.domain, vm, &self.record)?;
            match self.plan(&path, vm, &sites, &mut asked) {
                Ok(plan) => missing = verdict::missing(&plan, vm, &sites),
                Err(error) => self.reasons.push(error.to_string()),
            }
        }
        let own: Vec<(GroupPath, Part)> = sites.iter().map(|site| (site.group.clone(), site.part)).collect();
        let groups = self.groups(&own, Some(vm))?;
        self.reasons.extend(self.about_vcpus(vm));
        if verdict::is_held(&groups) {
            self.reasons.extend(missing);
        } else if self.known.is_some() {
            self.reasons.push("none of its threads is in a group of ours".into());
        }
        let verdict = verdict::of_living(&groups, &self.reasons);
        self.finish(verdict, groups, &asked, Some(vm))
    }

    /// What a hook would do. Where the containers are not known, what they ask for is not either.
    fn plan(&mut self, path: &SandboxPath, vm: &Vm, sites: &[Site], asked: &mut Asked) -> Result<Plan, Error> {
        refuse_taken(self.run, sites, &self.record)?;
        asked.by_pod = cgroup::limit_of_pod(sites, path);
        self.record.keep_containers(Path::is_dir);
        if let Some(known) = self.known {
            containers::note_resize(&mut self.record, known, asked.by_pod);
        }
        let demand = containers::demand(&self.record, vm, None, &mut self.run.report.notes)?;
        let mut plan = plan::place(vm, sites, &demand)?;
        if self.known.is_none() {
            plan.steps.retain(|step| !matches!(step, Step::Set { .. }));
            plan.notes.clear();
        } else {
            asked.by_containers = demand.quota().map(|quota| (quota, demand.period));
        }
        if is_bound_to_shim(vm, self.mounts, sites) {
            self.reasons.push(BOUND_TO_SHIM.to_owned());
        }
        plan.notes.iter().for_each(|note| self.run.report.note(note));
        Ok(plan)
    }

    fn about_record(&self) -> Option<String> {
        let progress = self.known.map(|known| known.state);
        let is_given_back = || self.known.is_some_and(|known| release::katas_own_domain(known, self.mounts).is_some());
        let reason = match progress {
            None if self.is_torn => "its record is not understood: its next hook makes a new one",
            None if self.marked.is_empty() => "no hook has placed it (kata-cgroup-hook check tells whether one is registered)",
            None => "its record is lost: its next hook makes a new one",
            Some(Progress::Placing) => "a hook that was to place it has not finished",
            Some(Progress::Releasing) => "its release has not finished: reconcile goes on with it",
            Some(Progress::Idle) if is_given_back() => "no container of it is left: given back to Kata until one comes",
            Some(Progress::Placed | Progress::Idle) => return None,
        };
        Some(reason.to_owned())
    }

    fn about_vcpus(&self, vm: &Vm) -> Option<String> {
        if self.mounts.of_controller(Controller::Cpu).is_none() {
            return Some("this host has no cpu controller to limit its vCPUs with".to_owned());
        }
        match (vm.vcpus.threads.len(), vm.vcpus.expected) {
            (0, _) => Some("no thread of the VMM can be told to be a vCPU".to_owned()),
            (found, Some(expected)) if found < expected => {
                Some(format!("only {found} of {} can be told", words::count(expected, "vCPU thread")))
            }
            _ => None,
        }
    }

    /// One without a VM.
    fn ended(mut self, dirs: &RuntimeDirs) -> Result<Option<Sandbox>, Error> {
        let mut own: Vec<(GroupPath, Part)> = Vec::new();
        for group in &self.record.groups {
            let path = locate(&self.mounts.hierarchies, &group.path);
            own.extend(path.map(|path| (path.clone(), leftover::part_of(group, &path))));
        }
        // What leads to groups of others stays with them.
        for Found { path, .. } in self.marked {
            let children = path.children()?;
            if children.is_empty() && own.iter().all(|(known, _)| known != path) {
                own.push((path.clone(), Part::Unconstrained));
            }
        }
        let mut groups = self.groups(&own, None)?;
        groups.retain(|group| group.ours);
        let has_record = self.known.is_some() || self.is_torn;
        let (is_left, lives) = (has_record || !groups.is_empty(), release::lives(self.run, &self.record));
        let notes = std::mem::take(&mut self.run.report.notes);
        let vmm = self.record.vmm().map(|vmm| vmm.pid);
        let verdict = match (is_left, vmm) {
            (false, _) if dirs.is_empty() && dirs.refused.is_empty() => return Ok(None),
            (false, _) => {
                self.reasons.push(vm::absence(dirs));
                Verdict::Unplaced
            }
            (true, Some(pid)) if lives => {
                self.reasons.push(format!("its VMM {pid} runs, but is not recognised any more"));
                Verdict::Incomplete
            }
            (true, vmm) => {
                let ended = vmm.map_or("it has no VM".to_owned(), |pid| format!("its VMM {pid} has ended"));
                let left = left(groups.len(), has_record);
                self.reasons.push(format!("{ended}: {left} left, which reconcile removes"));
                self.reasons.extend(verdict::occupied(&groups));
                Verdict::Orphan
            }
        };
        self.reasons.extend(notes);
        self.finish(verdict, groups, &Asked::default(), None).map(Some)
    }

    fn groups(&self, own: &[(GroupPath, Part)], vm: Option<&Vm>) -> Result<Vec<Group>, Error> {
        Search { proc: &self.run.host.proc, mounts: self.mounts, record: &self.record, vm }.read(own)
    }

    fn finish(self, verdict: Verdict, groups: Vec<Group>, asked: &Asked, vm: Option<&Vm>) -> Result<Sandbox, Error> {
        let vmm = vm.and_then(|vm| Some((vm, vm.vmm()?)));
        let containers = self.record.containers.iter().map(|(bundle, container)| Container {
            bundle: foreign::as_text(bundle.as_os_str().as_bytes()),
            id: container.id.clone(),
        });
        let limit = limit::read(&groups, &self.record, asked)?;
        Ok(Sandbox {
            verdict,
            reasons: self.reasons,
            notes: std::mem::take(&mut self.run.report.notes),
            recorded: self.known.is_some(),
            vmm: vmm.map(|(vm, vmm)| Vmm { kind: vm.kind.clone(), pid: vmm.process.pid, start: vmm.start }),
            vcpus: vm.map_or(VcpuCount::default(), |vm| VcpuCount {
                expected: vm.vcpus.expected,
                found: vm.vcpus.threads.len(),
                parked: vm.vcpus.parked,
                proof: vm.vcpus.proof(),
            }),
            limit,
            containers: containers.collect(),
            groups,
            id: self.record.sandbox,
        })
    }
}

/// "its record and 2 groups are".
fn left(groups: usize, has_record: bool) -> String {
    match (groups, has_record) {
        (0, _) => "its record is".to_owned(),
        (1, false) => "1 group is".to_owned(),
        (groups, true) => format!("its record and {} are", words::count(groups, "group")),
        (groups, false) => format!("{} are", words::count(groups, "group")),
    }
}

/// Where a sandbox lies whose record is lost, by the groups that bear its mark.
fn place_of(marked: &[Found]) -> Option<SandboxPath> {
    marked.iter().find_map(|found| {
        let rel = &found.path.rel;
        let rel = if rel.ends_with(VCPUS) { rel.parent()? } else { rel };
        let hierarchy = &found.path.hierarchy;
        let may_be_apart = hierarchy.version == Version::V2 || hierarchy.carries(Controller::Memory);
        let below = rel.strip_prefix("kata").ok().filter(|_| may_be_apart);
        SandboxPath::recorded(below.unwrap_or(rel).to_str()?)
    })
}
