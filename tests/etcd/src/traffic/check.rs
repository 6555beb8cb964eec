//! Judges what the clients of a run saw: the watch properties of the store, lists, acknowledged writes. Pure.
//!
//! The truth is what all watchers together saw; where two of them differ about one revision, that is a violation. A
//! watcher of everything must have seen every revision, so that the truth has no gap; then each watcher must have seen
//! exactly its part of it, each list must show the state at its revision, each acknowledged write must be there.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

/// A number that stands for a value.
pub fn digest(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// One event as a watcher saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its revision.
    pub revision: i64,
    /// Its key.
    pub key: String,
    /// The value's digest; `None` for a deletion.
    pub value: Option<u64>,
    /// `create_revision` of the record, 0 for a deletion.
    pub create: i64,
    /// `version` of the record, 0 for a deletion.
    pub version: i64,
    /// The record before: its `mod_revision` and its value's digest.
    pub prev: Option<(i64, u64)>,
    /// The newest compaction that had been asked for when the event was seen.
    pub compacted: i64,
}

/// What happened to a watcher, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It listed at a revision, and watches from the next.
    Listed(i64),
    /// The events of one answer; whether more fragments of it follow.
    Answer(Vec<Seen>, bool),
    /// It was told that it has seen everything up to a revision.
    Progress(i64),
    /// Its stream was opened again from where it was.
    Resumed,
}

/// One watcher's life.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// For messages.
    pub name: String,
    /// The prefix that it watches; empty for everything.
    pub prefix: String,
    /// In order.
    pub entries: Vec<Entry>,
}

/// A write that was acknowledged.
#[derive(Clone, Debug)]
pub struct Write {
    /// Its revision.
    pub revision: i64,
    /// Its key.
    pub key: String,
    /// The value's digest; `None` for a deletion.
    pub value: Option<u64>,
}

/// A list that was answered, over as many pages as it had.
#[derive(Clone, Debug)]
pub struct List {
    /// Of which prefix.
    pub prefix: String,
    /// At which revision.
    pub revision: i64,
    /// The newest revision that had been acknowledged when it was begun.
    pub floor: i64,
    /// [`digest`] of all `(key, mod_revision)` in order, as `Vec<(String, i64)>`.
    pub content: u64,
}

/// What a sound run amounts to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Revisions in the truth.
    pub revisions: usize,
    /// Events seen, over all watchers.
    pub events: usize,
    /// Lists compared with the truth.
    pub lists: usize,
    /// Acknowledged writes found in it.
    pub writes: usize,
    /// Times a stream was opened again and went on.
    pub resumed: usize,
    /// Times a watcher had to list again because its start was compacted.
    pub relisted: usize,
    /// Bookmarks.
    pub progress: usize,
}

/// A property that does not hold, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The property's id.
    pub property: &'static str,
    /// What was seen.
    pub text: String,
}

fn violated<T>(property: &'static str, text: String) -> Result<T, Violation> {
    Err(Violation { property, text })
}

type Truth = BTreeMap<(i64, String), Seen>;

/// Judges a run.
///
/// # Errors
/// The first violation.
pub fn check(logs: &[Log], writes: &[Write], lists: &[List]) -> Result<Report, Violation> {
    let mut report = Report { lists: lists.len(), writes: writes.len(), ..Report::default() };
    for log in logs {
        order(log, &mut report)?;
    }
    let truth = merge(logs)?;
    report.revisions = truth.keys().map(|(revision, _)| revision).collect::<BTreeSet<_>>().len();
    no_gap(logs, &truth)?;
    history(&truth)?;
    for log in logs {
        complete(log, &truth)?;
    }
    for write in writes {
        match truth.get(&(write.revision, write.key.clone())) {
            Some(seen) if seen.value == write.value => {}
            other => return violated("S25", format!("{write:?} was acknowledged; seen: {other:?}")),
        }
    }
    listed(lists, &truth)?;
    Ok(report)
}

