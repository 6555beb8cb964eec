//! How records are written: the bytes of keys and values in every column family.
//!
//! | family | key | value |
//! |---|---|---|
//! | Current | user key | create, mod, sub, version, lease, then the value to the end |
//! | History | main (8 bytes), sub (4) | kind, key length, key, create, version, lease, then the value to the end |
//! | KeyHistory | escaped user key, main (8), sub (4) | kind |
//! | Lease | id (8) | TTL in s, expiry in ms of lease time |
//! | LeaseKey | id (8), user key | empty |
//! | Count | level (1), first key | keys, children |
//! | Meta | name | postcard |
//!
//! Fixed-size numbers are big-endian, so byte order is number order (lease ids have their sign bit flipped). Numbers in
//! values are LEB128, signed ones zigzag. The escaped key writes 0x00 as 0x00 0xff and ends with 0x00 0x01: no key is
//! a prefix of another and order is kept. A record that does not decode is corruption and panics: the member must stop
//! rather than answer from it; nothing a client sends reaches these decoders.

use bytes::{BufMut, Bytes, BytesMut};

use crate::command::LeaseId;
use crate::response::KeyValue;

/// A point in the store's history: `sub` numbers the changes within one write transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    pub main: i64,
    pub sub: u32,
}

impl Revision {
    pub(crate) const LENGTH: usize = 12;

    pub fn encode(self) -> [u8; Revision::LENGTH] {
        debug_assert!(self.main >= 0, "revisions are not negative");
        let mut bytes = [0; Revision::LENGTH];
        bytes[..8].copy_from_slice(&self.main.to_be_bytes());
        bytes[8..].copy_from_slice(&self.sub.to_be_bytes());
        bytes
    }

    /// Panics on a wrong length (corruption).
    pub fn decode(bytes: &[u8]) -> Revision {
        let (main, sub) = bytes.split_at_checked(8).expect("a revision has 12 bytes");
        Revision {
            main: i64::from_be_bytes(main.try_into().expect("8 bytes")),
            sub: u32::from_be_bytes(sub.try_into().expect("a revision has 12 bytes")),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Put,
    Tombstone,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Kind::Put => 0,
            Kind::Tombstone => 1,
        }
    }

    fn of(byte: u8) -> Kind {
        match byte {
            0 => Kind::Put,
            1 => Kind::Tombstone,
            other => panic!("corrupt record: kind {other}; restore this member from a snapshot"),
        }
    }
}

fn put_number(out: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

fn put_signed(out: &mut BytesMut, number: i64) {
    put_number(out, ((number << 1) ^ (number >> 63)) as u64);
}

/// Reads numbers off the front of a record.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) =
            self.rest.split_first().expect("corrupt record: it ends early; restore this member");
        self.rest = rest;
        *first
    }

    fn number(&mut self) -> u64 {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte();
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return number;
            }
        }
        panic!("corrupt record: a number has more than 10 bytes; restore this member from a snapshot")
    }

    fn signed(&mut self) -> i64 {
        let number = self.number();
        (number >> 1) as i64 ^ -((number & 1) as i64)
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (head, rest) =
            self.rest.split_at_checked(length).expect("corrupt record: it ends early; restore this member");
        self.rest = rest;
        head
    }
}

pub(crate) fn encode_current(kv: &KeyValue, sub: u32) -> Bytes {
    let mut out = BytesMut::with_capacity(kv.value.len() + 24);
    put_number(&mut out, kv.create_revision as u64);
    put_number(&mut out, kv.mod_revision as u64);
    put_number(&mut out, u64::from(sub));
    put_number(&mut out, kv.version as u64);
    put_signed(&mut out, kv.lease);
    out.extend_from_slice(&kv.value);
    out.freeze()
}

/// A current record without copying: the numbers, and where the value is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CurrentRef<'a> {
    pub create_revision: i64,
    pub mod_revision: i64,
    pub sub: u32,
    pub version: i64,
    pub lease: LeaseId,
    pub value: &'a [u8],
}

impl<'a> CurrentRef<'a> {
    pub(crate) fn decode(record: &'a [u8]) -> CurrentRef<'a> {
        let mut reader = Reader { rest: record };
        CurrentRef {
            create_revision: reader.number() as i64,
            mod_revision: reader.number() as i64,
            sub: reader.number() as u32,
            version: reader.number() as i64,
            lease: reader.signed(),
            value: reader.rest,
        }
    }

    pub(crate) fn to_kv(self, key: Bytes, value: Bytes) -> KeyValue {
        KeyValue {
            key,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            value,
            lease: self.lease,
        }
    }
}

/// The whole record as a [`KeyValue`] that shares the record's memory.
pub(crate) fn decode_current(key: Bytes, record: &Bytes) -> KeyValue {
    let current = CurrentRef::decode(record);
    current.to_kv(key, record.slice_ref(current.value))
}

pub(crate) fn encode_history(kind: Kind, kv: &KeyValue) -> Bytes {
    let mut out = BytesMut::with_capacity(kv.key.len() + kv.value.len() + 24);
    out.put_u8(kind.byte());
    put_number(&mut out, kv.key.len() as u64);
    out.extend_from_slice(&kv.key);
    put_number(&mut out, kv.create_revision as u64);
    put_number(&mut out, kv.version as u64);
    put_signed(&mut out, kv.lease);
    out.extend_from_slice(&kv.value);
    out.freeze()
}

/// `main` is the record's revision, which is not repeated in it.
pub(crate) fn decode_history(main: i64, record: &Bytes) -> (Kind, KeyValue) {
    let mut reader = Reader { rest: record };
    let kind = Kind::of(reader.byte());
    let length = reader.number() as usize;
    let key = record.slice_ref(reader.take(length));
    let kv = KeyValue {
        key,
        create_revision: reader.number() as i64,
        mod_revision: main,
        version: reader.number() as i64,
        lease: reader.signed(),
        value: record.slice_ref(reader.rest),
    };
    (kind, kv)
}

/// The key alone of a history record: what a scrub or a filter needs.
pub(crate) fn history_key(record: &[u8]) -> (Kind, &[u8]) {
    let mut reader = Reader { rest: record };
    let kind = Kind::of(reader.byte());
    let length = reader.number() as usize;
    (kind, reader.take(length))
}

/// The part of a `KeyHistory` key that all versions of `key` share.
pub(crate) fn escape(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 2 + Revision::LENGTH);
    for byte in key {
        out.push(*byte);
        if *byte == 0 {
            out.push(0xff);
        }
    }
    out.extend_from_slice(&[0, 1]);
    out
}

