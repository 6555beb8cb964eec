//! The clients of a run: writers and readers of a few keys, and holders of leases.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keelson_store_core::lease::Kept;
use keelson_store_core::{Command, PutRequest, RangeRequest, Response, State, range};
use openraft::AsyncRuntime;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::judge::{LEASED, Shared, bytes, number};
use crate::network::Member;
use crate::runtime::Runtime;
use crate::shrink::Skip;
use keelson_checker::Operation;

const KEYS: u64 = 5;
/// How long a client waits for one answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Where the clients find whoever runs.
pub type Open = Arc<Mutex<BTreeMap<u64, Arc<Member>>>>;

/// One client: who it is and what it works with.
pub struct Client {
    pub number: u64,
    pub seed: u64,
    pub shared: Shared,
    pub open: Open,
    /// Which of its operations are left out.
    pub skip: Arc<Skip>,
    pub until: Duration,
}

impl Client {
    fn works(&self) -> bool {
        self.shared.started.elapsed() < self.until
    }

    fn member(&self, random: &mut SmallRng) -> Option<Arc<Member>> {
        let open = self.open.lock().expect("no panic while locked");
        let at = random.random_range(0..open.len().max(1));
        open.values().nth(at).cloned()
    }

    /// Closed loop: a write or a linearizable read at whichever member it finds, until the faults are over.
    pub async fn write_and_read(self) {
        let mut random = SmallRng::seed_from_u64(self.seed);
        let (mut written, mut operation) = (0, 0);
        while self.works() {
            Runtime::sleep(Duration::from_millis(random.random_range(1..200))).await;
            let Some(member) = self.member(&mut random) else { continue };
            let key = random.random_range(0..KEYS);
            let writes = random.random_bool(0.6);
            written += u64::from(writes);
            operation += 1;
            if self.skip.operation(self.number, operation - 1) {
                continue;
            }
            if writes {
                write(&self.shared, &member, key, self.number * 1_000_000 + written).await;
            } else {
                read(&self.shared, &member, key).await;
            }
        }
    }

    /// Grants a lease, hangs a key on it, keeps it alive for a while, and lets it go; again and again.
    pub async fn hold_leases(self) {
        let mut random = SmallRng::seed_from_u64(self.seed);
        let mut lease = i64::try_from(self.number).unwrap_or(0) * 1_000;
        let mut operation = 0;
        while self.works() {
            lease += 1;
            let seconds = random.random_range(2..6);
            operation += 1;
            if self.skip.operation(self.number, operation - 1) {
                Runtime::sleep(Duration::from_millis(100)).await;
                continue;
            }
            let grant = Command::LeaseGrant { id: lease, ttl: seconds };
            if self.renew(&mut random, lease, grant).await.is_none() {
                continue;
            }
            let put = PutRequest {
                key: bytes(LEASED + lease.unsigned_abs()),
                value: bytes(lease.unsigned_abs()),
                lease,
                ..PutRequest::default()
            };
            if let Some(member) = self.member(&mut random) {
                // Unknown is as good: what counts is that the key never goes too early.
                let _ = Runtime::timeout(PATIENCE, member.propose(Command::Put(put))).await;
            }
            for _ in 0..random.random_range(0..6) {
                Runtime::sleep(Duration::from_millis(random.random_range(100..seconds as u64 * 900))).await;
                if self.renew(&mut random, lease, Command::LeaseKeepAlive { id: lease }).await == Some(0) {
                    break;
                }
            }
        }
    }

    /// Reads the past at whichever member it finds, without asking the others, and compacts now and then.
    pub async fn compact_and_look_back(self) {
        let mut random = SmallRng::seed_from_u64(self.seed);
        let mut operation = 0;
        while self.works() {
            Runtime::sleep(Duration::from_millis(random.random_range(20..400))).await;
            let Some(member) = self.member(&mut random) else { continue };
            let newest = member.shared.read(|state, _| state.revision()).unwrap_or(1);
            let revision = random.random_range((newest - 60).max(1)..=newest);
            operation += 1;
            if self.skip.operation(self.number, operation - 1) {
                continue;
            }
            if random.random_bool(0.05) {
                // Refused, lost or done: all is well that reads can tell.
                let _ = Runtime::timeout(PATIENCE, member.propose(Command::Compact { revision })).await;
            } else {
                self.look_back(&member, random.random_range(0..KEYS), revision);
            }
        }
    }

