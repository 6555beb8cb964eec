//! Admission policies: what they refuse, warn about, note and change.

use keelson_api::Status;
use keelson_api::resource::find_preferred;
use keelson_apiserver_core::admission::policies::validating::{self, Admitted};
use keelson_apiserver_core::admission::policies::{GROUP, mutating};
use keelson_apiserver_core::admission::webhooks::Request;
use keelson_apiserver_core::value::{name, text};
use keelson_apiserver_core::{Target, UserInfo, View};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Default)]
struct Objects(BTreeMap<(String, String), Vec<Arc<Value>>>);

impl Objects {
    fn add(&mut self, group: &str, plural: &str, object: Value) {
        self.0.entry((group.into(), plural.into())).or_default().push(Arc::new(object));
    }
}

impl View for Objects {
    fn get(&self, group: &str, resource: &str, namespace: &str, wanted: &str) -> Option<Arc<Value>> {
        let all = self.list(group, resource, Some(namespace));
        all.into_iter().find(|o| name(o) == wanted)
    }
    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let all = self.0.get(&(group.into(), resource.into())).cloned().unwrap_or_default();
        let within =
            |o: &Arc<Value>| namespace.is_none_or(|n| n.is_empty() || text(o, "metadata.namespace") == n);
        all.into_iter().filter(within).collect()
    }
}

fn world(spec: Value, binding: Value) -> Objects {
    let mut view = Objects::default();
    let mut spec = spec;
    spec["matchConstraints"] = json!({"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}]});
    view.add(GROUP, "validatingadmissionpolicies", json!({"metadata": {"name": "p"}, "spec": spec}));
    let mut binding = binding;
    binding["policyName"] = "p".into();
    view.add(GROUP, "validatingadmissionpolicybindings", json!({"metadata": {"name": "b"}, "spec": binding}));
    view.add("", "namespaces", json!({"metadata": {"name": "d", "labels": {"env": "prod"}, "creationTimestamp": "2026-01-01T00:00:00Z"}}));
    view.add("", "configmaps", json!({"metadata": {"name": "prm", "namespace": "d"}, "data": {"max": "3"}}));
    view
}

fn asked(view: &Objects, object: &Value, user: &UserInfo) -> Result<Admitted, Status> {
    let resource = find_preferred("", "configmaps").expect("configmaps");
    let target = Target::collection(resource, "d");
    let request = Request { operation: "CREATE", target, old: None, new: Some(object), user, dry_run: false };
    validating::validate(&request, view)
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"ok": "1"}})
}

fn refusal(spec: Value, binding: Value, object: &Value) -> (u16, String) {
    let refused = asked(&world(spec, binding), object, &UserInfo::default()).expect_err("refused");
    (refused.code, refused.message)
}

#[test]
fn refusals_read_like_upstreams() {
    let deny = || json!({"validationActions": ["Deny"]});
    let spec = json!({"validations": [
        {"expression": "has(object.data) && \"ok\" in object.data", "message": "data.ok needed"},
        {"expression": "object.metadata.name.size() < 5", "messageExpression": "\"name too long: \" + object.metadata.name", "reason": "Forbidden"}]});
    assert!(asked(&world(spec.clone(), deny()), &map("a"), &UserInfo::default()).is_ok());
    assert_eq!(
        refusal(spec.clone(), deny(), &map("longname")),
        (403, "configmaps \"longname\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: name too long: longname".into())
    );
    assert_eq!(
        refusal(spec, deny(), &json!({"metadata": {"name": "b"}})),
        (422, "configmaps \"b\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: data.ok needed".into())
    );
    let broken = json!({"validations": [{"expression": "object.data.zz == \"1\""}], "failurePolicy": "Fail"});
    assert_eq!(
        refusal(broken, deny(), &json!({"metadata": {"name": "b"}})).1,
        "configmaps \"b\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: expression 'object.data.zz == \"1\"' resulted in error: no such key: data"
    );
    let lenient =
        json!({"validations": [{"expression": "object.data.zz == \"1\""}], "failurePolicy": "Ignore"});
    assert!(
        asked(&world(lenient, deny()), &json!({"metadata": {"name": "b"}}), &UserInfo::default()).is_ok()
    );
}

