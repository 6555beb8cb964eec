//! How the log is written: records with a checksum, and how a damaged end is told from a damaged middle.
//!
//! | bytes | meaning |
//! |---|---|
//! | 4 | magic |
//! | 4 | length of the body |
//! | 4 | crc32c of everything after this field |
//! | 4 | `synced`: how far this file was durable when the record was made |
//! | … | body: postcard of `Record` |
//!
//! A crash may leave any mix of written and unwritten pages past the last sync. So a bad record at offset `p` of the
//! newest file is a torn end, unless a good record after it says `synced > p`: then `p` had been durable, bytes have
//! rotted, and entries that were acknowledged are gone: the member must not start.

use bytes::{BufMut, Bytes};
use serde::{Deserialize, Serialize};

use crate::types::{Entry, LogId, Vote};

const MAGIC: u32 = 0x6b77_616c;
/// Bytes before the body.
pub const HEADER: usize = 16;

/// What the log stores, in order; the state of the log is their fold.
#[derive(Debug, Serialize, Deserialize)]
pub enum Record {
    /// One entry, at the end.
    Entry(Entry),
    /// The vote, replacing the one before.
    Vote(Vote),
    /// Entries after this one are gone (`None`: all).
    Truncate(Option<LogId>),
    /// Entries up to this one are gone.
    Purge(LogId),
    /// The last entry known to be committed; a hint.
    Committed(Option<LogId>),
}

/// Why a file was not read to its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Damage {
    /// Nothing durable is missing from here on.
    Torn(u64),
    /// Durable bytes are damaged here.
    Corrupt(u64),
}

/// Encodes a record; `synced` is the durable length of its file, bytes.
///
/// # Panics
/// A record above 4 GiB; requests are bounded far below.
pub fn encode(record: &Record, synced: u64) -> Bytes {
    let mut out = Vec::with_capacity(HEADER + 64 + weight(record));
    out.put_u32(MAGIC);
    out.put_u32(0);
    out.put_u32(0);
    out.put_u32(u32::try_from(synced).expect("a segment is far below 4 GiB"));
    let mut out = postcard::to_extend(record, out).expect("a record is plain data");
    let length = u32::try_from(out.len() - HEADER).expect("a record is far below 4 GiB");
    out[4..8].copy_from_slice(&length.to_be_bytes());
    let sum = crc32c::crc32c(&out[12..]);
    out[8..12].copy_from_slice(&sum.to_be_bytes());
    out.into()
}

/// About what a record takes, bytes.
fn weight(record: &Record) -> usize {
    match record {
        Record::Entry(entry) => super::size(entry),
        _ => 0,
    }
}

/// A record read from a file.
pub struct Found {
    /// Where it starts.
    pub offset: u64,
    /// With its header.
    pub length: usize,
    /// What it says.
    pub record: Record,
}

fn number(data: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(data[at..at + 4].try_into().expect("four bytes"))
}

/// The record at the front of `data`: its `synced` field, its length, and its body; `None` when it is not whole.
fn check(data: &[u8]) -> Option<(u64, usize, &[u8])> {
    if data.len() < HEADER || number(data, 0) != MAGIC {
        return None;
    }
    let end = HEADER.checked_add(number(data, 4) as usize)?;
    if data.len() < end || crc32c::crc32c(&data[12..end]) != number(data, 8) {
        return None;
    }
    Some((u64::from(number(data, 12)), end, &data[HEADER..end]))
}

/// Decodes one record that is known to be whole.
pub fn decode(data: &[u8]) -> Option<Record> {
    check(data).and_then(|(_, _, body)| postcard::from_bytes(body).ok())
}

/// All records of a file, and the damage that ended it, if any.
pub fn scan(data: &[u8]) -> (Vec<Found>, Option<Damage>) {
    let mut found = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let next =
            check(&data[at..]).and_then(|(_, length, body)| Some((length, postcard::from_bytes(body).ok()?)));
        let Some((length, record)) = next else {
            return (found, Some(judge(data, at)));
        };
        found.push(Found { offset: at as u64, length, record });
        at += length;
    }
    (found, None)
}

/// Looks past a bad record at `bad` for a good one that proves it had been durable. Zeros to the end are space set aside.
fn judge(data: &[u8], bad: usize) -> Damage {
    if data[bad..].iter().all(|byte| *byte == 0) {
        return Damage::Torn(bad as u64);
    }
    #[cfg(feature = "planted")]
    if keelson_plant::is(10) {
        return Damage::Torn(bad as u64);
    }
    let magic = MAGIC.to_be_bytes();
    let mut at = bad + 1;
    while let Some(step) = data.get(at..).and_then(|rest| rest.windows(4).position(|four| four == magic)) {
        at += step;
        match check(&data[at..]) {
            Some((synced, _, _)) if synced > bad as u64 => return Damage::Corrupt(bad as u64),
            Some((_, length, _)) => at += length,
            None => at += 1,
        }
    }
    Damage::Torn(bad as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(records: usize, synced: impl Fn(usize, usize) -> u64) -> Vec<u8> {
        let mut data = Vec::new();
        for i in 0..records {
            let at = data.len();
            data.extend_from_slice(&encode(&Record::Committed(None), synced(i, at)));
        }
        data
    }

    #[test]
    fn every_cut_is_a_torn_tail() {
        let data = file(4, |_, at| at as u64);
        let one = data.len() / 4;
        for cut in 0..data.len() {
            let (found, damage) = scan(&data[..cut]);
            assert_eq!(found.len(), cut / one);
            let whole = cut % one == 0;
            assert_eq!(damage, (!whole).then_some(Damage::Torn((cut / one * one) as u64)), "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_bit_in_durable_bytes_is_corruption() {
        let data = file(4, |_, at| at as u64);
        let one = data.len() / 4;
        for at in 0..3 * one {
            let mut bad = data.clone();
            bad[at] ^= 0x40;
            assert_eq!(scan(&bad).1, Some(Damage::Corrupt((at / one * one) as u64)), "flip at {at}");
        }
    }

    #[test]
    fn a_hole_in_one_unsynced_group_is_a_torn_tail() {
        let data = file(4, |_, _| 0);
        let one = data.len() / 4;
        let mut bad = data;
        bad[one..2 * one].fill(0);
        assert_eq!(scan(&bad).1, Some(Damage::Torn(one as u64)));
    }
}
