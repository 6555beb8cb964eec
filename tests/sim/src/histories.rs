//! Random histories of a small store, sound ones and broken ones, for the comparison with porcupine
//! (`cargo xtask referee`): the judge of a run must itself be judged.
//!
//! A sound history comes from a store that does each operation at one moment between its call and its return; a broken
//! one from changing one thing in it. A change may happen to leave the history sound: the referees say.

use std::fmt::Write as _;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use keelson_checker::{Log, Operation};

const CLIENTS: usize = 3;
const STEPS: u64 = 16;
const KEYS: u64 = 2;

/// The history of a seed; every second one has been tampered with.
pub fn history(seed: u64) -> (Vec<Operation>, Log) {
    let mut random = SmallRng::seed_from_u64(seed);
    let (mut operations, mut log) = sound(&mut random);
    if seed % 2 == 1 && !operations.is_empty() {
        tamper(&mut random, &mut operations, &mut log);
    }
    (operations, log)
}

fn newest(log: &Log) -> i64 {
    log.last_key_value().map_or(1, |(revision, _)| *revision)
}

fn sound(random: &mut SmallRng) -> (Vec<Operation>, Log) {
    let (mut operations, mut log) = (Vec::new(), Log::new());
    // Each client's operation under way, done or not.
    let mut open: [Option<(Operation, bool)>; CLIENTS] = [const { None }; CLIENTS];
    let mut value = 0;
    for now in 0..STEPS * 3 {
        let slot = &mut open[random.random_range(0..CLIENTS)];
        match slot {
            None => {
                let key = random.random_range(0..KEYS);
                value += 1;
                let write = random.random_bool(0.5);
                let operation = match write {
                    true => Operation::Write { key, value, invoked: now, returned: now, revision: None },
                    false => Operation::Read { key, value: None, invoked: now, returned: now, revision: 0 },
                };
                *slot = Some((operation, false));
            }
            Some((operation, done @ false)) => {
                perform(operation, &mut log);
                *done = true;
            }
            Some((operation, true)) => {
                match operation {
                    Operation::Write { returned, revision, .. } => {
                        *returned = now;
                        revision.take_if(|_| random.random_bool(0.25));
                    }
                    Operation::Read { returned, .. } => *returned = now,
                }
                operations.extend(slot.take().map(|(operation, _)| operation));
            }
        }
    }
    // Who got no answer knows nothing; a read without one is none.
    for (operation, _) in open.into_iter().flatten() {
        if let Operation::Write { key, value, invoked, .. } = operation {
            operations.push(Operation::Write { key, value, invoked, returned: invoked, revision: None });
        }
    }
    (operations, log)
}

fn perform(operation: &mut Operation, log: &mut Log) {
    match operation {
        Operation::Write { key, value, revision, .. } => {
            let next = newest(log) + 1;
            log.insert(next, (*key, *value));
            *revision = Some(next);
        }
        Operation::Read { key, value, revision, .. } => {
            *revision = newest(log);
            *value = log.values().rev().find(|(k, _)| k == key).map(|(_, value)| *value);
        }
    }
}

/// Changes one thing.
fn tamper(random: &mut SmallRng, operations: &mut [Operation], log: &mut Log) {
    let at = random.random_range(0..operations.len());
    let last = newest(log);
    match random.random_range(0..6) {
        // The log loses its end.
        0 => drop(log.pop_last()),
        // Two neighbours in the log change places.
        1 if last > 2 => {
            let first = random.random_range(2..last);
            let (a, b) = (log[&first], log[&(first + 1)]);
            log.insert(first, b);
            log.insert(first + 1, a);
        }
        // An operation happened at another time.
        2 | 3 => {
            let by = random.random_range(1..20);
            let later = random.random_bool(0.5);
            let shift = |time: &mut u64| *time = if later { *time + by } else { time.saturating_sub(by) };
            match &mut operations[at] {
                Operation::Write { invoked, returned, .. } | Operation::Read { invoked, returned, .. } => {
                    shift(invoked);
                    shift(returned);
                }
            }
        }
        // A revision was another.
        4 => match &mut operations[at] {
            Operation::Write { revision: Some(revision), .. } | Operation::Read { revision, .. } => {
                *revision = (*revision + random.random_range(-1..=1)).max(1);
            }
            Operation::Write { .. } => {}
        },
        // A value was another.
        _ => match &mut operations[at] {
            Operation::Write { value, .. } => *value += 1_000,
            Operation::Read { value, .. } => *value = log.values().next().map(|(_, value)| *value),
        },
    }
}

/// One line of JSON for the referee, our verdict included.
pub fn line(seed: u64) -> String {
    let (operations, log) = history(seed);
    let ours =
        keelson_checker::check(&operations, &log, newest(&log)).err().map_or("", |found| found.property);
    let mut text = String::from("{\"operations\":[");
    for (at, operation) in operations.iter().enumerate() {
        let (write, key, value, invoked, returned, revision) = match *operation {
            Operation::Write { key, value, invoked, returned, revision } => {
                (true, key, value as i64, invoked, returned, revision.unwrap_or(-1))
            }
            Operation::Read { key, value, invoked, returned, revision } => {
                (false, key, value.map_or(-1, |value| value as i64), invoked, returned, revision)
            }
        };
        let comma = if at > 0 { "," } else { "" };
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "{comma}{{\"write\":{write},\"key\":{key},\"value\":{value},\"invoked\":{invoked},\
             \"returned\":{returned},\"revision\":{revision}}}"
        );
    }
    let entries: Vec<String> =
        log.values().map(|(key, value)| format!("{{\"key\":{key},\"value\":{value}}}")).collect();
    let _ = write!(text, "],\"log\":[{}],\"ours\":\"{ours}\"}}", entries.join(","));
    text
}
