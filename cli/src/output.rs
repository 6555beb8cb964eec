//! What is printed: aligned tables, JSON, YAML, names, JSONPath, custom columns.

use std::io::Write;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::args::Parsed;
use crate::discovery::Kind;
use crate::jsonpath::Template;

/// How objects are wanted.
pub enum Format {
    Table { wide: bool },
    Json,
    Yaml,
    Name,
    Template(Template),
    Columns(Vec<(String, Template)>),
}

impl Format {
    /// Reads `-o`.
    pub fn new(parsed: &Parsed) -> Result<Format> {
        let Some(text) = parsed.get("output") else { return Ok(Format::Table { wide: false }) };
        let (name, rest) = text.split_once('=').unwrap_or((text, ""));
        Ok(match name {
            "" => Format::Table { wide: false },
            "wide" => Format::Table { wide: true },
            "json" => Format::Json,
            "yaml" => Format::Yaml,
            "name" => Format::Name,
            "jsonpath" => Format::Template(Template::parse(rest)?),
            "custom-columns" => Format::Columns(columns(rest)?),
            other => bail!(
                "unable to match a printer suitable for the output format {other:?}, allowed formats are: custom-columns,json,jsonpath,name,wide,yaml"
            ),
        })
    }
}

fn columns(text: &str) -> Result<Vec<(String, Template)>> {
    let mut columns = Vec::new();
    for column in text.split(',').filter(|column| !column.is_empty()) {
        let Some((header, path)) = column.split_once(':') else {
            bail!("custom-columns: {column:?} is not HEADER:PATH");
        };
        let path = if path.starts_with('{') {
            path.to_string()
        } else {
            format!("{{.{}}}", path.trim_start_matches('.'))
        };
        columns.push((header.to_string(), Template::parse(&path)?));
    }
    if columns.is_empty() {
        bail!(
            "custom-columns format specified but no custom columns given: say custom-columns=NAME:.metadata.name"
        );
    }
    Ok(columns)
}

/// Writes to standard output; a closed pipe ends the program quietly (see `is_closed_pipe`).
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Whether the reader of our output went away, as `| head` does.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Prints objects (not tables): one alone, several as a List.
pub fn objects(parsed: &Parsed, format: &Format, objects: Vec<(Kind, Value)>, single: bool) -> Result<()> {
    let kept = parsed.has("show-managed-fields");
    let mut values = Vec::new();
    let mut names = String::new();
    for (kind, mut object) in objects {
        if !kept && let Some(meta) = object["metadata"].as_object_mut() {
            meta.remove("managedFields");
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        names.push_str(&format!("{}/{name}\n", kind.in_messages()));
        values.push(object);
    }
    if let Format::Columns(columns) = format {
        let mut rows = vec![columns.iter().map(|(header, _)| header.clone()).collect::<Vec<_>>()];
        if parsed.has("no-headers") {
            rows.clear();
        }
        for value in &values {
            let cell = |template: &Template| {
                let found = template.render(value);
                if found.is_empty() { "<none>".to_string() } else { found }
            };
            rows.push(columns.iter().map(|(_, template)| cell(template)).collect());
        }
        return print(&aligned(&rows));
    }
    if let Format::Name = format {
        return print(&names);
    }
    let whole = match (single, values.len()) {
        (true, 1) => values.swap_remove(0),
        _ => {
            json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": values})
        }
    };
    match format {
        Format::Json => print(&format!("{}\n", pretty(&whole)?)),
        Format::Yaml => print(&yaml(&whole)),
        Format::Template(template) => print(&template.render(&whole)),
        _ => bail!("this output format needs a table"),
    }
}

/// JSON indented by four, as kubectl prints it.
pub fn pretty(value: &Value) -> Result<String> {
    use serde::Serialize;
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))?;
    Ok(String::from_utf8(bytes)?)
}

/// YAML in kubectl's style: keys in order, lists not indented, plain scalars where they read back the same.
pub fn yaml(value: &Value) -> String {
    let mut text = String::new();
    write_yaml(value, 0, &mut text);
    text
}

fn write_yaml(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                text.push_str(&format!("{indent}{}:", scalar(key)));
                write_below(value, depth, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                if is_leaf(item) {
                    text.push_str(&format!("{indent}- {}\n", leaf(item, depth + 1)));
                } else {
                    let mut inner = String::new();
                    write_yaml(item, depth + 1, &mut inner);
                    text.push_str(&format!("{indent}- {}", inner.trim_start_matches(' ')));
                }
            }
        }
        leaf_value => text.push_str(&format!("{indent}{}\n", leaf(leaf_value, depth))),
    }
}

