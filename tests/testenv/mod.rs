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
mod hook;
mod log;
mod process;
mod qmp;
mod sandbox;
mod shim;
mod strace;

pub(crate) use bundle::{Bundle, Engine, Kind};
pub(crate) use cgroup::{CONTROLLERS, CPU_CONTROLLERS, Group, groups_named, mount_of, place_of, shared_parents_before};
pub(crate) use dump::Dump;
pub(crate) use env::{Env, premake, remove_groups_named, set_mode, skipped, wait_until, write_file};
pub(crate) use guest::Guest;
pub(crate) use hook::{Hook, Run, use_binary};
pub(crate) use log::LogLine;
pub(crate) use process::{Process, Thread, children_of, cpu_ticks, is_alive, start_time, threads_of};
pub(crate) use qmp::Qmp;
pub(crate) use sandbox::{Layout, QEMU, Sandbox, Starter, virtiofsd};
pub(crate) use shim::{Shim, be_a_shim};
pub(crate) use strace::Strace;
