//! Logs come back as they were written; torn ends are ends, damage is an error, and nothing panics.

use keelson_store_files::messages::{Entry, HardState, Metadata, Record};
use keelson_store_files::wal::{Log, WalError};
use proptest::prelude::*;
use prost::Message;

/// Writes frames as etcd does.
#[derive(Default)]
struct LogWriter {
    file: Vec<u8>,
    sum: u32,
}

impl LogWriter {
    fn record(&mut self, kind: i64, data: Vec<u8>) {
        if kind != 4 {
            self.sum = crc32c::crc32c_append(self.sum, &data);
        }
        let data = (kind != 4).then(|| data.into());
        let record = Record { kind, crc: self.sum, data }.encode_to_vec();
        let padding = (8 - record.len() % 8) % 8;
        let mut field = record.len() as u64;
        if padding > 0 {
            field |= (0x80 | padding as u64) << 56;
        }
        self.file.extend_from_slice(&field.to_le_bytes());
        self.file.extend_from_slice(&record);
        self.file.resize(self.file.len() + padding, 0);
    }

    fn begin() -> LogWriter {
        let mut log = LogWriter::default();
        log.record(4, Vec::new());
        log.record(1, Metadata { node_id: 7, cluster_id: 9 }.encode_to_vec());
        log
    }

    fn entry(&mut self, index: u64, term: u64, data: &[u8]) {
        let data = Some(data.to_vec().into());
        self.record(2, Entry { kind: 0, term, index, data }.encode_to_vec());
    }

    /// Goes on in another file.
    fn cut(&mut self) -> Vec<u8> {
        let file = std::mem::take(&mut self.file);
        self.record(4, Vec::new());
        self.record(1, Metadata { node_id: 7, cluster_id: 9 }.encode_to_vec());
        file
    }
}

fn read(after: u64, files: &[Vec<u8>]) -> Result<Log, WalError> {
    let mut log = Log::after(after);
    for (at, file) in files.iter().enumerate() {
        log.read_file(&format!("file {at}"), &file[..], file.len() as u64, at + 1 == files.len())?;
    }
    Ok(log)
}

#[test]
fn entries_behind_an_index_are_kept_over_files_and_replaced_by_later_ones() {
    let mut log = LogWriter::begin();
    log.entry(1, 1, b"one");
    log.entry(2, 1, b"two");
    log.entry(3, 1, b"lost");
    let first = log.cut();
    log.entry(3, 2, b"three");
    log.record(3, HardState { term: 2, vote: 7, commit: 3 }.encode_to_vec());
    let mut second = log.file;
    second.resize(second.len() + 4096, 0);
    let read = read(1, &[first, second]).expect("read");
    let found: Vec<(u64, u64, &[u8])> =
        read.entries.iter().map(|e| (e.index, e.term, e.data.as_deref().expect("data"))).collect();
    assert_eq!(found, [(2, 1, &b"two"[..]), (3, 2, &b"three"[..])]);
    assert_eq!(read.metadata, Some(Metadata { node_id: 7, cluster_id: 9 }));
    assert_eq!(read.hard_state.commit, 3);
}

#[test]
fn gaps_changed_bytes_and_strange_files_are_errors() {
    let mut log = LogWriter::begin();
    log.entry(5, 1, b"five");
    let whole = log.file.clone();
    assert!(read(3, std::slice::from_ref(&whole)).is_err(), "entry 4 is missing");
    assert!(read(4, std::slice::from_ref(&whole)).is_ok());
    let mut changed = whole.clone();
    let at = changed.windows(4).position(|window| window == b"five").expect("there");
    changed[at] = b'F';
    assert!(read(4, &[changed]).is_err(), "a byte has changed");
    let mut other = LogWriter::begin();
    other.entry(6, 1, b"six");
    assert!(read(4, &[whole, other.file]).is_err(), "a file of another log");
}

#[test]
fn a_torn_end_is_the_end_and_only_in_the_last_file() {
    let mut log = LogWriter::begin();
    log.entry(1, 1, b"kept");
    let kept = log.file.len();
    log.entry(2, 1, &[7; 3000]);
    let whole = log.file;
    for cut in kept..whole.len() {
        let read = read(0, &[whole[..cut].to_vec()]).expect("a torn end");
        assert_eq!(read.entries.len(), 1, "cut at {cut}");
    }
    // A sector that was never written.
    let mut torn = whole.clone();
    torn[1024..1536].fill(0);
    assert_eq!(read(0, std::slice::from_ref(&torn)).expect("a torn end").entries.len(), 1);
    let next = LogWriter::begin().file;
    assert!(read(0, &[torn, next]).is_err());
}

proptest! {
    #[test]
    fn any_bytes_end_in_a_log_or_an_error(
        harm in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut log = LogWriter::begin();
        for index in 1..20 {
            log.entry(index, 1, &[index as u8; 50]);
        }
        let mut file = log.file;
        file.extend_from_slice(&noise);
        for (at, byte) in harm {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Ok(log) = read(0, &[file]) {
            prop_assert!(log.entries.windows(2).all(|pair| pair[0].index + 1 == pair[1].index));
        }
    }
}
