//! What the tests and the demonstration stand on: a host side of a sandbox made of real processes.
//!
//! A hook that moves threads is only proved by threads that get moved. So this starts what Kata starts (QEMU, virtiofsd, a
//! shim), writes the files Kata writes, hands the hook what an engine hands it, and reads the kernel's answer back from
//! /proc and /sys/fs/cgroup. Whatever happens in between, dropping an [`Env`] leaves the host as it was found: processes
//! are killed by their handles, and only groups that bear the name of this one environment are removed.
#![allow(dead_code, unused_imports)] // Each of its users takes a part of it.

mod bundle;
mod cgroup;
mod dump;
mod env;
mod guest;
mod hierarchy;
mod hook;
mod kvm;
mod limits;
mod log;
pub(crate) mod manual;
mod podman;
mod process;
mod qmp;
mod refusals;
mod sandbox;
mod schema;
mod shim;
mod stand_in;
mod strace;

pub(crate) use bundle::{Bundle, Engine, Kind};
pub(crate) use cgroup::{
    Group, constrained_at, domains_at, everywhere, groups_named, shared_parents_before, unconstrained_at, unlimited_domains_at,
};
pub(crate) use dump::Dump;
pub(crate) use env::{Env, copy_program, premake, remove_groups_named, say, set_mode, skipped, wait_until, write_file};
pub(crate) use guest::Guest;
pub(crate) use hierarchy::{CONTROLLERS, CPU_CONTROLLERS, Hierarchy, Version, hierarchies, place_in, place_of};
pub(crate) use hook::{Hook, Run, hook_binary, steps_ahead, use_binary};
pub(crate) use limits::{Freedom, Limits, freedom_of, limits_at, share_of};
pub(crate) use log::LogLine;
pub(crate) use podman::{Driver, Podman};
pub(crate) use process::{Process, Thread, children_of, cpu_ticks, is_alive, is_installed, minds, start_time, threads_of};
pub(crate) use qmp::Qmp;
pub(crate) use refusals::{Call, On, Refused, calls_of, refuse};
pub(crate) use sandbox::{Layout, QEMU, Sandbox, Starter, virtiofsd, virtiofsd_arguments};
pub(crate) use schema::{assert_valid, wrong_by};
pub(crate) use shim::{Shim, be_a_shim};
pub(crate) use stand_in::{LAST_PID, StandIn, VCPU_IN_DISGUISE, be_a_vmm, row_of_vmm, stand_in_row};
pub(crate) use strace::{Strace, stride};
