//! A simulated disk for the Raft log: what is not yet synced is lost in a crash, but for a torn prefix of it.
//!
//! Syncs take seeded, virtual time; operations of one disk complete in order, as on the real one.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use keelson_store_raft::log::{Disk, Operation};
use openraft::AsyncRuntime;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::runtime::Runtime;

/// One member's disk; clones share it.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<Inner>>);

struct Inner {
    synced: BTreeMap<String, Vec<u8>>,
    waiting: VecDeque<Operation>,
    syncing: bool,
    /// After a crash the old handle does nothing more.
    dead: bool,
    slowest: Duration,
    random: SmallRng,
}

impl SimDisk {
    /// An empty disk whose syncs take up to `slowest`.
    pub fn new(seed: u64, slowest: Duration) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(Inner {
            synced: BTreeMap::new(),
            waiting: VecDeque::new(),
            syncing: false,
            dead: false,
            slowest,
            random: SmallRng::seed_from_u64(seed),
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no panic while locked")
    }

    /// The power goes: this handle is dead, the returned one holds what was synced, some of what was written since in
    /// its order, and perhaps a torn prefix of the next append.
    pub fn crash(&self) -> SimDisk {
        let mut inner = self.inner();
        inner.dead = true;
        let mut synced = inner.synced.clone();
        let mut waiting = std::mem::take(&mut inner.waiting).into_iter();
        let whole = if waiting.len() > 0 { inner.random.random_range(0..=waiting.len()) } else { 0 };
        for operation in waiting.by_ref().take(whole) {
            match operation {
                Operation::Append { file, data, .. } => {
                    synced.entry(file).or_default().extend_from_slice(&data);
                }
                Operation::Remove { file } => drop(synced.remove(&file)),
            }
        }
        if let Some(Operation::Append { file, data, .. }) = waiting.next() {
            let kept = inner.random.random_range(0..=data.len());
            if kept > 0 {
                synced.entry(file).or_default().extend_from_slice(&data[..kept]);
            }
        }
        let (seed, slowest) = (inner.random.random(), inner.slowest);
        let reborn = SimDisk::new(seed, slowest);
        reborn.inner().synced = synced;
        reborn
    }

    /// Applies everything that waited and tells who asked.
    fn sync(&self) {
        let mut done = Vec::new();
        {
            let mut inner = self.inner();
            inner.syncing = false;
            if inner.dead {
                return;
            }
            for operation in std::mem::take(&mut inner.waiting) {
                match operation {
                    Operation::Append { file, data, done: tell } => {
                        inner.synced.entry(file).or_default().extend_from_slice(&data);
                        done.extend(tell);
                    }
                    Operation::Remove { file } => {
                        inner.synced.remove(&file);
                    }
                }
            }
        }
        for tell in done {
            tell(Ok(()));
        }
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.inner().synced.keys().cloned().collect())
    }

    fn read(&self, file: &str) -> io::Result<Vec<u8>> {
        self.inner().synced.get(file).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Sees what is written but not yet synced too, as a page cache does.
    fn read_at(&self, file: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let inner = self.inner();
        let mut content = inner.synced.get(file).cloned().unwrap_or_default();
        for operation in &inner.waiting {
            if let Operation::Append { file: name, data, .. } = operation
                && name == file
            {
                content.extend_from_slice(data);
            }
        }
        let from = usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        content
            .get(from..from + length)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn truncate(&self, file: &str, length: u64) -> io::Result<()> {
        let mut inner = self.inner();
        let content = inner.synced.get_mut(file).ok_or(io::ErrorKind::NotFound)?;
        content.truncate(usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?);
        Ok(())
    }

    fn submit(&self, operation: Operation) {
        let mut inner = self.inner();
        if inner.dead {
            return;
        }
        let urgent = matches!(operation, Operation::Append { done: Some(_), .. });
        inner.waiting.push_back(operation);
        if urgent && !inner.syncing {
            inner.syncing = true;
            let longest = u64::try_from(inner.slowest.as_micros()).unwrap_or(u64::MAX).max(50);
            let takes = Duration::from_micros(inner.random.random_range(50..=longest));
            let disk = self.clone();
            drop(Runtime::spawn(async move {
                Runtime::sleep(takes).await;
                disk.sync();
            }));
        }
    }
}