/// S10 ordered, S11 unique, S12 atomic, S13 bookmarkable: each log alone.
fn order(log: &Log, report: &mut Report) -> Result<(), Violation> {
    // Everything up to here has been shown.
    let mut shown = 0;
    let mut open_fragment = None;
    let mut listed_before = false;
    for entry in &log.entries {
        match entry {
            Entry::Listed(revision) => {
                report.relisted += usize::from(listed_before);
                listed_before = true;
                (shown, open_fragment) = (*revision, None);
            }
            Entry::Resumed => {
                report.resumed += 1;
                open_fragment = None;
            }
            Entry::Progress(revision) => {
                report.progress += 1;
                shown = shown.max(*revision);
            }
            Entry::Answer(events, more) => {
                report.events += events.len();
                let Some((first, last)) = events.first().zip(events.last()) else { continue };
                if first.revision <= shown && open_fragment != Some(first.revision) {
                    let text = format!("{}: {first:?} after everything up to {shown} was shown", log.name);
                    return violated("S10 S11 S12 S13", text);
                }
                let key = |seen: &Seen| (seen.revision, seen.key.clone());
                if !events.is_sorted_by(|a, b| a.revision <= b.revision)
                    || events.iter().map(key).collect::<BTreeSet<_>>().len() != events.len()
                {
                    return violated("S10 S11", format!("{}: {events:?}", log.name));
                }
                shown = last.revision;
                open_fragment = more.then_some(last.revision);
            }
        }
    }
    Ok(())
}

fn answers(log: &Log) -> impl Iterator<Item = &Seen> {
    log.entries.iter().flat_map(|entry| match entry {
        Entry::Answer(events, _) => &events[..],
        _ => &[],
    })
}

/// All watchers agree about what happened.
fn merge(logs: &[Log]) -> Result<Truth, Violation> {
    let mut truth = Truth::new();
    for seen in logs.iter().flat_map(answers) {
        let known = truth.entry((seen.revision, seen.key.clone())).or_insert_with(|| seen.clone());
        let same = (known.value, known.create, known.version) == (seen.value, seen.create, seen.version);
        if !same {
            return violated("S5", format!("{known:?} and {seen:?}"));
        }
        if known.prev.is_some() && seen.prev.is_some() && known.prev != seen.prev {
            return violated("S16", format!("{known:?} and {seen:?}"));
        }
        known.prev = known.prev.or(seen.prev);
        known.compacted = known.compacted.min(seen.compacted);
    }
    // One who lagged may have found the record before compacted; nobody else goes without it.
    let lost = |seen: &&Seen| {
        let known = &truth[&(seen.revision, seen.key.clone())];
        known.prev.is_some() && seen.prev.is_none() && seen.compacted < seen.revision
    };
    match logs.iter().flat_map(answers).find(lost) {
        Some(seen) => violated("S16", format!("{seen:?}, others saw the record before")),
        None => Ok(truth),
    }
}

/// S15 for those who watch everything: every revision from the first to the last.
fn no_gap(logs: &[Log], truth: &Truth) -> Result<(), Violation> {
    let everything = logs.iter().filter(|log| log.prefix.is_empty());
    let seen: BTreeSet<i64> = everything.flat_map(answers).map(|seen| seen.revision).collect();
    // After their end others may have seen more.
    let Some(((first, _), last)) = truth.keys().next().zip(seen.last()) else {
        return violated("S15", "nobody saw anything".to_owned());
    };
    let Some(missing) = (*first..=*last).find(|revision| !seen.contains(revision)) else { return Ok(()) };
    let around = |log: &Log| format!("{}: {:?}", log.name, around(log, missing));
    let around: Vec<String> = logs.iter().filter(|log| log.prefix.is_empty()).map(around).collect();
    let text = format!("nobody who watches everything saw revision {missing}; {}", around.join("; "));
    violated("S15", text)
}

/// What a watcher saw just before and after a revision.
fn around(log: &Log, revision: i64) -> &[Entry] {
    let later = |entry: &Entry| match entry {
        Entry::Listed(at) | Entry::Progress(at) => *at >= revision,
        Entry::Answer(events, _) => events.iter().any(|seen| seen.revision >= revision),
        Entry::Resumed => false,
    };
    let at = log.entries.iter().position(later).unwrap_or(log.entries.len());
    &log.entries[at.saturating_sub(4)..(at + 3).min(log.entries.len())]
}

/// S16 prevKV, S17 isCreate: each record follows from the one before. What was before the first event is unknown.
fn history(truth: &Truth) -> Result<(), Violation> {
    let mut now: BTreeMap<&str, &Seen> = BTreeMap::new();
    for seen in truth.values() {
        let before = now.insert(&seen.key, seen);
        let expected = before.and_then(|before| Some((before.revision, before.value?)));
        if seen.prev != expected && (before.is_some() || seen.prev.is_some() && seen.version == 1) {
            let lost = seen.prev.is_none() && seen.compacted >= seen.revision;
            if !lost {
                return violated("S16", format!("{seen:?} after {before:?}"));
            }
        }
        let (create, version) = match (before.filter(|before| before.value.is_some()), seen.value) {
            (_, None) => (0, 0),
            (Some(before), Some(_)) => (before.create, before.version + 1),
            (None, Some(_)) if before.is_some() => (seen.revision, 1),
            (None, Some(_)) => continue,
        };
        if (seen.create, seen.version) != (create, version) {
            return violated("S17", format!("{seen:?}, expected create {create} and version {version}"));
        }
    }
    Ok(())
}

