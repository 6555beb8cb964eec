//! Admission webhooks: which of them a request concerns, what they are asked, what their answer means. Calling them is
//! the server's part.

use crate::context::{Target, UserInfo, View};
use crate::value::{at, is_empty, items, text};
use base64::Engine as _;
use keelson_api::{LabelSelector, Status};
use serde_json::{Value, json};

/// The group of the configurations; webhooks are never asked about these.
const GROUP: &str = "admissionregistration.k8s.io";

/// What is about to happen to an object.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// `CREATE`, `UPDATE`, `DELETE`, `CONNECT`.
    pub operation: &'static str,
    pub target: Target<'a>,
    pub old: Option<&'a Value>,
    pub new: Option<&'a Value>,
    pub user: &'a UserInfo,
    pub dry_run: bool,
}

/// One webhook of a configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Hook(Value);

impl Hook {
    pub fn name(&self) -> &str {
        text(&self.0, "name")
    }
    pub fn client_config(&self) -> &Value {
        &self.0["clientConfig"]
    }
    /// Seconds.
    pub fn timeout(&self) -> u64 {
        self.0["timeoutSeconds"].as_u64().unwrap_or(10)
    }
    /// A webhook that cannot be asked does not matter.
    fn may_fail(&self) -> bool {
        self.0["failurePolicy"] == "Ignore"
    }
}

/// The webhooks a request concerns, in the order in which they are asked.
pub fn matching(request: &Request, view: &dyn View, mutating: bool) -> Vec<Hook> {
    if request.target.resource.group == GROUP {
        return vec![];
    }
    let plural = if mutating { "mutatingwebhookconfigurations" } else { "validatingwebhookconfigurations" };
    let configurations = view.list(GROUP, plural, None);
    let hooks = configurations.iter().flat_map(|c| items(c, "webhooks"));
    hooks.filter(|hook| concerns(hook, request, view)).map(|hook| Hook(hook.clone())).collect()
}

/// Whether a webhook's match conditions are all true.
///
/// # Errors
/// 403 when one cannot be evaluated and the webhook may not fail.
pub fn conditions_match(hook: &Hook, request: &Request, view: &dyn View) -> Result<bool, Status> {
    let inputs = super::policies::inputs::Inputs::new(request, view);
    match super::policies::conditions_match(&hook.0, &inputs, None) {
        Ok(matches) => Ok(matches),
        Err(_) if hook.may_fail() => Ok(false),
        Err(why) => {
            let name = request.new.or(request.old).map_or(request.target.name, |o| text(o, "metadata.name"));
            Err(Status::forbidden(request.target.resource, name, &why))
        }
    }
}

fn concerns(hook: &Value, request: &Request, view: &dyn View) -> bool {
    let rules = items(hook, "rules");
    rules.iter().any(|rule| rule_matches(rule, request))
        && namespace_matches(&hook["namespaceSelector"], request, view)
        && object_matches(&hook["objectSelector"], request)
}

pub(super) fn rule_matches(rule: &Value, request: &Request) -> bool {
    let resource = request.target.resource;
    let has = |field: &str, value: &str| items(rule, field).iter().any(|v| *v == "*" || *v == value);
    let scope = match text(rule, "scope") {
        "Namespaced" => resource.namespaced,
        "Cluster" => !resource.namespaced,
        _ => true,
    };
    has("operations", request.operation)
        && has("apiGroups", &resource.group)
        && has("apiVersions", &resource.version)
        && scope
        && items(rule, "resources").iter().filter_map(Value::as_str).any(|r| resource_matches(r, request))
}

fn resource_matches(pattern: &str, request: &Request) -> bool {
    let (plural, sub) = pattern.split_once('/').unwrap_or((pattern, ""));
    let same = |pattern: &str, value: &str| pattern == "*" || pattern == value;
    let subresource = request.target.subresource.unwrap_or("");
    same(plural, &request.target.resource.plural) && if sub == "*" { true } else { sub == subresource }
}