#[test]
fn warnings_and_annotations_let_requests_pass() {
    let spec = json!({"validations": [{"expression": "object.metadata.name != \"b\""}],
        "auditAnnotations": [{"key": "n", "valueExpression": "'name is ' + object.metadata.name"}]});
    let view = world(spec, json!({"validationActions": ["Warn", "Audit"]}));
    let admitted = asked(&view, &map("b"), &UserInfo::default()).expect("allowed");
    assert_eq!(
        admitted.warnings,
        [
            "Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': failed expression: object.metadata.name != \"b\""
        ]
    );
    assert_eq!(admitted.audit[1], ("p/n".to_owned(), "name is b".to_owned()));
    assert!(admitted.audit[0].1.contains("\"expressionIndex\":0"));
}

#[test]
fn expressions_see_the_request_its_namespace_parameters_variables_and_permissions() {
    let deny = json!({"validationActions": ["Deny"],
        "paramRef": {"name": "prm", "namespace": "d", "parameterNotFoundAction": "Deny"}});
    let spec = |expression: &str| {
        json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "variables": [{"name": "a", "expression": "int(params.data.max)"}, {"name": "b", "expression": "variables.a + 1"},
            {"name": "broken", "expression": "object.nothing.there"}],
        "validations": [{"expression": expression}]})
    };
    let admin =
        UserInfo { name: "root".into(), groups: vec!["system:masters".into()], ..UserInfo::default() };
    for expression in [
        "variables.b == 4 && params.data.max == '3'",
        "request.userInfo.username == 'root' && request.operation == 'CREATE' && request.resource.resource == 'configmaps'",
        "namespaceObject.metadata.labels.env == 'prod' && namespaceObject.metadata.creationTimestamp < timestamp('2027-01-01T00:00:00Z')",
        "oldObject == null && request.namespace == 'd' && !request.dryRun",
        "authorizer.group('').resource('pods').namespace('d').check('create').allowed()",
        "authorizer.requestResource.check('create').allowed()",
        "!authorizer.serviceAccount('d', 'x').path('/metrics').check('get').allowed()",
    ] {
        let answer = asked(&world(spec(expression), deny.clone()), &map("a"), &admin);
        assert_eq!(answer, Ok(Admitted::default()), "{expression}");
    }
    let failed =
        asked(&world(spec("variables.broken == 1"), deny.clone()), &map("a"), &admin).expect_err("broken");
    assert!(
        failed.message.contains("composited variable \"broken\" fails to evaluate: no such key: nothing"),
        "{failed}"
    );
    let mut missing = deny.clone();
    missing["paramRef"]["name"] = "nope".into();
    assert!(refusal(spec("true"), missing.clone(), &map("a")).1.ends_with(
        "denied request: failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
    ));
    missing["paramRef"]["parameterNotFoundAction"] = "Allow".into();
    assert!(asked(&world(spec("false"), missing), &map("a"), &admin).is_ok());
    let mut unknown = spec("true");
    unknown["paramKind"]["kind"] = "NoSuch".into();
    assert!(refusal(unknown, deny, &map("a")).1.contains(
        "ValidatingAdmissionPolicy 'p' denied request: failed to configure policy: failed to find resource referenced by paramKind: 'v1, Kind=NoSuch'"
    ));
}

#[test]
fn conditions_and_rules_say_what_a_policy_is_about() {
    let deny = json!({"validationActions": ["Deny"]});
    let spec = json!({"matchConditions": [{"name": "s", "expression": "object.metadata.name != 'skip'"}],
        "validations": [{"expression": "false", "reason": "RequestEntityTooLarge"}]});
    assert!(asked(&world(spec.clone(), deny.clone()), &map("skip"), &UserInfo::default()).is_ok());
    assert_eq!(refusal(spec.clone(), deny.clone(), &map("a")).0, 413);
    let mut elsewhere = deny;
    elsewhere["matchResources"] = json!({"namespaceSelector": {"matchLabels": {"env": "test"}}});
    assert!(asked(&world(spec, elsewhere), &map("a"), &UserInfo::default()).is_ok());
}

