//! etcd's write-ahead log: what was not yet in the database when the process ended.
//!
//! A folder of files `<sequence>-<first index>.wal`, 16 hexadecimal digits each, filled up with zeros. A file is frames:
//! a length (8 bytes, little-endian; if negative its top byte's low 3 bits are the padding behind the record) and a
//! record. Records: 1 metadata, 2 entry, 3 hard state, 4 checksum so far, 5 snapshot mark. The checksum (crc32c) runs
//! over the data of all records of all files.
//!
//! A torn end (the last file ends within a record, or a sector of its last record was never written) ends the log: what
//! was acknowledged is before it. Anything else that does not fit is damage and an error.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use prost::Message;

use crate::messages::{Entry, HardState, Metadata, Record};

/// A disk writes such pieces as a whole, bytes.
const SECTOR: usize = 512;
const FRAME: u64 = 8;

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// Reading failed.
    #[error("{file}: {source}")]
    Io {
        /// File or folder.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// Bytes that were written and have changed, or files that are missing.
    #[error("{file}, byte {offset}: {problem}")]
    Damaged {
        /// File.
        file: String,
        /// Where the frame begins.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
}

/// What a log says.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// Whose it is.
    pub metadata: Option<Metadata>,
    /// The newest one.
    pub hard_state: HardState,
    /// Entries behind the index asked for, consecutive.
    pub entries: Vec<Entry>,
    after: u64,
    sum: u32,
}

impl Log {
    /// An empty log that will keep the entries behind an index.
    pub fn after(index: u64) -> Log {
        Log { after: index, ..Log::default() }
    }

    /// Reads a folder's files in order, keeping the entries behind `after`.
    ///
    /// # Errors
    /// IO, damage, a missing file.
    pub fn read_folder(folder: &Path, after: u64) -> Result<Log, WalError> {
        let failed = |file: &Path, source| WalError::Io { file: file.display().to_string(), source };
        let mut files: Vec<(u64, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(|error| failed(folder, error))? {
            let path = entry.map_err(|error| failed(folder, error))?.path();
            if let Some(sequence) = sequence(&path) {
                files.push((sequence, path));
            }
        }
        files.sort();
        if let Some(pair) = files.windows(2).find(|pair| pair[0].0 + 1 != pair[1].0) {
            return Err(WalError::Damaged {
                file: pair[1].1.display().to_string(),
                offset: 0,
                problem: "the file before it is missing".to_owned(),
            });
        }
        let mut log = Log::after(after);
        let count = files.len();
        for (at, (_, path)) in files.iter().enumerate() {
            let file = std::fs::File::open(path).map_err(|error| failed(path, error))?;
            let length = file.metadata().map_err(|error| failed(path, error))?.len();
            let name = path.display().to_string();
            log.read_file(&name, io::BufReader::with_capacity(1 << 20, file), length, at + 1 == count)?;
        }
        Ok(log)
    }

    /// Reads the next file of `length` bytes.
    ///
    /// # Errors
    /// IO, damage.
    pub fn read_file(
        &mut self,
        name: &str,
        from: impl Read,
        length: u64,
        last: bool,
    ) -> Result<(), WalError> {
        let mut file = WalFile { name, from, offset: 0, length, last };
        while let Some(frame) = file.frame()? {
            let Some(record) = file.decoded(&frame, |bytes| Record::decode(bytes).ok())? else { break };
            if record.kind != 4 {
                let data = record.data.as_deref().unwrap_or_default();
                let sum = crc32c::crc32c_append(self.sum, data);
                let sound = file.decoded(&frame, |_| (sum == record.crc).then_some(()))?;
                if sound.is_none() {
                    break;
                }
                self.sum = sum;
            }
            self.take(&record).map_err(|problem| file.damaged(problem))?;
            file.offset += FRAME + frame.bytes.len() as u64;
        }
        Ok(())
    }

    fn take(&mut self, record: &Record) -> Result<(), String> {
        let data = record.data.clone().unwrap_or_default();
        let text = |error: prost::DecodeError| format!("a record does not decode: {error}");
        match record.kind {
            1 => {
                let metadata = Metadata::decode(data).map_err(text)?;
                if self.metadata.as_ref().is_some_and(|known| *known != metadata) {
                    return Err("it belongs to another member than the files before it".to_owned());
                }
                self.metadata = Some(metadata);
            }
            2 => self.entry(Entry::decode(data).map_err(text)?)?,
            3 => self.hard_state = HardState::decode(data).map_err(text)?,
            4 if self.sum != 0 && self.sum != record.crc => {
                return Err("it does not continue the files before it".to_owned());
            }
            4 => self.sum = record.crc,
            5 => {}
            other => return Err(format!("a record of unknown kind {other}")),
        }
        Ok(())
    }

    /// An entry replaces what stood at its index, and everything behind that.
    fn entry(&mut self, entry: Entry) -> Result<(), String> {
        if entry.index <= self.after {
            self.entries.clear();
            return Ok(());
        }
        let position = entry.index - self.after - 1;
        if position > self.entries.len() as u64 {
            let expected = self.after + self.entries.len() as u64 + 1;
            return Err(format!("entry {} was found where {expected} was expected", entry.index));
        }
        self.entries.truncate(position as usize);
        self.entries.push(entry);
        Ok(())
    }
}

/// The sequence number in a log file's name.
fn sequence(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(".wal")?;
    let (sequence, index) = name.split_once('-')?;
    u64::from_str_radix(index, 16).ok()?;
    u64::from_str_radix(sequence, 16).ok()
}

struct WalFile<'a, R> {
    name: &'a str,
    from: R,
    /// Where the current frame begins.
    offset: u64,
    length: u64,
    last: bool,
}

