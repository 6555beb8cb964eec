//! `keelson check` and `keelson explore`, and the same for developers: the catalogue from a command line.

use std::process::ExitCode;
use std::time::Instant;

use crate::{Bound, Entry, MODELS};

const USAGE: &str = "\
usage: keelson check [NAME ...] [--bound N]    1: what each push checks, seconds a model; 2: what a night checks
       keelson explore NAME                    step by step, in a browser
";

/// `check [NAME ...] [--bound N]`: explores each model, prints reach and outcome, ends at the first whose properties do
/// not all hold (exit code 1, with the steps that lead there).
pub fn check(arguments: Vec<String>) -> ExitCode {
    let mut names = Vec::new();
    let mut bound = Bound::Smoke;
    let mut words = arguments.into_iter();
    while let Some(word) = words.next() {
        let value = match word.as_str() {
            "--help" | "-h" => return help(),
            "--bound" => words.next(),
            _ if word.starts_with("--bound=") => word.strip_prefix("--bound=").map(str::to_owned),
            _ if word.starts_with('-') => return wrong(&format!("unknown flag {word}")),
            _ => {
                names.push(word);
                continue;
            }
        };
        bound = match value.as_deref() {
            Some("1") => Bound::Smoke,
            Some("2") => Bound::Deep,
            _ => return wrong("--bound is 1 or 2"),
        };
    }
    match chosen(&names) {
        Ok(entries) => run(&entries, bound),
        Err(unknown) => wrong(&unknown),
    }
}

/// `explore NAME`: stateright's explorer of one model.
pub fn explore(arguments: Vec<String>) -> ExitCode {
    match arguments.as_slice() {
        [word] if word == "--help" || word == "-h" => help(),
        [name] => match chosen(std::slice::from_ref(name)) {
            Ok(entries) => run(&entries, Bound::Browse),
            Err(unknown) => wrong(&unknown),
        },
        _ => wrong("explore takes the name of one model"),
    }
}

fn chosen(names: &[String]) -> Result<Vec<&'static Entry>, String> {
    if names.is_empty() {
        return Ok(MODELS.iter().collect());
    }
    let find = |name: &String| {
        MODELS.iter().find(|entry| entry.name == name).ok_or_else(|| format!("no model {name:?}"))
    };
    names.iter().map(find).collect()
}

fn run(entries: &[&Entry], bound: Bound) -> ExitCode {
    for entry in entries {
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

fn list() -> String {
    let lines: Vec<String> =
        MODELS.iter().map(|entry| format!("  {:<28} {}\n", entry.name, entry.description)).collect();
    format!("{USAGE}\n{}", lines.concat())
}

fn help() -> ExitCode {
    print!("{}", list());
    ExitCode::SUCCESS
}

fn wrong(why: &str) -> ExitCode {
    eprint!("{why}\n\n{}", list());
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_found_by_name_and_a_wrong_one_is_named() {
        assert_eq!(chosen(&[]).map(|all| all.len()), Ok(MODELS.len()));
        assert_eq!(chosen(&["store-kv".into()]).map(|all| all[0].name), Ok("store-kv"));
        assert_eq!(chosen(&["kv".into()]).err().as_deref(), Some("no model \"kv\""));
    }
}
