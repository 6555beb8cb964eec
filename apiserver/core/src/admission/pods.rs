//! What every pod gets: a service account and its token, a priority, tolerations for a failing node.

use crate::context::{Context, Target};
use crate::resources::core_misc::HIGHEST_USER_PRIORITY;
use crate::value::{at, each_mut, items, object_mut, set, take, text};
use keelson_api::Status;
use serde_json::{Value, json};

const TOKEN_MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN_PREFIX: &str = "kube-api-access-";
/// An hour and the slack that lets old clients notice that the token is the short-lived kind.
const TOKEN_SECONDS: i64 = 3607;
const TOLERATION_SECONDS: i64 = 300;
const MIRROR: &str = "kubernetes.io/config.mirror";

/// ServiceAccount: the default one, its pull secrets and its token volume.
pub fn service_account(target: &Target, pod: &mut Value, ctx: &Context) -> Result<(), Status> {
    let forbidden =
        |pod: &Value, cause: String| Status::forbidden(target.resource, text(pod, "metadata.name"), &cause);
    if at(pod, "metadata.annotations").get(MIRROR).is_some() {
        if !text(pod, "spec.serviceAccountName").is_empty() {
            return Err(forbidden(pod, "a mirror pod may not reference service accounts".into()));
        }
        return Ok(());
    }
    if text(pod, "spec.serviceAccountName").is_empty() {
        set(pod, "spec.serviceAccountName", "default");
        set(pod, "spec.serviceAccount", "default");
    }
    let name = text(pod, "spec.serviceAccountName").to_string();
    let namespace = target.namespace;
    let Some(account) = ctx.view.get("", "serviceaccounts", namespace, &name) else {
        let cause = format!(
            "error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"
        );
        return Err(forbidden(pod, cause));
    };
    if items(pod, "spec.imagePullSecrets").is_empty() && !items(&account, "imagePullSecrets").is_empty() {
        set(pod, "spec.imagePullSecrets", account["imagePullSecrets"].clone());
    }
    let wanted = at(pod, "spec.automountServiceAccountToken")
        .as_bool()
        .or(account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if wanted {
        mount_token(pod, ctx);
    }
    Ok(())
}

fn mount_token(pod: &mut Value, ctx: &Context) {
    let existing =
        items(pod, "spec.volumes").iter().map(|v| text(v, "name")).find(|n| n.starts_with(TOKEN_PREFIX));
    let (volume, have) = match existing {
        Some(name) => (name.to_string(), true),
        None => (format!("{TOKEN_PREFIX}{}", ctx.suffix), false),
    };
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in each_mut(&mut pod["spec"], list) {
            if items(container, "volumeMounts").iter().any(|m| text(m, "mountPath") == TOKEN_MOUNT) {
                continue;
            }
            mounted = true;
            let mount = json!({"name": volume, "readOnly": true, "mountPath": TOKEN_MOUNT});
            push(container, "volumeMounts", mount);
        }
    }
    if mounted && !have {
        let sources = json!([
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]);
        push(
            &mut pod["spec"],
            "volumes",
            json!({"name": volume, "projected": {"sources": sources, "defaultMode": 420}}),
        );
    }
}

fn push(value: &mut Value, field: &str, item: Value) {
    let list = crate::value::map_mut(value).entry(field).or_insert_with(|| json!([]));
    match list {
        Value::Array(list) => list.push(item),
        other => *other = json!([item]),
    }
}

/// Priority: the number that goes with the class.
pub fn priority(target: &Target, pod: &mut Value, ctx: &Context) -> Result<(), Status> {
    let forbidden =
        |pod: &Value, cause: &str| Status::forbidden(target.resource, text(pod, "metadata.name"), cause);
    let class_name = text(pod, "spec.priorityClassName").to_string();
    let classes = ctx.view.list("scheduling.k8s.io", "priorityclasses", None);
    let class = if class_name.is_empty() {
        let defaults = classes.iter().filter(|c| c["globalDefault"] == true);
        let chosen = defaults.min_by_key(|c| c["value"].as_i64().unwrap_or(i64::MAX));
        if let Some(class) = chosen {
            set(pod, "spec.priorityClassName", crate::value::name(class));
        }
        chosen.cloned()
    } else {
        classes.iter().find(|c| crate::value::name(c) == class_name).cloned()
    };
    let (value, policy) = match (&class, class_name.as_str()) {
        (Some(class), _) => {
            (class["value"].as_i64().unwrap_or(0), text(class, "preemptionPolicy").to_string())
        }
        // These two exist from the start; a server that has not made them yet knows them all the same.
        (None, "system-node-critical") => (2 * HIGHEST_USER_PRIORITY + 1000, String::new()),
        (None, "system-cluster-critical") => (2 * HIGHEST_USER_PRIORITY, String::new()),
        (None, "") => (0, String::new()),
        (None, name) => return Err(forbidden(pod, &format!("no PriorityClass with name {name} was found"))),
    };
    if let Some(given) = at(pod, "spec.priority").as_i64().filter(|p| *p != value) {
        let cause = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(forbidden(pod, &cause));
    }
    set(pod, "spec.priority", value);
    let policy = if policy.is_empty() { "PreemptLowerPriority".to_string() } else { policy };
    if let Some(given) = at(pod, "spec.preemptionPolicy").as_str().filter(|p| *p != policy) {
        let cause = format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        );
        return Err(forbidden(pod, &cause));
    }
    set(pod, "spec.preemptionPolicy", policy);
    Ok(())
}

