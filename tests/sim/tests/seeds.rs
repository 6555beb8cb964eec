//! The seeds of every push: the ones that once failed, fresh ones, and one run twice. `cargo xtask sim` runs
//! others.

use keelson_sim::world;

/// Seeds that found something, with what it was; see docs/verification.md.
const ONCE_FAILED: &[(u64, &str)] = &[
    (3, "S7: a restarted leader resumed its term and answered reads before what it had acknowledged"),
    (6, "S7: the same, by another way"),
];

/// How many more seeds each push runs; `KEELSON_SIM_SEEDS` for more.
const EACH_PUSH: u64 = 200;

/// Runs a seed in a process of its own, as its replay will; what it printed.
fn run(seed: u64, more: &[&str]) -> (bool, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_keelson-sim"));
    let output =
        command.args(["--seed", &seed.to_string()]).args(more).output().expect("the simulation starts");
    let complaint = String::from_utf8_lossy(&output.stderr);
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned() + &complaint)
}

fn must_hold(seed: u64, why: &str) {
    let (held, text) = run(seed, &[]);
    assert!(held, "seed {seed} ({why}):\n{text}");
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

/// One seed is one run: the same trace, line by line.
#[test]
fn a_seed_replays_exactly() {
    for seed in 1..=20 {
        let (first, second) = (run(seed, &["--trace"]).1, run(seed, &["--trace"]).1);
        assert!(first.lines().count() > 20, "seed {seed} left no trace: {first}");
        let differs = first.lines().zip(second.lines()).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}
