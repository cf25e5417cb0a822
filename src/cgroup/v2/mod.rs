//! cgroup v2: one hierarchy, in which a thread can only be in its process's group or in a threaded one below it.

pub mod sites;
pub mod values;
