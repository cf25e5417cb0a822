//! Engines that fire the hook: podman through hooks.d, containerd through a base specification, each with a runtime that starts
//! a real VM. So the whole chain runs, from the engine to the kernel's groups, and the hook is registered as documented.
//!
//! No Kata that could be installed has the command line that these engines call, so [`kata`] stands in for it.

#[path = "../testenv/mod.rs"]
mod testenv;

mod containerd;
mod cri;
mod kata;
mod node;
mod podman;
mod runtime;
