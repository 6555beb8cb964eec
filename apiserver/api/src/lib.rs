//! API machinery shared by everything that speaks the Kubernetes API.
//!
//! Objects are `serde_json::Value`; this crate says what they are:
//! - [`resource`]: the resource table, one line per resource, with names, verbs, subresources and storage keys;
//! - [`schema`]: the schema table, one line per field, on which decoding, pruning, patches and apply run;
//! - [`definition`]: rows of both tables made from a CustomResourceDefinition;
//! - [`status`] and [`field`]: errors in the API's own form;
//! - [`selector`], [`quantity`], [`names`], [`duration`], [`cron`]: the small languages inside objects.
//!
//! Absences: no IO, no clock, no randomness, no async; nothing here knows of HTTP or of a store.

pub mod cron;
pub mod definition;
pub mod duration;
pub mod field;
pub mod names;
pub mod quantity;
pub mod resource;
pub mod schema;
pub mod selector;
pub mod status;

pub use definition::Definition;
pub use field::{ErrorList, FieldError, Path};
pub use quantity::Quantity;
pub use resource::{RESOURCES, Resource, Subresource};
pub use selector::{FieldSelector, LabelSelector};
pub use status::{Cause, Status};
