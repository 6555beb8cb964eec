//! Replays every recorded request of a real API server against ours, over HTTPS, on a store in memory.
//!
//! The recordings are not part of the tree: `KEELSON_SHARED` names a directory that has `data/kubernetes-corpus`. Without it
//! the test says so and passes. `KEELSON_CORPUS=<substring of an id>` replays a part and prints what differs;
//! `KEELSON_CORPUS_OUT=<file>` writes a line per difference.
//! Compared: status code, the headers that mean something, how the resourceVersion moved, bodies and watch events in full.

// A test may read its environment.
#![allow(clippy::disallowed_methods)]

mod replay;
mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;

use replay::Verdict;
use serde_json::Value;

/// How many cases of each file must be answered identically. These numbers only rise.
const FLOORS: [(&str, usize); 14] = [
    ("a_create", 3228),
    ("a_life", 3335),
    ("a_types", 976),
    ("b_others", 416),
    ("b_services", 237),
    ("b_workloads", 758),
    ("c_apply", 95),
    ("c_patch", 216),
    ("d_reads", 362),
    ("e_admission", 120),
    ("e_crd", 230),
    ("f_auth", 220),
    ("g_admission", 270),
    ("h_update", 492),
];

/// Differences that are known, below the reason for them: `# reason`, then `file id` lines.
const KNOWN: &str = include_str!("replay/known.txt");
/// So many others may come and go with the load of the machine.
const UNSTEADY: usize = 12;

fn is_known(line: &str) -> bool {
    let (file, rest) = line.split_once(' ').unwrap_or((line, ""));
    let id = rest.split(' ').next().unwrap_or("");
    KNOWN.lines().filter(|l| !l.starts_with('#')).any(|l| l.split_once(' ') == Some((file, id)))
}

fn corpus() -> Option<PathBuf> {
    let roots = [
        std::env::var("KEELSON_SHARED").ok(),
        Some("../../../shared".into()),
        Some("../../../../shared".into()),
    ];
    roots.into_iter().flatten().map(|r| PathBuf::from(r).join("data/kubernetes-corpus")).find(|p| p.is_dir())
}

/// The sequences of a file, in order.
fn sequences(text: &str) -> Vec<Vec<Value>> {
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut out: Vec<Vec<Value>> = vec![];
    for line in text.lines() {
        let mut case: Value = serde_json::from_str(line).expect("a case");
        let ordered: replay::Ordered = serde_json::from_str(line).expect("a case");
        if let Some(body) = ordered.at(&["request", "body"]) {
            case["request"]["body_text"] = body.spaced().into();
        }
        let key = case["seq"].as_str().expect("a sequence").to_owned();
        let place = *places.entry(key).or_insert_with(|| {
            out.push(vec![]);
            out.len() - 1
        });
        out[place].push(case);
    }
    out
}

/// What one file came to.
struct Report {
    name: &'static str,
    verdicts: Vec<(String, String, Verdict)>,
}

impl Report {
    fn count(&self, wanted: fn(&Verdict) -> bool) -> usize {
        self.verdicts.iter().filter(|(_, _, v)| wanted(v)).count()
    }

    fn print(&self) -> usize {
        let identical = self.count(|v| matches!(v, Verdict::Identical));
        let skipped = self.count(|v| matches!(v, Verdict::Skipped(_)));
        let different = self.count(|v| matches!(v, Verdict::Different { .. }));
        let mut causes: BTreeMap<String, usize> = BTreeMap::new();
        for (_, resource, verdict) in &self.verdicts {
            if let Verdict::Different { part, .. } = verdict {
                *causes.entry(format!("{resource} {part}")).or_default() += 1;
            }
        }
        let mut causes: Vec<(String, usize)> = causes.into_iter().collect();
        causes.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let causes: Vec<String> = causes.iter().take(8).map(|(c, n)| format!("{c} {n}")).collect();
        println!(
            "{:12} identical {identical:5} different {different:5} skipped {skipped:4}  {}",
            self.name,
            causes.join(", ")
        );
        identical
    }
}

async fn replay_file(name: &'static str, text: String, only: Option<String>) -> Report {
    let mut verdicts = vec![];
    let mut runner = replay::Runner::start().await;
    for cases in sequences(&text) {
        let wanted =
            |case: &Value| only.as_ref().is_none_or(|o| case["id"].as_str().is_some_and(|id| id.contains(o)));
        // A controller that was running writes their status meanwhile.
        if !cases.iter().any(wanted)
            || cases[0]["seq"].as_str().is_some_and(|s| s.starts_with("flowschemas-"))
        {
            continue;
        }
        for (case, verdict) in cases.iter().zip(runner.sequence(&cases).await) {
            let id = case["id"].as_str().unwrap_or("").to_owned();
            if let (Some(_), Verdict::Different { part, text }) = (&only, &verdict) {
                println!("{id} {} {}", case["request"]["method"], case["request"]["path"]);
                println!("   {part}: {text}");
            }
            verdicts.push((id, replay::resource_of(case), verdict));
        }
    }
    Report { name, verdicts }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_corpus_is_replayed() {
    let Some(folder) = corpus() else {
        println!("skipped: no corpus (set KEELSON_SHARED to a directory with data/kubernetes-corpus)");
        return;
    };
    let only = std::env::var("KEELSON_CORPUS").ok();
    let started = FLOORS.map(|(name, _)| {
        let text =
            std::fs::read_to_string(folder.join(format!("{name}.jsonl"))).expect("a file of the corpus");
        tokio::spawn(replay_file(name, text, only.clone()))
    });
    let (mut total, mut all, mut short, mut lines) = (0, 0, vec![], vec![]);
    for (report, (name, floor)) in started.into_iter().zip(FLOORS) {
        let report = report.await.expect("a replayed file");
        let identical = report.print();
        total += identical;
        all += report.count(|v| !matches!(v, Verdict::Skipped(_)));
        if identical < floor {
            short.push(format!("{name}: {identical} identical, {floor} before"));
        }
        for (id, _, verdict) in &report.verdicts {
            match verdict {
                Verdict::Identical => {}
                Verdict::Different { part, text } => lines.push(format!("{name} {id} {part}: {text}")),
                Verdict::Skipped(why) => lines.push(format!("{name} {id} skipped: {why}")),
            }
        }
    }
    println!("{total} identical of {all} ({:.1} %)", 100.0 * total as f64 / all.max(1) as f64);
    if let Ok(path) = std::env::var("KEELSON_CORPUS_OUT") {
        std::fs::write(path, lines.join("\n")).expect("the report is written");
    }
    assert!(only.is_some() || short.is_empty(), "fewer identical answers than before: {short:?}");
    let strange: Vec<&String> = lines.iter().filter(|line| !is_known(line)).collect();
    for line in &strange {
        println!("not listed in known.txt: {}", line.chars().take(300).collect::<String>());
    }
    assert!(only.is_some() || strange.len() <= UNSTEADY, "{} differences without a reason", strange.len());
}
