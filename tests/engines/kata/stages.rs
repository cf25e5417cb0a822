//! What happens at a container's create, start and delete, and where among it each generation runs which hooks.
//!
//! Go 1.x: cli/create.go, cli/delete.go of kata-containers/runtime. Go 3.x: src/runtime/pkg/katautils/create.go,
//! virtcontainers/sandbox.go (startVM), pkg/containerd-shim-v2/{start,delete}.go. runtime-rs: crates/runtimes/virt_container/src/
//! sandbox.rs and container_manager/manager.rs.

use super::container::Container;
use super::hooks::{Network, Run};
use super::vm::Vm;
use super::{Generation, Kata};

pub(super) fn perform(kata: &Kata, verb: &str, container: &Container) -> Result<(), String> {
    match verb {
        "create" if container.is_sandbox() => create_sandbox(kata, container),
        "create" => create_workload(kata, container),
        "start" => start(kata, container),
        "delete" => delete(kata, container),
        _ => Err(format!("no such verb: {verb}")),
    }
}

fn create_sandbox(kata: &Kata, container: &Container) -> Result<(), String> {
    let hook = Run::of(kata, container)?;
    match kata.generation {
        Generation::Go1 => {
            hook.at("prestart", None, Network::Pods)?;
            Vm::start(kata, container).save(kata);
        }
        Generation::Go3 => {
            let vm = Vm::start(kata, container);
            let placed = hook.at("prestart", Some(vm.pid), Network::Hosts);
            let placed = placed.and_then(|()| hook.at("createRuntime", Some(vm.pid), Network::Hosts));
            if placed.is_err() {
                vm.stop();
                vm.forget(kata);
                return placed;
            }
            vm.save(kata);
        }
        Generation::RuntimeRs => {
            let vm = Vm::start(kata, container);
            for stage in ["prestart", "createRuntime"] {
                hook.at(stage, Some(vm.pid), Network::Hosts)?;
            }
            vm.save(kata);
            hook.at("createContainer", Some(vm.pid), Network::Pods)?;
        }
    }
    Ok(())
}

/// A container of a pod whose VM runs. Both Go runtimes have it in the guest, and in their files, before its hooks run;
/// runtime-rs runs neither prestart nor createRuntime for it.
fn create_workload(kata: &Kata, container: &Container) -> Result<(), String> {
    let (hook, vm) = (Run::of(kata, container)?, Vm::load(kata, &container.sandbox)?);
    match kata.generation {
        Generation::Go1 => {
            vm.save(kata);
            hook.at("prestart", None, Network::Pods)
        }
        Generation::Go3 => {
            vm.save(kata);
            hook.at("prestart", Some(vm.pid), Network::Hosts)?;
            hook.at("createRuntime", Some(vm.pid), Network::Hosts)
        }
        Generation::RuntimeRs => hook.at("createContainer", Some(vm.pid), Network::Pods),
    }
}

fn start(kata: &Kata, container: &Container) -> Result<(), String> {
    let hook = Run::of(kata, container)?;
    match kata.generation {
        Generation::Go1 => hook.at("poststart", None, Network::Pods),
        Generation::Go3 => hook.or_a_warning("poststart", Network::Pods),
        Generation::RuntimeRs => hook.at("poststart", Some(Vm::load(kata, &container.sandbox)?.pid), Network::Hosts),
    }
}

/// The VM is stopped before the hooks of the sandbox's own container are run, and both Go runtimes have removed their files
/// by then.
fn delete(kata: &Kata, container: &Container) -> Result<(), String> {
    let (hook, vm) = (Run::of(kata, container)?, Vm::load(kata, &container.sandbox)?);
    let is_sandbox = container.is_sandbox();
    if is_sandbox {
        vm.stop();
    }
    match kata.generation {
        Generation::Go1 | Generation::Go3 if is_sandbox => vm.forget(kata),
        Generation::Go1 | Generation::Go3 => vm.save_without(kata, container),
        Generation::RuntimeRs => {}
    }
    let done = match kata.generation {
        Generation::Go1 => hook.at("poststop", None, Network::Hosts),
        Generation::Go3 => hook.or_a_warning("poststop", Network::Hosts),
        Generation::RuntimeRs => hook.at("poststop", Some(vm.pid), Network::Hosts),
    };
    if kata.generation == Generation::RuntimeRs && is_sandbox {
        vm.forget(kata);
    }
    done
}