fn write_below(value: &Value, depth: usize, text: &mut String) {
    if is_leaf(value) {
        text.push_str(&format!(" {}\n", leaf(value, depth + 1)));
        return;
    }
    text.push('\n');
    let deeper = if value.is_array() { depth } else { depth + 1 };
    write_yaml(value, deeper, text);
}

fn is_leaf(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    }
}

fn leaf(value: &Value, depth: usize) -> String {
    match value {
        Value::Object(_) => "{}".into(),
        Value::Array(_) => "[]".into(),
        Value::String(text)
            if text.contains('\n')
                && !text.starts_with([' ', '\n'])
                && !text.contains('\r')
                && !text.contains('\t') =>
        {
            let indent = "  ".repeat(depth);
            let chomp = if text.ends_with("\n\n") {
                "|+"
            } else if text.ends_with('\n') {
                "|"
            } else {
                "|-"
            };
            let body = text.strip_suffix('\n').unwrap_or(text);
            let lines: Vec<String> = body
                .split('\n')
                .map(|line| if line.is_empty() { String::new() } else { format!("{indent}{line}") })
                .collect();
            format!("{chomp}\n{}", lines.join("\n"))
        }
        Value::String(text) => scalar(text),
        other => other.to_string(),
    }
}

/// A string, quoted when it would read back as something else.
fn scalar(text: &str) -> String {
    let special = [": ", " #"].iter().any(|mark| text.contains(mark))
        || text.starts_with(|first: char| "-?:,[]{}#&*!|>'\"%@` \t".contains(first))
        || text.ends_with([' ', ':'])
        || text.chars().any(char::is_control);
    let word = text.to_ascii_lowercase();
    let meaning = matches!(
        word.as_str(),
        "" | "~" | "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n"
    ) || text.starts_with(|first: char| first.is_ascii_digit() || first == '.' || first == '+')
        && text
            .chars()
            .all(|found| found.is_ascii_hexdigit() || "xobT:.+-_eE".contains(found) || found == 'Z')
        || matches!(word.as_str(), ".nan" | ".inf" | "<<" | "=");
    // A dash alone starts a list item; "-x" does not, but "- x" and "-" do.
    let dash = text.starts_with('-')
        && !text.starts_with("- ")
        && text.len() > 1
        && !text[1..].starts_with(|next: char| next.is_ascii_digit() || next == '.')
        && !text.starts_with("---")
        && text.chars().all(|found| !found.is_control() && !":#".contains(found));
    if dash && !meaning {
        return text.to_string();
    }
    if special || meaning { Value::String(text.into()).to_string() } else { text.to_string() }
}

/// Rows as aligned columns, three spaces apart, no space at line ends.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}   "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A cell of a server-side table.
pub fn cell(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "".into(),
        Value::String(text) => text.replace('\n', "\\n"),
        Value::Null => "<none>".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_reads_back_the_same() {
        let value = json!({
            "a": "1", "b": 1, "c": "true", "d": null, "e": [], "f": {}, "g": [1, "x", {"k": "v", "l": [1]}],
            "h": "one\ntwo\n", "i": "no newline\nat end", "j": "- dash", "k": "-x", "l": "a: b", "m": "2026-01-01T00:00:00Z",
            "n": "#", "o": "", "p": "10.0.0.1", "q": "0x10", "r": "*", "s": "--flag", "t": "1e3", "u": " lead", "v": "x\n\n", "w": "tab\there\n",
            "x": "-1", "y": "yes", "z": "12:30:45"
        });
        let text = yaml(&value);
        let back: Value = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(back, value, "{text}");
    }

    #[test]
    fn lists_stand_under_their_key() {
        assert_eq!(yaml(&json!({"a": [{"b": 1, "c": 2}]})), "a:\n- b: 1\n  c: 2\n");
    }

    #[test]
    fn tables_are_aligned_without_trailing_space() {
        let rows = vec![vec!["NAME".into(), "AGE".into()], vec!["longer".into(), "1s".into()]];
        assert_eq!(aligned(&rows), "NAME     AGE\nlonger   1s\n");
    }
}
