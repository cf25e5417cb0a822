//! An OCI hook that keeps the host side of a VM sandbox in the right cgroups: the vCPU threads, and only they, under the pod's
//! CPU limits; the VMM and its helpers in a memory group without a limit; nothing left behind when the sandbox ends.
//!
//! # Layout
//!
//! Data flows one way: what is read becomes a [`plan::Plan`], and only [`apply`] changes groups (`reconcile` removes by itself
//! empty ones that no record knows).
//!
//! ```text
//! stdin, config.json ─▶ oci      who is this, which container of it, which cgroupsPath, what CPU it asks for
//! /proc, runtime dirs ─▶ vmm     the VM's processes, and which of their threads are vCPUs, with the proof
//! mountinfo, cgroups ─▶ cgroup   where each controller lives, which groups are the sandbox's, which values they are to have
//! state-dir ──────────▶ record   what this sandbox's containers asked for so far, under a lock
//!                         │
//!                         ▼
//!                       plan     a pure value: ordered steps; --dry-run prints it
//!                         │
//!                         ▼
//!                       apply    does the steps, undoes them on failure
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`cli`], [`config`] | the command line; the configuration file |
//! | [`commands`] | a run from state to exit code: subject (whom it is for), vm (finding it), place, release, reconcile, settle (what all need), check, status (what it sees: seen), containers (whose demands count), bookkeeping (the record) |
//! | [`check`] | what of the host, its engines and Kata is as the hook needs it: one noun a file |
//! | [`status`] | what is shown of a sandbox: groups (as they stand), limit (what acts), verdict (what is missing); drawn as table or tree, in words |
//! | [`oci`] | state, bundle, sandbox |
//! | [`vmm`] | kinds (the table), runtime (Kata's directories), find (the proof), vcpu, debugfs |
//! | [`cgroup`] | mounts, path (the names), group (one of them), site (what stands where ours are to be), v1 and v2 (where they are to be: sites; what they are to hold: values), settings, demand, cpulist, file, leftover (what stands of ours in the end), orphan (what no record knows) |
//! | [`plan`], [`apply`], [`record`], [`store`] | as in the picture; where the records are kept |
//! | [`proc`], [`foreign`], [`sys`] | the one reader of /proc; reading files that others wrote; the system calls by hand |
//! | [`log`], [`error`], [`deadline`], [`order`] | the log line; what can go wrong; how much time is left; short lists in order |

// Nothing that comes from outside may end in a panic; tests may fail loudly.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod apply;
pub mod cgroup;
pub mod check;
pub mod cli;
pub mod commands;
pub mod config;
pub mod deadline;
pub mod error;
pub mod foreign;
pub mod log;
#[cfg(test)]
mod messages;
pub mod oci;
pub mod order;
pub mod plan;
pub mod proc;
pub mod record;
pub mod status;
pub mod store;
pub mod sys;
#[cfg(test)]
mod testing;
pub mod vmm;
