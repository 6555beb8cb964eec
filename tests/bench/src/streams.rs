//! Loads on streams: lease keep-alives and watch fan-out.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use keelson_store_proto::etcdserverpb::kv_client::KvClient;
use keelson_store_proto::etcdserverpb::lease_client::LeaseClient;
use keelson_store_proto::etcdserverpb::watch_request::RequestUnion;
use keelson_store_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, PutRequest, WatchCreateRequest,
    WatchRequest, WatchResponse,
};
use prost::Message;
use tokio::sync::watch;

use crate::load::{Measured, measured};
use crate::wire::{Caller, Say, Streams};

/// Over how many streams, each on a connection of its own, watchers are spread.
const STREAMS: usize = 10;
/// Puts under way at a time at full speed.
const PUTTERS: usize = 10;

fn address(endpoints: &[String], at: usize) -> String {
    endpoints[at % endpoints.len()].trim_start_matches("http://").to_owned()
}

/// Each client keeps a lease of its own alive, again and again, on a stream of its own.
pub async fn keep_alive(endpoints: &[String], clients: usize, total: usize) -> anyhow::Result<Measured> {
    let mut lease = LeaseClient::connect(endpoints[0].clone()).await?;
    let mut ids = Vec::new();
    for _ in 0..clients {
        ids.push(lease.lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await?.into_inner().id);
    }
    let started = Instant::now();
    let connections = (clients / 10).max(1);
    let tasks: Vec<_> = ids
        .chunks(clients.div_ceil(connections))
        .enumerate()
        .map(|(at, ids)| {
            let requests: Vec<_> =
                ids.iter().map(|id| LeaseKeepAliveRequest { id: *id }.encode_to_vec()).collect();
            let (path, address) = ("/etcdserverpb.Lease/LeaseKeepAlive", address(endpoints, at));
            let times = total / clients;
            tokio::spawn(async move {
                let mut asked = vec![(Instant::now(), 0); requests.len()];
                let mut latencies = Vec::with_capacity(times * requests.len());
                let first = requests.iter().map(|request| vec![request.clone()]).collect();
                let answer = |stream: usize, message: &[u8]| {
                    let answer = LeaseKeepAliveResponse::decode(message)?;
                    ensure!(answer.ttl > 0, "a lease that is kept alive has expired");
                    let (at, answered) = &mut asked[stream];
                    latencies.push(at.elapsed().as_micros() as u64);
                    *answered += 1;
                    if *answered == times {
                        return Ok(Say::Enough);
                    }
                    *at = Instant::now();
                    Ok(Say::More(requests[stream].clone()))
                };
                Streams { address, path, first, answer }.run().await?;
                Ok::<_, anyhow::Error>(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    Ok(measured(latencies, started.elapsed().as_secs_f64()))
}

/// Puts of one key whose value begins with the put's number.
fn put(number: usize) -> PutRequest {
    let mut value = vec![b'x'; 256];
    value[..8].copy_from_slice(&(number as u64).to_be_bytes());
    PutRequest { key: "fan-out".into(), value: value.into(), ..Default::default() }
}

/// `watchers` on one key over ten streams; each of `puts` reaches all of them. An operation is one event delivered, its
/// latency the time since its put began. `every`: the pace of the puts, each waiting for the one before; without it ten
/// clients put as fast as they are answered.
pub async fn fan_out(
    endpoints: &[String],
    watchers: usize,
    puts: usize,
    every: Option<Duration>,
) -> anyhow::Result<Measured> {
    let begun: Arc<Mutex<Vec<Instant>>> = Arc::new(Mutex::new(vec![Instant::now(); puts]));
    let each = watchers / STREAMS;
    let created = Arc::new(watch::Sender::new(0));
    let mut tasks = Vec::new();
    for at in 0..STREAMS {
        let create = WatchCreateRequest { key: "fan-out".into(), ..Default::default() };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let first = vec![vec![create.encode_to_vec(); each]];
        let (path, address) = ("/etcdserverpb.Watch/Watch", address(endpoints, at));
        let (begun, created) = (begun.clone(), created.clone());
        tasks.push(tokio::spawn(async move {
            let mut latencies = Vec::with_capacity(each * puts);
            let answer = |_, message: &[u8]| {
                // One answer may carry what several puts did to one watcher.
                let answer = WatchResponse::decode(message)?;
                if answer.created {
                    created.send_modify(|created| *created += 1);
                }
                for event in &answer.events {
                    let value = &event.kv.as_ref().context("an event without its key")?.value;
                    let number: [u8; 8] = value[..8].try_into().context("a value of another load")?;
                    let since =
                        begun.lock().expect("no panic while locked")[u64::from_be_bytes(number) as usize];
                    latencies.push(since.elapsed().as_micros() as u64);
                }
                Ok(if latencies.len() == each * puts { Say::Enough } else { Say::Nothing })
            };
            Streams { address, path, first, answer }.run().await?;
            Ok::<_, anyhow::Error>(latencies)
        }));
    }
    let all = created.subscribe().wait_for(|created| *created == each * STREAMS).await.map(|_| ());
    all.context("watches were not created")?;
    let started = Instant::now();
    match every {
        Some(every) => {
            let mut kv = KvClient::connect(endpoints[0].clone()).await?;
            let mut pace = tokio::time::interval(every);
            for number in 0..puts {
                pace.tick().await;
                begun.lock().expect("no panic while locked")[number] = Instant::now();
                kv.put(put(number)).await?;
            }
        }
        None => {
            let next = AtomicUsize::new(0);
            let next = || {
                let number = next.fetch_add(1, Ordering::Relaxed);
                (number < puts).then(|| {
                    begun.lock().expect("no panic while locked")[number] = Instant::now();
                    put(number).encode_to_vec()
                })
            };
            let (path, address) = ("/etcdserverpb.KV/Put", address(endpoints, 0));
            Caller { address, path, clients: PUTTERS, next }.run().await?;
        }
    }
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    Ok(measured(latencies, started.elapsed().as_secs_f64()))
}
