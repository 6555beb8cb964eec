//! The seam below the log: named append-only files in one folder, written through one ordered queue.
//!
//! `submit` never blocks on the disk; operations take effect in the order of submission, and `done` is called once the
//! operation and everything before it is durable. `FileDisk` groups: its one long-lived thread takes all that waits,
//! writes it, calls fdatasync once and then completes the group.
//!
//! Hazard: a file is synced before the first byte of the next one is written, so only the newest can be torn.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use bytes::Bytes;

/// Called once, when an operation is durable or has failed.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// One change of the log's folder.
pub enum Operation {
    /// Appends to a file (created when absent). Without `done` it need not be durable before a later one is.
    Append {
        /// File name.
        file: String,
        /// What to append.
        data: Bytes,
        /// Completion.
        done: Option<Done>,
    },
    /// Removes a file no longer needed.
    Remove {
        /// File name.
        file: String,
    },
}

/// The folder of a log.
pub trait Disk: Send + Sync + 'static {
    /// Names of the files, in any order.
    ///
    /// # Errors
    /// IO.
    fn list(&self) -> io::Result<Vec<String>>;

    /// A whole file.
    ///
    /// # Errors
    /// IO.
    fn read(&self, file: &str) -> io::Result<Vec<u8>>;

    /// `length` bytes at `offset`.
    ///
    /// # Errors
    /// IO; the file is shorter.
    fn read_at(&self, file: &str, offset: u64, length: usize) -> io::Result<Vec<u8>>;

    /// Cuts a file, durably; only before the first `submit`.
    ///
    /// # Errors
    /// IO.
    fn truncate(&self, file: &str, length: u64) -> io::Result<()>;

    /// Queues an operation.
    fn submit(&self, operation: Operation);
}

/// Where fsync durations go: count and total, and buckets of powers of two from 0.1 ms.
#[derive(Debug, Default)]
pub struct SyncStats {
    /// Durations at most 0.1 ms, 0.2 ms, 0.4 ms, … each; the last is everything above.
    pub buckets: [AtomicU64; SyncStats::BUCKETS],
    /// Syncs done.
    pub count: AtomicU64,
    /// Their total, in microseconds.
    pub micros: AtomicU64,
}

impl SyncStats {
    /// How many buckets there are.
    pub const BUCKETS: usize = 16;

    fn observe(&self, micros: u64) {
        let bucket = (0..Self::BUCKETS - 1).find(|b| micros <= 100 << b).unwrap_or(Self::BUCKETS - 1);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

/// A folder of the real file system.
pub struct FileDisk {
    folder: PathBuf,
    queue: Arc<Queue>,
    /// fdatasync durations.
    pub stats: Arc<SyncStats>,
    flusher: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    operations: VecDeque<Operation>,
    /// Of the waiting operations, how many want to be told.
    urgent: usize,
    closed: bool,
}

impl FileDisk {
    /// Opens the folder, creating it, and starts the flusher thread.
    ///
    /// # Errors
    /// The folder cannot be created, or no thread can be started.
    pub fn open(folder: &Path, sync: bool) -> io::Result<FileDisk> {
        std::fs::create_dir_all(folder)?;
        let queue = Arc::new(Queue::default());
        let stats = Arc::new(SyncStats::default());
        let flusher =
            Flusher { folder: folder.to_owned(), sync, stats: stats.clone(), file: None, failed: None };
        let source = queue.clone();
        let thread =
            std::thread::Builder::new().name("raft-log".to_owned()).spawn(move || flusher.run(&source))?;
        Ok(FileDisk { folder: folder.to_owned(), queue, stats, flusher: Some(thread) })
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }
}

impl Drop for FileDisk {
    /// Writes what is queued, then stops the thread.
    fn drop(&mut self) {
        self.queue.waiting.lock().expect("no panic while locked").closed = true;
        self.queue.changed.notify_all();
        if let Some(thread) = self.flusher.take() {
            // A panic of the flusher was reported by its hook; there is nobody to tell here.
            let _ = thread.join();
        }
    }
}

impl Disk for FileDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    fn read(&self, file: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.path(file))
    }

