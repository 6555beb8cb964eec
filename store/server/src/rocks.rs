//! The backend on RocksDB: one column family per family of the core, one more for the mark.
//!
//! RocksDB's own log is off: the Raft log is the log. A batch and the mark of the entry it comes from are one write, and
//! `atomic_flush` makes all families durable together, so a crash loses a suffix of entries, never a part of one; the
//! Raft log still has that suffix because it is purged only after `flush`.
//!
//! A snapshot is installed in place: the received file is made durable, then a marker file names it, then the families
//! are emptied and filled, then the marker goes. A start that finds the marker installs again.
//!
//! Hazard: a read error panics. A member whose disk fails must stop, not answer; openraft reports the panic as fatal.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read as _, Write as _};
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use bytes::{Bytes, BytesMut};
use keelson_store_core::backend::Visit;
use keelson_store_core::{Cf, Read, State, Write};
use keelson_store_fail::{Point, hit};
use keelson_store_files::bolt::{WriteError, Writer};
use keelson_store_files::content;
use keelson_store_raft::backend::{Backend, CHUNK, Chunks, SnapshotReader, SnapshotWriter};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBRawIteratorWithThreadMode, FlushOptions, Options, ReadOptions, Snapshot, WriteBatch, WriteOptions,
};
use tokio::sync::mpsc;

const MARK_FAMILY: &str = "raft";
const MARK: &[u8] = b"applied";
const INSTALLING: &str = "installing";
/// Bytes of changes written in one batch while a snapshot is installed.
const INSTALL_BATCH: usize = 4 * 1024 * 1024;
/// Chunks of an outgoing snapshot that wait for the network.
const EXPORT_QUEUE: usize = 4;

/// Memory RocksDB may use, bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Blocks read from disk.
    pub block_cache: usize,
    /// Memtables of all families together.
    pub write_buffers: usize,
}

impl Default for Memory {
    fn default() -> Self {
        Memory { block_cache: 32 << 20, write_buffers: 16 << 20 }
    }
}

/// The database of one member.
pub struct Rocks {
    db: Arc<DB>,
    folder: PathBuf,
    received: Arc<AtomicU64>,
    counters: Arc<Counters>,
    counts: Arc<Counts>,
}

/// Bytes written since the start, and how many of them were written when memtables were last emptied.
#[derive(Debug, Default)]
struct Counters {
    written: AtomicU64,
    flushed: AtomicU64,
}

/// All of `Cf::Count`: about a record per 200 keys, read several times for every key that is created.
type Counts = RwLock<BTreeMap<Bytes, Bytes>>;

fn other(error: rocksdb::Error) -> io::Error {
    io::Error::other(error.to_string())
}

fn block_options(cache: &Cache) -> BlockBasedOptions {
    let mut options = BlockBasedOptions::default();
    options.set_block_cache(cache);
    options.set_block_size(16 * 1024);
    options.set_bloom_filter(10.0, false);
    options.set_cache_index_and_filter_blocks(true);
    options.set_pin_l0_filter_and_index_blocks_in_cache(true);
    options
}

fn database_options(memory: Memory) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_atomic_flush(true);
    options.set_db_write_buffer_size(memory.write_buffers);
    options.set_max_background_jobs(2);
    options.set_max_open_files(512);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_max_total_wal_size(1 << 20);
    options.set_bytes_per_sync(1 << 20);
    // There is one writer: applying.
    options.set_allow_concurrent_memtable_write(false);
    options
}

fn family_options(cache: &Cache, memory: Memory) -> Options {
    let mut options = Options::default();
    options.set_block_based_table_factory(&block_options(cache));
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_bottommost_compression_type(DBCompressionType::Zstd);
    options.set_write_buffer_size(memory.write_buffers / 2);
    options.set_max_write_buffer_number(2);
    options.set_level_compaction_dynamic_level_bytes(true);
    options
}

