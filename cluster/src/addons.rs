//! Objects every cluster of ours has: the DNS Service under its familiar name.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// What the servers create when it is missing.
pub fn addons(dns: Ipv4Addr) -> Vec<Value> {
    vec![json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kube-dns", "namespace": "kube-system",
            "labels": {
                "k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS",
                // Every node answers the address itself, so no proxy may take it.
                "service.kubernetes.io/service-proxy-name": "keelson-dns",
            },
        },
        "spec": {
            "clusterIP": dns.to_string(),
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
            ],
        },
    })]
}
