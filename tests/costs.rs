//! What a run may cost at most, in what is the same on every machine: system calls, moves, instructions, bytes. Times are for
//! `make bench`, which measures the same runs, and are asserted nowhere.
//!
//! A bound is what was counted when it was last lowered, and a little more for threads that come and go. Who has to raise one says in
//! the change what it buys. What begins with the process's start is asked of the binary that ships, which `make build` makes.

mod testenv;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use testenv::*;

/// Of the whole process, where the state names the sandbox and where config.json has to be read for it.
const CALLS_FOR_NO_VM_SANDBOX: [(Engine, usize); 2] = [(Engine::CriO, 34), (Engine::Single, 38)];
/// On cgroup v1, QEMU with two vCPUs on KVM and virtiofsd.
const CALLS_TO_PLACE: usize = 790;
const CALLS_TO_PLACE_AGAIN: usize = 470;
const CALLS_TO_RELEASE: usize = 500;
/// For each vCPU more: on cgroup v1 three of them are the moves themselves; where all is on v2, the VMM is moved as a whole, and its threads
/// need not be asked where they are. One is for its descriptor: KVM's own list alone might be of another VM of the same VMM's.
const CALLS_PER_VCPU: usize = 13;
const CALLS_PER_VCPU_ON_V2: usize = 8;
const INSTRUCTIONS_FOR_NO_VM_SANDBOX: u64 = 125_000;
const BYTES: u64 = 949_000;

/// The binary that ships, if it was built from the sources that stand here.
fn shipped() -> Option<PathBuf> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    if !top.join("src").is_dir() {
        return skipped("no sources");
    }
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let binary = top.join("build/kata-cgroup-hook");
    let newest = sources(&top.join("src")).iter().filter_map(|path| changed(path)).max();
    if changed(&binary).is_none_or(|built: SystemTime| Some(built) < newest) {
        return skipped("no build of these sources");
    }
    Some(binary)
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// A run for a container of a pod that is no VM's.
fn no_vm_sandbox<'e>(env: &'e Env, engine: Engine, hook: &Path) -> Hook<'e> {
    let bundle = env.bundle_of(engine, Kind::Workload, &env.name, &env.name);
    env.hook("createRuntime").binary(hook).state(bundle.state(1))
}

/// The calls of a run without those by which a debug build checks each descriptor before it closes it.
fn calls(env: &Env, hook: Hook) -> Vec<Call> {
    let is_own = |call: &Call| call.name != "fcntl" || !call.line.contains("F_GETFD");
    calls_of(env, hook).into_iter().filter(is_own).collect()
}

/// All calls of a run, from the start of its process to its end.
fn all_calls(env: &Env, hook: Hook) -> Vec<Call> {
    let strace = Strace::inject(env, &[]);
    hook.under(strace.wrapper()).run().succeeded();
    strace.trace().lines().filter_map(Call::parse).collect()
}

fn is_move(call: &Call) -> bool {
    call.name == "write" && call.is_on_group() && ["tasks", "cgroup.procs", "cgroup.threads"].contains(&call.file_name())
}

#[test]
fn a_container_that_is_no_vm_sandbox_is_let_through_in_few_calls() {
    let (Some(env), Some(hook)) = (Env::new(), shipped()) else { return };
    for (engine, bound) in CALLS_FOR_NO_VM_SANDBOX {
        let calls = all_calls(&env, no_vm_sandbox(&env, engine, &hook));
        let lines: Vec<&String> = calls.iter().map(|call| &call.line).collect();
        assert!(calls.len() <= bound, "{engine:?}: {}: {lines:#?}", calls.len());
    }
}

#[test]
fn a_container_that_is_no_vm_sandbox_is_let_through_in_few_instructions() {
    let (Some(env), Some(hook)) = (Env::new(), shipped()) else { return };
    if !is_installed("valgrind") {
        return skipped("no valgrind").unwrap_or_default();
    }
    let callgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"];
    let run = no_vm_sandbox(&env, Engine::CriO, &hook).under(callgrind).run();
    let collected = run.stderr.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse::<u64>().ok());
    assert!(run.code == Some(0) && collected.is_some_and(|number| number <= INSTRUCTIONS_FOR_NO_VM_SANDBOX), "{run:#?}");
}

