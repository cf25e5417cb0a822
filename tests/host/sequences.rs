//! Whole lives: every hook that a runtime runs for a sandbox, in its order, from before the VM starts until after it has ended.
//!
//! Which stages there are, with which id, pid and annotations, before or after the VM's start, each generation of Kata has habits of
//! its own about; and which containers have hooks at all depends on the engine. The habits are in [`Generation`] and [`Way`], and
//! the pod's story is told once: after every step it must be placed, under the limit that the containers present make, and after the
//! last nothing may be left. A second part tells the stories in which containers come and go in an unhappy order.

use std::fs;

use serde_json::{Value, json};

use crate::testenv::*;

/// A line of Kata's releases that calls hooks in one way (kata-containers: virtcontainers/hook, containerd-shim-v2, kata-sys-util).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Generation {
    /// Kata 1.x: a command that the engine runs, once a stage.
    Go1,
    /// Go from 3.1 on: a shim, which starts QEMU itself.
    Go3,
    /// The same in Rust.
    Rs,
}

use Generation::{Go1, Go3, Rs};

const GENERATIONS: [Generation; 3] = [Go1, Go3, Rs];

impl Generation {
    /// Kata 1.x runs the first container's prestart before there is a VM. The others start the VM first.
    fn begins_with_hooks(self) -> bool {
        self == Go1
    }

    /// Of the first container of a sandbox, which is the pause container or the only one.
    fn first_stages(self) -> &'static [&'static str] {
        match self {
            Go1 => &["prestart"],
            Go3 => &["prestart", "createRuntime"],
            Rs => &["prestart", "createRuntime", "createContainer"],
        }
    }

    /// Of every later one, the VM being there. The Rust runtime looks at the first container's prestart and createRuntime alone.
    fn later_stages(self) -> &'static [&'static str] {
        match self {
            Go1 => &["prestart"],
            Go3 => &["prestart", "createRuntime"],
            Rs => &["createContainer"],
        }
    }

    /// The Go runtime's shim publishes the pause container's exit before it stops the VM: the last poststop may come before the end.
    fn ends_with_hooks(self) -> bool {
        self == Go3
    }

    fn layout(self) -> Layout {
        if self == Rs { Layout::RuntimeRs } else { Layout::Go }
    }

    /// What the hook gets on stdin.
    fn state(self, stage: &str, bundle: &Bundle, sandbox: &str, pids: &Pids) -> String {
        let is_create = !stage.starts_with("post");
        // The Go runtime's last two stages know the sandbox's id alone, with the container's bundle.
        let id = if is_create { bundle.id.as_str() } else { sandbox };
        match self {
            // Nobody's annotations before 2.4, and the number of a thread of the command's, which is gone soon after.
            Go1 => bundle.state_without_annotations(id, pids.caller),
            Go3 => bundle.state_with_id(id, if is_create { pids.vmm.unwrap_or(pids.caller) } else { pids.caller }),
            Rs => {
                let status = match stage {
                    "poststart" => "running",
                    "poststop" => "stopped",
                    _ => "creating",
                };
                // Remembered, so that it may be of a process that is long gone.
                bundle.state_of_runtime_rs(status, pids.vmm.unwrap_or(0))
            }
        }
    }
}

/// The numbers that a runtime gives as the state's pid.
struct Pids {
    /// A thread of the runtime's own.
    caller: i32,
    /// The VMM's, once it has been started.
    vmm: Option<i32>,
}

/// How an engine has hooks run, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// CRI-O's hooks.d, containerd's NRI: never for the pause container.
    WorkloadsAlone(Engine),
    /// containerd with hooks in the base spec of all its containers.
    PauseToo(Engine),
    /// podman, docker: the one container is its own sandbox.
    Single,
}

/// One sandbox and its runtime, from before its beginning.
struct Life<'e> {
    env: &'e Env,
    generation: Generation,
    /// First, so that the VM ends before the shim that would have to reap it.
    sandbox: Option<Sandbox<'e>>,
    shim: Option<Shim<'e>>,
    pids: Pids,
}

