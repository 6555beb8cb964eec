//! `--config-file`: YAML or JSON whose keys are the flags' names; TLS, discovery and sockets in blocks of their own.
//!
//! As in etcd: keys nobody knows are ignored, durations are nanoseconds, and a value of the wrong type is refused.

use serde_json::{Map, Value};

use super::{Draft, Flag, Kind, Mistake, table};

/// Flags that stand in a block or nowhere in a file.
const NOT_AT_THE_TOP: &[&str] = &[
    "config-file",
    "cert-file",
    "key-file",
    "client-cert-file",
    "client-key-file",
    "client-cert-auth",
    "client-crl-file",
    "client-cert-allowed-hostname",
    "trusted-ca-file",
    "auto-tls",
    "peer-cert-file",
    "peer-key-file",
    "peer-client-cert-file",
    "peer-client-key-file",
    "peer-client-cert-auth",
    "peer-trusted-ca-file",
    "peer-cert-allowed-cn",
    "peer-cert-allowed-hostname",
    "peer-auto-tls",
    "peer-crl-file",
    "peer-skip-client-san-verification",
    "socket-reuse-port",
    "socket-reuse-address",
    "discovery-fallback",
    "raft-read-timeout",
    "raft-write-timeout",
];

/// (key of a `*-transport-security` block, flag for clients, flag for peers).
const SECURITY: &[(&str, &str, &str)] = &[
    ("cert-file", "cert-file", "peer-cert-file"),
    ("key-file", "key-file", "peer-key-file"),
    ("client-cert-file", "client-cert-file", "peer-client-cert-file"),
    ("client-key-file", "client-key-file", "peer-client-key-file"),
    ("client-cert-auth", "client-cert-auth", "peer-client-cert-auth"),
    ("trusted-ca-file", "trusted-ca-file", "peer-trusted-ca-file"),
    ("auto-tls", "auto-tls", "peer-auto-tls"),
    ("crl-file", "client-crl-file", "peer-crl-file"),
    ("allowed-cn", "", "peer-cert-allowed-cn"),
    ("allowed-hostname", "client-cert-allowed-hostname", "peer-cert-allowed-hostname"),
    ("skip-client-san-verification", "", "peer-skip-client-san-verification"),
];

/// (path below `discovery-config`, flag).
const DISCOVERY: &[(&[&str], &str)] = &[
    (&["token"], "discovery-token"),
    (&["client", "endpoints"], "discovery-endpoints"),
    (&["client", "dial-timeout"], "discovery-dial-timeout"),
    (&["client", "request-timeout"], "discovery-request-timeout"),
    (&["client", "keepalive-time"], "discovery-keepalive-time"),
    (&["client", "keepalive-timeout"], "discovery-keepalive-timeout"),
    (&["client", "secure", "insecure-transport"], "discovery-insecure-transport"),
    (&["client", "secure", "insecure-skip-tls-verify"], "discovery-insecure-skip-tls-verify"),
    (&["client", "secure", "cert"], "discovery-cert"),
    (&["client", "secure", "key"], "discovery-key"),
    (&["client", "secure", "cacert"], "discovery-cacert"),
    (&["client", "auth", "username"], "discovery-user"),
    (&["client", "auth", "password"], "discovery-password"),
];

/// Reads the file into a fresh draft.
///
/// # Errors
/// Not readable, not YAML, a value of the wrong type or form.
pub(super) fn read(path: &str) -> Result<Draft, Mistake> {
    let mut draft = Draft::new();
    let text = std::fs::read_to_string(path)
        .map_err(|error| draft.verify(format!("open {path}: {}", crate::process::errno(&error))))?;
    let document: Value = serde_saphyr::from_str(&text).map_err(|error| {
        draft.verify(format!("error converting YAML to JSON: yaml: {}", one_line(&error)))
    })?;
    let top = match document {
        Value::Object(top) => top,
        Value::Null => Map::new(),
        other => {
            return Err(draft.verify(format!(
                "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into Go value of type \
                 embed.configYAML",
                type_name(&other)
            )));
        }
    };
    fill(&mut draft, &top).map_err(|error| draft.verify(error))?;
    Ok(draft)
}

