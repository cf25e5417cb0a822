//! A sandbox and everything that is run on it: the hook at each occasion, and the floor for the same steps.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::floor;
use crate::testenv::{
    Bundle, CPU_CONTROLLERS, Engine, Env, Group, Guest, Hook, Kind, Run, Sandbox, StandIn, Version, constrained_at, domains_at,
    write_file,
};

/// A program with its stdin, and what is known of a run of it beforehand.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) command: Vec<OsString>,
    pub(crate) stdin: PathBuf,
    /// The `result` that it logs.
    pub(crate) logs: Option<&'static str>,
    /// Where the sandbox is afterwards; `None` where it stays.
    pub(crate) leaves: Option<Leaves>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaves {
    Placed,
    Released,
}

pub(crate) const TRUE: &str = "/bin/true";
pub(crate) const NOTHING: &str = "floor: nothing";
pub(crate) const NO_SANDBOX: &str = "not a VM sandbox";
pub(crate) const NO_SANDBOX_BY_CONFIG: &str = "not a VM sandbox, by config.json";
pub(crate) const PLACE: &str = "place";
pub(crate) const AGAIN: &str = "place again";
pub(crate) const RELEASE: &str = "release";
pub(crate) const FLOOR_PLACE: &str = "floor: place";
pub(crate) const FLOOR_RELEASE: &str = "floor: release";

pub(crate) struct Stage<'e> {
    pub(crate) env: &'e Env,
    pub(crate) sandbox: Sandbox<'e>,
    /// In an order in which each finds the sandbox as it needs it.
    pub(crate) subjects: Vec<Subject>,
    /// Where the VM comes from; removed after it has ended.
    _service: Option<Service>,
}

/// A group as that of an engine's service. On v1 a VM's processes may as well come from the root, as here everything does; on v2 the root is
/// like no other group.
struct Service(Group);

