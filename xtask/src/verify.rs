//! `cargo xtask verify`: runs the proof's suites and writes what they found into the ledger; with `--report` only, makes
//! the tables of docs/verification.md from the ledger. Nothing in those tables is typed by hand.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use keelson_plant::{BUGS, ELSEWHERE};

use crate::ledger::{self, Line};
use crate::shell::{Failure, cargo, root};
use crate::{mutants, robustness};

/// Seeds of the two simulations that `verify` runs.
const FIRST_SEED: u64 = 10_000;
const STORE_SEEDS: u64 = 2_000;
const CLUSTER_SEEDS: u64 = 100;

pub fn verify(arguments: &[String]) -> Result<(), Failure> {
    match arguments {
        [flag] if flag == "--report" => report(),
        [flag] if flag == "--models" => models(&[]).and_then(|()| report()),
        [] => {
            models(&[])?;
            simulation("store", &["--package", "keelson-sim"], FIRST_SEED, STORE_SEEDS)?;
            simulation("cluster", &["--package", "keelson-simcluster"], FIRST_SEED, CLUSTER_SEEDS)?;
            mutants::mutants(&["--sieve".to_owned(), "--record".to_owned()])?;
            mutants::mutants(&["--planted".to_owned(), "--record".to_owned()])?;
            report()
        }
        _ => Err(Failure("usage: cargo xtask verify [--report | --models]".to_owned())),
    }
}

/// `cargo xtask nightly [--hours N]`: everything that takes longer than a push may. Deep bounds, the models against every
/// planted bug and Sieve's mistakes, then seeds of both simulations in turn until the time is over (one hour).
pub fn nightly(arguments: &[String]) -> Result<(), Failure> {
    let hours = match arguments {
        [] => 1.0,
        [flag, hours] if flag == "--hours" => {
            hours.parse::<f64>().map_err(|_| Failure(format!("{hours:?} is no number of hours")))?
        }
        _ => return Err(Failure("usage: cargo xtask nightly [--hours N]".to_owned())),
    };
    let until = Instant::now() + Duration::from_secs_f64(hours * 3600.0);
    models(&["--bound", "2"])?;
    mutants::mutants(&["--planted".to_owned(), "--record".to_owned()])?;
    mutants::mutants(&["--sieve".to_owned(), "--record".to_owned()])?;
    // Each night's own seeds: none of an earlier one.
    let mut from =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs()) << 20;
    while Instant::now() < until {
        simulation("store", &["--package", "keelson-sim"], from, 500)?;
        simulation("cluster", &["--package", "keelson-simcluster"], from, 5)?;
        from += 500;
    }
    report()
}

/// Runs a program and gives its output, shown as well.
fn output(what: &str, command: &mut Command) -> Result<String, Failure> {
    println!("==> {what}");
    let failed = |why: String| Failure(format!("{what}: {why}"));
    let out = command.stderr(Stdio::inherit()).output().map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    print!("{text}");
    if out.status.success() { Ok(text) } else { Err(failed(out.status.to_string())) }
}

/// The catalogue, into the ledger.
fn models(arguments: &[&str]) -> Result<(), Failure> {
    let mut command = cargo(&["run", "--quiet", "--package", "keelson-models", "--"]);
    let text = output("models", command.args(arguments))?;
    for line in text.lines() {
        // `name: N unique states (M generated, depth D), P properties, S s: holds`
        let Some((name, rest)) = line.split_once(": ") else { continue };
        let Some((unique, rest)) = rest.split_once(" unique states (") else { continue };
        let properties = rest.split(", ").find_map(|part| part.strip_suffix(" properties")).unwrap_or("?");
        let seconds = rest.rsplit(", ").next().and_then(|end| end.split_once(" s:")).map_or("?", |(s, _)| s);
        ledger::record(&[
            ("suite", "model".to_owned()),
            ("name", name.to_owned()),
            ("bound", if arguments.is_empty() { "1" } else { "2" }.to_owned()),
            ("unique", unique.to_owned()),
            ("properties", properties.to_owned()),
            ("seconds", seconds.to_owned()),
        ])?;
    }
    Ok(())
}

