//! Field paths and field errors, as validation speaks of them: `spec.ports[0].port: Invalid value: -1: …`.

use crate::status::Cause;
use serde_json::Value;
use std::fmt;

/// Path of a field: `a.b[0].c`, `a[key]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Path(String);

impl Path {
    pub fn new(text: &str) -> Path {
        Path(text.into())
    }
    pub fn root() -> Path {
        Path::default()
    }
    pub fn child(&self, name: &str) -> Path {
        if self.0.is_empty() { Path(name.into()) } else { Path(format!("{}.{name}", self.0)) }
    }
    pub fn index(&self, i: usize) -> Path {
        Path(format!("{}[{i}]", self.0))
    }
    pub fn key(&self, key: &str) -> Path {
        Path(format!("{}[{key}]", self.0))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// `FieldValueInvalid`, …
    pub reason: &'static str,
    pub path: Path,
    /// All after the path.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl FieldError {
    pub fn cause(&self) -> Cause {
        Cause { reason: self.reason.into(), message: self.message.clone(), field: self.path.to_string() }
    }
    fn with_value(reason: &'static str, text: &str, path: &Path, value: &Value, detail: &str) -> FieldError {
        let shown = show(value);
        let message =
            if detail.is_empty() { format!("{text}: {shown}") } else { format!("{text}: {shown}: {detail}") };
        FieldError { reason, path: path.clone(), message }
    }
    fn without_value(reason: &'static str, text: &str, path: &Path, detail: &str) -> FieldError {
        let message = if detail.is_empty() { text.to_string() } else { format!("{text}: {detail}") };
        FieldError { reason, path: path.clone(), message }
    }
    pub fn required(path: &Path, detail: &str) -> FieldError {
        FieldError::without_value("FieldValueRequired", "Required value", path, detail)
    }
    pub fn invalid(path: &Path, value: impl Into<Value>, detail: &str) -> FieldError {
        FieldError::with_value("FieldValueInvalid", "Invalid value", path, &value.into(), detail)
    }
    /// With a value that is already in its printed form.
    pub fn invalid_shown(path: &Path, shown: &str, detail: &str) -> FieldError {
        FieldError {
            reason: "FieldValueInvalid",
            path: path.clone(),
            message: format!("Invalid value: {shown}: {detail}"),
        }
    }
    pub fn type_invalid(path: &Path, value: impl Into<Value>, detail: &str) -> FieldError {
        FieldError::with_value("FieldValueTypeInvalid", "Invalid value", path, &value.into(), detail)
    }
    pub fn duplicate(path: &Path, value: impl Into<Value>) -> FieldError {
        FieldError::with_value("FieldValueDuplicate", "Duplicate value", path, &value.into(), "")
    }
    /// With a value that is already in its printed form.
    pub fn duplicate_shown(path: &Path, shown: &str, detail: &str) -> FieldError {
        let more = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        FieldError {
            reason: "FieldValueDuplicate",
            path: path.clone(),
            message: format!("Duplicate value: {shown}{more}"),
        }
    }
    pub fn not_found(path: &Path, value: impl Into<Value>) -> FieldError {
        FieldError::with_value("FieldValueNotFound", "Not found", path, &value.into(), "")
    }
    pub fn not_supported(path: &Path, value: impl Into<Value>, supported: &[&str]) -> FieldError {
        let list: Vec<String> = supported.iter().map(|s| quote(s)).collect();
        let detail =
            if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        FieldError::with_value("FieldValueNotSupported", "Unsupported value", path, &value.into(), &detail)
    }
    /// With a value that is already in its printed form.
    pub fn not_supported_shown(path: &Path, shown: &str, supported: &[&str]) -> FieldError {
        let list: Vec<String> = supported.iter().map(|s| quote(s)).collect();
        let message = format!("Unsupported value: {shown}: supported values: {}", list.join(", "));
        FieldError { reason: "FieldValueNotSupported", path: path.clone(), message }
    }
    pub fn forbidden(path: &Path, detail: &str) -> FieldError {
        FieldError::without_value("FieldValueForbidden", "Forbidden", path, detail)
    }
    pub fn too_long(path: &Path, max: usize) -> FieldError {
        let unit = if max == 1 { "byte" } else { "bytes" };
        FieldError::without_value(
            "FieldValueTooLong",
            "Too long",
            path,
            &format!("may not be more than {max} {unit}"),
        )
    }
    pub fn too_many(path: &Path, actual: usize, max: usize) -> FieldError {
        let unit = if max == 1 { "item" } else { "items" };
        FieldError::with_value(
            "FieldValueTooMany",
            "Too many",
            path,
            &actual.into(),
            &format!("must have at most {max} {unit}"),
        )
    }
    pub fn internal(path: &Path, detail: &str) -> FieldError {
        FieldError::without_value("InternalError", "Internal error", path, detail)
    }
}

/// Errors in the order they were found.
pub type ErrorList = Vec<FieldError>;

/// A string as Go's `%q` prints it.
pub fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A value as field errors print it: strings quoted, numbers plain, objects as JSON.
fn show(value: &Value) -> String {
    match value {
        Value::String(s) => quote(s),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_like_upstream() {
        let path = Path::new("spec").child("ports").index(0).child("port");
        let e = FieldError::invalid(&path, -1, "must be between 1 and 65535, inclusive");
        assert_eq!(
            e.to_string(),
            "spec.ports[0].port: Invalid value: -1: must be between 1 and 65535, inclusive"
        );
        assert_eq!(FieldError::required(&Path::new("a").key("k"), "").to_string(), "a[k]: Required value");
        assert_eq!(
            FieldError::not_supported(&Path::new("a"), "x", &["A", "B"]).to_string(),
            "a: Unsupported value: \"x\": supported values: \"A\", \"B\""
        );
    }
}