fn unescape(escaped: &[u8]) -> Vec<u8> {
    let body =
        escaped.strip_suffix(&[0, 1]).expect("corrupt record: a key without its end; restore this member");
    let mut out = Vec::with_capacity(body.len());
    let mut bytes = body.iter();
    while let Some(byte) = bytes.next() {
        out.push(*byte);
        if *byte == 0 {
            let mark = bytes.next();
            assert_eq!(mark, Some(&0xff), "corrupt record: a key badly escaped; restore this member");
        }
    }
    out
}

pub(crate) fn key_history(key: &[u8], revision: Revision) -> Bytes {
    let mut out = escape(key);
    out.extend_from_slice(&revision.encode());
    out.into()
}

/// Splits a `KeyHistory` key into its escaped user key and its revision.
pub(crate) fn split_key_history(stored: &[u8]) -> (&[u8], Revision) {
    let at = stored.len().checked_sub(Revision::LENGTH).expect("corrupt record: a short index key");
    (&stored[..at], Revision::decode(&stored[at..]))
}

pub(crate) fn user_key(escaped: &[u8]) -> Bytes {
    unescape(escaped).into()
}

pub(crate) fn encode_kind(kind: Kind) -> Bytes {
    match kind {
        Kind::Put => Bytes::from_static(&[0]),
        Kind::Tombstone => Bytes::from_static(&[1]),
    }
}

pub(crate) fn decode_kind(record: &[u8]) -> Kind {
    Kind::of(*record.first().expect("corrupt record: an empty index entry; restore this member"))
}

fn ordered(id: LeaseId) -> [u8; 8] {
    ((id as u64) ^ (1 << 63)).to_be_bytes()
}

pub(crate) fn lease(id: LeaseId) -> Bytes {
    Bytes::copy_from_slice(&ordered(id))
}

pub(crate) fn decode_lease(stored: &[u8]) -> LeaseId {
    let bytes: [u8; 8] =
        stored.try_into().expect("corrupt record: a lease id has 8 bytes; restore this member");
    (u64::from_be_bytes(bytes) ^ (1 << 63)) as i64
}

/// The part that all keys of a lease share.
pub(crate) fn lease_prefix(id: LeaseId) -> [u8; 8] {
    ordered(id)
}

pub(crate) fn lease_key(id: LeaseId, key: &[u8]) -> Bytes {
    [&ordered(id)[..], key].concat().into()
}

pub(crate) fn encode_lease(ttl: i64, expiry: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(16);
    put_signed(&mut out, ttl);
    put_number(&mut out, expiry);
    out.freeze()
}

pub(crate) fn decode_lease_record(record: &[u8]) -> (i64, u64) {
    let mut reader = Reader { rest: record };
    (reader.signed(), reader.number())
}

pub(crate) fn encode_pair(first: u64, second: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(8);
    put_number(&mut out, first);
    put_number(&mut out, second);
    out.freeze()
}

pub(crate) fn decode_pair(record: &[u8]) -> (u64, u64) {
    let mut reader = Reader { rest: record };
    (reader.number(), reader.number())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaping_keeps_order_and_comes_back() {
        let keys: [&[u8]; 9] = [b"", b"\0", b"\0\0", b"\0\x01", b"\x01", b"a", b"a\0", b"a\0b", b"a\x01"];
        for pair in keys.windows(2) {
            assert!(pair[0] < pair[1] && escape(pair[0]) < escape(pair[1]), "{pair:?}");
        }
        for key in keys {
            assert_eq!(unescape(&escape(key)), key);
        }
    }

    #[test]
    fn numbers_survive() {
        for number in [0, 1, -1, 63, -64, 127, 128, i64::MAX, i64::MIN] {
            let mut out = BytesMut::new();
            put_signed(&mut out, number);
            put_number(&mut out, number as u64);
            let mut reader = Reader { rest: &out };
            assert_eq!((reader.signed(), reader.number()), (number, number as u64));
            assert_eq!(decode_lease(&lease(number)), number);
        }
        assert!(lease(-5) < lease(3), "lease ids order by value");
    }
}