struct Policies(Vec<Value>);

impl View for Policies {
    fn get(&self, _: &str, _: &str, _: &str, _: &str) -> Option<Arc<Value>> {
        None
    }
    fn list(&self, group: &str, resource: &str, _: Option<&str>) -> Vec<Arc<Value>> {
        assert_eq!(group, GROUP);
        if resource.ends_with("bindings") {
            let binding =
                |p: &Value| Arc::new(json!({"metadata": {"name": "b"}, "spec": {"policyName": name(p)}}));
            return self.0.iter().map(binding).collect();
        }
        self.0.iter().cloned().map(Arc::new).collect()
    }
}

fn mutating_policy(name: &str, mutations: Value, resource: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"failurePolicy": "Fail", "reinvocationPolicy": "Never", "mutations": mutations,
        "matchConstraints": {"resourceRules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": [resource]}]}}})
}

fn changed(policies: Vec<Value>, plural: &str, mut object: Value) -> Result<Value, Status> {
    let resource = find_preferred("", plural).expect("a resource");
    let user = UserInfo::default();
    let target = Target::collection(resource, "d");
    let request = Request { operation: "CREATE", target, old: None, new: None, user: &user, dry_run: false };
    mutating::mutate(&request, &mut object, &Policies(policies)).map(|()| object)
}

#[test]
fn partial_objects_are_merged_by_type_and_patches_applied() {
    let both = json!([
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{metadata: Object.metadata{labels: {\"added\":\"yes\"}}}"}},
        {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op:\"add\",path:\"/data/\" + jsonpatch.escapeKey('a/b'),value:\"1\"}]"}}]);
    let map = json!({"metadata": {"name": "a", "labels": {"own": "1"}}, "data": {"x": "1"}});
    let out =
        changed(vec![mutating_policy("pm", both.clone(), "configmaps")], "configmaps", map).expect("changed");
    assert_eq!(
        out,
        json!({"metadata": {"name": "a", "labels": {"own": "1", "added": "yes"}}, "data": {"x": "1", "a/b": "1"}})
    );
    let refused = changed(
        vec![mutating_policy("pm", both, "configmaps")],
        "configmaps",
        json!({"metadata": {"name": "b"}}),
    );
    let refused = refused.expect_err("no data");
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (
            403,
            "policy 'pm' with binding 'b' denied request: JSON Patch: add operation does not apply: doc is missing path: \"/data/a~1b\": missing value"
        )
    );
    let sidecar = json!([{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
        "Object{spec: Object.spec{containers: object.spec.containers.map(c, Object.spec.containers.item{name: c.name, env: [Object.spec.containers.env.item{name: 'A', value: 'x'}]})}}"}}]);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i", "env": [{"name": "B", "value": "y"}]}]}});
    let out = changed(vec![mutating_policy("pm", sidecar, "pods")], "pods", pod).expect("changed");
    let container = &out["spec"]["containers"][0];
    assert_eq!((&container["image"], container["env"].as_array().map(Vec::len)), (&json!("i"), Some(2)));
}

#[test]
fn policies_see_what_others_made_and_are_asked_again_when_they_want() {
    let count =
        |expression: &str| json!([{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}]);
    let mut first = mutating_policy(
        "a",
        count("has(object.data.late) ? [JSONPatch{op: 'add', path: '/data/seen', value: 'yes'}] : []"),
        "configmaps",
    );
    let second =
        mutating_policy("b", count("[JSONPatch{op: 'add', path: '/data/late', value: '1'}]"), "configmaps");
    let map = || json!({"metadata": {"name": "a"}, "data": {}});
    let once = changed(vec![first.clone(), second.clone()], "configmaps", map()).expect("changed");
    assert_eq!(once["data"], json!({"late": "1"}));
    first["spec"]["reinvocationPolicy"] = "IfNeeded".into();
    let again = changed(vec![first, second], "configmaps", map()).expect("changed");
    assert_eq!(again["data"], json!({"late": "1", "seen": "yes"}));
}
