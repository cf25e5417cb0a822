//! Random lives: sandboxes, containers, deaths, kills and losses in any order, and after each step what must hold.
//!
//! Under `cargo test` for some seconds, under `make soak` for as long as KCH_SOAK_SECONDS says. The seed is printed; KCH_SOAK_SEED
//! runs the same sequence again, as far as the kernel's own timing allows.

mod testenv;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use testenv::*;

/// A generator that needs no more than its seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..count`.
    fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.next() % count as u64).unwrap()
    }
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}: {text:?} is no number")))
}

/// Prints what is done, for whom KCH_SOAK_TRACE is set.
fn trace(what: impl FnOnce() -> String) {
    if std::env::var_os("KCH_SOAK_TRACE").is_some() {
        println!("{}", what());
    }
}

/// What may happen.
#[derive(Clone, Copy, Debug)]
enum Event {
    SandboxBegins,
    ContainerBegins,
    ManyBegin,
    ContainerEnds,
    VcpuIsPlugged,
    ThreadsAreMovedAway,
    HookIsKilled,
    RecordIsLost,
    VmDies,
    SandboxEnds,
    Reconcile,
}

/// How often each comes, of the sum of these.
const EVENTS: &[(Event, usize)] = &[
    (Event::SandboxBegins, 3),
    (Event::ContainerBegins, 8),
    (Event::ManyBegin, 1),
    (Event::ContainerEnds, 5),
    (Event::VcpuIsPlugged, 1),
    (Event::ThreadsAreMovedAway, 1),
    (Event::HookIsKilled, 4),
    (Event::RecordIsLost, 1),
    (Event::VmDies, 1),
    (Event::SandboxEnds, 1),
    (Event::Reconcile, 3),
];

const MOST_SANDBOXES: usize = 4;

/// A sandbox and what is true of it.
struct Life<'e> {
    sandbox: Sandbox<'e>,
    /// The containers that run, with the hundredths of a CPU that they ask for; `None` is without limit.
    containers: BTreeMap<String, (Bundle, Option<u64>)>,
    /// What the last of them asked for, which stays in force while there is none.
    last: Option<u64>,
    /// Its threads are where the last run has put them.
    is_settled: bool,
    /// No record was lost, so that the limit is the very sum.
    is_exact: bool,
    plugged: usize,
    /// It was placed at least once.
    was_placed: bool,
}

struct Soak<'e> {
    env: &'e Env,
    dice: Dice,
    lives: Vec<Life<'e>>,
    names: u64,
    foreign: (Group, Process, String),
    counts: BTreeMap<&'static str, usize>,
}

