//! The watch hub: one bounded ring of recent changes, one cursor per stream, one publisher (the apply thread).
//!
//! ```text
//! Publisher ─ publish(position, Arc<T>) ─► slot[position % n]     Cursor reads slot[next % n]
//!      │                                                            Item · Empty (waits) · Lagged (read history)
//!      └─ if someone waits: rings the bell ─► Hub::drive (one task) ─► wakes the waiting cursors
//! ```
//!
//! Order of a publication: write the slot, then move `published`, then ring. So a cursor that sees a position finds the
//! slot written, or overwritten by something newer, and then it has lagged. A lagged cursor continues right after what
//! was published when it noticed; what lies between is in the store's history.
//!
//! What the publisher may wait for: one slot's lock, held by a cursor for one `Arc` clone, and only on the very slot
//! being overwritten; the bell's lock, held by `drive` for one assignment. It never waits for a cursor that syncs, and
//! never wakes many. Memory is bounded by slots and by bytes, whatever cursors do.
//!
//! Why no wake-up is lost: a cursor leaves its waker, then swaps `waiting` to true, then looks again; the publisher
//! moves `published`, then swaps `waiting` to false. Whichever swap is second sees the other's work. Both flags are only
//! ever swapped: a plain store racing with a swap has no place in one order that both sides know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::primitives::{AtomicBool, AtomicU64, Mutex, Ordering, lock};

type Slot<T> = Mutex<Option<Entry<T>>>;

struct Entry<T> {
    position: u64,
    size: usize,
    item: Arc<T>,
}

/// Shared by the publisher and all cursors.
pub struct Hub<T> {
    slots: Box<[Slot<T>]>,
    published: AtomicU64,
    closed: AtomicBool,
    /// Some cursor has left a waker since the bell was last rung.
    waiting: AtomicBool,
    waiters: Mutex<Waiters>,
    /// Rung and not yet answered.
    rung: AtomicBool,
    bell: Mutex<Option<Waker>>,
}

#[derive(Default)]
struct Waiters {
    next_id: u64,
    by_cursor: BTreeMap<u64, Waker>,
}

/// The one that publishes; dropping it closes the hub.
pub struct Publisher<T> {
    hub: Arc<Hub<T>>,
    /// Oldest position whose slot may still be filled.
    oldest: u64,
    bytes: usize,
    max_bytes: usize,
}

/// What a cursor found.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<T> {
    Item(Arc<T>),
    /// The ring has moved on: continue from history through `through`; the cursor goes on after it.
    Lagged {
        through: u64,
    },
    /// The publisher is gone and everything it published has been read.
    Closed,
}

/// A reader's place. Positions count by one.
pub struct Cursor<T> {
    hub: Arc<Hub<T>>,
    id: u64,
    next: u64,
    /// Its waker may be among the waiters.
    registered: bool,
}

impl<T> Hub<T> {
    /// A ring of `slots` positions and about `max_bytes`, as if `position` had just been published.
    ///
    /// Panics when `slots` is 0.
    pub fn new(slots: usize, max_bytes: usize, position: u64) -> (Publisher<T>, Arc<Hub<T>>) {
        assert!(slots > 0, "a ring has slots");
        let hub = Arc::new(Hub {
            slots: (0..slots).map(|_| Mutex::new(None)).collect(),
            published: AtomicU64::new(position),
            closed: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            waiters: Mutex::new(Waiters::default()),
            rung: AtomicBool::new(false),
            bell: Mutex::new(None),
        });
        let publisher = Publisher { hub: Arc::clone(&hub), oldest: position + 1, bytes: 0, max_bytes };
        (publisher, hub)
    }

    /// The newest published position.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// A cursor that sees what is published from now on; its `position` says after what.
    pub fn subscribe(self: &Arc<Self>) -> Cursor<T> {
        self.subscribe_after(self.published())
    }

    /// A cursor that wants everything after `position`.
    pub fn subscribe_after(self: &Arc<Self>, position: u64) -> Cursor<T> {
        let mut waiters = lock(&self.waiters);
        let id = waiters.next_id;
        waiters.next_id += 1;
        Cursor { hub: Arc::clone(self), id, next: position + 1, registered: false }
    }

    /// Wakes the waiting cursors whenever the bell rings, until the hub is closed: one task of the shell runs it.
    pub async fn drive(&self) {
        std::future::poll_fn(|context| self.poll_drive(context)).await;
    }

