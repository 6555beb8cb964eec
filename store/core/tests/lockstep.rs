//! Random commands against the core and, in lockstep, against the naive store of `oracle`.
//!
//! Each run draws commands, batches them at random, scrubs at random and restarts at random; every answer, every read
//! at every revision, every change published and every stretch of watch history must agree.

mod oracle;

use bytes::Bytes;
use keelson_store_core::compact::Scrub;
use keelson_store_core::watch::{CatchUp, history};
use keelson_store_core::{
    Batch, Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, EventType, MemoryBackend,
    PutRequest, RangeRequest, RequestOp, RevisionEvents, SortOrder, SortTarget, Stamp, State, TxnRequest,
    apply, check, hash_kv, invariants, range,
};
use oracle::Oracle;
use proptest::prelude::*;

const KEYS: [&[u8]; 7] = [b"a", b"a\0", b"ab", b"b", b"\0", b"\xff", b"c"];
const ENDS: [&[u8]; 6] = [b"", b"\0", b"b", b"c\0", b"a\0", b"\xff\xff"];

fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(KEYS.to_vec()).prop_map(Bytes::from_static)
}

fn end() -> impl Strategy<Value = Bytes> {
    prop::sample::select(ENDS.to_vec()).prop_map(Bytes::from_static)
}

fn value() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec![&b""[..], b"x", b"y"]).prop_map(Bytes::from_static)
}

fn put() -> impl Strategy<Value = PutRequest> {
    let lease = prop::sample::select(vec![0, 0, 0, 1, 2, -3]);
    (key(), value(), lease, any::<bool>(), 0..8u8).prop_map(|(key, value, lease, prev_kv, keep)| PutRequest {
        key,
        value: if keep == 0 { Bytes::new() } else { value },
        lease: if keep == 1 { 0 } else { lease },
        prev_kv,
        ignore_value: keep == 0,
        ignore_lease: keep == 1,
    })
}

fn delete() -> impl Strategy<Value = DeleteRangeRequest> {
    (key(), end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| DeleteRangeRequest {
        key,
        range_end,
        prev_kv,
    })
}

fn range_request() -> impl Strategy<Value = RangeRequest> {
    use SortOrder::{Ascend, Descend, None};
    use SortTarget::{Create, Key, Mod, Value, Version};
    let sort = (
        prop::sample::select(vec![None, None, Ascend, Descend]),
        prop::sample::select(vec![Key, Key, Version, Create, Mod, Value]),
    );
    let bound = || prop::sample::select(vec![0, 0, 0, 2, 4, 7]);
    let flags = (any::<bool>(), 0..5u8);
    (key(), end(), -1..4i64, -1..12i64, sort, flags, [bound(), bound(), bound(), bound()]).prop_map(
        |(key, range_end, limit, revision, (sort_order, sort_target), (keys_only, count), bounds)| {
            RangeRequest {
                key,
                range_end,
                limit,
                revision,
                sort_order,
                sort_target,
                keys_only,
                count_only: count == 0,
                min_mod_revision: bounds[0],
                max_mod_revision: bounds[1],
                min_create_revision: bounds[2],
                max_create_revision: bounds[3],
            }
        },
    )
}

fn compare() -> impl Strategy<Value = Compare> {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    let target = prop_oneof![
        (0..3i64).prop_map(CompareTarget::Version),
        (0..9i64).prop_map(CompareTarget::Create),
        (0..9i64).prop_map(CompareTarget::Mod),
        value().prop_map(CompareTarget::Value),
        (-3..3i64).prop_map(CompareTarget::Lease),
    ];
    (key(), end(), prop::sample::select(vec![Equal, Greater, Less, NotEqual]), target)
        .prop_map(|(key, range_end, result, target)| Compare { key, range_end, result, target })
}

fn txn() -> impl Strategy<Value = TxnRequest> {
    let op = prop_oneof![
        put().prop_map(RequestOp::Put),
        delete().prop_map(RequestOp::DeleteRange),
        range_request().prop_map(RequestOp::Range),
    ];
    let compares = || prop::collection::vec(compare(), 0..3);
    let nested =
        (compares(), prop::collection::vec(op.clone(), 0..3), prop::collection::vec(op.clone(), 0..3))
            .prop_map(|(compare, success, failure)| RequestOp::Txn(TxnRequest { compare, success, failure }));
    let op = prop_oneof![4 => op, 1 => nested];
    (compares(), prop::collection::vec(op.clone(), 0..4), prop::collection::vec(op, 0..4))
        .prop_map(|(compare, success, failure)| TxnRequest { compare, success, failure })
}

fn command() -> impl Strategy<Value = Command> {
    let id = || prop::sample::select(vec![1, 2, -3]);
    prop_oneof![
        6 => put().prop_map(Command::Put),
        3 => delete().prop_map(Command::DeleteRange),
        5 => txn().prop_map(Command::Txn),
        2 => (0..12i64).prop_map(|revision| Command::Compact { revision }),
        2 => id().prop_map(|id| Command::LeaseGrant { id, ttl: 10 }),
        1 => id().prop_map(|id| Command::LeaseRevoke { id }),
    ]
}

