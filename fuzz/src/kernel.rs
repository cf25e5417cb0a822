//! A kernel's control groups, made up: enough of them to refuse what the real one refuses.
//!
//! A mkdir, a write or a move is taken or refused by the rules in [`crate::rules`]. What stands then is laid into a directory as plain
//! files, for the library to read; those files are never read back.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use kata_cgroup_hook::cgroup::Controller;
use kata_cgroup_hook::cgroup::file::{
    CPUS, EFFECTIVE_CPUS, EFFECTIVE_MEMS, MAX, MEMS, PERIOD, QUOTA, SHARES, SUBTREE, TYPE, WEIGHT,
};
use kata_cgroup_hook::cgroup::group::GroupPath;
use kata_cgroup_hook::cgroup::mounts::Version;
use kata_cgroup_hook::plan::Step;
use nix::errno::Errno;

use crate::rules::In;
use crate::tree::{Group, Tree};

/// The hierarchies, and who is where in them.
#[derive(Debug, Default)]
pub struct Kernel {
    pub trees: Vec<Tree>,
    /// By number.
    pub threads: BTreeMap<i32, Thread>,
    /// The files as they are laid.
    laid: HashMap<PathBuf, String>,
}

/// A thread: its process, and its group in each tree.
#[derive(Debug)]
pub struct Thread {
    pub process: i32,
    pub start: u64,
    pub places: Vec<PathBuf>,
}

/// Where a thread is that is in no group beneath the mount point.
const ELSEWHERE: &str = "/elsewhere";

impl Kernel {
    pub fn new(trees: Vec<Tree>) -> Self {
        Self { trees, ..Self::default() }
    }

    /// Adds a thread, which begins at the top of every tree.
    pub fn add(&mut self, tid: i32, process: i32, start: u64) {
        let places = vec![PathBuf::new(); self.trees.len()];
        self.threads.insert(tid, Thread { process, start, places });
    }

    /// The tree that a group is in.
    pub fn tree_of(&self, group: &GroupPath) -> usize {
        let is_it = |tree: &Tree| tree.mount == group.hierarchy.mount;
        self.trees.iter().position(is_it).expect("a group beneath a mount")
    }

    pub fn place_of(&self, tid: i32, n: usize) -> &Path {
        &self.threads[&tid].places[n]
    }

    pub fn has_groups_in(&self, group: &GroupPath) -> bool {
        self.trees[self.tree_of(group)].children(&group.rel).next().is_some()
    }

    /// Does one step as the hook would.
    pub fn step(&mut self, step: &Step) -> Result<(), Errno> {
        match step {
            Step::Create(group) => self.make(self.tree_of(group), &group.rel),
            Step::Set { group, file, value } => self.write(self.tree_of(group), &group.rel, file, value),
            Step::MoveProcess { pid, start, to, .. } => {
                self.is_itself(*pid, *start)?;
                self.move_process(self.tree_of(to), *pid, &to.rel)
            }
            Step::MoveThread { tid, thread_start, to, .. } => {
                self.is_itself(*tid, *thread_start)?;
                self.move_thread(self.tree_of(to), *tid, &to.rel)
            }
            Step::Drain { .. } | Step::Remove { .. } => Err(Errno::EPERM),
        }
    }

    fn is_itself(&self, id: i32, start: u64) -> Result<(), Errno> {
        self.threads.get(&id).filter(|thread| thread.start == start).map(drop).ok_or(Errno::ESRCH)
    }

    /// mkdir.
    pub fn make(&mut self, n: usize, path: &Path) -> Result<(), Errno> {
        let groups = &mut self.trees[n].groups;
        match path.parent() {
            Some(above) if !groups.contains_key(above) => Err(Errno::ENOENT),
            _ if groups.contains_key(path) => Err(Errno::EEXIST),
            _ => {
                groups.insert(path.to_path_buf(), Group::default());
                Ok(())
            }
        }
    }

    /// Gives a new cpuset of v1 what the one above has, as engines do.
    pub fn fill(&mut self, n: usize, path: &Path) {
        for file in [CPUS, MEMS] {
            let above = path.parent().map(|above| self.trees[n].groups[above].values[file].clone());
            if self.trees[n].version == Version::V1 {
                let _ = self.write(n, path, file, &above.unwrap_or_default());
            }
        }
    }

    /// A write of a value into a group's file.
    pub fn write(&mut self, n: usize, path: &Path, file: &'static str, value: &str) -> Result<(), Errno> {
        let taken = In { kernel: self, n }.take(path, file, value)?;
        let group = self.trees[n].groups.get_mut(path).expect("what stands");
        group.is_threaded |= file == TYPE;
        group.values.insert(file, taken);
        Ok(())
    }

    /// A write into cgroup.procs.
    pub fn move_process(&mut self, n: usize, pid: i32, to: &Path) -> Result<(), Errno> {
        In { kernel: self, n }.may_enter(to)?;
        for thread in self.threads.values_mut().filter(|thread| thread.process == pid) {
            thread.places[n] = to.to_path_buf();
        }
        Ok(())
    }

