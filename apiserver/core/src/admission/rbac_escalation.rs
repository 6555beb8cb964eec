//! Nobody grants by a role or a binding what he may not do himself, unless he may `escalate` or `bind`.

use crate::authz::{Attributes, authorize};
use crate::context::{Context, Target};
use crate::rbac;
use crate::value::{items, text};
use keelson_api::Status;
use serde_json::Value;

const GROUP: &str = "rbac.authorization.k8s.io";

pub fn check(target: &Target, object: &Value, ctx: &Context) -> Result<(), Status> {
    if target.resource.group != GROUP || ctx.user.in_group("system:masters") {
        return Ok(());
    }
    let name = text(object, "metadata.name");
    let may = |verb: &str, resource: &str, namespace: &str, name: &str| {
        let attributes = Attributes {
            user: ctx.user.clone(),
            verb: verb.into(),
            group: GROUP.into(),
            version: "v1".into(),
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
            is_resource: true,
            ..Attributes::default()
        };
        authorize(&attributes, ctx.view).allowed()
    };
    let plural = target.resource.plural.as_str();
    let rules = match plural {
        "roles" | "clusterroles" => {
            if may("escalate", plural, target.namespace, name) {
                return Ok(());
            }
            items(object, "rules").to_vec()
        }
        _ => {
            let role = if text(object, "roleRef.kind") == "Role" { "roles" } else { "clusterroles" };
            if may("bind", role, target.namespace, text(object, "roleRef.name")) {
                return Ok(());
            }
            let Some(rules) = rbac::rules_of(&object["roleRef"], target.namespace, ctx.view) else {
                let (what, role_name) = (format!("{role}.{GROUP}"), text(object, "roleRef.name"));
                return Err(Status {
                    message: format!("{what} \"{role_name}\" not found"),
                    code: 404,
                    reason: "NotFound",
                    name: role_name.into(),
                    group: GROUP.into(),
                    kind: role.into(),
                    ..Status::default()
                });
            };
            rules
        }
    };
    let owned = rbac::rules_for(ctx.user, target.namespace, ctx.view);
    let missing = rbac::uncovered(&owned, &rules);
    if missing.is_empty() {
        return Ok(());
    }
    let user = &ctx.user;
    let lines: Vec<String> = missing.iter().map(go_rule).collect();
    let groups: Vec<String> = user.groups.iter().map(|g| keelson_api::field::quote(g)).collect();
    let cause = format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        groups.join(" "),
        lines.join("\n")
    );
    Err(Status::forbidden(target.resource, name, &cause))
}

/// A rule as the message shows it.
fn go_rule(rule: &Value) -> String {
    let fields = [
        ("APIGroups", "apiGroups"),
        ("Resources", "resources"),
        ("ResourceNames", "resourceNames"),
        ("NonResourceURLs", "nonResourceURLs"),
        ("Verbs", "verbs"),
    ];
    let parts: Vec<String> = fields
        .iter()
        .filter(|(_, f)| !items(rule, f).is_empty())
        .map(|(go, f)| {
            let list: Vec<String> = items(rule, f).iter().map(|v| v.to_string()).collect();
            format!("{go}:[{}]", list.join(" "))
        })
        .collect();
    format!("{{{}}}", parts.join(", "))
}