    /// One turn of [`Hub::drive`].
    pub fn poll_drive(&self, context: &mut Context<'_>) -> Poll<()> {
        *lock(&self.bell) = Some(context.waker().clone());
        let closed = self.closed.load(Ordering::Acquire);
        if self.rung.swap(false, Ordering::AcqRel) || closed {
            let waiters = std::mem::take(&mut lock(&self.waiters).by_cursor);
            waiters.into_values().for_each(Waker::wake);
        }
        if closed { Poll::Ready(()) } else { Poll::Pending }
    }

    fn slot(&self, position: u64) -> &Slot<T> {
        let slots = self.slots.len() as u64;
        &self.slots[(position % slots) as usize]
    }

    fn ring(&self) {
        if self.waiting.swap(false, Ordering::AcqRel) {
            self.rung.swap(true, Ordering::AcqRel);
            let driver = lock(&self.bell).take();
            if let Some(driver) = driver {
                driver.wake();
            }
        }
    }
}

impl<T> Publisher<T> {
    /// Publishes the next position. `size` in bytes counts against the ring's budget.
    ///
    /// Panics when `position` does not follow the last one: a gap would be a lost change (see [`Publisher::reset`]).
    pub fn publish(&mut self, position: u64, item: Arc<T>, size: usize) {
        let hub = &self.hub;
        // Only this publisher writes it.
        let last = hub.published.load(Ordering::Relaxed);
        assert_eq!(position, last + 1, "positions are published without a gap");
        let entry = Entry { position, size, item };
        let overwritten = lock(hub.slot(position)).replace(entry);
        self.bytes = self.bytes + size - overwritten.as_ref().map_or(0, |old| old.size);
        if overwritten.is_some() {
            self.oldest = position + 1 - hub.slots.len() as u64;
        }
        while self.bytes > self.max_bytes && self.oldest < position {
            let evicted = lock(hub.slot(self.oldest)).take();
            self.bytes -= evicted.map_or(0, |old| old.size);
            self.oldest += 1;
        }
        hub.published.store(position, Ordering::Release);
        hub.ring();
    }

    /// Jumps to `position` (the state was replaced by a snapshot): every cursor behind it lags.
    pub fn reset(&mut self, position: u64) {
        for slot in &self.hub.slots {
            lock(slot).take();
        }
        self.bytes = 0;
        self.oldest = position + 1;
        self.hub.published.store(position, Ordering::Release);
        self.hub.ring();
    }

    /// Bytes held by the ring.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<T> Drop for Publisher<T> {
    fn drop(&mut self) {
        self.hub.closed.store(true, Ordering::Release);
        self.hub.waiting.swap(true, Ordering::AcqRel);
        self.hub.ring();
    }
}

impl<T> Cursor<T> {
    /// Everything up to it has been read (or lagged over).
    pub fn position(&self) -> u64 {
        self.next - 1
    }

    /// What is there now; `None` when nothing new is.
    pub fn try_next(&mut self) -> Option<Next<T>> {
        // Closed before published: what was published before closing is then still seen.
        let closed = self.hub.closed.load(Ordering::Acquire);
        let published = self.hub.published.load(Ordering::Acquire);
        if published < self.next {
            return closed.then_some(Next::Closed);
        }
        let slot = lock(self.hub.slot(self.next));
        #[cfg(feature = "planted")]
        if keelson_plant::is(16) && slot.as_ref().is_none_or(|entry| entry.position != self.next) {
            drop(slot);
            self.next = published;
            return self.try_next();
        }
        match slot.as_ref().filter(|entry| entry.position == self.next) {
            Some(entry) => {
                self.next += 1;
                Some(Next::Item(Arc::clone(&entry.item)))
            }
            None => {
                self.next = published + 1;
                Some(Next::Lagged { through: published })
            }
        }
    }

    /// What comes next, leaving the waker when nothing is there.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Next<T>> {
        if let Some(next) = self.try_next() {
            return Poll::Ready(next);
        }
        lock(&self.hub.waiters).by_cursor.insert(self.id, context.waker().clone());
        self.registered = true;
        self.hub.waiting.swap(true, Ordering::AcqRel);
        match self.try_next() {
            Some(next) => Poll::Ready(next),
            None => Poll::Pending,
        }
    }

    /// Waits for what comes next. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Next<T> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }
}

impl<T> Drop for Cursor<T> {
    fn drop(&mut self) {
        if self.registered {
            lock(&self.hub.waiters).by_cursor.remove(&self.id);
        }
    }
}
