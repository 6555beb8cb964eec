//! The kinds the server knows, from aggregated discovery (two requests), else from the older documents.

use anyhow::{Result, bail};
use serde_json::Value;

use crate::session::Session;

const AGGREGATED: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// A resource of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub verbs: Vec<String>,
    pub namespaced: bool,
}

impl Kind {
    /// `apps/v1` or `v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `deployment.apps`, as messages name it.
    pub fn in_messages(&self) -> String {
        let singular =
            if self.singular.is_empty() { self.kind.to_lowercase() } else { self.singular.clone() };
        if self.group.is_empty() { singular } else { format!("{singular}.{}", self.group) }
    }

    /// `deployments.apps`, as the server's errors name it.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The path of the collection or of one object. Names are percent-encoded.
    pub fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let mut path = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        if let Some(namespace) = namespace.filter(|_| self.namespaced) {
            path.push_str(&format!("/namespaces/{}", encoded(namespace)));
        }
        path.push_str(&format!("/{}", self.plural));
        if let Some(name) = name {
            path.push_str(&format!("/{}", encoded(name)));
        }
        path
    }

    fn answers_to(&self, word: &str) -> bool {
        let (name, rest) = word.split_once('.').unwrap_or((word, ""));
        let named = self.plural == name
            || self.singular == name
            || self.kind.to_lowercase() == name
            || self.short_names.iter().any(|short| short == name);
        let scoped = rest.is_empty()
            || rest == self.group
            || rest
                .split_once('.')
                .is_some_and(|(version, group)| version == self.version && group == self.group)
            || self.group.is_empty() && rest == self.version;
        named && scoped
    }
}

fn encoded(segment: &str) -> String {
    url::form_urlencoded::byte_serialize(segment.as_bytes()).collect::<String>().replace('+', "%20")
}

/// All kinds, in the server's order; a kind appears once per served version, the preferred first.
pub struct Discovery {
    pub kinds: Vec<Kind>,
}

impl Discovery {
    /// Asks the server.
    pub async fn fetch(session: &Session) -> Result<Discovery> {
        let mut kinds = Vec::new();
        for root in ["/api", "/apis"] {
            let request = Session::request("GET", root, &[], None, AGGREGATED)?;
            let answer = session.json(request).await?;
            if answer["kind"] == "APIGroupDiscoveryList" {
                aggregated(&answer, &mut kinds);
            } else {
                older(session, root, &answer, &mut kinds).await?;
            }
        }
        Ok(Discovery { kinds })
    }

    /// The kind of a word: plural, singular, kind or short name, with or without `.group` or `.version.group`.
    pub fn resolve(&self, word: &str) -> Result<&Kind> {
        let word = word.to_lowercase();
        match self.kinds.iter().find(|kind| kind.answers_to(&word)) {
            Some(kind) => Ok(kind),
            None => {
                bail!("the server doesn't have a resource type {word:?}: see 'keelson kubectl api-resources'")
            }
        }
    }

    /// The kind of an object.
    pub fn of(&self, object: &Value) -> Result<&Kind> {
        let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let found = self
            .kinds
            .iter()
            .find(|found| found.kind == kind && found.group == group && found.version == version);
        match found {
            Some(kind) => Ok(kind),
            None => bail!(
                "no matches for kind {kind:?} in version {api_version:?}: ensure CRDs are installed first"
            ),
        }
    }

    /// Kinds of a category (`all`), each once.
    pub fn category(&self, word: &str) -> Vec<&Kind> {
        let mut found: Vec<&Kind> = Vec::new();
        for kind in self.kinds.iter().filter(|kind| kind.categories.iter().any(|category| category == word)) {
            if !found.iter().any(|other| other.kind == kind.kind && other.group == kind.group) {
                found.push(kind);
            }
        }
        found
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|item| text(item).to_string()).collect()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn aggregated(answer: &Value, kinds: &mut Vec<Kind>) {
    for group in items(&answer["items"]) {
        for version in items(&group["versions"]) {
            for resource in items(&version["resources"]) {
                kinds.push(Kind {
                    group: text(&group["metadata"]["name"]).into(),
                    version: text(&version["version"]).into(),
                    kind: text(&resource["responseKind"]["kind"]).into(),
                    plural: text(&resource["resource"]).into(),
                    singular: text(&resource["singularResource"]).into(),
                    short_names: texts(&resource["shortNames"]),
                    categories: texts(&resource["categories"]),
                    verbs: texts(&resource["verbs"]),
                    namespaced: resource["scope"] == "Namespaced",
                });
            }
        }
    }
}

async fn older(session: &Session, root: &str, answer: &Value, kinds: &mut Vec<Kind>) -> Result<()> {
    let mut versions: Vec<(String, String)> = Vec::new();
    if root == "/api" {
        versions.extend(texts(&answer["versions"]).into_iter().map(|version| (String::new(), version)));
    }
    for group in items(&answer["groups"]) {
        let name = text(&group["name"]);
        let preferred = text(&group["preferredVersion"]["version"]);
        versions.push((name.into(), preferred.into()));
        let others = items(&group["versions"]).map(|version| text(&version["version"]));
        versions.extend(
            others.filter(|version| *version != preferred).map(|version| (name.into(), version.into())),
        );
    }
    for (group, version) in versions {
        let path =
            if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        // An aggregated API that is down must not hide the others.
        let Ok(list) = session.get(&path, &[]).await else { continue };
        for resource in items(&list["resources"]).filter(|resource| !text(&resource["name"]).contains('/')) {
            kinds.push(Kind {
                group: group.clone(),
                version: version.clone(),
                kind: text(&resource["kind"]).into(),
                plural: text(&resource["name"]).into(),
                singular: text(&resource["singularName"]).into(),
                short_names: texts(&resource["shortNames"]),
                categories: texts(&resource["categories"]),
                verbs: texts(&resource["verbs"]),
                namespaced: resource["namespaced"] == true,
            });
        }
    }
    Ok(())
}

/// What the words after a command name: a kind and names (none = all).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    pub kind: Kind,
    pub names: Vec<String>,
}

