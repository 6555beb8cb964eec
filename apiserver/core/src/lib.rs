//! Request semantics of the Kubernetes API, pure.
//!
//! A request against a resource is a step `(current?, body, now, uid, view) -> next object | Status`:
//! - [`decode`]: bytes to a value, with strict field checks;
//! - [`create`], [`update`], [`patch`], [`delete`]: what the store should hold next;
//! - [`bind`], [`evict`], [`token_request`], [`review`]: the actions that are no plain writes;
//! - [`custom`]: the same for resources that a CustomResourceDefinition describes; [`cel`]: their rules;
//! - [`rbac`], [`node`]: who may do what; [`admission`]: what is added or refused on the way;
//! - [`discovery`], [`openapi`], [`table`], [`bootstrap`]: documents and objects made from the tables.
//!
//! Order of a write: decode, defaulting, admission (mutating), strategy (what the user may not set), allocation, validation,
//! admission (validating), managed fields. The server then stores [`Outcome::object`] with its claims in one transaction,
//! comparing the revision of `current`.
//!
//! Hazards: objects handed in (`current`, from the [`View`]) carry `metadata.resourceVersion`, objects handed out never do.
//! Absences: no IO, no clock, no randomness, no async; nothing here knows of HTTP or of a store.

pub mod admission;
pub mod authz;
pub mod bootstrap;
pub mod cel;
pub mod context;
pub mod convert;
pub mod custom;
pub mod decode;
pub mod delete;
pub mod discovery;
pub mod fieldset;
pub mod gotext;
pub mod managed;
pub mod merge;
pub mod meta;
pub mod node;
pub mod openapi;
pub mod patch;
pub mod pod_actions;
pub mod prose;
pub mod protobuf;
pub mod rbac;
pub mod resources;
pub mod review;
pub mod scale;
pub mod strategic;
pub mod table;
pub mod validate;
pub mod value;
pub mod write;

pub use authz::{Attributes, Decision};
pub use context::{
    Claim, Context, DeleteOptions, Deletion, FieldValidation, Outcome, PatchType, Target, UserInfo, View,
    WriteOptions,
};
pub use decode::decode;
pub use delete::delete;
pub use patch::patch;
pub use pod_actions::{Eviction, TokenRequest, bind, evict, token_request};
pub use review::review;
pub use write::{create, update};

/// The version of the API that is spoken.
pub const VERSION: &str = "v1.36.2";
