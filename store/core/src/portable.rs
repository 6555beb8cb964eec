//! A change as etcd stores it in the `key` bucket of its database: what HashKV sums up and snapshot files hold.
//!
//! | part | bytes |
//! |---|---|
//! | key | main (8, big-endian), `_`, sub (8), and `t` at the end of a tombstone |
//! | value | protobuf `mvccpb.KeyValue`; of a tombstone the key alone |

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::backend::{Cf, Read};
use crate::layout::{self, Kind, Revision};
use crate::response::KeyValue;

/// Length of a stored revision without the tombstone's mark.
pub const REVISION_LENGTH: usize = 17;

/// What marks a tombstone, at the end of its key.
pub const TOMBSTONE: u8 = b't';

/// The `key` bucket's key of a change.
pub fn encode_revision(at: Revision, tombstone: bool, key: &mut Vec<u8>) {
    key.clear();
    key.extend_from_slice(&at.main.to_be_bytes());
    key.push(b'_');
    key.extend_from_slice(&u64::from(at.sub).to_be_bytes());
    if tombstone {
        key.push(TOMBSTONE);
    }
}

/// `None`: no stored revision, or a sub that no transaction reaches.
pub fn decode_revision(key: &[u8]) -> Option<(Revision, bool)> {
    let tombstone = match key.len() {
        REVISION_LENGTH => false,
        18 if key[REVISION_LENGTH] == TOMBSTONE => true,
        _ => return None,
    };
    let main = i64::from_be_bytes(key[..8].try_into().ok()?);
    let sub = u64::from_be_bytes(key[9..REVISION_LENGTH].try_into().ok()?);
    (main >= 0 && key[8] == b'_').then_some(())?;
    Some((Revision { main, sub: u32::try_from(sub).ok()? }, tombstone))
}

/// Replaces `key` and `value` by what etcd stores for the change.
pub fn encode(at: Revision, tombstone: bool, kv: &KeyValue, key: &mut Vec<u8>, value: &mut Vec<u8>) {
    encode_revision(at, tombstone, key);
    value.clear();
    field_bytes(value, 1, &kv.key);
    if tombstone {
        return;
    }
    field_number(value, 2, kv.create_revision);
    field_number(value, 3, kv.mod_revision);
    field_number(value, 4, kv.version);
    field_bytes(value, 5, &kv.value);
    field_number(value, 6, kv.lease);
}

/// Visits every kept change in order of revision, in the core's own form; `true` marks a tombstone.
pub fn changes(read: &dyn Read, visit: &mut dyn FnMut(Revision, bool, &KeyValue) -> ControlFlow<()>) {
    read.scan(Cf::History, Bound::Unbounded, Bound::Unbounded, false, &mut |stored, record| {
        let at = Revision::decode(stored);
        let (kind, kv) = layout::decode_history(at.main, &Bytes::copy_from_slice(record));
        visit(at, kind == Kind::Tombstone, &kv)
    });
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Zero is the absent field's value and not written.
fn field_number(out: &mut Vec<u8>, field: u8, number: i64) {
    if number != 0 {
        out.push(field << 3);
        varint(out, number as u64);
    }
}

fn field_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.push(field << 3 | 2);
        varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_come_back_and_their_bytes_are_etcds() {
        let mut key = Vec::new();
        let at = Revision { main: 258, sub: 3 };
        encode_revision(at, true, &mut key);
        assert_eq!(key, b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03t");
        assert_eq!(decode_revision(&key), Some((at, true)));
        encode_revision(at, false, &mut key);
        assert_eq!(decode_revision(&key), Some((at, false)));
        key[8] = b'-';
        assert_eq!(decode_revision(&key), None);
        assert_eq!(decode_revision(b"short"), None);
        assert_eq!(decode_revision(&[0xff; 17]), None, "revisions are not negative");
    }

    #[test]
    fn absent_fields_are_not_written() {
        let kv = KeyValue {
            key: "k".into(),
            create_revision: 2,
            mod_revision: 300,
            version: 1,
            value: Bytes::new(),
            lease: -1,
        };
        let (mut key, mut value) = (Vec::new(), Vec::new());
        encode(Revision { main: 300, sub: 0 }, false, &kv, &mut key, &mut value);
        let lease = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(value, [&b"\x0a\x01k\x10\x02\x18\xac\x02\x20\x01\x30"[..], &lease].concat());
        encode(Revision { main: 300, sub: 0 }, true, &kv, &mut key, &mut value);
        assert_eq!(value, b"\x0a\x01k", "a tombstone names its key");
    }
}