/// What befalls the store after a batch.
#[derive(Clone, Debug)]
struct Turn {
    commands: Vec<Command>,
    scrub: usize,
    restart: bool,
    reads: Vec<RangeRequest>,
}

fn turn() -> impl Strategy<Value = Turn> {
    let commands = prop::collection::vec(command(), 1..4);
    let reads = prop::collection::vec(range_request(), 0..4);
    (commands, 0..4usize, any::<bool>(), reads).prop_map(|(commands, scrub, restart, reads)| Turn {
        commands,
        scrub,
        restart,
        reads,
    })
}

struct Core {
    state: State,
    backend: MemoryBackend,
    index: u64,
    published: Vec<RevisionEvents>,
}

impl Core {
    fn turn(&mut self, turn: &Turn, oracle: &mut Oracle) -> Result<(), TestCaseError> {
        let valid = |command: &&Command| match command {
            Command::Put(put) => check::put(put).is_ok(),
            Command::Txn(txn) => check::txn(txn, 128).is_ok(),
            _ => true,
        };
        let commands: Vec<Command> = turn.commands.iter().filter(valid).cloned().collect();
        self.index += 1;
        let batch = Batch { stamp: Stamp { term: 1, millis: self.index }, commands };
        let effects = apply(&mut self.state, &self.backend, self.index, &batch);
        self.backend.write(&effects.writes);
        self.published.extend(effects.events);
        for (command, response) in batch.commands.iter().zip(effects.responses) {
            prop_assert_eq!(response, oracle.run(command), "{:?}", command);
        }
        if turn.scrub > 0
            && let Some(due) = Scrub::due(&self.state, &self.backend)
        {
            // One slice, and whatever is left is forgotten by a crash.
            let slice = due.slice(&self.backend, turn.scrub);
            self.backend.write(&slice.writes);
        }
        if turn.restart {
            self.state = State::load(&self.backend).expect("what was written loads");
        }
        for request in &turn.reads {
            prop_assert_eq!(
                range(&self.state, &self.backend, request),
                oracle.range(request),
                "{:?}",
                request
            );
        }
        let broken: Vec<_> =
            invariants::violated(&self.state, &self.backend).iter().map(|i| i.name).collect();
        prop_assert!(broken.is_empty(), "{:?}", broken);
        Ok(())
    }

    /// Each published revision is the difference of the oracle's states around it.
    fn published_what_happened(&self, oracle: &Oracle) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.published.len() + 1, oracle.past.len());
        for (change, states) in self.published.iter().zip(oracle.past.windows(2)) {
            let mut now = states[0].clone();
            for event in &change.events {
                prop_assert_eq!(event.kv.mod_revision, change.revision);
                prop_assert_eq!(&event.prev_kv, &now.get(&event.kv.key).cloned());
                match event.kind {
                    EventType::Put => drop(now.insert(event.kv.key.clone(), event.kv.clone())),
                    EventType::Delete => drop(now.remove(&event.kv.key)),
                }
            }
            prop_assert_eq!(&now, &states[1]);
        }
        Ok(())
    }

    /// History from any kept revision is what was published, with previous versions where they are still known.
    fn remembers(&self) -> Result<(), TestCaseError> {
        let compacted = self.state.compact_revision();
        for from in compacted.max(2)..=self.state.revision() {
            let want = CatchUp { from, to: self.state.revision(), prev_kv: true };
            let mut found = Vec::new();
            let mut next = want;
            while next.from <= next.to {
                // A budget of a byte: one revision a slice.
                let past = history(&self.state, &self.backend, next, 1);
                found.extend(past.revisions);
                prop_assert!(past.through >= next.from, "a slice makes headway");
                next.from = past.through + 1;
            }
            let mut expected: Vec<RevisionEvents> =
                self.published.iter().filter(|change| change.revision >= from).cloned().collect();
            for change in &mut expected {
                for event in &mut change.events {
                    event
                        .prev_kv
                        .take_if(|prev| prev.mod_revision != change.revision && change.revision <= compacted);
                }
            }
            prop_assert_eq!(found, expected, "from {}", from);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn the_core_agrees_with_the_naive_store(turns in prop::collection::vec(turn(), 1..12)) {
        let mut core = Core { state: State::default(), backend: MemoryBackend::default(), index: 0, published: vec![] };
        let mut oracle = Oracle::new();
        for turn in &turns {
            core.turn(turn, &mut oracle)?;
        }
        core.published_what_happened(&oracle)?;
        core.remembers()?;
        let before = hash_kv(&core.state, &core.backend, 0);
        while let Some(scrub) = Scrub::due(&core.state, &core.backend) {
            let slice = scrub.slice(&core.backend, usize::MAX);
            core.backend.write(&slice.writes);
        }
        prop_assert_eq!(before, hash_kv(&core.state, &core.backend, 0), "a scrub is invisible");
        core.remembers()?;
    }
}