impl Rocks {
    /// Opens or creates the database in `folder`, finishing an interrupted installation of a snapshot.
    ///
    /// # Errors
    /// IO; another process has it open; damaged files.
    pub fn open(folder: &Path, memory: Memory) -> io::Result<Rocks> {
        std::fs::create_dir_all(folder)?;
        let cache = Cache::new_lru_cache(memory.block_cache);
        let names = Cf::ALL.iter().map(|cf| cf.name()).chain(["default", MARK_FAMILY]);
        let families = names
            .map(|name| ColumnFamilyDescriptor::new(name, family_options(&cache, memory)))
            .collect::<Vec<_>>();
        let path = folder.join("db");
        let db = DB::open_cf_descriptors(&database_options(memory), &path, families).map_err(|error| {
            io::Error::other(format!(
                "database {}: {error}; if its files are damaged, remove this member from the cluster, delete its data \
                 directory and add it again",
                path.display()
            ))
        })?;
        let rocks = Rocks {
            db: Arc::new(db),
            folder: folder.to_owned(),
            received: Arc::default(),
            counters: Arc::default(),
            counts: Arc::default(),
        };
        rocks.finish_installation()?;
        rocks.load_counts();
        Ok(rocks)
    }

    fn load_counts(&self) {
        let mut counts = BTreeMap::new();
        let iterator = self.db.raw_iterator_cf_opt(self.family(Cf::Count), scan_options());
        visit_all(iterator, Bound::Unbounded, Bound::Unbounded, false, &mut |key, value| {
            counts.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            ControlFlow::Continue(())
        });
        *self.counts.write().expect("no panic while locked") = counts;
    }

    /// Does to the counts in memory what was done to those on disk.
    fn count(&self, writes: &[Write]) {
        let mut writes = writes.iter().filter(|write| write.cf == Cf::Count).peekable();
        if writes.peek().is_none() {
            return;
        }
        let mut counts = self.counts.write().expect("no panic while locked");
        for write in writes {
            match &write.value {
                Some(value) => drop(counts.insert(write.key.clone(), value.clone())),
                None => drop(counts.remove(&write.key)),
            }
        }
    }

    fn family(&self, cf: Cf) -> &ColumnFamily {
        self.db.cf_handle(cf.name()).expect("opened with every family")
    }

    fn mark_family(&self) -> &ColumnFamily {
        self.db.cf_handle(MARK_FAMILY).expect("opened with every family")
    }

    fn unlogged() -> WriteOptions {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        options
    }