impl<'e> Soak<'e> {
    fn new(env: &'e Env, seed: u64) -> Soak<'e> {
        let foreign = Group::new("cpu", &format!("{}/pod/foreign", env.top()));
        foreign.make();
        foreign.set_quota(70_000);
        let process = Process::spawn(Process::command("sleep").arg("infinity"));
        foreign.take_in(process.pid());
        let place = place_of(process.pid(), "cpu").unwrap();
        Soak { env, dice: Dice(seed), lives: Vec::new(), names: 0, foreign: (foreign, process, place), counts: BTreeMap::new() }
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("{:04x}", self.names)
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn pick(&mut self) -> Event {
        let mut point = self.dice.below(EVENTS.iter().map(|(_, weight)| weight).sum());
        for (event, weight) in EVENTS {
            match point.checked_sub(*weight) {
                Some(rest) => point = rest,
                None => return *event,
            }
        }
        unreachable!("the point is below the sum")
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::SandboxBegins if self.lives.len() < MOST_SANDBOXES => self.begin_sandbox(),
            Event::Reconcile => self.reconcile(),
            Event::ManyBegin => self.begin_many(),
            _ if self.lives.is_empty() => self.begin_sandbox(),
            event => {
                let index = self.dice.below(self.lives.len());
                self.happen(event, index);
            }
        }
    }

    fn happen(&mut self, event: Event, index: usize) {
        match event {
            Event::ContainerBegins | Event::SandboxBegins => {
                let bundle = self.new_container(index);
                self.hook("createRuntime", index, &bundle);
                if self.dice.below(2) == 0 {
                    self.hook("poststart", index, &bundle);
                }
            }
            Event::ContainerEnds => self.end_container(index),
            Event::VcpuIsPlugged => {
                let life = &mut self.lives[index];
                if life.plugged == 0 {
                    life.sandbox.qmp().plug_cpu_2();
                    (life.plugged, life.is_settled) = (1, false);
                    self.count("vCPUs plugged in");
                }
            }
            Event::ThreadsAreMovedAway => {
                let life = &mut self.lives[index];
                for top in everywhere("/") {
                    top.take_in(life.sandbox.pid);
                }
                life.is_settled = false;
                self.count("times moved away");
            }
            Event::HookIsKilled => self.kill_hook(index),
            Event::RecordIsLost => {
                let record = self.env.state_dir().join(format!("{}.json", self.lives[index].sandbox.id));
                if fs::remove_file(record).is_ok() {
                    self.lives[index].is_exact = false;
                    self.count("records lost");
                }
            }
            Event::VmDies | Event::SandboxEnds => self.end_sandbox(index, matches!(event, Event::SandboxEnds)),
            Event::ManyBegin | Event::Reconcile => unreachable!("no sandbox's own"),
        }
    }

    fn begin_sandbox(&mut self) {
        let id = self.name();
        let sandbox = if self.dice.below(2) == 0 { self.env.sandbox().virtiofsd() } else { self.env.sandbox() };
        let sandbox = sandbox.id(&id).start();
        let index = self.lives.len();
        self.lives.push(Life {
            sandbox,
            containers: BTreeMap::new(),
            last: None,
            is_settled: false,
            is_exact: true,
            plugged: 0,
            was_placed: false,
        });
        self.count("sandboxes");
        if self.dice.below(2) == 0 {
            return self.kill_hook(index);
        }
        let bundle = self.new_container(index);
        self.hook("createRuntime", index, &bundle);
    }

    /// A container that is there from now on, for all that any hook can know.
    fn new_container(&mut self, index: usize) -> Bundle {
        let id = format!("c{}", self.name());
        let limit = if self.dice.below(12) == 0 { None } else { Some(3 + self.dice.below(150) as u64) };
        let period = [50_000_u64, 100_000, 200_000][self.dice.below(3)];
        let mut cpu = json!({ "shares": 2 + self.dice.below(4000), "period": period });
        if let Some(hundredths) = limit {
            cpu["quota"] = json!(hundredths * period / 100);
        }
        let life = &mut self.lives[index];
        let bundle = self.env.bundle_of(Engine::CriO, Kind::Workload, &life.sandbox.id, &id).cpu(cpu);
        life.containers.insert(id, (bundle.clone(), limit));
        self.count("containers");
        bundle
    }

    /// The OCI state as Go Kata writes it, for which every container's end is the sandbox's.
    fn state_at(stage: &str, sandbox: &Sandbox, bundle: &Bundle) -> String {
        if stage == "createRuntime" { bundle.state(sandbox.pid) } else { bundle.state_with_id(&sandbox.id, sandbox.pid) }
    }

    fn hook(&mut self, stage: &str, index: usize, bundle: &Bundle) {
        let sandbox = &self.lives[index].sandbox;
        let run = self.env.hook(stage).state(Self::state_at(stage, sandbox, bundle)).run().succeeded();
        trace(|| format!("   {stage} of {}: {:?}", bundle.id, run.log.first().map(|line| &line.raw)));
        self.lives[index].is_settled = true;
        self.lives[index].was_placed = true;
        self.count("hooks");
    }

    /// A container of each sandbox begins at the same time.
    fn begin_many(&mut self) {
        let bundles: Vec<Bundle> = (0..self.lives.len()).map(|index| self.new_container(index)).collect();
        let start =
            |(life, bundle): (&Life, &Bundle)| self.env.hook("createRuntime").state(bundle.state(life.sandbox.pid)).start();
        let started: Vec<_> = self.lives.iter().zip(&bundles).map(start).collect();
        for run in started {
            run.wait().succeeded();
        }
        for life in &mut self.lives {
            (life.is_settled, life.was_placed) = (true, true);
        }
        self.count("times all at once");
    }

    fn end_container(&mut self, index: usize) {
        let life = &mut self.lives[index];
        let Some((_, (bundle, limit))) = life.containers.pop_first() else { return };
        life.last = limit;
        let was_last = life.containers.is_empty();
        if self.dice.below(8) == 0 {
            // The engine has cleaned up already.
            fs::remove_dir_all(bundle.dir.parent().unwrap()).unwrap();
        }
        let was_settled = self.lives[index].is_settled;
        self.hook("poststop", index, &bundle);
        // Where nothing remains it is left as it was.
        self.lives[index].is_settled = was_settled || !was_last;
        let _ = fs::remove_dir_all(bundle.dir.parent().unwrap());
    }

    /// A run ends in the middle of a call that changes something.
    fn kill_hook(&mut self, index: usize) {
        let call = ["write", "mkdirat", "unlinkat", "renameat", "fsetxattr"][self.dice.below(5)];
        // The first run of a sandbox makes many such calls, a later one few.
        let is_first = !self.lives[index].was_placed;
        let count = 1 + self.dice.below(if is_first && call == "write" { 30 } else { 5 });
        let strace = Strace::inject(self.env, &[&format!("{call}:signal=KILL:when={count}")]);
        let is_end = self.dice.below(3) == 0 && !self.lives[index].containers.is_empty();
        let (stage, bundle) = if is_end {
            let (bundle, limit) = self.lives[index].containers.pop_first().unwrap().1;
            self.lives[index].last = limit;
            ("poststop", bundle)
        } else {
            ("createRuntime", self.new_container(index))
        };
        let sandbox = &self.lives[index].sandbox;
        let run = self.env.hook(stage).state(Self::state_at(stage, sandbox, &bundle)).under(strace.wrapper()).run();
        trace(|| {
            format!("   {stage} of {}, {call} {count}: {:?} {:?}", bundle.id, run.code, run.log.first().map(|line| &line.raw))
        });
        if run.code == Some(0) {
            self.lives[index].is_settled |= !is_end || !self.lives[index].containers.is_empty();
        } else {
            self.lives[index].is_settled = false;
            self.count("hooks killed");
        }
        self.lives[index].was_placed |= run.code == Some(0);
        // Killed before it could write that down, it is as if it had not been told.
        self.lives[index].is_exact &= run.code == Some(0);
        match (run.code, is_end, self.dice.below(2)) {
            (Some(0), false, _) => {}
            // The engine tries again,
            (_, false, 0) => self.hook("createRuntime", index, &bundle),
            // or gives that container up.
            (_, false, _) => {
                self.lives[index].containers.remove(&bundle.id);
                let _ = fs::remove_dir_all(bundle.dir.parent().unwrap());
            }
            (_, true, _) => {
                let _ = fs::remove_dir_all(bundle.dir.parent().unwrap());
            }
        }
    }

    fn end_sandbox(&mut self, index: usize, is_told: bool) {
        let mut life = self.lives.swap_remove(index);
        life.sandbox.kill();
        life.sandbox.forget_runtime_files();
        if is_told {
            let pause = self.env.bundle_of(Engine::CriO, Kind::Sandbox, &life.sandbox.id, &life.sandbox.id);
            self.env.hook("poststop").state(pause.state_with_id(&life.sandbox.id, life.sandbox.pid)).run().succeeded();
            let of_it = |group: &Group| group.path.contains(&format!("kata_{}", life.sandbox.id));
            assert!(!groups_named(&life.sandbox.id).iter().any(of_it), "left of {}", life.sandbox.id);
        }
        for (bundle, _) in life.containers.values() {
            fs::remove_dir_all(bundle.dir.parent().unwrap()).unwrap();
        }
        self.count("sandboxes ended");
    }

    fn reconcile(&mut self) {
        let run = self.env.hook("reconcile").run();
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
        for life in &mut self.lives {
            // One whose record is lost waits for its next hook.
            let has_record = self.env.state_dir().join(format!("{}.json", life.sandbox.id)).exists();
            life.is_settled |= has_record && life.was_placed;
        }
        let live = |group: &&Group| self.lives.iter().any(|life| group.path.contains(&life.sandbox.id));
        let of_a_sandbox = |group: &&Group| group.path.contains(&format!("kata_{}-", self.env.name));
        let groups = groups_named(&self.env.name);
        let orphans: Vec<&Group> = groups.iter().filter(of_a_sandbox).filter(|group| !live(group)).collect();
        assert!(orphans.is_empty(), "without a sandbox: {orphans:#?}; {run:#?}");
        self.count("reconciled");
    }

    /// What must hold after every step.
    fn check(&self) {
        for life in &self.lives {
            let group = format!("{}/pod/kata_{}", self.env.top(), life.sandbox.id);
            let cpu = constrained_at(&group, "cpu");
            let asked = life.containers.values().map(|(_, limit)| *limit);
            let last = Some(life.last).filter(|_| life.containers.is_empty());
            let limits: Option<Vec<u64>> = asked.chain(last).collect();
            let sum = limits.map(|limits| limits.iter().sum::<u64>());
            if life.is_settled {
                life.sandbox.assert_placed(&group);
                // In hundredths of a CPU; quotas are whole microseconds.
                let cap = cpu.cap().map(|(quota, period)| (quota * 1000).div_ceil(period * 10));
                // Where no container is left, the last limit stays: of one that was told last, if that is known.
                let is_sure = life.is_exact || !life.containers.is_empty();
                match (sum, cap) {
                    (Some(sum), Some(cap)) if sum > 0 => {
                        assert!(cap >= sum || !is_sure, "{}: {cap} of {sum} hundredths of a CPU", life.sandbox.id);
                        assert!(cap == sum || !life.is_exact, "{}: {cap}, and not {sum}", life.sandbox.id);
                    }
                    (Some(sum), None) if sum > 0 => assert!(!life.is_exact, "{}: no limit, and not {sum}", life.sandbox.id),
                    (None, Some(cap)) if is_sure => panic!("{}: {cap}, and one has no limit", life.sandbox.id),
                    _ => {}
                }
            }
            // Whatever else: nobody is in a group that has not got its limit.
            let is_in = cpu.exists() && !cpu.threads().is_empty();
            let is_limited = !is_in || cpu.cap().is_some();
            assert!(is_limited || sum.is_none() || !life.is_exact, "{}: moved, and no limit set", life.sandbox.id);
        }
        let (group, process, place) = &self.foreign;
        assert_eq!((group.quota(), place_of(process.pid(), "cpu").as_ref()), (Some(70_000), Some(place)), "what is not ours");
    }
}

#[test]
fn whatever_happens_the_invariants_hold() {
    let Some(env) = Env::new() else { return };
    let seed = number_from("KCH_SOAK_SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into());
    let seconds = number_from("KCH_SOAK_SECONDS").unwrap_or(15);
    println!("soak: KCH_SOAK_SEED={seed} KCH_SOAK_SECONDS={seconds}");
    let mut soak = Soak::new(&env, seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut steps = 0;
    while Instant::now() < end {
        let event = soak.pick();
        trace(|| format!("{steps}: {event:?}"));
        soak.step(event);
        soak.check();
        steps += 1;
    }
    while !soak.lives.is_empty() {
        soak.end_sandbox(0, false);
    }
    soak.reconcile();
    soak.foreign.1.kill();
    assert!(steps > 0);
    println!("soak: {steps} steps, {:?}", soak.counts);
}