/// A run of many seeds, into the ledger.
fn simulation(name: &str, package: &[&str], from: u64, seeds: u64) -> Result<(), Failure> {
    let mut command = cargo(&["run", "--quiet"]);
    command.args(package).args(["--", "--from", &from.to_string(), "--seeds", &seeds.to_string()]);
    let text = output(&format!("simulation of the {name}"), &mut command)?;
    let last = text.lines().last().unwrap_or_default();
    // `N seeds, S simulated seconds in W s: X x real time`
    let words: Vec<&str> = last.split_whitespace().collect();
    let [seeds, "seeds,", simulated, "simulated", "seconds", "in", wall, "s:", speed, ..] = words.as_slice()
    else {
        return Err(Failure(format!("the simulation ended in {last:?}")));
    };
    ledger::record(&[
        ("suite", "simulation".to_owned()),
        ("name", name.to_owned()),
        ("seeds", (*seeds).to_owned()),
        ("simulated", (*simulated).to_owned()),
        ("wall", (*wall).to_owned()),
        ("speed", (*speed).to_owned()),
    ])
}

/// Puts the tables into the page.
fn report() -> Result<(), Failure> {
    let path = root().join("docs/verification.md");
    let failed = |error: std::io::Error| Failure(format!("{}: {error}", path.display()));
    let mut page = fs::read_to_string(&path).map_err(failed)?;
    let lines = ledger::lines();
    let tables = [
        ("planted", planted(&lines)),
        ("sieve", sieve(&lines)),
        ("models", reach(&lines)),
        ("simulation", simulated(&lines)),
        ("robustness", robustness::table(&lines)),
    ];
    for (name, table) in tables {
        page = replace(&page, name, &table)
            .ok_or_else(|| Failure(format!("docs/verification.md has no place for {name:?}")))?;
    }
    fs::write(&path, page).map_err(failed)
}

/// The text between a section's two marks.
fn replace(page: &str, name: &str, table: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- ledger: {name} -->\n"), "<!-- end -->");
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}{table}{end}{after}"))
}

fn of<'a>(lines: &'a [Line], suite: &'a str) -> impl Iterator<Item = &'a Line> {
    lines.iter().filter(move |line| line.get("suite").is_some_and(|found| found == suite))
}

fn get<'a>(line: &'a Line, name: &str) -> &'a str {
    line.get(name).map_or("?", String::as_str)
}

const LAYERS: [&str; 4] = ["tests", "models", "loom", "simulation"];

fn planted(lines: &[Line]) -> String {
    let mut newest: BTreeMap<(&str, &str), &Line> = BTreeMap::new();
    for line in of(lines, "planted") {
        newest.insert((get(line, "bug"), get(line, "layer")), line);
    }
    let mut table = String::from(
        "| bug | breaks | tests | models | loom | simulation | caught first by |\n|---|---|---|---|---|---|---|\n",
    );
    let mut times = Vec::new();
    for bug in BUGS {
        let number = format!("{:02}", bug.number);
        let found = LAYERS.map(|layer| newest.get(&(number.as_str(), layer)).copied());
        let cells = found.map(|line| match line {
            Some(line) if get(line, "caught") == "true" => format!("{} s", get(line, "seconds")),
            Some(_) => "not".to_owned(),
            None => "–".to_owned(),
        });
        let seconds = |line: &Line| get(line, "seconds").parse::<f32>().unwrap_or(f32::MAX);
        let caught = found.iter().flatten().filter(|line| get(line, "caught") == "true");
        let first = caught.min_by(|a, b| seconds(a).total_cmp(&seconds(b)));
        times.extend(first.map(|line| seconds(line)));
        let asked = found.iter().any(Option::is_some);
        let none = if asked { "**nothing yet**" } else { "not asked yet" };
        let by = first.map_or(none, |line| get(line, "by")).replace('|', "/");
        let by: String = by.chars().take(90).collect();
        table.push_str(&format!(
            "| {number} {} | {} | {} | {by} |\n",
            bug.story,
            bug.property,
            cells.join(" | ")
        ));
    }
    times.sort_by(f32::total_cmp);
    let median = times.get(times.len() / 2).map_or("?".to_owned(), |time| format!("{time:.1} s"));
    table.push_str(&format!(
        "\n{} of {} caught; median time to catch {median} (a warm build; “not”: that suite passes; “–”: not asked).\n",
        times.len(),
        BUGS.len()
    ));
    table.push_str("Not planted: ");
    let reasons: Vec<String> = ELSEWHERE.iter().map(|(number, why)| format!("{number:02} ({why})")).collect();
    table.push_str(&format!("{}.\n", reasons.join("; ")));
    table
}

