//! Exponential back-off counted from the failure, not from the attempt: 10 s, doubling, at most 5 minutes.
//!
//! The first retry is immediate (no entry yet); an entry is forgotten after two caps of calm.

use jiff::{SignedDuration, Timestamp};

pub const INITIAL: SignedDuration = SignedDuration::from_secs(10);
pub const CAP: SignedDuration = SignedDuration::from_secs(300);

/// The delay in force and when it was last raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Backoff {
    pub delay: SignedDuration,
    pub raised: Timestamp,
}

/// The moment until which nothing may be retried after a failure at `failed`, if that lies ahead of `now`.
pub fn held_until(entry: Option<&Backoff>, failed: Timestamp, now: Timestamp) -> Option<Timestamp> {
    let entry = entry?;
    if expired(entry, failed) {
        return None;
    }
    let until = failed.saturating_add(entry.delay).ok()?;
    (now < until).then_some(until)
}

/// The entry after one more retry following a failure at `failed`.
pub fn raised(entry: Option<&Backoff>, failed: Timestamp, now: Timestamp) -> Backoff {
    match entry {
        Some(entry) if !expired(entry, failed) => {
            let doubled = entry.delay.checked_mul(2).unwrap_or(CAP);
            Backoff { delay: doubled.min(CAP), raised: now }
        }
        _ => Backoff { delay: INITIAL, raised: now },
    }
}

fn expired(entry: &Backoff, failed: Timestamp) -> bool {
    failed.duration_since(entry.raised) > CAP * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn first_retry_is_immediate_then_delays_double_to_the_cap() {
        assert_eq!(held_until(None, at(0), at(0)), None);
        let mut entry = raised(None, at(0), at(0));
        let mut delays = vec![entry.delay.as_secs()];
        for _ in 0..6 {
            entry = raised(Some(&entry), at(1), at(1));
            delays.push(entry.delay.as_secs());
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(held_until(Some(&entry), at(1), at(2)), Some(at(301)));
        assert_eq!(held_until(Some(&entry), at(1), at(301)), None);
    }

    #[test]
    fn calm_of_two_caps_forgets() {
        let entry = Backoff { delay: CAP, raised: at(0) };
        assert_eq!(held_until(Some(&entry), at(601), at(602)), None);
        assert_eq!(raised(Some(&entry), at(601), at(602)).delay, INITIAL);
    }
}
