//! Images: pulled by policy before a container starts, collected when the image file system fills.

use std::collections::BTreeSet;

use k8s_cri::v1::{AuthConfig, Image, PodSandboxConfig};
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use keelson_nodeagent_core::pod::image_gc::{self, Marks};
use keelson_nodeagent_core::pod::naming;
use tracing::{info, warn};

use crate::context::Node;

/// Why an image is not there: the waiting reason and its message.
pub struct PullError {
    pub reason: &'static str,
    pub message: String,
}

/// The policy in force: given, else by tag as the API defaults it.
fn policy(spec: &Container) -> &str {
    if let Some(policy) = spec.image_pull_policy.as_deref() {
        return policy;
    }
    let image = spec.image.as_deref().unwrap_or_default();
    let name = image.rsplit('/').next().unwrap_or_default();
    let latest = !image.contains('@') && name.split_once(':').is_none_or(|(_, tag)| tag == "latest");
    if latest { "Always" } else { "IfNotPresent" }
}

/// Makes sure the container's image is on the node.
pub async fn ensure(
    node: &Node,
    pod: &Pod,
    spec: &Container,
    sandbox: PodSandboxConfig,
) -> Result<Image, PullError> {
    let name = spec.image.as_deref().unwrap_or_default();
    let error = |reason, message| PullError { reason, message };
    if name.is_empty() || name.contains(char::is_whitespace) {
        let message = format!("Failed to apply default image tag \"{name}\": couldn't parse image name");
        return Err(error("InvalidImageName", message));
    }
    let found =
        node.cri.image(name).await.map_err(|e| error("ImageInspectError", e.message().to_string()))?;
    match (policy(spec), found) {
        ("IfNotPresent" | "Never", Some(image)) => {
            let message = format!("Container image \"{name}\" already present on machine");
            node.events.pod(pod, Some(&spec.name), false, "Pulled", message);
            used(node, &image.id);
            return Ok(image);
        }
        ("Never", None) => {
            let message = format!("Container image \"{name}\" is not present with pull policy of Never");
            node.events.pod(pod, Some(&spec.name), true, "ErrImageNeverPull", message.clone());
            return Err(error("ErrImageNeverPull", message));
        }
        _ => {}
    }
    node.events.pod(pod, Some(&spec.name), false, "Pulling", format!("Pulling image \"{name}\""));
    let began = std::time::Instant::now();
    let mut last = None;
    for auth in credentials(node, pod, name).await {
        match node.cri.pull(name, auth, sandbox.clone()).await {
            Ok(_) => {
                last = None;
                break;
            }
            Err(e) => last = Some(e),
        }
    }
    if let Some(e) = last {
        let message = format!("Failed to pull image \"{name}\": {}", e.message());
        node.events.pod(pod, Some(&spec.name), true, "Failed", message);
        node.events.pod(pod, Some(&spec.name), true, "Failed", "Error: ErrImagePull".into());
        return Err(error("ErrImagePull", e.message().to_string()));
    }
    let image = node.cri.image(name).await.ok().flatten();
    let image =
        image.ok_or_else(|| error("ErrImagePull", format!("image \"{name}\" vanished after its pull")))?;
    let seconds = began.elapsed().as_secs_f64();
    let message =
        format!("Successfully pulled image \"{name}\" in {seconds:.3}s. Image size: {} bytes.", image.size);
    node.events.pod(pod, Some(&spec.name), false, "Pulled", message);
    used(node, &image.id);
    Ok(image)
}

fn used(node: &Node, id: &str) {
    let mut uses = node.image_uses.lock().unwrap_or_else(|e| e.into_inner());
    uses.insert(id.to_string(), jiff::Timestamp::now());
}

/// The credentials to try in turn: matching pull secrets, then none.
async fn credentials(node: &Node, pod: &Pod, image: &str) -> Vec<Option<AuthConfig>> {
    let mut out = Vec::new();
    let secrets = pod.spec.as_ref().and_then(|s| s.image_pull_secrets.as_deref()).unwrap_or_default();
    if let Some(client) = node.config.client.clone().filter(|_| !secrets.is_empty()) {
        let api: kube::Api<Secret> = kube::Api::namespaced(client, naming::namespace(pod));
        for reference in secrets {
            match api.get_opt(&reference.name).await {
                Ok(Some(secret)) => out.extend(auth_of(&secret, image).map(Some)),
                Ok(None) => {}
                Err(e) => warn!(secret = reference.name, error = %e, "cannot read an image pull secret"),
            }
        }
    }
    out.push(None);
    out
}