impl<'e> Life<'e> {
    fn new(env: &'e Env, generation: Generation) -> Life<'e> {
        env.configure(&env.shim_row());
        if generation.begins_with_hooks() {
            // The directory is there before the VM is.
            env.make_runtime_dir("sbs", &env.name);
        }
        let shim = (generation != Go1).then(|| env.shim(&env.name));
        let caller = shim.as_ref().map_or(gone_thread(), |shim| shim.thread);
        Life { env, generation, sandbox: None, shim, pids: Pids { caller, vmm: None } }
    }

    fn start_vm(&mut self) {
        let starter = self.env.sandbox().layout(self.generation.layout());
        let sandbox = match &mut self.shim {
            Some(shim) => starter.start_in(shim),
            None => starter.start(),
        };
        if self.generation == Go1 {
            // It came with 1.10.
            fs::remove_file(sandbox.runtime_dir("sbs").join("persist.json")).unwrap();
        }
        self.pids.vmm = Some(sandbox.pid);
        self.sandbox = Some(sandbox);
    }

    fn end_vm(&mut self) {
        let sandbox = self.sandbox.as_mut().unwrap();
        sandbox.kill();
        sandbox.forget_runtime_files();
    }

    fn vm(&self) -> &Sandbox<'e> {
        self.sandbox.as_ref().unwrap()
    }

    /// One hook, which must never fail: neither may a container that was to be created, nor is anything to be said of one that ended.
    #[track_caller]
    fn call(&mut self, stage: &str, bundle: &Bundle) -> Run {
        let stdin = self.generation.state(stage, bundle, &self.env.name, &self.pids);
        let hook = self.env.hook(stage).state(stdin);
        // The Rust runtime gives a hook no environment.
        let hook = if self.generation == Rs { hook.under(["env", "-i"]) } else { hook };
        let run = match &mut self.shim {
            Some(shim) => shim.run_hook(&hook),
            None => hook.run(),
        };
        run.succeeded()
    }

    /// A container that is created and started.
    #[track_caller]
    fn join(&mut self, bundle: &Bundle) {
        for stage in self.generation.later_stages() {
            self.call(stage, bundle);
        }
        self.call("poststart", bundle);
    }

    /// Its end: the runtime runs the hook while the VM lives, and the engine removes the bundle afterwards.
    #[track_caller]
    fn leave(&mut self, bundle: &Bundle) {
        self.call("poststop", bundle);
        fs::remove_dir_all(&bundle.dir).unwrap();
    }

    /// Everybody is where they belong, under this limit.
    #[track_caller]
    fn assert_placed_under(&self, limits: &Limits, when: &str) {
        self.vm().assert_placed(&self.env.group());
        assert_eq!(self.env.limits(), *limits, "{:?}: {when}", self.generation);
    }

    /// No group, no record, no lock.
    #[track_caller]
    fn assert_nothing_left(&self) {
        self.env.assert_no_groups();
        let left: Vec<_> =
            fs::read_dir(self.env.state_dir()).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "{:?}: {left:?}", self.generation);
    }

    /// A container of some other sandbox, whose VM has not been started yet: who is left over goes with whichever hook comes next.
    #[track_caller]
    fn another_sandboxs_hook(&mut self) {
        let other = format!("{}-other", self.env.name);
        self.env.make_runtime_dir("vm", &other);
        let bundle = self.env.bundle_of(Engine::Single, Kind::Workload, &other, &other);
        wait_until("the sandbox that ended to be released", || {
            self.env.hook("createRuntime").state(bundle.state(0)).run().succeeded();
            !self.env.state_dir().join(format!("{}.json", self.env.name)).exists()
        });
    }
}

/// The number of a thread of this process that is gone: to whom Kata 1.x's state refers by the time anybody looks.
fn gone_thread() -> i32 {
    std::thread::spawn(|| nix::unistd::gettid().as_raw()).join().unwrap()
}

