//! The files of configMap, secret, downwardAPI and projected volumes, as a map from relative path to content.
//!
//! Tokens are fetched by the shell and passed in by path. Later sources win on the same path. Errors are for the user and
//! name the missing object; the volume is retried.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod, Volume};

use super::downward::{self, Facts};
use super::environment::{Reference, SourceKind, Sources};
use super::naming;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct File {
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

pub type Payload = BTreeMap<String, File>;

/// A token a projected volume needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenRequest {
    pub path: String,
    pub audience: String,
    pub expiration_seconds: i64,
}

/// Whether the volume's content comes from the API and is rewritten when it changes.
pub fn is_projected(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// Whether the content must not reach a disk.
pub fn is_sensitive(volume: &Volume) -> bool {
    let sources = volume.projected.as_ref().and_then(|p| p.sources.as_deref()).unwrap_or_default();
    volume.secret.is_some() || sources.iter().any(|s| s.secret.is_some() || s.service_account_token.is_some())
}

/// The objects to fetch before `build`.
pub fn references(volume: &Volume) -> Vec<Reference> {
    let config = |name: &str| Reference { kind: SourceKind::ConfigMap, name: name.to_string() };
    let secret = |name: &str| Reference { kind: SourceKind::Secret, name: name.to_string() };
    let mut out = Vec::new();
    out.extend(volume.config_map.as_ref().map(|c| config(&c.name)));
    out.extend(volume.secret.as_ref().and_then(|s| s.secret_name.as_deref()).map(secret));
    for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
        out.extend(source.config_map.as_ref().map(|c| config(&c.name)));
        out.extend(source.secret.as_ref().map(|s| secret(&s.name)));
    }
    out.sort();
    out.dedup();
    out
}

/// The tokens to request before `build`.
pub fn tokens(volume: &Volume) -> Vec<TokenRequest> {
    let sources = volume.projected.as_ref().and_then(|p| p.sources.as_deref()).unwrap_or_default();
    let tokens = sources.iter().filter_map(|s| s.service_account_token.as_ref());
    tokens
        .map(|t| TokenRequest {
            path: t.path.clone(),
            audience: t.audience.clone().unwrap_or_default(),
            expiration_seconds: t.expiration_seconds.unwrap_or(3600).max(600),
        })
        .collect()
}

/// All files of the volume.
pub fn build(
    pod: &Pod,
    volume: &Volume,
    sources: &Sources,
    tokens: &BTreeMap<TokenRequest, String>,
    facts: &Facts,
) -> Result<Payload, String> {
    let mut out = Payload::new();
    if let Some(c) = &volume.config_map {
        let mode = c.default_mode.unwrap_or(0o644);
        let reference = Reference { kind: SourceKind::ConfigMap, name: c.name.clone() };
        keys(&mut out, sources, &reference, c.items.as_deref(), c.optional, mode)?;
    }
    if let Some(s) = &volume.secret {
        let mode = s.default_mode.unwrap_or(0o644);
        let name = s.secret_name.clone().unwrap_or_default();
        let reference = Reference { kind: SourceKind::Secret, name };
        keys(&mut out, sources, &reference, s.items.as_deref(), s.optional, mode)?;
    }
    if let Some(d) = &volume.downward_api {
        downward_files(&mut out, pod, d.items.as_deref(), d.default_mode.unwrap_or(0o644), facts)?;
    }
    let Some(projected) = &volume.projected else { return Ok(out) };
    let mode = projected.default_mode.unwrap_or(0o644);
    for source in projected.sources.iter().flatten() {
        if let Some(c) = &source.config_map {
            let reference = Reference { kind: SourceKind::ConfigMap, name: c.name.clone() };
            keys(&mut out, sources, &reference, c.items.as_deref(), c.optional, mode)?;
        }
        if let Some(s) = &source.secret {
            let reference = Reference { kind: SourceKind::Secret, name: s.name.clone() };
            keys(&mut out, sources, &reference, s.items.as_deref(), s.optional, mode)?;
        }
        if let Some(d) = &source.downward_api {
            downward_files(&mut out, pod, d.items.as_deref(), mode, facts)?;
        }
        if let Some(t) = &source.service_account_token {
            let wanted = self::tokens(volume).into_iter().find(|r| r.path == t.path);
            let token = wanted.and_then(|r| tokens.get(&r));
            let token = token.ok_or_else(|| format!("no service account token for {}", t.path))?;
            // Readable by the pod's own user only, unless it shares a group.
            let mode = if runs_as_other_user(pod) { 0o644 } else { 0o600 };
            put(&mut out, &t.path, token.clone().into_bytes(), mode)?;
        }
        if source.cluster_trust_bundle.is_some() {
            return Err("clusterTrustBundle projections are not supported by this node".into());
        }
    }
    Ok(out)
}

