//! The load: closed-loop clients over a few HTTP/2 connections, as etcd's own benchmark tool does it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use keelson_store_proto::etcdserverpb::kv_client::KvClient;
use keelson_store_proto::etcdserverpb::{PutRequest, RangeRequest};
use prost::Message;

use crate::wire::Caller;

/// What a client asks again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    Put,
    RangeLinearizable,
    RangeSerializable,
    /// The first 500 of a million keys.
    Limit500,
    /// How many of a million keys there are.
    CountOnly,
}

/// What one run gave; latencies in milliseconds, server CPU in microseconds an operation.
#[derive(Debug, Clone)]
pub struct Measured {
    pub per_second: f64,
    pub p50: f64,
    pub p99: f64,
    pub cpu_micros: f64,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = if self.cpu_micros < 100.0 {
            format!("{:.1}", self.cpu_micros)
        } else {
            format!("{:.0}", self.cpu_micros)
        };
        write!(f, "{:.0}, {:.2} / {:.2}, {cpu}", self.per_second, self.p50, self.p99)
    }
}

impl Load {
    fn path(self) -> &'static str {
        if self == Load::Put { "/etcdserverpb.KV/Put" } else { "/etcdserverpb.KV/Range" }
    }

    /// The request with this number.
    fn request(self, number: usize) -> Vec<u8> {
        let all = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
        let range = match self {
            Load::Put => {
                // A fixed permutation of the key space: spread, and the same for both servers.
                let key = (number.wrapping_mul(7_919) % 100_000) as u64;
                let put = PutRequest {
                    key: key.to_be_bytes().to_vec().into(),
                    value: vec![b'x'; 256].into(),
                    ..Default::default()
                };
                return put.encode_to_vec();
            }
            Load::RangeLinearizable | Load::RangeSerializable => RangeRequest {
                key: "foo".into(),
                serializable: self == Load::RangeSerializable,
                ..Default::default()
            },
            Load::Limit500 => RangeRequest { limit: 500, ..all },
            Load::CountOnly => RangeRequest { count_only: true, ..all },
        };
        range.encode_to_vec()
    }
}

/// Values of 256 bytes under 100,000 keys of 8 bytes; connections = clients / 10, at least one.
pub async fn run(endpoints: &[String], load: Load, clients: usize, total: usize) -> anyhow::Result<Measured> {
    if matches!(load, Load::RangeLinearizable | Load::RangeSerializable) {
        let put = PutRequest { key: "foo".into(), value: vec![b'x'; 256].into(), ..Default::default() };
        KvClient::connect(endpoints[0].clone()).await?.put(put).await?;
    }
    let connections = (clients / 10).max(1);
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let tasks: Vec<_> = (0..connections)
        .map(|connection| {
            let next = next.clone();
            let endpoint = &endpoints[connection % endpoints.len()];
            let caller = Caller {
                address: endpoint.trim_start_matches("http://").to_owned(),
                path: load.path(),
                clients: clients / connections,
                next: move || {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    (number < total).then(|| load.request(number))
                },
            };
            tokio::spawn(caller.run())
        })
        .collect();
    let mut latencies = Vec::with_capacity(total);
    for task in tasks {
        latencies.extend(task.await??);
    }
    let elapsed = started.elapsed().as_secs_f64();
    Ok(measured(latencies, elapsed))
}

/// Sums latencies in microseconds up.
pub fn measured(mut latencies: Vec<u64>, elapsed: f64) -> Measured {
    latencies.sort_unstable();
    let at = |share: f64| {
        let last = latencies.len().saturating_sub(1) as f64;
        latencies.get((last * share) as usize).copied().unwrap_or_default() as f64 / 1_000.0
    };
    Measured { per_second: latencies.len() as f64 / elapsed, p50: at(0.5), p99: at(0.99), cpu_micros: 0.0 }
}
