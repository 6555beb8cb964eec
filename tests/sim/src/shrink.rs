//! A failing seed made small: which of its faults and operations are needed for the violation.
//!
//! A run numbers its faults, and each client its operations, in the order in which they are drawn. A [`Skip`] leaves some
//! of them out; what is drawn stays the same, so that the rest happens much as before. Shrinking leaves out ever smaller
//! parts as long as the same property is violated.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::seeds;

/// More operations than a client does in a run.
const OPERATIONS: u32 = 1_024;
/// Parts of a client's operations smaller than this stay.
const FINEST: u32 = 8;
/// How long a seed may be shrunk.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a run leaves out. As text: `f3`, a fault; `c2:0-64`, the first 64 operations of a client; separated by commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skip {
    pub faults: BTreeSet<u32>,
    pub operations: Vec<(u64, Range<u32>)>,
}

impl Skip {
    pub fn fault(&self, number: u32) -> bool {
        self.faults.contains(&number)
    }

    pub fn operation(&self, client: u64, number: u32) -> bool {
        self.operations.iter().any(|(who, range)| *who == client && range.contains(&number))
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults = self.faults.iter().map(|fault| format!("f{fault}"));
        let operations =
            self.operations.iter().map(|(client, range)| format!("c{client}:{}-{}", range.start, range.end));
        f.write_str(&faults.chain(operations).collect::<Vec<_>>().join(","))
    }
}

impl FromStr for Skip {
    type Err = String;

    fn from_str(text: &str) -> Result<Skip, String> {
        let mut skip = Skip::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            let wrong = || format!("{word:?} is neither a fault (f3) nor operations of a client (c2:0-64)");
            if let Some(number) = word.strip_prefix('f') {
                skip.faults.insert(number.parse().map_err(|_| wrong())?);
                continue;
            }
            let (client, range) =
                word.strip_prefix('c').and_then(|rest| rest.split_once(':')).ok_or_else(wrong)?;
            let (from, to) = range.split_once('-').ok_or_else(wrong)?;
            let number = |text: &str| text.parse::<u32>().map_err(|_| wrong());
            let client = client.parse().map_err(|_| wrong())?;
            skip.operations.push((client, number(from)?..number(to)?));
        }
        Ok(skip)
    }
}

/// The property that a run's output says is violated.
pub fn violated(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.starts_with("seed ") && line.contains(" violated: "))?;
    line.split_once(": ")?.1.split(' ').next()
}

/// Leaves out what is not needed for the violation that `text`, the output of the whole run, shows. What it says then,
/// and what is left out.
pub fn shrink(program: &str, seed: u64, text: &str, clients: u64) -> Option<(Skip, String)> {
    let property = violated(text)?;
    let faults = u32::try_from(seeds::number_of(text, "faults")).ok()?;
    let until = Instant::now() + PATIENCE;
    let mut last = text.to_owned();
    let mut fails = |skip: &Skip| {
        if Instant::now() > until {
            return false;
        }
        let (held, text) = seeds::run(program, seed, &["--skip", &skip.to_string()]);
        let same = !held && violated(&text) == Some(property);
        if same {
            last = text;
        }
        same
    };
    Some((minimal(faults, clients, &mut fails), last))
}

/// The largest skip found with which `fails` still says yes.
fn minimal(faults: u32, clients: u64, fails: &mut impl FnMut(&Skip) -> bool) -> Skip {
    let mut skip = Skip::default();
    let mut size = faults.next_power_of_two();
    while size > 0 && faults > 0 {
        for from in (0..faults).step_by(size as usize) {
            let mut more = skip.clone();
            more.faults.extend(from..(from + size).min(faults));
            if more != skip && fails(&more) {
                skip = more;
            }
        }
        size /= 2;
    }
    for client in 0..clients {
        let mut left: Vec<Range<u32>> = std::iter::once(0..OPERATIONS).collect();
        while let Some(range) = left.pop() {
            let mut more = skip.clone();
            more.operations.push((client, range.clone()));
            let middle = range.start + (range.end - range.start) / 2;
            if fails(&more) {
                skip = more;
            } else if range.end - range.start > FINEST {
                left.extend([range.start..middle, middle..range.end]);
            }
        }
    }
    skip
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_reads_back() {
        let skip = Skip { faults: [3, 7].into(), operations: vec![(2, 0..64)] };
        assert_eq!(skip.to_string(), "f3,f7,c2:0-64");
        assert_eq!(skip.to_string().parse(), Ok(skip));
        assert!("x".parse::<Skip>().is_err() && "c2".parse::<Skip>().is_err());
        assert_eq!("".parse(), Ok(Skip::default()));
    }

    #[test]
    fn only_what_is_needed_is_left() {
        // Needs faults 5 and 11, and the operations 100 to 110 of client 1.
        let mut fails = |skip: &Skip| {
            !skip.fault(5) && !skip.fault(11) && (100..110).all(|number| !skip.operation(1, number))
        };
        let skip = minimal(20, 3, &mut fails);
        let kept: Vec<u32> = (0..20).filter(|fault| !skip.fault(*fault)).collect();
        assert_eq!(kept, [5, 11]);
        assert!(skip.operation(0, 0) && skip.operation(2, 1_000) && skip.operation(1, 200));
        assert!(!skip.operation(1, 105));
    }

    #[test]
    fn the_violated_property_is_found() {
        assert_eq!(violated("x\nseed 3: S7 violated: story\n"), Some("S7"));
        assert_eq!(violated("seed 3: 12 writes\n"), None);
    }
}
