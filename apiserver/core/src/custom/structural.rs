//! Pruning and defaulting by a structural schema.

use serde_json::{Map, Value};

/// Fields that every object has, whatever its schema says.
const TYPE_META: [&str; 3] = ["apiVersion", "kind", "metadata"];

fn keeps_unknown(schema: &Value) -> bool {
    schema.is_null() || schema["x-kubernetes-preserve-unknown-fields"] == true
}

/// Removes what the schema does not describe; notes the paths of what went.
pub fn prune(schema: &Value, object: &mut Value, gone: &mut Vec<String>) {
    if let Value::Object(map) = object {
        prune_map(schema, map, "", true, gone);
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn prune_map(schema: &Value, map: &mut Map<String, Value>, path: &str, whole: bool, gone: &mut Vec<String>) {
    let extra = &schema["additionalProperties"];
    let keys: Vec<String> = map.keys().cloned().collect();
    for key in keys {
        let at = join(path, &key);
        if whole && TYPE_META.contains(&key.as_str()) {
            continue;
        }
        let known = schema["properties"].get(&key).or(extra.as_object().map(|_| extra));
        match known {
            Some(child) => prune_value(child, &mut map[&key], &at, gone),
            None if keeps_unknown(schema) || *extra == true => {}
            None => {
                gone.push(at);
                map.remove(&key);
            }
        }
    }
}

fn prune_value(schema: &Value, value: &mut Value, path: &str, gone: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let embedded = schema["x-kubernetes-embedded-resource"] == true;
            // A value of the wrong type is for validation to find.
            if schema["type"] == "object" || schema["properties"].is_object() {
                prune_map(schema, map, path, embedded, gone);
            }
        }
        Value::Array(list) if schema["items"].is_object() => {
            for (i, item) in list.iter_mut().enumerate() {
                prune_value(&schema["items"], item, &format!("{path}[{i}]"), gone);
            }
        }
        _ => {}
    }
}

/// Fills in what is missing and takes out nulls that may not be. Idempotent.
pub fn default(schema: &Value, object: &mut Value) {
    match object {
        Value::Object(map) => {
            for (key, child) in schema["properties"].as_object().into_iter().flatten() {
                let value = map.get(key);
                let null = value.is_some_and(Value::is_null);
                let (nullable, given) = (child["nullable"] == true, &child["default"]);
                if null && !nullable && !keeps_unknown(child) && child["x-kubernetes-int-or-string"] != true {
                    map.remove(key);
                }
                if !map.contains_key(key) && !given.is_null() {
                    map.insert(key.clone(), given.clone());
                }
                if let Some(value) = map.get_mut(key) {
                    default(child, value);
                }
            }
            if schema["additionalProperties"].is_object() {
                let known = &schema["properties"];
                for (_, value) in map.iter_mut().filter(|(k, _)| known.get(k.as_str()).is_none()) {
                    default(&schema["additionalProperties"], value);
                }
            }
        }
        Value::Array(list) if schema["items"].is_object() => {
            list.iter_mut().for_each(|item| default(&schema["items"], item));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "a": {"type": "string", "default": "x"},
            "o": {"type": "object", "default": {}, "properties": {"d": {"type": "integer", "default": 1}}},
            "n": {"type": "string", "nullable": true},
            "any": {"x-kubernetes-preserve-unknown-fields": true},
            "m": {"type": "object", "additionalProperties": {"type": "object", "properties": {"k": {"type": "string"}}}},
            "l": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string", "default": "y"}}}}}}}})
    }

    #[test]
    fn unknown_fields_go_and_defaults_come() {
        let mut object = json!({"kind": "Foo", "metadata": {"x": 1}, "zz": 1, "spec": {"b": 1, "a": null, "n": null,
            "any": {"q": {"r": 1}}, "m": {"p": {"k": "v", "u": 1}}, "l": [{"u": 1}]}});
        let mut gone = vec![];
        prune(&schema(), &mut object, &mut gone);
        gone.sort();
        assert_eq!(gone, ["spec.b", "spec.l[0].u", "spec.m.p.u", "zz"]);
        default(&schema(), &mut object);
        assert_eq!(
            object["spec"],
            json!({"a": "x", "n": null, "any": {"q": {"r": 1}}, "m": {"p": {"k": "v"}}, "l": [{"k": "y"}], "o": {"d": 1}})
        );
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![Just(Value::Null), (0..5i64).prop_map(Value::from), "[a-c]".prop_map(Value::from)];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("(a|o|n|d|k|l|m|any|spec|z)", inner, 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// C28 for custom resources: doing it twice is doing it once.
        #[test]
        fn pruning_and_defaulting_are_idempotent(mut object in tree()) {
            let once = |object: &mut Value| {
                prune(&schema(), object, &mut vec![]);
                default(&schema(), object);
            };
            once(&mut object);
            let first = object.clone();
            once(&mut object);
            prop_assert_eq!(first, object);
        }
    }
}
