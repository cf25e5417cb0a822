//! What the engine says: the state on stdin, the bundle's config.json, and which sandbox they speak of.

pub mod bundle;
pub mod sandbox;
pub mod state;
