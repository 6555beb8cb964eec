//! `cargo xtask mutants --planted`: for each planted bug, whether each suite catches it, by what, and how soon.
//!
//! One build per suite holds all bugs; `KEELSON_PLANT` chooses. `--each-push` asks only the layer that the catalogue
//! names, for six bugs that rotate with the commit. `--record` writes every verdict into the ledger.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use keelson_plant::{BUGS, Bug, Layer, VARIABLE};

use crate::ledger;
use crate::models::loom_cargo;
use crate::shell::{Failure, cargo, root};

/// A suite that takes longer has not caught the bug.
const PATIENCE: Duration = Duration::from_secs(300);
/// Seeds the simulation tries before it gives up.
const SEEDS: &str = "60";
/// Bugs of each push.
const EACH_PUSH: usize = 6;

/// Crates whose own tests are the first layer, by who is planted in them.
const TESTED: &[(&str, &[u32])] = &[
    ("keelson-store-core", &[11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 42, 43, 44, 45]),
    ("keelson-store-raft", &[1, 2, 6, 7, 8, 9, 10, 40, 41]),
    ("keelson-apiserver-core", &[24, 35]),
    ("keelson-apiserver", &[22, 23]),
    ("keelson-controllers-core", &[26, 27, 28, 31]),
    ("keelson-controllers", &[25]),
    ("keelson-scheduler-core", &[29, 34]),
];

/// What one layer said of one bug.
pub struct Verdict {
    pub caught: bool,
    /// The test, property or seed that caught it.
    pub by: String,
    pub seconds: f32,
}

pub fn mutants(arguments: &[String]) -> Result<(), Failure> {
    let usage = || {
        let text = "usage: cargo xtask mutants --planted [NN ...] [--layer=NAME] [--each-push] [--record] | --sieve [CONTROLLER ...] [--record]";
        Failure(text.to_owned())
    };
    let flag = |name: &str| arguments.iter().any(|word| word == name);
    if flag("--sieve") {
        return sieve(arguments, flag("--record"));
    }
    if !flag("--planted") {
        return Err(usage());
    }
    let numbers: Result<Vec<u32>, _> =
        arguments.iter().filter(|word| !word.starts_with("--")).map(|word| word.parse()).collect();
    let numbers = numbers.map_err(|_| usage())?;
    let each_push = flag("--each-push");
    let only = arguments.iter().find_map(|word| word.strip_prefix("--layer="));
    let bugs: Vec<&Bug> = match (each_push, numbers.is_empty()) {
        (true, _) => rotating(),
        (false, true) => BUGS.iter().collect(),
        (false, false) => BUGS.iter().filter(|bug| numbers.contains(&bug.number)).collect(),
    };
    if bugs.is_empty() {
        return Err(usage());
    }
    let mut missed = Vec::new();
    for bug in bugs {
        println!("{:02} {} ({})", bug.number, bug.story, bug.property);
        let mut caught = false;
        let asked = layers(bug, each_push).into_iter();
        for layer in asked.filter(|layer| only.is_none_or(|only| only == name(*layer))) {
            let verdict = ask(bug, layer)?;
            let word = if verdict.caught { "CAUGHT" } else { "missed" };
            println!("   {:<10} {word} after {:>6.1} s  {}", name(layer), verdict.seconds, verdict.by);
            if flag("--record") {
                ledger::planted(bug.number, name(layer), &verdict)?;
            }
            caught |= verdict.caught;
        }
        if !caught {
            missed.push(format!("{:02}", bug.number));
        }
    }
    if missed.is_empty() {
        return Ok(());
    }
    Err(Failure(format!("planted bugs that nothing caught: {}", missed.join(", "))))
}

/// Sieve's three perturbations of each controller, each against the mistake that it brings out.
fn sieve(arguments: &[String], record: bool) -> Result<(), Failure> {
    let mut command = cargo(&["run", "--quiet", "--package", "keelson-models", "--", "--sieve"]);
    command.args(arguments.iter().filter(|word| !word.starts_with("--"))).stdout(Stdio::piped());
    let output = command.output().map_err(|error| Failure(format!("models: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    for line in text.lines().filter(|_| record) {
        // `CONTROLLER MISTAKE CAUGHT|missed after S s: BY`
        let words: Vec<&str> = line.splitn(7, ' ').collect();
        let [controller, mistake, verdict, "after", seconds, "s:", by] = words.as_slice() else { continue };
        ledger::record(&[
            ("suite", "sieve".to_owned()),
            ("controller", (*controller).to_owned()),
            ("mistake", (*mistake).to_owned()),
            ("caught", (*verdict == "CAUGHT").to_string()),
            ("seconds", (*seconds).to_owned()),
            ("by", by.trim_start_matches("and then: ").to_owned()),
        ])?;
    }
    match output.status.success() {
        true => Ok(()),
        false => Err(Failure("a mistake went unnoticed, or shows without its perturbation".to_owned())),
    }
}

/// Six bugs, others with each commit.
fn rotating() -> Vec<&'static Bug> {
    let head = Command::new("git").args(["rev-list", "--count", "HEAD"]).current_dir(root()).output();
    let count: usize =
        head.ok().and_then(|out| String::from_utf8_lossy(&out.stdout).trim().parse().ok()).unwrap_or(0);
    // The crates' own tests run on each push anyway, and building them with the bugs takes longer than they do.
    let asked: Vec<&Bug> = BUGS.iter().filter(|bug| bug.layer != Layer::Tests).collect();
    (0..EACH_PUSH).map(|step| asked[(count * EACH_PUSH + step) % asked.len()]).collect()
}

/// The layers that see the bug's code.
fn layers(bug: &Bug, only_known: bool) -> Vec<Layer> {
    if only_known {
        return vec![bug.layer];
    }
    match bug.number {
        16 => vec![Layer::Loom],
        1..=10 | 40 | 41 => vec![Layer::Tests, Layer::Simulation],
        11..=21 | 42.. => vec![Layer::Tests, Layer::Models, Layer::Simulation],
        24 | 26..=29 => vec![Layer::Tests, Layer::Models],
        _ => vec![Layer::Tests],
    }
}

pub fn name(layer: Layer) -> &'static str {
    match layer {
        Layer::Tests => "tests",
        Layer::Models => "models",
        Layer::Loom => "loom",
        Layer::Simulation => "simulation",
    }
}