struct Frame {
    /// Padding included.
    bytes: Vec<u8>,
    record: usize,
}

impl<R: Read> WalFile<'_, R> {
    fn damaged(&self, problem: impl Into<String>) -> WalError {
        WalError::Damaged { file: self.name.to_owned(), offset: self.offset, problem: problem.into() }
    }

    /// The end of the log if the last file simply stops here.
    fn stops<T>(&self) -> Result<Option<T>, WalError> {
        if self.last { Ok(None) } else { Err(self.damaged("it ends within a record")) }
    }

    /// The next frame; `None` at the end.
    fn frame(&mut self) -> Result<Option<Frame>, WalError> {
        let left = self.length.saturating_sub(self.offset);
        if left == 0 {
            return Ok(None);
        }
        if left < FRAME {
            return self.stops();
        }
        let mut field = [0; FRAME as usize];
        self.read(&mut field)?;
        let field = u64::from_le_bytes(field);
        if field == 0 {
            return Ok(None);
        }
        let record = field & !(0xff << 56);
        let padding = if field >> 63 == 1 { field >> 56 & 7 } else { 0 };
        if record + padding > left - FRAME {
            return self.stops();
        }
        let mut bytes = vec![0; (record + padding) as usize];
        self.read(&mut bytes)?;
        Ok(Some(Frame { bytes, record: record as usize }))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<(), WalError> {
        let name = self.name;
        self.from.read_exact(buffer).map_err(|source| WalError::Io { file: name.to_owned(), source })
    }

    /// What `look` makes of a record; if nothing, the log ends here when the record was torn.
    fn decoded<T>(&self, frame: &Frame, look: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>, WalError> {
        match look(&frame.bytes[..frame.record]) {
            Some(found) => Ok(Some(found)),
            None if self.last && self.torn(&frame.bytes) => Ok(None),
            None => Err(self.damaged("a record's checksum does not match")),
        }
    }

    /// Whether some sector of the frame was never written.
    fn torn(&self, bytes: &[u8]) -> bool {
        let begin = ((self.offset + FRAME) % SECTOR as u64) as usize;
        let (first, rest) = bytes.split_at(bytes.len().min(SECTOR - begin));
        let zero = |sector: &[u8]| !sector.is_empty() && sector.iter().all(|byte| *byte == 0);
        zero(first) || rest.chunks(SECTOR).any(zero)
    }
}
