//! Validation of what newer features add to a pod: restart rules, resize policies, claims, resources of the whole pod, Windows.

use super::pod_scheduling::forbidden_for;
use crate::gotext::inner;
use crate::validate::one_of;
use crate::value::{at, items, text};
use keelson_api::{ErrorList, FieldError, Path, names};
use serde_json::Value;

/// The whole spec's.
pub fn spec(spec: &Value, path: &Path, errors: &mut ErrorList) {
    claims(items(spec, "resourceClaims"), &path.child("resourceClaims"), errors);
    if spec["resources"].is_object() {
        super::pod_validate::resources(&spec["resources"], &path.child("resources"), false, errors);
    }
    operating_system(spec, path, errors);
}

/// One container's.
pub fn container(c: &Value, path: &Path, errors: &mut ErrorList) {
    for (i, rule) in items(c, "restartPolicyRules").iter().enumerate() {
        let at_i = path.child("restartPolicyRules").index(i);
        one_of(text(rule, "action"), &["Restart", "RestartAllContainers"], &at_i.child("action"), errors);
        if rule["exitCodes"].is_null() {
            errors.push(FieldError::required(&at_i.child("exitCodes"), "must be specified"));
        } else {
            let at_operator = at_i.child("exitCodes").child("operator");
            one_of(text(rule, "exitCodes.operator"), &["In", "NotIn"], &at_operator, errors);
        }
    }
    let policies = items(c, "resizePolicy");
    let at_policy = path.child("resizePolicy");
    for (i, p) in policies.iter().enumerate() {
        one_of(text(p, "resourceName"), &["cpu", "memory"], &at_policy, errors);
        one_of(text(p, "restartPolicy"), &["NotRequired", "RestartContainer"], &at_policy, errors);
        if policies[..i].iter().any(|before| before["resourceName"] == p["resourceName"]) {
            errors.push(FieldError::duplicate(&at_policy.index(i), text(p, "resourceName")));
        }
    }
    for (i, claim) in items(&c["resources"], "claims").iter().enumerate() {
        if text(claim, "name").is_empty() {
            errors.push(FieldError::required(&path.child("resources").child("claims").index(i), ""));
        }
    }
}

fn claims(claims: &[Value], path: &Path, errors: &mut ErrorList) {
    for (i, claim) in claims.iter().enumerate() {
        let at_i = path.index(i);
        let name = text(claim, "name");
        if name.is_empty() {
            errors.push(FieldError::required(&at_i.child("name"), ""));
        } else {
            for problem in names::dns1123_label(name) {
                errors.push(FieldError::invalid(&at_i.child("name"), name, &problem));
            }
            if claims[..i].iter().any(|before| text(before, "name") == name) {
                errors.push(FieldError::duplicate(&at_i.child("name"), name));
            }
        }
        let given = |f: &str| !claim[f].is_null();
        let detail = match (given("resourceClaimName"), given("resourceClaimTemplateName")) {
            (true, true) => {
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"
            }
            (false, false) => "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            _ => continue,
        };
        errors.push(FieldError::invalid_shown(&at_i, &inner("core.v1.PodResourceClaim", claim), detail));
    }
}

/// Fields that one system has and the other does not.
fn operating_system(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let os = &spec["os"];
    let name = text(os, "name");
    if os.is_object() {
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("os").child("name"), ""));
        } else {
            one_of(name, &["linux", "windows"], &path.child("os"), errors);
        }
    }
    let at_context = path.child("securityContext");
    let containers = || {
        ["initContainers", "containers"].into_iter().flat_map(move |list| {
            items(spec, list).iter().enumerate().map(move |(i, c)| {
                (&c["securityContext"], path.child(list).index(i).child("securityContext"))
            })
        })
    };
    if name == "linux" {
        let contexts = std::iter::once((&spec["securityContext"], at_context.clone())).chain(containers());
        for (_, at) in contexts.filter(|(context, _)| !context["windowsOptions"].is_null()) {
            let detail = "windows options cannot be set for a linux pod";
            errors.push(FieldError::forbidden(&at.child("windowsOptions"), detail));
        }
    }
    if name == "windows" {
        for field in ["hostPID", "hostIPC", "hostUsers", "shareProcessNamespace"] {
            forbidden_for(
                "windows",
                !spec[field].is_null() && spec[field] != false,
                &path.child(field),
                errors,
            );
        }
        let whole = [
            "appArmorProfile",
            "seLinuxOptions",
            "fsGroup",
            "fsGroupChangePolicy",
            "runAsUser",
            "runAsGroup",
            "supplementalGroups",
            "supplementalGroupsPolicy",
            "sysctls",
            "seccompProfile",
        ];
        for field in whole {
            let given = !spec["securityContext"][field].is_null();
            forbidden_for("windows", given, &at_context.child(field), errors);
        }
        let each = [
            "appArmorProfile",
            "seLinuxOptions",
            "seccompProfile",
            "capabilities",
            "readOnlyRootFilesystem",
            "privileged",
            "allowPrivilegeEscalation",
            "procMount",
            "runAsUser",
            "runAsGroup",
        ];
        for (context, at) in containers() {
            for field in each {
                forbidden_for("windows", !context[field].is_null(), &at.child(field), errors);
            }
        }
    }
    let host_process = at(spec, "securityContext.windowsOptions.hostProcess") == true
        || containers().any(|(context, _)| context["windowsOptions"]["hostProcess"] == true);
    if host_process && spec["hostNetwork"] != true {
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.push(FieldError::invalid(&path.child("hostNetwork"), false, detail));
    }
}
