//! The seam below the state machine: stored state that can be read, changed in atomic batches, exported and replaced.
//!
//! Order of duties: `commit` makes a batch and its mark visible together; `flush` makes everything committed survive a
//! crash (the log is purged only after it). `export` is a consistent picture of the moment of the call.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::ops::Bound;
use std::ops::ControlFlow;
use std::sync::{Mutex, RwLock};

use bytes::{BufMut, Bytes, BytesMut};
use keelson_store_core::backend::{MemoryBackend, Visit};
use keelson_store_core::{Cf, Read, Write};
use tokio::sync::mpsc;

/// The content of a snapshot on its way: chunks of a few hundred KiB; an error ends it.
pub type Chunks = mpsc::Receiver<io::Result<Bytes>>;

/// Stored state of one member.
pub trait Backend: Read + Send + Sync + 'static {
    /// A snapshot wholly received and checked, ready to install.
    type Incoming: Send + 'static;

    /// Applies the writes and replaces the mark (which log entry they end at), atomically.
    ///
    /// # Errors
    /// IO; the member must stop.
    fn commit(&self, writes: &[Write], mark: &[u8]) -> io::Result<()>;

    /// Writes that belong to no log entry (space given back): the mark stays.
    ///
    /// # Errors
    /// IO.
    fn prune(&self, writes: &[Write]) -> io::Result<()>;

    /// The mark of the newest commit.
    ///
    /// # Errors
    /// IO.
    fn mark(&self) -> io::Result<Option<Bytes>>;

    /// Returns when all commits so far survive a crash.
    fn flush(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Everything stored, as of this call, mark excluded.
    ///
    /// # Errors
    /// IO.
    fn export(&self) -> io::Result<Chunks>;

    /// Takes in what another member's `export` produced, durably, without touching the state.
    fn receive(&self, chunks: Chunks) -> impl Future<Output = io::Result<Self::Incoming>> + Send;

    /// Replaces the state by a received snapshot and sets the mark; a crash in between must end in the old or the new.
    fn install(&self, incoming: Self::Incoming, mark: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
}

/// The family byte of the record that ends a snapshot stream.
const END: u8 = 0xff;

/// Writes a snapshot stream: records of family (1 byte), key length, value length (4 bytes each), key, value; at the end
/// one that says how many there were and their crc32c, so that a stream cut short or changed is never installed.
#[derive(Default)]
pub struct SnapshotWriter {
    buffer: BytesMut,
    records: u64,
    sum: u32,
}

impl SnapshotWriter {
    /// Adds one record; a chunk comes back when one is full.
    pub fn put(&mut self, cf: Cf, key: &[u8], value: &[u8]) -> Option<Bytes> {
        let start = self.buffer.len();
        record(&mut self.buffer, cf as u8, key, value);
        self.sum = crc32c::crc32c_append(self.sum, &self.buffer[start..]);
        self.records += 1;
        (self.buffer.len() >= CHUNK).then(|| self.buffer.split().freeze())
    }

    /// The last chunk.
    pub fn finish(mut self) -> Bytes {
        record(&mut self.buffer, END, &self.records.to_be_bytes(), &self.sum.to_be_bytes());
        self.buffer.freeze()
    }
}

fn record(out: &mut BytesMut, family: u8, key: &[u8], value: &[u8]) {
    out.reserve(9 + key.len() + value.len());
    out.put_u8(family);
    out.put_u32(key.len() as u32);
    out.put_u32(value.len() as u32);
    out.put_slice(key);
    out.put_slice(value);
}

/// Reads a snapshot stream from pieces of any size.
#[derive(Default)]
pub struct SnapshotReader {
    buffer: BytesMut,
    records: u64,
    sum: u32,
    ended: bool,
}

fn bad(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot stream: {text}"))
}

impl SnapshotReader {
    /// Adds a piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next record; `None` when more is needed, or nothing more comes.
    ///
    /// # Errors
    /// Not a snapshot of ours, or damaged.
    pub fn next_record(&mut self) -> io::Result<Option<(Cf, Bytes, Bytes)>> {
        if self.ended || self.buffer.len() < 9 {
            return Ok(None);
        }
        let number =
            |at: usize| u32::from_be_bytes(self.buffer[at..at + 4].try_into().expect("four bytes")) as usize;
        let (key, value) = (number(1), number(5));
        if self.buffer.len() < 9 + key + value {
            return Ok(None);
        }
        let mut record = self.buffer.split_to(9 + key + value).freeze();
        let family = record[0];
        if family == END {
            let same = record[9..] == [&self.records.to_be_bytes()[..], &self.sum.to_be_bytes()].concat();
            self.ended = true;
            return if same { Ok(None) } else { Err(bad("the checksum does not match")) };
        }
        let cf =
            Cf::ALL.into_iter().find(|cf| *cf as u8 == family).ok_or_else(|| bad("unknown column family"))?;
        self.sum = crc32c::crc32c_append(self.sum, &record);
        self.records += 1;
        let _head = record.split_to(9);
        let key = record.split_to(key);
        Ok(Some((cf, key, record)))
    }

    /// Whether everything was there.
    ///
    /// # Errors
    /// The stream was cut short, or goes on behind its end.
    pub fn finish(&self) -> io::Result<()> {
        if self.ended && self.buffer.is_empty() { Ok(()) } else { Err(bad("it ends early")) }
    }
}

/// How much of a snapshot goes into one chunk, bytes.
pub const CHUNK: usize = 256 * 1024;

/// The backend in memory, for tests and simulation: what was flushed survives a `crash`, and of the commits since then
/// as many as the caller says, for a real backend may flush on its own at any time.
#[derive(Default)]
pub struct MemoryStore {
    live: RwLock<Contents>,
    durable: Mutex<Durable>,
}

#[derive(Default)]
struct Durable {
    flushed: Contents,
    /// Commits and prunes since the last flush, in order; a prune has no mark.
    since: Vec<(Vec<Write>, Option<Bytes>)>,
}

#[derive(Clone, Default)]
struct Contents {
    state: MemoryBackend,
    mark: Option<Bytes>,
}

impl MemoryStore {
    /// What a machine that loses power now finds after its restart; `keep` is told how many batches were not flushed
    /// and answers how many of them, from the oldest on, were written all the same.
    pub fn crash(&self, keep: impl FnOnce(usize) -> usize) -> MemoryStore {
        let durable = self.durable.lock().expect("no panic while locked");
        let mut found = durable.flushed.clone();
        let kept = keep(durable.since.len()).min(durable.since.len());
        durable.since[..kept].iter().for_each(|(writes, mark)| found.write(writes, mark.as_ref()));
        let durable = Durable { flushed: found.clone(), since: Vec::new() };
        MemoryStore { live: RwLock::new(found), durable: Mutex::new(durable) }
    }

    fn write(&self, writes: &[Write], mark: Option<Bytes>) {
        let mut live = self.live.write().expect("no panic while locked");
        live.write(writes, mark.as_ref());
        self.durable.lock().expect("no panic while locked").since.push((writes.to_vec(), mark));
    }

    /// A copy of the live state.
    pub fn contents(&self) -> MemoryBackend {
        self.live.read().expect("no panic while locked").state.clone()
    }
}

impl Contents {
    fn write(&mut self, writes: &[Write], mark: Option<&Bytes>) {
        self.state.write(writes);
        if let Some(mark) = mark {
            self.mark = Some(mark.clone());
        }
    }
}

impl Read for MemoryStore {
    fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes> {
        self.live.read().expect("no panic while locked").state.get(cf, key)
    }

    fn scan(&self, cf: Cf, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool, visit: Visit<'_>) {
        self.live.read().expect("no panic while locked").state.scan(cf, from, to, reverse, visit);
    }
}

impl Backend for MemoryStore {
    type Incoming = BTreeMap<(u8, Bytes), (Cf, Bytes)>;

    fn commit(&self, writes: &[Write], mark: &[u8]) -> io::Result<()> {
        self.write(writes, Some(Bytes::copy_from_slice(mark)));
        Ok(())
    }

    fn prune(&self, writes: &[Write]) -> io::Result<()> {
        self.write(writes, None);
        Ok(())
    }

    fn mark(&self) -> io::Result<Option<Bytes>> {
        Ok(self.live.read().expect("no panic while locked").mark.clone())
    }

    async fn flush(&self) -> io::Result<()> {
        let flushed = self.live.read().expect("no panic while locked").clone();
        *self.durable.lock().expect("no panic while locked") = Durable { flushed, since: Vec::new() };
        Ok(())
    }

    fn export(&self) -> io::Result<Chunks> {
        let state = self.contents();
        let mut writer = SnapshotWriter::default();
        let mut chunks = Vec::new();
        for cf in Cf::ALL {
            state.scan(cf, Bound::Unbounded, Bound::Unbounded, false, &mut |key, value| {
                chunks.extend(writer.put(cf, key, value));
                ControlFlow::Continue(())
            });
        }
        chunks.push(writer.finish());
        let (sender, receiver) = mpsc::channel(chunks.len());
        for chunk in chunks {
            let sent = sender.try_send(Ok(chunk));
            assert!(sent.is_ok(), "the channel has room for every chunk");
        }
        Ok(receiver)
    }

    async fn receive(&self, mut chunks: Chunks) -> io::Result<Self::Incoming> {
        let mut incoming = BTreeMap::new();
        let mut reader = SnapshotReader::default();
        while let Some(chunk) = chunks.recv().await {
            reader.push(&chunk?);
            while let Some((cf, key, value)) = reader.next_record()? {
                incoming.insert((cf as u8, key), (cf, value));
            }
        }
        reader.finish().map(|()| incoming)
    }

    async fn install(&self, incoming: Self::Incoming, mark: &[u8]) -> io::Result<()> {
        let mut state = MemoryBackend::default();
        let writes: Vec<Write> = incoming
            .into_iter()
            .map(|((_, key), (cf, value))| Write { cf, key, value: Some(value) })
            .collect();
        state.write(&writes);
        let contents = Contents { state, mark: Some(Bytes::copy_from_slice(mark)) };
        let durable = Durable { flushed: contents.clone(), since: Vec::new() };
        *self.durable.lock().expect("no panic while locked") = durable;
        *self.live.write().expect("no panic while locked") = contents;
        Ok(())
    }
}
