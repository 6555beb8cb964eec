//! Operations from a seed: what a client may ask, well formed or not, over few keys, so that operations meet.
//!
//! Nothing in here has a fact of its own: whatever is asked is asked of several servers, and their answers are
//! compared. What would make answers depend on time is left out: leases last longer than a run, sorts have few enough
//! results for Go's sort to be stable.

use std::collections::BTreeSet;

use bytes::Bytes;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::request_op::Request;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::operation::{Auth, NOT_OPEN, Operation, SERVER_CHOSEN};

/// Watch streams beside the witness's, which is stream 0.
pub const STREAMS: usize = 4;
/// Watchers open at once, at most.
const WATCHERS: usize = 24;
/// Lease ids that clients choose.
const LEASES: i64 = 10;
/// The most that Go's sort, up to the version that etcd 3.5 was built with, sorts by insertion alone, which keeps the
/// order of equals. Newer ones do so with twelve.
const STABLE: usize = 6;
const SORTED: &[&[u8]] = &[b"a", b"ab", b"abc", b"b", b"ba", b"bb", b"c", b"c\0", b"d", b"e", b"\xfe"];

/// What operations are made from: the state that the answers so far tell of.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The store's revision.
    pub revision: i64,
    /// The newest compaction's.
    pub compacted: i64,
    /// How many lease ids servers have chosen.
    pub chosen: i64,
    /// Open watchers: (stream, id, first revision it may see).
    pub watchers: Vec<(usize, i64, i64)>,
    /// Streams on which compaction ended a watcher: etcd answers no request for progress there any more.
    pub silent: BTreeSet<usize>,
}

/// The source of operations.
pub struct Generator {
    rng: StdRng,
    old: bool,
}

