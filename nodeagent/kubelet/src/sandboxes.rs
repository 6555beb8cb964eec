//! A pod's sandbox configuration for the runtime.
//!
//! Hazards, each met in the field: a host-network pod must leave the hostname empty; a privileged container needs a
//! privileged sandbox; without a cgroup parent the runtime's pod statistics fail.

use std::collections::HashMap;

use k8s_cri::v1::*;
use k8s_openapi::api::core::v1::{Pod, SeccompProfile};
use keelson_nodeagent_core::pod::{dns, naming, qos, security};

use crate::context::Node;

pub fn config(node: &Node, pod: &Pod, attempt: u32) -> PodSandboxConfig {
    let dns_servers: Vec<String> = node.config.cluster_dns.iter().map(ToString::to_string).collect();
    let resolver = dns::resolver(pod, &dns_servers, &node.config.cluster_domain, &node.resolver);
    let (namespace, name, uid) = (naming::namespace(pod), naming::name(pod), naming::uid(pod));
    let mut labels: HashMap<String, String> =
        pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    labels.extend(identity(pod));
    let mut annotations: HashMap<String, String> =
        pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect();
    let source = if naming::is_static(pod) { "file" } else { "api" };
    annotations.insert(naming::ANNOTATION_CONFIG_SOURCE.into(), source.into());
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: uid.into(),
            namespace: namespace.into(),
            attempt,
        }),
        hostname: if naming::host_network(pod) { String::new() } else { hostname(node, pod) },
        log_directory: node.config.pod_log_dir(namespace, name, uid).to_string_lossy().into_owned(),
        dns_config: Some(DnsConfig {
            servers: resolver.servers,
            searches: resolver.searches,
            options: resolver.options,
        }),
        port_mappings: port_mappings(pod),
        labels,
        annotations,
        linux: Some(linux(node, pod)),
        windows: None,
    }
}

fn hostname(node: &Node, pod: &Pod) -> String {
    let as_fqdn = pod.spec.as_ref().and_then(|s| s.set_hostname_as_fqdn).unwrap_or(false);
    let fqdn = naming::subdomain_fqdn(pod, &node.config.cluster_domain).filter(|_| as_fqdn);
    fqdn.unwrap_or_else(|| naming::hostname(pod))
}

/// The labels by which a restarted agent finds its pods again.
pub fn identity(pod: &Pod) -> HashMap<String, String> {
    HashMap::from([
        (naming::LABEL_POD_NAME.into(), naming::name(pod).into()),
        (naming::LABEL_POD_NAMESPACE.into(), naming::namespace(pod).into()),
        (naming::LABEL_POD_UID.into(), naming::uid(pod).into()),
    ])
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    let all = naming::init_containers(pod)
        .iter()
        .filter(|c| naming::is_sidecar(c))
        .chain(naming::main_containers(pod));
    all.flat_map(|c| c.ports.iter().flatten())
        .map(|port| PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            } as i32,
            container_port: port.container_port,
            // The host's own network has nothing to map.
            host_port: if naming::host_network(pod) { 0 } else { port.host_port.unwrap_or(0) },
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

/// Which namespaces the pod's processes share with whom.
pub fn namespaces(pod: &Pod) -> NamespaceOption {
    let spec = pod.spec.as_ref();
    let on = |value: Option<bool>| value.unwrap_or(false);
    let host_or_pod = |host: bool| if host { NamespaceMode::Node } else { NamespaceMode::Pod } as i32;
    let pid = if on(spec.and_then(|s| s.host_pid)) {
        NamespaceMode::Node
    } else if on(spec.and_then(|s| s.share_process_namespace)) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    NamespaceOption {
        network: host_or_pod(naming::host_network(pod)),
        pid: pid as i32,
        ipc: host_or_pod(on(spec.and_then(|s| s.host_ipc))),
        ..NamespaceOption::default()
    }
}

fn linux(node: &Node, pod: &Pod) -> LinuxPodSandboxConfig {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let all = naming::init_containers(pod).iter().chain(naming::main_containers(pod));
    let privileged = all.into_iter().any(|c| security::effective(pod, c).privileged);
    let id = |value: Option<i64>| value.map(|value| Int64Value { value });
    let mut groups = context.and_then(|c| c.supplemental_groups.clone()).unwrap_or_default();
    groups.extend(context.and_then(|c| c.fs_group));
    let security = LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        run_as_user: id(context.and_then(|c| c.run_as_user)),
        run_as_group: id(context.and_then(|c| c.run_as_group.filter(|_| c.run_as_user.is_some()))),
        supplemental_groups: groups,
        privileged,
        seccomp: Some(seccomp(context.and_then(|c| c.seccomp_profile.as_ref()), privileged)),
        ..LinuxSandboxSecurityContext::default()
    };
    let sysctls = context.and_then(|c| c.sysctls.clone()).unwrap_or_default();
    LinuxPodSandboxConfig {
        cgroup_parent: node.config.cgroup(&qos::cgroup_path(pod)),
        security_context: Some(security),
        sysctls: sysctls.into_iter().map(|s| (s.name, s.value)).collect(),
        ..LinuxPodSandboxConfig::default()
    }
}

/// The runtime's default filter unless the pod says otherwise: a hardened node's default.
pub fn seccomp(profile: Option<&SeccompProfile>, privileged: bool) -> SecurityProfile {
    use security_profile::ProfileType;
    let kind = match profile.map(|p| p.type_.as_str()) {
        Some("Unconfined") => ProfileType::Unconfined,
        Some("Localhost") => ProfileType::Localhost,
        Some("RuntimeDefault") => ProfileType::RuntimeDefault,
        _ if privileged => ProfileType::Unconfined,
        _ => ProfileType::RuntimeDefault,
    };
    let localhost_ref = profile.and_then(|p| p.localhost_profile.clone()).unwrap_or_default();
    SecurityProfile { profile_type: kind as i32, localhost_ref }
}
