//! Who is this: which sandbox, and which part of it.
//!
//! The annotations decide, config.json's before the state's; without any it is a single container that is its own sandbox. Only
//! that last case uses the state's `id`, which is the sandbox's own there at every stage.
//!
//! A pod's author can add annotations: CRI-O copies them onto every container. So where two engines' keys are there and
//! disagree, those of the engine that made the bundle count, and nobody is a pause container but under the sandbox's own id.

use std::path::Path;

use crate::oci::state::{Annotations, is_id};

/// What a container is to its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The pause container: its end is the sandbox's end.
    Sandbox,
    /// One of a pod's containers: it comes and goes while the sandbox stays.
    Workload,
    /// A container that is its own sandbox, as docker, podman and ctr start them.
    Single,
}

/// A sandbox id and what this container is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Always a plain file name.
    pub id: String,
    /// What the container is that the hook runs for.
    pub role: Role,
}

impl Sandbox {
    /// The sandbox that `annotations` name for the container `id` with the bundle at `bundle`; `None` if they name none.
    pub fn named_by(annotations: &Annotations, id: &str, bundle: &Path) -> Option<Self> {
        let containerd = named(annotations.containerd_type.as_deref(), annotations.containerd_sandbox.as_deref());
        let crio = named(annotations.crio_type.as_deref(), annotations.crio_sandbox.as_deref());
        let docker = named(annotations.docker_type.as_deref(), annotations.docker_sandbox.as_deref());
        let is_of_crio = bundle.ends_with("userdata");
        let sandbox = if is_of_crio { crio.or(containerd) } else { containerd.or(crio) }.or(docker)?;
        (sandbox.role != Role::Sandbox || sandbox.id == id).then_some(sandbox)
    }

    /// A container that is its own sandbox.
    pub fn single(id: &str) -> Self {
        Self { id: id.to_owned(), role: Role::Single }
    }
}

/// What one engine's keys say.
fn named(kind: Option<&str>, id: Option<&str>) -> Option<Sandbox> {
    let role = match kind? {
        "sandbox" | "podsandbox" => Role::Sandbox,
        "container" => Role::Workload,
        _ => return None,
    };
    let id = id.filter(|id| is_id(id))?.to_owned();
    Some(Sandbox { id, role })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What container `s` with a bundle of containerd's is.
    fn sandbox(json: &str) -> Option<(String, Role)> {
        sandbox_of(json, "s", "/run/containerd/io.containerd.runtime.v2.task/k8s.io/s")
    }

    fn sandbox_of(json: &str, id: &str, bundle: &str) -> Option<(String, Role)> {
        let annotations = serde_json::from_str(json).unwrap();
        Sandbox::named_by(&annotations, id, Path::new(bundle)).map(|sandbox| (sandbox.id, sandbox.role))
    }

    #[test]
    fn all_three_families_of_annotations_name_a_sandbox() {
        let containerd = r#"{"io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-id":"s"}"#;
        assert_eq!(sandbox(containerd), Some(("s".into(), Role::Sandbox)));
        let crio = r#"{"io.kubernetes.cri-o.ContainerType":"container","io.kubernetes.cri-o.SandboxID":"s"}"#;
        assert_eq!(sandbox(crio), Some(("s".into(), Role::Workload)));
        let docker = r#"{"io.kubernetes.docker.type":"podsandbox","io.kubernetes.sandbox.id":"s"}"#;
        assert_eq!(sandbox(docker), Some(("s".into(), Role::Sandbox)));
    }

    #[test]
    fn where_keys_disagree_those_of_the_engine_that_made_the_bundle_count() {
        let both = r#"{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"a",
                       "io.kubernetes.cri-o.ContainerType":"container","io.kubernetes.cri-o.SandboxID":"b"}"#;
        assert_eq!(sandbox(both), Some(("a".into(), Role::Workload)));
        let crio = "/run/containers/storage/overlay-containers/c/userdata";
        assert_eq!(sandbox_of(both, "c", crio), Some(("b".into(), Role::Workload)));
        // dockershim's, which say nothing of who made the bundle, come last.
        let docker = r#""io.kubernetes.docker.type":"container","io.kubernetes.sandbox.id":"d""#;
        for (other, id) in [
            (r#""io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"a""#, "a"),
            (r#""io.kubernetes.cri-o.ContainerType":"container","io.kubernetes.cri-o.SandboxID":"b""#, "b"),
        ] {
            for bundle in ["/run/containerd/io.containerd.runtime.v2.task/k8s.io/c", crio, "/b"] {
                assert_eq!(sandbox_of(&format!("{{{docker},{other}}}"), "c", bundle), Some((id.into(), Role::Workload)));
            }
        }
    }

    #[test]
    fn nobody_is_the_pause_container_of_a_sandbox_but_under_its_id() {
        let pause = r#"{"io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-id":"victim"}"#;
        assert_eq!(sandbox_of(pause, "evil", "/b"), None);
        assert_eq!(sandbox_of(pause, "victim", "/b"), Some(("victim".into(), Role::Sandbox)));
    }

    #[test]
    fn an_unknown_type_a_missing_id_or_one_that_is_a_path_names_nobody() {
        assert_eq!(sandbox("{}"), None);
        assert_eq!(sandbox(r#"{"io.kubernetes.cri.container-type":"vm","io.kubernetes.cri.sandbox-id":"s"}"#), None);
        assert_eq!(sandbox(r#"{"io.kubernetes.cri.container-type":"container"}"#), None);
        assert_eq!(sandbox(r#"{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"../s"}"#), None);
    }
}
