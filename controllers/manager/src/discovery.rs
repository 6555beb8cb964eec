//! Which resources the server has, for the graph of all objects.

use keelson_controllers_core::{ApiResource, Gvr};
use kube::Client;
use serde::Deserialize;

use crate::request;

#[derive(Deserialize)]
struct Groups {
    #[serde(default)]
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    #[serde(default)]
    versions: Vec<GroupVersion>,
    preferred_version: Option<GroupVersion>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GroupVersion {
    group_version: String,
}

#[derive(Deserialize)]
struct Resources {
    #[serde(default)]
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    kind: String,
    namespaced: bool,
    #[serde(default)]
    verbs: Vec<String>,
}

/// All resources, each in the version its group prefers (or the first that has it), and whether
/// every group answered.
pub async fn discover(client: &Client) -> Result<(Vec<ApiResource>, bool), kube::Error> {
    let core: Resources = client.request(request::get("/api/v1")).await?;
    let mut found = named("", "v1", core);
    let mut complete = true;
    let groups: Groups = client.request(request::get("/apis")).await?;
    for group in groups.groups {
        let preferred = group.preferred_version.into_iter().chain(group.versions);
        let mut asked: Vec<String> = Vec::new();
        for version in preferred {
            if asked.contains(&version.group_version) {
                continue;
            }
            asked.push(version.group_version.clone());
            let Some((group, number)) = version.group_version.split_once('/') else { continue };
            let uri = format!("/apis/{}", version.group_version);
            match client.request::<Resources>(request::get(&uri)).await {
                Ok(resources) => {
                    for resource in named(group, number, resources) {
                        let same =
                            |r: &ApiResource| r.gvr.group == group && r.gvr.resource == resource.gvr.resource;
                        if !found.iter().any(same) {
                            found.push(resource);
                        }
                    }
                }
                Err(error) => {
                    complete = false;
                    tracing::warn!(group, "discovery of this group failed: {error}");
                }
            }
        }
    }
    // Events have two names; metrics are computed, not stored.
    found.retain(|r| {
        r.gvr.group != "metrics.k8s.io" && (r.gvr.resource != "events" || r.gvr.group.is_empty())
    });
    Ok((found, complete))
}

fn named(group: &str, version: &str, list: Resources) -> Vec<ApiResource> {
    let plain = list.resources.into_iter().filter(|r| !r.name.contains('/'));
    let own = |text: &str| std::borrow::Cow::Owned(text.to_owned());
    plain
        .map(|r| ApiResource {
            gvr: Gvr { group: own(group), version: own(version), resource: own(&r.name) },
            kind: r.kind,
            namespaced: r.namespaced,
            verbs: r.verbs,
        })
        .collect()
}
