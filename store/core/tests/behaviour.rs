//! What the other tests do not reach: alarms, members, mass expiry, fragments, progress, a batch's own view.

use bytes::Bytes;
use keelson_store_core::lease::{EXPIRE_PER_BATCH, SLACK};
use keelson_store_core::watch::{NO_WATCHER, WatchCreate, WatcherSet};
use keelson_store_core::{
    AlarmType, Batch, Command, DeleteRangeRequest, Effects, Error, Member, MemoryBackend, PutRequest,
    Response, RevisionEvents, Stamp, State, apply, invariants,
};

#[derive(Default)]
struct Store {
    state: State,
    backend: MemoryBackend,
    index: u64,
}

impl Store {
    fn batch(&mut self, millis: u64, commands: Vec<Command>) -> Effects {
        self.index += 1;
        let batch = Batch { stamp: Stamp { term: 1, millis }, commands };
        let effects = apply(&mut self.state, &self.backend, self.index, &batch);
        self.backend.write(&effects.writes);
        assert!(invariants::violated(&self.state, &self.backend).is_empty());
        effects
    }

    fn run(&mut self, command: Command) -> Result<Response, Error> {
        self.batch(0, vec![command]).responses.pop().expect("one command, one answer")
    }
}

fn put(key: &str, lease: i64) -> Command {
    Command::Put(PutRequest { key: Bytes::copy_from_slice(key.as_bytes()), lease, ..PutRequest::default() })
}

fn delete(key: &'static str) -> Command {
    Command::DeleteRange(DeleteRangeRequest { key: Bytes::from_static(key.as_bytes()), ..Default::default() })
}

#[test]
fn an_alarm_of_space_stops_what_grows_and_nothing_else() {
    let mut store = Store::default();
    store.run(put("a", 0)).expect("no alarm yet");
    store.run(Command::AlarmActivate { member: 1, alarm: AlarmType::NoSpace }).expect("raised");
    assert_eq!(store.run(put("b", 0)), Err(Error::NoSpace));
    assert_eq!(store.run(Command::LeaseGrant { id: 1, ttl: 5 }), Err(Error::NoSpace));
    assert!(store.run(delete("a")).is_ok(), "deleting frees space");
    assert!(store.run(Command::Compact { revision: 2 }).is_ok(), "compacting frees space");
    store.run(Command::AlarmDeactivate { member: 1, alarm: AlarmType::NoSpace }).expect("lowered");
    assert!(store.run(put("b", 0)).is_ok());
}

#[test]
fn an_alarm_of_corruption_stops_all_data_but_not_members() {
    let mut store = Store::default();
    store.run(Command::AlarmActivate { member: 1, alarm: AlarmType::Corrupt }).expect("raised");
    assert_eq!(store.run(put("b", 0)), Err(Error::Corrupt));
    assert_eq!(store.run(delete("b")), Err(Error::Corrupt));
    assert!(store.run(Command::MemberAdd(Member { id: 5, ..Member::default() })).is_ok());
}

#[test]
fn members_keep_their_rules() {
    let mut store = Store::default();
    let member =
        |id, url: &str| Member { id, peer_urls: vec![url.into()], is_learner: id == 2, ..Member::default() };
    store.run(Command::MemberAdd(member(1, "http://a"))).expect("the first");
    assert_eq!(store.run(Command::MemberAdd(member(1, "http://b"))), Err(Error::MemberExists));
    assert_eq!(store.run(Command::MemberAdd(member(3, "http://a"))), Err(Error::PeerUrlsExist));
    store.run(Command::MemberAdd(member(2, "http://b"))).expect("a learner");
    assert_eq!(store.run(Command::MemberPromote { id: 1 }), Err(Error::NotLearner));
    assert!(store.run(Command::MemberPromote { id: 2 }).is_ok());
    assert_eq!(store.run(Command::MemberRemove { id: 9 }), Err(Error::MemberNotFound));
    let response = store.run(Command::MemberRemove { id: 1 });
    assert!(matches!(response, Ok(Response::Members { members, .. }) if members.len() == 1));
}

#[test]
fn many_leases_expire_over_several_batches_soonest_first() {
    let mut store = Store::default();
    let count = EXPIRE_PER_BATCH + 3;
    for id in 1..=count as i64 {
        store.run(Command::LeaseGrant { id, ttl: 1 + id }).expect("granted");
        store.run(put(&format!("k{id}"), id)).expect("attached");
    }
    let before = store.state.revision();
    let first = store.batch(1_000_000, Vec::new());
    assert_eq!(first.expired, (1..=EXPIRE_PER_BATCH as i64).collect::<Vec<_>>());
    let second = store.batch(1_000_001, Vec::new());
    assert_eq!(second.expired.len(), 3);
    assert_eq!(
        store.state.revision(),
        before + count as i64,
        "each lease's keys go in a revision of their own"
    );
    assert!(store.state.lessor().is_empty());
}

#[test]
fn a_keep_alive_in_the_batch_of_the_deadline_wins() {
    let mut store = Store::default();
    store.run(Command::LeaseGrant { id: 7, ttl: 2 }).expect("granted");
    let deadline = 2_000 + SLACK;
    let effects = store.batch(deadline, vec![Command::LeaseKeepAlive { id: 7 }]);
    assert_eq!(effects.expired, [] as [i64; 0]);
    assert_eq!(store.batch(2 * deadline, Vec::new()).expired, [7]);
}

