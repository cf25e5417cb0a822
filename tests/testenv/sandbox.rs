//! A sandbox as Kata leaves it once its VM runs: QEMU, virtiofsd with its forked child, and the files that name them.
//!
//! Every argument and file here is one that a real Kata gives or writes (the Go runtime's unless said otherwise). Tests of
//! forged facts start from this and change one thing.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::bundle::Bundle;
use super::cgroup::{Group, constrained_at, domains_at, unlimited_domains_at};
use super::env::{Env, copy_program, set_mode, wait_until, write_file};
use super::guest::Guest;
use super::hierarchy::{CPU_CONTROLLERS, Version, mounted, place_in};
use super::hook::Run;
use super::limits::Limits;
use super::process::{Process, children_of, is_alive, start_time, threads_of};
use super::qmp::Qmp;
use super::shim::Shim;

pub(crate) const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// The one written in C, which came with QEMU up to 7.2.
const VIRTIOFSD_IN_C: &str = "/usr/lib/qemu/virtiofsd";
const VIRTIOFSD_IN_RUST: &str = "/usr/libexec/virtiofsd";

/// Where a runtime writes down what it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `vm/<sid>/pid`, written by QEMU, and `sbs/<sid>/persist.json`.
    Go,
    /// The same for a VM from the factory: `vm/<sid>` is a link to the VM's own directory, and QEMU bears the VM's name.
    Template,
    /// `kata/<sid>/state.json`; QEMU gets no `-pidfile`.
    RuntimeRs,
    /// A directory with no file in it that names a process.
    Unnamed,
}

/// What to start; each method departs from the usual in one thing.
pub(crate) struct Starter<'e> {
    env: &'e Env,
    id: String,
    layout: Layout,
    kvm: bool,
    named_threads: bool,
    guest: Guest,
    vcpus: usize,
    virtiofsd: bool,
    wrapper: Vec<String>,
    binary: PathBuf,
    name: Option<String>,
}

/// A running sandbox; dropped, its processes are gone.
pub(crate) struct Sandbox<'e> {
    pub env: &'e Env,
    pub id: String,
    /// Differs from the sandbox's for a VM from a template.
    pub vm_id: String,
    /// The VMM's pid in the host's namespace.
    pub pid: i32,
    pub virtiofsd_pid: Option<i32>,
    virtiofsd_child: Option<i32>,
    qmp: RefCell<Qmp>,
    started: Option<u64>,
    /// `None` where the shim is its parent.
    pub qemu: Option<Process>,
    pub virtiofsd: Option<Process>,
}

impl Env {
    /// A sandbox with threads that QEMU names, under TCG, idle: runs everywhere and costs nothing.
    pub(crate) fn sandbox(&self) -> Starter<'_> {
        Starter {
            env: self,
            id: self.name.clone(),
            layout: Layout::Go,
            kvm: false,
            named_threads: true,
            guest: Guest::Idle,
            vcpus: 2,
            virtiofsd: false,
            wrapper: Vec::new(),
            binary: QEMU.into(),
            name: None,
        }
    }

    /// A sandbox as a default Kata runs it: on KVM, and no thread has a name.
    pub(crate) fn kvm_sandbox(&self) -> Starter<'_> {
        Starter { kvm: true, named_threads: false, ..self.sandbox() }
    }
}

impl Env {
    /// A QEMU of this environment's own, which may be changed and removed. It looks for its data and modules near its file.
    pub(crate) fn own_qemu(&self) -> PathBuf {
        let prefix = self.dir.join("usr");
        fs::create_dir_all(prefix.join("bin")).unwrap();
        for shared in ["lib", "share"] {
            std::os::unix::fs::symlink(Path::new("/usr").join(shared), prefix.join(shared)).unwrap();
        }
        let file = prefix.join("bin/own-qemu");
        copy_program(QEMU, &file);
        file
    }
}

impl<'e> Starter<'e> {
    /// A second sandbox in one environment needs an id of its own; the environment's name stays in it.
    pub(crate) fn id(self, suffix: &str) -> Self {
        Starter { id: format!("{}-{suffix}", self.env.name), ..self }
    }

    /// An id that somebody else gave it.
    pub(crate) fn named(self, id: &str) -> Self {
        Starter { id: id.to_owned(), ..self }
    }

    pub(crate) fn layout(self, layout: Layout) -> Self {
        Starter { layout, ..self }
    }

