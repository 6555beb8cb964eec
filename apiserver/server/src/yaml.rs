//! YAML as Kubernetes writes it: sorted keys, lists at the level of their key, quotes only where they are needed.

use serde_json::Value;

/// A document.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => mapping(&mut out, value, 0, false),
        Value::Array(list) if !list.is_empty() => sequence(&mut out, list, 0, false),
        other => {
            scalar(&mut out, other, 0);
            out.push('\n');
        }
    }
    out
}

fn indent(out: &mut String, level: usize) {
    out.extend(std::iter::repeat_n(' ', level));
}

/// `started`: the first entry stands on a line that has begun (`- `).
fn mapping(out: &mut String, value: &Value, level: usize, started: bool) {
    let mut entries: Vec<(&String, &Value)> = value.as_object().into_iter().flatten().collect();
    entries.sort_by(|a, b| a.0.cmp(b.0));
    for (i, (key, child)) in entries.into_iter().enumerate() {
        if i > 0 || !started {
            indent(out, level);
        }
        text(out, key, level);
        out.push(':');
        match child {
            Value::Object(map) if !map.is_empty() => {
                out.push('\n');
                mapping(out, child, level + 2, false);
            }
            Value::Array(list) if !list.is_empty() => {
                out.push('\n');
                sequence(out, list, level, false);
            }
            other => {
                out.push(' ');
                scalar(out, other, level + 2);
                out.push('\n');
            }
        }
    }
}

fn sequence(out: &mut String, list: &[Value], level: usize, started: bool) {
    for (i, item) in list.iter().enumerate() {
        if i > 0 || !started {
            indent(out, level);
        }
        out.push_str("- ");
        match item {
            Value::Object(map) if !map.is_empty() => mapping(out, item, level + 2, true),
            Value::Array(inner) if !inner.is_empty() => sequence(out, inner, level + 2, true),
            other => {
                scalar(out, other, level + 2);
                out.push('\n');
            }
        }
    }
}

fn scalar(out: &mut String, value: &Value, level: usize) {
    match value {
        Value::String(s) => text(out, s, level),
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        other => out.push_str(&other.to_string()),
    }
}

fn text(out: &mut String, s: &str, level: usize) {
    let printable = s.chars().all(|c| c == '\n' || c == '\t' || !c.is_control());
    let lines = s.contains('\n');
    if lines && printable && !s.starts_with([' ', '\t', '\n']) {
        block(out, s, level);
    } else if lines || !printable || s.is_empty() || is_something_else(s) {
        out.push_str(&Value::from(s).to_string());
    } else if is_plain(s) {
        out.push_str(s);
    } else {
        out.push_str(&format!("'{}'", s.replace('\'', "''")));
    }
}

fn block(out: &mut String, s: &str, level: usize) {
    let body = s.trim_end_matches('\n');
    out.push_str(match s.len() - body.len() {
        0 => "|-",
        1 => "|",
        _ => "|+",
    });
    for line in s.strip_suffix('\n').unwrap_or(s).split('\n') {
        out.push('\n');
        if !line.is_empty() {
            indent(out, level);
            out.push_str(line);
        }
    }
}

/// Whether a reader would take it for a number, a truth value, nothing, or a time.
fn is_something_else(s: &str) -> bool {
    let words = [
        "null", "~", "true", "false", "yes", "no", "on", "off", "y", "n", ".nan", ".inf", "-.inf", "+.inf",
        "<<", "=",
    ];
    if words.contains(&s.to_lowercase().as_str()) {
        return true;
    }
    let first = s.bytes().next().unwrap_or(b' ');
    if !(first.is_ascii_digit() || matches!(first, b'+' | b'-' | b'.')) {
        return false;
    }
    let plain = s.replace('_', "");
    let radix = |prefix: &str, radix: u32| {
        plain
            .trim_start_matches(['+', '-'])
            .strip_prefix(prefix)
            .is_some_and(|d| i64::from_str_radix(d, radix).is_ok())
    };
    let number = plain.parse::<f64>().is_ok() && plain.bytes().any(|b| b.is_ascii_digit());
    let time = s.len() >= 10
        && s.bytes().take(4).all(|b| b.is_ascii_digit())
        && (s.parse::<jiff::Timestamp>().is_ok() || s.parse::<jiff::civil::Date>().is_ok());
    let sixty =
        s.contains(':') && s.split(':').all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    number || time || sixty || radix("0x", 16) || radix("0o", 8) || radix("0b", 2)
}

fn is_plain(s: &str) -> bool {
    let odd = "#,[]{}&*!|>'\"%@`";
    let first = s.chars().next().unwrap_or(' ');
    let lead = match first {
        '-' | '?' | ':' => s.len() == 1 || s[1..].starts_with(' '),
        c => odd.contains(c) || c == ' ',
    };
    !lead
        && !s.ends_with([' ', ':'])
        && !s.contains(": ")
        && !s.contains(" #")
        && !s.contains('\t')
        && !s.starts_with("---")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_read_like_upstreams() {
        let value = json!({"kind": "A", "b": {"x": "1", "list": [{"k": "v", "n": [1, 2]}, "s"], "none": {}, "l": []},
            "t": "2026-01-02T03:04:05Z", "text": "a\nb\n", "yes": "no", "quoted": "a: b", "k:{\"p\":1}": "", "num": 1.5, "at": "@x"});
        let want = "at: '@x'\nb:\n  l: []\n  list:\n  - k: v\n    \"n\":\n    - 1\n    - 2\n  - s\n  none: {}\n  x: \"1\"\nk:{\"p\":1}: \"\"\nkind: A\nnum: 1.5\nquoted: 'a: b'\nt: \"2026-01-02T03:04:05Z\"\ntext: |\n  a\n  b\n\"yes\": \"no\"\n";
        assert_eq!(write(&value), want);
    }

    #[test]
    fn what_is_written_is_read_back() {
        for text in [
            "",
            " a",
            "a ",
            "- a",
            "a\n\nb",
            "0x1f",
            "1_000",
            "~",
            "it's",
            "a #b",
            "x:y",
            "1:30",
            "\u{7}",
            "é",
            "tab\there",
            "|",
            "a\nb",
            "\nlead",
        ] {
            let value = json!({ "k": text, "l": [text] });
            let back: Value = serde_saphyr::from_str(&write(&value)).expect("YAML");
            assert_eq!(back, value, "{text:?}: {}", write(&value));
        }
    }
}