    /// A consistent picture of now; cheap.
    pub fn view(&self) -> View<'_> {
        View { rocks: self, snapshot: self.db.snapshot() }
    }

    /// Another handle on the same database.
    fn again(&self) -> Rocks {
        Rocks {
            db: self.db.clone(),
            folder: self.folder.clone(),
            received: self.received.clone(),
            counters: self.counters.clone(),
            counts: self.counts.clone(),
        }
    }

    /// Bytes on disk and not yet there, and the part of them that live data takes.
    pub fn size(&self) -> (u64, u64) {
        let property = |family: &ColumnFamily, name: &str| {
            self.db.property_int_value_cf(family, name).ok().flatten().unwrap_or(0)
        };
        let (mut total, mut live, mut memory) = (0, 0, 0);
        for cf in Cf::ALL {
            let family = self.family(cf);
            memory += property(family, "rocksdb.cur-size-all-mem-tables");
            total += property(family, "rocksdb.total-sst-files-size");
            live += property(family, "rocksdb.estimate-live-data-size");
        }
        // Memtables are allocated in blocks of a megabyte; what was put into them since they were last emptied says more,
        // as long as we know when that was.
        let unflushed = self.written().saturating_sub(self.counters.flushed.load(Relaxed));
        let memory = memory.min(unflushed);
        (total + memory, live.min(total) + memory)
    }

    /// Bytes written since the start.
    pub fn written(&self) -> u64 {
        self.counters.written.load(Relaxed)
    }

    /// Rewrites files so that the space of deleted data is given back; readers and writers go on.
    pub fn reclaim(&self) {
        for cf in Cf::ALL {
            self.db.compact_range_cf(self.family(cf), None::<&[u8]>, None::<&[u8]>);
        }
    }

    fn batch(&self, writes: &[Write]) -> WriteBatch {
        let families = Cf::ALL.map(|cf| self.family(cf));
        let mut batch = WriteBatch::default();
        for write in writes {
            let family = families[write.cf as usize];
            match &write.value {
                Some(value) => batch.put_cf(family, &write.key, value),
                None => batch.delete_cf(family, &write.key),
            }
        }
        batch
    }

    fn flush_now(&self) -> io::Result<()> {
        let mut families: Vec<&ColumnFamily> = Cf::ALL.iter().map(|cf| self.family(*cf)).collect();
        families.push(self.mark_family());
        let mut options = FlushOptions::default();
        options.set_wait(true);
        let written = self.written();
        self.db.flush_cfs_opt(&families, &options).map_err(other)?;
        self.counters.flushed.fetch_max(written, Relaxed);
        Ok(())
    }

    fn finish_installation(&self) -> io::Result<()> {
        let marker = self.folder.join(INSTALLING);
        let text = match std::fs::read(&marker) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.drop_leftovers(),
            Err(error) => return Err(error),
        };
        let (file, mark): (String, Vec<u8>) = postcard::from_bytes(&text).map_err(|error| {
            io::Error::other(format!("{}: {error}; delete the data directory", marker.display()))
        })?;
        tracing::info!(file, "finishing the installation of a snapshot");
        self.install_file(&self.folder.join(file), &mark)
    }

    /// Removes received files nobody installed.
    fn drop_leftovers(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with(".received") {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn install_file(&self, file: &Path, mark: &[u8]) -> io::Result<()> {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let marker = self.folder.join(INSTALLING);
        let text = postcard::to_stdvec(&(name, mark.to_vec())).expect("plain data");
        write_durably(&marker, &text)?;
        hit(Point::ApplySnapAfterMarker)?;
        self.empty()?;
        hit(Point::ApplySnapAfterEmpty)?;
        let mut file_reader = BufReader::with_capacity(CHUNK, File::open(file)?);
        let mut reader = SnapshotReader::default();
        let mut batch = WriteBatch::default();
        let mut piece = vec![0; CHUNK];
        loop {
            let read = file_reader.read(&mut piece)?;
            reader.push(&piece[..read]);
            while let Some((cf, key, value)) = reader.next_record()? {
                batch.put_cf(self.family(cf), &key, &value);
            }
            if read == 0 || batch.size_in_bytes() > INSTALL_BATCH {
                self.db.write_opt(std::mem::take(&mut batch), &Rocks::unlogged()).map_err(other)?;
            }
            if read == 0 {
                break;
            }
        }
        reader.finish()?;
        let mut batch = WriteBatch::default();
        batch.put_cf(self.mark_family(), MARK, mark);
        self.db.write_opt(batch, &Rocks::unlogged()).map_err(other)?;
        hit(Point::ApplySnapBeforeFlush)?;
        self.flush_now()?;
        hit(Point::ApplySnapAfterFlush)?;
        self.load_counts();
        std::fs::remove_file(&marker)?;
        std::fs::remove_file(file)
    }
}

impl Rocks {
    /// Deletes everything but the mark.
    fn empty(&self) -> io::Result<()> {
        let greatest = [0xff; 64];
        for cf in Cf::ALL {
            let family = self.family(cf);
            let mut batch = WriteBatch::default();
            batch.delete_range_cf(family, [].as_slice(), greatest.as_slice());
            // Keys at or above the bound, if there are such.
            let mut iterator = self.db.raw_iterator_cf_opt(family, scan_options());
            iterator.seek(greatest);
            while let Some(key) = iterator.key() {
                batch.delete_cf(family, key);
                iterator.next();
            }
            iterator.status().map_err(other)?;
            drop(iterator);
            self.db.write_opt(batch, &Rocks::unlogged()).map_err(other)?;
        }
        Ok(())
    }
}

/// Writes a small file so that it is there as a whole, or not at all, after a crash.
pub(crate) fn write_durably(path: &Path, data: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(data)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    let folder = path.parent().ok_or_else(|| io::Error::other("a file has a folder"))?;
    File::open(folder)?.sync_all()
}

/// A consistent picture of the database.
pub struct View<'a> {
    rocks: &'a Rocks,
    snapshot: Snapshot<'a>,
}

fn fail(error: &rocksdb::Error) -> ! {
    panic!("the database cannot be read: {error}; check the disk, then restart this member");
}

fn visit_all(
    mut iterator: DBRawIteratorWithThreadMode<'_, DB>,
    from: Bound<&[u8]>,
    to: Bound<&[u8]>,
    reverse: bool,
    visit: Visit<'_>,
) {
    match (reverse, from, to) {
        (false, Bound::Included(from) | Bound::Excluded(from), _) => iterator.seek(from),
        (false, Bound::Unbounded, _) => iterator.seek_to_first(),
        (true, _, Bound::Included(to) | Bound::Excluded(to)) => iterator.seek_for_prev(to),
        (true, _, Bound::Unbounded) => iterator.seek_to_last(),
    }
    while let Some((key, value)) = iterator.item() {
        let before = match from {
            Bound::Included(from) => key < from,
            Bound::Excluded(from) => key <= from,
            Bound::Unbounded => false,
        };
        let after = match to {
            Bound::Included(to) => key > to,
            Bound::Excluded(to) => key >= to,
            Bound::Unbounded => false,
        };
        if (reverse && before) || (!reverse && after) {
            return;
        }
        // The first key may be the excluded bound itself; it is skipped.
        if !before && !after && visit(key, value) == ControlFlow::Break(()) {
            return;
        }
        if reverse {
            iterator.prev();
        } else {
            iterator.next();
        }
    }
    if let Err(error) = iterator.status() {
        fail(&error);
    }
}

