//! Keeps `default/kubernetes`, its Endpoints and its EndpointSlice equal to the API servers that live.
//!
//! Each server keeps a key of its own under `/registry/masterleases/` alive on a short lease; the addresses found there
//! are the endpoints. Every server reconciles, each write is a compare-and-swap, so that they may all do so at once.
//! A server that dies leaves within its lease, one that stops leaves at once.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use keelson_store_proto::client::Etcd;
use keelson_store_proto::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, compare,
    request_op,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tonic::Status;

const LEASES: &str = "/registry/masterleases/";
const SERVICE: &str = "/registry/services/specs/default/kubernetes";
const ENDPOINTS: &str = "/registry/services/endpoints/default/kubernetes";
const SLICE: &str = "/registry/endpointslices/default/kubernetes";
/// Where Services' addresses are claimed, see the Service strategy.
const CLAIMS: &str = "/registry/keelson/serviceips/";
/// How long a dead server stays an endpoint, seconds.
const LEASE: i64 = 15;
const EVERY: Duration = Duration::from_secs(5);

/// One server's view of the Service that names them all.
pub struct KubernetesService {
    pub etcd: Arc<dyn Etcd>,
    pub advertise: IpAddr,
    pub port: u16,
    pub service_ip: Ipv4Addr,
    /// A fresh uid for an object that is created.
    pub uid: fn() -> String,
}

impl KubernetesService {
    /// Until `stop`: stay listed, reconcile. Failures are logged and tried again at the next round.
    pub async fn run(self, stop: CancellationToken) {
        let mut lease = 0;
        loop {
            match self.round(&mut lease).await {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(%error, "the endpoints of default/kubernetes could not be reconciled; trying again")
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
                break;
            }
        }
        let gone = self.etcd.lease_revoke(LeaseRevokeRequest { id: lease });
        if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(1), gone).await {
            tracing::debug!(%error, "leaving the endpoints of default/kubernetes is left to the lease");
        }
    }

    async fn round(&self, lease: &mut i64) -> Result<(), Status> {
        self.renew(lease).await?;
        let listed = self.etcd.range(prefix(LEASES)).await?;
        let addresses: BTreeSet<String> = listed
            .kvs
            .iter()
            .filter_map(|kv| std::str::from_utf8(&kv.key).ok()?.strip_prefix(LEASES).map(str::to_owned))
            .collect();
        self.service().await?;
        self.reconcile(ENDPOINTS, |old, now| self.endpoints(old, &addresses, now)).await?;
        self.reconcile(SLICE, |old, now| self.slice(old, &addresses, now)).await
    }

    /// A new lease for our key; the one before runs out with nothing attached.
    async fn renew(&self, lease: &mut i64) -> Result<(), Status> {
        *lease = self.etcd.lease_grant(LeaseGrantRequest { ttl: LEASE, id: 0 }).await?.id;
        let key = format!("{LEASES}{}", self.advertise);
        let put = PutRequest {
            key: key.into(),
            value: self.advertise.to_string().into(),
            lease: *lease,
            ..Default::default()
        };
        self.etcd.put(put).await.map(drop)
    }

    /// The Service itself, once, with its address claimed in the same transaction.
    async fn service(&self) -> Result<(), Status> {
        let found = self
            .etcd
            .range(RangeRequest { key: SERVICE.into(), count_only: true, ..Default::default() })
            .await?;
        if found.count > 0 {
            return Ok(());
        }
        let ip = self.service_ip.to_string();
        let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
        let object = json!({
            "kind": "Service", "apiVersion": "v1", "metadata": self.metadata(labels, &now()),
            "spec": {
                "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
                "ports": [{ "name": "https", "protocol": "TCP", "port": 443, "targetPort": self.port }],
            },
            "status": { "loadBalancer": {} },
        });
        let claim = format!("{CLAIMS}{ip}");
        let txn = TxnRequest {
            compare: vec![unchanged(SERVICE, 0), unchanged(&claim, 0)],
            success: vec![put(SERVICE, &object.to_string()), put(&claim, "default/kubernetes")],
            failure: vec![],
        };
        self.etcd.txn(txn).await.map(drop)
    }

    /// Writes what `wanted` makes of the stored object when it differs; a lost race is the next round's.
    async fn reconcile(
        &self,
        key: &str,
        wanted: impl Fn(Option<&Value>, &str) -> Value,
    ) -> Result<(), Status> {
        let found =
            self.etcd.range(RangeRequest { key: key.to_owned().into(), ..Default::default() }).await?;
        let (old, revision) = match found.kvs.first() {
            Some(kv) => (serde_json::from_slice::<Value>(&kv.value).ok(), kv.mod_revision),
            None => (None, 0),
        };
        let new = wanted(old.as_ref(), &now());
        if old.as_ref() == Some(&new) {
            return Ok(());
        }
        let txn = TxnRequest {
            compare: vec![unchanged(key, revision)],
            success: vec![put(key, &new.to_string())],
            failure: vec![],
        };
        self.etcd.txn(txn).await.map(drop)
    }

    fn metadata(&self, labels: Value, now: &str) -> Value {
        json!({ "name": "kubernetes", "namespace": "default", "uid": (self.uid)(), "creationTimestamp": now, "labels": labels })
    }

    fn endpoints(&self, old: Option<&Value>, addresses: &BTreeSet<String>, now: &str) -> Value {
        let labels = json!({ "endpointslice.kubernetes.io/skip-mirror": "true" });
        let mut object = old.cloned().unwrap_or_else(
            || json!({ "kind": "Endpoints", "apiVersion": "v1", "metadata": self.metadata(labels, now) }),
        );
        let listed: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        object["subsets"] = json!([{ "addresses": listed, "ports": [{ "name": "https", "port": self.port, "protocol": "TCP" }] }]);
        object
    }

    fn slice(&self, old: Option<&Value>, addresses: &BTreeSet<String>, now: &str) -> Value {
        let labels = json!({ "kubernetes.io/service-name": "kubernetes" });
        let new = || json!({ "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": self.metadata(labels, now), "addressType": "IPv4" });
        let mut object = old.cloned().unwrap_or_else(new);
        let listed: Vec<Value> = addresses
            .iter()
            .map(|ip| json!({ "addresses": [ip], "conditions": { "ready": true } }))
            .collect();
        let ports = json!([{ "name": "https", "port": self.port, "protocol": "TCP" }]);
        if object["endpoints"] != json!(listed) || object["ports"] != ports {
            let generation = object["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            object["metadata"]["generation"] = json!(generation);
        }
        object["endpoints"] = json!(listed);
        object["ports"] = ports;
        object
    }
}

/// The time as objects carry it: whole seconds, UTC.
fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn prefix(key: &str) -> RangeRequest {
    let mut end = key.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    RangeRequest { key: key.to_owned().into(), range_end: end.into(), keys_only: true, ..Default::default() }
}

fn unchanged(key: &str, revision: i64) -> Compare {
    Compare {
        result: compare::CompareResult::Equal as i32,
        target: compare::CompareTarget::Mod as i32,
        key: key.to_owned().into(),
        target_union: Some(compare::TargetUnion::ModRevision(revision)),
        ..Default::default()
    }
}

fn put(key: &str, value: &str) -> RequestOp {
    let put = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
    RequestOp { request: Some(request_op::Request::RequestPut(put)) }
}
