//! Order statistics: how many keys lie in a range, without walking it.
//!
//! ```text
//! level 2   [ ""                                   | "p"            ]   each node: keys below it, children
//! level 1   [ ""        | "d"       | "k"          | "p"     | "t"  ]
//! Current     a b c       d f g       k m n o        p q r     t v
//! ```
//!
//! A node covers the keys from its first key to the next node's, and is stored under its level and first key. Every
//! level-2 node begins where a level-1 node begins. Creating or deleting a key touches one node of each level; putting
//! a key again touches none. A node with more than [`FANOUT`] children splits in two; one without keys goes (but the
//! first of its parent stays while the parent has others). Half-empty nodes are not merged: their number is bounded by
//! the largest the store has been, divided by half a fanout.
//!
//! Counting adds whole level-2 nodes, then level-1 nodes, then keys: for n keys about n / FANOUT² + 2 · FANOUT steps.

use std::ops::{Bound, ControlFlow};

use bytes::{BufMut, Bytes, BytesMut};

use crate::backend::{Cf, Overlay, Read, Write};
use crate::layout;

/// Most children of a node.
pub(crate) const FANOUT: u64 = 256;

/// The top level.
const TOP: u8 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    first: Bytes,
    /// Keys below it.
    keys: u64,
    /// Nodes of the level below, or keys on level 1.
    children: u64,
}

fn stored_key(level: u8, first: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(first.len() + 1);
    out.put_u8(level);
    out.extend_from_slice(first);
    out.freeze()
}

fn decode(first: &[u8], record: &[u8]) -> Node {
    let (keys, children) = layout::decode_pair(record);
    Node { first: Bytes::copy_from_slice(first), keys, children }
}

/// The node of a level that covers `key`.
fn covering(read: &dyn Read, level: u8, key: &[u8]) -> Option<Node> {
    let mut found = None;
    let (from, to) = ([level], stored_key(level, key));
    read.scan(Cf::Count, Bound::Included(&from), Bound::Included(&to), true, &mut |stored, record| {
        found = Some(decode(&stored[1..], record));
        ControlFlow::Break(())
    });
    found
}

/// Nodes of a level whose first key is within `from..to`.
fn nodes(read: &dyn Read, level: u8, from: &[u8], to: Option<&[u8]>, visit: &mut dyn FnMut(Node)) {
    let from = stored_key(level, from);
    let to = to.map_or_else(|| Bytes::copy_from_slice(&[level + 1]), |to| stored_key(level, to));
    read.scan(Cf::Count, Bound::Included(&from), Bound::Excluded(&to), false, &mut |stored, record| {
        visit(decode(&stored[1..], record));
        ControlFlow::Continue(())
    });
}

fn write(view: &mut Overlay<'_>, level: u8, node: &Node) {
    view.put(Cf::Count, stored_key(level, &node.first), layout::encode_pair(node.keys, node.children));
}

fn keys_between(read: &dyn Read, from: &[u8], to: Option<&[u8]>, visit: &mut dyn FnMut(&[u8])) {
    let to = to.map_or(Bound::Unbounded, Bound::Excluded);
    read.scan(Cf::Current, Bound::Included(from), to, false, &mut |key, _| {
        visit(key);
        ControlFlow::Continue(())
    });
}

/// A key that was not there is there now (`Current` already has it).
pub(crate) fn created(view: &mut Overlay<'_>, key: &[u8], fanout: u64) {
    let mut new_children = 1;
    for level in 1..=TOP {
        let root = || Node { first: Bytes::new(), keys: 0, children: u64::from(level > 1) };
        let mut node = covering(view, level, key).unwrap_or_else(root);
        node.keys += 1;
        node.children += if level == 1 { 1 } else { new_children - 1 };
        new_children = 1;
        if node.children > fanout {
            let right = split(view, level, &mut node);
            write(view, level, &right);
            new_children += 1;
        }
        write(view, level, &node);
    }
}

/// Moves the upper half of a node's children to a new node.
fn split(view: &Overlay<'_>, level: u8, node: &mut Node) -> Node {
    let next = following(view, level, &node.first);
    let mut children: Vec<Node> = Vec::new();
    if level == 1 {
        keys_between(view, &node.first, next.as_deref(), &mut |key| {
            children.push(Node { first: Bytes::copy_from_slice(key), keys: 1, children: 0 });
        });
    } else {
        nodes(view, level - 1, &node.first, next.as_deref(), &mut |child| children.push(child));
    }
    assert_eq!(children.len() as u64, node.children, "a node counts its children");
    let upper = children.split_off(children.len() / 2);
    let keys = upper.iter().map(|child| child.keys).sum();
    let right = Node { first: upper[0].first.clone(), keys, children: upper.len() as u64 };
    node.keys -= right.keys;
    node.children -= right.children;
    right
}

/// Where the next node of a level begins.
fn following(read: &dyn Read, level: u8, first: &[u8]) -> Option<Vec<u8>> {
    let mut next = None;
    let (from, to) = (stored_key(level, first), [level + 1]);
    read.scan(Cf::Count, Bound::Excluded(&from), Bound::Excluded(&to), false, &mut |stored, _| {
        next = Some(stored[1..].to_vec());
        ControlFlow::Break(())
    });
    next
}

/// A key that was there is gone.
pub(crate) fn deleted(view: &mut Overlay<'_>, key: &[u8]) {
    let known = "a key that goes is counted";
    let mut low = covering(view, 1, key).expect(known);
    let mut top = covering(view, TOP, key).expect(known);
    low.keys = low.keys.checked_sub(1).expect(known);
    low.children -= 1;
    top.keys = top.keys.checked_sub(1).expect(known);
    if low.keys == 0 && low.first != top.first {
        view.delete(Cf::Count, stored_key(1, &low.first));
        top.children -= 1;
    } else {
        write(view, 1, &low);
    }
    if top.keys == 0 && top.children == 1 && !top.first.is_empty() {
        view.delete(Cf::Count, stored_key(1, &top.first));
        view.delete(Cf::Count, stored_key(TOP, &top.first));
    } else {
        write(view, TOP, &top);
    }
}