    /// S8: a read at an old revision shows what was then, or says that it is compacted.
    fn look_back(&self, member: &Member, key: u64, revision: i64) {
        let request = RangeRequest { key: bytes(key), revision, ..RangeRequest::default() };
        let answer = member.shared.read(|state, backend| range(state, backend, &request));
        let Some(Ok(answer)) = answer else { return };
        let value = answer.kvs.first().map(|kv| number(&kv.value));
        let mut record = self.shared.record();
        record.old_reads += 1;
        let then = record.log.range(..=revision).rev().find(|(_, (k, _))| *k == key);
        let expected = then.map(|(_, (_, value))| *value);
        drop(record);
        if value != expected {
            let story = format!("m{} key {key} at {revision}: {value:?}, not {expected:?}", member.id);
            self.shared.violated("S8", story);
        }
    }

    /// Sends a grant or a keep-alive; its TTL in seconds (0: the lease is gone), or nothing when the outcome is unknown.
    async fn renew(&self, random: &mut SmallRng, lease: i64, command: Command) -> Option<i64> {
        Runtime::sleep(Duration::from_millis(random.random_range(1..100))).await;
        let member = self.member(random)?;
        let invoked = self.shared.now();
        let attempt = async {
            if matches!(command, Command::LeaseKeepAlive { .. })
                && let Some(found) = kept(&member, lease).await
            {
                return Some(found);
            }
            match member.propose(command).await {
                Ok((
                    _,
                    Response::LeaseGrant { ttl, revision, .. }
                    | Response::LeaseKeepAlive { ttl, revision, .. },
                )) => Some((ttl, revision)),
                _ => None,
            }
        };
        let (ttl, revision) = Runtime::timeout(PATIENCE, attempt).await.ok()??;
        self.shared.trace(format!("m{} lease {lease} -> {ttl} s at {revision}", member.id));
        if ttl > 0 {
            self.shared.promise(lease, invoked, ttl);
        }
        Some(ttl)
    }
}

/// A keep-alive that needs no log, as the store's connections ask it: TTL and revision, or nothing when it does.
async fn kept(member: &Member, lease: i64) -> Option<(i64, i64)> {
    let seen = member.reads.index().await.ok()?;
    member.shared.wait_applied(seen.index).await.ok()?;
    let stamp = seen.stamp?;
    let look = |state: &State| (state.lessor().kept(lease, stamp), state.revision());
    match member.shared.read(|state, _| look(state))? {
        (Kept::Unknown, revision) => Some((0, revision)),
        (Kept::Lasting { ttl }, revision) => Some((ttl, revision)),
        (Kept::Ageing, _) => None,
    }
}

async fn write(shared: &Shared, member: &Member, key: u64, value: u64) {
    let invoked = shared.now();
    let put = Command::Put(PutRequest { key: bytes(key), value: bytes(value), ..PutRequest::default() });
    let answer = Runtime::timeout(PATIENCE, member.propose(put)).await;
    let revision = match answer {
        Ok(Ok((_, Response::Put(put)))) => Some(put.revision),
        _ => None,
    };
    let returned = shared.now();
    shared.trace(format!("m{} write {key}={value} -> {revision:?}", member.id));
    shared.record().history.push(Operation::Write { key, value, invoked, returned, revision });
}

async fn read(shared: &Shared, member: &Member, key: u64) {
    let invoked = shared.now();
    if !matches!(Runtime::timeout(PATIENCE, member.read_index()).await, Ok(Ok(()))) {
        return;
    }
    let request = RangeRequest { key: bytes(key), ..RangeRequest::default() };
    let Some(Ok(answer)) = member.shared.read(|state, backend| range(state, backend, &request)) else {
        return;
    };
    let value = answer.kvs.first().map(|kv| number(&kv.value));
    let returned = shared.now();
    let revision = answer.revision;
    shared.trace(format!("m{} read {key} -> {value:?} at {revision}", member.id));
    shared.record().history.push(Operation::Read { key, value, invoked, returned, revision });
}
