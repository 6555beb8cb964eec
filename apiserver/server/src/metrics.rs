//! What this server measures, under upstream's names, in Prometheus text form.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the request duration buckets, seconds.
const BUCKETS: [f64; 12] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 5.0, 60.0];
/// Most label sets kept; later ones are counted as `other`.
const MOST_SERIES: usize = 4000;

/// What a request is counted under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Labels {
    pub verb: String,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    /// `namespace`, `cluster`, `resource` or nothing.
    pub scope: &'static str,
}

#[derive(Default)]
struct Series {
    codes: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS.len()],
    count: u64,
    seconds: f64,
}

/// See the module.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<Labels, Series>>,
    pub inflight: AtomicI64,
    pub watches: AtomicI64,
}

impl Metrics {
    /// Counts one answered request. Streams are counted, not timed.
    pub fn answered(&self, labels: Labels, code: u16, took: Option<Duration>) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let full = requests.len() >= MOST_SERIES && !requests.contains_key(&labels);
        let labels = if full { Labels { verb: "other".to_owned(), ..Labels::default() } } else { labels };
        let series = requests.entry(labels).or_default();
        *series.codes.entry(code).or_default() += 1;
        if let Some(took) = took {
            let seconds = took.as_secs_f64();
            series.count += 1;
            series.seconds += seconds;
            if let Some(at) = BUCKETS.iter().position(|b| seconds <= *b) {
                series.buckets[at] += 1;
            }
        }
    }

    /// The text of everything; `objects` are counts per resource, `store` bytes of the database.
    pub fn render(&self, objects: &[(String, usize)], store: Option<i64>) -> String {
        let mut out = String::new();
        self.render_requests(&mut out);
        let mut gauge = |name: &str, help: &str, lines: Vec<(String, i64)>| {
            // Writing into a string cannot fail.
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
            for (labels, value) in lines {
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        };
        let one = |value: i64| vec![(String::new(), value)];
        let inflight = self.inflight.load(Ordering::Relaxed);
        gauge("apiserver_current_inflight_requests", "Requests being served.", one(inflight));
        let watches = self.watches.load(Ordering::Relaxed);
        gauge("apiserver_longrunning_requests", "Watches and other streams open.", one(watches));
        let counts = objects.iter().map(|(resource, n)| (format!("{{resource=\"{resource}\"}}"), *n as i64));
        gauge("apiserver_storage_objects", "Stored objects by resource.", counts.collect());
        if let Some(bytes) = store {
            gauge("apiserver_storage_size_bytes", "Size of the store's database, bytes.", one(bytes));
        }
        if let Some(bytes) = resident_memory() {
            gauge("process_resident_memory_bytes", "Resident memory size in bytes.", one(bytes));
        }
        out
    }

    fn render_requests(&self, out: &mut String) {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let text = |l: &Labels| {
            format!(
                "group=\"{}\",resource=\"{}\",scope=\"{}\",subresource=\"{}\",verb=\"{}\",version=\"{}\"",
                l.group, l.resource, l.scope, l.subresource, l.verb, l.version
            )
        };
        let _ = writeln!(
            out,
            "# HELP apiserver_request_total Requests by verb, resource and code.\n# TYPE apiserver_request_total counter"
        );
        for (labels, series) in requests.iter() {
            for (code, count) in &series.codes {
                let _ = writeln!(out, "apiserver_request_total{{code=\"{code}\",{}}} {count}", text(labels));
            }
        }
        let name = "apiserver_request_duration_seconds";
        let _ = writeln!(out, "# HELP {name} Response latency in seconds.\n# TYPE {name} histogram");
        for (labels, series) in requests.iter().filter(|(_, s)| s.count > 0) {
            let labels = text(labels);
            let mut total = 0;
            for (bound, count) in BUCKETS.iter().zip(series.buckets) {
                total += count;
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", series.count);
            let _ = writeln!(
                out,
                "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {}",
                series.seconds, series.count
            );
        }
    }
}

fn resident_memory() -> Option<i64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_and_timed() {
        let metrics = Metrics::default();
        let labels = Labels { verb: "GET".to_owned(), resource: "pods".to_owned(), ..Labels::default() };
        metrics.answered(labels.clone(), 200, Some(Duration::from_millis(30)));
        metrics.answered(labels, 404, Some(Duration::from_millis(1)));
        let text = metrics.render(&[("pods".to_owned(), 3)], Some(7));
        assert!(text.contains("code=\"404\"") && text.contains("le=\"0.05\"} 2"), "{text}");
        assert!(text.contains("apiserver_storage_objects{resource=\"pods\"} 3"), "{text}");
    }
}
