//! `cargo xtask test`: every suite that can run unattended, in the order in which a failure is cheapest to read.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use crate::shell::{Failure, cargo, root, step, target_directory};
use crate::{models, mutants, setup};

const SUITES: &[&str] = &["tidy", "unit", "loom", "models", "sim", "etcd", "kubernetes"];

/// Run only when named: what they take on a busy machine is not yet measured.
const BY_NAME: &[&str] = &["simcluster", "planted"];

/// Suites of real processes, by folder: their test targets run one after another, after everything else.
const ETCD: &str = "tests/etcd/tests";
const KUBERNETES: &str = "tests/kubernetes/tests";

/// Run by suites of their own, optimised.
const PROOFS: &[&str] = &["keelson-models", "keelson-sim", "keelson-simcluster", "keelson-loom"];

/// Suites that compute; the others, of processes, mostly wait. A whole run has both at once. Loom comes first: it has a
/// target folder of its own, so nobody waits for the other's compiler.
const COMPUTING: &[&str] = &["loom", "models", "sim"];

pub fn test(arguments: &[String]) -> Result<(), Failure> {
    let asked: Option<Vec<&str>> = match arguments {
        [] => None,
        [flag, suites] if flag == "--only" => Some(suites.split(',').collect()),
        _ => {
            return Err(Failure(format!(
                "usage: cargo xtask test [--only SUITE,...]; suites: {}",
                all().join(", ")
            )));
        }
    };
    let unknown = asked.iter().flatten().find(|suite| !all().contains(suite));
    if let Some(suite) = unknown {
        return Err(Failure(format!("no suite {suite:?}; there are {}", all().join(", "))));
    }
    setup::for_nodes()?;
    let of_processes = ["etcd", "kubernetes"];
    if asked.as_ref().is_none_or(|asked| of_processes.iter().any(|suite| asked.contains(suite))) {
        setup::for_tests();
    }
    match asked {
        Some(asked) => run(all().into_iter().filter(|suite| asked.contains(suite)))?,
        None => {
            let (beside, rest): (Vec<&str>, Vec<&str>) =
                SUITES.iter().copied().partition(|suite| COMPUTING.contains(suite));
            let (first, then): (Vec<&str>, Vec<&str>) =
                rest.into_iter().partition(|suite| !of_processes.contains(suite));
            run(first.into_iter())?;
            let beside = Beside::start(&beside)?;
            let outcome = run(then.into_iter());
            beside.finish().and(outcome)?;
        }
    }
    println!("every suite passed");
    Ok(())
}

fn run<'a>(suites: impl Iterator<Item = &'a str>) -> Result<(), Failure> {
    for suite in suites {
        match suite {
            "tidy" => tidy(&[])?,
            "unit" => unit()?,
            "loom" => models::loom(&[])?,
            "models" => models::model_tests()?,
            "sim" => models::sim_tests("keelson-sim")?,
            "simcluster" => models::sim_tests("keelson-simcluster")?,
            "planted" => mutants::each_push()?,
            "etcd" => end_to_end("the store as processes", ETCD)?,
            _ => end_to_end("the cluster", KUBERNETES)?,
        }
    }
    Ok(())
}

/// This program once more, running other suites at a lower priority; what it says is shown when it has ended.
struct Beside {
    child: Child,
    log: PathBuf,
}

impl Beside {
    fn start(suites: &[&str]) -> Result<Beside, Failure> {
        let failed = |error: std::io::Error| Failure(format!("{} beside: {error}", suites.join(", ")));
        let log = target_directory().join("beside.log");
        let file = std::fs::File::create(&log).map_err(failed)?;
        println!("==> meanwhile: {}", suites.join(", "));
        let child = Command::new("nice")
            .args(["-n", "10"])
            .arg(std::env::current_exe().map_err(failed)?)
            .args(["test", "--only", &suites.join(",")])
            .stderr(file.try_clone().map_err(failed)?)
            .stdout(file)
            .spawn()
            .map_err(failed)?;
        Ok(Beside { child, log })
    }

    fn finish(mut self) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure(format!("suites beside: {error}"));
        let status = self.child.wait().map_err(failed)?;
        print!("{}", std::fs::read_to_string(&self.log).map_err(failed)?);
        if status.success() { Ok(()) } else { Err(Failure(format!("suites beside failed ({status})"))) }
    }
}

fn all() -> Vec<&'static str> {
    SUITES.iter().chain(BY_NAME).copied().collect()
}