/// Children of a node that is built at once: room on both sides.
const BUILT: u64 = FANOUT / 2;

/// Builds the nodes over keys that come in order, with one pending node per level.
#[derive(Default)]
pub(crate) struct Builder {
    /// Level 1 and level 2.
    pending: [Option<Node>; TOP as usize],
}

impl Builder {
    /// The next key.
    pub(crate) fn key(&mut self, key: &[u8], emit: &mut dyn FnMut(Write)) {
        let full = self.pending[0].as_ref().is_some_and(|node| node.children == BUILT);
        if full {
            self.close_low(emit);
        }
        // The very first node of a level begins before every key.
        let first = if self.pending[1].is_none() { &[] } else { key };
        let first = Bytes::copy_from_slice(first);
        let node = self.pending[0].get_or_insert(Node { first, keys: 0, children: 0 });
        node.keys += 1;
        node.children += 1;
    }

    fn close_low(&mut self, emit: &mut dyn FnMut(Write)) {
        let Some(low) = self.pending[0].take() else { return };
        if self.pending[1].as_ref().is_some_and(|top| top.children == BUILT) {
            self.close_top(emit);
        }
        let top = self.pending[1].get_or_insert(Node { first: low.first.clone(), keys: 0, children: 0 });
        top.keys += low.keys;
        top.children += 1;
        emit(written(1, &low));
    }

    fn close_top(&mut self, emit: &mut dyn FnMut(Write)) {
        if let Some(top) = self.pending[1].take() {
            emit(written(TOP, &top));
        }
    }

    /// No more keys come.
    pub(crate) fn finish(mut self, emit: &mut dyn FnMut(Write)) {
        self.close_low(emit);
        self.close_top(emit);
    }
}

fn written(level: u8, node: &Node) -> Write {
    let value = layout::encode_pair(node.keys, node.children);
    Write { cf: Cf::Count, key: stored_key(level, &node.first), value: Some(value) }
}

/// Keys before `key`.
fn below(read: &dyn Read, key: &[u8]) -> u64 {
    let (Some(top), Some(low)) = (covering(read, TOP, key), covering(read, 1, key)) else { return 0 };
    let mut sum = 0;
    nodes(read, TOP, b"", Some(&top.first), &mut |node| sum += node.keys);
    nodes(read, 1, &top.first, Some(&low.first), &mut |node| sum += node.keys);
    keys_between(read, &low.first, Some(key), &mut |_| sum += 1);
    sum
}

/// Keys `k` with `from <= k` and, if there is a `to`, `k < to`.
pub(crate) fn between(read: &dyn Read, from: &[u8], to: Option<&[u8]>) -> u64 {
    let until = match to {
        Some(to) if to <= from => return 0,
        Some(to) => below(read, to),
        None => {
            let mut sum = 0;
            nodes(read, TOP, b"", None, &mut |node| sum += node.keys);
            sum
        }
    };
    until - below(read, from)
}

/// Whether every node counts what lies below it: an invariant, for tests and models.
pub(crate) fn are_exact(read: &dyn Read) -> bool {
    let mut exact = true;
    for level in 1..=TOP {
        let mut all = Vec::new();
        nodes(read, level, b"", None, &mut |node| all.push(node));
        for (at, node) in all.iter().enumerate() {
            let next = all.get(at + 1).map(|next| &next.first[..]);
            let (mut keys, mut children) = (0, 0);
            keys_between(read, &node.first, next, &mut |_| keys += 1);
            if level == 1 {
                children = keys;
            } else {
                nodes(read, level - 1, &node.first, next, &mut |_| children += 1);
                exact &=
                    covering(read, level - 1, &node.first).is_some_and(|child| child.first == node.first);
            }
            exact &= (keys, children) == (node.keys, node.children);
        }
        let mut keys = 0;
        keys_between(read, b"", None, &mut |_| keys += 1);
        exact &= all.first().map_or(keys == 0, |first| first.first.is_empty());
    }
    exact
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backend::MemoryBackend;

    proptest! {
        #[test]
        fn counts_follow_creations_and_deletions(
            steps in prop::collection::vec((0..60u8, any::<bool>()), 1..300),
            bounds in prop::collection::vec((0..62u8, 0..62u8), 1..8),
        ) {
            let mut backend = MemoryBackend::default();
            for (key, create) in steps {
                let mut view = Overlay::new(&backend);
                let key = [key / 8, key];
                let there = view.get(Cf::Current, &key).is_some();
                if create && !there {
                    view.put(Cf::Current, Bytes::copy_from_slice(&key), Bytes::new());
                    created(&mut view, &key, 4);
                } else if !create && there {
                    view.delete(Cf::Current, Bytes::copy_from_slice(&key));
                    deleted(&mut view, &key);
                }
                let writes = view.into_writes();
                backend.write(&writes);
                prop_assert!(are_exact(&backend));
            }
            for (from, to) in bounds {
                let (from, to) = ([from / 8, from], [to / 8, to]);
                let mut walked = 0;
                if from < to {
                    keys_between(&backend, &from, Some(&to), &mut |_| walked += 1);
                }
                prop_assert_eq!(between(&backend, &from, Some(&to)), walked);
                let mut walked = 0;
                keys_between(&backend, &from, None, &mut |_| walked += 1);
                prop_assert_eq!(between(&backend, &from, None), walked);
            }
        }
    }
}
