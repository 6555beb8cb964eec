//! Label selectors (query strings and objects) and field selectors.

use crate::names;
use crate::resource::Resource;
use serde_json::Value;
use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let listed = |v: &str| self.values.iter().any(|x| x == v);
        let number = |s: &str| s.parse::<i64>().ok();
        let limit = || self.values.first().and_then(|v| number(v));
        match self.operator {
            Operator::In => value.is_some_and(listed),
            Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => value.and_then(number).zip(limit()).is_some_and(|(a, b)| a > b),
            Operator::LessThan => value.and_then(number).zip(limit()).is_some_and(|(a, b)| a < b),
        }
    }
}

/// A conjunction of requirements on labels. The default one selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    pub fn everything() -> LabelSelector {
        LabelSelector::default()
    }
    pub fn nothing() -> LabelSelector {
        LabelSelector { nothing: true, ..LabelSelector::default() }
    }
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// Parses a `labelSelector` query parameter; the error says where it went wrong.
    pub fn parse(text: &str) -> Result<LabelSelector, String> {
        let mut parser = Parser { tokens: tokenize(text), at: 0 };
        let mut requirements = vec![];
        if parser.peek() == &Token::End {
            return Ok(LabelSelector::default());
        }
        loop {
            requirements.push(parser.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?);
            match parser.next() {
                Token::End => break,
                Token::Comma if matches!(parser.peek(), Token::Word(_) | Token::Not) => {}
                Token::Comma => {
                    return Err(format!("found '{}', expected: identifier after ','", parser.peek()));
                }
                other => return Err(format!("found '{other}', expected: ',' or 'end of string'")),
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// A `LabelSelector` object (`matchLabels`, `matchExpressions`); null selects nothing, an empty one everything.
    pub fn from_object(selector: &Value) -> LabelSelector {
        let Some(object) = selector.as_object() else { return LabelSelector::nothing() };
        let mut out = LabelSelector::from_map(object.get("matchLabels").unwrap_or(&Value::Null));
        for e in object.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let operator = match e["operator"].as_str() {
                Some("In") => Operator::In,
                Some("NotIn") => Operator::NotIn,
                Some("Exists") => Operator::Exists,
                Some("DoesNotExist") => Operator::DoesNotExist,
                _ => return LabelSelector::nothing(),
            };
            let values = e["values"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(String::from))
                .collect();
            out.requirements.push(Requirement {
                key: e["key"].as_str().unwrap_or("").into(),
                operator,
                values,
            });
        }
        out
    }

    /// A plain map of labels (Service, ReplicationController); null or empty selects everything.
    pub fn from_map(map: &Value) -> LabelSelector {
        let pairs = map.as_object().into_iter().flatten();
        let requirements = pairs
            .map(|(k, v)| Requirement {
                key: k.clone(),
                operator: Operator::In,
                values: vec![v.as_str().unwrap_or("").to_string()],
            })
            .collect();
        LabelSelector { requirements, nothing: false }
    }

    /// Matches an object's labels (`metadata.labels`, may be null).
    pub fn matches(&self, labels: &Value) -> bool {
        !self.nothing
            && self.requirements.iter().all(|r| r.matches(labels.get(&r.key).and_then(Value::as_str)))
    }
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(&object["metadata"]["labels"])
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match (&r.operator, r.values.as_slice()) {
                (Operator::In, [one]) => write!(f, "{}={one}", r.key)?,
                (Operator::In, many) => write!(f, "{} in ({})", r.key, many.join(","))?,
                (Operator::NotIn, [one]) => write!(f, "{}!={one}", r.key)?,
                (Operator::NotIn, many) => write!(f, "{} notin ({})", r.key, many.join(","))?,
                (Operator::Exists, _) => f.write_str(&r.key)?,
                (Operator::DoesNotExist, _) => write!(f, "!{}", r.key)?,
                (Operator::GreaterThan, v) => write!(f, "{}>{}", r.key, v.join(","))?,
                (Operator::LessThan, v) => write!(f, "{}<{}", r.key, v.join(","))?,
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Open,
    Close,
    Comma,
    Equals,
    NotEquals,
    Not,
    Greater,
    Less,
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Token::Word(w) => w,
            Token::Open => "(",
            Token::Close => ")",
            Token::Comma => ",",
            Token::Equals => "=",
            Token::NotEquals => "!=",
            Token::Not => "!",
            Token::Greater => ">",
            Token::Less => "<",
            Token::End => "",
        })
    }
}