    /// Somebody takes a process out of what can be seen of a tree.
    pub fn take_out(&mut self, n: usize, pid: i32) {
        for thread in self.threads.values_mut().filter(|thread| thread.process == pid) {
            thread.places[n] = ELSEWHERE.into();
        }
    }

    /// Whether every thread of a process is in a group beneath the mount point.
    pub fn is_in_sight(&self, n: usize, pid: i32) -> bool {
        self.threads.iter().filter(|(_, thread)| thread.process == pid).all(|(tid, _)| self.is_thread_in_sight(n, *tid))
    }

    /// The same of one thread.
    pub fn is_thread_in_sight(&self, n: usize, tid: i32) -> bool {
        self.threads[&tid].places[n] != Path::new(ELSEWHERE)
    }

    /// A write into tasks or cgroup.threads (`cgroup_attach_permissions`).
    pub fn move_thread(&mut self, n: usize, tid: i32, to: &Path) -> Result<(), Errno> {
        In { kernel: self, n }.may_enter(to)?;
        let (tree, thread) = (&self.trees[n], self.threads.get_mut(&tid).ok_or(Errno::ESRCH)?);
        let leaves_domain = tree.domain_of(&thread.places[n]) != tree.domain_of(to);
        if tree.version == Version::V2 && leaves_domain {
            return Err(Errno::EOPNOTSUPP);
        }
        thread.places[n] = to.to_path_buf();
        Ok(())
    }

    /// /proc/TID/cgroup.
    pub fn membership(&self, tid: i32) -> String {
        let line = |(tree, place): (&Tree, &PathBuf)| {
            let names: Vec<&str> = tree.controllers.iter().map(|one| one.name()).collect();
            let (number, names) = if tree.version == Version::V2 { (0, String::new()) } else { (1, names.join(",")) };
            // join("") would leave a slash at the end.
            let path = if place.as_os_str().is_empty() { tree.root.clone() } else { tree.root.join(place) };
            format!("{number}:{names}:{}\n", path.display())
        };
        self.trees.iter().zip(&self.threads[&tid].places).map(line).collect()
    }

    /// Lays every group where its tree is mounted, with the files that are not there yet as they are to be.
    pub fn lay(&mut self) {
        let mut laid = std::mem::take(&mut self.laid);
        for (n, tree) in self.trees.iter().enumerate() {
            for path in tree.groups.keys() {
                let dir = tree.mount.join(path);
                if !laid.contains_key(&dir) {
                    std::fs::create_dir_all(&dir).expect("a directory");
                    laid.insert(dir.clone(), String::new());
                }
                for (file, text) in self.files(n, path) {
                    let file = dir.join(file);
                    if laid.get(&file) != Some(&text) {
                        std::fs::write(&file, format!("{text}\n")).expect("a file in it");
                        laid.insert(file, text);
                    }
                }
            }
        }
        self.laid = laid;
    }

    /// The files of a group.
    fn files(&self, n: usize, path: &Path) -> Vec<(&'static str, String)> {
        let (tree, view) = (&self.trees[n], In { kernel: self, n });
        let group = &tree.groups[path];
        let own = |file: &'static str| (file, group.values[file].clone());
        let members = self.threads.iter().filter(|(_, thread)| thread.places[n] == path);
        let members: Vec<String> = members.map(|(tid, _)| tid.to_string()).collect();
        let mut files = Vec::new();
        if tree.version == Version::V1 {
            files.push(("tasks", members.join("\n")));
            files.extend([SHARES, QUOTA, PERIOD].map(own).into_iter().filter(|_| tree.has(path, Controller::Cpu)));
            files.extend([CPUS, MEMS].map(own).into_iter().filter(|_| tree.has(path, Controller::Cpuset)));
            return files;
        }
        files.extend([("cgroup.threads", members.join("\n")), own(SUBTREE)]);
        if path == Path::new("") {
            let names: Vec<&str> = tree.controllers.iter().map(|one| one.name()).collect();
            files.push(("cgroup.controllers", names.join(" ")));
        }
        if !tree.is_mixable(path) {
            files.push((TYPE, view.kind(path).to_owned()));
        }
        files.extend([WEIGHT, MAX].map(own).into_iter().filter(|_| tree.has(path, Controller::Cpu)));
        files.extend([CPUS, MEMS].map(own).into_iter().filter(|_| tree.has(path, Controller::Cpuset)));
        let is_root = tree.is_mixable(path) && tree.controllers.contains(&Controller::Cpuset);
        if is_root || tree.has(path, Controller::Cpuset) {
            let effective = [(EFFECTIVE_CPUS, CPUS), (EFFECTIVE_MEMS, MEMS)];
            files.extend(effective.map(|(name, file)| (name, tree.effective(path, file).to_string())));
        }
        files
    }
}
