//! PodSecurity: the Pod Security Standards, chosen by labels of the namespace.
//!
//! `enforce` refuses pods, `warn` warns about pods and about what makes pods. Versions are read and named in
//! messages; the checks are those of the newest one.

mod checks;

use crate::context::{Context, Target};
use crate::value::{at, is_empty, text};
use keelson_api::{ErrorList, FieldError, Path, Status};
use serde_json::Value;

const PREFIX: &str = "pod-security.kubernetes.io/";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    #[default]
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Level> {
        match text {
            "privileged" => Some(Level::Privileged),
            "baseline" => Some(Level::Baseline),
            "restricted" => Some(Level::Restricted),
            _ => None,
        }
    }
    fn name(self) -> &'static str {
        match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        }
    }
}

/// A level and the version of its checks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    level: Level,
    version: String,
}

impl Rule {
    fn named(&self) -> String {
        format!("{}:{}", self.level.name(), self.version)
    }
    /// What a pod does that it may not do.
    fn broken_by(&self, metadata: &Value, spec: &Value) -> Option<String> {
        let broken = checks::broken(self.level, metadata, spec);
        let all: Vec<String> = broken.into_iter().map(|b| format!("{} ({})", b.reason, b.detail)).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }
}

/// What a namespace asks for `mode`, if it says anything. A level nobody knows is the strictest.
fn rule(namespace: &Value, mode: &str) -> Option<Rule> {
    let labels = at(namespace, "metadata.labels");
    let label = |name: &str| labels.get(format!("{PREFIX}{name}")).and_then(Value::as_str);
    let level = label(mode)?;
    let version = label(&format!("{mode}-version")).filter(|v| version_known(v)).unwrap_or("latest");
    Some(Rule { level: Level::parse(level).unwrap_or(Level::Restricted), version: version.into() })
}

fn version_known(version: &str) -> bool {
    let minor = version.strip_prefix("v1.").unwrap_or("");
    let number = minor == "0" || (!minor.starts_with('0') && minor.parse::<u32>().is_ok());
    version == "latest" || (number && minor.bytes().all(|b| b.is_ascii_digit()))
}

/// Where the pod stands in an object that makes pods.
fn template(target: &Target) -> Option<&'static str> {
    match (target.resource.group.as_str(), target.resource.plural.as_str()) {
        ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets") => Some("spec.template"),
        ("batch", "jobs") | ("", "replicationcontrollers") => Some("spec.template"),
        ("batch", "cronjobs") => Some("spec.jobTemplate.spec.template"),
        ("", "podtemplates") => Some("template"),
        _ => None,
    }
}

/// Judges a new or changed object. Returns warnings.
pub fn check(target: &Target, object: &Value, ctx: &Context) -> Result<Vec<String>, Status> {
    if !target.resource.namespaced || !matches!(target.subresource, None | Some("ephemeralcontainers")) {
        return Ok(vec![]);
    }
    let is_pod = super::is(target, "", "pods");
    let template = template(target);
    if !is_pod && template.is_none() {
        return Ok(vec![]);
    }
    let Some(namespace) = ctx.view.get("", "namespaces", "", target.namespace) else { return Ok(vec![]) };
    let (enforce, warn) = (rule(&namespace, "enforce"), rule(&namespace, "warn"));
    let pod = template.map_or(object, |path| at(object, path));
    let (metadata, spec) = (&pod["metadata"], &pod["spec"]);
    if is_empty(spec) {
        return Ok(vec![]);
    }
    if let Some(enforce) = enforce.as_ref().filter(|_| is_pod)
        && let Some(broken) = enforce.broken_by(metadata, spec)
    {
        let cause = format!("violates PodSecurity \"{}\": {broken}", enforce.named());
        return Err(Status::forbidden(target.resource, text(object, "metadata.name"), &cause));
    }
    let Some(warn) = warn.or(enforce) else { return Ok(vec![]) };
    let broken = warn.broken_by(metadata, spec);
    Ok(broken.map(|b| format!("would violate PodSecurity \"{}\": {b}", warn.named())).into_iter().collect())
}

