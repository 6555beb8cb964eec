//! A million keys of 1 KiB on one member: what limited lists and counts, whole lists, a restart and a snapshot cost, and
//! how much memory and disk it takes. Values look like Kubernetes objects, so that compression means something.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use keelson_store_proto::etcdserverpb::kv_client::KvClient;
use keelson_store_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use keelson_store_proto::etcdserverpb::request_op::Request;
use keelson_store_proto::etcdserverpb::{PutRequest, RangeRequest, RequestOp, SnapshotRequest, TxnRequest};
use prost::Message;

use crate::load::{self, Load, Measured};
use crate::peer::{Kind, Servers};
use crate::wire::Caller;

/// Keys in one transaction: below the window a server grants at first.
const BATCH: usize = 40;

/// About `size` bytes of JSON that differ from key to key.
fn value(number: usize, size: usize) -> Vec<u8> {
    let mut seed = number as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    let mut text = format!(
        r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"web-{number}","namespace":"default","uid":"{:08x}-{:08x}","labels":{{"app":"web","pod-template-hash":"{:08x}"}}}},"spec":{{"nodeName":"node-{}","containers":["#,
        random(),
        random(),
        random(),
        random() % 500
    );
    while text.len() < size {
        text.push_str(&format!(
            r#"{{"name":"c{:x}","image":"registry.example.com/app:{:x}","resources":{{"requests":{{"cpu":"{}m","memory":"{}Mi"}}}}}},"#,
            random() % 4096,
            random(),
            random() % 1000,
            random() % 4096
        ));
    }
    text.truncate(size);
    text.into_bytes()
}

fn key(number: usize) -> Vec<u8> {
    format!("/registry/pods/default/web-{number:08}").into_bytes()
}

async fn fill(endpoint: &str, keys: usize) -> anyhow::Result<f64> {
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let caller = Caller {
        address: endpoint.trim_start_matches("http://").to_owned(),
        path: "/etcdserverpb.KV/Txn",
        clients: 8,
        next: move || {
            let first = next.fetch_add(BATCH, Ordering::Relaxed);
            let put = |number| {
                let put = PutRequest {
                    key: key(number).into(),
                    value: value(number, 1024).into(),
                    ..Default::default()
                };
                RequestOp { request: Some(Request::RequestPut(put)) }
            };
            let success = (first..(first + BATCH).min(keys)).map(put).collect();
            (first < keys).then(|| TxnRequest { success, ..Default::default() }.encode_to_vec())
        },
    };
    caller.run().await?;
    Ok(started.elapsed().as_secs_f64())
}

/// Reads all keys in one answer.
async fn list(endpoint: &str) -> anyhow::Result<usize> {
    let mut client = KvClient::connect(endpoint.to_owned()).await?.max_decoding_message_size(4 << 30);
    let all = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    Ok(client.range(all).await?.into_inner().kvs.len())
}

async fn snapshot(endpoint: &str) -> anyhow::Result<usize> {
    let client = MaintenanceClient::connect(endpoint.to_owned()).await?;
    let mut pieces =
        client.max_decoding_message_size(64 << 20).snapshot(SnapshotRequest {}).await?.into_inner();
    let mut bytes = 0;
    while let Some(piece) = pieces.message().await? {
        bytes += piece.blob.len();
    }
    Ok(bytes)
}

/// What one server gave, row by row.
struct Column {
    cells: Vec<(&'static str, String)>,
}

impl Column {
    fn add(&mut self, row: &'static str, cell: String) {
        self.cells.push((row, cell));
    }
}

async fn measure(kind: Kind, keys: usize) -> anyhow::Result<Column> {
    let mut servers = Servers::start(kind, 1).await?;
    let mut column = Column { cells: Vec::new() };
    let endpoint = servers.endpoints[0].clone();
    let cpu = |servers: &Servers, before: u64| (servers.cpu_micros() - before) as f64 / 1e6;
    let before = servers.cpu_micros();
    let seconds = fill(&endpoint, keys).await?;
    column.add("fill, s / server CPU s", format!("{seconds:.1} / {:.1}", cpu(&servers, before)));
    column.add("RSS after it, MiB", servers.resident()[0].to_string());
    for (row, load, total) in [
        ("list with limit 500, CPU ms / p50 ms", Load::Limit500, 20),
        ("count only, CPU ms / p50 ms", Load::CountOnly, 20),
    ] {
        let before = servers.cpu_micros();
        let Measured { p50, .. } = load::run(&servers.endpoints, load, 1, total).await?;
        let millis = cpu(&servers, before) * 1e3 / total as f64;
        column.add(row, format!("{millis:.2} / {p50:.2}"));
    }
    let before = servers.cpu_micros();
    let started = Instant::now();
    let listed = list(&endpoint).await.context("listing everything")?;
    anyhow::ensure!(listed >= keys, "{listed} of {keys} keys listed");
    column.add(
        "list of everything at once, s / CPU s",
        format!("{:.1} / {:.1}", started.elapsed().as_secs_f64(), cpu(&servers, before)),
    );
    column.add("RSS after it, MiB (list)", servers.resident()[0].to_string());
    let before = servers.cpu_micros();
    let started = Instant::now();
    let bytes = snapshot(&endpoint).await.context("snapshot")?;
    column.add(
        "snapshot, MiB / s / CPU s",
        format!("{} / {:.1} / {:.1}", bytes >> 20, started.elapsed().as_secs_f64(), cpu(&servers, before)),
    );
    let put = load::run(&servers.endpoints, Load::Put, 100, 10_000).await?;
    column.add("put, 100 clients, req/s", format!("{:.0}", put.per_second));
    column.add("disk, MiB", (servers.disk() >> 20).to_string());
    for (row, kill) in
        [("restart after SIGTERM, s to serving", false), ("restart after kill -9, s to serving", true)]
    {
        let seconds = servers.restart(kill).await?;
        column.add(row, format!("{seconds:.2}"));
    }
    column.add("RSS after the restart, MiB", servers.resident()[0].to_string());
    servers.stop(Duration::from_secs(20))?;
    Ok(column)
}

/// Runs etcd, then us, and prints the table.
pub async fn compare(keys: usize) -> anyhow::Result<()> {
    let theirs = measure(Kind::Etcd, keys).await?;
    let ours = measure(Kind::Keelson, keys).await?;
    println!("\n### {keys} keys of 1 KiB on one member\n");
    println!("| what | etcd | keelson |\n|---|---|---|");
    for ((row, etcd), (_, keelson)) in theirs.cells.iter().zip(&ours.cells) {
        println!("| {row} | {etcd} | {keelson} |");
    }
    Ok(())
}