fn tokenize(text: &str) -> Vec<Token> {
    let mut out = vec![];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\r' | '\n' => {}
            '(' => out.push(Token::Open),
            ')' => out.push(Token::Close),
            ',' => out.push(Token::Comma),
            '>' => out.push(Token::Greater),
            '<' => out.push(Token::Less),
            '=' => {
                chars.next_if_eq(&'=');
                out.push(Token::Equals);
            }
            '!' => out.push(if chars.next_if_eq(&'=').is_some() { Token::NotEquals } else { Token::Not }),
            c => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| !" \t\r\n(),=!<>".contains(*c)) {
                    word.push(c);
                }
                out.push(Token::Word(word));
            }
        }
    }
    out.push(Token::End);
    out
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }
    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let negated = self.peek() == &Token::Not;
        if negated {
            self.next();
        }
        let key = match self.next() {
            Token::Word(w) => w,
            other => return Err(format!("found '{other}', expected: identifier")),
        };
        if let Some(problem) = names::qualified_name(&key).first() {
            return Err(format!("key: Invalid value: {}: {problem}", crate::field::quote(&key)));
        }
        if negated {
            return Ok(Requirement { key, operator: Operator::DoesNotExist, values: vec![] });
        }
        let operator = match self.peek() {
            Token::End | Token::Comma => {
                return Ok(Requirement { key, operator: Operator::Exists, values: vec![] });
            }
            Token::Equals => Operator::In,
            Token::NotEquals => Operator::NotIn,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            Token::Word(w) if w == "in" => Operator::In,
            Token::Word(w) if w == "notin" => Operator::NotIn,
            other => {
                return Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt"));
            }
        };
        let set = matches!(self.next(), Token::Word(_));
        let values = if set { self.values()? } else { vec![self.exact_value()?] };
        for value in &values {
            if let Some(problem) = names::label_value(value).first() {
                return Err(format!(
                    "values[0][{key}]: Invalid value: {}: {problem}",
                    crate::field::quote(value)
                ));
            }
        }
        Ok(Requirement { key, operator, values })
    }

    fn exact_value(&mut self) -> Result<String, String> {
        match self.peek().clone() {
            Token::End | Token::Comma => Ok(String::new()),
            Token::Word(w) => {
                self.next();
                Ok(w)
            }
            other => Err(format!("found '{other}', expected: identifier")),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        if self.next() != Token::Open {
            return Err("found '', expected: '('".into());
        }
        let mut out = vec![];
        loop {
            match self.next() {
                Token::Word(w) => {
                    out.push(w);
                    match self.next() {
                        Token::Comma => {}
                        Token::Close => break,
                        other => return Err(format!("found '{other}', expected: ',' or ')'")),
                    }
                }
                Token::Comma => out.push(String::new()),
                Token::Close => {
                    out.push(String::new());
                    break;
                }
                other => return Err(format!("found '{other}', expected: ',', ')' or identifier")),
            }
        }
        Ok(out)
    }
}

/// A conjunction of `label=value` and `label!=value` terms on fields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldSelector {
    /// Field label, wanted value, whether it must be equal.
    pub terms: Vec<(String, String, bool)>,
}

impl FieldSelector {
    /// Parses a `fieldSelector` query parameter against the labels a resource supports; the error is the 400 message.
    pub fn parse(text: &str, res: &Resource) -> Result<FieldSelector, String> {
        let mut terms = vec![];
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let (label, value, equal) = if let Some((l, v)) = term.split_once("!=") {
                (l, v, false)
            } else if let Some((l, v)) = term.split_once("==").or_else(|| term.split_once('=')) {
                (l, v, true)
            } else {
                return Err(format!("invalid selector: '{text}'; can't understand '{term}'"));
            };
            let aliased = if res.group.is_empty() && res.plural == "pods" && label == "spec.host" {
                "spec.nodeName"
            } else {
                label
            };
            if !res.fields.iter().any(|f| f == aliased) {
                return Err(unsupported(res, label));
            }
            terms.push((aliased.to_string(), unescape(value), equal));
        }
        Ok(FieldSelector { terms })
    }
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }
    /// The value a term demands of a label, if one does (to serve `metadata.name=x` from a key).
    pub fn exact(&self, label: &str) -> Option<&str> {
        self.terms.iter().find(|(l, _, equal)| *equal && l == label).map(|(_, v, _)| v.as_str())
    }
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|(label, want, equal)| (field_value(object, label) == *want) == *equal)
    }
}

