//! Loads on streams: lease keep-alives and watch fan-out, with the ordinary client.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use keelson_store_proto::etcdserverpb::kv_client::KvClient;
use keelson_store_proto::etcdserverpb::lease_client::LeaseClient;
use keelson_store_proto::etcdserverpb::watch_client::WatchClient;
use keelson_store_proto::etcdserverpb::watch_request::RequestUnion;
use keelson_store_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, WatchCreateRequest, WatchRequest,
};
use tonic::transport::{Channel, Endpoint};

use crate::load::{Measured, measured};

async fn channels(endpoints: &[String], count: usize) -> anyhow::Result<Vec<Channel>> {
    let mut channels = Vec::new();
    for at in 0..count {
        let endpoint = endpoints[at % endpoints.len()].clone();
        channels.push(Endpoint::from_shared(endpoint)?.connect().await?);
    }
    Ok(channels)
}

/// A stream: what goes out is a channel's other end.
fn outgoing<T>() -> (tokio::sync::mpsc::Sender<T>, tokio_stream::wrappers::ReceiverStream<T>) {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    (sender, tokio_stream::wrappers::ReceiverStream::new(receiver))
}

/// Each client keeps a lease of its own alive, again and again, on a stream of its own.
pub async fn keep_alive(endpoints: &[String], clients: usize, total: usize) -> anyhow::Result<Measured> {
    let channels = channels(endpoints, (clients / 10).max(1)).await?;
    let started = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let mut lease = LeaseClient::new(channels[client % channels.len()].clone());
            let times = total / clients;
            tokio::spawn(async move {
                let id = lease.lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await?.into_inner().id;
                let (requests, stream) = outgoing();
                requests.send(LeaseKeepAliveRequest { id }).await?;
                let mut answers = lease.lease_keep_alive(stream).await?.into_inner();
                let mut latencies = Vec::with_capacity(times);
                let mut asked = Instant::now();
                while let Some(answer) = answers.message().await? {
                    ensure!(answer.ttl > 0, "a lease that is kept alive has expired");
                    latencies.push(asked.elapsed().as_micros() as u64);
                    if latencies.len() == times {
                        break;
                    }
                    asked = Instant::now();
                    requests.send(LeaseKeepAliveRequest { id }).await?;
                }
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

/// `watchers` on one key over ten streams; each of `puts` reaches all of them. An operation is one event delivered, its
/// latency the time since its put began.
pub async fn fan_out(endpoints: &[String], watchers: usize, puts: usize) -> anyhow::Result<Measured> {
    const STREAMS: usize = 10;
    let channels = channels(endpoints, STREAMS).await?;
    let mut tasks = Vec::new();
    let begun: Arc<Mutex<Vec<Instant>>> = Arc::default();
    for channel in &channels {
        let each = watchers / STREAMS;
        let (requests, stream) = outgoing();
        let mut client = WatchClient::new(channel.clone());
        let create = WatchCreateRequest { key: "fan-out".into(), ..Default::default() };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.send(create.clone()).await?;
        let mut answers = client.watch(stream).await?.into_inner();
        for number in 0..each {
            if number > 0 {
                requests.send(create.clone()).await?;
            }
            let created = answers.message().await?.context("the watch stream ended")?;
            ensure!(created.created, "a watch was not created");
        }
        let begun = begun.clone();
        tasks.push(tokio::spawn(async move {
            let mut latencies = Vec::with_capacity(each * puts);
            let mut first = None;
            while latencies.len() < each * puts {
                // One answer may carry what several puts did to one watcher.
                let answer = answers.message().await?.context("the watch stream ended")?;
                for event in &answer.events {
                    let version = event.kv.as_ref().context("an event without its key")?.version;
                    let put = version - *first.get_or_insert(version);
                    let since = begun.lock().expect("no panic while locked")[put as usize];
                    latencies.push(since.elapsed().as_micros() as u64);
                }
            }
            drop(requests);
            Ok::<_, anyhow::Error>(latencies)
        }));
    }
    let mut kv = KvClient::new(channels[0].clone());
    let started = Instant::now();
    for _ in 0..puts {
        begun.lock().expect("no panic while locked").push(Instant::now());
        let put = PutRequest { key: "fan-out".into(), value: vec![b'x'; 256].into(), ..Default::default() };
        kv.put(put).await?;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    Ok(measured(latencies, started.elapsed().as_secs_f64()))
}