    fn read_at(&self, file: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut data = vec![0; length];
        File::open(self.path(file))?.read_exact_at(&mut data, offset)?;
        Ok(data)
    }

    fn truncate(&self, file: &str, length: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path(file))?;
        file.set_len(length)?;
        file.sync_all()
    }

    fn submit(&self, operation: Operation) {
        let mut waiting = self.queue.waiting.lock().expect("no panic while locked");
        let urgent = matches!(operation, Operation::Append { done: Some(_), .. });
        waiting.urgent += usize::from(urgent);
        waiting.operations.push_back(operation);
        if urgent {
            drop(waiting);
            self.queue.changed.notify_one();
        }
    }
}

/// The thread behind a `FileDisk`.
struct Flusher {
    folder: PathBuf,
    sync: bool,
    stats: Arc<SyncStats>,
    /// The file being appended to.
    file: Option<(String, File)>,
    /// After one failure nothing is written again: what is on the disk is unknown (fsync errors are not retried).
    failed: Option<(io::ErrorKind, String)>,
}

impl Flusher {
    fn run(mut self, queue: &Queue) {
        loop {
            let mut waiting = queue.waiting.lock().expect("no panic while locked");
            while waiting.urgent == 0 && !waiting.closed {
                waiting = queue.changed.wait(waiting).expect("no panic while locked");
            }
            let operations = std::mem::take(&mut waiting.operations);
            waiting.urgent = 0;
            let closed = waiting.closed;
            drop(waiting);
            self.group(operations);
            if closed {
                return;
            }
        }
    }

    /// Writes a group, syncs once, completes it.
    fn group(&mut self, operations: VecDeque<Operation>) {
        let mut completions = Vec::new();
        let mut buffer: Vec<u8> = Vec::new();
        for operation in operations {
            match operation {
                Operation::Append { file, data, done } => {
                    if self.file.as_ref().is_none_or(|(current, _)| *current != file) {
                        self.attempt(|flusher| flusher.write(&buffer));
                        buffer.clear();
                        self.attempt(|flusher| flusher.switch(&file));
                    }
                    buffer.extend_from_slice(&data);
                    completions.extend(done);
                }
                Operation::Remove { file } => {
                    self.attempt(|flusher| std::fs::remove_file(flusher.folder.join(&file)));
                }
            }
        }
        self.attempt(|flusher| flusher.write(&buffer));
        self.attempt(Flusher::sync);
        for done in completions {
            done(match &self.failed {
                None => Ok(()),
                Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
            });
        }
    }

    fn attempt(&mut self, action: impl FnOnce(&mut Flusher) -> io::Result<()>) {
        if self.failed.is_some() {
            return;
        }
        if let Err(error) = action(self) {
            tracing::error!(%error, folder = %self.folder.display(), "the raft log cannot be written; this member stops");
            self.failed = Some((error.kind(), format!("raft log in {}: {error}", self.folder.display())));
        }
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match &mut self.file {
            Some((_, file)) if !data.is_empty() => file.write_all(data),
            _ => Ok(()),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        let Some((_, file)) = &self.file else { return Ok(()) };
        if self.sync {
            let start = Instant::now();
            file.sync_data()?;
            self.stats.observe(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Finishes the current file and opens another; the folder is synced so that the new name survives.
    fn switch(&mut self, name: &str) -> io::Result<()> {
        self.sync()?;
        let file = OpenOptions::new().append(true).create(true).open(self.folder.join(name))?;
        if self.sync {
            file.sync_all()?;
            File::open(&self.folder)?.sync_all()?;
        }
        self.file = Some((name.to_owned(), file));
        Ok(())
    }
}