impl Read for View<'_> {
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes> {
        match self.snapshot.get_pinned_cf(self.rocks.family(cf), key) {
            Ok(value) => value.map(|value| Bytes::copy_from_slice(&value)),
            Err(error) => fail(&error),
        }
    }

    fn scan(&self, cf: Cf, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool, visit: Visit<'_>) {
        let iterator = self.snapshot.raw_iterator_cf_opt(self.rocks.family(cf), scan_options());
        visit_all(iterator, from, to, reverse, visit);
    }
}

fn scan_options() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_total_order_seek(true);
    options
}

impl Read for Rocks {
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes> {
        if cf == Cf::Count {
            return self.counts.read().expect("no panic while locked").get(key).cloned();
        }
        match self.db.get_pinned_cf(self.family(cf), key) {
            Ok(value) => value.map(|value| Bytes::copy_from_slice(&value)),
            Err(error) => fail(&error),
        }
    }

    fn scan(&self, cf: Cf, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool, visit: Visit<'_>) {
        if cf == Cf::Count {
            return scan_counts(
                &self.counts.read().expect("no panic while locked"),
                from,
                to,
                reverse,
                visit,
            );
        }
        let iterator = self.db.raw_iterator_cf_opt(self.family(cf), scan_options());
        visit_all(iterator, from, to, reverse, visit);
    }
}

fn scan_counts(
    counts: &BTreeMap<Bytes, Bytes>,
    from: Bound<&[u8]>,
    to: Bound<&[u8]>,
    reverse: bool,
    visit: Visit<'_>,
) {
    if keelson_store_core::backend::nothing_between(from, to) {
        return;
    }
    let mut range = counts.range::<[u8], _>((from, to));
    while let Some((key, value)) = if reverse { range.next_back() } else { range.next() } {
        if visit(key, value).is_break() {
            return;
        }
    }
}

impl Backend for Rocks {
    type Incoming = PathBuf;

    fn commit(&self, writes: &[Write], mark: &[u8]) -> io::Result<()> {
        let mut batch = self.batch(writes);
        batch.put_cf(self.mark_family(), MARK, mark);
        self.counters.written.fetch_add(batch.size_in_bytes() as u64, Relaxed);
        self.db.write_opt(batch, &Rocks::unlogged()).map_err(other)?;
        self.count(writes);
        Ok(())
    }

    fn prune(&self, writes: &[Write]) -> io::Result<()> {
        let batch = self.batch(writes);
        self.counters.written.fetch_add(batch.size_in_bytes() as u64, Relaxed);
        self.db.write_opt(batch, &Rocks::unlogged()).map_err(other)?;
        self.count(writes);
        Ok(())
    }

    fn mark(&self) -> io::Result<Option<Bytes>> {
        self.db.get_cf(self.mark_family(), MARK).map(|mark| mark.map(Bytes::from)).map_err(other)
    }

    async fn flush(&self) -> io::Result<()> {
        let rocks = self.again();
        tokio::task::spawn_blocking(move || rocks.flush_now()).await.map_err(io::Error::other)?
    }

    /// The picture is taken before this returns; a thread of its own then reads it into the queue.
    fn export(&self) -> io::Result<Chunks> {
        let (chunks, receiver) = mpsc::channel(EXPORT_QUEUE);
        let (taken, ready) = std::sync::mpsc::sync_channel(1);
        let rocks = self.again();
        std::thread::Builder::new().name("snapshot".to_owned()).spawn(move || {
            let view = rocks.view();
            if taken.send(()).is_ok() {
                dump(&view, &chunks);
            }
        })?;
        ready.recv().map_err(|_| io::Error::other("the snapshot thread ended early"))?;
        Ok(receiver)
    }