fn quota(quota: u64) -> Limits {
    Limits::none().quota(quota)
}

/// `linux.resources.cpu` of a container that may use this much, in µs of 100 ms.
fn cpu(quota: u64) -> Value {
    json!({ "quota": quota, "period": 100_000 })
}

/// A pod with two containers that come one after the other and go in the same order.
fn a_pods_life(generation: Generation, way: Way, engine: Engine) {
    let Some(env) = Env::new() else { return };
    let mut life = Life::new(&env, generation);
    let pause = (way != Way::WorkloadsAlone(engine)).then(|| env.bundle_of(engine, Kind::Sandbox, &env.name, &env.name));

    if let Some(pause) = pause.as_ref().filter(|_| generation.begins_with_hooks()) {
        for stage in generation.first_stages() {
            life.call(stage, pause).logged("not-yet");
        }
        env.assert_no_groups();
    }
    life.start_vm();
    if let Some(pause) = &pause {
        let stages = if generation.begins_with_hooks() { &[] } else { generation.first_stages() };
        for stage in stages.iter().chain(&["poststart"]) {
            life.call(stage, pause);
            life.assert_placed_under(&Limits::none(), stage);
        }
    }

    let first = env.bundle_of(engine, Kind::Workload, &env.name, "first");
    for stage in generation.later_stages().iter().chain(&["poststart"]) {
        life.call(stage, &first);
        life.assert_placed_under(&quota(150_000).shares(1536), &format!("the first container's {stage}"));
    }
    let second = env.bundle_of(engine, Kind::Workload, &env.name, "second").cpu(cpu(50_000));
    for stage in generation.later_stages().iter().chain(&["poststart"]) {
        life.call(stage, &second);
        life.assert_placed_under(&quota(200_000).shares(1536), &format!("the second container's {stage}"));
    }
    life.leave(&first);
    life.assert_placed_under(&quota(50_000), "the first container's end");
    life.leave(&second);
    life.assert_placed_under(&quota(50_000), "the last container's end: its limits stay");

    match &pause {
        Some(pause) if generation.ends_with_hooks() => {
            life.call("poststop", pause).logged("released");
            life.assert_nothing_left();
            life.end_vm();
        }
        Some(pause) => {
            life.end_vm();
            life.call("poststop", pause).logged("released");
        }
        None => {
            life.end_vm();
            life.another_sandboxs_hook();
        }
    }
    life.assert_nothing_left();
}

/// A container that is its own sandbox, one hook a stage.
fn a_single_containers_life(generation: Generation) {
    let Some(env) = Env::new() else { return };
    let mut life = Life::new(&env, generation);
    let bundle = env.bundle();
    let limits = quota(150_000).shares(1536);
    let create_stages = |life: &mut Life| {
        for stage in generation.first_stages() {
            let run = life.call(stage, &bundle);
            if life.sandbox.is_some() {
                life.assert_placed_under(&limits, stage);
            } else {
                run.logged("not-yet");
                env.assert_no_groups();
            }
        }
    };
    if generation.begins_with_hooks() {
        create_stages(&mut life);
        life.start_vm();
    } else {
        life.start_vm();
        create_stages(&mut life);
    }
    life.call("poststart", &bundle);
    life.assert_placed_under(&limits, "poststart");
    life.end_vm();
    life.call("poststop", &bundle).logged("released");
    life.assert_nothing_left();
}

fn lives(way: Way) {
    for generation in GENERATIONS {
        match way {
            Way::WorkloadsAlone(engine) | Way::PauseToo(engine) => a_pods_life(generation, way, engine),
            Way::Single => a_single_containers_life(generation),
        }
    }
}

#[test]
fn a_pod_of_cri_o_lives_and_ends_by_the_hooks_of_its_workloads() {
    lives(Way::WorkloadsAlone(Engine::CriO));
}

