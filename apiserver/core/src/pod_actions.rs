//! Actions on pods and service accounts that are POSTs below an object: binding, eviction, token requests.

use crate::context::{Context, DeleteOptions, Deletion, Outcome, Target};
use crate::value::{at, int, items, namespace, set, take, terminating, text};
use keelson_api::{Cause, ErrorList, FieldError, LabelSelector, Path, Status};
use serde_json::{Value, json};

/// Where a pod goes: its next state after a Binding. The answer to the client is [`Status::created`].
pub fn bind(target: &Target, pod: &Value, binding: &Value, ctx: &Context) -> Result<Outcome, Status> {
    let mut errors = ErrorList::new();
    let path = Path::new("target");
    let kind = text(binding, "target.kind");
    if !kind.is_empty() && kind != "Node" {
        errors.push(FieldError::not_supported(&path.child("kind"), kind, &["Node", "<empty>"]));
    }
    let node = text(binding, "target.name");
    if node.is_empty() {
        errors.push(FieldError::required(&path.child("name"), ""));
    }
    let name = text(binding, "metadata.name");
    if !name.is_empty() && name != target.name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    if !errors.is_empty() {
        // Upstream gives its finding away as it is.
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let message = if all.len() == 1 { all.concat() } else { format!("[{}]", all.join(", ")) };
        return Err(Status { code: 500, message, bare: true, ..Status::default() });
    }
    let conflict = |cause: String| {
        let mut status = Status::conflict(target.resource, target.name, &cause);
        status.message =
            format!("Operation cannot be fulfilled on pods/binding \"{}\": {cause}", target.name);
        status.kind = "pods/binding".into();
        status
    };
    let uid = text(binding, "metadata.uid");
    if !uid.is_empty() && uid != text(pod, "metadata.uid") {
        return Err(crate::write::uid_mismatch(target, uid, text(pod, "metadata.uid")));
    }
    if terminating(pod) {
        return Err(conflict(format!("pod {} is being deleted, cannot be assigned to a host", target.name)));
    }
    let assigned = text(pod, "spec.nodeName");
    if !assigned.is_empty() {
        return Err(conflict(format!("pod {} is already assigned to node {assigned:?}", target.name)));
    }
    if !items(pod, "spec.schedulingGates").is_empty() {
        return Err(conflict(format!("pod {} has non-empty .spec.schedulingGates", target.name)));
    }
    let mut next = pod.clone();
    take(&mut next, "metadata.resourceVersion");
    set(&mut next, "spec.nodeName", node);
    for (key, value) in at(binding, "metadata.annotations").as_object().into_iter().flatten() {
        crate::value::object_mut(&mut next["metadata"], "annotations").insert(key.clone(), value.clone());
    }
    topology_labels(node, &mut next, ctx);
    condition(&mut next, "PodScheduled", "True", ctx);
    Ok(Outcome { object: next, ..Outcome::default() })
}

/// A pod knows the zone and region of its node.
fn topology_labels(node: &str, pod: &mut Value, ctx: &Context) {
    let Some(node) = ctx.view.get("", "nodes", "", node) else { return };
    for key in ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"] {
        if let Some(value) = node["metadata"]["labels"].get(key) {
            crate::value::object_mut(&mut pod["metadata"], "labels").insert(key.into(), value.clone());
        }
    }
}

/// Sets a condition in a pod's status.
fn condition(pod: &mut Value, kind: &str, state: &str, ctx: &Context) {
    let mut list = items(pod, "status.conditions").to_vec();
    list.retain(|c| text(c, "type") != kind);
    list.push(json!({
        "type": kind, "status": state, "lastProbeTime": null, "lastTransitionTime": crate::meta::time(ctx.now),
    }));
    set(pod, "status.conditions", list);
}

/// What an eviction leads to: first store the budget (comparing its revision), then carry out the deletion.
#[derive(Debug)]
pub struct Eviction {
    /// The budget after this disruption, without resourceVersion; compare with the revision in the view.
    pub budget: Option<Value>,
    pub deletion: Deletion,
}

