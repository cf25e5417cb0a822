//! What the runtime keeps in mind of a container, from one call of its command line to the next.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Kata, read_json};
use crate::testenv::Bundle;

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Container {
    pub id: String,
    pub bundle: PathBuf,
    /// Its own id where it is the sandbox's own container, or the only one.
    pub sandbox: String,
    /// The process that its engine takes for the container. It is in the pod's network, as Kata 1.x's kata-shim was.
    pub pid: i32,
    pub status: String,
    /// The pod's network, where it has one.
    pub network: Option<PathBuf>,
}

impl Container {
    pub(super) fn is_sandbox(&self) -> bool {
        self.id == self.sandbox
    }

    pub(super) fn config(&self) -> Result<Value, String> {
        read_json(&self.bundle.join("config.json"))
    }

    /// In the words that the states of hooks are made of.
    pub(super) fn as_bundle(&self, config: &Value) -> Bundle {
        Bundle { id: self.id.clone(), dir: self.bundle.clone(), config: config.clone() }
    }

    pub(super) fn save(&self, kata: &Kata) {
        fs::write(file(kata, &self.id), serde_json::to_string(self).unwrap()).unwrap();
    }

    pub(super) fn load(kata: &Kata, id: &str) -> Result<Container, String> {
        let text = fs::read(file(kata, id)).map_err(|_| format!("container {id} does not exist"))?;
        Ok(serde_json::from_slice(&text).unwrap())
    }

    pub(super) fn forget(&self, kata: &Kata) {
        fs::remove_file(file(kata, &self.id)).unwrap();
    }

    pub(super) fn all(kata: &Kata) -> Vec<Container> {
        let entries = fs::read_dir(&kata.dir).unwrap().flatten().map(|entry| entry.path());
        let files = entries.filter(|path| path.extension().is_some_and(|extension| extension == "container"));
        files.map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap()).collect()
    }

    /// All of a sandbox's.
    pub(super) fn all_of(kata: &Kata, sandbox: &str) -> Vec<Container> {
        Container::all(kata).into_iter().filter(|container| container.sandbox == sandbox).collect()
    }
}

fn file(kata: &Kata, id: &str) -> PathBuf {
    Path::new(&kata.dir).join(format!("{id}.container"))
}
