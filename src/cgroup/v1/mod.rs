//! cgroup v1: a thread is in one group of every hierarchy, each by itself, so that the vCPU threads can be in one place for their
//! CPU time and the whole process in another for its memory.

pub mod sites;
pub mod values;