impl Generator {
    /// The same seed and the same answers give the same operations.
    /// `old`: leaves out what changes the store in etcd 3.5 and is refused since, or the other way round; after such a
    /// thing nothing could be compared.
    pub fn new(seed: u64, old: bool) -> Generator {
        Generator { rng: StdRng::seed_from_u64(seed), old }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.rng.random_range(0..from.len())].clone()
    }

    /// The next operation.
    pub fn next(&mut self, view: &View) -> Operation {
        match self.rng.random_range(0..1000) {
            0..300 => Operation::Range(self.range(view)),
            300..340 => Operation::RangeStream(self.range(view)),
            340..570 => Operation::Put(self.put(view)),
            570..650 => Operation::Delete(self.delete()),
            650..850 => Operation::Txn(self.txn(view, 0)),
            850..860 => Operation::Compact(self.compact(view)),
            860..885 => Operation::Grant(self.grant()),
            885..898 => Operation::Revoke(pb::LeaseRevokeRequest { id: self.lease(view) }),
            898..908 => Operation::KeepAlive(pb::LeaseKeepAliveRequest { id: self.lease(view) }),
            908..923 => {
                let id = self.lease(view);
                Operation::TimeToLive(pb::LeaseTimeToLiveRequest { id, keys: self.chance(70) })
            }
            923..928 => Operation::Leases,
            928..960 => Operation::Auth(self.auth()),
            960..980 if view.watchers.len() < WATCHERS => {
                let (stream, mut request) = (self.rng.random_range(1..=STREAMS), self.watch(view));
                let ends = (1..view.compacted).contains(&request.start_revision);
                if ends {
                    // etcd keeps the id of a watcher that compaction ended taken.
                    request.watch_id = 0;
                }
                Operation::Watch { stream, request, ends }
            }
            960..993 => self.cancel(view),
            _ => self.progress(view),
        }
    }

    fn wide(&mut self) -> Bytes {
        format!("w/{:02}", self.rng.random_range(0..40)).into()
    }

    fn key(&mut self) -> Bytes {
        match self.rng.random_range(0..100) {
            0..84 => Bytes::from_static(self.pick(SORTED)),
            84..98 => self.wide(),
            98 => Bytes::new(),
            _ => "never written".into(),
        }
    }

    /// (key, range end, whether a sort by anything but keys has few results).
    fn span(&mut self) -> (Bytes, Bytes, bool) {
        let key = self.key();
        match self.rng.random_range(0..100) {
            0..45 => (key, Bytes::new(), true),
            45..63 => {
                let mut end = key.to_vec();
                if let Some(last) = end.last_mut() {
                    *last = last.wrapping_add(1);
                }
                (key, end.into(), true)
            }
            63..71 => (key, Bytes::from_static(b"\0"), false),
            71..77 => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"), false),
            77..92 => {
                let end = Bytes::from_static(self.pick(SORTED));
                let within = SORTED.iter().filter(|at| (key.as_ref()..end.as_ref()).contains(*at)).count();
                let few = within <= STABLE && end.as_ref() < b"w".as_slice();
                (key, end, few)
            }
            _ => (self.wide(), Bytes::from_static(b"w0"), false),
        }
    }

    fn value(&mut self) -> Bytes {
        match self.rng.random_range(0..20) {
            0 => Bytes::new(),
            1 => "long ".repeat(50).into(),
            _ => self.rng.random_range(0..30u32).to_string().into(),
        }
    }

    fn lease(&mut self, view: &View) -> i64 {
        if view.chosen > 0 && self.chance(20) {
            return SERVER_CHOSEN + self.rng.random_range((view.chosen - 3).max(0)..view.chosen);
        }
        self.rng.random_range(1..=LEASES)
    }

    /// A revision that is interesting for reading.
    fn past(&mut self, view: &View) -> i64 {
        match self.rng.random_range(0..100) {
            0..60 => self.rng.random_range(view.compacted.min(view.revision)..=view.revision),
            60..80 => view.compacted + self.rng.random_range(-2..3),
            80..90 => view.revision,
            90..96 => view.revision + self.rng.random_range(1..4),
            _ => self.rng.random_range(-1..3),
        }
    }

    fn range(&mut self, view: &View) -> pb::RangeRequest {
        let (key, range_end, few) = self.span();
        let mut r = pb::RangeRequest { key, range_end, serializable: self.chance(15), ..Default::default() };
        if self.chance(35) {
            r.revision = self.past(view);
        }
        if self.chance(40) {
            r.limit = self.rng.random_range(-1..7);
        }
        if self.chance(30) {
            r.sort_order = self.rng.random_range(0..3);
            r.sort_target = if few { self.rng.random_range(0..5) } else { 0 };
        }
        // etcd 3.5 takes any sort.
        if self.chance(1) && !self.old {
            (r.sort_order, r.sort_target) = (self.rng.random_range(0..5), self.rng.random_range(4..7));
            r.range_end = Bytes::new();
        }
        r.keys_only = self.chance(10);
        r.count_only = self.chance(10);
        for bound in [
            &mut r.min_mod_revision,
            &mut r.max_mod_revision,
            &mut r.min_create_revision,
            &mut r.max_create_revision,
        ] {
            if self.chance(6) {
                *bound = view.revision - self.rng.random_range(-1..40);
            }
        }
        r
    }

    fn put(&mut self, view: &View) -> pb::PutRequest {
        let mut r = pb::PutRequest {
            key: self.key(),
            value: self.value(),
            prev_kv: self.chance(30),
            ..Default::default()
        };
        if self.chance(25) {
            r.lease = self.lease(view);
        }
        if self.chance(6) {
            r.ignore_value = true;
            if self.chance(80) {
                r.value = Bytes::new();
            }
        }
        if self.chance(6) {
            r.ignore_lease = true;
            if self.chance(80) {
                r.lease = 0;
            }
        }
        r
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        let (key, range_end, _) = self.span();
        // Everything at once too often, and there is nothing left to see.
        let range_end = if range_end.as_ref() == b"\0" && self.chance(80) { Bytes::new() } else { range_end };
        pb::DeleteRangeRequest { key, range_end, prev_kv: self.chance(50) }
    }

    fn compare(&mut self, view: &View) -> pb::Compare {
        use pb::compare::TargetUnion;
        let (key, range_end, _) = self.span();
        let target = self.rng.random_range(0..5);
        let revision = view.revision - self.rng.random_range(-1..30);
        let union = match target {
            0 => TargetUnion::Version(self.rng.random_range(0..5)),
            1 => TargetUnion::CreateRevision(if self.chance(40) { 0 } else { revision }),
            2 => TargetUnion::ModRevision(if self.chance(40) { 0 } else { revision }),
            3 => TargetUnion::Value(self.value()),
            _ => TargetUnion::Lease(if self.chance(50) { 0 } else { self.rng.random_range(1..=LEASES) }),
        };
        pb::Compare {
            result: self.rng.random_range(0..4),
            target,
            key,
            range_end: if self.chance(25) { range_end } else { Bytes::new() },
            target_union: (!self.chance(1)).then_some(union),
        }
    }

    fn operation(&mut self, view: &View, depth: u32) -> pb::RequestOp {
        let request = match self.rng.random_range(0..100) {
            0..35 => Request::RequestRange(self.range(view)),
            35..75 => Request::RequestPut(self.put(view)),
            75..88 => Request::RequestDeleteRange(self.delete()),
            _ if depth < 3 => Request::RequestTxn(self.txn(view, depth + 1)),
            _ => Request::RequestPut(self.put(view)),
        };
        pb::RequestOp { request: (!self.chance(1)).then_some(request) }
    }

    fn txn(&mut self, view: &View, depth: u32) -> pb::TxnRequest {
        if depth == 0 && self.rng.random_range(0..300) == 0 {
            let put = |i: i32| {
                Request::RequestPut(pb::PutRequest { key: format!("w/{i:03}").into(), ..Default::default() })
            };
            let count = self.rng.random_range(127..131);
            let success = (0..count).map(|i| pb::RequestOp { request: Some(put(i)) }).collect();
            return pb::TxnRequest { success, ..Default::default() };
        }
        let (compares, most) = (self.pick(&[0, 1, 1, 2, 3]), if depth == 0 { 5 } else { 3 });
        let compare = (0..compares).map(|_| self.compare(view)).collect();
        let (n, m) = (self.rng.random_range(0..most), self.rng.random_range(0..most));
        let success = (0..n).map(|_| self.operation(view, depth)).collect();
        let failure = (0..m).map(|_| self.operation(view, depth)).collect();
        pb::TxnRequest { compare, success, failure }
    }

    fn compact(&mut self, view: &View) -> pb::CompactionRequest {
        let kept = view.revision - view.compacted;
        let revision = match self.rng.random_range(0..10) {
            0 => view.compacted - self.rng.random_range(0..2),
            1 => view.revision + self.rng.random_range(1..3),
            _ if kept > 0 => view.compacted + self.rng.random_range(1..=kept),
            _ => view.revision,
        };
        pb::CompactionRequest { revision, physical: self.chance(40) }
    }

    fn grant(&mut self) -> pb::LeaseGrantRequest {
        let id = if self.chance(25) { 0 } else { self.rng.random_range(1..=LEASES) };
        let ttl = if self.chance(5) { 9_000_000_001 } else { self.rng.random_range(50_000..100_000) };
        pb::LeaseGrantRequest { id, ttl }
    }

    fn auth(&mut self) -> Auth {
        let user = self.pick(&["u1", "u2", "u3", ""]).to_owned();
        let role = self.pick(&["r1", "r2", "root", ""]).to_owned();
        let (key, range_end, _) = self.span();
        match self.rng.random_range(0..15) {
            0 => Auth::UserAdd(pb::AuthUserAddRequest {
                name: user,
                options: Some(keelson_store_proto::authpb::UserAddOptions { no_password: true }),
                ..Default::default()
            }),
            1 => Auth::UserGet(pb::AuthUserGetRequest { name: user }),
            2 => Auth::UserList(pb::AuthUserListRequest {}),
            3 if self.chance(30) => Auth::UserDelete(pb::AuthUserDeleteRequest { name: user }),
            4 => Auth::UserGrantRole(pb::AuthUserGrantRoleRequest { user, role }),
            5 => Auth::UserRevokeRole(pb::AuthUserRevokeRoleRequest { name: user, role }),
            6 if role != "root" => Auth::RoleAdd(pb::AuthRoleAddRequest { name: role }),
            7 => Auth::RoleGet(pb::AuthRoleGetRequest { role }),
            8 => Auth::RoleList(pb::AuthRoleListRequest {}),
            9 if self.chance(30) => Auth::RoleDelete(pb::AuthRoleDeleteRequest { role }),
            10 => Auth::Status(pb::AuthStatusRequest {}),
            11 => Auth::Enable(pb::AuthEnableRequest {}),
            12 => Auth::Authenticate(pb::AuthenticateRequest { name: user, password: "p".to_owned() }),
            13 => Auth::RoleRevokePermission(pb::AuthRoleRevokePermissionRequest { role, key, range_end }),
            _ => Auth::RoleGrantPermission(pb::AuthRoleGrantPermissionRequest {
                name: role,
                perm: Some(keelson_store_proto::authpb::Permission {
                    perm_type: self.rng.random_range(0..3),
                    key,
                    range_end,
                }),
            }),
        }
    }

    fn watch(&mut self, view: &View) -> pb::WatchCreateRequest {
        let (key, range_end, _) = self.span();
        let start_revision = match self.rng.random_range(0..100) {
            0..60 => 0,
            // From the compacted revision itself a watch may or may not see a tombstone, as the scrub is or is not done.
            60..82 => (view.compacted + 1 + self.rng.random_range(0..60)).min(view.revision + 1),
            82..90 => (view.compacted - self.rng.random_range(1..4)).max(0),
            _ => view.revision + self.rng.random_range(1..12),
        };
        let filters = [0, 1].into_iter().filter(|_| self.chance(12)).collect();
        pb::WatchCreateRequest {
            key,
            range_end,
            start_revision,
            progress_notify: self.chance(20),
            filters,
            prev_kv: self.chance(50),
            watch_id: if self.chance(20) { self.rng.random_range(1..15) } else { 0 },
            fragment: self.chance(20),
        }
    }

    fn cancel(&mut self, view: &View) -> Operation {
        if view.watchers.is_empty() || self.chance(5) {
            return Operation::Cancel { stream: self.rng.random_range(1..=STREAMS), id: NOT_OPEN };
        }
        let (stream, id, _) = self.pick(&view.watchers);
        Operation::Cancel { stream, id }
    }

    /// Of a stream with watchers none of which waits for the future: others are not answered.
    fn progress(&mut self, view: &View) -> Operation {
        let stream = self.rng.random_range(1..=STREAMS);
        let mut open = view.watchers.iter().filter(|(at, ..)| *at == stream).peekable();
        let answered = !view.silent.contains(&stream)
            && open.peek().is_some()
            && open.all(|(.., from)| *from <= view.revision);
        Operation::Progress { stream: if answered { stream } else { 0 }, revision: view.revision }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_asks_the_same() {
        let (mut a, mut b) = (Generator::new(7, false), Generator::new(7, false));
        let view =
            View { revision: 90, compacted: 20, chosen: 2, watchers: vec![(1, 0, 3)], ..View::default() };
        for _ in 0..2000 {
            assert_eq!(a.next(&view), b.next(&view));
        }
    }
}
