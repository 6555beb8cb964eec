//! The same random operations in lockstep to several servers, every answer compared field by field.
//!
//! The first server is the reference (etcd), the others are ours. `generate` makes operations, `operation` says what of
//! an answer is a fact, `peer` carries them. Watch streams are compared whenever every watcher must have shown a known
//! number of events, which a witness (a watcher of everything, on a stream of its own) tells.

pub mod generate;
pub mod operation;
pub mod peer;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use futures::future::join_all;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::mvccpb;

use generate::{Generator, View};
use operation::{Answer, Operation, revision};
pub use peer::Peer;

/// Operations between two comparisons of the watch streams.
const STRIDE: usize = 25;
/// Operations shown before one whose answers differ.
const SHOWN: usize = 12;

/// An answer known to differ, and why.
pub struct Known {
    /// A name for the count.
    pub name: &'static str,
    /// The reason, as it stands in `docs/compatibility.md`.
    pub why: &'static str,
    /// Whether the difference is this one: what was asked, the reference's answer, ours.
    pub covers: fn(&Operation, &Answer, &Answer) -> bool,
}

/// One event as the witness had it.
struct Happened {
    revision: i64,
    delete: bool,
    key: Bytes,
}

/// An open watcher.
struct Watcher {
    stream: usize,
    id: i64,
    request: pb::WatchCreateRequest,
    /// The first revision that it shows.
    from: i64,
    /// Events that it must have shown by now and that were not compared yet.
    owed: usize,
}

impl Watcher {
    fn shows(&self, event: &Happened) -> bool {
        let (key, end) = (&self.request.key, &self.request.range_end);
        let within = match end.as_ref() {
            b"" => event.key == *key,
            b"\0" => event.key >= *key,
            _ => event.key >= *key && event.key < *end,
        };
        let filter = i32::from(event.delete);
        within && event.revision >= self.from && !self.request.filters.contains(&filter)
    }
}

fn streamable(r: &pb::RangeRequest) -> bool {
    let plain = pb::RangeRequest {
        min_mod_revision: 0,
        max_mod_revision: 0,
        min_create_revision: 0,
        max_create_revision: 0,
        sort_order: 0,
        sort_target: 0,
        ..r.clone()
    };
    *r == plain
}

/// What a run did.
#[derive(Debug, Default)]
pub struct Report {
    /// Operations whose answers were compared.
    pub operations: usize,
    /// How many of them were refused.
    pub refused: usize,
    /// Events compared, over all watchers.
    pub events: usize,
    /// Watchers opened.
    pub watchers: usize,
    /// Differences, by the known one that covers them.
    pub known: BTreeMap<&'static str, usize>,
}

/// A run in progress.
pub struct Lockstep {
    peers: Vec<Peer>,
    known: &'static [Known],
    view: View,
    history: Vec<Happened>,
    watchers: Vec<Watcher>,
    recent: VecDeque<String>,
    report: Report,
}