fn sieve(lines: &[Line]) -> String {
    let mut newest: BTreeMap<&str, BTreeMap<&str, &Line>> = BTreeMap::new();
    for line in of(lines, "sieve") {
        newest.entry(get(line, "controller")).or_default().insert(get(line, "mistake"), line);
    }
    let mut table = String::from("| controller | intermediate | unobserved | stale |\n|---|---|---|---|\n");
    for (controller, verdicts) in newest {
        let cell = |mistake: &str| match verdicts.get(mistake) {
            Some(line) if get(line, "caught") == "true" => {
                let by: String = get(line, "by").chars().take(60).collect();
                format!("{} s: {}", get(line, "seconds"), by.replace('|', "/"))
            }
            Some(_) => "**not caught**".to_owned(),
            None => "–".to_owned(),
        };
        let cells = ["TakesBegunForDone", "MissesWhatChangedTwice", "TrustsOldViews"].map(cell);
        table.push_str(&format!("| {controller} | {} |\n", cells.join(" | ")));
    }
    table
}

/// What each push checks; the deep bounds' counts are not asserted.
fn reach(lines: &[Line]) -> String {
    let mut newest: BTreeMap<&str, &Line> = BTreeMap::new();
    let deep = |line: &&Line| line.get("bound").is_some_and(|bound| bound == "2");
    for line in of(lines, "model").filter(|line| !deep(line)) {
        newest.insert(get(line, "name"), line);
    }
    let mut table = String::from("| model | unique states | properties | seconds |\n|---|---|---|---|\n");
    let mut total = 0;
    for (name, line) in newest {
        total += get(line, "unique").parse::<u64>().unwrap_or(0);
        table.push_str(&format!(
            "| `{name}` | {} | {} | {} |\n",
            get(line, "unique"),
            get(line, "properties"),
            get(line, "seconds")
        ));
    }
    table.push_str(&format!("\n{total} states in all.\n"));
    table
}

fn simulated(lines: &[Line]) -> String {
    let mut totals: BTreeMap<&str, (u64, f64, f64)> = BTreeMap::new();
    for line in of(lines, "simulation") {
        let number = |name: &str| get(line, name).parse::<f64>().unwrap_or(0.0);
        let total = totals.entry(get(line, "name")).or_default();
        *total = (total.0 + number("seeds") as u64, total.1 + number("simulated"), total.2 + number("wall"));
    }
    let mut table = String::from(
        "| world | seeds in the ledger | simulated | × real time (two busy cores) |\n|---|---|---|---|\n",
    );
    for (name, (seeds, simulated, wall)) in totals {
        table.push_str(&format!(
            "| {name} | {seeds} | {:.1} days | {:.0} |\n",
            simulated / 86_400.0,
            simulated / wall.max(0.001)
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_the_rest_stays() {
        let page = "a\n<!-- ledger: x -->\nold\n<!-- end -->\nb\n";
        let new = replace(page, "x", "new\n").expect("the section is there");
        assert_eq!(new, "a\n<!-- ledger: x -->\nnew\n<!-- end -->\nb\n");
        assert_eq!(replace(page, "y", "new\n"), None);
    }
}
