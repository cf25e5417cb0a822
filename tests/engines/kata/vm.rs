//! The VM: QEMU with two vCPUs on KVM where there is one, virtiofsd, and the files that Kata has of them.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::command_line::{outliving, start_outliving};
use super::container::Container;
use super::hooks::entering;
use super::{Generation, Kata, short};
use crate::testenv::*;

#[derive(Serialize, Deserialize)]
pub(super) struct Vm {
    sandbox: String,
    pub pid: i32,
    pub start: Option<u64>,
    pub virtiofsd: i32,
    pub qmp: PathBuf,
}

impl Vm {
    /// Starts virtiofsd and QEMU in the sandbox's network, and waits for the vCPUs.
    pub(super) fn start(kata: &Kata, container: &Container) -> Vm {
        let sandbox = &container.sandbox;
        // Not Kata's own: what it has of these in an image, and a log.
        let own = own_files(kata, sandbox);
        fs::create_dir(&own).unwrap();
        let dir = make_dir(kata.root(if kata.generation == Generation::RuntimeRs { "kata" } else { "vm" }), sandbox);
        let virtiofsd = start_virtiofsd(&own);
        // runtime-rs has it in the bundle, its shim's working directory.
        let qmp = if kata.generation == Generation::RuntimeRs { own.join("qmp.sock") } else { dir.join("qmp.sock") };
        let arguments = arguments(kata.generation, sandbox, &dir, &own, &qmp);
        let log = File::create(own.join("log")).unwrap();
        let mut words = container.network.as_deref().map_or(vec![], entering);
        words.push(QEMU.to_owned());
        words.extend(arguments.split(' ').map(str::to_owned));
        // With -daemonize it forks: whoever is the engine's reaper has it then.
        let child = start_outliving(outliving(words).stdout(log.try_clone().unwrap()).stderr(log));
        let mut vcpus = 0;
        wait_until("QEMU's vCPUs", || {
            vcpus = Qmp::connect(&qmp).map_or(0, |mut qmp| qmp.vcpus().len());
            vcpus == 2
        });
        wait_until("virtiofsd's child", || !children_of(virtiofsd).is_empty());
        let pid = match kata.generation {
            Generation::RuntimeRs => child,
            _ => fs::read_to_string(dir.join("pid")).unwrap().trim().parse().unwrap(),
        };
        let vm = Vm { sandbox: sandbox.clone(), pid, start: start_time(pid), virtiofsd, qmp };
        fs::write(file(kata, sandbox), serde_json::to_string(&vm).unwrap()).unwrap();
        vm
    }

    pub(super) fn load(kata: &Kata, sandbox: &str) -> Result<Vm, String> {
        let text = fs::read(file(kata, sandbox)).map_err(|_| format!("sandbox {sandbox} has no VM"))?;
        Ok(serde_json::from_slice(&text).unwrap())
    }

    /// Writes down what runs, in the sandbox's file: persist.json of Go's, state.json of runtime-rs.
    pub(super) fn save(&self, kata: &Kata) {
        self.write(kata, &Container::all_of(kata, &self.sandbox));
    }

    /// The same once a container is gone.
    pub(super) fn save_without(&self, kata: &Kata, gone: &Container) {
        let mut containers = Container::all_of(kata, &self.sandbox);
        containers.retain(|container| container.id != gone.id);
        self.write(kata, &containers);
    }

    fn write(&self, kata: &Kata, containers: &[Container]) {
        let (dir, name, text) = if kata.generation == Generation::RuntimeRs {
            (kata.root("kata"), "state.json", self.state_json())
        } else {
            (kata.root("sbs"), "persist.json", self.persist_json(kata.generation, containers))
        };
        let dir = make_dir(dir, &self.sandbox);
        write_file(&dir.join(name), 0o600, &text.to_string());
    }

    fn persist_json(&self, generation: Generation, containers: &[Container]) -> Value {
        let key = if generation == Generation::Go1 { "VirtiofsdPid" } else { "VirtiofsDaemonPid" };
        let configs: Vec<Value> = containers.iter().map(config_of).collect();
        json!({
            "State": "running", "SandboxContainer": self.sandbox, "PersistVersion": 2, "AgentState": { "URL": "" },
            "HypervisorState": { "Type": "qemu", "APISocket": "", "Pid": self.pid, key: self.virtiofsd, "HotpluggedVCPUs": null },
            "Config": { "HypervisorType": "qemu", "SandboxCgroupOnly": false, "ContainerConfigs": configs },
        })
    }

