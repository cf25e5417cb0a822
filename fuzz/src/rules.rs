//! What the made-up kernel refuses, each by the rule of the function in the real one that is named there.

use std::collections::BTreeMap;
use std::path::Path;

use kata_cgroup_hook::cgroup::Controller;
use kata_cgroup_hook::cgroup::cpulist::CpuList;
use kata_cgroup_hook::cgroup::file::{CPUS, MAX, MEMS, PERIOD, QUOTA, SHARES, SUBTREE, TYPE, WEIGHT};
use kata_cgroup_hook::cgroup::mounts::Version;
use nix::errno::Errno;

use crate::kernel::Kernel;
use crate::tree::{Group, Tree};

/// The `n`th tree of a kernel; what depends on who is where in it.
pub struct In<'a> {
    pub kernel: &'a Kernel,
    pub n: usize,
}

impl In<'_> {
    fn tree(&self) -> &Tree {
        &self.kernel.trees[self.n]
    }

    /// What a write of `value` makes of a group's file.
    pub fn take(&self, path: &Path, file: &str, value: &str) -> Result<String, Errno> {
        let tree = self.tree();
        let group = tree.groups.get(path).ok_or(Errno::ENOENT)?;
        let is_there = |controller, version| tree.version == version && tree.has(path, controller);
        match file {
            SHARES if is_there(Controller::Cpu, Version::V1) => Ok(number(value)?.clamp(2, 262_144).to_string()),
            QUOTA if is_there(Controller::Cpu, Version::V1) => {
                self.take_limit(path, value, &group.values[PERIOD]).map(|()| value.to_owned())
            }
            PERIOD if is_there(Controller::Cpu, Version::V1) => {
                self.take_limit(path, &group.values[QUOTA], value).map(|()| value.to_owned())
            }
            CPUS | MEMS if is_there(Controller::Cpuset, tree.version) => self.take_list(path, file, value),
            TYPE if tree.version == Version::V2 && value == "threaded" => {
                self.may_become_threaded(path).map(|()| value.to_owned())
            }
            SUBTREE if tree.version == Version::V2 => self.take_controllers(path, value),
            WEIGHT if is_there(Controller::Cpu, Version::V2) => match number(value)? {
                weight @ 1..=10_000 => Ok(weight.to_string()),
                _ => Err(Errno::ERANGE),
            },
            MAX if is_there(Controller::Cpu, Version::V2) => {
                let (quota, period) = value.split_once(' ').ok_or(Errno::EINVAL)?;
                limit("max", quota, period).map(|_| value.to_owned())
            }
            _ => Err(Errno::ENOENT),
        }
    }

    /// `cgroup_has_tasks`.
    fn has_tasks(&self, path: &Path) -> bool {
        self.kernel.threads.values().any(|thread| thread.places[self.n] == path)
    }

    /// `cgroup_is_populated`: in it or below.
    fn is_populated(&self, path: &Path) -> bool {
        self.kernel.threads.values().any(|thread| thread.places[self.n].starts_with(path))
    }

    /// `cgroup_is_thread_root`.
    fn is_thread_root(&self, path: &Path) -> bool {
        let group = &self.tree().groups[path];
        !group.is_threaded
            && (self.tree().children(path).any(|(_, child)| child.is_threaded)
                || (self.has_tasks(path) && group.passes_on_for_threads()))
    }

    /// `cgroup_can_be_thread_root`.
    fn can_be_thread_root(&self, path: &Path) -> bool {
        let group = &self.tree().groups[path];
        let holds_domain = |(path, child): (&Path, &Group)| !child.is_threaded && self.is_populated(path);
        self.tree().is_mixable(path)
            || !(group.is_threaded || self.tree().children(path).any(holds_domain) || group.passes_on_for_domains())
    }

    /// `cgroup_is_valid_domain`.
    fn is_valid_domain(&self, path: &Path) -> bool {
        let is_in_the_way =
            |above: &Path| (!self.tree().is_mixable(above) && self.is_thread_root(above)) || self.tree().is_threaded(above);
        !self.tree().is_threaded(path) && !path.ancestors().skip(1).any(is_in_the_way)
    }

    /// `cgroup_type_show`.
    pub fn kind(&self, path: &Path) -> &'static str {
        match () {
            () if self.tree().is_threaded(path) => "threaded",
            () if !self.is_valid_domain(path) => "domain invalid",
            () if self.is_thread_root(path) => "domain threaded",
            () => "domain",
        }
    }

    /// `cgroup_enable_threaded`.
    fn may_become_threaded(&self, path: &Path) -> Result<(), Errno> {
        let domain = self.tree().domain_of(path.parent().ok_or(Errno::ENOENT)?);
        let is_free = !self.is_populated(path) && !self.tree().groups[path].passes_on_for_domains();
        let is_allowed = is_free && self.is_valid_domain(domain) && self.can_be_thread_root(domain);
        if is_allowed { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
    }

    /// `cgroup_subtree_control_write`.
    fn take_controllers(&self, path: &Path, value: &str) -> Result<String, Errno> {
        let mut passed_on: Vec<&str> = self.tree().groups[path].values[SUBTREE].split_whitespace().collect();
        for name in value.split(' ') {
            let controller = Controller::ALL.into_iter().find(|one| Some(one.name()) == name.strip_prefix('+'));
            let controller = controller.ok_or(Errno::EINVAL)?;
            self.may_pass_on(path, controller)?;
            if !passed_on.contains(&controller.name()) {
                passed_on.push(controller.name());
            }
        }
        Ok(passed_on.join(" "))
    }

    /// `cgroup_vet_subtree_control_enable`.
    fn may_pass_on(&self, path: &Path, controller: Controller) -> Result<(), Errno> {
        let is_had = if path == Path::new("") {
            self.tree().controllers.contains(&controller)
        } else {
            self.tree().has(path, controller)
        };
        match () {
            () if !is_had => Err(Errno::ENOENT),
            () if !self.is_valid_domain(self.tree().domain_of(path)) => Err(Errno::EOPNOTSUPP),
            () if self.tree().is_mixable(path) => Ok(()),
            () if controller == Controller::Memory && (self.is_thread_root(path) || self.tree().is_threaded(path)) => {
                Err(Errno::EOPNOTSUPP)
            }
            () if controller != Controller::Memory && (self.can_be_thread_root(path) || self.tree().is_threaded(path)) => {
                Ok(())
            }
            () if self.has_tasks(path) => Err(Errno::EBUSY),
            () => Ok(()),
        }
    }

    /// `cgroup_migrate_vet_dst` on v2, `cpuset_can_attach` on both.
    pub fn may_enter(&self, path: &Path) -> Result<(), Errno> {
        let tree = self.tree();
        let group = tree.groups.get(path).ok_or(Errno::ENOENT)?;
        if tree.version == Version::V2 {
            if !self.is_valid_domain(tree.domain_of(path)) {
                return Err(Errno::EOPNOTSUPP);
            }
            let is_for_threads = self.can_be_thread_root(path) || group.is_threaded;
            if !is_for_threads && !group.values[SUBTREE].is_empty() {
                return Err(Errno::EBUSY);
            }
        }
        let is_empty = |file| tree.effective(path, file).is_empty();
        if tree.controllers.contains(&Controller::Cpuset) && (is_empty(CPUS) || is_empty(MEMS)) {
            return Err(Errno::ENOSPC);
        }
        Ok(())
    }

    /// `validate_change` of v1's and v2's cpusets.
    fn take_list(&self, path: &Path, file: &str, value: &str) -> Result<String, Errno> {
        let (tree, list) = (self.tree(), value.parse::<CpuList>().map_err(|_| Errno::EINVAL)?);
        let was_empty = tree.groups[path].list(file).is_empty();
        if list.is_empty() && !was_empty && self.has_tasks(path) {
            return Err(Errno::ENOSPC);
        }
        let above = path.parent().ok_or(Errno::EACCES)?;
        if tree.version == Version::V1 && !list.without(&tree.groups[above].list(file)).is_empty() {
            return Err(Errno::EACCES);
        }
        let has_more = |(_, child): (&Path, &Group)| !child.list(file).without(&list).is_empty();
        if tree.version == Version::V1 && tree.children(path).any(has_more) {
            return Err(Errno::EBUSY);
        }
        Ok(list.to_string())
    }

    /// `tg_set_cfs_bandwidth` of v1, which leaves the root alone.
    fn take_limit(&self, path: &Path, quota: &str, period: &str) -> Result<(), Errno> {
        let limit = limit("-1", quota, period)?;
        if path == Path::new("") || !self.is_schedulable(path, limit) {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    /// `__cfs_schedulable` of v1: no group has more than one above it.
    fn is_schedulable(&self, path: &Path, limit: Option<(u64, u64)>) -> bool {
        let ratio = |(quota, period): (u64, u64)| (quota << 20) / period;
        let mut acting: BTreeMap<&Path, Option<u64>> = BTreeMap::new();
        for (each, group) in &self.tree().groups {
            let own = if each == path { limit } else { group.limit(Version::V1) }.map(ratio);
            let above = each.parent().and_then(|above| acting[above]);
            if own.zip(above).is_some_and(|(own, above)| own > above) {
                return false;
            }
            acting.insert(each, own.or(above));
        }
        true
    }
}

fn number(text: &str) -> Result<u64, Errno> {
    text.parse().map_err(|_| Errno::EINVAL)
}

/// A quota and its period, within the bounds of `tg_set_cfs_bandwidth`; none where the word for that stands.
fn limit(none: &str, quota: &str, period: &str) -> Result<Option<(u64, u64)>, Errno> {
    let period = number(period)?;
    let quota = if quota == none { None } else { Some(number(quota)?) };
    let is_limit = (1000..=1_000_000).contains(&period) && quota.is_none_or(|quota| quota >= 1000);
    if is_limit { Ok(quota.map(|quota| (quota, period))) } else { Err(Errno::EINVAL) }
}
