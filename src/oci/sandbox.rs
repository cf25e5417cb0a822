//! Who is this: which sandbox, and which part of it.
//!
//! The annotations decide, config.json's before the state's; without any it is a single container that is its own sandbox. Only
//! that last case uses the state's `id`, which is the sandbox's own there at every stage.

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
    /// The sandbox that `annotations` name; `None` if they name none, or one that is no id.
    pub fn named_by(annotations: &Annotations) -> Option<Self> {
        let families = [
            (&annotations.containerd_type, &annotations.containerd_sandbox),
            (&annotations.crio_type, &annotations.crio_sandbox),
            (&annotations.docker_type, &annotations.docker_sandbox),
        ];
        families.into_iter().find_map(|(kind, id)| {
            let role = match kind.as_deref()? {
                "sandbox" | "podsandbox" => Role::Sandbox,
                "container" => Role::Workload,
                _ => return None,
            };
            let id = id.as_ref().filter(|id| is_id(id))?;
            Some(Self { id: id.clone(), role })
        })
    }

    /// A container that is its own sandbox.
    pub fn single(id: &str) -> Self {
        Self { id: id.to_owned(), role: Role::Single }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(json: &str) -> Option<(String, Role)> {
        Sandbox::named_by(&serde_json::from_str(json).unwrap()).map(|sandbox| (sandbox.id, sandbox.role))
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
    fn containerd_is_asked_before_cri_o() {
        let both = r#"{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"a",
                       "io.kubernetes.cri-o.ContainerType":"sandbox","io.kubernetes.cri-o.SandboxID":"b"}"#;
        assert_eq!(sandbox(both), Some(("a".into(), Role::Workload)));
    }

    #[test]
    fn an_unknown_type_a_missing_id_or_one_that_is_a_path_names_nobody() {
        assert_eq!(sandbox("{}"), None);
        assert_eq!(sandbox(r#"{"io.kubernetes.cri.container-type":"vm","io.kubernetes.cri.sandbox-id":"s"}"#), None);
        assert_eq!(sandbox(r#"{"io.kubernetes.cri.container-type":"container"}"#), None);
        assert_eq!(sandbox(r#"{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"../s"}"#), None);
    }
}
