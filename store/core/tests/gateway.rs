//! Replays recorded etcd sequences (JSON gateway requests and answers) against the core.
//!
//! The recordings are not in the tree: the test looks for them in `$KEELSON_SHARED/data/etcd-corpus`, or beside the
//! workspace, and says so when it skips. Answers are compared whole, after making remaining TTLs equal.

mod corpus;

use std::path::PathBuf;

use corpus::watch::replay_streams;
use corpus::{replay, sequences};
use serde_json::Value;

fn folder() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared");
    let shared = std::env::var_os("KEELSON_SHARED").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    Some(shared.join("data/etcd-corpus")).filter(|folder| folder.is_dir())
}

fn check(file: &str) {
    check_each(file, replay);
}

fn check_each(file: &str, replay: impl Fn(&Value) -> usize) {
    let Some(folder) = folder() else {
        eprintln!("skipped: no etcd-corpus; set KEELSON_SHARED to the folder that has data/etcd-corpus");
        return;
    };
    let mut steps = 0;
    for sequence in sequences(&folder.join(file)) {
        steps += replay(&sequence);
    }
    assert!(steps > 0, "{file} has steps");
    eprintln!("{file}: {steps} answers equal to etcd's");
}

#[test]
fn recorded_ranges_are_answered_as_etcd_does() {
    check("kv-range.jsonl.gz");
}

#[test]
fn recorded_transactions_are_answered_as_etcd_does() {
    check("kv-txn.jsonl.gz");
}

#[test]
fn recorded_compactions_are_answered_as_etcd_does() {
    check("kv-compact.jsonl.gz");
}

#[test]
fn recorded_leases_are_answered_as_etcd_does() {
    check("kv-lease.jsonl.gz");
}

#[test]
fn recorded_mixtures_are_answered_as_etcd_does() {
    check("kv-mixed.jsonl.gz");
}

#[test]
fn recorded_wide_stores_are_answered_as_etcd_does() {
    check("kv-wide.jsonl.gz");
}

#[test]
fn recorded_watches_see_what_etcd_shows() {
    // Timed notices are not replayed: there is no clock here.
    let timed = |sequence: &Value| sequence["server"]["flags"].to_string().contains("progress-notify");
    let replay = |sequence: &Value| if timed(sequence) { 0 } else { replay_streams(sequence) };
    check_each("watch-scripted.jsonl.gz", replay);
    check_each("watch-random.jsonl.gz", replay);
}