/// Judges the labels of a namespace, and its pods when it becomes stricter. Returns warnings.
pub fn namespace(current: Option<&Value>, new: &Value, ctx: &Context) -> Result<Vec<String>, Status> {
    let labels = at(new, "metadata.labels");
    let mut errors = ErrorList::new();
    for mode in ["enforce", "audit", "warn"] {
        let key = format!("{PREFIX}{mode}");
        if let Some(level) = labels.get(&key).and_then(Value::as_str)
            && Level::parse(level).is_none()
        {
            errors.push(invalid(&key, level, "must be one of privileged, baseline, restricted"));
        }
        let key = format!("{key}-version");
        if let Some(version) = labels.get(&key).and_then(Value::as_str)
            && !version_known(version)
        {
            errors.push(invalid(&key, version, "must be \"latest\" or \"v1.x\""));
        }
    }
    if !errors.is_empty() && current.is_none_or(|c| ours(c) != ours(new)) {
        return Err(Status::invalid_kind("", "Namespace", text(new, "metadata.name"), errors));
    }
    let Some(rule) = rule(new, "enforce").filter(|r| r.level > Level::Privileged) else { return Ok(vec![]) };
    let before = current.and_then(|c| self::rule(c, "enforce"));
    if current.is_none() || before.is_some_and(|b| b.level >= rule.level) {
        return Ok(vec![]);
    }
    Ok(existing(text(new, "metadata.name"), &rule, ctx))
}

fn ours(object: &Value) -> Vec<(&String, &Value)> {
    let labels = at(object, "metadata.labels").as_object().into_iter().flatten();
    labels.filter(|(k, _)| k.starts_with(PREFIX)).collect()
}

fn invalid(key: &str, value: &str, detail: &str) -> FieldError {
    FieldError::invalid(&Path::new("metadata").child("labels").key(key), value, detail)
}

/// The pods that would not be let in any more: one line for each set of reasons.
fn existing(namespace: &str, rule: &Rule, ctx: &Context) -> Vec<String> {
    let mut found: std::collections::BTreeMap<String, Vec<String>> = Default::default();
    for pod in ctx.view.list("", "pods", Some(namespace)) {
        let broken = checks::broken(rule.level, &pod["metadata"], &pod["spec"]);
        let reasons: Vec<String> = broken.into_iter().map(|b| b.reason).collect();
        if !reasons.is_empty() {
            found.entry(reasons.join(", ")).or_default().push(text(&pod, "metadata.name").into());
        }
    }
    if found.is_empty() {
        return vec![];
    }
    let name = rule.named();
    let head = format!(
        "existing pods in namespace \"{namespace}\" violate the new PodSecurity enforce level \"{name}\""
    );
    let mut lines: Vec<String> = found
        .into_iter()
        .map(|(reasons, mut pods)| {
            pods.sort();
            let first = pods.first().cloned().unwrap_or_default();
            match pods.len() {
                1 => format!("{first}: {reasons}"),
                2 => format!("{first} (and 1 other pod): {reasons}"),
                n => format!("{first} (and {} other pods): {reasons}", n - 1),
            }
        })
        .collect();
    lines.sort();
    lines.insert(0, head);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_stricter_level_never_allows_more() {
        let good = json!({"containers": [{"name": "c", "securityContext": {"runAsNonRoot": true,
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"}}}]});
        let plain = json!({"containers": [{"name": "c"}]});
        let bad =
            json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}], "hostPID": true});
        let broken = |level, spec: &Value| checks::broken(level, &Value::Null, spec).len();
        for spec in [&good, &plain, &bad] {
            assert_eq!(broken(Level::Privileged, spec), 0);
            assert!(broken(Level::Baseline, spec) <= broken(Level::Restricted, spec), "{spec}");
        }
        assert_eq!((broken(Level::Restricted, &good), broken(Level::Baseline, &plain)), (0, 0));
        assert_eq!((broken(Level::Restricted, &plain), broken(Level::Baseline, &bad)), (4, 2));
    }

    #[test]
    fn versions() {
        for (text, good) in [
            ("latest", true),
            ("v1.0", true),
            ("v1.36", true),
            ("v1.036", false),
            ("1.2", false),
            ("v1.", false),
        ] {
            assert_eq!(version_known(text), good, "{text}");
        }
    }
}
