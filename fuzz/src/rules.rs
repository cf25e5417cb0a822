//! What the made-up kernel refuses, each by the rule of the function in the real one that is named there.

use std::collections::BTreeMap;
use std::path::Path;

use kata_cgroup_hook::cgroup::Controller;
use kata_cgroup_hook::cgroup::cpulist::CpuList;
use kata_cgroup_hook::cgroup::file::{CPUS, MEMS, SUBTREE};
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
    pub fn may_become_threaded(&self, path: &Path) -> Result<(), Errno> {
        let domain = self.tree().domain_of(path.parent().ok_or(Errno::ENOENT)?);
        let is_free = !self.is_populated(path) && !self.tree().groups[path].passes_on_for_domains();
        let is_allowed = is_free && self.is_valid_domain(domain) && self.can_be_thread_root(domain);
        if is_allowed { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
    }

    /// `cgroup_subtree_control_write`, `cgroup_vet_subtree_control_enable`.
    pub fn may_pass_on(&self, path: &Path, controller: Controller) -> Result<(), Errno> {
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
    pub fn may_be_list(&self, path: &Path, file: &str, list: &CpuList) -> Result<(), Errno> {
        let tree = self.tree();
        let was_empty = tree.groups[path].list(file).is_empty();
        if list.is_empty() && !was_empty && self.has_tasks(path) {
            return Err(Errno::ENOSPC);
        }
        let Some(above) = path.parent() else { return Err(Errno::EACCES) };
        if tree.version == Version::V1 {
            if !list.without(&tree.groups[above].list(file)).is_empty() {
                return Err(Errno::EACCES);
            }
            if tree.children(path).any(|(_, child)| !child.list(file).without(list).is_empty()) {
                return Err(Errno::EBUSY);
            }
        }
        Ok(())
    }

    /// `__cfs_schedulable` of v1: no group has more than one above it.
    pub fn is_schedulable(&self, path: &Path, limit: Option<(u64, u64)>) -> bool {
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

/// What the kernel takes for a quota and a period (`tg_set_cfs_bandwidth`).
pub fn is_limit(quota: Option<u64>, period: u64) -> bool {
    (1000..=1_000_000).contains(&period) && quota.is_none_or(|quota| quota >= 1000)
}
