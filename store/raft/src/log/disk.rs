//! The seam below the log: named append-only files in one folder, written through one ordered queue.
//!
//! `submit` never blocks on the disk; operations take effect in the order of submission, and `done` is called once the
//! operation and everything before it is durable. `FileDisk` groups: its one long-lived thread takes all that waits,
//! writes it, calls fdatasync once and then completes the group.
//!
//! Hazard: a file is synced before the first byte of the next one is written, so only the newest can be torn.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use bytes::Bytes;
use keelson_store_fail::{Point, hit};

use crate::prompt::prompt_thread;

/// Space set aside at a time, bytes.
const RESERVE: u64 = 8 * 1024 * 1024;

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
        let thread = std::thread::Builder::new().name("raft-log".to_owned()).spawn(move || {
            prompt_thread();
            flusher.run(&source);
        })?;
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
    file: Option<Open>,
    /// After one failure nothing is written again: what is on the disk is unknown (fsync errors are not retried).
    failed: Option<(io::ErrorKind, String)>,
}

/// The newest file. Its space is set aside ahead of what is written: syncing an append that makes no file longer needs
/// no commit of the file system's journal, and takes a fraction of the time. What is not written yet reads as zeros.
struct Open {
    name: String,
    file: File,
    /// Where the next byte goes.
    end: u64,
    /// Set aside so far.
    reserved: u64,
}

impl Open {
    /// A file that exists is continued at its end.
    fn new(path: &Path, name: &str) -> io::Result<Open> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        let end = file.metadata()?.len();
        let mut open = Open { name: name.to_owned(), file, end, reserved: end };
        open.reserve(1);
        Ok(open)
    }

    /// Sets space aside for `more` bytes. Where that is not possible the file grows as it is written.
    fn reserve(&mut self, more: u64) {
        if self.end + more <= self.reserved {
            return;
        }
        let (Ok(from), Ok(length)) = (i64::try_from(self.reserved), i64::try_from(more.max(RESERVE))) else {
            return;
        };
        let flags = nix::fcntl::FallocateFlags::empty();
        if nix::fcntl::fallocate(&self.file, flags, from, length).is_ok() {
            self.reserved += length as u64;
        }
    }

    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.reserve(data.len() as u64);
        self.file.write_all_at(data, self.end)?;
        self.end += data.len() as u64;
        Ok(())
    }

    /// Gives back what was set aside.
    fn finish(&self) -> io::Result<()> {
        if self.reserved > self.end { self.file.set_len(self.end) } else { Ok(()) }
    }
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
                if let Some(open) = &self.file
                    && let Err(error) = open.finish()
                {
                    tracing::debug!(%error, "the raft log keeps space it does not need");
                }
                return;
            }
        }
    }

    /// Writes a group, syncs once, completes it.
    fn group(&mut self, operations: VecDeque<Operation>) {
        let mut completions = Vec::new();
        let mut pieces: Vec<Bytes> = Vec::new();
        for operation in operations {
            match operation {
                Operation::Append { file, data, done } => {
                    if self.file.as_ref().is_none_or(|open| open.name != file) {
                        self.attempt(|flusher| flusher.write(&pieces));
                        pieces.clear();
                        self.attempt(|flusher| flusher.switch(&file));
                    }
                    pieces.push(data);
                    completions.extend(done);
                }
                Operation::Remove { file } => {
                    self.attempt(|flusher| flusher.remove(&file));
                }
            }
        }
        self.attempt(|flusher| flusher.write(&pieces));
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

    /// Writes the pieces one after the other; a group is one call to the system.
    fn write(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        if !pieces.is_empty() {
            hit(Point::RaftBeforeSave)?;
        }
        match (&mut self.file, pieces) {
            (None, _) | (_, []) => Ok(()),
            (Some(open), [one]) => open.append(one),
            (Some(open), pieces) => open.append(&pieces.concat()),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        let Some(open) = &self.file else { return Ok(()) };
        hit(Point::WalBeforeSync)?;
        if self.sync {
            let start = Instant::now();
            open.file.sync_data()?;
            self.stats.observe(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
        hit(Point::WalAfterSync)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        hit(Point::WalBeforeRelease)?;
        std::fs::remove_file(self.folder.join(name))?;
        hit(Point::RaftAfterWalRelease)
    }

    /// Finishes the current file and opens another; the folder is synced so that the new name survives.
    fn switch(&mut self, name: &str) -> io::Result<()> {
        hit(Point::WalBeforeSwitch)?;
        if let Some(open) = &self.file {
            open.finish()?;
        }
        self.sync()?;
        let open = Open::new(&self.folder.join(name), name)?;
        if self.sync {
            open.file.sync_all()?;
            File::open(&self.folder)?.sync_all()?;
        }
        self.file = Some(open);
        hit(Point::WalAfterSwitch)
    }
}
