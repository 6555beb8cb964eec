//! `cargo xtask sim --cluster`: runs seeds of the whole control plane; a failing one prints its violation, the end of
//! its trace and how to replay it.

use std::process::ExitCode;

use keelson_sim::seeds;
use keelson_simcluster::run;

const USAGE: &str = "usage: cargo xtask sim --cluster [--seed N [--trace]] [--seeds COUNT] [--from N]";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |flag: &str| {
        let at = words.iter().position(|word| word == flag)?;
        Some(words.get(at + 1).and_then(|word| word.parse::<u64>().ok()))
    };
    let trace = words.iter().any(|word| word == "--trace");
    let (from, count) = match (number("--seed"), number("--from"), number("--seeds")) {
        (Some(Some(seed)), _, _) => (seed, 1),
        (None, from, count) if from != Some(None) && count != Some(None) => {
            (from.flatten().unwrap_or(1), count.flatten().unwrap_or(5))
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    // Of several, each in a process of its own.
    match count {
        1 => run_one(from, trace),
        _ => seeds::each(from, count, trace).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS),
    }
}

fn run_one(seed: u64, trace: bool) -> ExitCode {
    let (report, violation) = match run::run(seed) {
        Ok(report) => (report, None),
        Err((violation, report)) => (report, Some(violation)),
    };
    let shown = match (trace, &violation) {
        (true, _) => usize::MAX,
        (false, Some(_)) => 60,
        (false, None) => 0,
    };
    for line in &report.trace[report.trace.len().saturating_sub(shown)..] {
        println!("{line}");
    }
    if let Some(violation) = violation {
        println!(
            "seed {seed}: {} violated: {}\nreplay: cargo xtask sim --cluster --seed {seed} --trace",
            violation.property, violation.story
        );
        return ExitCode::FAILURE;
    }
    println!(
        "seed {seed}: {} revisions, {} pods made, {} binds, {} crashes, {:.0} s",
        report.revisions,
        report.pods,
        report.binds,
        report.crashes,
        report.virtual_time.as_secs_f32()
    );
    ExitCode::SUCCESS
}
