//! The security context that holds for one container: its own fields over the pod's.

use k8s_openapi::api::core::v1::{Capabilities, Container, Pod, SeccompProfile};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effective {
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub run_as_non_root: bool,
    pub privileged: bool,
    pub read_only_root: bool,
    pub no_new_privileges: bool,
    pub capabilities: Option<Capabilities>,
    pub seccomp: Option<SeccompProfile>,
    pub unmasked_proc: bool,
}

pub fn effective(pod: &Pod, container: &Container) -> Effective {
    let of_pod = pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged.unwrap_or(false);
    Effective {
        run_as_user: own.run_as_user.or(of_pod.run_as_user),
        run_as_group: own.run_as_group.or(of_pod.run_as_group),
        run_as_non_root: own.run_as_non_root.or(of_pod.run_as_non_root).unwrap_or(false),
        privileged,
        read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        no_new_privileges: own.allow_privilege_escalation == Some(false) && !privileged,
        capabilities: own.capabilities,
        seccomp: own.seccomp_profile.or(of_pod.seccomp_profile),
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
    }
}

/// The user an image runs as by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageUser {
    Uid(i64),
    Name(String),
}

/// Refuses a root user where `runAsNonRoot` is set, in the words users search for.
pub fn verify_non_root(pod: &Pod, container: &Container, image: &ImageUser) -> Result<(), String> {
    let context = effective(pod, container);
    if !context.run_as_non_root {
        return Ok(());
    }
    let name = &container.name;
    match (context.run_as_user, image) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy (container: {name})")),
        (Some(_), _) => Ok(()),
        (None, ImageUser::Uid(0)) => {
            Err(format!("container has runAsNonRoot and image will run as root (container: {name})"))
        }
        (None, ImageUser::Uid(_)) => Ok(()),
        (None, ImageUser::Name(user)) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (container: {name})"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_containers_fields_win_and_root_is_refused() {
        let pod: Pod =
            serde_json::from_value(json!({"spec":{"securityContext":{"runAsNonRoot":true,"runAsUser":5},
            "containers":[{"name":"a"},{"name":"b","securityContext":{"runAsUser":0}}]}}))
            .unwrap();
        let containers = &pod.spec.as_ref().unwrap().containers;
        assert!(verify_non_root(&pod, &containers[0], &ImageUser::Uid(0)).is_ok());
        let error = verify_non_root(&pod, &containers[1], &ImageUser::Uid(5)).unwrap_err();
        assert!(error.contains("breaks non-root policy"));
    }
}