/// S9 filter, S14 resumable, S15 reliable: between a list and the end of what it was shown, a watcher saw exactly its
/// part of the truth.
fn complete(log: &Log, truth: &Truth) -> Result<(), Violation> {
    let mut shown = i64::MAX;
    let mut part: Vec<&Seen> = Vec::new();
    let close = |from: i64, to: i64, part: &[&Seen]| -> Result<(), Violation> {
        if from >= to {
            return Ok(());
        }
        let range = truth.range((from + 1, String::new())..(to + 1, String::new()));
        let expected: BTreeSet<(i64, &str)> = range
            .filter(|((_, key), _)| key.starts_with(&log.prefix))
            .map(|((revision, key), _)| (*revision, key.as_str()))
            .collect();
        let got: BTreeSet<(i64, &str)> = part.iter().map(|seen| (seen.revision, seen.key.as_str())).collect();
        match expected.symmetric_difference(&got).next() {
            Some(other) => {
                let missing = expected.contains(other);
                let text = format!("{} between {from} and {to}: {other:?}, missing: {missing}", log.name);
                violated(if missing { "S14 S15" } else { "S9" }, text)
            }
            None => Ok(()),
        }
    };
    let mut from = i64::MAX;
    for entry in &log.entries {
        match entry {
            Entry::Listed(revision) => {
                close(from, shown, &part)?;
                (from, shown) = (*revision, *revision);
                part.clear();
            }
            Entry::Answer(events, _) => {
                part.extend(events);
                shown = events.last().map_or(shown, |seen| seen.revision.max(shown));
            }
            Entry::Progress(revision) => shown = shown.max(*revision),
            Entry::Resumed => {}
        }
    }
    close(from, shown, &part)
}

