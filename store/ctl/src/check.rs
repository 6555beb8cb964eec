//! check perf, check datascale: a load for a while, and whether the cluster stands it.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::kv_client::KvClient;
use rand::Rng as _;

use crate::command::{BAD_FEATURE, Command, ERROR, Failure, INVALID_INPUT, fail};
use crate::flags::{Args, Kind, flag};
use crate::maintenance::defragment;
use crate::output::say;
use crate::session::{Session, Settings, explain};
use crate::text::prefix_end;
use crate::{ask, call, metrics};

pub const CHECK: Command = Command {
    long: "commands for checking properties of the etcd cluster",
    group: 4,
    ..Command::new(
        "check",
        "<subcommand>",
        "commands for checking properties of the etcd cluster. Use `etcdctl check --help` to see subcommands",
    )
};

pub const PERF: Command = Command {
    flags: &[
        flag(
            "load",
            Kind::Text,
            "s",
            "The performance check's workload model. Accepted workloads: s(small), m(medium), l(large), xl(xLarge). Different workload models use different configurations in terms of number of clients and expected throughput.",
        ),
        flag(
            "prefix",
            Kind::Text,
            "/etcdctl-check-perf/",
            "The prefix for writing the performance check's keys.",
        ),
        flag("auto-compact", Kind::Bool, "", "Compact storage with last revision after test is finished."),
        flag("auto-defrag", Kind::Bool, "", "Defragment storage after test is finished."),
    ],
    run: Some(|args| Box::pin(perf(args))),
    ..Command::new("check perf", "[options]", "Check the performance of the etcd cluster")
};

pub const DATASCALE: Command = Command {
    long: "If no endpoint is provided, localhost will be used. If multiple endpoints are provided, first endpoint will be used.",
    flags: &[
        flag(
            "load",
            Kind::Text,
            "s",
            "The datascale check's workload model. Accepted workloads: s(small), m(medium), l(large), xl(xLarge)",
        ),
        flag(
            "prefix",
            Kind::Text,
            "/etcdctl-check-datascale/",
            "The prefix for writing the datascale check's keys.",
        ),
        flag("auto-compact", Kind::Bool, "", "Compact storage with last revision after test is finished."),
        flag("auto-defrag", Kind::Bool, "", "Defragment storage after test is finished."),
    ],
    run: Some(|args| Box::pin(datascale(args))),
    ..Command::new(
        "check datascale",
        "[options]",
        "Check the memory usage of holding data for different workloads on a given server endpoint.",
    )
};

/// How long `check perf` runs.
const PERF_TIME: Duration = Duration::from_secs(60);

fn model(load: &str) -> Result<usize, Failure> {
    match load {
        "s" | "small" => Ok(0),
        "m" | "medium" => Ok(1),
        "l" | "large" => Ok(2),
        "xl" | "xLarge" => Ok(3),
        _ => fail(BAD_FEATURE, format!("unknown load option {load}")),
    }
}

/// Latencies in seconds and errors of a run.
#[derive(Default)]
struct Report {
    latencies: Vec<f64>,
    errors: BTreeMap<String, usize>,
}

impl Report {
    fn slowest(&self) -> f64 {
        self.latencies.iter().copied().fold(0.0, f64::max)
    }

    fn deviation(&self) -> f64 {
        let count = self.latencies.len().max(1) as f64;
        let mean = self.latencies.iter().sum::<f64>() / count;
        (self.latencies.iter().map(|latency| (latency - mean).powi(2)).sum::<f64>() / count).sqrt()
    }
}

async fn sessions(settings: &Settings, count: usize) -> Result<Vec<Session>, Failure> {
    let mut sessions = Vec::with_capacity(count);
    for _ in 0..count {
        sessions.push(Settings { timeout: None, ..settings.clone() }.open().await?);
    }
    Ok(sessions)
}

