//! ConfigMaps, Secrets, ServiceAccounts.

use super::Strategy;
use crate::context::{Context, Target};
use crate::value::{flag, set, take, text};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_api::{ErrorList, FieldError, Path, names};
use serde_json::Value;

/// Most bytes of data in one object.
const MAX_DATA: usize = 1024 * 1024;

fn decoded_len(v: &Value) -> usize {
    v.as_str().and_then(|s| STANDARD.decode(s).ok()).map_or(0, |b| b.len())
}

fn immutable(current: &Value, new: &Value, fields: &[&str], errors: &mut ErrorList) {
    if !flag(current, "immutable") {
        return;
    }
    let detail = "field is immutable when `immutable` is set";
    if !flag(new, "immutable") {
        errors.push(FieldError::forbidden(&Path::new("immutable"), detail));
    }
    for field in fields {
        if current[*field] != new[*field] {
            errors.push(FieldError::forbidden(&Path::new(field), detail));
        }
    }
}

pub struct ConfigMaps;

impl Strategy for ConfigMaps {
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let mut total = 0;
        let path = Path::new("data");
        for (key, value) in object["data"].as_object().into_iter().flatten() {
            for problem in names::config_map_key(key) {
                errors.push(FieldError::invalid(&path.key(key), key.as_str(), &problem));
            }
            if object["binaryData"].get(key).is_some() {
                errors.push(FieldError::invalid(
                    &path.key(key),
                    key.as_str(),
                    "duplicate of key present in binaryData",
                ));
            }
            total += value.as_str().map_or(0, str::len);
        }
        let path = Path::new("binaryData");
        for (key, value) in object["binaryData"].as_object().into_iter().flatten() {
            for problem in names::config_map_key(key) {
                errors.push(FieldError::invalid(&path.key(key), key.as_str(), &problem));
            }
            total += decoded_len(value);
        }
        if total > MAX_DATA {
            errors.push(FieldError::too_long(&Path::root(), MAX_DATA));
        }
    }
    fn validate_update(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        immutable(current, new, &["data", "binaryData"], errors);
    }
}

pub struct Secrets;

/// Secret types and the keys they must have.
const TYPED_KEYS: [(&str, &[&str]); 4] = [
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
];

impl Strategy for Secrets {
    fn default(&self, object: &mut Value) {
        if text(object, "type").is_empty() {
            set(object, "type", "Opaque");
        }
        if let Some(Value::Object(plain)) = take(object, "stringData") {
            for (key, value) in plain {
                let encoded = STANDARD.encode(value.as_str().unwrap_or(""));
                crate::value::object_mut(object, "data").insert(key, encoded.into());
            }
        }
    }
    fn prepare_update(&self, _: &Target, current: &Value, new: &mut Value, _: &Context) {
        if text(new, "type").is_empty() {
            set(new, "type", current["type"].clone());
        }
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let path = Path::new("data");
        let mut total = 0;
        for (key, value) in object["data"].as_object().into_iter().flatten() {
            for problem in names::config_map_key(key) {
                errors.push(FieldError::invalid(&path.key(key), key.as_str(), &problem));
            }
            total += decoded_len(value);
        }
        if total > MAX_DATA {
            errors.push(FieldError::too_long(&path, MAX_DATA));
        }
        let kind = text(object, "type");
        if kind == "kubernetes.io/service-account-token" {
            let name = object["metadata"]["annotations"]
                .get("kubernetes.io/service-account.name")
                .and_then(Value::as_str);
            if name.unwrap_or("").is_empty() {
                let path =
                    Path::new("metadata").child("annotations").key("kubernetes.io/service-account.name");
                errors.push(FieldError::required(&path, ""));
            }
        }
        for (_, keys) in TYPED_KEYS.iter().filter(|(t, _)| *t == kind) {
            for key in *keys {
                match object["data"].get(*key) {
                    None => errors.push(FieldError::required(&path.key(key), "")),
                    Some(v) if kind.starts_with("kubernetes.io/dockerc") => {
                        docker_config(&path.key(key), v, errors)
                    }
                    Some(_) => {}
                }
            }
        }
        if kind == "kubernetes.io/basic-auth"
            && object["data"].get("username").is_none()
            && object["data"].get("password").is_none()
        {
            errors.push(FieldError::required(&path.key("username"), ""));
            errors.push(FieldError::required(&path.key("password"), ""));
        }
    }
    fn validate_update(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if current["type"] != new["type"] {
            errors.push(FieldError::invalid(&Path::new("type"), new["type"].clone(), "field is immutable"));
        }
        immutable(current, new, &["data"], errors);
    }
}

fn docker_config(path: &Path, value: &Value, errors: &mut ErrorList) {
    let text = value.as_str().and_then(|s| STANDARD.decode(s).ok()).unwrap_or_default();
    let parsed: Result<serde_json::Map<String, Value>, _> = serde_json::from_slice(&text);
    if let Err(e) = parsed {
        let problem = if e.is_eof() { "unexpected end of JSON input".to_string() } else { e.to_string() };
        errors.push(FieldError::invalid(path, "<secret contents redacted>", &problem));
    }
}

pub struct ServiceAccounts;

impl Strategy for ServiceAccounts {
    fn warnings(&self, object: &Value) -> Vec<String> {
        let key = "kubernetes.io/enforce-mountable-secrets";
        let given = object["metadata"]["annotations"].get(key).is_some();
        let text = format!(
            "metadata.annotations[{key}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
        );
        if given { vec![text] } else { vec![] }
    }
    fn warnings_on_update(&self, current: &Value, new: &Value) -> Vec<String> {
        if current["metadata"]["annotations"] == new["metadata"]["annotations"] {
            vec![]
        } else {
            self.warnings(new)
        }
    }
    fn answers_deleted_object(&self) -> bool {
        true
    }
}
