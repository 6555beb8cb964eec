//! A container's environment, in the order the API promises: service links, then `envFrom`, then `env`, later ones winning.
//!
//! The shell first asks `references` what to fetch, then hands the fetched maps in. Errors are shown to the user as
//! `CreateContainerConfigError`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod, Service};

use super::downward::{self, Facts};
use super::expand::expand;
use super::naming;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceKind {
    ConfigMap,
    Secret,
}

/// An object of the pod's namespace that must be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    pub kind: SourceKind,
    pub name: String,
}

/// Fetched objects; an object the API does not have is absent.
pub type Sources = BTreeMap<Reference, BTreeMap<String, Vec<u8>>>;

/// Everything the container's environment reads.
pub fn references(container: &Container) -> Vec<Reference> {
    let mut list = Vec::new();
    let mut add = |kind, name: &str| list.push(Reference { kind, name: name.to_string() });
    for from in container.env_from.iter().flatten() {
        if let Some(r) = &from.config_map_ref {
            add(SourceKind::ConfigMap, &r.name);
        }
        if let Some(r) = &from.secret_ref {
            add(SourceKind::Secret, &r.name);
        }
    }
    for from in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        if let Some(r) = &from.config_map_key_ref {
            add(SourceKind::ConfigMap, &r.name);
        }
        if let Some(r) = &from.secret_key_ref {
            add(SourceKind::Secret, &r.name);
        }
    }
    list.sort();
    list.dedup();
    list
}

/// The environment in order of first definition.
pub fn build(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    services: &[Service],
    facts: &Facts,
) -> Result<Vec<(String, String)>, String> {
    let mut env = Environment::default();
    let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    for (name, value) in service_links(services, naming::namespace(pod), links) {
        env.set(&name, value);
    }
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let config = from.config_map_ref.as_ref().map(|r| (SourceKind::ConfigMap, &r.name, r.optional));
        let secret = from.secret_ref.as_ref().map(|r| (SourceKind::Secret, &r.name, r.optional));
        for (kind, name, optional) in config.into_iter().chain(secret) {
            let Some(data) = sources.get(&Reference { kind, name: name.clone() }) else {
                if optional == Some(true) {
                    continue;
                }
                return Err(missing(kind, name));
            };
            for (key, value) in data {
                env.set(&format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned());
            }
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(value), _) => expand(value, |name| env.get(name)),
            (None, Some(from)) => match from_source(pod, container, from, sources, facts)? {
                Some(value) => value,
                None => continue,
            },
            (None, None) => String::new(),
        };
        env.set(&var.name, value);
    }
    Ok(env.list)
}

#[derive(Default)]
struct Environment {
    list: Vec<(String, String)>,
    at: BTreeMap<String, usize>,
}

impl Environment {
    fn set(&mut self, name: &str, value: String) {
        match self.at.get(name) {
            Some(at) => self.list[*at].1 = value,
            None => {
                self.at.insert(name.to_string(), self.list.len());
                self.list.push((name.to_string(), value));
            }
        }
    }

    fn get(&self, name: &str) -> Option<String> {
        self.at.get(name).map(|at| self.list[*at].1.clone())
    }
}

fn missing(kind: SourceKind, name: &str) -> String {
    match kind {
        SourceKind::ConfigMap => format!("configmap \"{name}\" not found"),
        SourceKind::Secret => format!("secret \"{name}\" not found"),
    }
}

fn from_source(
    pod: &Pod,
    container: &Container,
    from: &EnvVarSource,
    sources: &Sources,
    facts: &Facts,
) -> Result<Option<String>, String> {
    if let Some(field) = &from.field_ref {
        return downward::field(pod, &field.field_path, facts).map(Some);
    }
    if let Some(selector) = &from.resource_field_ref {
        let other = selector.container_name.as_deref().and_then(|name| naming::find_container(pod, name));
        return downward::resource(other.as_ref().unwrap_or(container), selector, facts).map(Some);
    }
    let config =
        from.config_map_key_ref.as_ref().map(|r| (SourceKind::ConfigMap, &r.name, &r.key, r.optional));
    let secret = from.secret_key_ref.as_ref().map(|r| (SourceKind::Secret, &r.name, &r.key, r.optional));
    let Some((kind, name, key, optional)) = config.or(secret) else { return Ok(Some(String::new())) };
    let optional = optional == Some(true);
    match sources.get(&Reference { kind, name: name.clone() }) {
        None if optional => Ok(None),
        None => Err(missing(kind, name)),
        Some(data) => match data.get(key) {
            Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
            None if optional => Ok(None),
            None => {
                let what = if kind == SourceKind::Secret { "Secret" } else { "ConfigMap" };
                Err(format!("couldn't find key {key} in {what} {}/{name}", naming::namespace(pod)))
            }
        },
    }
}

