//! Metrics under upstream's names, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use crate::cache::Cache;

#[derive(Default)]
struct Row {
    reconciles: u64,
    errors: u64,
    seconds: f64,
}

/// Counters of all controllers; the queues are read when asked.
#[derive(Default)]
pub struct Metrics {
    rows: Mutex<BTreeMap<&'static str, Row>>,
    cache: Mutex<Weak<Cache>>,
    leading: std::sync::atomic::AtomicBool,
}

impl Metrics {
    pub(crate) fn watch(&self, cache: &Arc<Cache>) {
        *self.cache.lock().unwrap_or_else(|p| p.into_inner()) = Arc::downgrade(cache);
    }

    pub(crate) fn reconciled(&self, controller: &'static str, took: Duration, failed: bool) {
        let mut rows = self.rows.lock().unwrap_or_else(|p| p.into_inner());
        let row = rows.entry(controller).or_default();
        row.reconciles += 1;
        row.errors += u64::from(failed);
        row.seconds += took.as_secs_f64();
    }

    pub(crate) fn set_leading(&self, leading: bool) {
        self.leading.store(leading, std::sync::atomic::Ordering::Relaxed);
    }

    /// The text for `/metrics`.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let leading = u8::from(self.leading.load(std::sync::atomic::Ordering::Relaxed));
        let _ = writeln!(text, "# TYPE leader_election_master_status gauge");
        let _ = writeln!(text, "leader_election_master_status{{name=\"kube-controller-manager\"}} {leading}");
        let _ = writeln!(text, "# TYPE workqueue_work_duration_seconds summary");
        for (name, row) in self.rows.lock().unwrap_or_else(|p| p.into_inner()).iter() {
            let _ = writeln!(text, "workqueue_work_duration_seconds_sum{{name=\"{name}\"}} {}", row.seconds);
            let _ =
                writeln!(text, "workqueue_work_duration_seconds_count{{name=\"{name}\"}} {}", row.reconciles);
            let _ =
                writeln!(text, "keelson_controller_reconcile_errors_total{{name=\"{name}\"}} {}", row.errors);
        }
        let cache = self.cache.lock().unwrap_or_else(|p| p.into_inner()).upgrade();
        for controller in cache.iter().flat_map(|c| &c.controllers) {
            let (name, figures) = (controller.reconciler.name(), controller.queue.figures());
            let _ = writeln!(text, "workqueue_depth{{name=\"{name}\"}} {}", figures.depth);
            let _ = writeln!(text, "workqueue_adds_total{{name=\"{name}\"}} {}", figures.adds);
            let _ = writeln!(text, "workqueue_retries_total{{name=\"{name}\"}} {}", figures.retries);
        }
        text
    }
}
