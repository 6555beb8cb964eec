//! The cluster's seeds of every push: the ones that once failed, fresh ones, and one run twice. `cargo xtask sim
//! --cluster` runs others.

use keelson_sim::seeds;

/// Seeds that found something, with what it was; see docs/verification.md.
const ONCE_FAILED: &[(u64, &str)] = &[
    (
        1,
        "C14: an update whose outcome the store did not tell was taken for done, since another had written the same",
    ),
    (
        4,
        "C14: a write whose outcome the store did not tell was carried out, replaced by another, and answered as a conflict",
    ),
];

/// How many more seeds each push runs; `KEELSON_SIM_SEEDS` for more.
const EACH_PUSH: u64 = 2;

const PROGRAM: &str = env!("CARGO_BIN_EXE_keelson-simcluster");

/// What the seed printed.
fn must_hold(seed: u64, why: &str) -> String {
    let (held, text) = seeds::run(PROGRAM, seed, &[]);
    assert!(held, "seed {seed} ({why}):\n{text}");
    text
}

#[test]
fn seeds_that_once_failed_hold() {
    for (seed, why) in ONCE_FAILED {
        must_hold(*seed, why);
    }
}

#[test]
fn a_cluster_settles_after_faults_and_keeps_its_promises() {
    let many =
        std::env::var("KEELSON_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(EACH_PUSH);
    let reports: Vec<String> = (2..2 + many).map(|seed| must_hold(seed, "fresh")).collect();
    // Runs in which nothing happens would prove nothing.
    let sum = |word: &str| reports.iter().map(|text| seeds::number_of(text, word)).sum::<u64>();
    assert!(sum("binds") > 10, "too few pods were bound");
    assert!(sum("crashes") > 10, "too few crashes");
}

/// One seed is one run: the same trace, line by line.
#[test]
fn a_seed_replays_exactly() {
    seeds::replays(PROGRAM, 1);
}
