//! Managed fields.
use crate::context::{Context, Outcome, Target, WriteOptions};
use keelson_api::Status;
use serde_json::Value;
pub(crate) fn update(_: &Target, current: Option<&Value>, new: &mut Value, _: &str, _: jiff::Timestamp) -> Result<(), Status> {
    if let Some(current) = current { crate::value::copy(current, new, "metadata.managedFields"); }
    Ok(())
}
pub(crate) fn apply(_: &Target, _: Option<&Value>, _: &[u8], _: &WriteOptions, _: &Context) -> Result<Outcome, Status> {
    Err(Status::unsupported_media_type(&["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"]))
}