async fn must_be_empty(session: &Session, prefix: &str) -> Result<(), Failure> {
    let request = pb::RangeRequest {
        key: prefix.to_owned().into(),
        range_end: prefix_end(prefix.as_bytes()).into(),
        limit: 1,
        ..pb::RangeRequest::default()
    };
    if ask!(session, KvClient.range(request)).await?.kvs.is_empty() {
        return Ok(());
    }
    fail(
        INVALID_INPUT,
        format!("prefix {prefix:?} has keys. Delete with 'etcdctl del --prefix {prefix}' first"),
    )
}

/// Puts until `more` says stop; every client has one at a time.
async fn load(
    sessions: &[Session],
    prefix: &str,
    sizes: (usize, usize),
    more: impl AsyncFn() -> bool + Clone,
) -> Report {
    let (key_size, value_size) = sizes;
    let clients = sessions.iter().map(|session| {
        let more = more.clone();
        async move {
            let mut report = Report::default();
            while more().await {
                let mut key = vec![0; key_size];
                key[..8].copy_from_slice(&rand::rng().random::<u64>().to_be_bytes());
                let request = pb::PutRequest {
                    key: [prefix.as_bytes(), &key].concat().into(),
                    value: vec![0; value_size].into(),
                    ..pb::PutRequest::default()
                };
                let start = Instant::now();
                if let Err(status) = call!(session, KvClient.put(request)).await {
                    *report.errors.entry(explain(&status)).or_default() += 1;
                }
                report.latencies.push(start.elapsed().as_secs_f64());
            }
            report
        }
    });
    let mut whole = Report::default();
    for report in futures::future::join_all(clients).await {
        whole.latencies.extend(report.latencies);
        for (error, count) in report.errors {
            *whole.errors.entry(error).or_default() += count;
        }
    }
    whole
}

/// Deletes what was put; compacts and defragments where asked for.
async fn clean(args: &Args, session: &Session, prefix: &str) -> Result<(), Failure> {
    let request = pb::DeleteRangeRequest {
        key: prefix.to_owned().into(),
        range_end: prefix_end(prefix.as_bytes()).into(),
        ..pb::DeleteRangeRequest::default()
    };
    let deleted = ask!(session, KvClient.delete_range(request)).await?;
    if args.on("auto-compact") {
        let revision = deleted.header.as_ref().map_or(0, |header| header.revision);
        say(format!("Compacting with revision {revision}"))?;
        ask!(session, KvClient.compact(pb::CompactionRequest { revision, physical: true })).await?;
        say(format!("Compacted with revision {revision}"))?;
    }
    if args.on("auto-defrag") {
        for endpoint in &session.settings.endpoints {
            say(format!("Defragmenting {endpoint:?}"))?;
            let one = session.settings.only(endpoint).open().await?;
            let answer = defragment(&one).await;
            answer.or_else(|status| fail(ERROR, explain(&status)))?;
            say(format!("Defragmented {endpoint:?}"))?;
        }
    }
    Ok(())
}

fn errors(report: &Report) -> Result<bool, Failure> {
    if report.errors.is_empty() {
        return Ok(true);
    }
    say("FAIL: too many errors")?;
    for (error, count) in &report.errors {
        say(format!("FAIL: ERROR({error}) -> {count}"))?;
    }
    Ok(false)
}

fn progress(done: usize, all: usize) {
    eprint!("\r {done} / {all} {:.2}%", 100.0 * done as f64 / all as f64);
    // Progress nobody sees is no loss.
    let _ = std::io::stderr().flush();
}

