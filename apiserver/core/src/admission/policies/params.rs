//! The objects a binding names as parameters.

use super::super::webhooks::Request;
use crate::context::View;
use crate::value::text;
use keelson_api::LabelSelector;
use keelson_api::resource;
use serde_json::Value;
use std::sync::Arc;

/// A kind of parameters: where its objects are.
struct Kind {
    group: String,
    plural: String,
    namespaced: bool,
}

fn kind_of(wanted: &Value, view: &dyn View) -> Option<Kind> {
    let (version, kind) = (text(wanted, "apiVersion"), text(wanted, "kind"));
    if let Some(row) = resource::find_kind(version, kind) {
        return Some(Kind {
            group: row.group.clone(),
            plural: row.plural.clone(),
            namespaced: row.namespaced,
        });
    }
    let (group, version) = version.split_once('/')?;
    let definitions = view.list("apiextensions.k8s.io", "customresourcedefinitions", None);
    let found = definitions.iter().find(|crd| {
        let served = crate::value::items(crd, "spec.versions")
            .iter()
            .any(|v| v["name"] == version && v["served"] == true);
        text(crd, "spec.group") == group && text(crd, "spec.names.kind") == kind && served
    })?;
    Some(Kind {
        group: group.to_owned(),
        plural: text(found, "spec.names.plural").to_owned(),
        namespaced: text(found, "spec.scope") == "Namespaced",
    })
}

/// Why a policy or a binding cannot be put to work.
#[derive(Debug, PartialEq)]
pub enum Problem {
    Policy(String),
    Binding(String),
}

/// The parameters a binding gives its policy: null when it takes none; nothing when none were found and that is allowed.
///
/// # Errors
/// The kind does not exist, none were found and that is not allowed, or the reference does not fit the kind.
pub fn collect(
    policy: &Value,
    binding: &Value,
    request: &Request,
    view: &dyn View,
) -> Result<Vec<Arc<Value>>, Problem> {
    let nothing = || Ok(vec![Arc::new(Value::Null)]);
    let wanted = &policy["spec"]["paramKind"];
    if wanted.is_null() {
        return nothing();
    }
    let Some(kind) = kind_of(wanted, view) else {
        let (version, name) = (text(wanted, "apiVersion"), text(wanted, "kind"));
        let shown = match version.split_once('/') {
            Some((group, version)) => format!("{group}/{version}, Kind={name}"),
            None => format!("{version}, Kind={name}"),
        };
        return Err(Problem::Policy(format!("failed to find resource referenced by paramKind: '{shown}'")));
    };
    let reference = &binding["spec"]["paramRef"];
    if reference.is_null() {
        return nothing();
    }
    let given = text(reference, "namespace");
    let namespace = match (kind.namespaced, given, request.target.namespace) {
        (false, "", _) => "",
        (false, ..) => {
            let why = "paramRef.namespace must not be provided for a cluster-scoped `paramKind`";
            return Err(Problem::Binding(why.into()));
        }
        (true, "", "") => {
            let why =
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources";
            return Err(Problem::Binding(why.into()));
        }
        (true, "", own) => own,
        (true, given, _) => given,
    };
    let name = text(reference, "name");
    let found: Vec<Arc<Value>> = if name.is_empty() {
        let selector = LabelSelector::from_object(&reference["selector"]);
        let all = view.list(&kind.group, &kind.plural, kind.namespaced.then_some(namespace));
        all.into_iter().filter(|object| selector.matches_object(object)).collect()
    } else {
        view.get(&kind.group, &kind.plural, namespace, name).into_iter().collect()
    };
    if found.is_empty() && text(reference, "parameterNotFoundAction") == "Deny" {
        let why = "no params found for policy binding with `Deny` parameterNotFoundAction";
        return Err(Problem::Binding(why.into()));
    }
    Ok(found)
}
