//! Cluster DNS, pure: the zone built from Services and EndpointSlices, and `answer(question) -> Answer`.
//!
//! Follows the Kubernetes DNS specification 1.1: A, AAAA, SRV and PTR of Services, headless Services with one name per
//! endpoint, ExternalName as CNAME, `a-b-c-d.namespace.pod` for pod addresses. Anything outside the zone is
//! [`Answer::Elsewhere`]: the shell asks the node's name servers.
//!
//! Names are lower case without the final dot everywhere in here. Answers come sorted; the shell rotates them.

mod answer;
#[cfg(test)]
mod tests;
mod zone;

pub use answer::{Answer, Data, Kind, Question, Record};
pub use zone::Zone;

/// Seconds an answer may be kept: short, because endpoints move.
pub const TTL: u32 = 5;