    async fn receive(&self, chunks: Chunks) -> io::Result<PathBuf> {
        let number = self.received.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("{number}.received"));
        match spool(&path, chunks).await {
            Ok(()) => Ok(path),
            Err(error) => {
                // What is left of it goes at the next start at the latest.
                let _ = tokio::fs::remove_file(&path).await;
                Err(error)
            }
        }
    }

    async fn install(&self, incoming: PathBuf, mark: &[u8]) -> io::Result<()> {
        let rocks = self.again();
        let mark = mark.to_vec();
        let work = tokio::task::spawn_blocking(move || rocks.install_file(&incoming, &mark));
        work.await.map_err(io::Error::other)?
    }
}

impl Rocks {
    /// The database as etcd would have it in its file, as of this call: its length in bytes, then its pages. Two passes
    /// over one picture: the first finds where each page goes. A thread of its own reads into a bounded queue.
    ///
    /// # Errors
    /// No thread.
    pub fn etcd_file(
        &self,
        state: State,
        origin: content::Origin,
    ) -> io::Result<(tokio::sync::oneshot::Receiver<u64>, Chunks)> {
        let (chunks, receiver) = mpsc::channel(EXPORT_QUEUE);
        let (length, measured) = tokio::sync::oneshot::channel();
        let (taken, ready) = std::sync::mpsc::sync_channel(1);
        let rocks = self.again();
        std::thread::Builder::new().name("snapshot-file".to_owned()).spawn(move || {
            let view = rocks.view();
            if taken.send(()).is_ok()
                && let Err(error) = write_etcd_file(&view, &state, &origin, length, &chunks)
            {
                // Whoever wanted it may be gone.
                let _ = chunks.blocking_send(Err(error));
            }
        })?;
        ready.recv().map_err(|_| io::Error::other("the snapshot thread ended early"))?;
        Ok((measured, receiver))
    }
}

fn write_etcd_file(
    view: &View<'_>,
    state: &State,
    origin: &content::Origin,
    length: tokio::sync::oneshot::Sender<u64>,
    chunks: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let text = |error: WriteError<io::Error>| io::Error::other(error.to_string());
    let listening = |_: &[u8]| -> io::Result<()> {
        if chunks.is_closed() { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    };
    let mut measure = Writer::measure(listening);
    content::write(&mut measure, state, view, origin).map_err(text)?;
    let layout = measure.finish().map_err(text)?;
    length.send(layout.length()).map_err(|_| io::ErrorKind::BrokenPipe)?;
    let mut pending = BytesMut::with_capacity(CHUNK);
    let send = |pending: &mut BytesMut| {
        let full = std::mem::replace(pending, BytesMut::with_capacity(CHUNK)).freeze();
        chunks.blocking_send(Ok(full)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    };
    let output = |pages: &[u8]| -> io::Result<()> {
        pending.extend_from_slice(pages);
        if pending.len() >= CHUNK { send(&mut pending) } else { Ok(()) }
    };
    let mut writer = Writer::new(output, layout).map_err(text)?;
    content::write(&mut writer, state, view, origin).map_err(text)?;
    writer.finish().map_err(text)?;
    send(&mut pending)
}

/// Sends everything in the view until done or nobody listens.
fn dump(view: &View<'_>, chunks: &mpsc::Sender<io::Result<Bytes>>) {
    let mut writer = SnapshotWriter::default();
    let mut gone = false;
    for cf in Cf::ALL {
        if gone {
            return;
        }
        view.scan(cf, Bound::Unbounded, Bound::Unbounded, false, &mut |key, value| {
            if let Some(chunk) = writer.put(cf, key, value) {
                gone = chunks.blocking_send(Ok(chunk)).is_err();
            }
            if gone { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    }
    // Whoever wanted it may be gone.
    let _ = chunks.blocking_send(Ok(writer.finish()));
}

/// Writes a snapshot stream into a file, durably, checking it on the way.
async fn spool(path: &Path, mut chunks: Chunks) -> io::Result<()> {
    let mut file = tokio::fs::File::create(path).await?;
    let mut reader = SnapshotReader::default();
    while let Some(chunk) = chunks.recv().await {
        let chunk = chunk?;
        tokio::io::AsyncWriteExt::write_all(&mut file, &chunk).await?;
        reader.push(&chunk);
        while reader.next_record()?.is_some() {}
    }
    reader.finish()?;
    hit(Point::SnapBeforeSync)?;
    file.sync_all().await
}
