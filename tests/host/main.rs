//! What the hook does to a real host: real QEMUs and virtiofsds, the real cgroup hierarchies, the built binary.
//!
//! One crate, as it links once. Each module is a theme, each test a sentence about what can be relied on; all of it is held
//! against what the documentation promises, none of it against how the hook is built. What is said of a controller is true on
//! cgroup v1 and on v2; where the two differ, `testenv` knows how.

#[path = "../testenv/mod.rs"]
mod testenv;

mod check;
mod containers;
mod crowd;
mod demand;
mod domain;
mod dry_run;
mod environment;
mod evidence;
mod faults;
mod find;
mod hooks_json;
mod identity;
mod kata_1_9;
mod killed;
mod messages;
mod mounts;
mod neighbours;
mod outcomes;
mod paths;
mod place;
mod pods;
mod privileges;
mod refused;
mod release;
mod restraint;
mod reuse;
mod sequences;
mod spoof;
mod status;
mod strange_paths;
mod surroundings;
mod taken_over;
mod trouble;
mod witness;
