//! A stand-in for Kata's runtime: the command line of an OCI runtime, and behind it a real QEMU and virtiofsd.
//!
//! No Kata is to be had here, and none since 2.0 has that command line. So an engine is given this test program under
//! another calling. It starts nothing in a guest; but the processes, the files that name them, who is whose parent, and
//! above all when and how the hooks of config.json are run are those of a real Kata of one of three generations
//! (kata-containers/runtime at 1.x, kata-containers/kata-containers at 3.x, both of its runtimes). What Kata does to cgroups
//! itself is left out: other tests make those groups beforehand.
//!
//! - [`command_line`]: what an engine calls; it ends with each call, as Kata 1.x did.
//! - [`shim`]: the process that stays and does everything, since 2.0.
//! - [`stages`]: what happens at a container's create, start and delete, in which order.
//! - [`hooks`]: how a hook is run. [`vm`]: what is started, and where it is written down.

mod command_line;
mod container;
mod hooks;
mod shim;
mod stages;
mod vm;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::testenv::*;
use vm::Vm;

/// Holds [`Kata`] as JSON, for the programs that are to be a part of it.
const KATA: &str = "KCH_TEST_KATA";
/// The case that they are run by.
const CASE: &str = "runtime::each_generation_places_and_releases_its_sandbox";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Generation {
    /// kata-runtime, a command line: prestart before there is a VM, no createRuntime at all.
    Go1,
    /// The shim in Go since 3.1, which starts the VM first.
    Go3,
    /// The shim in Rust.
    RuntimeRs,
}

impl Generation {
    pub(crate) const ALL: [Generation; 3] = [Generation::Go1, Generation::Go3, Generation::RuntimeRs];
}

/// One installation: which generation, and where it keeps what.
#[derive(Clone, Serialize, Deserialize)]
struct Kata {
    generation: Generation,
    /// Its own notes, which no hook looks at.
    dir: PathBuf,
    /// `vm`, `sbs` and `kata` below the directories where a runtime's files are.
    roots: [PathBuf; 3],
}

/// Is the command line or a shim where the test program is told to be, and does not come back then.
pub(crate) fn be_a_runtime() {
    let Ok(kata) = std::env::var(KATA) else { return };
    let kata: Kata = serde_json::from_str(&kata).unwrap();
    match std::env::var(shim::BE_A_SHIM) {
        Ok(sandbox) => shim::serve(&kata, &sandbox),
        Err(_) => command_line::run(&kata),
    }
}

/// One that engines can call; dropped, nothing that it started is left.
pub(crate) struct Runtime<'e> {
    env: &'e Env,
    kata: Kata,
}

impl<'e> Runtime<'e> {
    /// Keeps the runtime's files where `env` configures the hook to look.
    pub(crate) fn within(env: &'e Env, generation: Generation) -> Self {
        Runtime::new(env, generation, ["vm", "sbs", "kata"].map(|root| env.dir.join(root)))
    }

    /// Keeps them where Kata does, and the hook looks by itself.
    pub(crate) fn installed(env: &'e Env, generation: Generation) -> Self {
        Runtime::new(env, generation, ["/run/vc/vm", "/run/vc/sbs", "/run/kata"].map(PathBuf::from))
    }

    fn new(env: &'e Env, generation: Generation, roots: [PathBuf; 3]) -> Self {
        let kata = Kata { generation, dir: env.dir.join(format!("{generation:?}")), roots };
        fs::create_dir(&kata.dir).unwrap();
        let test = std::env::current_exe().unwrap();
        // The name that the hook knows shims by; as a file of root's alone.
        copy_program(&test, &kata.shim_file());
        let settings = serde_json::to_string(&kata).unwrap();
        // libtest speaks on stdout and has arguments of its own.
        let script = format!(
            "#!/bin/sh\nexport {KATA}='{settings}' {arguments}=\"$(printf '%s\\n' \"$@\")\"\n\
             exec {test} {CASE} --exact --nocapture 3>&1 >/dev/null\n",
            arguments = command_line::ARGUMENTS,
            test = test.display(),
        );
        let runtime = Runtime { env, kata };
        write_file(&runtime.program(), 0o755, &script);
        runtime
    }

    /// What an engine is told to call.
    pub(crate) fn program(&self) -> PathBuf {
        self.kata.dir.join("kata-runtime")
    }

    /// The running sandbox of this id, to be looked at.
    pub(crate) fn sandbox(&self, id: &str) -> Sandbox<'e> {
        let vm = Vm::load(&self.kata, id).unwrap();
        Sandbox::of_another(self.env, id, (vm.pid, vm.start), vm.virtiofsd, &vm.qmp)
    }

    /// Nothing of a sandbox is left: no process, no file of the runtime's.
    #[track_caller]
    pub(crate) fn assert_gone(&self, sandbox: &Sandbox) {
        for pid in sandbox.processes() {
            wait_until("the sandbox's processes to end", || !is_alive(pid));
        }
        let dirs = self.kata.roots.iter().map(|root| root.join(&sandbox.id));
        let left: Vec<PathBuf> = dirs.filter(|dir| dir.exists()).collect();
        assert_eq!(left, Vec::<PathBuf>::new());
    }

    /// What went wrong and was let pass.
    pub(crate) fn warnings(&self) -> String {
        fs::read_to_string(self.kata.dir.join(hooks::WARNINGS)).unwrap_or_default()
    }
}

impl Drop for Runtime<'_> {
    fn drop(&mut self) {
        command_line::remove_all(&self.kata);
    }
}

impl Kata {
    fn shim_file(&self) -> PathBuf {
        self.dir.join("containerd-shim-kata-v2")
    }

    fn root(&self, name: &str) -> &Path {
        self.roots.iter().find(|root| root.ends_with(name)).unwrap()
    }
}

/// The end of an id: the path of a socket may have 107 characters.
fn short(id: &str) -> &str {
    &id[id.len().saturating_sub(12)..]
}

fn read_json(path: &Path) -> Result<Value, String> {
    let text = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))
}
