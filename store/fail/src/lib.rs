//! Fail points: named places in the store's shells where a test makes this process die, wait or meet an error.
//!
//! They are in every build with debug assertions and in no other: there `hit` is empty. A point is armed by name with
//! terms as gofail writes them (`panic`, `sleep("20ms")`, `return("EIO")`, chained by `->`, limited by `3*` or `50%`);
//! `keelson etcd` serves them over HTTP where `GOFAIL_HTTP` says. Names are etcd's where the step is the same.
//!
//! A new point is a variant, its line in `POINTS`, and a call of `hit` where it belongs; the suite that goes through
//! them takes the list from the running member and fails on one that is never reached.

use std::io;
#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicBool, Ordering};

mod terms;

pub use terms::translate;

/// A place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// Before a group of records is written to the log.
    RaftBeforeSave,
    /// A group is written and not yet synced.
    WalBeforeSync,
    /// A group is synced and not yet acknowledged.
    WalAfterSync,
    /// Before the log goes on in a new segment.
    WalBeforeSwitch,
    /// The new segment is there, and empty.
    WalAfterSwitch,
    /// Before a purged segment is removed.
    WalBeforeRelease,
    /// A purged segment is removed.
    RaftAfterWalRelease,
    /// Before a vote is recorded.
    RaftBeforeVote,
    /// A vote is durable and not yet answered.
    RaftAfterVote,
    /// Before an applied entry is written to the state.
    BeforeCommit,
    /// It is written, and its watchers and clients know nothing of it.
    AfterCommit,
    /// Before a slice of compacted history is freed.
    CompactBeforeCommitBatch,
    /// A slice is freed.
    CompactAfterCommitBatch,
    /// Before the state is made durable so that the log may be purged.
    RaftBeforeSaveSnap,
    /// It is durable, and the log is as it was.
    RaftAfterSaveSnap,
    /// A received snapshot is written and not yet synced.
    SnapBeforeSync,
    /// Before a received snapshot replaces the state.
    RaftBeforeApplySnap,
    /// The marker that names the snapshot is there; the old state is, too.
    ApplySnapAfterMarker,
    /// The old state is gone.
    ApplySnapAfterEmpty,
    /// The new state is there and not yet durable.
    ApplySnapBeforeFlush,
    /// The new state is durable; the marker still says to install it.
    ApplySnapAfterFlush,
    /// The state is replaced.
    RaftAfterApplySnap,
}

use Point::*;

/// Every point with its name.
pub const POINTS: &[(Point, &str)] = &[
    (RaftBeforeSave, "raftBeforeSave"),
    (WalBeforeSync, "walBeforeSync"),
    (WalAfterSync, "walAfterSync"),
    (WalBeforeSwitch, "walBeforeSwitch"),
    (WalAfterSwitch, "walAfterSwitch"),
    (WalBeforeRelease, "walBeforeRelease"),
    (RaftAfterWalRelease, "raftAfterWALRelease"),
    (RaftBeforeVote, "raftBeforeVote"),
    (RaftAfterVote, "raftAfterVote"),
    (BeforeCommit, "beforeCommit"),
    (AfterCommit, "afterCommit"),
    (CompactBeforeCommitBatch, "compactBeforeCommitBatch"),
    (CompactAfterCommitBatch, "compactAfterCommitBatch"),
    (RaftBeforeSaveSnap, "raftBeforeSaveSnap"),
    (RaftAfterSaveSnap, "raftAfterSaveSnap"),
    (SnapBeforeSync, "snapBeforeSync"),
    (RaftBeforeApplySnap, "raftBeforeApplySnap"),
    (ApplySnapAfterMarker, "applySnapAfterMarker"),
    (ApplySnapAfterEmpty, "applySnapAfterEmpty"),
    (ApplySnapBeforeFlush, "applySnapBeforeFlush"),
    (ApplySnapAfterFlush, "applySnapAfterFlush"),
    (RaftAfterApplySnap, "raftAfterApplySnap"),
];

/// Does what the point is armed with; nothing where it is not.
///
/// # Errors
/// The one that the point is told to return: `ENOSPC` and `EIO` as the system gives them, anything else as text.
#[cfg(debug_assertions)]
#[inline]
pub fn hit(point: Point) -> io::Result<()> {
    if !ARMED.load(Ordering::Relaxed) {
        return Ok(());
    }
    let told = fail::eval(name(point), |text| text.unwrap_or_default());
    told.map_or(Ok(()), |text| Err(error(&text)))
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn hit(_: Point) -> io::Result<()> {
    Ok(())
}

/// Whether any point was ever armed.
#[cfg(debug_assertions)]
static ARMED: AtomicBool = AtomicBool::new(false);

#[cfg(debug_assertions)]
fn name(point: Point) -> &'static str {
    POINTS.iter().find(|(known, _)| *known == point).map_or("", |(_, name)| name)
}

#[cfg(debug_assertions)]
fn error(text: &str) -> io::Error {
    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;
    match text {
        "EIO" => io::Error::from_raw_os_error(EIO),
        "ENOSPC" => io::Error::from_raw_os_error(ENOSPC),
        text => io::Error::other(format!("failpoint: {text}")),
    }
}

/// Arms a point.
///
/// # Errors
/// No such point; terms that are none.
#[cfg(debug_assertions)]
pub fn arm(name: &str, terms: &str) -> Result<(), String> {
    if !POINTS.iter().any(|(_, known)| *known == name) {
        return Err(format!("no failpoint {name}"));
    }
    let actions = translate(name, terms).ok_or_else(|| format!("bad terms {terms:?}"))?;
    ARMED.store(true, Ordering::Relaxed);
    fail::cfg(name, &actions)
}

/// Disarms a point.
#[cfg(debug_assertions)]
pub fn disarm(name: &str) {
    fail::remove(name);
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn a_point_does_what_it_is_armed_with() {
        assert!(hit(BeforeCommit).is_ok());
        arm("beforeCommit", "1*return(\"ENOSPC\")->1*return(\"odd\")->off").expect("armed");
        assert_eq!(hit(BeforeCommit).expect_err("told to").raw_os_error(), Some(28));
        assert_eq!(hit(BeforeCommit).expect_err("told to").to_string(), "failpoint: odd");
        assert!(hit(BeforeCommit).is_ok());
        disarm("beforeCommit");
        assert!(hit(BeforeCommit).is_ok());
        assert_eq!(arm("nowhere", "panic"), Err("no failpoint nowhere".to_owned()));
        assert_eq!(arm("beforeCommit", "explode"), Err("bad terms \"explode\"".to_owned()));
    }

    #[test]
    fn points_and_names_are_one_to_one() {
        let names: std::collections::BTreeSet<&str> = POINTS.iter().map(|(_, name)| *name).collect();
        assert_eq!(names.len(), POINTS.len());
        assert!(POINTS.is_sorted_by_key(|(point, _)| *point), "in the enum's order");
        assert_eq!(POINTS.len(), RaftAfterApplySnap as usize + 1, "a variant has no name");
    }
}
