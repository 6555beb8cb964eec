//! The types a request step takes and gives.

use keelson_api::{Resource, Status};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What a request step may look at besides its own object: the watch cache, or a snapshot in tests.
/// Objects carry `metadata.resourceVersion`. A cluster-scoped object is asked for with an empty namespace.
pub trait View {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>>;
    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Value>>;
    /// Whether a claim key is taken in the store. The store's transaction has the last word.
    fn claimed(&self, key: &str) -> bool {
        let _ = key;
        false
    }
}

/// A view of nothing.
pub struct EmptyView;

impl View for EmptyView {
    fn get(&self, _: &str, _: &str, _: &str, _: &str) -> Option<Arc<Value>> {
        None
    }
    fn list(&self, _: &str, _: &str, _: Option<&str>) -> Vec<Arc<Value>> {
        vec![]
    }
}

/// What a request step takes from outside.
pub struct Context<'a> {
    pub now: jiff::Timestamp,
    /// A fresh UUID.
    pub uid: &'a str,
    /// Five fresh characters of `bcdfghjklmnpqrstvwxz2456789`.
    pub suffix: &'a str,
    pub user: &'a UserInfo,
    pub view: &'a dyn View,
    /// From which cluster IPs are given.
    pub service_cidr: ipnet::Ipv4Net,
    /// First and last node port.
    pub node_ports: (u16, u16),
}

/// Where a request goes. `name` is empty for a POST to the collection, `namespace` for a cluster-scoped resource.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub resource: &'a Resource,
    pub subresource: Option<&'a str>,
    pub namespace: &'a str,
    pub name: &'a str,
}

impl<'a> Target<'a> {
    pub fn collection(resource: &'a Resource, namespace: &'a str) -> Target<'a> {
        Target { resource, subresource: None, namespace, name: "" }
    }
    pub fn object(resource: &'a Resource, namespace: &'a str, name: &'a str) -> Target<'a> {
        Target { resource, subresource: None, namespace, name }
    }
    #[allow(clippy::should_implement_trait)]
    pub fn sub(self, subresource: &'a str) -> Target<'a> {
        Target { subresource: Some(subresource), ..self }
    }
}

/// `fieldValidation` query parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

impl FieldValidation {
    /// Reads the query parameter.
    pub fn parse(text: &str) -> Option<FieldValidation> {
        match text {
            "" | "Warn" => Some(FieldValidation::Warn),
            "Ignore" => Some(FieldValidation::Ignore),
            "Strict" => Some(FieldValidation::Strict),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    pub dry_run: bool,
    /// `fieldManager`, or the first word of the user agent when the client gave none.
    pub field_manager: String,
    pub field_validation: FieldValidation,
    /// Apply only: take over fields of other managers.
    pub force: bool,
}

/// Content type of a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchType {
    pub const MEDIA_TYPES: [(&'static str, PatchType); 4] = [
        ("application/json-patch+json", PatchType::Json),
        ("application/merge-patch+json", PatchType::Merge),
        ("application/strategic-merge-patch+json", PatchType::Strategic),
        ("application/apply-patch+yaml", PatchType::Apply),
    ];
    /// Reads a Content-Type without parameters.
    pub fn from_media_type(media_type: &str) -> Option<PatchType> {
        PatchType::MEDIA_TYPES.iter().find(|(m, _)| *m == media_type).map(|(_, t)| *t)
    }
}

/// A unique value in the store: taken with the write or given back with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// `/registry/keelson/serviceips/10.96.0.7`, `/registry/keelson/nodeports/30080`.
    pub key: String,
    /// Who holds it (the value stored), for repair: `namespace/name`.
    pub owner: String,
    /// Take: the transaction requires that the key does not exist. Otherwise the key is deleted.
    pub take: bool,
}

/// What a write leads to.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// What to store and answer; without resourceVersion.
    pub object: Value,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
    /// It did not exist (201).
    pub created: bool,
    /// Put these into the same transaction. When a taken key exists after all, run the step again.
    pub claims: Vec<Claim>,
    /// The last finalizer of a deleted object is gone: delete it instead of storing it.
    pub remove: bool,
    /// Equal to the current object: nothing needs to be stored, answer with the current resourceVersion.
    pub unchanged: bool,
    /// What to answer when it is not `object` (scale subresource, HPA in another version); resourceVersion goes in likewise.
    pub answer: Option<Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub propagation_policy: Option<String>,
    pub orphan_dependents: Option<bool>,
    pub precondition_uid: Option<String>,
    pub precondition_resource_version: Option<String>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads a `DeleteOptions` body; query parameters go on top where the client gave them.
    pub fn from_value(value: &Value) -> Result<DeleteOptions, Status> {
        crate::delete::options(value)
    }
}

/// What a deletion leads to.
#[derive(Debug, Clone)]
pub enum Deletion {
    /// Delete it now; answer with `object` when there is one, with `Status::deleted` otherwise.
    Remove { answer: Option<Value>, claims: Vec<Claim> },
    /// It stays for now (grace period, finalizers): store `object` if it differs, answer with it.
    Update { object: Value, unchanged: bool },
}
