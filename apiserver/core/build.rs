//! Collects the prose of the published API: a line per type and field, `io.k8s.api.core.v1.Pod.spec<tab>text`, sorted.
//!
//! It stands in the sources of the k8s-openapi crate, which the workspace uses anyway; cargo says where these are. Line breaks
//! in a text are written `\n`. Without the crate (a vendored tree that left it out) there is no prose, and nothing else changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Version of the API that is served.
const VERSION: &str = "v1_36";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../Cargo.lock");
    let mut prose = BTreeMap::new();
    match sources() {
        Some(folder) => collect(&folder, &mut prose),
        None => println!("cargo::warning=no sources of k8s-openapi: descriptions will be empty"),
    }
    let lines: Vec<String> =
        prose.iter().map(|(key, text)| format!("{key}\t{}\n", text.replace('\n', "\\n"))).collect();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names a folder for what is generated"));
    fs::write(out.join("prose.txt"), lines.concat()).expect("the prose is written");
}

fn sources() -> Option<PathBuf> {
    let cargo = env::var_os("CARGO")?;
    // Of other platforms' dependencies nothing may be there.
    let platform = env::var_os("TARGET")?;
    let asked = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline", "--filter-platform"])
        .arg(platform)
        .output()
        .ok()?;
    let told = String::from_utf8(asked.stdout).ok()?;
    // Of all that is told, one path: no parser is needed for it.
    let end = told.match_indices("/Cargo.toml\"").find_map(|(end, _)| {
        let path = &told[told[..end].rfind('"')? + 1..end];
        path.rsplit('/').next()?.starts_with("k8s-openapi-").then(|| PathBuf::from(path))
    });
    Some(end?.join("src").join(VERSION)).filter(|folder| folder.is_dir())
}

fn collect(folder: &Path, prose: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, prose);
        } else if let Ok(text) = fs::read_to_string(&path) {
            read(&text, prose);
        }
    }
}

/// One file: its first line names the type; comments stand before the struct and before each field.
fn read(text: &str, prose: &mut BTreeMap<String, String>) {
    let Some(name) = text.lines().next().and_then(|l| l.strip_prefix("// Generated from definition ")) else {
        return;
    };
    let names = published_names(text);
    let mut comment: Vec<&str> = vec![];
    let mut inside = false;
    for line in text.lines().skip(1) {
        let bare = line.trim();
        if let Some(said) = bare.strip_prefix("///") {
            comment.push(said.strip_prefix(' ').unwrap_or(said));
        } else if bare.starts_with("pub struct ") && !inside {
            prose.insert(name.into(), plain(&comment));
            comment.clear();
            inside = bare.ends_with('{');
        } else if inside && line == "}" {
            return;
        } else if inside && line.starts_with("    pub ") {
            let field =
                bare.trim_start_matches("pub ").trim_start_matches("r#").split(':').next().unwrap_or("");
            if !comment.is_empty() {
                let published = names.get(field).copied().unwrap_or(field);
                prose.insert(format!("{name}.{published}"), plain(&comment));
            }
            comment.clear();
        } else if !bare.starts_with("#[") {
            comment.clear();
        }
    }
}

/// Name in Rust to name in JSON, as the decoder of the type has them: `"podIP" => Field::Key_pod_ip`.
fn published_names(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(published_name).collect()
}

fn published_name(line: &str) -> Option<(&str, &str)> {
    let (published, field) = line.trim().split_once(" => Field::Key_")?;
    Some((field.trim_end_matches(','), published.trim_matches('"')))
}

/// The text without the marks that keep it from being read as links.
fn plain(comment: &[&str]) -> String {
    let mut text = comment.join("\n");
    for mark in ["[", "]", "<", ">"] {
        text = text.replace(&format!("\\{mark}"), mark);
    }
    text
}
