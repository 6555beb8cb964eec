//! Judges a history of client operations: linearizable, nothing acknowledged lost (S6, S7, S8, S25).
//!
//! Every acknowledged write carries its revision, so acknowledged writes are totally ordered and no search is
//! needed: their order must respect real time, the replicated log must hold each of them at its revision, and
//! each read must equal the state at its revision, a revision that real time allows. A write whose outcome is
//! unknown may stand in the log once or not at all; the log settles it.

use std::collections::{BTreeMap, BTreeSet};

/// Microseconds since the run's start, by whatever clock the run has.
pub type Time = u64;

/// What a client did and what it was told. Values are unique over a run, so that a log entry names its write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// `revision` is `None` when the outcome is unknown (timed out, connection lost).
    Write { key: u64, value: u64, invoked: Time, returned: Time, revision: Option<i64> },
    /// A linearizable read that was answered: the store's revision then and the key's value.
    Read { key: u64, value: Option<u64>, invoked: Time, returned: Time, revision: i64 },
}

/// The replicated history at the end of a run: revision -> (key, value).
pub type Log = BTreeMap<i64, (u64, u64)>;

/// The first violation found, with the property it breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub property: &'static str,
    pub story: String,
}

fn violation(property: &'static str, story: String) -> Result<(), Violation> {
    Err(Violation { property, story })
}

/// Checks a whole history against the log that survived; `newest` is the store's revision at its end.
pub fn check(history: &[Operation], log: &Log, newest: i64) -> Result<(), Violation> {
    acknowledged_writes_are_in_the_log(history, log)?;
    log_holds_only_what_was_asked(history, log)?;
    revisions_respect_real_time(history, log)?;
    reads_show_their_revision(history, log, newest)
}

fn acknowledged_writes_are_in_the_log(history: &[Operation], log: &Log) -> Result<(), Violation> {
    for operation in history {
        if let Operation::Write { key, value, revision: Some(revision), .. } = operation
            && log.get(revision) != Some(&(*key, *value))
        {
            return violation(
                "S25",
                format!("{operation:?} was acknowledged, the log has {:?} there", log.get(revision)),
            );
        }
    }
    Ok(())
}

fn log_holds_only_what_was_asked(history: &[Operation], log: &Log) -> Result<(), Violation> {
    let mut times: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    for write in log.values() {
        *times.entry(*write).or_default() += 1;
    }
    let wanted: BTreeSet<(u64, u64)> = history
        .iter()
        .filter_map(|operation| match operation {
            Operation::Write { key, value, .. } => Some((*key, *value)),
            Operation::Read { .. } => None,
        })
        .collect();
    for ((key, value), count) in times {
        let asked = wanted.contains(&(key, value));
        if !asked || count > 1 {
            return violation(
                "S6",
                format!("key {key} = {value} stands {count} times in the log, asked for: {asked}"),
            );
        }
    }
    Ok(())
}

/// What returned before another began has a revision no later: strictly earlier when the later one is a write.
fn revisions_respect_real_time(history: &[Operation], log: &Log) -> Result<(), Violation> {
    let places: BTreeMap<(u64, u64), i64> = log.iter().map(|(revision, write)| (*write, *revision)).collect();
    let mut by_invocation: Vec<(Time, Time, i64, bool, &Operation)> =
        history.iter().filter_map(|operation| timed(operation, &places)).collect();
    by_invocation.sort_by_key(|(invoked, ..)| *invoked);
    let mut by_return = by_invocation.clone();
    by_return.sort_by_key(|(_, returned, ..)| *returned);
    let mut settled = by_return.into_iter().peekable();
    let mut latest: Option<(i64, &Operation)> = None;
    for (invoked, _, revision, writes, operation) in by_invocation {
        while let Some((_, _, seen, _, earlier)) = settled.next_if(|(_, returned, ..)| *returned < invoked) {
            if latest.is_none_or(|(revision, _)| seen > revision) {
                latest = Some((seen, earlier));
            }
        }
        let Some((seen, earlier)) = latest else { continue };
        if revision < seen || (writes && revision == seen) {
            return violation(
                "S7",
                format!("{operation:?} began after {earlier:?} had returned, yet is older"),
            );
        }
    }
    Ok(())
}

