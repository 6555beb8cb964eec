//! What is allowed in a pod and rarely meant: texts for `Warning` headers.

use crate::validate::fractional_bytes;
use crate::value::{at, items, text};
use keelson_api::Path;
use keelson_api::field::quote;
use serde_json::Value;

/// Warnings about a pod's spec at `path`.
pub fn spec(spec: &Value, path: &Path) -> Vec<String> {
    let mut out = vec![];
    affinity(&spec["affinity"], &path.child("affinity"), &mut out);
    for (i, c) in items(spec, "topologySpreadConstraints").iter().enumerate() {
        let at_i = path.child("topologySpreadConstraints").index(i);
        null_selector(&c["labelSelector"], &at_i.child("labelSelector"), &mut out);
    }
    repeated(items(spec, "hostAliases"), "ip", &path.child("hostAliases"), "ip", &mut out);
    repeated(items(spec, "imagePullSecrets"), "name", &path.child("imagePullSecrets"), "name", &mut out);
    for (i, v) in items(spec, "volumes").iter().enumerate() {
        volume(v, &path.child("volumes").index(i), &mut out);
    }
    for list in ["initContainers", "containers"] {
        for (i, c) in items(spec, list).iter().enumerate() {
            container(c, &path.child(list).index(i), &mut out);
        }
    }
    out
}

/// Warnings about the template of `object`.
pub fn template(object: &Value) -> Vec<String> {
    spec(at(object, "spec.template.spec"), &Path::new("spec").child("template").child("spec"))
}

fn null_selector(selector: &Value, path: &Path, out: &mut Vec<String>) {
    if selector.is_null() {
        out.push(format!("{path}: a null labelSelector results in matching no pod"));
    }
}

fn affinity(affinity: &Value, path: &Path, out: &mut Vec<String>) {
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (terms, path) = (&affinity[kind], path.child(kind));
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        for (i, t) in items(terms, required).iter().enumerate() {
            null_selector(&t["labelSelector"], &path.child(required).index(i).child("labelSelector"), out);
        }
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        for (i, t) in items(terms, preferred).iter().enumerate() {
            let at_term = path.child(preferred).index(i).child("podAffinityTerm");
            null_selector(at(t, "podAffinityTerm.labelSelector"), &at_term.child("labelSelector"), out);
        }
    }
}

fn repeated(list: &[Value], field: &str, path: &Path, word: &str, out: &mut Vec<String>) {
    for (i, item) in list.iter().enumerate() {
        if list[..i].iter().any(|before| before[field] == item[field]) {
            out.push(format!(
                "{}: duplicate {word} {}",
                path.index(i).child(field),
                quote(text(item, field))
            ));
        }
    }
}

/// Kinds of volume that work no longer.
const GONE: [(&str, &str); 9] = [
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

fn volume(v: &Value, path: &Path, out: &mut Vec<String>) {
    for (kind, since) in GONE {
        if !v[kind].is_null() {
            out.push(format!("{}: {since}", path.child(kind)));
        }
    }
    if items(&v["projected"], "sources").iter().any(crate::value::is_empty) {
        out.push(format!("volume {} (Projected) has no sources provided", quote(text(v, "name"))));
    }
    let claim = at(v, "ephemeral.volumeClaimTemplate.spec");
    if claim.is_object() {
        let prefix = format!("{}.", path.child("ephemeral").child("volumeClaimTemplate").child("spec"));
        out.extend(super::storage::claim_warnings(claim, &prefix));
    }
}

fn container(c: &Value, path: &Path, out: &mut Vec<String>) {
    let ports = items(c, "ports");
    for (i, p) in ports.iter().enumerate() {
        let same =
            |o: &&Value| ["containerPort", "protocol", "hostIP", "hostPort"].iter().all(|f| o[*f] == p[*f]);
        if let Some(first) = ports[..i].iter().position(|o| same(&o)) {
            let at_ports = path.child("ports");
            out.push(format!(
                "{}: duplicate port definition with {}",
                at_ports.index(i),
                at_ports.index(first)
            ));
        }
    }
    let env = items(c, "env");
    for (i, e) in env.iter().enumerate() {
        // A later definition may refer to the one it hides.
        let name = text(e, "name");
        let refers = text(e, "value").contains(&format!("$({name})"));
        if env[..i].iter().any(|before| before["name"] == e["name"]) && !refers {
            let at_i = path.child("env").index(i);
            out.push(format!(
                "{at_i}: hides previous definition of {}, which may be dropped when using apply",
                quote(name)
            ));
        }
    }
    for which in ["limits", "requests"] {
        for resource in ["memory", "ephemeral-storage"] {
            if let Some(shown) = fractional_bytes(&c["resources"][which][resource]) {
                let at_key = path.child("resources").child(which).key(resource);
                out.push(format!("{at_key}: fractional byte value {shown} is invalid, must be an integer"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_rarely_meant_is_said() {
        let odd = json!({"containers": [{"ports": [{"containerPort": 80}, {"containerPort": 80}],
            "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "A", "value": "$(A)3"}],
            "resources": {"limits": {"memory": "100m"}}}], "volumes": [{"name": "v", "gitRepo": {}}]});
        let said = spec(&odd, &Path::new("spec"));
        assert_eq!(said.len(), 4, "{said:?}");
        assert!(
            said[3].ends_with("fractional byte value \"100m\" is invalid, must be an integer"),
            "{said:?}"
        );
    }
}