    pub(crate) fn unnamed_threads(self) -> Self {
        Starter { named_threads: false, ..self }
    }

    pub(crate) fn guest(self, guest: Guest) -> Self {
        Starter { guest, ..self }
    }

    pub(crate) fn vcpus(self, vcpus: usize) -> Self {
        Starter { vcpus, ..self }
    }

    pub(crate) fn virtiofsd(self) -> Self {
        Starter { virtiofsd: true, ..self }
    }

    /// Starts QEMU through another program, such as `setpriv`.
    pub(crate) fn wrapped_in(self, wrapper: &[&str]) -> Self {
        Starter { wrapper: wrapper.iter().map(|&word| word.to_owned()).collect(), ..self }
    }

    /// Starts another file than the installed QEMU.
    pub(crate) fn binary(self, binary: &Path) -> Self {
        Starter { binary: binary.to_owned(), ..self }
    }

    /// Puts another sandbox's name on QEMU's command line.
    pub(crate) fn named_for(self, name: &str) -> Self {
        Starter { name: Some(name.to_owned()), ..self }
    }

    /// Starts everything as a child of this process.
    pub(crate) fn start(self) -> Sandbox<'e> {
        self.start_under(None)
    }

    /// Starts QEMU as the shim's child, as Kata does since 3.1.
    pub(crate) fn start_in(self, shim: &mut Shim) -> Sandbox<'e> {
        self.start_under(Some(shim))
    }

    fn start_under(self, shim: Option<&mut Shim>) -> Sandbox<'e> {
        let vm_id = match self.layout {
            Layout::Template => format!("{}-vm", self.id),
            _ => self.id.clone(),
        };
        let vm_dir = match self.layout {
            Layout::RuntimeRs => self.env.make_runtime_dir("kata", &vm_id),
            _ => self.env.make_runtime_dir("vm", &vm_id),
        };
        if self.layout == Layout::Template {
            std::os::unix::fs::symlink(&vm_id, self.env.runtime_dir("vm", &self.id)).unwrap();
        }
        // QEMU's own files may have to be written by somebody who may not write in the runtime's directory.
        let scratch = self.env.dir.join(format!("{}.qemu", self.id));
        fs::create_dir(&scratch).unwrap();
        set_mode(&scratch, if self.wrapper.is_empty() { 0o755 } else { 0o777 });

        let virtiofs_socket = scratch.join("vhost-fs.sock");
        let virtiofsd = self.virtiofsd.then(|| start_virtiofsd(self.env, &virtiofs_socket));

        // Where somebody else than root runs QEMU, he may not write where the runtime's own files are.
        let qmp_socket =
            if self.layout == Layout::RuntimeRs || !self.wrapper.is_empty() { &scratch } else { &vm_dir }.join("qmp.sock");
        let mut words = self.wrapper.clone();
        words.push(self.binary.display().to_string());
        words.extend(self.qemu_arguments(&vm_id, &vm_dir, &qmp_socket, &self.guest.write(&scratch)));
        if self.virtiofsd {
            words.extend(["-chardev".into(), format!("socket,id=char0,path={}", virtiofs_socket.display())]);
            words.extend(["-device".into(), "vhost-user-fs-pci,chardev=char0,tag=kataShared".into()]);
        }
        let (qemu, child) = if let Some(shim) = shim {
            (None, shim.start(&words))
        } else {
            let log = File::create(scratch.join("log")).unwrap();
            let mut command = Process::command(&words[0]);
            command.args(&words[1..]).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            let qemu = Process::spawn(&mut command);
            let pid = qemu.pid();
            (Some(qemu), pid)
        };
        let mut qmp = None;
        wait_until("QEMU's QMP socket", || {
            qmp = Qmp::connect(&qmp_socket);
            qmp.is_some() || gave_up(child, &scratch)
        });
        let mut qmp = qmp.unwrap();
        wait_until("QEMU's vCPU threads", || qmp.vcpus().len() == self.vcpus);

        let pid = process_of(child, &self.binary);
        let virtiofsd_pid = virtiofsd.as_ref().map(Process::pid);
        // It forks when QEMU connects, which QEMU has done by the time it answers, but need not have been noticed.
        let virtiofsd_child = virtiofsd_pid.map(|parent| {
            wait_until("virtiofsd's child", || !children_of(parent).is_empty());
            children_of(parent)[0]
        });
        let sandbox = Sandbox {
            env: self.env,
            id: self.id,
            vm_id,
            pid,
            virtiofsd_pid,
            virtiofsd_child,
            qmp: RefCell::new(qmp),
            started: start_time(pid),
            qemu,
            virtiofsd,
        };
        sandbox.processes().iter().for_each(|pid| self.env.watch(*pid));
        match self.layout {
            Layout::Go | Layout::Template => {
                if !self.wrapper.is_empty() {
                    write_file(&vm_dir.join("pid"), 0o600, &format!("{pid}\n"));
                }
                wait_until("QEMU's pid file", || fs::read_to_string(vm_dir.join("pid")).is_ok_and(|text| text.ends_with('\n')));
                sandbox.write_persist_json(virtiofsd_pid);
            }
            Layout::RuntimeRs => sandbox.write_state_json(Some(pid)),
            Layout::Unnamed => {}
        }
        sandbox
    }

    fn qemu_arguments(&self, vm_id: &str, vm_dir: &Path, qmp_socket: &Path, firmware: &Path) -> Vec<String> {
        let name = self.name.as_deref().unwrap_or(vm_id);
        let debug_threads = if self.named_threads { ",debug-threads=on" } else { "" };
        let accelerator = if self.kvm { "kvm" } else { "tcg,thread=multi" };
        let (qmp, firmware) = (qmp_socket.display(), firmware.display());
        let (vcpus, most) = (self.vcpus, self.vcpus.max(4));
        let pid_file = if matches!(self.layout, Layout::Go | Layout::Template) && self.wrapper.is_empty() {
            format!(" -pidfile {}", vm_dir.join("pid").display())
        } else {
            String::new()
        };
        let text = format!(
            "-name sandbox-{name}{debug_threads} -uuid 2f1e4b5c-9d3a-4c1e-8f70-6a5b4c3d2e1f \
             -machine q35,memory-backend=dimm1 -accel {accelerator} -smp {vcpus},cores={most},threads=1,sockets=1,maxcpus={most} \
             -m 32 -object memory-backend-memfd,id=dimm1,size=32M,share=on \
             -qmp unix:path={qmp},server=on,wait=off -nodefaults -no-user-config -display none -bios {firmware}{pid_file}"
        );
        text.split(' ').map(str::to_owned).collect()
    }
}