fn unsupported(res: &Resource, label: &str) -> String {
    if res.definition.is_some() {
        return format!("field label not supported: {label}");
    }
    match (res.group.as_str(), res.plural.as_str()) {
        (
            "",
            "pods" | "nodes" | "namespaces" | "secrets" | "services" | "events" | "replicationcontrollers",
        )
        | ("events.k8s.io", _)
        | ("certificates.k8s.io", _) => format!("field label not supported: {label}"),
        _ if res.definition.is_some() => format!("field label not supported: {label}"),
        ("resource.k8s.io", "resourceslices") => {
            format!("field label not supported for {}, Kind={}: {label}", res.api_version(), res.kind)
        }
        ("batch", "jobs") => format!("field label {} not supported for Job", crate::field::quote(label)),
        _ => format!(
            "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
            crate::field::quote(label)
        ),
    }
}

/// The text of a selectable field of an object.
pub fn field_value(object: &Value, label: &str) -> String {
    let special = match label {
        "status.podIP" => Some(&object["status"]["podIP"]),
        "status.podIPs" => {
            let ips = object["status"]["podIPs"].as_array();
            return ips
                .into_iter()
                .flatten()
                .filter_map(|ip| ip["ip"].as_str())
                .collect::<Vec<_>>()
                .join(",");
        }
        "source" => Some(&object["source"]["component"]),
        "status.successful" => {
            return object["status"]["succeeded"].as_i64().unwrap_or(0).to_string();
        }
        "reportingController" if object.get("reportingController").is_none() => {
            Some(&object["reportingComponent"])
        }
        "spec.unschedulable" | "spec.hostNetwork" => {
            let field = label.rsplit('.').next().unwrap_or(label);
            return object["spec"][field].as_bool().unwrap_or(false).to_string();
        }
        _ => None,
    };
    let value = special.unwrap_or_else(|| label.split('.').fold(object, |v, key| &v[key]));
    match value {
        Value::String(s) => s.clone(),
        Value::Null if label.starts_with("status.") && label.ends_with("replicas") => "0".into(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn split_unescaped(text: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        match c {
            ',' if !escaped => out.push(String::new()),
            c => {
                if let Some(last) = out.last_mut() {
                    last.push(c);
                }
            }
        }
        escaped = c == '\\' && !escaped;
    }
    out
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::find_preferred;
    use serde_json::json;

    #[test]
    fn label_selectors() {
        let labels = json!({"app": "a", "tier": "front", "n": "5"});
        for yes in [
            "",
            "app=a",
            "app==a,tier",
            "app in (a,b)",
            "app notin (b)",
            "!x",
            "x!=1",
            "n>4",
            "n<6",
            "tier in (front)",
        ] {
            assert!(LabelSelector::parse(yes).unwrap().matches(&labels), "{yes}");
        }
        for no in ["app=b", "!app", "x", "app notin (a)", "n>5", "x in (1)"] {
            assert!(!LabelSelector::parse(no).unwrap().matches(&labels), "{no}");
        }
        for bad in ["a b", "a in", "=a", "a,,b", "a in (b", "-a=1"] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
        assert!(!LabelSelector::from_object(&Value::Null).matches(&labels));
        assert!(LabelSelector::from_object(&json!({})).matches(&labels));
        assert!(
            LabelSelector::from_object(
                &json!({"matchExpressions":[{"key":"app","operator":"In","values":["a"]}]})
            )
            .matches(&labels)
        );
    }

    #[test]
    fn field_selectors() {
        let pods = find_preferred("", "pods").unwrap();
        let pod = json!({"metadata":{"name":"x"},"spec":{"nodeName":"n1"}});
        assert!(FieldSelector::parse("spec.nodeName=n1,metadata.name!=y", pods).unwrap().matches(&pod));
        assert!(FieldSelector::parse("spec.hostNetwork=false", pods).unwrap().matches(&pod));
        assert_eq!(
            FieldSelector::parse("spec.foo=1", pods).unwrap_err(),
            "field label not supported: spec.foo"
        );
    }
}
