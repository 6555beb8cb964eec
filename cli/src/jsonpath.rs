//! kubectl's JSONPath templates, the common part: `{.a.b}`, `['k']`, `[0]`, `[-1]`, `[0:2]`, `[*]`, `.*`, `..name`,
//! `[?(@.x=="y")]`, `{range …}…{end}`, `{"text"}`, several paths in one pair of braces' place.

use anyhow::{Result, bail};
use serde_json::Value;

#[derive(Debug, Clone)]
enum Step {
    Field(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    Every,
    Deep(String),
    Filter { path: Vec<Step>, operator: String, value: Value },
}

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Path(Vec<Step>),
    Range(Vec<Step>, Vec<Part>),
}

/// A parsed template.
#[derive(Debug, Clone)]
pub struct Template(Vec<Part>);

impl Template {
    /// Parses; a template without braces is one path.
    pub fn parse(text: &str) -> Result<Template> {
        let text = text.trim_matches('\'');
        let wrapped;
        let text = if text.contains('{') {
            text
        } else {
            wrapped = format!("{{{text}}}");
            &wrapped
        };
        let mut stack: Vec<(Vec<Step>, Vec<Part>)> = vec![(Vec::new(), Vec::new())];
        let mut rest = text;
        while !rest.is_empty() {
            let open = rest.find('{').unwrap_or(rest.len());
            if open > 0 {
                push(&mut stack, Part::Text(unescape(&rest[..open])));
            }
            rest = &rest[open..];
            if rest.is_empty() {
                break;
            }
            let close = closing(rest)?;
            let inside = rest[1..close].trim();
            rest = &rest[close + 1..];
            if let Some(path) = inside.strip_prefix("range") {
                stack.push((steps(path.trim())?, Vec::new()));
            } else if inside == "end" {
                if stack.len() < 2 {
                    bail!("jsonpath: {{end}} without {{range}}");
                }
                if let Some((path, parts)) = stack.pop() {
                    push(&mut stack, Part::Range(path, parts));
                }
            } else if inside.starts_with(['"', '\'']) {
                push(&mut stack, Part::Text(unescape(inside.trim_matches(['"', '\'']))));
            } else {
                push(&mut stack, Part::Path(steps(inside)?));
            }
        }
        if stack.len() != 1 {
            bail!("jsonpath: {{range}} without {{end}}");
        }
        Ok(Template(stack.pop().map(|(_, parts)| parts).unwrap_or_default()))
    }

    /// Fills the template in.
    pub fn render(&self, value: &Value) -> String {
        let mut text = String::new();
        render(&self.0, value, &mut text);
        text
    }
}

fn push(stack: &mut [(Vec<Step>, Vec<Part>)], part: Part) {
    if let Some((_, parts)) = stack.last_mut() {
        parts.push(part);
    }
}

fn render(parts: &[Part], value: &Value, text: &mut String) {
    for part in parts {
        match part {
            Part::Text(literal) => text.push_str(literal),
            Part::Path(steps) => {
                let found: Vec<String> = walk(steps, value).into_iter().map(show).collect();
                text.push_str(&found.join(" "));
            }
            Part::Range(steps, inner) => {
                for item in walk(steps, value) {
                    render(inner, item, text);
                }
            }
        }
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn unescape(text: &str) -> String {
    text.replace("\\n", "\n").replace("\\t", "\t").replace("\\\"", "\"")
}

/// The brace that closes the first one, quotes respected.
fn closing(text: &str) -> Result<usize> {
    let mut quote = None;
    for (at, found) in text.char_indices().skip(1) {
        match (quote, found) {
            (Some(open), _) if open == found => quote = None,
            (None, '"' | '\'') => quote = Some(found),
            (None, '}') => return Ok(at),
            _ => {}
        }
    }
    bail!("jsonpath: unclosed action in {text:?}: a brace or quote is missing");
}

/// Parses one path.
fn steps(text: &str) -> Result<Vec<Step>> {
    let mut found = Vec::new();
    let mut rest = text.trim().trim_start_matches(['$', '@']);
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("..") {
            let (name, remaining) = field(after);
            found.push(Step::Deep(name));
            rest = remaining;
        } else if let Some(after) = rest.strip_prefix('.') {
            let (name, remaining) = field(after);
            match name.as_str() {
                "" => {}
                "*" => found.push(Step::Every),
                _ => found.push(Step::Field(name)),
            }
            rest = remaining;
        } else if rest.starts_with('[') {
            let close = bracket(rest)?;
            found.push(selector(rest[1..close].trim())?);
            rest = &rest[close + 1..];
        } else {
            let (name, remaining) = field(rest);
            if name.is_empty() {
                bail!("jsonpath: cannot read {rest:?} in {text:?}");
            }
            found.push(Step::Field(name));
            rest = remaining;
        }
    }
    Ok(found)
}

/// A field name up to `.` or `[`; a backslash takes the next character as it is.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut characters = text.char_indices();
    while let Some((at, found)) = characters.next() {
        match found {
            '\\' => {
                if let Some((_, next)) = characters.next() {
                    name.push(next);
                }
            }
            '.' | '[' => return (name, &text[at..]),
            _ => name.push(found),
        }
    }
    (name, "")
}

