//! Label selectors over typed objects, and the hash that names a pod template.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Serialize;

pub type Labels = BTreeMap<String, String>;

/// Letters and digits that make no words and are not mistaken for one another.
const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Whether `labels` satisfy `selector`. An empty selector matches everything; an unknown operator nothing.
pub fn matches(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let empty = Labels::new();
    let labels = labels.unwrap_or(&empty);
    let equal = selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    equal
        && selector.match_expressions.iter().flatten().all(|requirement| {
            let value = labels.get(&requirement.key);
            let listed = |v: &String| requirement.values.iter().flatten().any(|x| x == v);
            match requirement.operator.as_str() {
                "In" => value.is_some_and(listed),
                "NotIn" => !value.is_some_and(listed),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// Whether a selector names nothing at all (and so would match everything).
pub fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(|m| m.is_empty())
        && selector.match_expressions.as_ref().is_none_or(|m| m.is_empty())
}

/// Whether every pair of a plain selector (a Service's) is among `labels`.
pub fn contains(labels: Option<&Labels>, selector: &Labels) -> bool {
    selector.iter().all(|(k, v)| labels.is_some_and(|l| l.get(k) == Some(v)))
}

/// A short, stable name for a value: FNV-1a of its JSON (keys are sorted), in the safe alphabet.
/// `collisions` changes the name when another object already has it.
pub fn template_hash<T: Serialize>(template: &T, collisions: Option<i32>) -> String {
    let text = serde_json::to_string(template).expect("a pod template serializes to JSON");
    let mut hash = fnv(text.as_bytes(), 0x811c_9dc5);
    if let Some(count) = collisions {
        hash = fnv(&count.to_le_bytes(), hash);
    }
    hash.to_string().bytes().map(|b| SAFE[usize::from(b) % SAFE.len()] as char).collect()
}

fn fnv(bytes: &[u8], seed: u32) -> u32 {
    bytes.iter().fold(seed, |hash, b| (hash ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(selector: serde_json::Value, labels: &[(&str, &str)], expect: bool) {
        let selector: LabelSelector = serde_json::from_value(selector).unwrap();
        let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        assert_eq!(matches(&selector, Some(&labels)), expect, "{selector:?} {labels:?}");
    }

    #[test]
    fn selectors() {
        check(json!({}), &[], true);
        check(json!({"matchLabels":{"a":"1"}}), &[("a", "1"), ("b", "2")], true);
        check(json!({"matchLabels":{"a":"1"}}), &[("a", "2")], false);
        check(
            json!({"matchExpressions":[{"key":"a","operator":"In","values":["1","2"]}]}),
            &[("a", "2")],
            true,
        );
        check(json!({"matchExpressions":[{"key":"a","operator":"NotIn","values":["1"]}]}), &[], true);
        check(json!({"matchExpressions":[{"key":"a","operator":"Exists"}]}), &[], false);
        check(json!({"matchExpressions":[{"key":"a","operator":"DoesNotExist"}]}), &[], true);
        check(json!({"matchExpressions":[{"key":"a","operator":"Wild"}]}), &[("a", "1")], false);
    }

    #[test]
    fn hash_is_stable_and_moves_with_collisions() {
        let value = json!({"spec":{"containers":[{"image":"a"}]}});
        assert_eq!(template_hash(&value, None), template_hash(&value.clone(), None));
        assert_ne!(template_hash(&value, None), template_hash(&value, Some(1)));
        assert_ne!(template_hash(&value, None), template_hash(&json!({}), None));
    }
}