/// Deletes a pod if the budgets of its namespace allow it. The answer to the client is [`Status::created`].
pub fn evict(target: &Target, pod: &Value, eviction: &Value, ctx: &Context) -> Result<Eviction, Status> {
    let name = text(eviction, "metadata.name");
    if !name.is_empty() && name != target.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let options = DeleteOptions::from_value(at(eviction, "deleteOptions"))?;
    let main = Target { subresource: None, ..*target };
    let deletion = || crate::delete::delete(&main, &evicted(pod, ctx), &options, ctx);
    let phase = text(pod, "status.phase");
    if phase == "Succeeded" || phase == "Failed" || phase == "Pending" || terminating(pod) {
        return Ok(Eviction { budget: None, deletion: deletion()? });
    }
    let labels = at(pod, "metadata.labels");
    let mut budgets = ctx.view.list("policy", "poddisruptionbudgets", Some(namespace(pod)));
    budgets.retain(|b| {
        LabelSelector::from_object(at(b, "spec.selector")).matches(labels) && namespace(b) == namespace(pod)
    });
    let budget = match budgets.as_slice() {
        [] => return Ok(Eviction { budget: None, deletion: deletion()? }),
        [one] => one,
        _ => {
            let message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(Status { code: 500, message: message.into(), bare: true, ..Status::default() });
        }
    };
    let ready = items(pod, "status.conditions")
        .iter()
        .any(|c| text(c, "type") == "Ready" && text(c, "status") == "True");
    if !ready {
        let healthy = int(budget, "status.currentHealthy") >= int(budget, "status.desiredHealthy")
            && int(budget, "status.desiredHealthy") > 0;
        if healthy || text(budget, "spec.unhealthyPodEvictionPolicy") == "AlwaysAllow" {
            return Ok(Eviction { budget: None, deletion: deletion()? });
        }
    }
    let next = disrupt(target, budget, ctx)?;
    #[cfg(feature = "planted")]
    if keelson_plant::is(35) {
        return Ok(Eviction { budget: None, deletion: deletion()? });
    }
    Ok(Eviction { budget: Some(next), deletion: deletion()? })
}

/// A pod that says why it goes.
pub fn evicted(pod: &Value, ctx: &Context) -> Value {
    let mut pod = pod.clone();
    let mut list = items(&pod, "status.conditions").to_vec();
    if list.iter().any(|c| text(c, "type") == "DisruptionTarget") {
        return pod;
    }
    list.push(json!({
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
        "lastProbeTime": null, "lastTransitionTime": crate::meta::time(ctx.now),
    }));
    set(&mut pod, "status.conditions", list);
    pod
}

/// Takes one disruption from a budget.
fn disrupt(target: &Target, budget: &Value, ctx: &Context) -> Result<Value, Status> {
    let name = crate::value::name(budget);
    let refused = |detail: String, seconds: u32| {
        let mut status = Status::too_many_requests(
            "Cannot evict pod as it would violate the pod's disruption budget.",
            seconds,
        );
        status.causes =
            vec![Cause { reason: "DisruptionBudget".into(), message: detail, field: String::new() }];
        status
    };
    let observed = int(budget, "status.observedGeneration");
    if observed < int(budget, "metadata.generation") {
        return Err(refused(
            format!("The disruption budget {name} is still being processed by the server."),
            10,
        ));
    }
    let allowed = int(budget, "status.disruptionsAllowed");
    if allowed <= 0 {
        let detail = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            int(budget, "status.desiredHealthy"),
            int(budget, "status.currentHealthy")
        );
        return Err(refused(detail, 0));
    }
    let mut next = budget.clone();
    take(&mut next, "metadata.resourceVersion");
    set(&mut next, "status.disruptionsAllowed", allowed - 1);
    let (state, reason) =
        if allowed > 1 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let mut conditions = items(&next, "status.conditions").to_vec();
    conditions.retain(|c| text(c, "type") != "DisruptionAllowed");
    conditions.push(json!({
        "type": "DisruptionAllowed", "status": state, "reason": reason, "message": "",
        "observedGeneration": observed, "lastTransitionTime": crate::meta::time(ctx.now),
    }));
    set(&mut next, "status.conditions", conditions);
    let status = &mut next["status"];
    crate::value::object_mut(status, "disruptedPods")
        .insert(target.name.into(), crate::meta::time(ctx.now).into());
    Ok(next)
}

/// What a token request leads to.
#[derive(Debug)]
pub struct TokenRequest {
    /// The claims to sign, without `iss` and `jti`; `aud` is empty when the client named none (use the server's own).
    pub claims: Value,
    /// The answer; put the token into `status.token`.
    pub answer: Value,
}

const MIN_TOKEN_SECONDS: i64 = 600;
const MAX_TOKEN_SECONDS: i64 = 1 << 32;

