//! Bugs planted on purpose into the shipped code, to measure the suites that should find them.
//!
//! Production crates have this one as an optional dependency behind the feature `planted`, which only the suites turn
//! on (`tests/tidy` sees to it); a build without debug assertions never has a bug whatever its features. All bugs are
//! in one build; `KEELSON_PLANT=NN` chooses which one is live, so that trying all of them costs one compilation.
//! `cargo xtask mutants --planted` does that and prints bug × layer.

use std::sync::OnceLock;

/// Names the live bug.
pub const VARIABLE: &str = "KEELSON_PLANT";

/// A planted bug.
pub struct Bug {
    pub number: u32,
    pub story: &'static str,
    /// The property it breaks (docs/verification.md).
    pub property: &'static str,
    /// The quickest layer known to catch it: what each push asks.
    pub layer: Layer,
}

/// The suites that may catch a bug, from the quickest to the slowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// Unit and property tests of the crate in question.
    Tests,
    /// The stateright models.
    Models,
    /// Every interleaving of the hand-written concurrency.
    Loom,
    /// Seeds of the simulation.
    Simulation,
}

/// Bugs of the catalogue that cannot be planted, and why.
pub const ELSEWHERE: &[(u32, &str)] = &[
    (3, "counting an older term's entry as committed is inside openraft's engine, which we run unchanged"),
    (4, "the quorum of joint consensus is inside openraft's engine"),
    (5, "the progress vector is inside openraft's engine"),
    (30, "not planted yet"),
    (32, "pod addresses belong to the CNI plugins' own IPAM"),
    (33, "a ruleset reaches the kernel as one nft script, which nft applies whole or not at all"),
];

use Layer::{Loom, Models, Simulation, Tests};

const fn bug(number: u32, property: &'static str, layer: Layer, story: &'static str) -> Bug {
    Bug { number, story, property, layer }
}

/// Every bug that is planted somewhere. From 40 to 44: bugs that once were real, planted again.
pub const BUGS: &[Bug] = &[
    bug(1, "S25", Simulation, "a log append is acknowledged before its fsync"),
    bug(2, "S1", Simulation, "a vote is answered before it is durable"),
    bug(6, "S25", Simulation, "the applied index is written before, not with, what was applied"),
    bug(7, "S5", Simulation, "an installed snapshot resets the applied index"),
    bug(8, "S7", Simulation, "the read index skips its round of heartbeats"),
    bug(9, "S15", Simulation, "an installed snapshot leaves watchers where they were"),
    bug(10, "D3", Tests, "a corrupt middle of the log is taken for a torn tail"),
    bug(11, "S15", Models, "a scrub takes the tombstones of the compaction revision itself"),
    bug(
        12,
        "S6",
        Models,
        "a restart between two slices of a scrub takes the compaction's revision for the store's",
    ),
    bug(13, "S6", Models, "a transaction that changes nothing takes a revision"),
    bug(14, "S8", Tests, "the count of an old read is cut at its limit once the store was compacted"),
    bug(15, "S13", Models, "progress is answered while watchers are behind"),
    bug(16, "S15", Loom, "a cursor that was lapped goes on with what is left"),
    bug(17, "S11", Models, "a lapped watcher resumes one revision early"),
    bug(18, "S18", Models, "a watch of a future revision gets what comes before it"),
    bug(19, "S12", Models, "one revision is split over two answers"),
    bug(20, "S20", Models, "a new leader counts its predecessor's time again"),
    bug(21, "S20", Models, "a keep-alive that shares a batch with the deadline is answered and loses"),
    bug(22, "C24", Tests, "a list answers from the cache without waiting for the revision it was asked for"),
    bug(23, "C23", Tests, "the bookmark that ends the initial objects is ahead of them"),
    bug(24, "C14", Tests, "an update of the status does not compare resourceVersions"),
    bug(25, "C9", Tests, "a controller reconciles before it has seen its own writes"),
    bug(26, "C26", Tests, "a rollout shrinks the old sets only in the plan that grows the new one"),
    bug(27, "C7", Tests, "terminating pods count as available"),
    bug(28, "C5", Tests, "the garbage collector takes an owner of the same name for the owner"),
    bug(29, "C2", Models, "an unclear bind outcome forgets the assumed pod"),
    bug(31, "C13", Tests, "a leader acts past its lease"),
    bug(34, "C26", Tests, "the order of a hash map decides between equal nodes"),
    bug(35, "C8", Tests, "an eviction does not take its disruption from the budget"),
    bug(40, "S7", Simulation, "a restarted leader resumes its term without knowing what it committed"),
    bug(
        41,
        "D5",
        Tests,
        "a crash between an installed snapshot's first append and its purge leaves a log that does not open",
    ),
    bug(42, "S16", Models, "watch history shows a previous version that another member has scrubbed"),
    bug(43, "S13", Models, "progress that came due with a lap waits for the next change"),
    bug(44, "S22", Models, "taking a role away leaves old tokens good"),
    bug(45, "S20", Models, "a keep-alive is answered without the log though its lease has aged"),
];

/// Whether this bug is the live one.
pub fn is(number: u32) -> bool {
    static LIVE: OnceLock<Option<u32>> = OnceLock::new();
    cfg!(debug_assertions)
        && *LIVE.get_or_init(|| std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()))
            == Some(number)
}