fn one_line(error: &impl ToString) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

fn fill(draft: &mut Draft, top: &Map<String, Value>) -> Result<(), String> {
    for (key, value) in top {
        match key.as_str() {
            "client-transport-security" | "peer-transport-security" => security(draft, key, value)?,
            "discovery-config" => {
                for (path, flag) in DISCOVERY {
                    let found = path.iter().try_fold(value, |value, step| value.get(step));
                    set(draft, flag, found, path.last().unwrap_or(&""))?;
                }
            }
            "socket-options" => {
                set(draft, "socket-reuse-port", value.get("reuse-port"), "reuse-port")?;
                set(draft, "socket-reuse-address", value.get("reuse-address"), "reuse-address")?;
            }
            key if NOT_AT_THE_TOP.contains(&key) => {}
            // An empty state is the default's.
            "initial-cluster-state" if value == "" => {}
            key => set(draft, key, Some(value), key)?,
        }
    }
    Ok(())
}

fn security(draft: &mut Draft, block: &str, value: &Value) -> Result<(), String> {
    let peer = block.starts_with("peer");
    let entries = value.as_object().ok_or_else(|| format!("invalid {block}"))?;
    for (key, client_flag, peer_flag) in SECURITY {
        let found = entries.get(*key);
        match (peer, found) {
            (false, Some(names)) if *key == "allowed-cn" => {
                draft.client.allowed_cns =
                    text(names, Kind::List, key)?.split(',').map(str::to_owned).collect();
            }
            // Only peers are looked at for their address.
            (false, _) if client_flag.is_empty() => {}
            _ => set(draft, if peer { peer_flag } else { client_flag }, found, key)?,
        }
    }
    Ok(())
}

fn set(draft: &mut Draft, name: &str, value: Option<&Value>, key: &str) -> Result<(), String> {
    let (Some(flag), Some(value)) = (table().find(|flag| flag.name == name), value) else { return Ok(()) };
    if value.is_null() {
        return Ok(());
    }
    let text = text(value, kind(flag, key), key)?;
    (flag.set)(draft, &text).map_err(|error| format!("{key}: {error}"))?;
    draft.given.insert(flag.name);
    Ok(())
}

/// Lists of names and endpoints are arrays in a file, texts on the command line.
fn kind(flag: &Flag, key: &str) -> Kind {
    match key {
        "allowed-cn" | "allowed-hostname" | "endpoints" => Kind::List,
        "host-whitelist" => Kind::Text,
        _ => flag.kind,
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A value as the flag takes it.
fn text(value: &Value, kind: Kind, key: &str) -> Result<String, String> {
    let wrong = |value: &Value| {
        let go = match kind {
            Kind::Bool => "bool",
            Kind::Int => "int",
            Kind::Int64 => "int64",
            Kind::Uint => "uint",
            Kind::Uint32 => "uint32",
            Kind::Uint64 => "uint64",
            Kind::Duration => "time.Duration",
            Kind::Text => "string",
            Kind::List => "[]string",
        };
        format!(
            "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into Go struct field \
             configYAML.Config.{key} of type {go}",
            type_name(value)
        )
    };
    match (kind, value) {
        (Kind::Bool, Value::Bool(on)) => Ok(on.to_string()),
        (Kind::Duration, Value::Number(nanos)) if nanos.is_i64() || nanos.is_u64() => {
            Ok(format!("{nanos}ns"))
        }
        (Kind::Int | Kind::Int64 | Kind::Uint | Kind::Uint32 | Kind::Uint64, Value::Number(number))
            if number.is_i64() || number.is_u64() =>
        {
            Ok(number.to_string())
        }
        (Kind::Text, Value::String(text)) => Ok(text.clone()),
        // YAML reads an unquoted number or truth where a text is meant; so does etcd's converter.
        (Kind::Text, Value::Number(_) | Value::Bool(_)) => Ok(value.to_string()),
        (Kind::List, Value::Array(items)) => {
            let items: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            items.map(|items| items.join(",")).ok_or_else(|| wrong(value))
        }
        _ => Err(wrong(value)),
    }
}
