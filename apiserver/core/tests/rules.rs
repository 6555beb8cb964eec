//! Rules of custom resources: what definitions are refused for, and what objects are.

use keelson_api::{ErrorList, Path};
use keelson_apiserver_core::cel::compiled::compile;
use keelson_apiserver_core::cel::{definition, rules};
use serde_json::{Value, json};

fn said(spec: &Value, object: &Value, old: Option<&Value>) -> (Vec<String>, Vec<String>) {
    let schema = json!({"type": "object", "properties": {"spec": spec}});
    let node = compile(&schema).expect("rules");
    let mut errors = ErrorList::new();
    let wrap = |v: &Value| json!({"spec": v});
    let (object, old) = (wrap(object), old.map(wrap));
    let warnings = rules::run(&node, &object, old.as_ref(), &mut errors);
    (errors.iter().map(ToString::to_string).collect(), warnings)
}

fn errors(spec: &Value, object: &Value, old: Option<&Value>) -> Vec<String> {
    said(spec, object, old).0
}

#[test]
fn broken_rules_read_like_upstreams() {
    let spec = json!({"type": "object", "properties": {
        "a": {"type": "integer"}, "b": {"type": "integer"},
        "l": {"type": "array", "maxItems": 9, "items": {"type": "string", "maxLength": 20,
            "x-kubernetes-validations": [{"rule": "self.size() < 4", "messageExpression": "\"too long: \" + self"}]}},
        "n": {"type": "string", "x-kubernetes-validations": [{"rule": "self != 'bad'", "reason": "FieldValueForbidden", "message": "n is bad"}]},
        "d": {"type": "string", "x-kubernetes-validations": [{"rule": "duration(self) < duration('2h')"}]}},
        "x-kubernetes-validations": [
            {"rule": "self.a > self.b", "fieldPath": ".b", "reason": "FieldValueInvalid", "message": "b must be below a"},
            {"rule": "has(self.b)", "reason": "FieldValueRequired", "fieldPath": ".b"}]});
    assert!(errors(&spec, &json!({"a": 5, "b": 1, "d": "1h", "n": "x", "l": ["abc"]}), None).is_empty());
    assert_eq!(errors(&spec, &json!({"a": 0, "b": 1}), None), ["spec.b: Invalid value: b must be below a"]);
    assert_eq!(
        errors(&spec, &json!({"a": 5}), None),
        [
            "spec: Invalid value: \"object\": no such key: b evaluating rule: b must be below a",
            "spec.b: Required value: failed rule: has(self.b)"
        ]
    );
    assert_eq!(
        errors(&spec, &json!({"a": 5, "b": 1, "l": ["x", "toolong"], "n": "bad", "d": "zz"}), None),
        [
            "spec.d: Invalid value: \"string\": type conversion error from 'string' to 'google.protobuf.Duration' evaluating rule: duration(self) < duration('2h')",
            "spec.l[1]: Invalid value: \"toolong\": too long: toolong",
            "spec.n: Forbidden: n is bad"
        ]
    );
}

#[test]
fn transitions_need_an_old_value_and_what_did_not_change_is_forgiven() {
    let spec = json!({"type": "object", "properties": {
        "im": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]},
        "op": {"type": "integer", "x-kubernetes-validations": [
            {"rule": "!oldSelf.hasValue() || self >= oldSelf.value()", "optionalOldSelf": true}]},
        "n": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 5"}]},
        "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}},
                "x-kubernetes-validations": [{"rule": "self.v >= oldSelf.v"}]}}}});
    let old = json!({"im": "x", "op": 3, "n": 1, "m": [{"k": "a", "v": 5}, {"k": "b", "v": 5}]});
    assert!(errors(&spec, &json!({"im": "x", "op": 1}), None).is_empty(), "nothing came before");
    assert_eq!(
        errors(
            &spec,
            &json!({"im": "y", "op": 2, "m": [{"k": "b", "v": 4}, {"k": "c", "v": 1}]}),
            Some(&old)
        ),
        [
            "spec.im: Invalid value: \"y\": failed rule: self == oldSelf",
            "spec.m[0]: Invalid value: failed rule: self.v >= oldSelf.v",
            "spec.op: Invalid value: 2: failed rule: !oldSelf.hasValue() || self >= oldSelf.value()",
        ]
    );
    let (errors, warnings) = said(&spec, &json!({"n": 1}), Some(&old));
    assert!(errors.is_empty());
    assert_eq!(warnings, ["spec.n: Invalid value: 1: failed rule: self > 5"]);
}

