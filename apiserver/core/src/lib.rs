//! Request semantics of the Kubernetes API, pure.

pub mod context;
pub mod delete;

pub use context::{
    Claim, Context, DeleteOptions, Deletion, FieldValidation, Outcome, PatchType, Target, UserInfo, View, WriteOptions,
};
