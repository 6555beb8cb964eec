//! `cargo xtask sim`: runs seeds; a failing one prints its violation, the end of its trace and how to replay it.

use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use keelson_sim::world;

const USAGE: &str =
    "usage: cargo xtask sim [--seed N [--trace]] [--seeds COUNT] [--from N] | --histories COUNT";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let (mut from, mut count, mut trace) = (1, 20, false);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        match (word.as_str(), ()) {
            ("--trace", ()) => trace = true,
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
    run(from, count, trace)
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

/// One seed here; of several each in a process of its own, so that it replays alone (see `seam.rs`).
fn run(from: u64, count: u64, trace: bool) -> ExitCode {
    if count == 1 {
        return run_one(from, trace);
    }
    let started = Instant::now();
    let mut simulated = 0.0;
    for seed in from..from + count {
        let output = std::env::current_exe().and_then(|program| {
            let mut command = Command::new(program);
            command.args(["--seed", &seed.to_string()]).args(trace.then_some("--trace"));
            command.stderr(Stdio::inherit()).output()
        });
        let output = match output {
            Ok(output) => output,
            Err(error) => {
                eprintln!("seed {seed} cannot be run: {error}");
                return ExitCode::FAILURE;
            }
        };
        let text = String::from_utf8_lossy(&output.stdout);
        print!("{text}");
        if !output.status.success() {
            return ExitCode::FAILURE;
        }
        let seconds = text.trim_end().strip_suffix(" s").and_then(|text| text.rsplit(' ').next());
        simulated += seconds.and_then(|seconds| seconds.parse::<f64>().ok()).unwrap_or_default();
    }
    let wall = started.elapsed().as_secs_f64();
    println!(
        "{count} seeds, {simulated:.0} simulated seconds in {wall:.1} s: {:.0} x real time",
        simulated / wall
    );
    ExitCode::SUCCESS
}

fn run_one(seed: u64, trace: bool) -> ExitCode {
    let report = match world::run(seed) {
        Ok(report) => report,
        Err((violation, report)) => {
            let shown = if trace { usize::MAX } else { 60 };
            for line in &report.trace[report.trace.len().saturating_sub(shown)..] {
                println!("{line}");
            }
            println!(
                "seed {seed}: {} violated: {}\nreplay: cargo xtask sim --seed {seed} --trace",
                violation.property, violation.story
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
