//! Objects from files: JSON or YAML, many documents, Lists taken apart, folders, standard input.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::args::Parsed;

/// All objects of the command line's `-f`, in order.
pub fn objects(parsed: &Parsed) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    for name in parsed.all("filename").iter().flat_map(|names| names.split(',')) {
        if name == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
            documents(&text, "standard input", &mut found)?;
        } else if name.starts_with("http://") || name.starts_with("https://") {
            bail!("{name}: download the file first, addresses are not fetched");
        } else {
            read(Path::new(name), parsed.has("recursive"), true, &mut found)?;
        }
    }
    if found.is_empty() {
        bail!("no objects passed: give files with -f");
    }
    Ok(found)
}

fn read(path: &Path, recursive: bool, named: bool, found: &mut Vec<Value>) -> Result<()> {
    let shown = path.display().to_string();
    if path.is_dir() {
        if !named && !recursive {
            return Ok(());
        }
        let entries = std::fs::read_dir(path).with_context(|| format!("reading {shown}"))?;
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            read(&path, recursive, false, found)?;
        }
        return Ok(());
    }
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if !named && !matches!(extension, "json" | "yaml" | "yml") {
        return Ok(());
    }
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the path {shown:?} cannot be read: check the name"))?;
    documents(&text, &shown, found)
}

/// Splits a text into objects.
pub fn documents(text: &str, name: &str, found: &mut Vec<Value>) -> Result<()> {
    let values: Vec<Value> = match serde_json::from_str(text) {
        Ok(value) => vec![value],
        Err(_) => serde_saphyr::from_multiple(text).map_err(|error| anyhow::anyhow!("{name}: {error}"))?,
    };
    for value in values.into_iter().filter(|value| !value.is_null()) {
        flatten(value, name, found)?;
    }
    Ok(())
}

fn flatten(value: Value, name: &str, found: &mut Vec<Value>) -> Result<()> {
    let is_list = value["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    if is_list && let Some(items) = value["items"].as_array() {
        for item in items {
            flatten(item.clone(), name, found)?;
        }
        return Ok(());
    }
    for field in ["apiVersion", "kind"] {
        if value[field].as_str().is_none_or(str::is_empty) {
            bail!("{name}: an object has no {field}: add it");
        }
    }
    found.push(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Value>> {
        let mut found = Vec::new();
        documents(text, "test", &mut found)?;
        Ok(found)
    }

    #[test]
    fn documents_lists_and_comments() {
        let text = "# nothing\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: b}}\n- {apiVersion: v1, kind: Pod, metadata: {name: c}}\n---\n";
        let names: Vec<_> = parsed(text)
            .expect("parses")
            .iter()
            .map(|object| object["metadata"]["name"].as_str().expect("a name").to_string())
            .collect();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn yaml_scalars_keep_their_types() {
        let found =
            parsed("apiVersion: v1\nkind: ConfigMap\ndata: {a: \"1\", b: \"true\"}\nn: 1\nyes: yes\n")
                .expect("parses");
        assert_eq!(found[0]["data"]["a"], "1");
        assert_eq!(found[0]["data"]["b"], "true");
        assert_eq!(found[0]["n"], 1);
    }

    #[test]
    fn an_object_without_a_kind_is_refused_by_name() {
        assert!(parsed("apiVersion: v1\n").unwrap_err().to_string().contains("kind"));
    }
}
