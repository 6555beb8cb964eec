//! How a model is run and what comes out.

use std::fmt::Write as _;
use std::hash::Hash;

use stateright::{Checker, Expectation, HasDiscoveries, Model};

/// How far a model explores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Seconds; what each push checks.
    Smoke,
    /// Minutes; what a night checks.
    Deep,
    /// The smoke bounds, in stateright's explorer: a web page on [`BROWSE_AT`], until the process is stopped.
    Browse,
}

/// Where the explorer listens.
pub const BROWSE_AT: &str = "127.0.0.1:3000";

/// One line of the catalogue.
pub struct Entry {
    pub name: &'static str,
    /// What is shown to hold, in a line.
    pub description: &'static str,
    pub run: fn(Bound) -> Report,
}

/// What became of one property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    pub name: &'static str,
    /// Held (`always`), or was reached (`sometimes`).
    pub holds: bool,
    /// The steps to a counterexample of an `always`.
    pub counterexample: Option<String>,
}

/// The outcome of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub name: &'static str,
    /// States generated, with repetition.
    pub states: usize,
    pub unique: usize,
    pub depth: usize,
    pub properties: Vec<Property>,
}

impl Report {
    /// Whether every property came out as it should.
    pub fn holds(&self) -> bool {
        self.properties.iter().all(|property| property.holds)
    }

    /// The properties that failed, with their counterexamples; empty when none did.
    pub fn failures(&self) -> String {
        let mut text = String::new();
        // A run that ends at a counterexample has not been everywhere.
        let broken = self.properties.iter().any(|property| property.counterexample.is_some());
        let failed = self.properties.iter().filter(|property| !property.holds);
        for property in failed.filter(|property| property.counterexample.is_some() == broken) {
            let steps = property
                .counterexample
                .as_deref()
                .unwrap_or("never reached; the bound or the model is too small");
            let _ = writeln!(text, "{}: {}\n{steps}", self.name, property.name);
        }
        text
    }
}

/// Explores a model exhaustively within its own boundary, up to the first property that fails, or step by step in a browser.
pub fn explore<M>(name: &'static str, bound: Bound, model: M) -> Report
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + std::fmt::Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + std::fmt::Debug + PartialEq + Send + Sync + 'static,
{
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    if bound == Bound::Browse {
        println!("{name}: open http://{BROWSE_AT}/ in a browser; stop with Ctrl-C");
        return summary(name, &*model.checker().threads(threads).serve(BROWSE_AT));
    }
    let checker = model.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures);
    summary(name, &checker.spawn_dfs().join())
}

fn summary<M: Model>(name: &'static str, checker: &impl Checker<M>) -> Report
where
    M::Action: Clone + std::fmt::Debug + PartialEq,
    M::State: Clone + std::fmt::Debug + Hash + PartialEq,
{
    let mut found = checker.discoveries();
    let properties = checker.model().properties();
    let properties = properties.into_iter().map(|property| {
        let path = found.remove(property.name);
        let wanted = property.expectation == Expectation::Sometimes;
        let counterexample = path.as_ref().filter(|_| !wanted).map(|path| {
            let end = format!("  {:?}\n", path.last_state());
            let steps = path.clone().into_actions();
            steps.iter().map(|action| format!("  {action:?}\n")).chain([end]).collect()
        });
        Property { name: property.name, holds: path.is_some() == wanted, counterexample }
    });
    let properties = properties.collect();
    Report {
        name,
        states: checker.state_count(),
        unique: checker.unique_state_count(),
        depth: checker.max_depth(),
        properties,
    }
}