#[test]
fn budgets_end_everything() {
    let spec = json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-validations": [
        {"rule": "self.all(a, self.all(b, self.all(c, a != b || b != c || true)))"}, {"rule": "false"}]});
    let many: Vec<String> = (0..200).map(|i| format!("item-{i}")).collect();
    assert_eq!(
        errors(&spec, &json!(many), None),
        [
            "spec: Invalid value: \"array\": 'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: self.all(a, self.all(b, self.all(c, a != b || b != c || true)))"
        ]
    );
}

fn checked(rules: Value) -> Vec<String> {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "a": {"type": "integer"}, "s": {"type": "string", "maxLength": 10},
        "l": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 5}},
        "ub": {"type": "array", "items": {"type": "string"}}}, "x-kubernetes-validations": rules}}});
    let mut errors = ErrorList::new();
    definition::check(&schema, &Path::new("s"), &mut errors);
    errors
        .iter()
        .map(|e| e.to_string().replace("s.properties[spec].x-kubernetes-validations[0].", ""))
        .collect()
}

fn rule(source: &str) -> Vec<String> {
    checked(json!([{"rule": source}]))
}

#[test]
fn rules_that_compile_are_taken() {
    for source in [
        "self.a > 1 && has(self.s)",
        "oldSelf.a == self.a",
        "self.l.all(x, x.size() < 3)",
        "1 + 1 == 2",
        "url(self.s).getHost() == \"x\"",
        "isIP(self.s)",
        "cidr(\"10.0.0.0/8\").containsIP(self.s)",
        "optional.of(1).hasValue()",
        "self.?a.orValue(1) > 0",
        "semver(\"1.0.0\").isLessThan(semver(self.s))",
        "type(self) == map",
        "self.size() > 0",
    ] {
        assert_eq!(rule(source), Vec::<String>::new(), "{source}");
    }
}

#[test]
fn rules_that_do_not_compile_are_refused_in_upstreams_words() {
    assert_eq!(
        rule("foo(self.a)"),
        [
            "rule: Invalid value: {\"Rule\":\"foo(self.a)\",\"Message\":\"\",\"MessageExpression\":\"\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":null}: compilation failed: ERROR: <input>:1:4: undeclared reference to 'foo' (in container '')\n | foo(self.a)\n | ...^"
        ]
    );
    assert!(
        rule("self.metadata.name == \"x\"")[0].contains("ERROR: <input>:1:5: undefined field 'metadata'")
    );
    for path in [".nope", "[", ".a[0]", "a", "['a"] {
        let said = checked(json!([{"rule": "self.a>1", "fieldPath": path}]));
        assert!(said[0].ends_with("fieldPath must be a valid path"), "{path}: {said:?}");
    }
    assert!(checked(json!([{"rule": "self.a>1", "fieldPath": ".a"}])).is_empty());
    let both = &rule("math.greatest(1,self.a) > 1")[0];
    assert!(
        both.contains("1:1: undeclared reference to 'math'")
            && both.contains("1:14: undeclared reference to 'greatest'")
    );
    assert!(rule("self.a")[0].ends_with("cel expression must evaluate to a bool"));
    assert!(
        checked(json!([{"rule": "self.a>1", "messageExpression": "1"}]))[0]
            .ends_with("messageExpression must evaluate to a string")
    );
    assert!(
        checked(json!([{"rule": "self.a>1", "optionalOldSelf": true}]))[0]
            .ends_with("may not be set if oldSelf is not used in rule")
    );
}

#[test]
fn what_may_cost_too_much_is_refused() {
    let dear = rule("self.ub.all(x, self.ub.all(y, self.ub.all(z, x==y)))");
    assert_eq!(dear.len(), 3, "{dear:?}");
    assert!(
        dear[0]
            .starts_with("rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x")
    );
    assert!(dear[1].ends_with(
        "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"
    ));
    assert!(dear[2].starts_with("s: Forbidden: x-kubernetes-validations estimated rule cost total"));
    let message = checked(json!([{"rule": "self.a>1", "messageExpression": "\"v \" + string(self.a)"}]));
    assert_eq!(message.len(), 3, "{message:?}");
    assert!(message[0].starts_with("messageExpression: Forbidden: estimated messageExpression cost exceeds"));
}