fn auth_of(secret: &Secret, image: &str) -> Option<AuthConfig> {
    let data = secret.data.as_ref()?;
    let raw = data.get(".dockerconfigjson").or_else(|| data.get(".dockercfg"))?;
    let config: serde_json::Value = serde_json::from_slice(&raw.0).ok()?;
    let auths = config.get("auths").unwrap_or(&config).as_object()?;
    let registry = image.split('/').next().filter(|h| h.contains(['.', ':']) || *h == "localhost");
    let registry = registry.unwrap_or("docker.io");
    let (server, entry) = auths.iter().find(|(host, _)| {
        let host = host.trim_start_matches("https://").trim_start_matches("http://");
        let host = host.split('/').next().unwrap_or_default();
        host == registry || registry == "docker.io" && host == "index.docker.io"
    })?;
    let text = |key: &str| entry.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_string();
    Some(AuthConfig {
        username: text("username"),
        password: text("password"),
        auth: text("auth"),
        server_address: server.clone(),
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
    })
}

/// Removes unused images while the image file system is above its high mark.
pub async fn collect(node: &Node) -> Result<(), tonic::Status> {
    let now = jiff::Timestamp::now();
    let images = node.cri.images().await?;
    let mut in_use: BTreeSet<String> = BTreeSet::new();
    for container in node.cri.containers(None).await? {
        in_use.insert(container.image_ref.clone());
        in_use.extend(container.image.map(|i| i.image));
    }
    let listed: Vec<image_gc::Image> = {
        let mut uses = node.image_uses.lock().unwrap_or_else(|e| e.into_inner());
        uses.retain(|id, _| images.iter().any(|i| i.id == *id));
        let listed = images.iter().map(|image| {
            let names = || image.repo_tags.iter().chain(&image.repo_digests).chain([&image.id]);
            let used = names().any(|n| in_use.contains(n));
            let last = uses.entry(image.id.clone()).or_insert(now);
            if used {
                *last = now;
            }
            image_gc::Image {
                id: image.id.clone(),
                bytes: image.size,
                last_used: *last,
                in_use: used,
                pinned: image.pinned || image.repo_tags.contains(&node.config.pause_image) || is_pause(image),
            }
        });
        listed.collect()
    };
    let Some(usage) = node.cri.image_file_systems().await?.into_iter().next() else { return Ok(()) };
    let Some(point) = usage.fs_id.map(|f| f.mountpoint) else { return Ok(()) };
    let Ok(stat) = nix::sys::statvfs::statvfs(point.as_str()) else { return Ok(()) };
    let capacity = stat.blocks() * stat.fragment_size();
    let used = capacity.saturating_sub(stat.blocks_available() * stat.fragment_size());
    for id in image_gc::choose(&listed, used, capacity, &Marks::default(), now) {
        info!(image = id, "removing an unused image");
        node.cri.remove_image(&id).await?;
    }
    Ok(())
}

fn is_pause(image: &Image) -> bool {
    image.repo_tags.iter().any(|t| t.rsplit('/').next().is_some_and(|n| n.starts_with("pause:")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_follows_the_tag() {
        let spec = |image: &str| Container { image: Some(image.into()), ..Container::default() };
        for (image, wanted) in [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("h:5000/a", "Always"),
            ("h:5000/a:1", "IfNotPresent"),
            ("a@sha256:0", "IfNotPresent"),
        ] {
            assert_eq!(policy(&spec(image)), wanted, "{image}");
        }
    }

    #[test]
    fn pull_secret_matches_the_registry() {
        let config = r#"{"auths":{"https://r.example/v1/":{"username":"u","password":"p"}}}"#;
        let data = [(".dockerconfigjson".to_string(), k8s_openapi::ByteString(config.into()))];
        let secret = Secret { data: Some(data.into()), ..Secret::default() };
        assert_eq!(auth_of(&secret, "r.example/x/y:1").unwrap().username, "u");
        assert!(auth_of(&secret, "other.example/x").is_none());
    }
}