#[test]
fn a_key_put_again_under_another_lease_survives_the_first() {
    let mut store = Store::default();
    for id in [1, 2] {
        store.run(Command::LeaseGrant { id, ttl: 100 }).expect("granted");
        store.run(put("k", id)).expect("attached");
    }
    let revision = store.state.revision();
    assert_eq!(store.run(Command::LeaseRevoke { id: 1 }), Ok(Response::LeaseRevoke { revision }));
    assert_eq!(store.state.time_to_live(&store.backend, 2, true, Stamp::default()).keys, ["k"]);
}

#[test]
fn an_entry_seen_before_is_ignored() {
    let mut store = Store::default();
    store.run(put("a", 0)).expect("put");
    let (state, batch) = (store.state.clone(), Batch { commands: vec![put("a", 0)], ..Batch::default() });
    assert_eq!(apply(&mut store.state, &store.backend, 1, &batch), Effects::default());
    assert_eq!(store.state, state);
}

fn change(store: &mut Store, commands: Vec<Command>) -> Vec<RevisionEvents> {
    store.batch(0, commands).events
}

fn everything() -> WatchCreate {
    WatchCreate { range_end: Bytes::from_static(b"\0"), ..WatchCreate::default() }
}

#[test]
fn only_a_large_revision_is_fragmented_and_the_last_part_says_so() {
    let mut store = Store::default();
    let mut set = WatcherSet::new(1, 100);
    set.create(WatchCreate { fragment: true, ..everything() }, 1);
    set.create(everything(), 1);
    for key in ["a", "b", "c", "d", "e"] {
        change(&mut store, vec![put(key, 0)]);
    }
    set.lag(store.state.revision());
    let all = Command::DeleteRange(DeleteRangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        prev_kv: false,
    });
    let events = change(&mut store, vec![all]);
    assert_eq!(set.offer(&events[0]), [], "those behind get no live changes");
    let mut fresh = WatcherSet::new(store.state.revision() - 1, 100);
    fresh.create(WatchCreate { fragment: true, ..everything() }, 1);
    fresh.create(everything(), 1);
    let parts = fresh.offer(&events[0]);
    let of = |id| parts.iter().filter(move |part| part.watch_id == id);
    assert_eq!(of(1).map(|part| part.events.len()).collect::<Vec<_>>(), [5], "one answer without fragment");
    assert_eq!(of(0).map(|part| part.events.len()).sum::<usize>(), 5);
    let flags: Vec<bool> = of(0).map(|part| part.fragment).collect();
    assert!(flags.len() > 1);
    assert_eq!(flags.iter().position(|more| !more), Some(flags.len() - 1));
}

#[test]
fn revisions_that_are_there_together_are_one_answer_for_each_watcher() {
    let mut store = Store::default();
    let mut set = WatcherSet::new(1, 1000);
    set.create(everything(), 1);
    set.create(WatchCreate { key: Bytes::from_static(b"b"), ..WatchCreate::default() }, 1);
    set.create(WatchCreate { key: Bytes::from_static(b"c"), start_revision: 4, ..WatchCreate::default() }, 1);
    let keys = ["a", "b", "c", "b", "c"];
    let changes: Vec<_> = keys.iter().flat_map(|key| change(&mut store, vec![put(key, 0)])).collect();
    assert_eq!(set.offer(&changes[0]).len(), 1);
    // The first of them has been offered already.
    let answers = set.offer_all(&changes);
    let seen = |id: i64| -> Vec<i64> {
        let of = answers.iter().filter(|answer| answer.watch_id == id);
        of.flat_map(|answer| answer.events.iter().map(|event| event.kv.mod_revision)).collect()
    };
    assert_eq!((seen(0), seen(1), seen(2)), (vec![3, 4, 5, 6], vec![3, 5], vec![4, 6]));
    assert_eq!(answers.len(), 3);
    assert!(answers.iter().all(|answer| answer.revision == 6), "as of the last of them");
    assert_eq!(set.position(), 6);
    assert_eq!(set.offer_all(&changes), [], "nothing twice");
}

#[test]
fn asked_for_progress_waits_for_those_behind() {
    let mut store = Store::default();
    let mut set = WatcherSet::new(1, 1000);
    for key in ["a", "b"] {
        for events in change(&mut store, vec![put(key, 0)]) {
            set.offer(&events);
        }
    }
    assert_eq!(set.request_progress(), [], "no watchers, no answer");
    let late = WatchCreate { start_revision: 2, ..everything() };
    let id = set.create(late, 3).watch_id;
    assert_eq!(set.request_progress(), [], "one is behind");
    let answers = set.cancel(id, 3);
    assert_eq!(answers.len(), 1, "canceled, and nobody is left to be told of progress");
    let id = set.create(everything(), 3).watch_id;
    let answers = set.request_progress();
    assert_eq!((answers.len(), answers[0].watch_id, answers[0].revision), (1, NO_WATCHER, 3));
    assert!(set.contains(id));
}

#[test]
fn progress_ticks_spare_the_busy_and_those_who_did_not_ask() {
    let mut store = Store::default();
    let mut set = WatcherSet::new(1, 1000);
    let idle = set.create(
        WatchCreate { progress_notify: true, key: Bytes::from_static(b"z"), ..Default::default() },
        1,
    );
    set.create(WatchCreate { progress_notify: true, key: Bytes::from_static(b"a"), ..Default::default() }, 1);
    set.create(everything(), 1);
    let events = change(&mut store, vec![put("a", 0)]);
    set.offer(&events[0]);
    let notices: Vec<i64> = set.tick_progress().iter().map(|notice| notice.watch_id).collect();
    assert_eq!(notices, [idle.watch_id]);
    assert_eq!(set.tick_progress().len(), 2, "the busy one is idle by now");
}