impl<'e> Sandbox<'e> {
    /// One that runs already, with virtiofsd; `pid` and start time are QEMU's. Its files are where whoever started it has them.
    pub(crate) fn of_another(env: &'e Env, id: &str, (pid, started): (i32, Option<u64>), virtiofsd: i32, qmp: &Path) -> Self {
        Sandbox {
            env,
            id: id.to_owned(),
            vm_id: id.to_owned(),
            pid,
            virtiofsd_pid: Some(virtiofsd),
            virtiofsd_child: children_of(virtiofsd).first().copied(),
            qmp: RefCell::new(Qmp::connect(qmp).unwrap_or_else(|| panic!("nobody listens at {}", qmp.display()))),
            started,
            qemu: None,
            virtiofsd: None,
        }
    }
}

impl Sandbox<'_> {
    /// The thread of each vCPU, in QEMU's own words.
    pub(crate) fn vcpus(&self) -> BTreeMap<u64, i32> {
        self.qmp.borrow_mut().vcpus()
    }

    pub(crate) fn vcpu_threads(&self) -> BTreeSet<i32> {
        self.vcpus().into_values().collect()
    }

    pub(crate) fn qmp(&self) -> std::cell::RefMut<'_, Qmp> {
        self.qmp.borrow_mut()
    }

    /// The VMM, virtiofsd and its child.
    pub(crate) fn processes(&self) -> BTreeSet<i32> {
        [Some(self.pid), self.virtiofsd_pid, self.virtiofsd_child].into_iter().flatten().collect()
    }

    /// How many descriptors of KVM vCPUs QEMU holds; those of unplugged ones count.
    pub(crate) fn vcpu_descriptors(&self) -> usize {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().flatten();
        let targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("anon_inode:kvm-vcpu:")).count()
    }

    /// The directory that holds what names this sandbox's processes.
    pub(crate) fn runtime_dir(&self, root: &str) -> PathBuf {
        self.env.runtime_dir(root, &self.id)
    }

    pub(crate) fn write_pid_file(&self, text: &str) {
        write_file(&self.runtime_dir("vm").join("pid"), 0o600, text);
    }

    /// `sbs/<sid>/persist.json`, with the keys the Go runtime's has.
    pub(crate) fn write_persist_json(&self, virtiofsd: Option<i32>) {
        self.write_persist(virtiofsd, &json!(null));
    }

    /// The same, which names these containers.
    pub(crate) fn write_persist_json_with(&self, containers: &Value) {
        self.write_persist(self.virtiofsd_pid, containers);
    }

    fn write_persist(&self, virtiofsd: Option<i32>, containers: &Value) {
        let dir = self.runtime_dir("sbs");
        if !dir.exists() {
            self.env.make_runtime_dir("sbs", &self.id);
        }
        let state = json!({
            "State": "running", "SandboxContainer": self.id, "PersistVersion": 2, "AgentState": { "URL": "" },
            "SandboxCgroupPath": "", "OverheadCgroupPath": "",
            "HypervisorState": {
                "Type": "qemu", "UUID": "2f1e4b5c-9d3a-4c1e-8f70-6a5b4c3d2e1f", "APISocket": "",
                "Pid": self.pid, "VirtiofsDaemonPid": virtiofsd.unwrap_or(0), "HotpluggedVCPUs": null,
            },
            "Config": { "HypervisorType": "qemu", "SandboxCgroupOnly": false, "ContainerConfigs": containers },
        });
        write_file(&dir.join("persist.json"), 0o600, &state.to_string());
    }

    /// `kata/<sid>/state.json`, with the keys runtime-rs's has.
    pub(crate) fn write_state_json(&self, pid: Option<i32>) {
        let state = json!({
            "sandbox_type": "virt_container",
            "resource": { "endpoint": [], "cgroup_config": null },
            "hypervisor": {
                "hypervisor_type": "qemu", "pid": pid, "virtiofs_daemon_pid": self.virtiofsd_pid.unwrap_or(0),
                "vm_path": QEMU, "run_dir": self.runtime_dir("kata"), "jailed": false, "id": self.id,
            },
        });
        write_file(&self.runtime_dir("kata").join("state.json"), 0o600, &state.to_string());
    }

    /// What Kata does once a sandbox has ended: its directories go.
    pub(crate) fn forget_runtime_files(&self) {
        for dir in ["vm", "sbs", "kata"].map(|root| self.runtime_dir(root)) {
            let _ = fs::remove_file(&dir);
            let _ = fs::remove_dir_all(&dir);
        }
    }

    pub(crate) fn kill(&mut self) {
        match &mut self.qemu {
            Some(qemu) => qemu.kill(),
            None if self.started == start_time(self.pid) => {
                let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
                wait_until("QEMU's end", || !is_alive(self.pid) || start_time(self.pid) != self.started);
            }
            None => {}
        }
        if let Some(virtiofsd) = &mut self.virtiofsd {
            virtiofsd.kill();
        }
    }

    /// Runs the hook as the Go runtime does once the VM is up, and expects it to say that it placed something.
    #[track_caller]
    pub(crate) fn place(&self, bundle: &Bundle) -> Run {
        let run = self.env.hook("prestart").state(bundle.state(self.pid)).run().succeeded();
        run.logged("placed");
        run
    }

    /// Runs the hook as the Go runtime does at the end of a sandbox or single container.
    #[track_caller]
    pub(crate) fn release(&self, bundle: &Bundle) -> Run {
        self.env.hook("poststop").state(bundle.state_with_id(&self.id, self.pid)).run().succeeded()
    }

    /// The VMM's threads that are no vCPUs.
    pub(crate) fn other_threads(&self) -> BTreeSet<i32> {
        let vcpus = self.vcpu_threads();
        threads_of(self.pid).into_iter().map(|thread| thread.tid).filter(|tid| !vcpus.contains(tid)).collect()
    }

    /// Exactly the vCPU threads are in the constrained groups of this path, and exactly the whole processes in the unconstrained.
    #[track_caller]
    pub(crate) fn assert_placed(&self, group: &str) {
        self.assert_vcpus_in(group);
        for domain in domains_at(group) {
            self.assert_processes_in(&domain);
        }
    }

    /// On v2, wherever the domain is: it holds exactly the processes, and the group in it exactly the vCPU threads.
    #[track_caller]
    pub(crate) fn assert_placed_in_domain(&self, domain: &Group) {
        let vcpus = domain.child("vcpu");
        assert_eq!(vcpus.threads(), self.vcpu_threads(), "the threads in {vcpus:?}");
        self.assert_processes_in(domain);
    }

    #[track_caller]
    fn assert_processes_in(&self, domain: &Group) {
        assert_eq!(domain.processes(), self.processes(), "the processes in {domain:?}");
    }

    #[track_caller]
    pub(crate) fn assert_vcpus_in(&self, group: &str) {
        for controller in CPU_CONTROLLERS {
            let constrained = constrained_at(group, controller);
            assert_eq!(constrained.threads(), self.vcpu_threads(), "the threads in {constrained:?}");
        }
    }

    /// Wherever in its groups vCPU threads are, they are under these limits, and alone; on v2 none is in the domain beside them.
    #[track_caller]
    pub(crate) fn assert_limited(&self, limits: &Limits, point: &str) {
        let vcpus = self.vcpu_threads();
        for domain in unlimited_domains_at(&self.env.group()) {
            assert!(domain.threads().is_disjoint(&vcpus), "a vCPU thread in {domain:?}, which has no limit: {point}");
        }
        for controller in CPU_CONTROLLERS {
            let group = self.env.constrained(controller);
            if group.threads().is_disjoint(&vcpus) {
                continue;
            }
            assert!(group.threads().is_disjoint(&self.other_threads()), "no vCPU thread in {group:?}: {point}");
            match controller {
                "cpu" => assert_eq!(group.quota_and_period(), (limits.quota, limits.period), "{point}"),
                "cpuset" => assert_eq!((group.cpus(), group.mems()), (limits.cpus.clone(), limits.mems.clone()), "{point}"),
                _ => {}
            }
        }
    }

    /// No process of this sandbox has a thread in a group of this name, in any hierarchy.
    #[track_caller]
    pub(crate) fn assert_nowhere_below(&self, group: &str) {
        for pid in self.processes() {
            for thread in threads_of(pid) {
                for hierarchy in mounted() {
                    let place = place_in(thread.tid, hierarchy).unwrap_or_default();
                    assert!(!place.contains(group), "{} ({}) is in {hierarchy:?}:{place}", thread.tid, thread.name);
                }
            }
        }
    }
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The virtiofsd this host has.
pub(crate) fn virtiofsd() -> PathBuf {
    let in_c = PathBuf::from(VIRTIOFSD_IN_C);
    if in_c.exists() { in_c } else { VIRTIOFSD_IN_RUST.into() }
}

