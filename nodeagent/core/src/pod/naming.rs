//! The names by which pods, sandboxes and containers recognise each other across restarts: labels and annotations on what
//! the runtime keeps, log paths, container hash. They are the ones other kubelets write, so either can adopt the other's pods.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};

pub const LABEL_POD_NAME: &str = "io.kubernetes.pod.name";
pub const LABEL_POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
pub const LABEL_CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub const ANNOTATION_HASH: &str = "io.kubernetes.container.hash";
pub const ANNOTATION_RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub const ANNOTATION_TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const ANNOTATION_TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub const ANNOTATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
pub const ANNOTATION_CONFIG_SOURCE: &str = "kubernetes.io/config.source";
pub const ANNOTATION_CONFIG_HASH: &str = "kubernetes.io/config.hash";
pub const ANNOTATION_CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// A pod whose spec came from a file on this node rather than from the API.
pub fn is_static(pod: &Pod) -> bool {
    annotation(pod, ANNOTATION_CONFIG_SOURCE).is_some_and(|source| source != "api")
}

/// The API's image of a static pod; its spec is never run from here.
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, ANNOTATION_CONFIG_MIRROR).is_some()
}

pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default()
}

pub fn main_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default()
}

/// An ephemeral container as the container it runs as.
pub fn ephemeral_containers(pod: &Pod) -> Vec<Container> {
    let list = pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default();
    list.iter().map(ephemeral_as_container).collect()
}

pub fn ephemeral_as_container(from: &EphemeralContainer) -> Container {
    Container {
        name: from.name.clone(),
        image: from.image.clone(),
        image_pull_policy: from.image_pull_policy.clone(),
        command: from.command.clone(),
        args: from.args.clone(),
        working_dir: from.working_dir.clone(),
        env: from.env.clone(),
        env_from: from.env_from.clone(),
        volume_mounts: from.volume_mounts.clone(),
        security_context: from.security_context.clone(),
        stdin: from.stdin,
        stdin_once: from.stdin_once,
        tty: from.tty,
        termination_message_path: from.termination_message_path.clone(),
        termination_message_policy: from.termination_message_policy.clone(),
        ..Container::default()
    }
}

/// Any container of the pod by name.
pub fn find_container(pod: &Pod, wanted: &str) -> Option<Container> {
    init_containers(pod)
        .iter()
        .chain(main_containers(pod))
        .find(|c| c.name == wanted)
        .cloned()
        .or_else(|| ephemeral_containers(pod).into_iter().find(|c| c.name == wanted))
}

pub fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false)
}

pub fn restart_policy(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always")
}

/// The field path the API's events carry for a container, e.g. `spec.containers{web}`.
pub fn field_path(pod: &Pod, container: &str) -> String {
    let list = if init_containers(pod).iter().any(|c| c.name == container) {
        "initContainers"
    } else if main_containers(pod).iter().any(|c| c.name == container) {
        "containers"
    } else {
        "ephemeralContainers"
    };
    format!("spec.{list}{{{container}}}")
}

/// Changes exactly when a running container must be replaced: by name and image, the only fields an update may change.
pub fn container_hash(container: &Container) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    let image = container.image.as_deref().unwrap_or_default();
    for byte in container.name.bytes().chain([0]).chain(image.bytes()) {
        hash ^= u32::from(byte);
        hash = hash.wrapping_mul(0x0100_0193);
    }
    format!("{hash:x}")
}

/// The pod's folder below the log root.
pub fn log_folder(namespace: &str, name: &str, uid: &str) -> String {
    format!("{namespace}_{name}_{uid}")
}

/// A container's log file below its pod's log folder.
pub fn log_file(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

/// The hostname a pod sees: `spec.hostname`, else its name, cut to the kernel's 63 bytes.
pub fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let wanted = spec
        .and_then(|s| s.hostname_override.as_deref().or(s.hostname.as_deref()))
        .filter(|h| !h.is_empty())
        .unwrap_or_else(|| name(pod));
    let cut: String = wanted.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_string()
}

/// `host.subdomain.namespace.svc.domain`, when the pod asks for a subdomain.
pub fn subdomain_fqdn(pod: &Pod, cluster_domain: &str) -> Option<String> {
    let subdomain = pod.spec.as_ref()?.subdomain.as_deref().filter(|s| !s.is_empty())?;
    Some(format!("{}.{subdomain}.{}.svc.{cluster_domain}", hostname(pod), namespace(pod)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_follows_name_and_image_only() {
        let mut container = Container { name: "a".into(), image: Some("x:1".into()), ..Container::default() };
        let first = container_hash(&container);
        container.working_dir = Some("/".into());
        assert_eq!(container_hash(&container), first);
        container.image = Some("x:2".into());
        assert_ne!(container_hash(&container), first);
    }

    #[test]
    fn long_names_become_legal_hostnames() {
        let mut pod = Pod::default();
        pod.metadata.name = Some(format!("{}-.tail", "a".repeat(62)));
        assert_eq!(hostname(&pod), "a".repeat(62));
    }
}