/// S8, S23: each list is the state at its revision, which is not older than what had been acknowledged.
fn listed(lists: &[List], truth: &Truth) -> Result<(), Violation> {
    let mut lists: Vec<&List> = lists.iter().collect();
    lists.sort_by_key(|list| list.revision);
    let mut events = truth.values().peekable();
    let mut state: BTreeMap<&str, i64> = BTreeMap::new();
    for list in lists {
        if list.revision < list.floor {
            return violated("S23", format!("{list:?}"));
        }
        while let Some(seen) = events.next_if(|seen| seen.revision <= list.revision) {
            match seen.value {
                Some(_) => state.insert(&seen.key, seen.revision),
                None => state.remove(seen.key.as_str()),
            };
        }
        let within = state.range(list.prefix.as_str()..).take_while(|(key, _)| key.starts_with(&list.prefix));
        let content: Vec<(String, i64)> = within.map(|(key, at)| ((*key).to_owned(), *at)).collect();
        if digest(&content) != list.content {
            return violated("S8", format!("{list:?} is not {content:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(revision: i64, key: &str, create: i64, version: i64, prev: Option<i64>) -> Seen {
        let prev = prev.map(|at| (at, digest(at)));
        let (key, value) = (key.to_owned(), Some(digest(revision)));
        Seen { revision, key, value, create, version, prev, compacted: 0 }
    }

    fn delete(revision: i64, key: &str, prev: i64) -> Seen {
        let (key, prev) = (key.to_owned(), Some((prev, digest(prev))));
        Seen { revision, key, value: None, create: 0, version: 0, prev, compacted: 0 }
    }

    fn sound() -> (Vec<Log>, Vec<Write>, Vec<List>) {
        let all = vec![
            Entry::Listed(1),
            Entry::Answer(vec![put(2, "a/1", 2, 1, None)], false),
            Entry::Answer(vec![put(3, "a/1", 2, 2, Some(2)), put(4, "b/1", 4, 1, None)], false),
            Entry::Progress(4),
            Entry::Resumed,
            Entry::Answer(vec![delete(5, "a/1", 3), put(5, "b/1", 4, 2, Some(4))], false),
            Entry::Answer(vec![put(6, "a/1", 6, 1, None)], false),
        ];
        let part = vec![
            Entry::Listed(2),
            Entry::Answer(vec![put(3, "a/1", 2, 2, Some(2))], false),
            Entry::Answer(vec![delete(5, "a/1", 3)], false),
            Entry::Answer(vec![put(6, "a/1", 6, 1, None)], false),
        ];
        let log = |name: &str, prefix: &str, entries| Log {
            name: name.to_owned(),
            prefix: prefix.to_owned(),
            entries,
        };
        let writes = vec![Write { revision: 3, key: "a/1".to_owned(), value: Some(digest(3i64)) }];
        let content = digest(vec![("a/1".to_owned(), 3i64)]);
        let lists = vec![List { prefix: "a/".to_owned(), revision: 4, floor: 3, content }];
        (vec![log("all", "", all), log("part", "a/", part)], writes, lists)
    }

    fn broken(change: impl Fn(&mut Vec<Log>, &mut Vec<Write>, &mut Vec<List>)) -> &'static str {
        let (mut logs, mut writes, mut lists) = sound();
        change(&mut logs, &mut writes, &mut lists);
        check(&logs, &writes, &lists).expect_err("a violation").property
    }

    #[test]
    fn a_sound_run_passes() {
        let (logs, writes, lists) = sound();
        let report = check(&logs, &writes, &lists).expect("sound");
        let expected =
            Report { revisions: 5, events: 9, lists: 1, writes: 1, resumed: 1, relisted: 0, progress: 1 };
        assert_eq!(report, expected);
    }

    #[test]
    fn each_violation_is_found() {
        let entry =
            |log: usize, at: usize, new: Entry| broken(move |logs, _, _| logs[log].entries[at] = new.clone());
        // A missing event, in the middle of a part and at a resumption.
        assert_eq!(entry(1, 2, Entry::Resumed), "S14 S15");
        // One that is shown twice, one out of order, one that its filter excludes.
        assert_eq!(
            broken(|logs, _, _| {
                let twice = logs[1].entries[1].clone();
                logs[1].entries.push(twice);
            }),
            "S10 S11 S12 S13"
        );
        assert_eq!(broken(|logs, _, _| logs[0].entries.swap(1, 2)), "S10 S11 S12 S13");
        assert_eq!(
            entry(1, 2, Entry::Answer(vec![put(4, "b/1", 4, 1, None), delete(5, "a/1", 3)], false)),
            "S9"
        );
        // A revision split over answers, a bookmark ahead of its events.
        let split = |logs: &mut Vec<Log>, more: bool| {
            logs[0].entries[5] = Entry::Answer(vec![delete(5, "a/1", 3)], more);
            logs[0].entries.insert(6, Entry::Answer(vec![put(5, "b/1", 4, 2, Some(4))], false));
        };
        assert_eq!(broken(|logs, _, _| split(logs, false)), "S10 S11 S12 S13");
        let (mut logs, writes, lists) = sound();
        split(&mut logs, true);
        assert!(check(&logs, &writes, &lists).is_ok(), "fragments may split a revision");
        assert_eq!(entry(0, 3, Entry::Progress(5)), "S10 S11 S12 S13");
        // A wrong record before, a creation that is none, another content of one revision.
        assert_eq!(
            broken(|logs, _, _| {
                for log in logs {
                    log.entries.iter_mut().for_each(|entry| {
                        if let Entry::Answer(events, _) = entry {
                            events
                                .iter_mut()
                                .filter(|seen| seen.revision == 3)
                                .for_each(|seen| seen.prev = None)
                        }
                    })
                }
            }),
            "S16"
        );
        assert_eq!(
            broken(|logs, _, _| {
                for log in logs {
                    log.entries.iter_mut().for_each(|entry| {
                        if let Entry::Answer(events, _) = entry {
                            events
                                .iter_mut()
                                .filter(|seen| seen.revision == 6)
                                .for_each(|seen| seen.create = 2)
                        }
                    })
                }
            }),
            "S17"
        );
        assert_eq!(entry(1, 1, Entry::Answer(vec![put(3, "a/1", 2, 3, Some(2))], false)), "S5");
        // A revision that nobody saw, a write that is not there, lists of another state or of the past.
        assert_eq!(entry(0, 2, Entry::Listed(4)), "S15");
        assert_eq!(broken(|_, writes, _| writes[0].revision = 7), "S25");
        assert_eq!(broken(|_, _, lists| lists[0].revision = 5), "S8");
        assert_eq!(broken(|_, _, lists| lists[0].floor = 5), "S23");
    }
}
