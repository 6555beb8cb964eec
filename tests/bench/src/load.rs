//! The load: closed-loop clients over a few HTTP/2 connections, as etcd's own benchmark tool does it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use keelson_store_proto::etcdserverpb::kv_client::KvClient;
use keelson_store_proto::etcdserverpb::{PutRequest, RangeRequest};
use tonic::transport::{Channel, Endpoint};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    Put,
    RangeLinearizable,
    RangeSerializable,
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
        write!(f, "{:.0}, {:.1} / {:.1}, {:.0}", self.per_second, self.p50, self.p99, self.cpu_micros)
    }
}

/// Values of 256 bytes under 100,000 keys of 8 bytes; connections = clients / 10, at least one.
pub async fn run(endpoints: &[String], load: Load, clients: usize, total: usize) -> anyhow::Result<Measured> {
    let mut channels: Vec<Channel> = Vec::new();
    for connection in 0..(clients / 10).max(1) {
        let endpoint = endpoints[connection % endpoints.len()].clone();
        channels.push(Endpoint::from_shared(endpoint)?.connect().await?);
    }
    if load != Load::Put {
        let put = PutRequest { key: "foo".into(), value: vec![b'x'; 256].into(), ..Default::default() };
        KvClient::new(channels[0].clone()).put(put).await?;
    }
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            tokio::spawn(one_client(channels[client % channels.len()].clone(), load, next.clone(), total))
        })
        .collect();
    let mut latencies = Vec::with_capacity(total);
    for task in tasks {
        latencies.extend(task.await??);
    }
    let elapsed = started.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize] as f64 / 1_000.0;
    Ok(Measured { per_second: total as f64 / elapsed, p50: at(0.5), p99: at(0.99), cpu_micros: 0.0 })
}

/// Takes numbers until they are used up; gives each operation's latency in microseconds.
async fn one_client(
    channel: Channel,
    load: Load,
    next: Arc<AtomicUsize>,
    total: usize,
) -> anyhow::Result<Vec<u64>> {
    let mut client = KvClient::new(channel);
    let mut latencies = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= total {
            return Ok(latencies);
        }
        let started = Instant::now();
        if load == Load::Put {
            // A fixed permutation of the key space: spread, and the same for both servers.
            let key = (number.wrapping_mul(7_919) % 100_000) as u64;
            let put = PutRequest {
                key: key.to_be_bytes().to_vec().into(),
                value: vec![b'x'; 256].into(),
                ..Default::default()
            };
            client.put(put).await?;
        } else {
            let range = RangeRequest {
                key: "foo".into(),
                serializable: load == Load::RangeSerializable,
                ..Default::default()
            };
            client.range(range).await?;
        }
        latencies.push(started.elapsed().as_micros() as u64);
    }
}
