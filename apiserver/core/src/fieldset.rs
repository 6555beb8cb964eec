//! Sets of fields: who manages what. A trie of path elements, written as `fieldsV1`.
//!
//! Elements: `f:name`, `k:{"key":…}` an item of a list by its keys, `v:value` an item of a set, `i:n` by position.
//! A path is a member (`.`, or a leaf), has children, or both.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// One step of a path, as `fieldsV1` writes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    Field(String),
    /// Canonical JSON of the key fields.
    Key(String),
    /// Canonical JSON of the value.
    Value(String),
    Index(usize),
}

impl Element {
    /// Item of a map list, from its key fields.
    pub fn key(keys: Map<String, Value>) -> Element {
        let sorted: BTreeMap<String, Value> = keys.into_iter().collect();
        Element::Key(serde_json::to_string(&sorted).unwrap_or_default())
    }
    fn encode(&self) -> String {
        match self {
            Element::Field(name) => format!("f:{name}"),
            Element::Key(json) => format!("k:{json}"),
            Element::Value(json) => format!("v:{json}"),
            Element::Index(i) => format!("i:{i}"),
        }
    }
    fn decode(text: &str) -> Option<Element> {
        let (mark, rest) = text.split_once(':')?;
        Some(match mark {
            "f" => Element::Field(rest.into()),
            "k" => match serde_json::from_str(rest).ok()? {
                Value::Object(map) => Element::key(map),
                _ => return None,
            },
            "v" => Element::Value(serde_json::from_str::<Value>(rest).ok()?.to_string()),
            "i" => Element::Index(rest.parse().ok()?),
            _ => return None,
        })
    }
    /// As messages write it.
    pub fn shown(&self) -> String {
        let mut out = String::new();
        self.show(&mut out);
        out
    }
    /// As conflict messages write it: `.name`, `[name="c"]`, `[="v"]`, `[0]`.
    fn show(&self, out: &mut String) {
        match self {
            Element::Field(name) => out.push_str(&format!(".{name}")),
            Element::Key(json) => {
                let keys: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
                let parts: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                out.push_str(&format!("[{}]", parts.join(",")));
            }
            Element::Value(json) => out.push_str(&format!("[={json}]")),
            Element::Index(i) => out.push_str(&format!("[{i}]")),
        }
    }
}

/// A set of paths.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldSet {
    nodes: BTreeMap<Element, Node>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Node {
    member: bool,
    children: FieldSet,
}

impl FieldSet {
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub fn insert(&mut self, path: &[Element]) {
        let Some((first, rest)) = path.split_first() else { return };
        let node = self.nodes.entry(first.clone()).or_default();
        if rest.is_empty() { node.member = true } else { node.children.insert(rest) }
    }

    /// What is below an element, and whether the element itself is a member.
    pub fn below(&self, element: &Element) -> (bool, Option<&FieldSet>) {
        self.nodes.get(element).map_or((false, None), |n| (n.member, Some(&n.children)))
    }

    /// Removes what `remove` says about each node: given both sides, keep this member?
    fn combine(&self, other: &FieldSet, keep: fn(bool, bool) -> bool) -> FieldSet {
        let mut nodes = BTreeMap::new();
        for element in self.nodes.keys().chain(other.nodes.keys()) {
            if nodes.contains_key(element) {
                continue;
            }
            let none = Node::default();
            let (a, b) =
                (self.nodes.get(element).unwrap_or(&none), other.nodes.get(element).unwrap_or(&none));
            let node =
                Node { member: keep(a.member, b.member), children: a.children.combine(&b.children, keep) };
            if node.member || !node.children.is_empty() {
                nodes.insert(element.clone(), node);
            }
        }
        FieldSet { nodes }
    }

    pub fn union(&self, other: &FieldSet) -> FieldSet {
        self.combine(other, |a, b| a || b)
    }
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        self.combine(other, |a, b| a && b)
    }
    pub fn difference(&self, other: &FieldSet) -> FieldSet {
        self.combine(other, |a, b| a && !b)
    }

    /// Every named field on the way to a member becomes one.
    pub fn with_named_parents(&self) -> FieldSet {
        let nodes = self.nodes.iter().map(|(e, n)| {
            let member = n.member || matches!(e, Element::Field(_));
            (e.clone(), Node { member, children: n.children.with_named_parents() })
        });
        FieldSet { nodes: nodes.collect() }
    }

    /// Removes a path and all below it.
    pub fn remove(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else { return };
        let element = Element::Field(first.to_string());
        if rest.is_empty() {
            self.nodes.remove(&element);
            return;
        }
        if let Some(node) = self.nodes.get_mut(&element) {
            node.children.remove(rest);
            if !node.member && node.children.is_empty() {
                self.nodes.remove(&element);
            }
        }
    }

    /// Removes the member at a path, not what is below it.
    pub fn remove_member(&mut self, name: &str) {
        let element = Element::Field(name.into());
        if let Some(node) = self.nodes.get_mut(&element) {
            node.member = false;
            if node.children.is_empty() {
                self.nodes.remove(&element);
            }
        }
    }

    /// The members, as conflict messages write them.
    pub fn paths(&self) -> Vec<String> {
        let mut out = vec![];
        self.collect(&mut String::new(), &mut out);
        out
    }

    fn collect(&self, prefix: &mut String, out: &mut Vec<String>) {
        let length = prefix.len();
        for (element, _) in self.nodes.iter().filter(|(_, n)| n.member) {
            element.show(prefix);
            out.push(prefix.clone());
            prefix.truncate(length);
        }
        for (element, node) in &self.nodes {
            element.show(prefix);
            node.children.collect(prefix, out);
            prefix.truncate(length);
        }
    }

    pub fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (element, node) in &self.nodes {
            let mut inner = node.children.to_value();
            if node.member && !node.children.is_empty() {
                inner["."] = Value::Object(Map::new());
            }
            out.insert(element.encode(), inner);
        }
        Value::Object(out)
    }

    /// Reads `fieldsV1`; none when it is malformed.
    pub fn from_value(value: &Value) -> Option<FieldSet> {
        let mut nodes = BTreeMap::new();
        for (key, inner) in value.as_object()?.iter().filter(|(k, _)| *k != ".") {
            let children = FieldSet::from_value(inner)?;
            let member = children.is_empty() || inner.get(".").is_some();
            nodes.insert(Element::decode(key)?, Node { member, children });
        }
        Some(FieldSet { nodes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn reads_what_it_writes() {
        let v = json!({"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}}}}, "f:metadata": {"f:finalizers": {"v:\"a\"": {}}}});
        let set = FieldSet::from_value(&v).unwrap();
        assert_eq!(set.to_value(), v);
        assert!(set.paths().contains(&".spec.containers[name=\"c\"].image".to_string()));
        assert!(FieldSet::from_value(&json!({"zz": {}})).is_none());
    }

    fn sets() -> impl Strategy<Value = FieldSet> {
        prop::collection::vec(prop::collection::vec("[a-c]", 1..4), 0..6).prop_map(|paths| {
            let mut set = FieldSet::default();
            for p in paths {
                set.insert(&p.into_iter().map(Element::Field).collect::<Vec<_>>());
            }
            set
        })
    }

    proptest! {
        #[test]
        fn set_laws(a in sets(), b in sets()) {
            prop_assert_eq!(a.union(&b), b.union(&a));
            prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
            prop_assert!(a.difference(&a).is_empty());
            prop_assert_eq!(FieldSet::from_value(&a.to_value()).unwrap(), a);
        }
    }
}