#[test]
fn a_pod_of_containerd_lives_and_ends_by_the_hooks_of_its_workloads() {
    lives(Way::WorkloadsAlone(Engine::Containerd));
}

#[test]
fn a_pod_of_containerd_whose_pause_container_has_hooks_ends_with_its_poststop() {
    lives(Way::PauseToo(Engine::Containerd));
}

#[test]
fn a_pod_of_dockershim_whose_pause_container_has_hooks_ends_with_its_poststop() {
    lives(Way::PauseToo(Engine::Dockershim));
}

#[test]
fn a_single_container_lives_and_ends_by_its_own_hooks() {
    lives(Way::Single);
}

/// For each generation: a VM that is there already, as no hook is run for its pause container; and that ends without one.
fn in_each_generation(story: impl Fn(&Env, &mut Life)) {
    each_generation_in_a_pod_of(None, story);
}

/// The same in a pod that kubelet has made before, with a limit of its own in µs of 100 ms.
fn each_generation_in_a_pod_of(limit: Option<u64>, story: impl Fn(&Env, &mut Life)) {
    for generation in GENERATIONS {
        let Some(env) = Env::new() else { return };
        if let Some(limit) = limit {
            premake(&format!("{}/pod", env.top()));
            env.pod("cpu").set_quota(limit);
        }
        let mut life = Life::new(&env, generation);
        life.start_vm();
        story(&env, &mut life);
        life.end_vm();
        life.another_sandboxs_hook();
        if limit.is_some() {
            let pods = everywhere(&format!("{}/pod", env.top()));
            assert!(pods.iter().all(|pod| pod.exists() && pod.children().is_empty()), "{generation:?}: {pods:?}");
            // Who has just ended may be in one for a moment.
            wait_until("the pods to go", || everywhere(&env.top()).iter().all(Group::remove_tree));
        }
        life.assert_nothing_left();
    }
}

/// A container of CRI-O's, in the n-th attempt to run it.
fn container(env: &Env, name: &str, attempt: u32, cpu: Value) -> Bundle {
    let bundle = env.bundle_of(Engine::CriO, Kind::Workload, &env.name, &format!("{name}-{attempt}")).cpu(cpu);
    named(bundle, Engine::CriO, name, attempt)
}

/// The name that a container has in its pod, as its engine writes it down.
fn named(bundle: Bundle, engine: Engine, name: &str, attempt: u32) -> Bundle {
    match engine {
        Engine::CriO => {
            bundle.annotate("io.kubernetes.cri-o.Metadata", &json!({ "name": name, "attempt": attempt }).to_string())
        }
        _ => bundle.annotate("io.kubernetes.cri.container-name", name),
    }
}

#[test]
fn init_containers_that_end_before_the_others_start_leave_no_demand_behind() {
    in_each_generation(|env, life| {
        for (name, demand) in [("init-a", 200_000), ("init-b", 30_000)] {
            let init = container(env, name, 0, cpu(demand));
            life.join(&init);
            life.assert_placed_under(&quota(demand), name);
            life.leave(&init);
            life.assert_placed_under(&quota(demand), &format!("after {name}"));
        }
        let app = container(env, "app", 0, cpu(50_000));
        life.join(&app);
        life.assert_placed_under(&quota(50_000), "the first container proper");
        let proxy = container(env, "proxy", 0, cpu(25_000));
        life.join(&proxy);
        life.assert_placed_under(&quota(75_000), "the containers proper");
        life.leave(&app);
        life.leave(&proxy);
    });
}

#[test]
fn a_container_that_is_started_again_and_again_is_never_free_in_between() {
    in_each_generation(|env, life| {
        for attempt in 0..4 {
            let app = container(env, "app", attempt, cpu(50_000));
            for stage in life.generation.later_stages().iter().chain(&["poststart", "poststop"]) {
                life.call(stage, &app);
                life.assert_placed_under(&quota(50_000), &format!("attempt {attempt}: {stage}"));
            }
            fs::remove_dir_all(&app.dir).unwrap();
        }
    });
}

