//! Cases as text: what is asked, and below it, indented, what every client shows.
//!
//! ```text
//! case puts count revisions
//! put a 1
//!   revision +1
//! ```
//! `@N` in a command is the revision N after the case's beginning, `+N` in an answer likewise; `$name` is what an earlier
//! command saved with `-> name`; `x*N` is a value of so many x. Lines of a transaction begin with `|`, those of one
//! nested in it with `||`. `only CLIENTS: REASON`, `members N` and `since VERSION: REASON` (a server's that shows it) after
//! a case's name say where it runs. Comments begin with `#`.

use super::operation::{Compare, Operation};

/// The clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// etcd's own command, or ours of that name.
    Etcdctl,
    /// etcd's Go client.
    Go,
    /// The crate etcd-client.
    Rust,
}

/// A command with its place and what it shows.
#[derive(Clone, Debug)]
pub struct Step {
    /// Lines of the command, for messages and for a rewritten script.
    pub text: Vec<String>,
    /// Its place in the file.
    pub line: usize,
    /// Shown below it.
    pub shown: Vec<String>,
}

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it says.
    pub name: String,
    /// The clients that can do it; the others' reason stands in the file.
    pub only: Option<Vec<Client>>,
    /// How many members the cluster must have.
    pub members: Option<usize>,
    /// The first version, (major, minor), of a server that shows it.
    pub since: Option<(u32, u32)>,
    /// In order.
    pub steps: Vec<Step>,
}

/// The cases of a file.
///
/// # Panics
/// It is no script; the message has the line.
pub fn parse(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim_end();
        let at = i + 1;
        if let Some(name) = line.strip_prefix("case ") {
            let name = name.to_owned();
            cases.push(Case { name, only: None, members: None, since: None, steps: Vec::new() });
            continue;
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let case = cases.last_mut().unwrap_or_else(|| panic!("line {at}: before the first case"));
        if let Some(rest) = line.strip_prefix("only ") {
            let (clients, reason) = rest.split_once(": ").unwrap_or_else(|| panic!("line {at}: no reason"));
            assert!(!reason.is_empty(), "line {at}: no reason");
            case.only = Some(clients.split(' ').map(|name| client(name, at)).collect());
        } else if let Some(count) = line.strip_prefix("members ") {
            case.members = Some(count.parse().unwrap_or_else(|_| panic!("line {at}: no number")));
        } else if let Some(rest) = line.strip_prefix("since ") {
            let (since, reason) = rest.split_once(": ").unwrap_or_else(|| panic!("line {at}: no reason"));
            assert!(!reason.is_empty(), "line {at}: no reason");
            case.since = Some(version(since).unwrap_or_else(|| panic!("line {at}: no version")));
        } else if let Some(shown) = line.strip_prefix("  ") {
            let step = case.steps.last_mut().unwrap_or_else(|| panic!("line {at}: before a command"));
            step.shown.push(shown.to_owned());
        } else if line.starts_with('|') {
            let step = case.steps.last_mut().unwrap_or_else(|| panic!("line {at}: before a command"));
            step.text.push(line.to_owned());
        } else {
            case.steps.push(Step { text: vec![line.to_owned()], line: at, shown: Vec::new() });
        }
    }
    cases
}

/// (major, minor) of `3.7` or `3.7.1`.
pub fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

fn client(name: &str, at: usize) -> Client {
    match name {
        "etcdctl" => Client::Etcdctl,
        "go" => Client::Go,
        "rust" => Client::Rust,
        _ => panic!("line {at}: no client {name:?}"),
    }
}

/// Words of a command, which may stand in double quotes.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or_else(|| panic!("an open quote: {text}")),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        words.push(expanded(word));
        rest = after.trim_start();
    }
    words
}

fn expanded(word: &str) -> String {
    let count = word.strip_prefix("x*").and_then(|count| count.parse().ok());
    count.map_or_else(|| word.to_owned(), |count| "x".repeat(count))
}

