//! Sieve's three perturbations (intermediate, unobserved and stale states), for the controllers listed here: each is
//! run with the mistake that the perturbation brings out, which turns everybody takes on fresh views do not show.

use std::time::Instant;

use crate::cluster::{MISTAKES, Mistake, Scenario};
use crate::controllers::{cronjob, replicaset};

/// A controller, and the smallest scenario that exercises it.
pub struct Subject {
    pub controller: &'static str,
    pub scenario: fn() -> Scenario,
}

pub const SUBJECTS: &[Subject] = &[
    Subject { controller: "cronjob", scenario: || cronjob::scenario(3) },
    Subject { controller: "replicaset", scenario: replicaset::scenario },
];

/// What became of one mistake in one controller.
pub struct Verdict {
    pub controller: &'static str,
    pub mistake: Mistake,
    /// The property that fails, with what it says; none when the mistake went unnoticed.
    pub caught: Option<String>,
    /// What turns on fresh views say: the mistake shows without any perturbation, too.
    pub plain: Option<String>,
    pub seconds: f32,
}

/// Every mistake in every controller, or in those whose name is given.
pub fn sieve<'a>(names: &'a [String]) -> impl Iterator<Item = Verdict> + 'a {
    let wanted = |subject: &&Subject| names.is_empty() || names.iter().any(|name| name == subject.controller);
    SUBJECTS
        .iter()
        .filter(wanted)
        .flat_map(|subject| MISTAKES.into_iter().map(|mistake| ask(subject, mistake)))
}

fn ask(subject: &Subject, mistake: Mistake) -> Verdict {
    let started = Instant::now();
    let plain = (subject.scenario)().with(mistake).fairly().err();
    let report = (subject.scenario)().with(mistake).check();
    let failures = report.failures();
    let counterexample = report.properties.iter().any(|property| property.counterexample.is_some());
    let last = failures.trim_end().lines().last().unwrap_or_default().trim();
    Verdict {
        controller: subject.controller,
        mistake,
        caught: counterexample.then(|| last.to_owned()),
        plain,
        seconds: started.elapsed().as_secs_f32(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_perturbation_brings_out_its_mistake_in_each_controller() {
        for verdict in sieve(&[]) {
            let what = format!("{:?} in {}", verdict.mistake, verdict.controller);
            assert!(verdict.caught.is_some(), "{what}: nothing noticed");
            assert_eq!(verdict.plain, None, "{what}: shows without a perturbation");
        }
    }
}
