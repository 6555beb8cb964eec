//! Discovery documents, made from the rows that are served (built-in, then custom): legacy ones per path, and the
//! aggregated one.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_api::resource::{Resource, Subresource};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.into() } else { format!("{group}/{version}") }
}

/// Groups in the order of the rows, each with its versions, preferred first.
pub fn grouped<'a>(rows: &[&'a Resource]) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut out: Vec<(&str, Vec<&str>)> = vec![];
    for r in rows {
        match out.iter_mut().find(|(g, _)| *g == r.group) {
            Some((_, versions)) if versions.contains(&r.version.as_str()) => {}
            Some((_, versions)) => {
                versions.push(&r.version);
                if r.definition.is_some() {
                    versions.sort_by_key(|v| keelson_api::definition::rank(v));
                }
            }
            None => out.push((&r.group, vec![&r.version])),
        }
    }
    out
}

/// `/api`. `address` is host and port under which clients reach this server.
pub fn api_versions(address: &str) -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]})
}

fn group_body(group: &str, versions: &[&str]) -> Value {
    let list: Vec<Value> =
        versions.iter().map(|v| json!({"groupVersion": group_version(group, v), "version": v})).collect();
    json!({"name": group, "preferredVersion": list.first(), "versions": list})
}

/// `/apis`.
pub fn groups(rows: &[&Resource]) -> Value {
    let list: Vec<Value> = grouped(rows)
        .iter()
        .filter(|(g, _)| !g.is_empty())
        .map(|(g, versions)| group_body(g, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
}

/// `/apis/{group}`; none when there is no such group.
pub fn group(rows: &[&Resource], name: &str) -> Option<Value> {
    let (_, versions) = grouped(rows).into_iter().find(|(g, _)| *g == name && !g.is_empty())?;
    let mut body = group_body(name, &versions);
    body["kind"] = "APIGroup".into();
    body["apiVersion"] = "v1".into();
    Some(body)
}

fn storage_hash(r: &Resource) -> Option<String> {
    r.storage.as_ref()?;
    let (group, mut version) = r.storage_version.rsplit_once('/').unwrap_or(("", &r.storage_version));
    // What upstream still stores in the version before.
    if r.kind.starts_with("MutatingAdmissionPolicy") {
        version = "v1beta1";
    }
    let digest = Sha256::digest(format!("{group}/{version}/{}", r.kind));
    Some(STANDARD.encode(&digest[..8]))
}

fn entry(r: &Resource) -> Value {
    let mut out = json!({"name": r.plural, "singularName": r.singular, "namespaced": r.namespaced, "kind": r.kind, "verbs": r.verbs});
    if !r.short_names.is_empty() {
        out["shortNames"] = json!(r.short_names);
    }
    if !r.categories.is_empty() {
        out["categories"] = json!(r.categories);
    }
    if let Some(hash) = storage_hash(r) {
        out["storageVersionHash"] = hash.into();
    }
    out
}

fn sub_entry(r: &Resource, s: &Subresource) -> Value {
    let mut out = json!({"name": format!("{}/{}", r.plural, s.name), "singularName": "", "namespaced": r.namespaced, "kind": s.kind, "verbs": s.verbs});
    if !s.version.is_empty() {
        out["group"] = s.group.as_str().into();
        out["version"] = s.version.as_str().into();
    }
    out
}

/// `/api/v1` and `/apis/{group}/{version}`; none when it is not served.
pub fn resources(rows: &[&Resource], group: &str, version: &str) -> Option<Value> {
    let mut served: Vec<&Resource> =
        rows.iter().copied().filter(|r| r.group == group && r.version == version).collect();
    if served.is_empty() {
        return None;
    }
    served.sort_by(|a, b| a.plural.cmp(&b.plural));
    let list: Vec<Value> = served
        .iter()
        .flat_map(|r| std::iter::once(entry(r)).chain(r.subresources.iter().map(|s| sub_entry(r, s))))
        .collect();
    let mut out =
        json!({"kind": "APIResourceList", "groupVersion": group_version(group, version), "resources": list});
    if !group.is_empty() {
        out["apiVersion"] = "v1".into();
    }
    Some(out)
}

fn aggregated_resource(r: &Resource) -> Value {
    let mut out = json!({
        "resource": r.plural,
        "responseKind": {"group": "", "version": "", "kind": r.kind},
        "scope": if r.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": r.singular,
        "verbs": r.verbs,
    });
    if !r.short_names.is_empty() {
        out["shortNames"] = json!(r.short_names);
    }
    if !r.categories.is_empty() {
        out["categories"] = json!(r.categories);
    }
    if !r.subresources.is_empty() {
        let list = r.subresources.iter().map(|s| {
            json!({"subresource": s.name, "responseKind": {"group": s.group, "version": s.version, "kind": s.kind}, "verbs": s.verbs})
        });
        out["subresources"] = list.collect();
    }
    out
}

/// The aggregated document: of `/api` when `legacy`, of `/apis` otherwise. `version` is `v2` or `v2beta1`.
pub fn aggregated(rows: &[&Resource], version: &str, legacy: bool) -> Value {
    let items: Vec<Value> = grouped(rows)
        .into_iter()
        .filter(|(g, _)| g.is_empty() == legacy)
        .map(|(g, versions)| {
            let versions: Vec<Value> = versions
                .into_iter()
                .map(|v| {
                    let mut served: Vec<&Resource> =
                        rows.iter().copied().filter(|r| r.group == g && r.version == v).collect();
                    served.sort_by(|a, b| a.plural.cmp(&b.plural));
                    let list: Vec<Value> = served.into_iter().map(aggregated_resource).collect();
                    json!({"version": v, "resources": list, "freshness": "Current"})
                })
                .collect();
            let metadata = if g.is_empty() { json!({}) } else { json!({"name": g}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {}, "items": items})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_hashes_are_upstreams() {
        let rows: Vec<&Resource> = keelson_api::RESOURCES.iter().collect();
        let list = resources(&rows, "apps", "v1").unwrap();
        assert_eq!(list["resources"][0]["storageVersionHash"], "85nkx63pcBU=");
    }
}