/// When it was, its revision, and whether it writes. The log says where a write of unknown outcome stands, if it does; it
/// may have taken effect any time after its call.
fn timed<'a>(
    operation: &'a Operation,
    places: &BTreeMap<(u64, u64), i64>,
) -> Option<(Time, Time, i64, bool, &'a Operation)> {
    match operation {
        Operation::Write { invoked, returned, revision: Some(revision), .. } => {
            Some((*invoked, *returned, *revision, true, operation))
        }
        Operation::Write { key, value, invoked, revision: None, .. } => {
            Some((*invoked, Time::MAX, *places.get(&(*key, *value))?, true, operation))
        }
        Operation::Read { invoked, returned, revision, .. } => {
            Some((*invoked, *returned, *revision, false, operation))
        }
    }
}

fn reads_show_their_revision(history: &[Operation], log: &Log, newest: i64) -> Result<(), Violation> {
    for operation in history {
        let Operation::Read { key, value, revision, .. } = operation else { continue };
        if *revision > newest {
            return violation("S8", format!("{operation:?} saw a revision that never was"));
        }
        let expected =
            log.range(..=*revision).rev().find(|(_, (k, _))| k == key).map(|(_, (_, value))| *value);
        if expected != *value {
            return violation("S8", format!("{operation:?} should have seen {expected:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: u64, invoked: Time, returned: Time, revision: Option<i64>) -> Operation {
        Operation::Write { key: 1, value, invoked, returned, revision }
    }

    fn read(value: Option<u64>, invoked: Time, returned: Time, revision: i64) -> Operation {
        Operation::Read { key: 1, value, invoked, returned, revision }
    }

    fn property(history: &[Operation], log: &[(i64, u64)]) -> Option<&'static str> {
        let log: Log = log.iter().map(|(revision, value)| (*revision, (1, *value))).collect();
        let newest = log.last_key_value().map_or(1, |(revision, _)| *revision);
        check(history, &log, newest).err().map(|violation| violation.property)
    }

    #[test]
    fn a_sound_history_passes() {
        let history = [
            write(10, 0, 5, Some(2)),
            write(11, 6, 9, None),
            read(Some(11), 10, 12, 3),
            write(12, 7, 30, Some(4)),
        ];
        assert_eq!(property(&history, &[(2, 10), (3, 11), (4, 12)]), None);
    }

    #[test]
    fn a_lost_acknowledged_write_is_found() {
        assert_eq!(property(&[write(10, 0, 5, Some(2))], &[]), Some("S25"));
        assert_eq!(property(&[write(10, 0, 5, Some(2))], &[(2, 11)]), Some("S25"));
    }

    #[test]
    fn a_write_applied_twice_or_never_asked_for_is_found() {
        assert_eq!(property(&[write(10, 0, 5, Some(2))], &[(2, 10), (3, 10)]), Some("S6"));
        assert_eq!(property(&[], &[(2, 10)]), Some("S6"));
    }

    #[test]
    fn a_stale_read_is_found() {
        let history = [write(10, 0, 5, Some(2)), write(11, 6, 9, Some(3)), read(Some(10), 10, 12, 2)];
        assert_eq!(property(&history, &[(2, 10), (3, 11)]), Some("S7"));
    }

    #[test]
    fn a_read_of_the_wrong_value_is_found() {
        let history = [write(10, 0, 5, Some(2)), write(11, 6, 9, Some(3)), read(Some(10), 10, 12, 3)];
        assert_eq!(property(&history, &[(2, 10), (3, 11)]), Some("S8"));
    }

    /// Found by the comparison with porcupine: a write of unknown outcome was taken to be anywhere.
    #[test]
    fn a_write_of_unknown_outcome_in_the_log_before_its_call_is_found() {
        let history = [write(10, 0, 5, Some(3)), write(11, 6, 9, None)];
        assert_eq!(property(&history, &[(2, 11), (3, 10)]), Some("S7"));
        let seen = [read(Some(11), 0, 5, 2), write(11, 6, 9, None)];
        assert_eq!(property(&seen, &[(2, 11)]), Some("S7"));
    }

    #[test]
    fn writes_out_of_real_time_order_are_found() {
        let history = [write(10, 0, 5, Some(3)), write(11, 6, 9, Some(2))];
        assert_eq!(property(&history, &[(2, 11), (3, 10)]), Some("S7"));
    }
}