/// A step's command, its variables replaced by `value`, and the name under which its id is saved.
///
/// # Panics
/// It is no command.
pub fn command(step: &Step, value: impl Fn(&str) -> String) -> (Operation, Option<String>) {
    let replaced = |line: &str| {
        let word = |word: String| match word.split_once('=') {
            Some((flag, text)) if flag.starts_with("--") => format!("{flag}={}", value(text)),
            _ => value(&word),
        };
        words(line).into_iter().map(word).collect::<Vec<String>>()
    };
    let mut first = replaced(&step.text[0]);
    let save = match first.iter().position(|word| word == "->") {
        Some(at) => first.split_off(at).pop(),
        None => None,
    };
    let mut operation = simple(&first);
    let lines: Vec<(usize, Vec<String>)> = step.text[1..]
        .iter()
        .map(|line| {
            let depth = line.chars().take_while(|c| *c == '|').count();
            (depth, replaced(&line[depth..]))
        })
        .collect();
    fill(&mut operation, &lines, 1);
    (operation, save)
}

fn simple(words: &[String]) -> Operation {
    let (name, rest) = words.split_first().expect("a command");
    let mut operation = Operation { name: name.clone(), ..Operation::default() };
    for word in rest {
        match word.strip_prefix("--") {
            Some(flag) => {
                let (flag, value) = flag.split_once('=').unwrap_or((flag, ""));
                operation.flags.insert(flag.to_owned(), value.to_owned());
            }
            None => operation.args.push(word.clone()),
        }
    }
    operation.user = operation.flags.remove("user").unwrap_or_default();
    operation
}

/// Puts the lines of one depth into a transaction; deeper ones belong to the transaction before them.
fn fill(txn: &mut Operation, lines: &[(usize, Vec<String>)], depth: usize) {
    let mut at = 0;
    while at < lines.len() {
        let (_, line) = &lines[at];
        let inner = lines[at + 1..].iter().take_while(|(deeper, _)| *deeper > depth).count();
        match line[0].as_str() {
            "if" => txn.compare.push(compare(&line[1..])),
            branch @ ("then" | "else") => {
                let mut operation = simple(&line[1..]);
                fill(&mut operation, &lines[at + 1..=at + inner], depth + 1);
                if branch == "then" { &mut txn.then } else { &mut txn.otherwise }.push(operation);
            }
            other => panic!("no line of a transaction: {other}"),
        }
        at += 1 + inner;
    }
}

/// `version(key) = 1`; `version(key*) = 1` of a prefix.
fn compare(words: &[String]) -> Compare {
    let [subject, result, value] = words else { panic!("no comparison: {words:?}") };
    let (target, key) = subject.split_once('(').expect("target(key)");
    let key = key.strip_suffix(')').expect("target(key)");
    let (key, prefix) = key.strip_suffix('*').map_or((key, false), |prefix| (prefix, true));
    Compare {
        target: target.to_owned(),
        key: key.to_owned(),
        prefix,
        result: result.clone(),
        value: value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read() {
        let text = "# about\ncase one\nonly go rust: nested\nmembers 3\ntxn\n| if mod(a*) > @1\n| then txn\n|| then put k \"a b\" --lease=$l\n| else get b --prefix\n  revision +1\n\nput z x*3 -> id\n";
        let cases = parse(text);
        assert_eq!(cases.len(), 1);
        assert_eq!(cases[0].only, Some(vec![Client::Go, Client::Rust]));
        assert_eq!((cases[0].members, cases[0].steps.len()), (Some(3), 2));
        assert_eq!(cases[0].steps[0].shown, ["revision +1"]);
        let value = |word: &str| match word {
            "@1" => "11".to_owned(),
            "$l" => "77".to_owned(),
            other => other.to_owned(),
        };
        let (txn, saved) = command(&cases[0].steps[0], value);
        assert_eq!(saved, None);
        assert_eq!((txn.compare[0].value.as_str(), txn.compare[0].prefix), ("11", true));
        let inner = &txn.then[0].then[0];
        assert_eq!((inner.arg(1), inner.number("lease")), ("a b", 77));
        assert!(txn.otherwise[0].has("prefix"));
        let (put, saved) = command(&cases[0].steps[1], value);
        assert_eq!((put.arg(1), saved.as_deref()), ("xxx", Some("id")));
    }
}
