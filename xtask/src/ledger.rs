//! The ledger: `docs/ledger.jsonl`, one verdict a line, appended by the suites' `--record`, read by `verify --report`.
//!
//! A line is a flat JSON object of strings; later lines about the same thing replace earlier ones in the report.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use crate::mutants::Verdict;
use crate::shell::{Failure, root};

/// One line's fields.
pub type Line = BTreeMap<String, String>;

fn path() -> PathBuf {
    root().join("docs/ledger.jsonl")
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Appends a line; the commit is added.
///
/// # Errors
/// The file cannot be written.
pub fn record(fields: &[(&str, String)]) -> Result<(), Failure> {
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(root()).output();
    let commit = commit.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default();
    let all = fields.iter().map(|(name, value)| (*name, value.clone())).chain([("commit", commit)]);
    let line: Vec<String> =
        all.map(|(name, value)| format!("{}: {}", quoted(name), quoted(&value))).collect();
    let failed = |error: std::io::Error| Failure(format!("{}: {error}", path().display()));
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path()).map_err(failed)?;
    writeln!(file, "{{{}}}", line.join(", ")).map_err(failed)
}

/// The verdict of one suite on one planted bug.
///
/// # Errors
/// As `record`.
pub fn planted(bug: u32, layer: &str, verdict: &Verdict) -> Result<(), Failure> {
    record(&[
        ("suite", "planted".to_owned()),
        ("bug", format!("{bug:02}")),
        ("layer", layer.to_owned()),
        ("caught", verdict.caught.to_string()),
        ("by", verdict.by.clone()),
        ("seconds", format!("{:.1}", verdict.seconds)),
    ])
}

/// All lines, oldest first. What does not parse is left out: the file is written by `record` alone.
pub fn lines() -> Vec<Line> {
    fs::read_to_string(path()).unwrap_or_default().lines().filter_map(parse).collect()
}

/// A flat object of strings.
fn parse(line: &str) -> Option<Line> {
    let mut rest = line.trim().strip_prefix('{')?.strip_suffix('}')?;
    let mut fields = Line::new();
    while !rest.trim().is_empty() {
        let (name, after) = string(rest)?;
        let (value, after) = string(after.trim_start().strip_prefix(':')?)?;
        fields.insert(name, value);
        rest = after.trim_start().strip_prefix(',').unwrap_or("");
    }
    Some(fields)
}

fn string(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start().strip_prefix('"')?;
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, &text[at + 1..])),
            '\\' => out.push(chars.next()?.1),
            c => out.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_back() {
        let line =
            format!("{{{}: {}, {}: {}}}", quoted("a"), quoted("x \"y\" \\ z"), quoted("b"), quoted(""));
        let fields = parse(&line).expect("a line of ours");
        assert_eq!(fields["a"], "x \"y\" \\ z");
        assert_eq!(fields["b"], "");
    }
}
