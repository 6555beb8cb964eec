//! A controller's work queue: keys, each once, each with one worker, some of them later.
//!
//! A key added while a worker has it is queued again when the worker is done. Memory is bounded by
//! the number of distinct keys.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use keelson_controllers_core::Key;
use tokio::sync::Notify;
use tokio::time::Instant;

const BASE_DELAY: Duration = Duration::from_millis(5);
const MAX_DELAY: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Inner {
    ready: VecDeque<Key>,
    queued: BTreeSet<Key>,
    working: BTreeSet<Key>,
    again: BTreeSet<Key>,
    later: BTreeSet<(Instant, Key)>,
    due: BTreeMap<Key, Instant>,
    failures: BTreeMap<Key, u32>,
    adds: u64,
    retries: u64,
}

#[derive(Default)]
pub struct Queue {
    inner: Mutex<Inner>,
    wake: Notify,
}

/// Figures for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub depth: usize,
    pub adds: u64,
    pub retries: u64,
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn add(&self, key: Key) {
        let mut inner = self.lock();
        inner.adds += 1;
        if inner.working.contains(&key) {
            inner.again.insert(key);
        } else if inner.queued.insert(key.clone()) {
            inner.ready.push_back(key);
            drop(inner);
            self.wake.notify_one();
        }
    }

    /// Adds the key after `delay`, or earlier if that was already asked for.
    pub fn add_after(&self, key: Key, delay: Duration) {
        let at = Instant::now() + delay;
        let mut inner = self.lock();
        match inner.due.get(&key).copied() {
            Some(due) if due <= at => return,
            Some(due) => inner.later.remove(&(due, key.clone())),
            None => false,
        };
        inner.due.insert(key.clone(), at);
        inner.later.insert((at, key));
        drop(inner);
        self.wake.notify_one();
    }

    /// Adds the key after a delay that doubles with each failure in a row.
    pub fn retry(&self, key: Key) {
        let failures = {
            let mut inner = self.lock();
            inner.retries += 1;
            let failures = inner.failures.entry(key.clone()).or_default();
            *failures = failures.saturating_add(1);
            *failures
        };
        let delay = BASE_DELAY.saturating_mul(1 << failures.min(20).saturating_sub(1)).min(MAX_DELAY);
        self.add_after(key, delay);
    }

    /// Forgets the failures of a key.
    pub fn forget(&self, key: &Key) {
        self.lock().failures.remove(key);
    }

    /// The next key. The worker must hand it back with `done`. Cancel safe.
    pub async fn next(&self) -> Key {
        loop {
            let wait = {
                let mut inner = self.lock();
                let now = Instant::now();
                while let Some((at, key)) = inner.later.first().cloned().filter(|(at, _)| *at <= now) {
                    inner.later.remove(&(at, key.clone()));
                    inner.due.remove(&key);
                    if inner.working.contains(&key) {
                        inner.again.insert(key);
                    } else if inner.queued.insert(key.clone()) {
                        inner.ready.push_back(key);
                    }
                }
                if let Some(key) = inner.ready.pop_front() {
                    inner.queued.remove(&key);
                    inner.working.insert(key.clone());
                    if !inner.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                inner.later.first().map(|(at, _)| *at)
            };
            match wait {
                Some(at) => tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => self.wake.notified().await,
            }
        }
    }

    pub fn done(&self, key: &Key) {
        let mut inner = self.lock();
        inner.working.remove(key);
        if inner.again.remove(key) && inner.queued.insert(key.clone()) {
            inner.ready.push_back(key.clone());
            drop(inner);
            self.wake.notify_one();
        }
    }

    pub fn figures(&self) -> Figures {
        let inner = self.lock();
        Figures { depth: inner.ready.len(), adds: inner.adds, retries: inner.retries }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::cluster(name)
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_queued_once_and_never_worked_twice_at_a_time() {
        let queue = Queue::default();
        queue.add(key("a"));
        queue.add(key("a"));
        assert_eq!(queue.next().await, key("a"));
        queue.add(key("a"));
        queue.add(key("b"));
        assert_eq!(queue.next().await, key("b"), "a is being worked on");
        queue.done(&key("a"));
        assert_eq!(queue.next().await, key("a"));
        assert_eq!(queue.figures().depth, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn later_keys_come_in_time_and_failures_back_off() {
        let queue = Queue::default();
        let start = Instant::now();
        queue.add_after(key("late"), Duration::from_secs(9));
        queue.add_after(key("late"), Duration::from_secs(3));
        assert_eq!(queue.next().await, key("late"));
        assert_eq!(start.elapsed().as_secs(), 3);
        queue.done(&key("late"));
        let mut last = Duration::ZERO;
        for _ in 0..30 {
            let start = Instant::now();
            queue.retry(key("x"));
            assert_eq!(queue.next().await, key("x"));
            queue.done(&key("x"));
            assert!(start.elapsed() >= last);
            last = start.elapsed();
        }
        assert!(last >= MAX_DELAY && last < MAX_DELAY * 2);
    }
}
