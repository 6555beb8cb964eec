//! Authorization: what is asked, and the chain that answers (super-user group, Node, RBAC).

use crate::context::{UserInfo, View};
use crate::{node, rbac};

/// What somebody wants to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes {
    pub user: UserInfo,
    /// `get list watch create update patch delete deletecollection`, or the lower-case HTTP method for a path.
    pub verb: String,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// Set for requests that are about no resource.
    pub path: String,
    /// Whether it is about a resource.
    pub is_resource: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow {
        reason: String,
    },
    /// Nobody allowed it; `reason` goes into the 403 after the standard sentence.
    Deny {
        reason: String,
    },
}

impl Decision {
    pub fn allowed(&self) -> bool {
        matches!(self, Decision::Allow { .. })
    }
}

/// Asks the super-user group, then the Node authorizer, then RBAC.
pub fn authorize(attributes: &Attributes, view: &dyn View) -> Decision {
    if attributes.user.in_group("system:masters") {
        return Decision::Allow { reason: String::new() };
    }
    let mut reasons = vec![];
    for decision in [node::authorize(attributes, view), rbac::authorize(attributes, view)] {
        match decision {
            Decision::Allow { .. } => return decision,
            Decision::Deny { reason } if !reason.is_empty() => reasons.push(reason),
            Decision::Deny { .. } => {}
        }
    }
    Decision::Deny { reason: reasons.join(", ") }
}

impl Attributes {
    /// The sentence of the 403: `User "x" cannot get resource "pods" in API group "" in the namespace "default"`.
    pub fn sentence(&self) -> String {
        let user = &self.user.name;
        if !self.is_resource {
            return format!("User \"{user}\" cannot {} path \"{}\"", self.verb, self.path);
        }
        let resource = if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        };
        let scope = if self.namespace.is_empty() {
            "at the cluster scope".to_string()
        } else {
            format!("in the namespace \"{}\"", self.namespace)
        };
        format!(
            "User \"{user}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}",
            self.verb, self.group
        )
    }
}
