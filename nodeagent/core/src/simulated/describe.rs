//! The Node object of a simulated node, which says what it is wherever it is looked at.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::{LABEL, RUNTIME};
use crate::pod::admission::Room;

/// What a simulated node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub name: String,
    pub ip: String,
    /// Where its HTTPS server refuses logs and streams.
    pub port: u16,
    pub room: Room,
    /// E.g. `v1.36.2`.
    pub version: String,
    /// As Go spells it.
    pub architecture: String,
}

impl Description {
    /// The object to register.
    pub fn object(&self) -> Node {
        let labels = [
            ("kubernetes.io/hostname", self.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", &self.architecture),
            (LABEL, "true"),
        ];
        let labels = labels.into_iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Node {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            ..Node::default()
        }
    }

    /// Its status. `since`: when it became ready.
    pub fn status(&self, since: Timestamp, now: Timestamp) -> NodeStatus {
        let amounts: BTreeMap<String, Quantity> = [
            ("cpu", format!("{}m", self.room.cpu_milli)),
            ("memory", format!("{}Ki", self.room.memory_bytes / 1024)),
            ("pods", self.room.pods.to_string()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_string(), Quantity(value)))
        .collect();
        let address = |kind: &str, address: &str| NodeAddress { type_: kind.into(), address: address.into() };
        let condition = |kind: &str, status: &str, reason: &str, message: &str| NodeCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: Some(Time(since)),
        };
        let nothing = "a simulated node has no such pressure";
        NodeStatus {
            addresses: Some(vec![address("InternalIP", &self.ip), address("Hostname", &self.name)]),
            capacity: Some(amounts.clone()),
            allocatable: Some(amounts),
            conditions: Some(vec![
                condition("MemoryPressure", "False", "Simulated", nothing),
                condition("DiskPressure", "False", "Simulated", nothing),
                condition("PIDPressure", "False", "Simulated", nothing),
                condition(
                    "Ready",
                    "True",
                    "Simulated",
                    "simulated node: pods are shown as running, no container runs",
                ),
            ]),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(self.port) }),
            }),
            node_info: Some(NodeSystemInfo {
                architecture: self.architecture.clone(),
                operating_system: "linux".into(),
                os_image: "simulated (no containers)".into(),
                container_runtime_version: format!("{RUNTIME}://{}", env!("CARGO_PKG_VERSION")),
                kubelet_version: self.version.clone(),
                ..NodeSystemInfo::default()
            }),
            ..NodeStatus::default()
        }
    }
}
