//! Replays recorded etcd behaviour against members that run as processes.
//!
//! A recording is a line of JSON: a case, which begins on a fresh cluster, with steps; each step holds a request and
//! what etcd answered (`res`). [`replay`] runs a file's cases and fails with every answer that differs from the
//! recorded one, except those listed as [`Known`].
//!
//! `door` is how a call reaches a member, `stage` what a step does, `normal` what of an answer is a fact. A file of
//! tests replays one kind of recording.
//!
//! The recordings are not in the tree: they are looked for in `$KEELSON_SHARED/data/etcd-corpus`, or beside the
//! workspace; without them a test says so and ends.

pub mod door;
pub mod gateway;
pub mod http;
pub mod normal;
pub mod stage;

use std::io::Read;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use serde_json::Value;

pub use stage::Stage;

/// One recorded sequence.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name, unique in the corpus.
    pub id: String,
    /// How many members it needs.
    pub members: usize,
    /// Flags of the members beside the usual ones.
    pub flags: Vec<String>,
    /// Requests and answers, in order.
    pub steps: Vec<Value>,
}

/// An answer known to differ, and why that is right.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The case.
    pub case: &'static str,
    /// Positions of the steps, from 0.
    pub steps: &'static [usize],
    /// Whether they always differ; else it depends on time, or on what is being built.
    pub always: bool,
    /// The reason, as it stands in `docs/compatibility.md`.
    pub why: &'static str,
}

/// The folder of recordings; `None`, after saying so, when it is not there.
pub fn corpus() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared");
    let shared = std::env::var_os("KEELSON_SHARED").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    let folder = shared.join("data/etcd-corpus");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: no etcd-corpus; set KEELSON_SHARED to the folder that has data/etcd-corpus");
    None
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The cases of a file, `.jsonl` or `.jsonl.gz`.
///
/// # Panics
/// The file cannot be read, or is no recording.
pub fn cases(file: &Path) -> Vec<Case> {
    let bytes = std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut text = String::new();
    if file.extension().is_some_and(|extension| extension == "gz") {
        flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).expect("gzip of text");
    } else {
        text = String::from_utf8(bytes).expect("text");
    }
    let parse = |line: &str| {
        let value: Value = serde_json::from_str(line).expect("a line is JSON");
        Case {
            id: value["id"].as_str().expect("an id").to_owned(),
            members: value["server"]["members"].as_u64().unwrap_or(1) as usize,
            flags: strings(&value["server"]["flags"]),
            steps: value["steps"].as_array().expect("steps").clone(),
        }
    };
    text.lines().filter(|line| !line.trim().is_empty()).map(parse).collect()
}

/// Which door of a member the calls of a recording knock at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// gRPC.
    Grpc,
    /// The JSON gateway, where they were recorded.
    Gateway,
}

/// Cases that are replayed at a time: each has a member of its own, and mostly waits for what must not come.
const AT_ONCE: usize = 3;

/// Replays the cases of a file that `choose` takes, a few at a time, on members of `binary` started with the case's
/// flags and `more`.
///
/// # Panics
/// An answer differs that is not known to, or one that is known to does not; no case was chosen.
pub async fn replay(
    binary: &Path,
    file: &str,
    choose: impl Fn(&Case) -> bool,
    more: &[&str],
    known: &[Known],
) {
    replay_at(Wire::Grpc, binary, file, choose, more, known).await;
}

/// [`replay`] at one of the doors.
///
/// # Panics
/// As [`replay`].
pub async fn replay_at(
    wire: Wire,
    binary: &Path,
    file: &str,
    choose: impl Fn(&Case) -> bool,
    more: &[&str],
    known: &[Known],
) {
    let Some(folder) = corpus() else { return };
    let mut differences = Vec::new();
    let (mut ran, mut steps) = (0, 0);
    let cases = cases(&folder.join(file));
    let runs = cases.iter().filter(|case| choose(case)).map(|case| async move {
        let mut stage = Stage::new(wire, binary, case, more).await;
        (case, stage.run(case).await)
    });
    let mut runs = futures::stream::iter(runs).buffered(AT_ONCE);
    while let Some((case, found)) = runs.next().await {
        (ran, steps) = (ran + 1, steps + case.steps.len());
        let of_case = known.iter().filter(|known| known.case == case.id);
        let listed: Vec<(usize, bool)> =
            of_case.flat_map(|known| known.steps.iter().map(|at| (*at, known.always))).collect();
        for (at, text) in &found {
            if listed.iter().all(|(listed, _)| listed != at) {
                differences.push(format!("{} step {at}: {}\n{text}", case.id, shortened(&case.steps[*at])));
            }
        }
        let always = listed.iter().filter(|(_, always)| *always).map(|(at, _)| *at);
        for at in always.filter(|at| found.iter().all(|(found, _)| found != at)) {
            differences.push(format!("{} step {at} is listed as different and is not", case.id));
        }
    }
    assert!(ran > 0, "{file} has a case of that kind");
    assert!(differences.is_empty(), "{} differences\n{}", differences.len(), differences.join("\n"));
    eprintln!("{file}: {ran} cases, {steps} steps as etcd's");
}

/// A step without its recorded answer, for messages.
fn shortened(step: &Value) -> String {
    let mut step = step.clone();
    if let Some(step) = step.as_object_mut() {
        step.remove("res");
    }
    let mut text = step.to_string();
    if text.len() > 300 {
        let end = text.floor_char_boundary(300);
        text.truncate(end);
    }
    text
}