impl Lockstep {
    /// The reference first.
    pub async fn new(peers: Vec<Peer>, known: &'static [Known]) -> Lockstep {
        let mut lockstep = Lockstep {
            peers,
            known,
            view: View { revision: 1, ..View::default() },
            history: Vec::new(),
            watchers: Vec::new(),
            recent: VecDeque::new(),
            report: Report::default(),
        };
        let request = pb::WatchCreateRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            prev_kv: true,
            ..Default::default()
        };
        lockstep.ask(&Operation::Watch { stream: 0, request, ends: false }, 0).await;
        lockstep.watchers.clear();
        lockstep.view.watchers.clear();
        lockstep
    }

    /// Asks so many operations.
    ///
    /// # Panics
    /// At the first difference that is not known, with the operation, both answers and what was asked before.
    pub async fn run(mut self, seed: u64, operations: usize) -> Report {
        let old = !self.peers[0].streams_ranges;
        let mut generator = Generator::new(seed, old);
        for turn in 0..operations {
            let mut operation = generator.next(&self.view);
            // A stream of ours is compared with a range of etcd's, but for ranges that cannot be streamed.
            if let Operation::RangeStream(r) = &operation
                && old
                && !streamable(r)
            {
                operation = Operation::Range(r.clone());
            }
            let synced = matches!(
                operation,
                Operation::Watch { .. }
                    | Operation::Cancel { .. }
                    | Operation::Progress { .. }
                    | Operation::Compact(_)
            );
            if synced || turn % STRIDE == 0 {
                self.compare_streams().await;
            }
            self.ask(&operation, turn).await;
            if turn % 100_000 == 99_999 {
                println!("{} operations, revision {}", turn + 1, self.view.revision);
            }
        }
        self.compare_streams().await;
        self.report
    }

    fn differ(&self, what: &str) -> ! {
        let recent: Vec<&str> = self.recent.iter().map(String::as_str).collect();
        panic!("after {} operations:\n{}\n{what}", self.report.operations, recent.join("\n"));
    }

    async fn ask(&mut self, operation: &Operation, turn: usize) {
        if self.recent.len() == SHOWN {
            self.recent.pop_front();
        }
        self.recent.push_back(format!("{operation:?}"));
        let answers = join_all(self.peers.iter_mut().map(|peer| peer.call(operation, turn))).await;
        for (at, answer) in answers.iter().enumerate().skip(1) {
            self.compare(operation, at, &answers[0], answer);
        }
        self.report.operations += 1;
        self.learn(operation, &answers[0]);
    }

    fn compare(&mut self, operation: &Operation, at: usize, reference: &Answer, ours: &Answer) {
        if reference == ours {
            return;
        }
        match self.known.iter().find(|known| (known.covers)(operation, reference, ours)) {
            Some(known) => *self.report.known.entry(known.name).or_default() += 1,
            None => {
                let (first, name) = (&self.peers[0].name, &self.peers[at].name);
                self.differ(&format!("{first}: {reference:?}\n{name}: {ours:?}"));
            }
        }
    }

    /// Takes in what the reference answered.
    fn learn(&mut self, operation: &Operation, answer: &Answer) {
        if matches!(answer, Answer::Error { .. }) {
            self.report.refused += 1;
        }
        if let Some(revision) = revision(answer) {
            self.view.revision = self.view.revision.max(revision);
        }
        match (operation, answer) {
            (Operation::Compact(r), Answer::Compact(_)) => {
                self.view.compacted = r.revision;
                self.history.retain(|event| event.revision > r.revision);
            }
            (Operation::Grant(r), Answer::Grant(_)) if r.id == 0 => self.view.chosen += 1,
            (Operation::Watch { stream, request, .. }, Answer::Watch(answers)) => {
                let ended = answers.iter().any(|answer| answer.canceled);
                if answers.len() > 1 {
                    self.view.silent.insert(*stream);
                }
                if let ([created, ..], false) = (&answers[..], ended) {
                    self.opened(*stream, request, created);
                }
            }
            (Operation::Cancel { stream, id }, Answer::Watch(_)) => {
                self.watchers.retain(|watcher| (watcher.stream, watcher.id) != (*stream, *id));
                self.view.watchers.retain(|(at, known, _)| (at, known) != (stream, id));
            }
            _ => {}
        }
    }

    fn opened(&mut self, stream: usize, request: &pb::WatchCreateRequest, created: &pb::WatchResponse) {
        let from = match request.start_revision {
            0 => self.view.revision + 1,
            start => start,
        };
        let id = created.watch_id;
        let mut watcher = Watcher { stream, id, request: request.clone(), from, owed: 0 };
        watcher.owed = self.history.iter().filter(|event| watcher.shows(event)).count();
        self.watchers.push(watcher);
        self.view.watchers.push((stream, id, from));
        self.report.watchers += 1;
    }

    /// Waits until every watcher of every server has shown what it must, and compares.
    async fn compare_streams(&mut self) {
        let revision = self.view.revision;
        let witnesses = join_all(self.peers.iter().map(|peer| peer.witness(revision))).await;
        self.same_events("the witness", &witnesses);
        for event in &witnesses[0] {
            let kv = event.kv.as_ref().expect("an event has a key");
            let happened =
                Happened { revision: kv.mod_revision, delete: event.r#type == 1, key: kv.key.clone() };
            for watcher in self.watchers.iter_mut().filter(|watcher| watcher.shows(&happened)) {
                watcher.owed += 1;
            }
            self.history.push(happened);
        }
        let mut compared = 0;
        for watcher in &self.watchers {
            let (stream, id, owed) = (watcher.stream, watcher.id, watcher.owed);
            let shown = join_all(self.peers.iter().map(|peer| peer.events(stream, id, owed))).await;
            let name = format!("stream {}, watch {} of {:?}", watcher.stream, watcher.id, watcher.request);
            self.same_events(&name, &shown);
            if shown[0].len() != watcher.owed {
                self.differ(&format!("{name} owes {} events, shows {:?}", watcher.owed, shown[0]));
            }
            compared += watcher.owed;
        }
        self.watchers.iter_mut().for_each(|watcher| watcher.owed = 0);
        self.report.events += compared;
        let watchers = &self.watchers;
        let open = |stream, id| watchers.iter().any(|watcher| (watcher.stream, watcher.id) == (stream, id));
        for peer in &self.peers {
            let stray = peer.stray(open);
            if !stray.is_empty() {
                self.differ(&format!("{}: {}", peer.name, stray.join("\n")));
            }
        }
    }

    fn same_events(&self, what: &str, shown: &[Vec<mvccpb::Event>]) {
        for (peer, events) in self.peers[1..].iter().zip(&shown[1..]) {
            if *events != shown[0] {
                let at = events.iter().zip(&shown[0]).position(|(a, b)| a != b);
                let at = at.unwrap_or(events.len().min(shown[0].len()));
                self.differ(&format!(
                    "{what}, event {at}:\n{}: {:?}\n{}: {:?}",
                    self.peers[0].name,
                    &shown[0][at..shown[0].len().min(at + 3)],
                    peer.name,
                    &events[at..events.len().min(at + 3)],
                ));
            }
        }
    }
}
