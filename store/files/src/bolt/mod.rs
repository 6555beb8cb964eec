//! The bbolt file format: one file of fixed-size pages, holding B+trees ("buckets") in a root bucket of their names.
//!
//! | page | begins with 16 bytes: id (8), flags (2), count (2), overflow (4); then |
//! |---|---|
//! | meta (0 and 1) | magic, version, page size, flags (4 each), root page, sequence, freelist page, pages in use, transaction, FNV-1a of all that (8 each) |
//! | freelist | ids of free pages (8 each); a count of 0xffff means that the first of them is the count |
//! | branch | elements of 16 bytes: offset of the key from the element, its length (4 each), child page (8); then the keys |
//! | leaf | elements of 16 bytes: flags, offset from the element, key length, value length (4 each); then keys and values |
//!
//! Numbers are little-endian. A page that needs more room runs on over `overflow` pages behind it. A leaf element with
//! flag 1 is a bucket: its value is root page and sequence (8 each); root page 0 means that the bucket's only leaf page
//! follows in the value itself. Of two sound meta pages the one of the later transaction counts.
//!
//! Reading trusts nothing: any bytes give content or a [`BoltError`], in memory bounded by the largest page.

mod read;
mod write;

use std::fs::File;
use std::io;

pub use read::{Bucket, Cursor, Database, Element};
pub use write::{Layout, MAX_KEY, Output, WriteError, Writer};

pub(crate) const MAGIC: u32 = 0xED0C_DAED;
pub(crate) const VERSION: u32 = 2;
pub(crate) const HEADER: usize = 16;
pub(crate) const ELEMENT: usize = 16;
pub(crate) const META: usize = 64;
pub(crate) const BUCKET_HEADER: usize = 16;
pub(crate) const BRANCH_PAGE: u16 = 0x01;
pub(crate) const LEAF_PAGE: u16 = 0x02;
pub(crate) const META_PAGE: u16 = 0x04;
pub(crate) const FREELIST_PAGE: u16 = 0x10;
pub(crate) const BUCKET_LEAF: u32 = 0x01;
/// In place of the freelist's page: it was not written, whoever needs it finds the pages nobody refers to.
pub(crate) const NO_FREELIST: u64 = u64::MAX;

/// The page size of files written here, bytes; what bbolt takes on machines with pages of that size.
pub const PAGE_SIZE: usize = 4096;

/// Where a database is read from, by position.
pub trait Source {
    /// Length in bytes.
    ///
    /// # Errors
    /// IO.
    fn length(&self) -> io::Result<u64>;

    /// Fills the buffer from a position on.
    ///
    /// # Errors
    /// IO; the source ends before.
    fn read_at(&self, position: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Source for File {
    fn length(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn read_at(&self, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buffer, position)
    }
}

impl Source for Vec<u8> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(position).ok();
        let found = from.and_then(|from| self.get(from..from.checked_add(buffer.len())?));
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Why bytes are no database, or a damaged one.
#[derive(Debug, thiserror::Error)]
pub enum BoltError {
    /// Reading failed.
    #[error("reading: {0}")]
    Io(#[from] io::Error),
    /// No sound meta page.
    #[error("invalid database")]
    Invalid,
    /// A meta page of another format version.
    #[error("version mismatch")]
    Version,
    /// A page is not what what points at it says.
    #[error("page {page}: {problem}")]
    Page {
        /// Its number.
        page: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// FNV-1a, 64 bits: what meta pages are summed with.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
