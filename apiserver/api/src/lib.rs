//! API machinery shared by everything that speaks the Kubernetes API.
//!
//! Objects are `serde_json::Value`; this crate says what they are:
//! - [`resource`]: the resource table, one line per resource, with names, verbs, subresources and storage keys;
//! - [`schema`]: the schema table, one line per field, on which decoding, pruning, patches and apply run;
//! - [`status`] and [`field`]: errors in the API's own form;
//! - [`selector`], [`quantity`], [`names`], [`duration`]: the small languages inside objects.
//!
//! Absences: no IO, no clock, no randomness, no async; nothing here knows of HTTP or of a store.

pub mod duration;
pub mod field;
pub mod names;
pub mod quantity;
pub mod resource;
pub mod schema;
pub mod selector;
pub mod status;

pub use field::{ErrorList, FieldError, Path};
pub use quantity::Quantity;
pub use resource::{RESOURCES, Resource, Subresource};
pub use selector::{FieldSelector, LabelSelector};
pub use status::{Cause, Status};