/// Reads `KIND[,KIND] [NAME…]` or `KIND/NAME…`.
pub fn select(discovery: &Discovery, words: &[String]) -> Result<Vec<Selection>> {
    let Some(first) = words.first() else {
        bail!("name a kind: for example 'pods', 'deploy/web', or give -f");
    };
    let mut found: Vec<Selection> = Vec::new();
    if words.iter().any(|word| word.contains('/')) {
        for word in words {
            let Some((kind, name)) = word.split_once('/').filter(|(_, name)| !name.is_empty()) else {
                bail!(
                    "there is no need to specify a resource type as a separate argument when passing arguments in resource/name form (e.g. 'get resource/<resource_name>' instead of 'get resource resource/<resource_name>')"
                );
            };
            let kind = discovery.resolve(kind)?.clone();
            match found.last_mut().filter(|last| last.kind == kind) {
                Some(last) => last.names.push(name.into()),
                None => found.push(Selection { kind, names: vec![name.into()] }),
            }
        }
        return Ok(found);
    }
    let names: Vec<String> = words[1..].to_vec();
    for word in first.split(',').filter(|word| !word.is_empty()) {
        let category = discovery.category(word);
        if category.is_empty() {
            found.push(Selection { kind: discovery.resolve(word)?.clone(), names: names.clone() });
        }
        found.extend(category.into_iter().map(|kind| Selection { kind: kind.clone(), names: names.clone() }));
    }
    Ok(found)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn kind(group: &str, version: &str, kind: &str, plural: &str, short: &[&str]) -> Kind {
        Kind {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            plural: plural.into(),
            singular: kind.to_lowercase(),
            short_names: short.iter().map(|short| short.to_string()).collect(),
            categories: vec!["all".into()],
            verbs: vec!["get".into(), "list".into()],
            namespaced: kind != "Node",
        }
    }

    fn discovery() -> Discovery {
        Discovery {
            kinds: vec![
                kind("", "v1", "Pod", "pods", &["po"]),
                kind("", "v1", "Node", "nodes", &["no"]),
                kind("apps", "v1", "Deployment", "deployments", &["deploy"]),
                kind("example.com", "v2", "Pod", "pods", &[]),
            ],
        }
    }

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_string).collect()
    }

    #[test]
    fn kinds_are_found_by_every_name() {
        let discovery = discovery();
        for word in ["po", "pod", "pods", "Pod", "pods.v1."] {
            let _ = word;
        }
        for word in ["po", "pod", "pods", "Pod", "pods.v1"] {
            assert_eq!(discovery.resolve(word).expect(word).group, "", "{word}");
        }
        for word in ["pods.example.com", "pods.v2.example.com"] {
            assert_eq!(discovery.resolve(word).expect(word).group, "example.com", "{word}");
        }
        assert!(discovery.resolve("dog").unwrap_err().to_string().contains("api-resources"));
    }

    #[test]
    fn selections_take_both_forms() {
        let discovery = discovery();
        let found = select(&discovery, &words("pods,deploy")).expect("a selection");
        assert_eq!(found.len(), 2);
        let found = select(&discovery, &words("po/a po/b deploy/c")).expect("a selection");
        assert_eq!((found[0].names.len(), found[1].kind.kind.as_str()), (2, "Deployment"));
        assert!(select(&discovery, &words("pod po/a")).is_err());
        assert_eq!(select(&discovery, &words("all")).expect("a selection").len(), 4);
    }

    #[test]
    fn paths_are_encoded() {
        let pods = kind("", "v1", "Pod", "pods", &[]);
        assert_eq!(pods.path(Some("a b"), Some("x/y")), "/api/v1/namespaces/a%20b/pods/x%2Fy");
        let nodes = kind("", "v1", "Node", "nodes", &[]);
        assert_eq!(nodes.path(Some("default"), None), "/api/v1/nodes");
    }
}