/// A token for a service account, bound to what the request names.
pub fn token_request(
    target: &Target,
    account: &Value,
    request: &Value,
    ctx: &Context,
) -> Result<TokenRequest, Status> {
    let path = Path::new("spec");
    let seconds = at(request, "spec.expirationSeconds").as_i64().unwrap_or(3600);
    let mut errors = ErrorList::new();
    let named = text(request, "metadata.name");
    if !named.is_empty() && named != target.name {
        let detail = "must match the service account name if specified";
        errors.push(FieldError::invalid(&Path::new("metadata").child("name"), named, detail));
        return Err(Status::invalid_kind("authentication.k8s.io", "TokenRequest", target.name, errors));
    }
    let at_seconds = path.child("expirationSeconds");
    if seconds < MIN_TOKEN_SECONDS {
        errors.push(FieldError::invalid(
            &at_seconds,
            seconds,
            "may not specify a duration less than 10 minutes",
        ));
    } else if seconds > MAX_TOKEN_SECONDS {
        errors.push(FieldError::invalid(
            &at_seconds,
            seconds,
            "may not specify a duration larger than 2^32 seconds",
        ));
    }
    if !errors.is_empty() {
        let name = text(request, "metadata.name");
        return Err(Status::invalid_kind("authentication.k8s.io", "TokenRequest", name, errors));
    }
    let namespace = target.namespace;
    let issued = ctx.now.as_second();
    let expires = issued + seconds;
    let mut private = json!({
        "namespace": namespace,
        "serviceaccount": {"name": target.name, "uid": text(account, "metadata.uid")},
    });
    bound_object(target, request, &mut private, ctx)?;
    let claims = json!({
        "aud": items(request, "spec.audiences"),
        "exp": expires,
        "iat": issued,
        "nbf": issued,
        "kubernetes.io": private,
        "sub": format!("system:serviceaccount:{namespace}:{}", target.name),
    });
    let mut answer = request.clone();
    set(&mut answer, "spec.expirationSeconds", seconds);
    set(&mut answer, "metadata.name", target.name);
    set(&mut answer, "metadata.namespace", namespace);
    set(&mut answer, "metadata.creationTimestamp", crate::meta::time(ctx.now));
    let when = jiff::Timestamp::from_second(expires).unwrap_or(ctx.now);
    set(&mut answer, "status", json!({"token": "", "expirationTimestamp": crate::meta::time(when)}));
    Ok(TokenRequest { claims, answer })
}

fn bound_object(target: &Target, request: &Value, private: &mut Value, ctx: &Context) -> Result<(), Status> {
    let reference = at(request, "spec.boundObjectRef");
    if reference.is_null() {
        return Ok(());
    }
    let (kind, name, uid) = (text(reference, "kind"), text(reference, "name"), text(reference, "uid"));
    let (group, version) =
        text(reference, "apiVersion").split_once('/').unwrap_or(("", text(reference, "apiVersion")));
    let (plural, namespace) = match (group, kind) {
        ("", "Pod") => ("pods", target.namespace),
        ("", "Secret") => ("secrets", target.namespace),
        ("", "Node") => ("nodes", ""),
        _ => {
            let message = format!("cannot bind token to object of type {group}/{version}, Kind={kind}");
            return Err(Status::bad_request(message));
        }
    };
    let resource = keelson_api::resource::find_preferred("", plural)
        .ok_or_else(|| Status::internal(format!("no resource {plural}")))?;
    let Some(object) = ctx.view.get("", plural, namespace, name) else {
        return Err(Status::not_found(resource, name));
    };
    let found = text(&object, "metadata.uid");
    if !uid.is_empty() && uid != found {
        let cause = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        let mut status = Status::conflict(resource, name, &cause);
        status.message = format!("Operation cannot be fulfilled on {kind} \"{name}\": {cause}");
        status.kind = kind.to_owned();
        return Err(status);
    }
    if kind == "Pod" {
        let account = text(&object, "spec.serviceAccountName");
        if account != target.name {
            let message = format!(
                "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                target.name
            );
            return Err(Status::bad_request(message));
        }
        let node = text(&object, "spec.nodeName");
        if !node.is_empty() {
            let node_uid = ctx.view.get("", "nodes", "", node).map(|n| text(&n, "metadata.uid").to_string());
            let mut claim = json!({"name": node});
            if let Some(uid) = node_uid {
                set(&mut claim, "uid", uid);
            }
            set(private, "node", claim);
        }
    }
    set(private, &kind.to_lowercase(), json!({"name": name, "uid": found}));
    Ok(())
}
