//! `cargo xtask robustness [SECONDS]`: real processes under kills, pauses, partitions and disk errors, into the ledger.

use std::process::Stdio;

use crate::ledger::{self, Line};
use crate::shell::Failure;
use crate::{setup, suites};

/// The suite's target.
const TEST: &str = "robustness";

/// What a run tells, in the table's order.
const FIELDS: [&str; 7] = ["seconds", "writes", "acknowledged", "reads", "events", "faults", "partitions"];

pub fn robustness(arguments: &[String]) -> Result<(), Failure> {
    let seconds = match arguments {
        [] => "3600",
        [seconds] if seconds.parse::<u32>().is_ok() => seconds,
        _ => return Err(Failure("usage: cargo xtask robustness [SECONDS]".to_owned())),
    };
    setup::for_nodes()?;
    let mut command = suites::workspace("test");
    command.args(["--test", TEST, "--", "--nocapture"]);
    command.env("KEELSON_ROBUSTNESS", seconds).stderr(Stdio::inherit());
    let failed = |why: String| Failure(format!("{TEST}: {why}"));
    let out = command.output().map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    print!("{text}");
    if !out.status.success() {
        return Err(failed(out.status.to_string()));
    }
    let line = text.lines().rev().find_map(|line| line.strip_prefix("robustness: "));
    let told = line.ok_or_else(|| failed("it did not say what it did".to_owned()))?;
    let mut fields = vec![("suite", TEST.to_owned())];
    for name in FIELDS {
        let value = told.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        fields.push((name, value.unwrap_or("?").to_owned()));
    }
    ledger::record(&fields)
}

/// All runs of the ledger as a table.
pub fn table(lines: &[Line]) -> String {
    let mut text = String::from(
        "| seconds | writes | acknowledged | reads | events at each watcher | faults | partitions | commit |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for line in lines.iter().filter(|line| line.get("suite").is_some_and(|suite| suite == TEST)) {
        let cells = FIELDS.iter().chain(&["commit"]);
        let cells: Vec<&str> = cells.map(|name| line.get(*name).map_or("", String::as_str)).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    text
}
