//! Expressions at work, over HTTPS: rules of custom resources, admission policies, match conditions.

mod support;

use serde_json::{Value, json};
use support::{Client, World, until};

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const FOOS: &str = "/apis/zz.example/v1/namespaces/default/foos";

fn definition(spec: Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "foos.zz.example"},
        "spec": {"group": "zz.example", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "selectableFields": [{"jsonPath": ".spec.b"}], "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": spec, "status": {"type": "object", "properties": {"n": {"type": "integer",
                    "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "n only grows"}]}}}},
                "x-kubernetes-validations": [{"rule": "self.metadata.name != 'forbidden'"}]}}}]}})
}

fn foo(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "zz.example/v1", "kind": "Foo", "metadata": {"name": name}, "spec": spec})
}

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// Fields and messages of a 422.
fn causes(answer: &support::Answer) -> Vec<String> {
    assert_eq!(answer.code, 422, "{}", answer.text);
    let list = answer.json()["details"]["causes"].as_array().cloned().unwrap_or_default();
    let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
    list.iter().map(|c| format!("{}: {}", text(&c["field"]), text(&c["message"]))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_of_definitions_are_checked_and_kept() {
    let world = World::start().await;
    let admin = &world.admin;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let wrong = json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "x-kubernetes-validations": [{"rule": "self.a >"}, {"rule": "self.c == 1"}]});
    let refused = causes(&admin.post(definitions, &definition(wrong)).await);
    assert!(refused[0].contains("Syntax error: mismatched input '<EOF>'"), "{refused:?}");
    assert!(refused[1].contains("undefined field 'c'"), "{refused:?}");

    let right = json!({"type": "object", "properties": {
        "a": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "a cannot decrease"}]},
        "b": {"type": "integer"}}, "x-kubernetes-validations": [
            {"rule": "self.a > self.b", "fieldPath": ".b", "message": "b must be below a"}]});
    assert_eq!(admin.post(definitions, &definition(right)).await.code, 201);
    until("the definition is served", || async { admin.get(FOOS).await.code == 200 }).await;
    let made = admin.post(FOOS, &foo("x", json!({"a": 5, "b": 1}))).await;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(
        causes(&admin.post(FOOS, &foo("y", json!({"a": 0, "b": 1}))).await),
        ["spec.b: Invalid value: b must be below a"]
    );
    assert_eq!(
        causes(&admin.post(FOOS, &foo("forbidden", json!({"a": 5, "b": 1}))).await),
        ["<nil>: Invalid value: failed rule: self.metadata.name != 'forbidden'"]
    );
    let found = |answer: &support::Answer| answer.json()["items"].as_array().map(Vec::len);
    assert_eq!(found(&admin.get(&format!("{FOOS}?fieldSelector=spec.b%3D1")).await), Some(1));
    assert_eq!(found(&admin.get(&format!("{FOOS}?fieldSelector=spec.b%3D2")).await), Some(0));
    let unknown = admin.get(&format!("{FOOS}?fieldSelector=spec.a%3D1")).await;
    assert_eq!(
        (unknown.code, &unknown.json()["message"]),
        (400, &json!("field label not supported: spec.a"))
    );

    let path = format!("{FOOS}/x");
    assert_eq!(
        causes(&admin.merge(&path, &json!({"spec": {"a": 2}})).await),
        ["spec.a: Invalid value: 2: a cannot decrease"]
    );
    assert_eq!(admin.merge(&path, &json!({"spec": {"a": 6}})).await.code, 200);
    let status = format!("{path}/status");
    assert_eq!(admin.merge(&status, &json!({"status": {"n": 3}})).await.code, 200);
    assert_eq!(
        causes(&admin.merge(&status, &json!({"status": {"n": 2}})).await),
        ["status.n: Invalid value: 2: n only grows"]
    );

    // A rule that comes later is not held against what is there, unless it changes.
    let stricter = json!({"spec": {"versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "a": {"type": "integer", "minimum": 50, "x-kubernetes-validations": [{"rule": "self > 100"}]}, "b": {"type": "integer"}}}}}}}]}});
    assert_eq!(admin.merge(&format!("{definitions}/foos.zz.example"), &stricter).await.code, 200);
    until("the stricter schema is served", || async {
        admin.post(FOOS, &foo("z", json!({"a": 7}))).await.code == 422
    })
    .await;
    let kept = admin.merge(&path, &json!({"spec": {"b": 2}})).await;
    assert_eq!(kept.code, 200, "{}", kept.text);
    let warnings: Vec<&str> =
        kept.headers.get_all("warning").iter().filter_map(|w| w.to_str().ok()).collect();
    assert!(warnings.iter().any(|w| w.contains("failed rule: self > 100")), "{warnings:?}");
    assert_eq!(causes(&admin.merge(&path, &json!({"spec": {"a": 7}})).await).len(), 2);
}

fn policy(kind: &str, name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["matchConstraints"] = json!({"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE", "DELETE"], "resources": ["configmaps"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}});
    if kind.starts_with("Mutating") {
        spec["matchConstraints"]["resourceRules"][0]["operations"] = json!(["CREATE", "UPDATE"]);
    }
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

async fn bind(admin: &Client, plural: &str, kind: &str, name: &str, spec: Value) {
    let mut spec = spec;
    spec["policyName"] = name.into();
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let made = admin.post(&format!("{POLICIES}/{plural}"), &binding).await;
    assert_eq!(made.code, 201, "{}", made.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validating_policies_refuse_warn_and_read_parameters() {
    let world = World::start().await;
    let admin = &world.admin;
    let policies = format!("{POLICIES}/validatingadmissionpolicies");
    let wrong = policy(
        "ValidatingAdmissionPolicy",
        "p",
        json!({"validations": [{"expression": "variables.a == 1"}]}),
    );
    assert_eq!(
        causes(&admin.post(&policies, &wrong).await),
        [
            "spec.validations[0].expression: Invalid value: \"variables.a == 1\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'variables' (in container '')\n | variables.a == 1\n | ^"
        ]
    );
    assert_eq!(admin.post(MAPS, &map("limits", json!({"max": "3"}))).await.code, 201);
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConditions": [{"name": "not-limits", "expression": "request.name != 'limits'"}],
        "variables": [{"name": "keys", "expression": "request.operation == 'DELETE' ? oldObject.?data : object.?data"},
            {"name": "size", "expression": "variables.keys.orValue({}).size()"}],
        "validations": [
            {"expression": "variables.size <= int(params.data.max)", "messageExpression": "'at most ' + params.data.max + ' keys'", "reason": "Forbidden"},
            {"expression": "request.operation != 'DELETE' || authorizer.group('').resource('secrets').check('get').allowed()", "message": "who may not see secrets may not delete"}]});
    let made = admin.post(&policies, &policy("ValidatingAdmissionPolicy", "few", spec)).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let binding = json!({"validationActions": ["Deny"], "paramRef": {"name": "limits", "parameterNotFoundAction": "Deny"}});
    bind(admin, "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", "few", binding)
        .await;
    let many = json!({"a": "1", "b": "2", "c": "3", "d": "4"});
    let refused = admin.post(MAPS, &map("many", many)).await;
    assert_eq!(refused.code, 403, "{}", refused.text);
    assert_eq!(
        refused.json()["message"],
        "configmaps \"many\" is forbidden: ValidatingAdmissionPolicy 'few' with binding 'few' denied request: at most 3 keys"
    );
    assert_eq!(admin.post(MAPS, &map("fine", json!({"a": "1"}))).await.code, 201);
    let grown = admin.merge(&format!("{MAPS}/fine"), &json!({"data": {"b": "2", "c": "3", "d": "4"}})).await;
    assert_eq!(grown.code, 403, "{}", grown.text);
    assert_eq!(admin.delete(&format!("{MAPS}/fine")).await.code, 200);

    let spec = json!({"validations": [{"expression": "object == null || object.metadata.name != 'odd'"}]});
    assert_eq!(admin.post(&policies, &policy("ValidatingAdmissionPolicy", "odd", spec)).await.code, 201);
    let binding = json!({"validationActions": ["Warn"]});
    bind(admin, "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", "odd", binding)
        .await;
    let warned = admin.post(MAPS, &map("odd", json!({}))).await;
    assert_eq!(warned.code, 201, "{}", warned.text);
    assert!(
        warned.headers["warning"]
            .to_str()
            .expect("text")
            .contains("Validation failed for ValidatingAdmissionPolicy 'odd'")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutating_policies_change_what_is_stored() {
    let world = World::start().await;
    let admin = &world.admin;
    let policies = format!("{POLICIES}/mutatingadmissionpolicies");
    let wrong = policy(
        "MutatingAdmissionPolicy",
        "p",
        json!({"reinvocationPolicy": "Never", "mutations": [
        {"patchType": "JSONPatch", "jsonPatch": {"expression": "[1]"}}]}),
    );
    assert_eq!(
        causes(&admin.post(&policies, &wrong).await),
        [
            "spec.mutations[0].jsonPatch.expression: Invalid value: \"[1]\": must evaluate to list(JSONPatch) but got list(int)"
        ]
    );
    let spec = json!({"reinvocationPolicy": "Never", "mutations": [
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{metadata: Object.metadata{labels: {\"added\":\"yes\"}}}"}},
        {"patchType": "JSONPatch", "jsonPatch": {"expression": "has(object.data) ? [JSONPatch{op:\"add\",path:\"/data/patched\",value:\"1\"}] : []"}}]});
    let made = admin.post(&policies, &policy("MutatingAdmissionPolicy", "pm", spec)).await;
    assert_eq!(made.code, 201, "{}", made.text);
    bind(admin, "mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding", "pm", json!({})).await;
    let made = admin.post(MAPS, &map("a", json!({"x": "1"}))).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let object = made.json();
    assert_eq!(
        (&object["data"]["patched"], &object["metadata"]["labels"]["added"]),
        (&json!("1"), &json!("yes"))
    );
    let owned = object["metadata"]["managedFields"].to_string();
    assert!(!owned.contains("patched") && !owned.contains("added"), "nobody asked for it: {owned}");
}