/// Every cargo call of the suites that build unoptimised names this same set of packages: any other choice has other
/// features of the dependencies, which would be built again.
pub fn workspace(verb: &str) -> Command {
    let mut command = cargo(&[verb, "--workspace"]);
    command.args(PROOFS.iter().flat_map(|package| ["--exclude", package]));
    command
}

/// Unit and property tests of the whole workspace, and its documentation's examples.
fn unit() -> Result<(), Failure> {
    let mut command = workspace("test");
    command.args(["--lib", "--bins"]);
    for target in targets_outside_of(&[ETCD, KUBERNETES])? {
        command.args(["--test", &target]);
    }
    // A push is reproducible: its verdict is about the change, not about luck. `PROPTEST_RNG_SEED=` another number, or
    // a plain `cargo test`, explores further; what that finds is pinned beside the test.
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        command.env("PROPTEST_RNG_SEED", "20");
    }
    step("unit and property tests", &mut command)?;
    step("examples in the documentation", workspace("test").args(["--quiet", "--doc"]))
}

/// The test targets of `folder` against the binary.
fn end_to_end(name: &str, folder: &str) -> Result<(), Failure> {
    step(name, &mut processes(&targets(&root().join(folder))?)?)
}

/// Test targets against the binary, whose path they find in KEELSON_BIN.
///
/// # Errors
/// The build's.
pub fn processes(targets: &[String]) -> Result<Command, Failure> {
    step("build", workspace("build").args(["--bins", "--tests"]))?;
    let mut command = workspace("test");
    for target in targets {
        command.args(["--test", target]);
    }
    command.args(["--", "--test-threads=1", "--nocapture"]);
    command.env("KEELSON_BIN", target_directory().join("debug/keelson"));
    if let Some(folder) = setup::etcd_binaries() {
        command
            .env("ETCD", folder.join("etcd"))
            .env("ETCDCTL", folder.join("etcdctl"))
            .env("ETCDUTL", folder.join("etcdutl"));
    }
    if let Some(kubectl) = setup::kubectl() {
        command.env("KUBECTL", kubectl);
    }
    if let Some(go) = setup::go() {
        command.env("GO", go);
    }
    Ok(command)
}

/// Test targets of a package: the files of its folder `tests`.
fn targets(folder: &Path) -> Result<Vec<String>, Failure> {
    let files =
        std::fs::read_dir(folder).map_err(|error| Failure(format!("{}: {error}", folder.display())))?;
    let mut targets: Vec<String> = files
        .flatten()
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    targets.sort();
    Ok(targets)
}

/// The test targets of all packages but those whose tests stand in `folders`, and those of the proofs.
fn targets_outside_of(folders: &[&str]) -> Result<Vec<String>, Failure> {
    let mut found = BTreeSet::new();
    for package in packages()? {
        let tests = package.join("tests");
        let elsewhere = folders.iter().any(|folder| root().join(folder) == tests);
        if !elsewhere && tests.is_dir() {
            found.extend(targets(&tests)?);
        }
    }
    for folder in folders {
        for target in targets(&root().join(folder))? {
            if found.contains(&target) {
                return Err(Failure(format!(
                    "{folder}/{target}.rs: another package has a test of that name"
                )));
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// Folders of the workspace's packages, two levels down at most, without the proofs'.
fn packages() -> Result<Vec<PathBuf>, Failure> {
    let listed = |folder: &Path| -> Result<Vec<PathBuf>, Failure> {
        let entries =
            std::fs::read_dir(folder).map_err(|error| Failure(format!("{}: {error}", folder.display())))?;
        Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
    };
    let mut found = listed(&root())?;
    for folder in found.clone() {
        found.extend(listed(&folder)?);
    }
    found.retain(|folder| folder.join("Cargo.toml").exists() && !a_proof(folder));
    Ok(found)
}

fn a_proof(package: &Path) -> bool {
    let manifest = std::fs::read_to_string(package.join("Cargo.toml")).unwrap_or_default();
    PROOFS.iter().any(|name| manifest.contains(&format!("name = \"{name}\"")))
}

pub fn tidy(_: &[String]) -> Result<(), Failure> {
    let format: &mut Command = &mut cargo(&["fmt", "--all", "--check"]);
    step("format", format)?;
    setup::for_build()?;
    // Loom's crate is another program under `--cfg loom`; all else, tests included, is held to the same lints.
    let clippy: &mut Command = &mut cargo(&["clippy", "--quiet", "--workspace", "--all-targets"]);
    step("clippy", clippy.args(["--exclude", "keelson-loom", "--", "--deny", "warnings"]))?;
    step("house rules", &mut cargo(&["test", "--quiet", "--package", "keelson-tidy"]))
}
