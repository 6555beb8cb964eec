//! Many seeds, each in a process of its own, so that each replays alone (see `seam.rs`): what the programs of both
//! simulations and their tests share.

use std::process::{Command, Stdio};
use std::time::Instant;

/// Runs one seed of a simulation's program; whether it held, and what it printed.
///
/// # Panics
/// When the program cannot be started.
pub fn run(program: &str, seed: u64, more: &[&str]) -> (bool, String) {
    let mut command = Command::new(program);
    let output = command.args(["--seed", &seed.to_string()]).args(more).output();
    let output = output.unwrap_or_else(|error| panic!("{program} does not start: {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned() + &complaint)
}

/// The number before a word in what a seed printed (`12 binds` for `binds`); 0 when there is none.
pub fn number_of(text: &str, word: &str) -> u64 {
    let words: Vec<&str> = text.split([' ', ',', ';', '\n']).filter(|word| !word.is_empty()).collect();
    let at = words.iter().rposition(|found| *found == word);
    at.and_then(|at| words.get(at.checked_sub(1)?)?.parse().ok()).unwrap_or(0)
}

/// The seed holds, and two runs of it leave the same trace, line by line.
///
/// # Panics
/// At the first line that differs.
pub fn replays(program: &str, seed: u64) {
    let runs = std::thread::scope(|scope| {
        let run = || scope.spawn(|| run(program, seed, &["--trace"]));
        let runs = [run(), run()];
        runs.map(|run| run.join().expect("the program ran"))
    });
    let [(held, first), (_, second)] = runs;
    assert!(held, "{first}");
    assert!(first.lines().count() > 20, "seed {seed} left no trace: {first}");
    let differs = first.lines().zip(second.lines()).find(|(a, b)| a != b);
    assert_eq!(differs, None, "seed {seed}");
    assert_eq!(first.len(), second.len(), "seed {seed}");
}

/// Runs this program once for each of the seeds, and says how much time was simulated how fast.
///
/// # Errors
/// The first seed that fails, or none when this program cannot be started again.
pub fn each(from: u64, count: u64, trace: bool) -> Result<(), Option<u64>> {
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
                return Err(None);
            }
        };
        let text = String::from_utf8_lossy(&output.stdout);
        print!("{text}");
        if !output.status.success() {
            return Err(Some(seed));
        }
        let seconds = text.trim_end().strip_suffix(" s").and_then(|text| text.rsplit(' ').next());
        simulated += seconds.and_then(|seconds| seconds.parse::<f64>().ok()).unwrap_or_default();
    }
    let wall = started.elapsed().as_secs_f64();
    println!(
        "{count} seeds, {simulated:.0} simulated seconds in {wall:.1} s: {:.0} x real time",
        simulated / wall
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_before_their_words() {
        let text = "a line with 1 binds\nseed 3: 40 revisions, 7 binds, 2 crashes, 12 s\n";
        assert_eq!((number_of(text, "binds"), number_of(text, "crashes")), (7, 2));
        assert_eq!(number_of(text, "cuts"), 0);
    }
}
