//! The CNI configuration the runtime reads: bridge and host-local, nothing else. Host ports are the proxy's, and a plugin
//! less per pod start is a process less.

use ipnet::Ipv4Net;
use serde_json::{Value, json};

/// The bridge this node's pods hang on.
pub const BRIDGE: &str = "cni0";

/// `mtu`: the underlay's. `data_dir`: where host-local keeps its reservations, apart for each node.
pub fn conflist(pods: Ipv4Net, mtu: u32, data_dir: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "keelson",
        "plugins": [{
            "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": mtu,
            "ipam": {
                "type": "host-local", "ranges": [[{"subnet": pods.trunc().to_string()}]],
                "routes": [{"dst": "0.0.0.0/0"}], "dataDir": data_dir,
            },
        }],
    })
}