fn runs_as_other_user(pod: &Pod) -> bool {
    let by_pod = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let by_container = |c: &k8s_openapi::api::core::v1::Container| {
        c.security_context.as_ref().and_then(|s| s.run_as_user).is_some_and(|u| u != 0)
    };
    by_pod.is_some_and(|s| s.fs_group.is_some() || s.run_as_user.is_some_and(|u| u != 0))
        || naming::init_containers(pod).iter().chain(naming::main_containers(pod)).any(by_container)
        || by_pod.and_then(|s| s.run_as_user).is_none()
}

fn keys(
    out: &mut Payload,
    sources: &Sources,
    reference: &Reference,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: i32,
) -> Result<(), String> {
    let optional = optional == Some(true);
    let what = if reference.kind == SourceKind::Secret { "secret" } else { "configmap" };
    let Some(data) = sources.get(reference) else {
        return if optional { Ok(()) } else { Err(format!("{what} \"{}\" not found", reference.name)) };
    };
    match items {
        None | Some([]) => {
            for (key, content) in data {
                put(out, key, content.clone(), mode)?;
            }
        }
        Some(items) => {
            for item in items {
                let Some(content) = data.get(&item.key) else {
                    if optional {
                        continue;
                    }
                    return Err(format!("{what} references non-existent config key: {}", item.key));
                };
                put(out, &item.path, content.clone(), item.mode.unwrap_or(mode))?;
            }
        }
    }
    Ok(())
}

fn downward_files(
    out: &mut Payload,
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: i32,
    facts: &Facts,
) -> Result<(), String> {
    for item in items.unwrap_or_default() {
        let text = if let Some(field) = &item.field_ref {
            downward::field(pod, &field.field_path, facts)?
        } else if let Some(selector) = &item.resource_field_ref {
            let name = selector.container_name.as_deref().unwrap_or_default();
            let container =
                naming::find_container(pod, name).ok_or_else(|| format!("no container named \"{name}\""))?;
            downward::resource(&container, selector, facts)?
        } else {
            continue;
        };
        put(out, &item.path, text.into_bytes(), item.mode.unwrap_or(mode))?;
    }
    Ok(())
}

fn put(out: &mut Payload, path: &str, content: Vec<u8>, mode: i32) -> Result<(), String> {
    let bad = path.is_empty() || path.starts_with('/') || path.starts_with("..") || path.len() > 4096;
    if bad || path.split('/').any(|part| part == ".." || part.is_empty()) {
        return Err(format!("invalid path in volume: {path:?}"));
    }
    let mode = (mode as u32) & 0o777;
    out.insert(path.to_string(), File { content, mode });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn items_modes_and_refused_paths() {
        let volume: Volume =
            serde_json::from_value(json!({"name":"v","configMap":{"name":"m","defaultMode":256,
            "items":[{"key":"k","path":"a/b"},{"key":"k","path":"c","mode":420}]}}))
            .unwrap();
        let data = BTreeMap::from([("k".to_string(), b"v".to_vec())]);
        let sources = Sources::from([(Reference { kind: SourceKind::ConfigMap, name: "m".into() }, data)]);
        let payload = build(&Pod::default(), &volume, &sources, &BTreeMap::new(), &Facts::default()).unwrap();
        assert_eq!(payload["a/b"].mode, 0o400);
        assert_eq!(payload["c"].mode, 0o644);
        let mut out = Payload::new();
        for path in ["../x", "/x", "a/../../b", "a//b", ""] {
            assert!(put(&mut out, path, Vec::new(), 0o644).is_err(), "{path}");
        }
    }

    #[test]
    fn a_missing_object_fails_unless_optional() {
        let volume = |optional: bool| -> Volume {
            serde_json::from_value(json!({"name":"v","secret":{"secretName":"s","optional":optional}}))
                .unwrap()
        };
        let run =
            |v: Volume| build(&Pod::default(), &v, &Sources::new(), &BTreeMap::new(), &Facts::default());
        assert!(run(volume(true)).unwrap().is_empty());
        assert_eq!(run(volume(false)).unwrap_err(), "secret \"s\" not found");
    }
}
