//! The histograms openraft keeps of its batch sizes, in 2 KiB each.
//!
//! Takes the place of the crate of this name that openraft depends on: that one fills 27 MB of tables for precisions
//! nobody asks for, in every process, before the first value is recorded. Only what openraft calls is here.

use std::fmt;
use std::marker::PhantomData;

/// Values below this have a bucket each.
const EXACT: u64 = 8;
/// Buckets to a power of two above.
const PARTS: u64 = 4;
const BUCKETS: usize = (EXACT + 61 * PARTS) as usize;

/// Counts of values, at most a quarter off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Vec<u64>,
    marker: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Histogram { counts: vec![0; BUCKETS], marker: PhantomData }
    }
}

fn bucket(value: u64) -> usize {
    if value < EXACT {
        return value as usize;
    }
    let power = u64::from(value.ilog2());
    let part = (value >> (power - 2)) & (PARTS - 1);
    (EXACT + (power - 3) * PARTS + part) as usize
}

/// The least value of a bucket.
fn least(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < EXACT {
        return bucket;
    }
    let (power, part) = ((bucket - EXACT) / PARTS + 3, (bucket - EXACT) % PARTS);
    (PARTS + part) << (power - 2)
}

impl<T> Histogram<T> {
    /// An empty one.
    pub fn new() -> Self {
        Histogram::default()
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value `n` times.
    pub fn record_n(&mut self, value: u64, n: u64) {
        self.counts[bucket(value)] += n;
    }

    /// Values counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The value below which this share of all lies, about; 0 when there are none.
    pub fn percentile(&self, share: f64) -> u64 {
        let rank = ((self.total() as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return least(bucket);
            }
        }
        0
    }

    /// The usual percentiles.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.percentile(0.001),
            p1: self.percentile(0.01),
            p5: self.percentile(0.05),
            p10: self.percentile(0.1),
            p50: self.percentile(0.5),
            p90: self.percentile(0.9),
            p99: self.percentile(0.99),
            p99_9: self.percentile(0.999),
        }
    }
}

/// How many values, and the values below which so many percent of them lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[samples: {}, P50: {}, P90: {}, P99: {}]", self.samples, self.p50, self.p90, self.p99)
    }
}

/// Histograms side by side, as text.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart {
    rows: Vec<(String, Histogram)>,
}

impl AsciiChart {
    /// Without any.
    pub fn new() -> Self {
        AsciiChart::default()
    }

    /// One more.
    #[must_use]
    #[allow(clippy::should_implement_trait, reason = "the name openraft calls")]
    pub fn add(mut self, name: &str, histogram: Histogram) -> Self {
        self.rows.push((name.to_owned(), histogram));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows.iter().try_for_each(|(name, row)| writeln!(f, "{name}: {}", row.percentile_stats()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_the_bucket_that_begins_at_or_below_it() {
        let powers = (0..64).map(|power| 1u64 << power);
        for value in (0..5000).chain(powers).chain([u64::MAX]) {
            let at = bucket(value);
            assert!(at < BUCKETS && least(at) <= value, "{value}");
            assert!(at + 1 == BUCKETS || least(at + 1) > value, "{value}");
        }
    }

    #[test]
    fn percentiles_are_within_a_quarter() {
        let mut histogram = Histogram::<()>::new();
        (1..=1000).for_each(|value| histogram.record(value));
        let stats = histogram.percentile_stats();
        assert_eq!(stats.samples, 1000);
        assert!((375..=500).contains(&stats.p50) && (742..=990).contains(&stats.p99), "{stats}");
    }
}
