//! Two pods of a node cannot have the same host port; `0.0.0.0` collides with every address.

use crate::events::ClusterEvent;
use crate::framework::{CycleState, Hint, Plugin, PreFilter, Rejection, Verdict};
use crate::pod::{HostPort, PodInfo};
use crate::snapshot::{Slot, Snapshot};

pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn pre_filter(&self, _cycle: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilter {
        if pod.ports.is_empty() { PreFilter::Skip } else { PreFilter::Continue }
    }

    fn filter(&self, _cycle: &CycleState, pod: &PodInfo, snapshot: &Snapshot, node: Slot) -> Verdict {
        match pod.ports.iter().find(|wanted| snapshot.ports[node].keys().any(|taken| collide(wanted, taken)))
        {
            None => Ok(()),
            Some(port) => {
                Err(Rejection::resolvable("node(s) didn't have free ports for the requested pod ports")
                    .detail(format!("{} {}:{}", port.protocol, port.address, port.port)))
            }
        }
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        let frees = match event {
            ClusterEvent::PodLeft(left) => {
                left.ports.iter().any(|taken| pod.ports.iter().any(|wanted| collide(wanted, taken)))
            }
            ClusterEvent::Node { change, .. } => change.added,
            _ => false,
        };
        if frees { Hint::Queue } else { Hint::Skip }
    }
}

fn collide(one: &HostPort, other: &HostPort) -> bool {
    one.port == other.port
        && one.protocol == other.protocol
        && (one.address == other.address || one.address == "0.0.0.0" || other.address == "0.0.0.0")
}
