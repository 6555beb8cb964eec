//! The seeds of every push: the ones that once failed, fresh ones, and one run twice. `cargo xtask sim` runs
//! others.

use keelson_sim::shrink::{Skip, shrink};
use keelson_sim::{seeds, world};

/// Seeds that found something, with what it was; see docs/verification.md.
const ONCE_FAILED: &[(u64, &str)] = &[
    (3, "S7: a restarted leader resumed its term and answered reads before what it had acknowledged"),
    (6, "S7: the same, by another way"),
];

/// How many more seeds each push runs; `KEELSON_SIM_SEEDS` for more.
const EACH_PUSH: u64 = 200;

const PROGRAM: &str = env!("CARGO_BIN_EXE_keelson-sim");

fn must_hold(seed: u64, why: &str) {
    let (held, text) = seeds::run(PROGRAM, seed, &[]);
    if held {
        return;
    }
    let small = shrink(PROGRAM, seed, &text, world::ALL_CLIENTS);
    panic!("seed {seed} ({why}):\n{text}\nmade small: --skip {:?}", small.map(|(skip, _)| skip.to_string()));
}

#[test]
fn seeds_that_once_failed_hold() {
    for (seed, why) in ONCE_FAILED {
        must_hold(*seed, why);
    }
}

#[test]
fn three_members_stay_linearizable_under_faults() {
    let seeds =
        std::env::var("KEELSON_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(EACH_PUSH);
    for seed in 1_000..1_000 + seeds {
        must_hold(seed, "fresh");
    }
}

/// A run whose clients all failed would prove nothing.
#[test]
fn runs_reach_the_interesting_states() {
    let reports: Vec<_> = (1..=10)
        .map(|seed| world::run(seed).unwrap_or_else(|(violation, _)| panic!("seed {seed}: {violation:?}")))
        .collect();
    let sum = |value: fn(&world::Report) -> usize| reports.iter().map(value).sum::<usize>();
    assert!(sum(|report| report.acknowledged) > 200, "too few writes were acknowledged");
    assert!(sum(|report| report.reads) > 100, "too few reads were answered");
    assert!(sum(|report| report.unknown) > 10, "no write's outcome was ever unknown");
    assert!(sum(|report| report.expired) > 10, "too few leases ended");
    assert!(sum(|report| report.compactions) > 3, "too few compactions");
    assert!(sum(|report| report.old_reads) > 200, "too few reads of the past");
    assert!(sum(|report| report.terms) > 20, "too few elections");
    assert!(sum(|report| report.crashes) > 10 && sum(|report| report.cuts) > 10, "too few faults");
    let restored = reports
        .iter()
        .flat_map(|report| &report.trace)
        .filter(|line| line.contains("restored") && !line.contains("restored 0 "))
        .count();
    assert!(restored > 0, "no snapshot was ever installed or restored");
}

/// What is left out changes nothing else: the run without it is a run, and so is the one without anything.
#[test]
fn a_run_can_be_made_smaller() {
    let everything = Skip {
        faults: (0..1_000).collect(),
        operations: (0..world::ALL_CLIENTS - 1).map(|client| (client, 0..100_000)).collect(),
    };
    let count = |text: &str| (seeds::number_of(text, "crashes"), seeds::number_of(text, "reads"));
    let (held, text) = seeds::run(PROGRAM, 3, &["--skip", &everything.to_string()]);
    assert!(held && count(&text) == (0, 0), "{text}");
    let (held, text) = seeds::run(PROGRAM, 3, &["--skip", "f0,c0:0-8"]);
    assert!(held && count(&text).0 > 0 && count(&text).1 > 0, "{text}");
}

/// One seed is one run: the same trace, line by line.
#[test]
fn a_seed_replays_exactly() {
    (1..=20).for_each(|seed| seeds::replays(PROGRAM, seed));
}
