//! `Status`: how the API says no (and sometimes yes).
//!
//! Messages are the ones clients match on; see `format` in each constructor. The HTTP code is part of the value.

use crate::field::{ErrorList, FieldError};
use crate::resource::Resource;
use serde_json::{Map, Value, json};
use std::fmt;

/// One reason among several, with the field it concerns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

/// An answer of kind `Status`. `code` is the HTTP status code.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Status {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub name: String,
    pub group: String,
    /// `details.kind`: a resource name or a kind, as upstream fills it.
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: u32,
    /// `metadata.continue` of an expired list.
    pub continue_token: String,
    /// Without `details` altogether.
    pub bare: bool,
    /// Texts for `Warning` headers that go with it.
    pub warnings: Vec<String>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for Status {}

impl Status {
    fn of(code: u16, reason: &'static str, message: String) -> Status {
        Status { code, reason, message, ..Status::default() }
    }
    fn about(mut self, res: &Resource, name: &str) -> Status {
        self.name = name.into();
        self.group = res.group.clone();
        self.kind = res.plural.clone();
        self
    }

    /// 404 for an object.
    pub fn not_found(res: &Resource, name: &str) -> Status {
        Status::of(404, "NotFound", format!("{} \"{name}\" not found", res.group_resource())).about(res, name)
    }
    /// 404 for a path nobody serves.
    pub fn no_such_path() -> Status {
        Status {
            bare: false,
            ..Status::of(404, "NotFound", "the server could not find the requested resource".into())
        }
    }
    pub fn already_exists(res: &Resource, name: &str) -> Status {
        Status::of(409, "AlreadyExists", format!("{} \"{name}\" already exists", res.group_resource()))
            .about(res, name)
    }
    /// 409 for a name whose object is on its way out.
    pub fn being_deleted(res: &Resource, name: &str) -> Status {
        let mut status = Status::already_exists(res, name);
        status.message = format!("object is being deleted: {}", status.message);
        status
    }
    /// 409 with a cause in words.
    pub fn conflict(res: &Resource, name: &str, cause: &str) -> Status {
        let what = res.group_resource();
        Status::of(409, "Conflict", format!("Operation cannot be fulfilled on {what} \"{name}\": {cause}"))
            .about(res, name)
    }
    /// 409 of a lost optimistic lock.
    pub fn stale(res: &Resource, name: &str) -> Status {
        Status::conflict(
            res,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }
    /// 422 with field errors.
    pub fn invalid(res: &Resource, name: &str, errors: ErrorList) -> Status {
        Status::invalid_kind(&res.group, &res.kind, name, errors)
    }
    /// 422 naming group and kind (for bodies that are not the resource's own kind).
    pub fn invalid_kind(group: &str, kind: &str, name: &str, errors: ErrorList) -> Status {
        let group_kind = if group.is_empty() { kind.to_string() } else { format!("{kind}.{group}") };
        let mut texts: Vec<String> = vec![];
        for e in errors.iter() {
            let text = e.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let list = match texts.as_slice() {
            [] => "<nil>".to_string(),
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        Status {
            name: name.into(),
            group: group.into(),
            kind: kind.into(),
            causes: errors.iter().map(FieldError::cause).collect(),
            ..Status::of(422, "Invalid", format!("{group_kind} \"{name}\" is invalid: {list}"))
        }
    }
    /// 403 about an object (or a collection, when `name` is empty).
    pub fn forbidden(res: &Resource, name: &str, cause: &str) -> Status {
        let what = res.group_resource();
        let message = if name.is_empty() {
            format!("{what} is forbidden: {cause}")
        } else {
            format!("{what} \"{name}\" is forbidden: {cause}")
        };
        Status::of(403, "Forbidden", message).about(res, name)
    }
    /// 403 about a path that is no resource.
    pub fn forbidden_path(cause: &str) -> Status {
        Status::of(403, "Forbidden", format!("forbidden: {cause}"))
    }
    pub fn bad_request(message: impl Into<String>) -> Status {
        Status { bare: true, ..Status::of(400, "BadRequest", message.into()) }
    }
    pub fn unauthorized() -> Status {
        Status { bare: true, ..Status::of(401, "Unauthorized", "Unauthorized".into()) }
    }
    /// 405 about a verb the resource does not have.
    pub fn method_not_allowed() -> Status {
        Status::of(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource".into(),
        )
    }
    /// 405 when the object's kind does not support the action.
    pub fn not_supported(res: &Resource, action: &str) -> Status {
        let message = format!("{action} is not supported on resources of kind \"{}\"", res.group_resource());
        Status::of(405, "MethodNotAllowed", message).about(res, "")
    }
    pub fn not_acceptable(accepted: &[&str]) -> Status {
        let list = accepted.join(", ");
        Status {
            bare: true,
            ..Status::of(406, "NotAcceptable", format!("only the following media types are accepted: {list}"))
        }
    }
    pub fn unsupported_media_type(accepted: &[&str]) -> Status {
        let list = accepted.join(", ");
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {list}"
        );
        Status { bare: true, ..Status::of(415, "UnsupportedMediaType", message) }
    }
    /// 410 of a resourceVersion or continue token that is too old.
    pub fn expired(message: impl Into<String>) -> Status {
        Status { bare: true, ..Status::of(410, "Expired", message.into()) }
    }
    pub fn too_large(message: impl Into<String>) -> Status {
        Status { bare: true, ..Status::of(413, "RequestEntityTooLarge", message.into()) }
    }
    /// 429; the client may come back after the seconds given.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Status {
        Status { retry_after_seconds, ..Status::of(429, "TooManyRequests", message.into()) }
    }
    pub fn internal(cause: impl fmt::Display) -> Status {
        let cause = cause.to_string();
        Status {
            causes: vec![Cause { message: cause.clone(), ..Cause::default() }],
            ..Status::of(500, "InternalError", format!("Internal error occurred: {cause}"))
        }
    }
    pub fn unavailable(message: impl Into<String>) -> Status {
        Status { bare: true, ..Status::of(503, "ServiceUnavailable", message.into()) }
    }
    pub fn timeout(message: impl Into<String>, retry_after_seconds: u32) -> Status {
        Status { retry_after_seconds, ..Status::of(504, "Timeout", format!("Timeout: {}", message.into())) }
    }
    /// 500 with which a client retries (name generation ran out, store did not answer).
    pub fn server_timeout(res: &Resource, message: impl Into<String>, retry_after_seconds: u32) -> Status {
        Status { retry_after_seconds, ..Status::of(500, "ServerTimeout", message.into()).about(res, "") }
    }
    /// 200 of a deletion that left nothing to show.
    pub fn deleted(res: &Resource, name: &str, uid: &str) -> Status {
        Status { uid: uid.into(), ..Status::of(200, "", String::new()).about(res, name) }
    }
    /// 201 without details (binding, eviction).
    pub fn created() -> Status {
        Status { bare: true, ..Status::of(201, "", String::new()) }
    }

    pub fn is_success(&self) -> bool {
        self.code < 400
    }

    /// The object on the wire.
    pub fn to_value(&self) -> Value {
        let mut metadata = Map::new();
        if !self.continue_token.is_empty() {
            metadata.insert("continue".into(), json!(self.continue_token));
        }
        let mut out = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": if self.is_success() { "Success" } else { "Failure" },
        });
        if !self.message.is_empty() {
            out["message"] = json!(self.message);
        }
        if !self.reason.is_empty() {
            out["reason"] = json!(self.reason);
        }
        if !self.bare {
            out["details"] = self.details();
        }
        // A success is answered without its code when it is about a deletion, and with it otherwise.
        if !self.is_success() || self.bare {
            out["code"] = json!(self.code);
        }
        out
    }

    fn details(&self) -> Value {
        let mut details = Map::new();
        for (key, text) in
            [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)]
        {
            if !text.is_empty() {
                details.insert(key.into(), json!(text));
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(|c| {
                let mut cause = Map::new();
                for (key, text) in [("reason", &c.reason), ("message", &c.message), ("field", &c.field)] {
                    if !text.is_empty() {
                        cause.insert(key.into(), json!(text));
                    }
                }
                Value::Object(cause)
            });
            details.insert("causes".into(), causes.collect());
        }
        if self.retry_after_seconds > 0 {
            details.insert("retryAfterSeconds".into(), json!(self.retry_after_seconds));
        }
        Value::Object(details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::find_preferred;

    #[test]
    fn not_found_reads_like_upstream() {
        let s = Status::not_found(find_preferred("apps", "deployments").unwrap(), "x").to_value();
        assert_eq!(
            s,
            json!({"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"deployments.apps \"x\" not found",
                   "reason":"NotFound","details":{"name":"x","group":"apps","kind":"deployments"},"code":404})
        );
    }
}