/// The models of the code that the bug is in.
fn models_of(bug: u32) -> &'static [&'static str] {
    match bug {
        24 => &["api-updates"],
        26 | 27 => &["controllers-deployment"],
        28 => &["controllers-garbage"],
        29 | 34 => &["scheduler-binding"],
        _ => &["store-auth", "store-compaction", "store-kv", "store-lease", "store-watch"],
    }
}

/// The call that builds a layer, and the one that runs it against a bug.
fn commands(bug: &Bug, layer: Layer) -> (Command, Command) {
    match layer {
        Layer::Tests => {
            let package =
                TESTED.iter().find(|(_, bugs)| bugs.contains(&bug.number)).map_or("", |(name, _)| name);
            let call = |last: &str| {
                cargo(&[
                    "test",
                    "--quiet",
                    "--package",
                    package,
                    "--features",
                    "planted",
                    "--no-fail-fast",
                    last,
                ])
            };
            (call("--no-run"), call("--"))
        }
        Layer::Models => {
            let call =
                |verb| cargo(&[verb, "--quiet", "--package", "keelson-models", "--features", "planted"]);
            let mut run = call("run");
            run.arg("--").args(models_of(bug.number));
            (call("build"), run)
        }
        Layer::Loom => {
            let mut build = loom_cargo();
            build.args(["--features", "planted", "--no-run"]);
            let mut run = loom_cargo();
            run.args(["--features", "planted"]);
            (build, run)
        }
        Layer::Simulation => {
            let call = |verb| cargo(&[verb, "--quiet", "--package", "keelson-sim", "--features", "planted"]);
            let mut run = call("run");
            run.args(["--", "--whole", "--seeds", SEEDS]);
            (call("build"), run)
        }
    }
}

fn ask(bug: &Bug, layer: Layer) -> Result<Verdict, Failure> {
    let (mut build, mut run) = commands(bug, layer);
    step_quietly(&format!("build of {}", name(layer)), &mut build)?;
    run.env(VARIABLE, bug.number.to_string()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = run.spawn().map_err(|error| Failure(format!("{}: {error}", name(layer))))?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let readers = [collect(out), collect(err)];
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|error| Failure(error.to_string()))? {
            break Some(status);
        }
        if started.elapsed() > PATIENCE {
            let _ = child.kill();
            break None;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let seconds = started.elapsed().as_secs_f32();
    let text: String = match status {
        Some(_) => readers.into_iter().map(|reader| reader.join().unwrap_or_default()).collect(),
        // What it started may hold the pipes open; there is nothing more to read.
        None => String::new(),
    };
    let caught = status.is_some_and(|status| !status.success());
    let by = match (caught, status) {
        (true, _) => evidence(&text, layer),
        (false, None) => format!("no verdict within {} s", PATIENCE.as_secs()),
        (false, _) => String::new(),
    };
    Ok(Verdict { caught, by, seconds })
}

fn collect<R: Read + Send + 'static>(from: Option<R>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            // What could be read until the pipe broke is enough.
            let _ = from.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The line that names what caught it.
fn evidence(text: &str, layer: Layer) -> String {
    let found = match layer {
        Layer::Tests | Layer::Loom => text
            .lines()
            .find_map(|line| Some(line.strip_prefix("---- ")?.split_once(" stdout ----")?.0.to_owned())),
        Layer::Models => text
            .lines()
            .skip_while(|line| !line.contains("VIOLATED"))
            .nth(1)
            .or_else(|| text.lines().skip_while(|line| !line.contains("panicked at")).nth(1))
            .map(str::to_owned),
        Layer::Simulation => text
            .lines()
            .find(|line| line.starts_with("seed ") && line.contains(" violated: "))
            .map(str::to_owned),
    };
    let found = found.unwrap_or_else(|| {
        text.lines()
            .find(|line| line.contains("error") || line.contains("panicked"))
            .unwrap_or("?")
            .to_owned()
    });
    // Where a library's source lies is the machine's affair.
    let found = match found.split_once("/registry/src/") {
        Some((before, after)) => {
            let before = before.rsplit_once(' ').map_or("", |(before, _)| before);
            format!("{before} {}", after.split_once('/').map_or(after, |(_, file)| file))
        }
        None => found,
    };
    found.chars().take(160).collect()
}

fn step_quietly(what: &str, command: &mut Command) -> Result<(), Failure> {
    let output = command.output().map_err(|error| Failure(format!("{what}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure(format!("{what} failed:\n{}", String::from_utf8_lossy(&output.stderr))))
}

/// Six rotating bugs must go red.
pub fn each_push() -> Result<(), Failure> {
    println!("==> planted bugs");
    let started = Instant::now();
    mutants(&["--planted".to_owned(), "--each-push".to_owned()])?;
    println!("==> planted bugs: ok after {:.1} s", started.elapsed().as_secs_f32());
    Ok(())
}