fn bracket(text: &str) -> Result<usize> {
    let (mut depth, mut quote) = (0, None);
    for (at, found) in text.char_indices() {
        match (quote, found) {
            (Some(open), _) if open == found => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(found),
            (None, '[') => depth += 1,
            (None, ']') => {
                depth -= 1;
                if depth == 0 {
                    return Ok(at);
                }
            }
            _ => {}
        }
    }
    bail!("jsonpath: unterminated [ in {text:?}");
}

fn selector(text: &str) -> Result<Step> {
    if text == "*" {
        return Ok(Step::Every);
    }
    if text.starts_with(['"', '\'']) {
        return Ok(Step::Field(text.trim_matches(['"', '\'']).to_string()));
    }
    if let Some(condition) = text.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        return filter(condition.trim());
    }
    let number = |text: &str| -> Result<Option<i64>> {
        match text.trim() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| anyhow::anyhow!("jsonpath: {text:?} is no index")),
        }
    };
    if let Some((from, to)) = text.split_once(':') {
        return Ok(Step::Slice(number(from)?, number(to)?));
    }
    match number(text)? {
        Some(index) => Ok(Step::Index(index)),
        None => bail!("jsonpath: empty []"),
    }
}

fn filter(condition: &str) -> Result<Step> {
    for operator in ["==", "!=", ">=", "<=", ">", "<"] {
        if let Some((path, value)) = condition.split_once(operator) {
            let value = value.trim();
            let value = if value.starts_with(['"', '\'']) {
                Value::String(value.trim_matches(['"', '\'']).into())
            } else {
                serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.into()))
            };
            return Ok(Step::Filter { path: steps(path.trim())?, operator: operator.into(), value });
        }
    }
    Ok(Step::Filter { path: steps(condition)?, operator: "exists".into(), value: Value::Null })
}

fn walk<'a>(steps: &[Step], value: &'a Value) -> Vec<&'a Value> {
    let mut found = vec![value];
    for step in steps {
        found = found.into_iter().flat_map(|value| apply(step, value)).collect();
    }
    found
}

fn apply<'a>(step: &Step, value: &'a Value) -> Vec<&'a Value> {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let count = items.len() as i64;
    let place = |index: i64| if index < 0 { index + count } else { index };
    match step {
        Step::Field(name) => value.get(name).into_iter().collect(),
        Step::Index(index) => {
            usize::try_from(place(*index)).ok().and_then(|at| items.get(at)).into_iter().collect()
        }
        Step::Slice(from, to) => {
            let from = place(from.unwrap_or(0)).clamp(0, count) as usize;
            let to = place(to.unwrap_or(count)).clamp(0, count) as usize;
            items.get(from..to.max(from)).unwrap_or_default().iter().collect()
        }
        Step::Every => match value {
            Value::Array(items) => items.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        },
        Step::Deep(name) => {
            let mut found = Vec::new();
            deep(name, value, &mut found);
            found
        }
        Step::Filter { path, operator, value: wanted } => {
            items.iter().filter(|item| holds(&walk(path, item), operator, wanted)).collect()
        }
    }
}

fn deep<'a>(name: &str, value: &'a Value, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get(name));
            map.values().for_each(|value| deep(name, value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| deep(name, value, found)),
        _ => {}
    }
}

fn holds(found: &[&Value], operator: &str, wanted: &Value) -> bool {
    let Some(found) = found.first() else { return operator == "!=" };
    let order = match (found.as_f64(), wanted.as_f64()) {
        (Some(found), Some(wanted)) => found.partial_cmp(&wanted),
        _ => Some(show(found).cmp(&show(wanted))),
    };
    match operator {
        "exists" => true,
        "==" => order.is_some_and(|order| order.is_eq()),
        "!=" => order.is_some_and(|order| order.is_ne()),
        ">" => order.is_some_and(|order| order.is_gt()),
        "<" => order.is_some_and(|order| order.is_lt()),
        ">=" => order.is_some_and(|order| order.is_ge()),
        _ => order.is_some_and(|order| order.is_le()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rendered(template: &str) -> String {
        let value = json!({"kind": "List", "items": [
            {"metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "x"}}, "status": {"conditions": [
                {"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}, "n": 1},
            {"metadata": {"name": "b"}, "n": 2}]});
        Template::parse(template).expect(template).render(&value)
    }

    #[test]
    fn templates_of_daily_use() {
        assert_eq!(rendered("{.items[*].metadata.name}"), "a b");
        assert_eq!(rendered("{range .items[*]}{.metadata.name}{\"\\t\"}{.n}{\"\\n\"}{end}"), "a\t1\nb\t2\n");
        assert_eq!(rendered("{.items[0].status.conditions[?(@.type==\"Ready\")].status}"), "True");
        assert_eq!(rendered("{.items[?(@.n>1)].metadata.name}"), "b");
        assert_eq!(rendered("{.items[-1:].metadata.name}"), "b");
        assert_eq!(rendered("{.items[0].metadata.labels.app\\.kubernetes\\.io/name}"), "x");
        assert_eq!(rendered("{.items[0].metadata.labels['app.kubernetes.io/name']}"), "x");
        assert_eq!(rendered("{..name}"), "a b");
        assert_eq!(rendered(".kind"), "List");
        assert_eq!(rendered("kind is {.kind}!"), "kind is List!");
        assert_eq!(rendered("{.none.here}"), "");
    }

    #[test]
    fn broken_templates_are_refused() {
        for template in ["{.a", "{range .items[*]}x", "{end}", "{.a[}", "{.a[x]}"] {
            assert!(Template::parse(template).is_err(), "{template}");
        }
    }
}