async fn perf(mut args: Args) -> Result<(), Failure> {
    let (limit, clients) = [(150, 50), (1000, 200), (8000, 500), (15_000, 1000)][model(args.text("load"))?];
    let prefix = args.text("prefix").to_owned();
    let (settings, _) = Settings::new(&mut args).await?;
    let sessions = sessions(&settings, clients).await?;
    must_be_empty(&sessions[0], &prefix).await?;
    let start = Instant::now();
    let taken = Arc::new(AtomicUsize::new(0));
    // The n-th put may begin n/limit seconds after the start.
    let more = async || {
        let turn = taken.fetch_add(1, Ordering::Relaxed);
        let due = Duration::from_secs_f64(turn as f64 / f64::from(limit));
        if due >= PERF_TIME || start.elapsed() >= PERF_TIME {
            return false;
        }
        tokio::time::sleep(due.saturating_sub(start.elapsed())).await;
        true
    };
    let bar = tokio::spawn(async {
        for second in 0..=60 {
            progress(second, 60);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let report = load(&sessions, &prefix, (256, 1024), &more).await;
    let rate = report.latencies.len() as f64 / start.elapsed().as_secs_f64();
    bar.abort();
    eprintln!();
    clean(&args, &sessions[0], &prefix).await?;
    judge(&report, rate, f64::from(limit))
}

fn judge(report: &Report, rate: f64, limit: f64) -> Result<(), Failure> {
    let mut good = errors(report)?;
    let mut verdict = |ok: bool, pass: String, failed: String| {
        good &= ok;
        say(if ok { pass } else { failed })
    };
    let writes = rate as i64 + 1;
    verdict(
        rate / limit > 0.9,
        format!("PASS: Throughput is {writes} writes/s"),
        format!("FAIL: Throughput too low: {writes} writes/s"),
    )?;
    let slowest = report.slowest();
    verdict(
        slowest <= 0.5,
        format!("PASS: Slowest request took {slowest:.6}s"),
        format!("Slowest request took too long: {slowest:.6}s"),
    )?;
    let deviation = report.deviation();
    verdict(
        deviation <= 0.1,
        format!("PASS: Stddev is {deviation:.6}s"),
        format!("Stddev too high: {deviation:.6}s"),
    )?;
    if !good {
        say("FAIL")?;
        return fail(ERROR, "");
    }
    say("PASS")
}

async fn datascale(mut args: Args) -> Result<(), Failure> {
    let (limit, clients) =
        [(10_000, 50), (100_000, 200), (1_000_000, 500), (3_000_000, 1000)][model(args.text("load"))?];
    let prefix = args.text("prefix").to_owned();
    let (settings, _) = Settings::new(&mut args).await?;
    let sessions = sessions(&settings, clients).await?;
    must_be_empty(&sessions[0], &prefix).await?;
    let endpoint = settings.endpoints[0].clone();
    let memory = async |when: &str| match metrics::resident_memory(&settings, &endpoint).await {
        Ok(bytes) => Ok(bytes),
        Err(error) => {
            say(error)?;
            say(format!("FAIL: Could not read process_resident_memory_bytes {when} the put operations."))?;
            fail(ERROR, "")
        }
    };
    let before = memory("before").await?;
    say(format!(
        "Start data scale check for work load [{limit} key-value pairs, 1024 bytes per key-value, {clients} concurrent \
         clients]."
    ))?;
    let taken = Arc::new(AtomicUsize::new(0));
    let more = async || {
        let turn = taken.fetch_add(1, Ordering::Relaxed);
        if turn.is_multiple_of(limit / 100) && turn <= limit {
            progress(turn, limit);
        }
        turn < limit
    };
    let report = load(&sessions, &prefix, (512, 512), &more).await;
    eprintln!();
    let after = memory("after").await?;
    clean(&args, &sessions[0], &prefix).await?;
    if !errors(&report)? {
        return fail(ERROR, "");
    }
    say(format!("PASS: Approximate system memory used : {:.2} MB.", (after - before) / f64::from(1 << 20)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_the_slowest_and_the_spread() {
        let report = Report { latencies: vec![0.1, 0.3], errors: BTreeMap::new() };
        assert!((report.slowest() - 0.3).abs() < 1e-9 && (report.deviation() - 0.1).abs() < 1e-9);
        assert!(judge(&report, 150.0, 150.0).is_ok());
        assert!(judge(&report, 100.0, 150.0).is_err(), "too few");
    }
}