impl Service {
    fn of(sandbox: &Sandbox) -> Option<Service> {
        let group = Group::new("cpu", &format!("/{}-service", sandbox.id));
        (group.hierarchy.version == Version::V2).then(|| {
            group.make();
            sandbox.processes().into_iter().for_each(|pid| group.take_in(pid));
            Service(group)
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.0.remove_tree();
    }
}

impl<'e> Stage<'e> {
    pub(crate) fn set(env: &'e Env, vcpus: usize, kvm: bool) -> Stage<'e> {
        let starter = if kvm { env.kvm_sandbox() } else { env.sandbox() };
        let sandbox = starter.vcpus(vcpus).guest(Guest::Idle).virtiofsd().start();
        let service = Service::of(&sandbox);
        let bundle = env.bundle();
        let mut subjects = vec![
            Subject { command: vec!["/bin/true".into()], ..Subject::of(env, TRUE, "") },
            Subject::of_floor(env, NOTHING, "nothing", ""),
            no_sandbox(env, NO_SANDBOX, Engine::CriO),
            no_sandbox(env, NO_SANDBOX_BY_CONFIG, Engine::Single),
        ];
        subjects.extend(work(env, &env.name, &bundle, sandbox.pid));
        Stage { env, sandbox, subjects, _service: service }
    }

    fn subject(&self, name: &str) -> &Subject {
        self.subjects.iter().find(|subject| subject.name == name).unwrap_or_else(|| panic!("no subject {name}"))
    }

    /// What has to be run before `subject` can be run a second time.
    pub(crate) fn undoing(&self, subject: &Subject) -> Option<&Subject> {
        Some(self.subject(match subject.name {
            PLACE => RELEASE,
            RELEASE => PLACE,
            FLOOR_PLACE => FLOOR_RELEASE,
            FLOOR_RELEASE => FLOOR_PLACE,
            _ => return None,
        }))
    }

    /// The sandbox is where the last run had to bring it.
    pub(crate) fn assert_left(&self, leaves: Leaves) {
        match leaves {
            Leaves::Placed => self.sandbox.assert_placed(&self.env.group()),
            Leaves::Released => {
                let group = self.env.group();
                let constrained = CPU_CONTROLLERS.map(|controller| constrained_at(&group, controller));
                let left: Vec<Group> = constrained.into_iter().chain(domains_at(&group)).filter(Group::exists).collect();
                assert!(left.is_empty(), "groups are left: {left:?}");
            }
        }
    }
}

/// What is done to a stand-in for a VM: place and release, by the hook and by the floor.
pub(crate) fn of_stand_in(env: &Env, stand_in: &StandIn) -> Vec<Subject> {
    let bundle = env.bundle_of(Engine::Single, Kind::Workload, &stand_in.id, &stand_in.id);
    let subjects = work(env, &stand_in.id, &bundle, stand_in.pid()).into_iter();
    subjects.filter(|subject| subject.name != AGAIN).collect()
}

/// The hook places, places again and releases; then the floor does what the hook has said that it would do.
fn work(env: &Env, id: &str, bundle: &Bundle, pid: i32) -> Vec<Subject> {
    let place = Subject::of_hook(env, PLACE, id, &env.hook("createRuntime"), &bundle.state(pid), Some("placed"));
    let again = Subject::of_hook(env, AGAIN, id, &env.hook("poststart"), &bundle.state_with_id(id, pid), Some("unchanged"));
    let release = Subject::of_hook(env, RELEASE, id, &env.hook("poststop"), &bundle.state_with_id(id, pid), Some("released"));

    let to_place = floor::script(&env.hook("createRuntime").state(bundle.state(pid)).dry().run().steps());
    env.hook("createRuntime").state(bundle.state(pid)).run().succeeded().logged("placed");
    let dry: Run = env.hook("poststop").state(bundle.state_with_id(id, pid)).dry().run();
    let to_release = floor::script(&dry.steps());
    env.hook("poststop").state(bundle.state_with_id(id, pid)).run().succeeded().logged("released");

    vec![
        Subject { leaves: Some(Leaves::Placed), ..place },
        again,
        Subject { leaves: Some(Leaves::Released), ..release },
        Subject { leaves: Some(Leaves::Placed), ..Subject::of_floor(env, FLOOR_PLACE, &format!("{id}.place"), &to_place) },
        Subject {
            leaves: Some(Leaves::Released),
            ..Subject::of_floor(env, FLOOR_RELEASE, &format!("{id}.release"), &to_release)
        },
    ]
}

/// The hook of a container like a thousand others: with a config.json of the usual length, in an engine that says which sandbox it
/// is of, or does not.
fn no_sandbox(env: &Env, name: &'static str, engine: Engine) -> Subject {
    let id = format!("{}-plain-{engine:?}", env.name);
    let mut bundle = env.bundle_of(engine, Kind::Workload, &id, &id);
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": (0..400).map(|number| json!({ "names": [format!("call_{number}")], "action": "SCMP_ACT_ALLOW" })).collect::<Vec<_>>(),
    });
    let bundle = bundle.write();
    Subject::of_hook(env, name, &id, &env.hook("createRuntime"), &bundle.state(1), None)
}

impl Subject {
    fn of(env: &Env, name: &'static str, stdin: &str) -> Subject {
        let file = env.dir.join(format!("stdin.{}", name.replace(['/', ' '], "-")));
        write_file(&file, 0o600, stdin);
        Subject { name, command: Vec::new(), stdin: file, logs: None, leaves: None }
    }

    fn of_hook(env: &Env, name: &'static str, id: &str, hook: &Hook, state: &str, logs: Option<&'static str>) -> Subject {
        let stdin = env.dir.join(format!("{id}.{}.json", name.replace(' ', "-")));
        write_file(&stdin, 0o600, state);
        Subject { name, command: hook.command_line(), stdin, logs, leaves: None }
    }

    pub(crate) fn of_floor(env: &Env, name: &'static str, file: &str, script: &str) -> Subject {
        let stdin = env.dir.join(format!("{file}.floor"));
        fs::write(&stdin, script).expect("a script for the floor");
        Subject { name, command: vec![crate::measure::floor().into()], stdin, logs: None, leaves: None }
    }
}