/// `NAME_SERVICE_HOST` and friends. The `kubernetes` service is always there; the namespace's own only if links are on.
fn service_links(services: &[Service], namespace: &str, links: bool) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for service in services {
        let (Some(name), Some(spec)) = (service.metadata.name.as_deref(), service.spec.as_ref()) else {
            continue;
        };
        let home = service.metadata.namespace.as_deref().unwrap_or_default();
        let master = home == "default" && name == "kubernetes";
        if !(master || links && home == namespace) {
            continue;
        }
        let ip = match spec.cluster_ip.as_deref() {
            Some(ip) if !ip.is_empty() && ip != "None" => ip,
            _ => continue,
        };
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let prefix = variable(name);
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_string() };
        out.push((format!("{prefix}_SERVICE_HOST"), ip.to_string()));
        out.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
        for port in ports {
            if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                out.push((format!("{prefix}_SERVICE_PORT_{}", variable(port_name)), port.port.to_string()));
            }
        }
        for (at, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            if at == 0 {
                out.push((format!("{prefix}_PORT"), url.clone()));
            }
            let stem = format!("{prefix}_PORT_{}_{protocol}", port.port);
            out.push((stem.clone(), url));
            out.push((format!("{stem}_PROTO"), protocol.to_lowercase()));
            out.push((format!("{stem}_PORT"), port.port.to_string()));
            out.push((format!("{stem}_ADDR"), ip.to_string()));
        }
    }
    out
}

fn variable(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sources() -> Sources {
        let data = BTreeMap::from([("k".to_string(), b"v".to_vec())]);
        Sources::from([(Reference { kind: SourceKind::ConfigMap, name: "m".into() }, data)])
    }

    #[test]
    fn order_references_and_expansion() {
        let container: Container = serde_json::from_value(json!({"name":"c",
            "envFrom":[{"prefix":"P_","configMapRef":{"name":"m"}},{"secretRef":{"name":"no","optional":true}}],
            "env":[{"name":"A","value":"$(P_k)-$(B)"},{"name":"B","valueFrom":{"configMapKeyRef":{"name":"m","key":"k"}}},
                   {"name":"N","valueFrom":{"fieldRef":{"fieldPath":"spec.nodeName"}}}]}))
        .unwrap();
        let facts = Facts { node_name: "n1".into(), ..Facts::default() };
        let env = build(&Pod::default(), &container, &sources(), &[], &facts).unwrap();
        let text: Vec<_> = env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(text, ["P_k=v", "A=v-$(B)", "B=v", "N=n1"]);
        assert_eq!(references(&container).len(), 2);
    }

    #[test]
    fn missing_objects_are_named() {
        let container: Container = serde_json::from_value(json!({"name":"c",
            "env":[{"name":"A","valueFrom":{"secretKeyRef":{"name":"s","key":"k"}}}]}))
        .unwrap();
        let error = build(&Pod::default(), &container, &sources(), &[], &Facts::default()).unwrap_err();
        assert_eq!(error, "secret \"s\" not found");
    }

    #[test]
    fn service_links_stay_in_the_namespace() {
        let service = |ns: &str, name: &str| -> Service {
            serde_json::from_value(json!({"metadata":{"namespace":ns,"name":name},
                "spec":{"clusterIP":"10.0.0.1","ports":[{"name":"web","port":80}]}}))
            .unwrap()
        };
        let all = [service("default", "kubernetes"), service("a", "my-db"), service("b", "other")];
        let names =
            |links| -> Vec<String> { service_links(&all, "a", links).into_iter().map(|(k, _)| k).collect() };
        assert!(names(true).contains(&"MY_DB_PORT_80_TCP_ADDR".to_string()));
        assert!(!names(true).iter().any(|n| n.starts_with("OTHER")));
        assert!(names(false).iter().all(|n| n.starts_with("KUBERNETES_")));
    }
}