/// RuntimeClass: what running under the class costs, and where it can run.
pub fn runtime_class(target: &Target, pod: &mut Value, ctx: &Context) -> Result<(), Status> {
    let reject = |pod: &Value, cause: &str| {
        Err(Status::forbidden(target.resource, text(pod, "metadata.name"), &format!("pod rejected: {cause}")))
    };
    let class = match at(pod, "spec.runtimeClassName").as_str() {
        None => Value::Null,
        Some("") => {
            let message = "resource name may not be empty".to_owned();
            return Err(Status { code: 500, message, bare: true, ..Status::default() });
        }
        Some(name) => match ctx.view.get("node.k8s.io", "runtimeclasses", "", name) {
            Some(class) => (*class).clone(),
            None => return reject(pod, &format!("RuntimeClass {name:?} not found")),
        },
    };
    let costs = at(&class, "overhead.podFixed").clone();
    let given = at(pod, "spec.overhead").clone();
    if !costs.is_null() {
        if !given.is_null() && given != costs {
            return reject(pod, "Pod's Overhead doesn't match RuntimeClass's defined Overhead");
        }
        set(pod, "spec.overhead", costs);
    } else if !given.is_null() {
        return reject(pod, "Pod Overhead set without corresponding RuntimeClass defined Overhead");
    }
    for (key, wanted) in at(&class, "scheduling.nodeSelector").as_object().into_iter().flatten() {
        let selector = object_mut(&mut pod["spec"], "nodeSelector");
        let found = selector.entry(key.clone()).or_insert_with(|| wanted.clone()).clone();
        if found != *wanted {
            let (wanted, found) = (wanted.as_str().unwrap_or(""), found.as_str().unwrap_or(""));
            return reject(
                pod,
                &format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; pod.spec.nodeSelector[{key}] = {found}"
                ),
            );
        }
    }
    for toleration in items(&class, "scheduling.tolerations") {
        if !items(pod, "spec.tolerations").contains(toleration) {
            push(&mut pod["spec"], "tolerations", toleration.clone());
        }
    }
    Ok(())
}

/// DefaultTolerationSeconds: five minutes on a node that is not ready or not reachable.
pub fn tolerations(pod: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = items(pod, "spec.tolerations").iter().any(|t| {
            let effect = text(t, "effect");
            (text(t, "key") == key || text(t, "key").is_empty())
                && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS});
            push(object_value(pod), "tolerations", toleration);
        }
    }
}

fn object_value(pod: &mut Value) -> &mut Value {
    object_mut(pod, "spec");
    &mut pod["spec"]
}

/// TaintNodesByCondition: a new node is not ready until it says so.
pub fn taint_new_node(node: &mut Value) {
    let key = "node.kubernetes.io/not-ready";
    if !items(node, "spec.taints").iter().any(|t| text(t, "key") == key && text(t, "effect") == "NoSchedule")
    {
        push(object_value(node), "taints", json!({"key": key, "effect": "NoSchedule"}));
    }
}

/// What admission computed stays when an update leaves it out.
pub fn keep_assigned(current: &Value, new: &mut Value) {
    for field in ["priority", "preemptionPolicy"] {
        if new["spec"][field].is_null() {
            crate::value::copy(&current["spec"], &mut new["spec"], field);
        }
    }
    if text(new, "spec.nodeName").is_empty() && text(current, "spec.nodeName").is_empty() {
        take(new, "spec.nodeName");
    }
}
