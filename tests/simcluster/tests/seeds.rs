//! The cluster's seeds of every push: the ones that once failed, fresh ones, and one run twice. `cargo xtask sim
//! --cluster` runs others.

use keelson_simcluster::run;

/// Seeds that found something, with what it was; see docs/verification.md.
const ONCE_FAILED: &[(u64, &str)] = &[(
    4,
    "C14: a write whose outcome the store did not tell was carried out, replaced by another, and answered as a conflict",
)];

/// How many more seeds each push runs; `KEELSON_SIM_SEEDS` for more.
const EACH_PUSH: u64 = 2;

fn must_hold(seed: u64, why: &str) -> run::Report {
    run::run(seed).unwrap_or_else(|(violation, report)| {
        let tail = &report.trace[report.trace.len().saturating_sub(40)..];
        panic!(
            "seed {seed} ({why}): {} violated: {}\n{}\nreplay: cargo xtask sim --cluster --seed {seed} --trace",
            violation.property,
            violation.story,
            tail.join("\n")
        );
    })
}

#[test]
fn seeds_that_once_failed_hold() {
    for (seed, why) in ONCE_FAILED {
        must_hold(*seed, why);
    }
}

#[test]
fn a_cluster_settles_after_faults_and_keeps_its_promises() {
    let seeds =
        std::env::var("KEELSON_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(EACH_PUSH);
    let reports: Vec<_> = (1..=seeds).map(|seed| must_hold(seed, "fresh")).collect();
    // Runs in which nothing happens would prove nothing.
    assert!(reports.iter().map(|report| report.binds).sum::<usize>() > 10, "too few pods were bound");
    assert!(reports.iter().map(|report| report.crashes).sum::<usize>() > 10, "too few crashes");
}

/// One seed is one run: the same trace, line by line.
#[test]
fn a_seed_replays_exactly() {
    let seed = 1;
    let trace = |()| run::run(seed).map_or_else(|(_, report)| report.trace, |report| report.trace);
    let (first, second) = (trace(()), trace(()));
    let differs = first.iter().zip(&second).position(|(a, b)| a != b);
    assert_eq!(
        differs,
        None,
        "seed {seed}: {:?} then {:?}",
        differs.map(|at| &first[at]),
        differs.map(|at| &second[at])
    );
    assert_eq!(first.len(), second.len(), "seed {seed}");
}
