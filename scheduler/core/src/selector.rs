//! Compiled selectors over string maps: label selectors and node selectors (which also know Gt, Lt and fields).
//!
//! Compiled once per pod, matched per node or per pod. An operator nobody knows matches nothing.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Greater,
    Less,
    Never,
}

/// One requirement on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

impl Requirement {
    /// `key in (value)`.
    pub fn equals(key: &str, value: &str) -> Requirement {
        Requirement { key: key.into(), operator: Operator::In, values: vec![value.into()] }
    }

    /// `key notin (value)`.
    pub fn differs(key: &str, value: &str) -> Requirement {
        Requirement { key: key.into(), operator: Operator::NotIn, values: vec![value.into()] }
    }

    fn new(key: &str, operator: &str, values: Option<&Vec<String>>) -> Requirement {
        let operator = match operator {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => Operator::Greater,
            "Lt" => Operator::Less,
            _ => Operator::Never,
        };
        Requirement { key: key.into(), operator, values: values.cloned().unwrap_or_default() }
    }

    fn matches(&self, value: Option<&str>) -> bool {
        match (&self.operator, value) {
            (Operator::In, Some(value)) => self.values.iter().any(|wanted| wanted == value),
            (Operator::NotIn, Some(value)) => self.values.iter().all(|wanted| wanted != value),
            (Operator::NotIn, None) | (Operator::DoesNotExist, None) => true,
            (Operator::Exists, found) => found.is_some(),
            (Operator::Greater, Some(value)) => self.compare(value, |found, bound| found > bound),
            (Operator::Less, Some(value)) => self.compare(value, |found, bound| found < bound),
            _ => false,
        }
    }

    fn compare(&self, value: &str, holds: impl Fn(i64, i64) -> bool) -> bool {
        let bound = self.values.first().and_then(|bound| bound.parse().ok());
        matches!((value.parse(), bound), (Ok(found), Some(bound)) if holds(found, bound))
    }
}

/// A label selector; an absent one matches nothing, an empty one everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Option<Vec<Requirement>>,
}

impl LabelSelector {
    /// Compiles the API's form.
    pub fn new(selector: Option<&meta::LabelSelector>) -> LabelSelector {
        let Some(selector) = selector else { return LabelSelector { requirements: None } };
        let mut requirements: Vec<Requirement> = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(Requirement::equals(key, value));
        }
        for expression in selector.match_expressions.iter().flatten() {
            requirements.push(Requirement::new(
                &expression.key,
                &expression.operator,
                expression.values.as_ref(),
            ));
        }
        LabelSelector { requirements: Some(requirements) }
    }

    /// A selector of equalities, as Services and ReplicationControllers have.
    pub fn from_labels(labels: &Labels) -> LabelSelector {
        let requirements = labels.iter().map(|(key, value)| Requirement::equals(key, value)).collect();
        LabelSelector { requirements: Some(requirements) }
    }

    /// Adds a requirement unless the selector matches nothing anyway.
    pub fn and(&mut self, requirement: Requirement) {
        if let Some(requirements) = &mut self.requirements {
            requirements.push(requirement);
        }
    }

    /// Adds all requirements of another selector.
    pub fn and_all(&mut self, other: &LabelSelector) {
        match &other.requirements {
            None => self.requirements = None,
            Some(others) => others.iter().for_each(|other| self.and(other.clone())),
        }
    }

    /// No requirement at all: matches everything.
    pub fn is_everything(&self) -> bool {
        self.requirements.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether the labels satisfy it.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.as_ref().is_some_and(|requirements| {
            requirements
                .iter()
                .all(|requirement| requirement.matches(labels.get(&requirement.key).map(String::as_str)))
        })
    }
}

/// One term of a node selector: expressions on labels and on `metadata.name`. An empty term matches nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTerm {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl NodeTerm {
    /// Compiles the API's form.
    pub fn new(term: &NodeSelectorTerm) -> NodeTerm {
        let compile = |from: &Option<Vec<NodeSelectorRequirement>>| {
            from.iter()
                .flatten()
                .map(|found| Requirement::new(&found.key, &found.operator, found.values.as_ref()))
                .collect()
        };
        NodeTerm { labels: compile(&term.match_expressions), fields: compile(&term.match_fields) }
    }

    /// No expression: matches no node.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether the node satisfies the term.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        !self.is_empty()
            && self.labels.iter().all(|found| found.matches(labels.get(&found.key).map(String::as_str)))
            && self.fields.iter().all(|found| found.matches((found.key == "metadata.name").then_some(name)))
    }

    /// The nodes the term names by `metadata.name`, if it does.
    pub fn named_nodes(&self) -> Option<&[String]> {
        self.fields
            .iter()
            .find(|found| found.key == "metadata.name" && found.operator == Operator::In)
            .map(|found| found.values.as_slice())
    }
}

/// A node selector: terms are alternatives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTerms(pub Vec<NodeTerm>);

impl NodeTerms {
    /// Compiles the API's form.
    pub fn new(selector: &NodeSelector) -> NodeTerms {
        NodeTerms(selector.node_selector_terms.iter().map(NodeTerm::new).collect())
    }

    /// Whether the node satisfies any term.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        self.0.iter().any(|term| term.matches(name, labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    fn term(json: serde_json::Value) -> NodeTerm {
        NodeTerm::new(&serde_json::from_value(json).expect("a term"))
    }

    #[test]
    fn absent_selectors_match_nothing_and_empty_ones_everything() {
        assert!(!LabelSelector::new(None).matches(&labels(&[("a", "b")])));
        assert!(LabelSelector::new(Some(&meta::LabelSelector::default())).matches(&labels(&[])));
        assert!(!term(serde_json::json!({})).matches("n", &labels(&[])));
    }

    #[test]
    fn operators_follow_the_api() {
        let matches = |operator: &str, values: &[&str], found: &[(&str, &str)]| {
            term(serde_json::json!({"matchExpressions": [{"key": "k", "operator": operator, "values": values}]}))
                .matches("n", &labels(found))
        };
        assert!(matches("In", &["a", "b"], &[("k", "b")]));
        assert!(!matches("In", &["a"], &[]));
        assert!(matches("NotIn", &["a"], &[]));
        assert!(!matches("NotIn", &["a"], &[("k", "a")]));
        assert!(matches("Exists", &[], &[("k", "")]));
        assert!(matches("DoesNotExist", &[], &[]));
        assert!(matches("Gt", &["3"], &[("k", "4")]));
        assert!(!matches("Gt", &["3"], &[("k", "3")]));
        assert!(matches("Lt", &["3"], &[("k", "-4")]));
        assert!(!matches("Lt", &["3"], &[("k", "x")]));
        assert!(!matches("Near", &["3"], &[("k", "3")]));
    }

    #[test]
    fn fields_name_nodes() {
        let term = term(serde_json::json!({"matchFields":
            [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}));
        assert!(term.matches("n1", &labels(&[])) && !term.matches("n2", &labels(&[])));
        assert_eq!(term.named_nodes(), Some(&["n1".to_string()][..]));
    }
}
