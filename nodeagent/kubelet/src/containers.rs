//! A container's configuration for the runtime: command, environment, mounts, resources, security.
//!
//! Errors are the user's: they become `CreateContainerConfigError`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use k8s_cri::v1::*;
use k8s_openapi::api::core::v1::{Container as Spec, Pod, VolumeMount};
use keelson_nodeagent_core::pod::expand::expand;
use keelson_nodeagent_core::pod::security::{Effective, ImageUser};
use keelson_nodeagent_core::pod::{amounts, dns, environment, naming, qos, security};

use crate::context::Node;
use crate::sandboxes;
use crate::volumes::{self, Places, subpath};

const MESSAGE_PATH: &str = "/dev/termination-log";

/// Builds the configuration; makes the files it mounts.
pub async fn config(
    node: &Node,
    pod: &Pod,
    spec: &Spec,
    attempt: u32,
    image: &Image,
    pod_ips: &[String],
) -> Result<ContainerConfig, String> {
    let user = image_user(image);
    security::verify_non_root(pod, spec, &user)?;
    let sources = node.objects.fetch(naming::namespace(pod), &environment::references(spec)).await?;
    let services = node.services(naming::namespace(pod));
    let facts = node.facts(pod_ips);
    let env = environment::build(pod, spec, &sources, &services, &facts)?;
    let lookup: BTreeMap<String, String> = env.iter().cloned().collect();
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| expand(text, |name| lookup.get(name).cloned())).collect()
    };
    let places = volumes::places(node, pod).await?;
    let mounts = mounts(node, pod, spec, attempt, &places, &lookup, pod_ips)?;
    let message_path = spec.termination_message_path.clone().unwrap_or_else(|| MESSAGE_PATH.into());
    let grace = keelson_nodeagent_core::pod::memory::grace_period(pod);
    let policy = spec.termination_message_policy.clone().unwrap_or_else(|| "File".into());
    let mut labels = sandboxes::identity(pod);
    labels.insert(naming::LABEL_CONTAINER_NAME.into(), spec.name.clone());
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: spec.name.clone(), attempt }),
        image: Some(ImageSpec {
            image: image.id.clone(),
            user_specified_image: spec.image.clone().unwrap_or_default(),
            ..ImageSpec::default()
        }),
        command: expanded(&spec.command),
        args: expanded(&spec.args),
        working_dir: spec.working_dir.clone().unwrap_or_default(),
        envs: env.into_iter().map(|(key, value)| KeyValue { key, value }).collect(),
        mounts,
        labels,
        annotations: HashMap::from([
            (naming::ANNOTATION_HASH.into(), naming::container_hash(spec)),
            (naming::ANNOTATION_RESTART_COUNT.into(), attempt.to_string()),
            (naming::ANNOTATION_TERMINATION_PATH.into(), message_path),
            (naming::ANNOTATION_TERMINATION_POLICY.into(), policy),
            (naming::ANNOTATION_GRACE.into(), grace.to_string()),
        ]),
        log_path: naming::log_file(&spec.name, attempt),
        stdin: spec.stdin.unwrap_or(false),
        stdin_once: spec.stdin_once.unwrap_or(false),
        tty: spec.tty.unwrap_or(false),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources(node, pod, spec)),
            security_context: Some(security_context(pod, spec)),
        }),
        ..ContainerConfig::default()
    })
}

fn image_user(image: &Image) -> ImageUser {
    match (&image.uid, image.username.as_str()) {
        (Some(uid), _) => ImageUser::Uid(uid.value),
        (None, "") => ImageUser::Uid(0),
        (None, name) => ImageUser::Name(name.to_string()),
    }
}

fn resources(node: &Node, pod: &Pod, spec: &Spec) -> LinuxContainerResources {
    let asked = amounts::requests(spec.resources.as_ref());
    let limit = amounts::limits(spec.resources.as_ref());
    let quota = qos::quota(limit.cpu_milli.unwrap_or(0));
    LinuxContainerResources {
        cpu_period: if quota > 0 { qos::PERIOD_US } else { 0 },
        cpu_quota: quota,
        cpu_shares: qos::shares(asked.cpu_milli.unwrap_or(0)),
        memory_limit_in_bytes: limit.memory_bytes.unwrap_or(0),
        oom_score_adj: qos::oom_score_adj(pod, spec, node.machine.memory_bytes),
        ..LinuxContainerResources::default()
    }
}

