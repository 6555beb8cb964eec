//! The runner: everything that turns reconcilers into controllers, written once.
//!
//! While leading: informers fill the `Cache`, changes queue keys, workers reconcile and execute.
//! All of it belongs to one leadership and is dropped with it; the next one starts from lists.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keelson_controllers_core::{ApiResource, Gvr, Key, Reconciler};
use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::discovery::discover;
use crate::executor::Executor;
use crate::informer::Informer;
use crate::leader::Leadership;
use crate::metrics::Metrics;
use crate::recorder::Recorder;
use crate::request::Refusal;

/// Workers per controller.
const WORKERS: usize = 5;
/// How often the server's resources are looked up again.
const DISCOVERY_PERIOD: Duration = Duration::from_secs(30);

/// Runs the reconcilers until `stop`. Does not elect: see `run` in the crate root.
pub async fn lead(
    client: Client,
    reconcilers: &[Arc<dyn Reconciler>],
    leadership: Arc<Leadership>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let (cache, watches) = Cache::new(reconcilers);
    let cache = Arc::new(cache);
    metrics.watch(&cache);
    let mut tasks = JoinSet::new();
    for watch in &watches {
        tasks.spawn(Informer::typed(watch).run(client.clone(), cache.clone(), stop.clone()));
    }
    if cache.needs_graph() {
        tasks.spawn(follow_discovery(client.clone(), cache.clone(), stop.clone()));
    }
    let recorder = Recorder::start(client.clone(), stop.clone());
    let executor = Arc::new(Executor { client, leadership, recorder });
    for index in 0..cache.controllers.len() {
        for _ in 0..WORKERS {
            let worker =
                Worker { cache: cache.clone(), executor: executor.clone(), metrics: metrics.clone(), index };
            let stop = stop.clone();
            tasks.spawn(async move {
                stop.run_until_cancelled(worker.run()).await;
            });
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Keeps one metadata informer for each resource that has no typed one.
async fn follow_discovery(client: Client, cache: Arc<Cache>, stop: CancellationToken) {
    let mut running: BTreeMap<Gvr, CancellationToken> = BTreeMap::new();
    let mut informers = JoinSet::new();
    let mut delay = Duration::from_millis(200);
    while !stop.is_cancelled() {
        match discover(&client).await {
            Ok((resources, complete)) => {
                let wanted = cache.set_resources(resources, complete);
                running.retain(|gvr, token| {
                    let keep = wanted.iter().any(|r| r.gvr == *gvr);
                    if !keep {
                        token.cancel();
                    }
                    keep
                });
                let fresh: Vec<&ApiResource> =
                    wanted.iter().filter(|r| !running.contains_key(&r.gvr)).collect();
                for resource in fresh {
                    let token = stop.child_token();
                    running.insert(resource.gvr.clone(), token.clone());
                    informers.spawn(Informer::metadata(&resource.gvr).run(
                        client.clone(),
                        cache.clone(),
                        token,
                    ));
                }
                delay = DISCOVERY_PERIOD;
            }
            Err(error) => {
                tracing::warn!("discovery failed, trying again in {delay:?}: {error}");
                delay = (delay * 2).min(DISCOVERY_PERIOD);
            }
        }
        stop.run_until_cancelled(tokio::time::sleep(delay)).await;
    }
    while informers.join_next().await.is_some() {}
}

struct Worker {
    cache: Arc<Cache>,
    executor: Arc<Executor>,
    metrics: Arc<Metrics>,
    index: usize,
}

impl Worker {
    async fn run(&self) {
        let controller = &self.cache.controllers[self.index];
        while !self.cache.synced(self.index) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        loop {
            let key = controller.queue.next().await;
            if self.cache.is_current(self.index, &key) {
                self.work(&key).await;
            }
            controller.queue.done(&key);
        }
    }

    async fn work(&self, key: &Key) {
        let controller = &self.cache.controllers[self.index];
        let name = controller.reconciler.name();
        let started = std::time::Instant::now();
        let plan = self.cache.view(|view| controller.reconciler.reconcile(key, view, Timestamp::now()));
        let changed = self.cache.view(|view| view.note(name, key) != plan.note.as_ref());
        if changed {
            self.cache.view_mut(|view| view.set_note(name, key, plan.note.clone()));
        }
        let mut written = Vec::new();
        let result = self.executor.run(name, &plan, &mut written).await;
        self.cache.hold(self.index, key, written);
        self.settle(key, name, &result);
        if let Some(delay) = plan.requeue.and_then(|d| Duration::try_from(d).ok()) {
            controller.queue.add_after(key.clone(), delay);
        }
        self.metrics.reconciled(name, started.elapsed(), result.is_err());
    }

    fn settle(&self, key: &Key, name: &'static str, result: &Result<(), Refusal>) {
        let queue = &self.cache.controllers[self.index].queue;
        let failure = match result {
            Err(Refusal::Denied(why)) => Some(why.clone()),
            _ => None,
        };
        let known = self.cache.view(|view| view.failure(name, key).map(str::to_owned));
        if matches!(result, Ok(()) | Err(Refusal::Denied(_))) && known != failure {
            self.cache.view_mut(|view| view.set_failure(name, key, failure));
            // The status may have to say so (or no longer).
            queue.add(key.clone());
        }
        match result {
            Ok(()) => queue.forget(key),
            Err(Refusal::NotLeading) => {}
            Err(refusal @ Refusal::Stale(_)) => {
                tracing::debug!(controller = name, %key, "{refusal}; looking again");
                queue.retry(key.clone());
            }
            Err(refusal) => {
                tracing::warn!(controller = name, %key, "{refusal}; trying again");
                queue.retry(key.clone());
            }
        }
    }
}
