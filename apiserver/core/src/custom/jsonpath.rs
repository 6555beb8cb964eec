//! The small JSONPath of printer columns: `.a.b`, `['a']`, `[0]`, `[*]`, `[?(@.type=="Ready")]`.

use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
    All,
    /// Elements whose field at the path equals the text.
    Where(String, String),
}

/// Whether a text is a path that begins with a dot.
pub fn is_simple(text: &str) -> bool {
    text.starts_with('.') && parse(text).is_some()
}

/// All values at a path; none for a malformed path.
pub fn find<'a>(object: &'a Value, path: &str) -> Vec<&'a Value> {
    let Some(steps) = parse(path) else { return vec![] };
    let mut found = vec![object];
    for step in steps {
        found = found.into_iter().flat_map(|v| follow(v, &step)).collect();
    }
    found
}

fn follow<'a>(value: &'a Value, step: &Step) -> Vec<&'a Value> {
    let elements = || value.as_array().into_iter().flatten();
    match step {
        Step::Key(key) => value.get(key).into_iter().collect(),
        Step::Index(i) => value.get(*i).into_iter().collect(),
        Step::All => match value {
            Value::Object(map) => map.values().collect(),
            _ => elements().collect(),
        },
        Step::Where(path, wanted) => {
            let at = |v: &'a Value| path.split('.').fold(v, |v, key| &v[key]);
            let same = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned) == *wanted;
            elements().filter(|v| same(at(v))).collect()
        }
    }
}

fn parse(text: &str) -> Option<Vec<Step>> {
    let text = text.trim().trim_start_matches('{').trim_end_matches('}');
    let (mut steps, mut rest) = (vec![], text.trim_start_matches('$'));
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let (inside, after) = bracket(after)?;
            steps.push(inside_bracket(inside)?);
            rest = after;
        } else {
            let after = rest.strip_prefix('.')?;
            let end =
                after.char_indices().find(|(i, c)| matches!(c, '.' | '[') && !after[..*i].ends_with('\\'));
            let end = end.map_or(after.len(), |(i, _)| i);
            let key = after[..end].replace('\\', "");
            match key.as_str() {
                "" => {}
                "*" => steps.push(Step::All),
                _ => steps.push(Step::Key(key)),
            }
            rest = &after[end..];
        }
    }
    Some(steps)
}

/// What stands up to the closing bracket, quotes and inner brackets considered.
fn bracket(text: &str) -> Option<(&str, &str)> {
    let (mut depth, mut quote) = (0, None);
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[' | '(') => depth += 1,
            (None, ')') => depth -= 1,
            (None, ']') if depth == 0 => return Some((&text[..i], &text[i + 1..])),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn inside_bracket(inside: &str) -> Option<Step> {
    let inside = inside.trim();
    if inside == "*" {
        return Some(Step::All);
    }
    if let Ok(index) = inside.parse() {
        return Some(Step::Index(index));
    }
    let unquoted = |t: &str| {
        let t = t.trim();
        t.strip_prefix(['\'', '"']).and_then(|t| t.strip_suffix(['\'', '"'])).map(str::to_owned)
    };
    if let Some(key) = unquoted(inside) {
        return Some(Step::Key(key));
    }
    let filter = inside.strip_prefix("?(")?.strip_suffix(')')?;
    let (left, right) = filter.split_once("==")?;
    let path = left.trim().strip_prefix("@.")?.to_owned();
    Some(Step::Where(path, unquoted(right).unwrap_or_else(|| right.trim().to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn columns_find_their_values() {
        let object = json!({"spec": {"a": 1, "l": [{"n": "x"}, {"n": "y"}]}, "metadata": {"annotations": {"a.b/c": "z"}},
            "status": {"conditions": [{"type": "Other", "status": "False"}, {"type": "Ready", "status": "True"}]}});
        let one = |path: &str| find(&object, path).first().map(|v| (*v).clone());
        assert_eq!(one(".spec.a"), Some(json!(1)));
        assert_eq!(one(".status.conditions[?(@.type==\"Ready\")].status"), Some(json!("True")));
        assert_eq!(one(".spec.l[1].n"), Some(json!("y")));
        assert_eq!(find(&object, ".spec.l[*].n").len(), 2);
        assert_eq!(one(".metadata.annotations['a.b/c']"), Some(json!("z")));
        assert_eq!(one(".metadata.annotations.a\\.b/c"), Some(json!("z")));
        assert_eq!(one(".nothing.here"), None);
        assert!(!is_simple("spec.a") && !is_simple(".a[") && is_simple(".a.b"));
    }

    proptest! {
        #[test]
        fn no_path_makes_it_panic(path in ".{0,40}") {
            let _ = find(&json!({"a": [1, {"b": 2}]}), &path);
        }
    }
}
