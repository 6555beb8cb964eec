//! `cargo xtask models [NAME ...] [--bound N] | --explore NAME | --sieve [CONTROLLER ...]`: the catalogue, and the
//! mistakes that Sieve's perturbations bring out.

use std::process::ExitCode;

use keelson_models::{command, sieve};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--explore") => command::explore(arguments[1..].to_vec()),
        Some("--sieve") => print_sieve(&arguments[1..]),
        _ => command::check(arguments),
    }
}

/// One line for each mistake in each controller, as `cargo xtask mutants --sieve` reads it.
fn print_sieve(names: &[String]) -> ExitCode {
    let mut missed = false;
    for verdict in sieve::sieve(names) {
        let (word, by) = match &verdict.caught {
            Some(by) => ("CAUGHT", by.as_str()),
            None => ("missed", ""),
        };
        let (controller, mistake, seconds) = (verdict.controller, verdict.mistake, verdict.seconds);
        println!("{controller} {mistake:?} {word} after {seconds:.1} s: {by}");
        if let Some(plain) = &verdict.plain {
            println!("   shows without a perturbation, too: {plain}");
        }
        missed |= verdict.caught.is_none() || verdict.plain.is_some();
    }
    if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