#[test]
fn a_poststop_that_comes_after_the_successor_has_joined_takes_nothing_from_it() {
    for engine in [Engine::CriO, Engine::Containerd] {
        in_each_generation(|env, life| {
            let make = |name: &str, attempt: u32, demand| {
                let bundle = env.bundle_of(engine, Kind::Workload, &env.name, &format!("{name}-{attempt}")).cpu(cpu(demand));
                named(bundle, engine, name, attempt)
            };
            let (old, sidecar) = (make("app", 0, 100_000), make("sidecar", 0, 50_000));
            life.join(&old);
            life.join(&sidecar);
            life.assert_placed_under(&quota(150_000), "both");
            let new = make("app", 1, 80_000);
            for stage in life.generation.later_stages().iter().chain(&["poststart"]) {
                life.call(stage, &new);
                life.assert_placed_under(&quota(130_000), &format!("the successor's {stage}"));
            }
            life.leave(&old);
            life.assert_placed_under(&quota(130_000), "the late poststop");
            life.leave(&sidecar);
            life.assert_placed_under(&quota(80_000), "the other container's end");
            life.leave(&new);
            life.assert_placed_under(&quota(80_000), "the last one's end");
        });
    }
}

#[test]
fn a_sidecar_without_a_limit_frees_the_pod_for_as_long_as_it_runs() {
    for unlimited in [json!({}), json!({ "quota": -1, "period": 100_000 }), json!({ "quota": 0 })] {
        in_each_generation(|env, life| {
            let app = container(env, "app", 0, cpu(100_000));
            life.join(&app);
            life.assert_placed_under(&quota(100_000), "the app alone");
            let sidecar = container(env, "sidecar", 0, unlimited.clone());
            life.join(&sidecar);
            life.assert_placed_under(&Limits::none(), "with the sidecar");
            life.leave(&sidecar);
            life.assert_placed_under(&quota(100_000), "the sidecar's end");
            life.leave(&app);
        });
    }
}

/// The vCPUs have this much and no more, by a group of their own or by the pod's, which is left as it is.
#[track_caller]
fn assert_capped(life: &Life, cap: u64, pods: u64, when: &str) {
    let env = life.env;
    life.vm().assert_placed(&env.group());
    let acting = env.constrained("cpu").cap();
    let is_it = acting.is_some_and(|(quota, period)| quota * 100_000 == cap * period);
    assert!(is_it, "{:?}: {when}: {acting:?} instead of {cap}", life.generation);
    assert_eq!(env.pod("cpu").quota_and_period(), (Some(pods), 100_000), "{:?}: {when}", life.generation);
}

#[test]
fn a_pod_whose_own_limit_is_below_the_sum_has_that_and_no_container_fails() {
    each_generation_in_a_pod_of(Some(100_000), |env, life| {
        let one = container(env, "one", 0, cpu(80_000));
        life.join(&one);
        assert_capped(life, 80_000, 100_000, "one");
        let two = container(env, "two", 0, cpu(80_000));
        life.join(&two);
        assert_capped(life, 100_000, 100_000, "both");
        life.leave(&one);
        assert_capped(life, 80_000, 100_000, "the first one's end");
        life.leave(&two);
    });
}

#[test]
fn an_init_container_and_an_app_of_one_cpu_each_share_a_pod_of_one_cpu() {
    each_generation_in_a_pod_of(Some(100_000), |env, life| {
        let init = container(env, "init", 0, cpu(100_000));
        life.join(&init);
        assert_capped(life, 100_000, 100_000, "init");
        let app = container(env, "app", 0, cpu(100_000));
        // CRI-O may run the first one's poststop only after the second has been created.
        life.join(&app);
        assert_capped(life, 100_000, 100_000, "both");
        life.leave(&init);
        assert_capped(life, 100_000, 100_000, "the app alone");
        life.leave(&app);
    });
}
