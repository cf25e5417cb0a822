//! What the hook does to a real host: real QEMUs and virtiofsds, the real cgroup v1 hierarchies, the built binary.
//!
//! One crate, as it links once. Each module is a theme, each test a sentence about what can be relied on; all of it is held
//! against what the documentation promises, none of it against how the hook is built.

#[path = "../testenv/mod.rs"]
mod testenv;

mod demand;
mod dry_run;
mod environment;
mod evidence;
mod faults;
mod find;
mod hooks_json;
mod identity;
mod mounts;
mod neighbours;
mod outcomes;
mod paths;
mod place;
mod release;