pub(super) fn namespace_matches(selector: &Value, request: &Request, view: &dyn View) -> bool {
    if is_empty(&selector["matchLabels"]) && is_empty(&selector["matchExpressions"]) {
        return true;
    }
    let target = &request.target;
    if target.resource.group.is_empty() && target.resource.plural == "namespaces" {
        return object_matches(selector, request);
    }
    if !target.resource.namespaced {
        return true;
    }
    let Some(namespace) = view.get("", "namespaces", "", target.namespace) else { return false };
    LabelSelector::from_object(selector).matches(at(&namespace, "metadata.labels"))
}

pub(super) fn object_matches(selector: &Value, request: &Request) -> bool {
    if is_empty(&selector["matchLabels"]) && is_empty(&selector["matchExpressions"]) {
        return true;
    }
    let selector = LabelSelector::from_object(selector);
    let labels = |object: &Value| selector.matches(at(object, "metadata.labels"));
    request.new.is_some_and(labels) || request.old.is_some_and(labels)
}

/// The `AdmissionReview` that is sent.
pub fn review(request: &Request, uid: &str) -> Value {
    let (target, user) = (&request.target, request.user);
    let resource = target.resource;
    let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    let row = json!({"group": resource.group, "version": resource.version, "resource": resource.plural});
    let either = request.new.or(request.old);
    let name = either.map_or("", |o| text(o, "metadata.name"));
    let options = match request.operation {
        "CREATE" => "CreateOptions",
        "DELETE" => "DeleteOptions",
        _ => "UpdateOptions",
    };
    let mut body = json!({
        "uid": uid, "kind": kind, "resource": row, "requestKind": kind, "requestResource": row,
        "name": name, "operation": request.operation, "dryRun": request.dry_run,
        "userInfo": {"username": user.name, "groups": user.groups},
        "object": request.new, "oldObject": request.old,
        "options": {"kind": options, "apiVersion": "meta.k8s.io/v1"},
    });
    if !user.uid.is_empty() {
        body["userInfo"]["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        body["userInfo"]["extra"] = json!(user.extra);
    }
    if !target.namespace.is_empty() {
        body["namespace"] = target.namespace.into();
    }
    if let Some(sub) = target.subresource {
        body["subResource"] = sub.into();
        body["requestSubResource"] = sub.into();
    }
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": body})
}

/// What a webhook that allows a request wants besides.
#[derive(Debug, Default, PartialEq)]
pub struct Allowed {
    /// The object after its patch, when it has one.
    pub patched: Option<Value>,
    pub warnings: Vec<String>,
}

/// Reads an answer (or why there is none).
///
/// # Errors
/// The refusal, or 500 when the webhook could not be asked and may not fail.
pub fn verdict(
    hook: &Hook,
    request: &Request,
    uid: &str,
    answer: Result<Value, String>,
) -> Result<Allowed, Status> {
    let response = answer.and_then(|answer| {
        let response = answer["response"].clone();
        if !response.is_object() {
            return Err("the answer has no response".to_owned());
        }
        if text(&response, "uid") != uid {
            return Err(format!("expected response.uid={uid:?}, got {:?}", text(&response, "uid")));
        }
        Ok(response)
    });
    let response = match response {
        Ok(response) => response,
        Err(_) if hook.may_fail() => return Ok(Allowed::default()),
        Err(why) => {
            let name = keelson_api::field::quote(hook.name());
            return Err(Status::internal(format!(
                "failed calling webhook {name}: failed to call webhook: {why}"
            )));
        }
    };
    let warnings =
        items(&response, "warnings").iter().filter_map(|w| w.as_str().map(str::to_owned)).collect();
    if response["allowed"] != true {
        return Err(refusal(hook, &response["status"]));
    }
    let patched = match (&response["patch"], request.new) {
        (Value::String(patch), Some(object)) => Some(patch_object(hook, patch, object)?),
        _ => None,
    };
    Ok(Allowed { patched, warnings })
}

fn refusal(hook: &Hook, status: &Value) -> Status {
    let denied = format!("admission webhook {} denied the request", keelson_api::field::quote(hook.name()));
    let message = match (text(status, "message"), text(status, "reason")) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    let code =
        status["code"].as_u64().and_then(|c| u16::try_from(c).ok()).filter(|c| *c >= 400).unwrap_or(400);
    let reason = match (text(status, "reason"), code) {
        (_, 403) => "Forbidden",
        (_, 409) => "Conflict",
        (_, 422) => "Invalid",
        _ => "",
    };
    Status { code, reason, message, bare: true, ..Status::default() }
}

fn patch_object(hook: &Hook, patch: &str, object: &Value) -> Result<Value, Status> {
    let wrong =
        |why: String| Status::internal(format!("webhook {} returned an unusable patch: {why}", hook.name()));
    let bytes = base64::engine::general_purpose::STANDARD.decode(patch).map_err(|e| wrong(e.to_string()))?;
    let patch: json_patch::Patch = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
    let mut patched = object.clone();
    json_patch::patch(&mut patched, &patch).map_err(|e| wrong(e.to_string()))?;
    Ok(patched)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::resource::find_preferred;

    fn request(pod: &Value) -> Request<'_> {
        static USER: std::sync::LazyLock<UserInfo> = std::sync::LazyLock::new(UserInfo::default);
        let resource = find_preferred("", "pods").expect("pods");
        let target = Target::collection(resource, "d");
        Request { operation: "CREATE", target, old: None, new: Some(pod), user: &USER, dry_run: false }
    }

    fn hook(rule: Value) -> Value {
        json!({"name": "h.example.com", "rules": [rule], "objectSelector": {"matchLabels": {"a": "b"}}})
    }

    #[test]
    fn rules_and_selectors_decide_who_is_asked() {
        let pod = json!({"metadata": {"name": "p", "labels": {"a": "b"}}});
        let rule = |resources: &str, operation: &str| json!({"operations": [operation], "apiGroups": ["*"], "apiVersions": ["v1"], "resources": [resources]});
        let asked = |resources, operation| {
            concerns(&hook(rule(resources, operation)), &request(&pod), &crate::context::EmptyView)
        };
        assert!(asked("pods", "CREATE") && asked("*", "*") && asked("*/*", "*"));
        assert!(!asked("pods", "DELETE") && !asked("pods/status", "*") && !asked("services", "*"));
        let other = json!({"metadata": {"labels": {"a": "c"}}});
        assert!(!concerns(&hook(rule("pods", "*")), &request(&other), &crate::context::EmptyView));
    }

    #[test]
    fn answers_mean_what_they_say() {
        let pod = json!({"metadata": {"name": "p"}});
        let (request, hook) = (request(&pod), Hook(json!({"name": "h.example.com"})));
        let encode = |p: &Value| base64::engine::general_purpose::STANDARD.encode(p.to_string());
        let patch = encode(&json!([{"op": "add", "path": "/metadata/labels", "value": {"x": "y"}}]));
        let yes = json!({"response": {"uid": "u", "allowed": true, "patch": patch, "patchType": "JSONPatch", "warnings": ["w"]}});
        let allowed = verdict(&hook, &request, "u", Ok(yes)).expect("allowed");
        assert_eq!(
            (&allowed.patched.expect("patched")["metadata"]["labels"]["x"], allowed.warnings),
            (&json!("y"), vec!["w".to_owned()])
        );
        let no =
            json!({"response": {"uid": "u", "allowed": false, "status": {"message": "never", "code": 403}}});
        let refused = verdict(&hook, &request, "u", Ok(no)).expect_err("refused");
        assert_eq!(
            (refused.code, refused.message.as_str()),
            (403, "admission webhook \"h.example.com\" denied the request: never")
        );
        assert_eq!(verdict(&hook, &request, "u", Err("gone".into())).expect_err("fails closed").code, 500);
        let lenient = Hook(json!({"name": "h", "failurePolicy": "Ignore"}));
        assert_eq!(verdict(&lenient, &request, "u", Err("gone".into())), Ok(Allowed::default()));
    }
}
