//! `create`: from files, or the small objects one makes by hand.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::apply::{DryRun, name_of, session_for, write_query};
use crate::args::Parsed;
use crate::discovery::Discovery;
use crate::manifest;
use crate::output::{self, Format};
use crate::session::{Session, sentence};
use crate::three_way;

/// Runs `create`.
pub async fn run(session: &Session, parsed: &Parsed) -> Result<i32> {
    if parsed.words.first().map(String::as_str) == Some("token") {
        return token(session, parsed).await;
    }
    let objects =
        if parsed.all("filename").is_empty() { vec![generated(parsed)?] } else { manifest::objects(parsed)? };
    let format = parsed.get("output").map(|_| Format::new(parsed)).transpose()?;
    let dry_run = DryRun::new(parsed)?;
    let discovery = Discovery::fetch(session).await?;
    let mut failures = 0;
    let mut results = Vec::new();
    for object in objects {
        let created = async {
            let kind = discovery.of(&object)?.clone();
            let session = session_for(session, parsed, &kind, &object)?;
            let object =
                if parsed.has("save-config") { three_way::remember(&object) } else { object.clone() };
            if dry_run == DryRun::Client {
                return anyhow::Ok((kind, object));
            }
            let query = write_query(parsed, dry_run, "kubectl-create");
            let result = session.post(&session.collection(&kind, false), &query, &object).await?;
            Ok((kind, result))
        };
        match created.await {
            Ok((kind, result)) if format.is_none() => {
                let name = name_of(&result).unwrap_or_default();
                output::print(&format!("{}/{name} created{}\n", kind.in_messages(), dry_run.suffix()))?;
            }
            Ok(result) => results.push(result),
            Err(error) => {
                eprintln!("{}", sentence(&error));
                failures += 1;
            }
        }
    }
    if let Some(format) = format {
        let single = results.len() == 1;
        output::objects(parsed, &format, results, single)?;
    }
    Ok(i32::from(failures > 0))
}

/// The object of `create KIND NAME`.
fn generated(parsed: &Parsed) -> Result<Value> {
    let words: Vec<&str> = parsed.words.iter().map(String::as_str).collect();
    Ok(match words[..] {
        ["namespace" | "ns", name] => {
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        }
        ["serviceaccount" | "sa", name] => {
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
        }
        ["configmap" | "cm", name] => {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": pairs(parsed)?})
        }
        ["secret", "generic", name] => {
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
                "type": parsed.get("type").unwrap_or("Opaque"), "stringData": pairs(parsed)?})
        }
        ["deployment" | "deploy", name] => deployment(parsed, name)?,
        [] => bail!("must specify one of -f: or a kind and a name, see --help"),
        _ => bail!("cannot create {:?} from words: give a file with -f", words.join(" ")),
    })
}

fn deployment(parsed: &Parsed, name: &str) -> Result<Value> {
    let Some(image) = parsed.get("image") else { bail!("required flag(s) \"image\" not set") };
    let container = image.rsplit('/').next().unwrap_or(image);
    let container = container.split([':', '@']).next().unwrap_or(container);
    let mut spec = json!({"name": container, "image": image});
    if let Some(port) = parsed.number("port")? {
        spec["ports"] = json!([{"containerPort": port}]);
    }
    if let Some(command) = &parsed.tail {
        spec["command"] = json!(command);
    }
    Ok(json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"replicas": parsed.number("replicas")?.unwrap_or(1), "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [spec]}}}}))
}

/// Keys and values of `--from-literal` and `--from-file`.
fn pairs(parsed: &Parsed) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for literal in parsed.all("from-literal") {
        let Some((key, value)) = literal.split_once('=') else {
            bail!("invalid literal source {literal}, expected key=value");
        };
        found.insert(key.to_string(), value.to_string());
    }
    for source in parsed.all("from-file") {
        let (key, path) = match source.split_once('=') {
            Some((key, path)) => (key.to_string(), path),
            None => (source.rsplit('/').next().unwrap_or(source).to_string(), source.as_str()),
        };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading {path}: only text files can be taken from --from-file"))?;
        found.insert(key, text);
    }
    Ok(found)
}

async fn token(session: &Session, parsed: &Parsed) -> Result<i32> {
    let [_, name] = &parsed.words[..] else { bail!("name the service account: create token NAME") };
    let mut spec = json!({"audiences": parsed.all("audience")});
    if parsed.all("audience").is_empty() {
        spec = json!({});
    }
    if let Some(duration) = parsed.duration("duration")? {
        spec["expirationSeconds"] = json!(duration.as_secs());
    }
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/{name}/token", session.namespace);
    let answer = session.post(&path, &[], &request).await?;
    let Some(token) = answer["status"]["token"].as_str() else { bail!("the server's answer holds no token") };
    output::print(&format!("{token}\n"))?;
    Ok(0)
}