#[test]
fn what_is_placed_is_placed_again_without_a_write() {
    let Some(env) = Env::new() else { return };
    let sandbox = env.sandbox().virtiofsd().start();
    let bundle = env.bundle();
    sandbox.place(&bundle);
    let calls = calls_of(&env, env.hook("poststart").state(bundle.state(sandbox.pid)));
    // The weight of /kata is all tests': one that runs beside this may have changed it.
    let is_own = |call: &&Call| call.is_on_group() && !call.path.ends_with("/kata/cpu.weight");
    let written: Vec<&Call> =
        calls.iter().filter(is_own).filter(|call| call.name == "write" || call.name == "mkdirat").collect();
    assert!(written.is_empty(), "{written:#?}");
}

#[test]
fn a_sandbox_is_placed_and_released_in_few_calls() {
    let (Some(env), Some(_)) = (Env::with_kvm(), Env::with("cpu", Version::V1)) else { return };
    let sandbox = env.kvm_sandbox().virtiofsd().start();
    let bundle = env.bundle();
    let state = bundle.state_with_id(&sandbox.id, sandbox.pid);
    let stages = [
        ("place", "createRuntime", CALLS_TO_PLACE),
        ("place again", "poststart", CALLS_TO_PLACE_AGAIN),
        ("release", "poststop", CALLS_TO_RELEASE),
    ];
    // Other tests make and remove the directories that all sandboxes share, which is work: the least of a few is without.
    let rounds = [(); 3].map(|()| stages.map(|(_, stage, _)| calls(&env, env.hook(stage).state(&state)).len()));
    for (index, (what, _, bound)) in stages.into_iter().enumerate() {
        let calls = rounds.iter().map(|counts| counts[index]).min().unwrap();
        // On an emulated CPU not all vCPUs have run when the hook looks, and it looks again.
        let bound = if stride() > 1 { bound * 5 / 4 } else { bound };
        assert!(calls <= bound, "{what}: {calls} of {bound}");
    }
}

#[test]
fn many_vcpus_are_moved_in_one_burst_and_few_calls() {
    const MANY: usize = 64;
    let Some(env) = Env::with_kvm() else { return };
    let sandboxes = [env.kvm_sandbox().start(), env.kvm_sandbox().id("many").vcpus(MANY).start()];
    let is_on_v2 = |controller: &str| Hierarchy::of(controller).is_some_and(|hierarchy| hierarchy.version == Version::V2);
    if is_on_v2("cpu") {
        // As in an engine's service: the root of v2 is like no other group.
        let service = Group::new("cpu", &format!("{}/service", env.top()));
        service.make();
        for sandbox in &sandboxes {
            service.take_in(sandbox.pid);
        }
    }
    let place = |sandbox: &Sandbox| {
        let bundle = env.bundle_of(Engine::Single, Kind::Workload, &sandbox.id, &sandbox.id);
        let calls = calls(&env, env.hook("createRuntime").state(bundle.state(sandbox.pid)));
        sandbox.release(&bundle);
        calls
    };
    // As above, the least of a few.
    let [of_few, of_many] =
        sandboxes.each_ref().map(|sandbox| [(); 3].map(|()| place(sandbox)).into_iter().min_by_key(Vec::len).unwrap());
    let moves: Vec<usize> = (0..of_many.len()).filter(|index| is_move(&of_many[*index])).collect();
    let burst = of_many[moves[0]..].iter().take_while(|call| is_move(call)).count();
    assert_eq!(burst, moves.len(), "{:#?}", of_many[moves[0] + burst]);
    // cpu and cpuacct may be one hierarchy; where it is v2, its vCPUs' group takes the VMM as a whole, which the others leave.
    let groups: BTreeSet<Group> = CPU_CONTROLLERS.map(|controller| env.constrained(controller)).into();
    let of_v1 = groups.iter().filter(|group| group.hierarchy.version == Version::V1).count();
    assert!((of_v1 * MANY..(of_v1 + 1) * MANY).contains(&moves.len()), "{}", moves.len());
    let more = (of_many.len() - of_few.len()) / (MANY - 2);
    let bound = if CONTROLLERS.into_iter().all(is_on_v2) { CALLS_PER_VCPU_ON_V2 } else { CALLS_PER_VCPU };
    let bound = if stride() > 1 { bound * 5 / 4 } else { bound };
    assert!(more <= bound, "{more} of {bound}");
}

#[test]
fn the_binary_is_small() {
    let Some(hook) = shipped() else { return };
    let bytes = fs::metadata(hook).unwrap().len();
    assert!(bytes <= BYTES, "{bytes} of {BYTES}");
}
