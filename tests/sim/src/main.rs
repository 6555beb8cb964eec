//! `cargo xtask sim`: runs seeds; a failing one prints its violation, the end of its trace and how to replay it.

use std::process::ExitCode;

use keelson_sim::shrink::{self, Skip};
use keelson_sim::{seeds, world};

const USAGE: &str = "\
usage: cargo xtask sim --seed N [--trace] [--skip LIST] [--shrink]    one run, whole, without some of it, or made small
       cargo xtask sim [--seeds COUNT] [--from N] [--whole]           many; the first that fails is made small
       cargo xtask sim --histories COUNT";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let (mut from, mut count, mut trace) = (1, 20, false);
    let (mut skip, mut small, mut whole) = (Skip::default(), false, false);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        match (word.as_str(), ()) {
            ("--trace", ()) => trace = true,
            ("--shrink", ()) => small = true,
            ("--whole", ()) => whole = true,
            ("--skip", ()) => match words.next().unwrap_or_default().parse() {
                Ok(list) => skip = list,
                Err(why) => {
                    eprintln!("{why}");
                    return usage();
                }
            },
            ("--histories", ()) => match number() {
                Some(count) => {
                    (0..count).for_each(|seed| println!("{}", keelson_sim::histories::line(seed)));
                    return ExitCode::SUCCESS;
                }
                None => return usage(),
            },
            ("--seed", ()) => match number() {
                Some(seed) => (from, count) = (seed, 1),
                None => return usage(),
            },
            ("--seeds", ()) => match number() {
                Some(seeds) => count = seeds,
                None => return usage(),
            },
            ("--from", ()) => match number() {
                Some(seed) => from = seed,
                None => return usage(),
            },
            _ => return usage(),
        }
    }
    match (count, small) {
        (1, true) => make_small(from),
        (1, false) => run_one(from, trace, skip),
        _ => match seeds::each(from, count, trace) {
            Ok(()) => ExitCode::SUCCESS,
            Err(Some(seed)) if !whole => make_small(seed),
            Err(_) => ExitCode::FAILURE,
        },
    }
}

/// What of a failing seed is needed, and how to run only that.
fn make_small(seed: u64) -> ExitCode {
    let program = std::env::current_exe().unwrap_or_default().to_string_lossy().into_owned();
    let (held, text) = seeds::run(&program, seed, &[]);
    if held {
        println!("seed {seed} holds: there is nothing to make small");
        return ExitCode::SUCCESS;
    }
    let Some((skip, text)) = shrink::shrink(&program, seed, &text, world::ALL_CLIENTS) else {
        println!("{text}\nseed {seed} fails without a violation: it stays as it is");
        return ExitCode::FAILURE;
    };
    println!("{text}\nmade small: cargo xtask sim --seed {seed} --trace --skip {skip}");
    ExitCode::FAILURE
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn run_one(seed: u64, trace: bool, skip: Skip) -> ExitCode {
    let report = match world::run_but(seed, skip) {
        Ok(report) => report,
        Err((violation, report)) => {
            let shown = if trace { usize::MAX } else { 60 };
            for line in &report.trace[report.trace.len().saturating_sub(shown)..] {
                println!("{line}");
            }
            println!(
                "seed {seed}: {} violated: {}\nafter {} faults; replay: cargo xtask sim --seed {seed} --trace",
                violation.property, violation.story, report.faults
            );
            return ExitCode::FAILURE;
        }
    };
    if trace {
        println!("{}", report.trace.join("\n"));
    }
    println!(
        "seed {seed}: {} writes acknowledged, {} unknown, {} reads, {} crashes, {} cuts, {:.0} s",
        report.acknowledged,
        report.unknown,
        report.reads,
        report.crashes,
        report.cuts,
        report.virtual_time.as_secs_f32()
    );
    ExitCode::SUCCESS
}
