//! Runs the catalogue: `cargo xtask models [NAME ...] [--deep | --explore]`. Prints reach and outcome; ends at the first
//! model one of whose properties fails.

use std::process::ExitCode;
use std::time::Instant;

use keelson_models::{Bound, MODELS};

fn main() -> ExitCode {
    let (flags, names): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|word| word.starts_with("--"));
    let bound = match flags.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => Bound::Smoke,
        ["--deep"] => Bound::Deep,
        ["--explore"] if names.len() == 1 => Bound::Browse,
        _ => return usage(),
    };
    let chosen: Vec<_> = MODELS
        .iter()
        .filter(|entry| names.is_empty() || names.iter().any(|name| name == entry.name))
        .collect();
    if chosen.len() < names.len() || chosen.is_empty() {
        return usage();
    }
    for entry in chosen {
        let started = Instant::now();
        let report = (entry.run)(bound);
        println!(
            "{}: {} unique states ({} generated, depth {}), {} properties, {:.1} s: {}",
            report.name,
            report.unique,
            report.states,
            report.depth,
            report.properties.len(),
            started.elapsed().as_secs_f32(),
            if report.holds() { "holds" } else { "VIOLATED" }
        );
        print!("{}", report.failures());
        if !report.holds() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("usage: cargo xtask models [NAME ...] [--deep] | NAME --explore\n");
    for entry in MODELS {
        eprintln!("  {:<28} {}", entry.name, entry.description);
    }
    ExitCode::from(2)
}
