//! Prometheus' text form: families in the order of their names, each with its type.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How observations spread over durations: bucket `i` holds those of at most `FIRST << i` microseconds.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    micros: AtomicU64,
}

const FIRST: u64 = 100;
/// The last one's bound is 13 s; longer ones are only in the count.
const BUCKETS: usize = 18;

impl Histogram {
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = (0..BUCKETS - 1).find(|bucket| micros <= FIRST << bucket).unwrap_or(BUCKETS - 1);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.micros.fetch_add(micros, Relaxed);
    }

    fn counts(&self) -> Vec<u64> {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect()
    }
}

#[derive(Default)]
struct Family {
    kind: &'static str,
    lines: String,
}

/// The page being written.
#[derive(Default)]
pub(crate) struct Page {
    families: BTreeMap<&'static str, Family>,
}

/// `{a="1",b="2"}`, nothing without labels. Values are ours or checked: none needs escaping.
fn braces(labels: &[(&str, &str)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    format!("{{{}}}", pairs.join(","))
}

impl Page {
    fn family(&mut self, name: &'static str, kind: &'static str) -> &mut String {
        let family = self.families.entry(name).or_default();
        family.kind = kind;
        &mut family.lines
    }

    pub fn gauge(&mut self, name: &'static str, labels: &[(&str, &str)], value: impl Display) {
        self.line(name, "gauge", labels, value);
    }

    pub fn counter(&mut self, name: &'static str, labels: &[(&str, &str)], value: impl Display) {
        self.line(name, "counter", labels, value);
    }

    fn line(&mut self, name: &'static str, kind: &'static str, labels: &[(&str, &str)], value: impl Display) {
        let lines = self.family(name, kind);
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "{name}{} {value}", braces(labels));
    }

    /// Durations in seconds.
    pub fn histogram(&mut self, name: &'static str, labels: &[(&str, &str)], histogram: &Histogram) {
        self.buckets(name, labels, &histogram.counts(), histogram.micros.load(Relaxed));
    }

    /// `counts[i]` observations of at most `100 << i` microseconds, the last of everything above.
    pub fn buckets(&mut self, name: &'static str, labels: &[(&str, &str)], counts: &[u64], micros: u64) {
        let lines = self.family(name, "histogram");
        let mut total = 0;
        for (i, count) in counts.iter().enumerate() {
            total += count;
            let last = i + 1 == counts.len();
            let bound = if last { "+Inf".to_owned() } else { format!("{}", (FIRST << i) as f64 / 1e6) };
            let labels = [labels, &[("le", bound.as_str())]].concat();
            let _ = writeln!(lines, "{name}_bucket{} {total}", braces(&labels));
        }
        let labels = braces(labels);
        let _ = writeln!(lines, "{name}_sum{labels} {}", micros as f64 / 1e6);
        let _ = writeln!(lines, "{name}_count{labels} {total}");
    }

    pub fn text(self) -> String {
        let mut text = String::with_capacity(64 << 10);
        for (name, Family { kind, lines }) in self.families {
            let help = name.trim_end_matches("_total").replace('_', " ");
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_sorted_typed_and_cumulative() {
        let mut page = Page::default();
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(150));
        histogram.observe(Duration::from_secs(60));
        page.histogram("b_seconds", &[("x", "1")], &histogram);
        page.counter("a_total", &[], 7);
        let text = page.text();
        assert!(text.starts_with("# HELP a_total a\n# TYPE a_total counter\na_total 7\n# HELP b_seconds"));
        for line in [
            "b_seconds_bucket{x=\"1\",le=\"0.0001\"} 0",
            "b_seconds_bucket{x=\"1\",le=\"0.0002\"} 1",
            "b_seconds_bucket{x=\"1\",le=\"+Inf\"} 2",
            "b_seconds_count{x=\"1\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
