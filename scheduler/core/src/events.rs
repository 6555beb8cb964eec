//! What happened in the cluster, as the queue sees it: the input of queueing hints.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::pod::PodInfo;
use crate::resources::Resources;
use crate::selector::Labels;

/// What of a node changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeChange {
    pub added: bool,
    pub allocatable: bool,
    pub labels: bool,
    pub taints: bool,
    /// `spec.unschedulable`.
    pub cordon: bool,
}

impl NodeChange {
    /// Compares two versions of a node. Heartbeats and images change nothing here.
    pub fn between(old: Option<&Node>, new: &Node) -> NodeChange {
        let Some(old) = old else { return NodeChange { added: true, ..NodeChange::default() } };
        let spec = |node: &Node| node.spec.clone().unwrap_or_default();
        let allocatable = |node: &Node| {
            node.status.as_ref().and_then(|status| status.allocatable.as_ref()).map(Resources::from_map)
        };
        NodeChange {
            added: false,
            allocatable: allocatable(old) != allocatable(new),
            labels: old.metadata.labels != new.metadata.labels,
            taints: spec(old).taints != spec(new).taints,
            cordon: spec(old).unschedulable.unwrap_or(false) != spec(new).unschedulable.unwrap_or(false),
        }
    }

    /// Nothing the scheduler cares for.
    pub fn is_nothing(&self) -> bool {
        *self == NodeChange::default()
    }
}

/// One event.
#[derive(Debug, Clone)]
pub enum ClusterEvent {
    /// A node came or changed; its labels are the new ones.
    Node { change: NodeChange, labels: Labels },
    /// A pod took its place on a node, or one there changed its labels.
    PodPlaced(Arc<PodInfo>),
    /// A pod left its node, or asks for less.
    PodLeft(Arc<PodInfo>),
    /// A claim, volume, storage class or CSI node changed.
    Storage,
    /// Namespace labels, services or workloads changed.
    Grouping,
}