    fn state_json(&self) -> Value {
        json!({
            "sandbox_type": "virt_container",
            "resource": { "endpoint": [], "cgroup_config": null },
            "hypervisor": {
                "hypervisor_type": "qemu", "pid": self.pid, "virtiofs_daemon_pid": self.virtiofsd, "vm_path": QEMU,
                "run_dir": "", "jailed": false, "id": self.sandbox,
            },
        })
    }

    /// virtiofsd ends by itself when QEMU has.
    pub(super) fn stop(&self) {
        let is_running = || start_time(self.pid) == self.start && is_alive(self.pid);
        if is_running() {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
        wait_until("the VM's end", || !is_running() && !is_alive(self.virtiofsd));
    }

    /// Removes the runtime's files.
    pub(super) fn forget(&self, kata: &Kata) {
        for root in &kata.roots {
            let _ = fs::remove_dir_all(root.join(&self.sandbox));
        }
        fs::remove_dir_all(own_files(kata, &self.sandbox)).unwrap();
    }
}

fn file(kata: &Kata, sandbox: &str) -> PathBuf {
    kata.dir.join(format!("{sandbox}.vm"))
}

fn own_files(kata: &Kata, sandbox: &str) -> PathBuf {
    kata.dir.join(format!("{}.files", short(sandbox)))
}

/// One of persist.json's ContainerConfigs.
fn config_of(container: &Container) -> Value {
    let config = container.config().unwrap_or_default();
    let cpu = &config["linux"]["resources"]["cpu"];
    let resources = if cpu.is_null() { json!({}) } else { json!({ "cpu": cpu }) };
    json!({ "ID": container.id, "Annotations": {}, "RootFs": "/", "Resources": resources })
}

/// The runtime's directory of a sandbox: root's, and nobody else's to look into.
fn make_dir(root: &Path, sandbox: &str) -> PathBuf {
    let dir = root.join(sandbox);
    fs::create_dir_all(&dir).unwrap();
    set_mode(&dir, 0o700);
    dir
}

/// On a socket that it is handed, as Kata's is.
fn start_virtiofsd(own: &Path) -> i32 {
    let listener = UnixListener::bind(own.join("vhost-fs.sock")).unwrap();
    let shared = own.join("shared");
    fs::create_dir(&shared).unwrap();
    let log = File::options().create(true).append(true).mode(0o600).open(own.join("virtiofsd.log")).unwrap();
    let words = [virtiofsd().display().to_string()].into_iter().chain(virtiofsd_arguments(&shared));
    let mut command = outliving(words);
    start_outliving(command.stdin(OwnedFd::from(listener)).stdout(log.try_clone().unwrap()).stderr(log))
}

fn arguments(generation: Generation, sandbox: &str, dir: &Path, own: &Path, qmp: &Path) -> String {
    let has_kvm = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    // Without KVM a vCPU thread is known by its name alone.
    let (accelerator, names) = if has_kvm { ("kvm", "") } else { ("tcg,thread=multi", ",debug-threads=on") };
    let (qmp, socket) = (qmp.display(), own.join("vhost-fs.sock"));
    let firmware = Guest::Idle.write(own);
    let pid_file = format!(" -uuid 2f1e4b5c-9d3a-4c1e-8f70-6a5b4c3d2e1f -pidfile {}", dir.join("pid").display());
    let (kept, wait) = match generation {
        Generation::Go1 => (format!("{pid_file} -daemonize"), "server,nowait"),
        Generation::Go3 => (pid_file, "server=on,wait=off"),
        Generation::RuntimeRs => (String::new(), "server=on,wait=off"),
    };
    format!(
        "-name sandbox-{sandbox}{names}{kept} -machine q35,memory-backend=dimm1 -accel {accelerator} -smp 2,maxcpus=4 -m 32 \
         -object memory-backend-memfd,id=dimm1,size=32M,share=on -qmp unix:{qmp},{wait} \
         -chardev socket,id=char0,path={} -device vhost-user-fs-pci,chardev=char0,tag=kataShared \
         -nodefaults -no-user-config -display none -bios {}",
        socket.display(),
        firmware.display(),
    )
}