/// Starts virtiofsd on a socket that it is handed, as Kata does; it writes no lock file then.
fn start_virtiofsd(env: &Env, socket: &Path) -> Process {
    let listener = UnixListener::bind(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
    let shared = env.dir.join("shared");
    let _ = fs::create_dir(&shared);
    let log = File::create(socket.with_extension("log")).unwrap();
    let mut command = Process::command(virtiofsd());
    command.args(virtiofsd_arguments(&shared));
    Process::spawn(command.stdin(OwnedFd::from(listener)).stdout(log.try_clone().unwrap()).stderr(log))
}

/// For the one this host has, which finds its socket on descriptor 0.
pub(crate) fn virtiofsd_arguments(shared: &Path) -> Vec<String> {
    let words = if virtiofsd() == Path::new(VIRTIOFSD_IN_C) {
        format!("--fd=0 -f -o cache=auto -o no_posix_lock -o source={}", shared.display())
    } else {
        format!("--fd=0 --cache=auto --shared-dir={}", shared.display())
    };
    words.split(' ').map(str::to_owned).collect()
}

/// The process that runs `binary`, which a wrapper may have forked.
pub(super) fn process_of(process: i32, binary: &Path) -> i32 {
    let runs_it = |pid: i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == binary);
    let mut found = None;
    wait_until("what a wrapper starts", || {
        found = std::iter::once(process).chain(children_of(process)).find(|pid| runs_it(*pid));
        found.is_some()
    });
    found.unwrap()
}

fn gave_up(qemu: i32, scratch: &Path) -> bool {
    assert!(is_alive(qemu), "QEMU gave up: {}", fs::read_to_string(scratch.join("log")).unwrap_or_default());
    false
}
