//! Waiting until an index is applied: what a linearizable read does after its read index is known.
//!
//! The apply thread moves the index and, only if someone waits, takes the waiters' lock to wake those who are done. A
//! waiter leaves its waker under that lock, then counts itself, then looks again; the mover moves, then reads the count
//! by a read-modify-write: whichever is second sees the other.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::primitives::{AtomicBool, AtomicU64, Mutex, Ordering, lock};

/// The applied index and those who wait for it.
pub struct AppliedIndex {
    index: AtomicU64,
    closed: AtomicBool,
    waiting: AtomicU64,
    waiters: Mutex<Waiters>,
}

#[derive(Default)]
struct Waiters {
    next_id: u64,
    /// By index awaited, so those who are done come first.
    by_index: BTreeMap<(u64, u64), Waker>,
}

/// The store stopped before the index was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl AppliedIndex {
    pub fn new(index: u64) -> AppliedIndex {
        AppliedIndex {
            index: AtomicU64::new(index),
            closed: AtomicBool::new(false),
            waiting: AtomicU64::new(0),
            waiters: Mutex::new(Waiters::default()),
        }
    }

    pub fn get(&self) -> u64 {
        self.index.load(Ordering::Acquire)
    }

    /// Moves forward to `index` and wakes who waited for it. One thread calls it.
    ///
    /// Panics when the index goes back.
    pub fn advance(&self, index: u64) {
        let before = self.index.swap(index, Ordering::AcqRel);
        assert!(before <= index, "the applied index never goes back: {before} to {index}");
        if self.waiting.fetch_add(0, Ordering::AcqRel) == 0 {
            return;
        }
        self.wake(index);
    }

    /// Ends all waits that are not over.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        if self.waiting.fetch_add(0, Ordering::AcqRel) > 0 {
            self.wake(u64::MAX);
        }
    }

    fn wake(&self, index: u64) {
        let done = {
            let mut waiters = lock(&self.waiters);
            let later =
                index.checked_add(1).map(|next| waiters.by_index.split_off(&(next, 0))).unwrap_or_default();
            let done = std::mem::replace(&mut waiters.by_index, later);
            self.waiting.fetch_sub(done.len() as u64, Ordering::AcqRel);
            done
        };
        done.into_values().for_each(Waker::wake);
    }

    /// Resolves once `index` is applied, or the store has stopped.
    pub fn wait_for(&self, index: u64) -> WaitFor<'_> {
        WaitFor { applied: self, index, id: None }
    }
}

/// See [`AppliedIndex::wait_for`].
pub struct WaitFor<'a> {
    applied: &'a AppliedIndex,
    index: u64,
    id: Option<u64>,
}

impl WaitFor<'_> {
    fn look(&self) -> Option<Result<(), Closed>> {
        let closed = self.applied.closed.load(Ordering::Acquire);
        if self.applied.get() >= self.index {
            return Some(Ok(()));
        }
        closed.then_some(Err(Closed))
    }

    fn register(&mut self, waker: &Waker) {
        let mut waiters = lock(&self.applied.waiters);
        let id = *self.id.get_or_insert_with(|| {
            waiters.next_id += 1;
            waiters.next_id
        });
        if waiters.by_index.insert((self.index, id), waker.clone()).is_none() {
            self.applied.waiting.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Future for WaitFor<'_> {
    type Output = Result<(), Closed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(done) = self.look() {
            return Poll::Ready(done);
        }
        self.register(context.waker());
        self.look().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for WaitFor<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut waiters = lock(&self.applied.waiters);
        if waiters.by_index.remove(&(self.index, id)).is_some() {
            self.applied.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
