//! House rules as a test. Each rule names its remedy in its message, so that a failure needs no reading here.
//!
//! Standard library only: it reads files, it runs nothing of the project.

use std::fs;
use std::path::{Path, PathBuf};

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("tests/tidy sits two folders deep")
        .to_path_buf()
}

/// Files below `folder` whose name ends in `.extension`, in path order; build outputs and hidden folders left out.
pub fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" && name != "node_modules" {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A path as the messages show it.
pub fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The workspace crates that a manifest's `[dependencies]` name, as package names.
pub fn dependencies(manifest: &str) -> Vec<String> {
    section(manifest, "[dependencies]")
}

fn section(manifest: &str, header: &str) -> Vec<String> {
    let mut inside = false;
    let mut names = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == header;
        } else if inside
            && let Some((name, _)) = line.split_once(['.', '=', ' '])
            && !name.is_empty()
        {
            names.push(name.trim().to_string());
        }
    }
    names
}