fn security_context(pod: &Pod, spec: &Spec) -> LinuxContainerSecurityContext {
    let Effective {
        run_as_user,
        run_as_group,
        privileged,
        read_only_root,
        no_new_privileges,
        capabilities,
        seccomp,
        unmasked_proc,
        ..
    } = security::effective(pod, spec);
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let id = |value: Option<i64>| value.map(|value| Int64Value { value });
    let mut groups = context.and_then(|c| c.supplemental_groups.clone()).unwrap_or_default();
    groups.extend(context.and_then(|c| c.fs_group));
    let mut namespaces = sandboxes::namespaces(pod);
    if let Some(target) = target_of(pod, &spec.name) {
        namespaces.pid = NamespaceMode::Target as i32;
        namespaces.target_id = target;
    }
    let (masked_paths, readonly_paths) = if privileged || unmasked_proc {
        (Vec::new(), Vec::new())
    } else {
        (owned(&MASKED), owned(&READ_ONLY))
    };
    LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: capabilities.as_ref().and_then(|c| c.add.clone()).unwrap_or_default(),
            drop_capabilities: capabilities.as_ref().and_then(|c| c.drop.clone()).unwrap_or_default(),
            ..Capability::default()
        }),
        privileged,
        namespace_options: Some(namespaces),
        run_as_user: id(run_as_user),
        run_as_group: id(run_as_group),
        readonly_rootfs: read_only_root,
        supplemental_groups: groups,
        no_new_privs: no_new_privileges,
        masked_paths,
        readonly_paths,
        seccomp: Some(sandboxes::seccomp(seccomp.as_ref(), privileged)),
        ..LinuxContainerSecurityContext::default()
    }
}

const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

/// An ephemeral container may join a container's process namespace; the id is filled in by the caller's observation, here
/// only by the API's last status.
fn target_of(pod: &Pod, name: &str) -> Option<String> {
    let list = pod.spec.as_ref()?.ephemeral_containers.as_deref()?;
    let target = list.iter().find(|c| c.name == name)?.target_container_name.as_deref()?;
    let statuses = pod.status.as_ref()?.container_statuses.as_deref()?;
    let id = statuses.iter().find(|s| s.name == target)?.container_id.as_deref()?;
    id.split("://").nth(1).map(String::from)
}

fn mounts(
    node: &Node,
    pod: &Pod,
    spec: &Spec,
    attempt: u32,
    places: &Places,
    env: &BTreeMap<String, String>,
    pod_ips: &[String],
) -> Result<Vec<Mount>, String> {
    let uid = naming::uid(pod);
    let mut out = Vec::new();
    for (index, wanted) in spec.volume_mounts.iter().flatten().enumerate() {
        let place = places.get(&wanted.name).ok_or_else(|| format!("no volume named \"{}\"", wanted.name))?;
        let sub = sub_path(wanted, env);
        let source = match sub {
            None => place.clone(),
            Some(sub) => {
                let below = node.config.pod_dir(uid).join("volume-subpaths").join(&wanted.name);
                let target = below.join(&spec.name).join(index.to_string());
                subpath::mount(place, &sub, &target).map_err(|e| {
                    format!("failed to prepare subPath \"{sub}\" of volume \"{}\": {e}", wanted.name)
                })?;
                target
            }
        };
        let propagation = match wanted.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => MountPropagation::PropagationBidirectional,
            _ => MountPropagation::PropagationPrivate,
        };
        if propagation != MountPropagation::PropagationPrivate {
            volumes::share(node, uid, &source)
                .map_err(|e| format!("cannot share {}: {e}", source.display()))?;
        }
        let target = wanted.mount_path.clone();
        out.push(Mount {
            container_path: if target.starts_with('/') { target } else { format!("/{target}") },
            host_path: source.to_string_lossy().into_owned(),
            readonly: wanted.read_only.unwrap_or(false),
            propagation: propagation as i32,
            ..Mount::default()
        });
    }
    own_files(node, pod, spec, attempt, pod_ips, &mut out)
        .map_err(|e| format!("cannot write the pod's files: {e}"))?;
    Ok(out)
}

fn sub_path(mount: &VolumeMount, env: &BTreeMap<String, String>) -> Option<String> {
    if let Some(expression) = mount.sub_path_expr.as_deref().filter(|s| !s.is_empty()) {
        return Some(expand(expression, |name| env.get(name).cloned()));
    }
    mount.sub_path.clone().filter(|s| !s.is_empty())
}

/// `/etc/hosts` and the termination message file, unless the pod mounts its own.
fn own_files(
    node: &Node,
    pod: &Pod,
    spec: &Spec,
    attempt: u32,
    pod_ips: &[String],
    out: &mut Vec<Mount>,
) -> std::io::Result<()> {
    let uid = naming::uid(pod);
    if !out.iter().any(|m| m.container_path == "/etc/hosts") {
        let text = if naming::host_network(pod) {
            dns::host_network_hosts(pod, &fs::read_to_string("/etc/hosts").unwrap_or_default())
        } else {
            dns::hosts_file(pod, pod_ips, &node.config.cluster_domain)
        };
        let path = node.config.pod_dir(uid).join("etc-hosts");
        fs::write(&path, text)?;
        out.push(file_mount("/etc/hosts", &path));
    }
    let message = spec.termination_message_path.as_deref().unwrap_or(MESSAGE_PATH);
    if !message.is_empty() && !out.iter().any(|m| m.container_path == message) {
        let dir = node.config.container_dir(uid, &spec.name);
        fs::create_dir_all(&dir)?;
        let path = dir.join(format!("message-{attempt}"));
        fs::write(&path, "")?;
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        out.push(file_mount(message, &path));
    }
    Ok(())
}

fn file_mount(target: &str, source: &Path) -> Mount {
    Mount {
        container_path: target.into(),
        host_path: source.to_string_lossy().into_owned(),
        ..Mount::default()
    }
}
