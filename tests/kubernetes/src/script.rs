//! Scripts of commands with the output they must have: one file reads as a session at a terminal.
//!
//! ```text
//! $ kubectl get pod lone          once, with this output
//! NAME   READY   STATUS    RESTARTS   AGE
//! lone   2/2     Running   0          …
//!
//! ~ kubectl get pdb guard         until the output is this, for a minute and a half at most
//! 2> a line of standard error
//! exit 1
//! ```
//! In expected lines `…` stands for any text, a line `⋮` for any lines. How many blanks stand between words does not count
//! (columns are as wide as names happen to be), those before the first word do. With KEELSON_REWRITE set, a step whose
//! output is another is replaced, with what changes from run to run made `…`: the difference is then for review.

use std::path::Path;
use std::time::Duration;

use keelson_test_harness::Ran;

/// One command.
#[derive(Debug, PartialEq)]
pub struct Step {
    /// Whether it is repeated until it holds.
    pub patient: bool,
    pub command: String,
    pub expected: Vec<String>,
}

/// What stands before the first command, then the steps.
pub fn parse(text: &str) -> (Vec<String>, Vec<Step>) {
    let (mut head, mut steps): (Vec<String>, Vec<Step>) = (vec![], vec![]);
    for line in text.lines() {
        let command = |prefix| line.strip_prefix(prefix).map(str::to_owned);
        match (command("$ "), command("~ "), steps.last_mut()) {
            (Some(command), ..) => steps.push(Step { patient: false, command, expected: vec![] }),
            (_, Some(command), _) => steps.push(Step { patient: true, command, expected: vec![] }),
            (.., Some(step)) => step.expected.push(line.trim_end().to_owned()),
            (.., None) => head.push(line.to_owned()),
        }
    }
    for step in &mut steps {
        while step.expected.last().is_some_and(String::is_empty) {
            step.expected.pop();
        }
    }
    (head, steps)
}

/// Output as lines of a script.
pub fn lines(ran: &Ran) -> Vec<String> {
    let mut out: Vec<String> = ran.out.lines().map(|line| line.trim_end().to_owned()).collect();
    out.extend(ran.err.lines().map(|line| format!("2> {line}").trim_end().to_owned()));
    match ran.code {
        Some(0) => {}
        Some(code) => out.push(format!("exit {code}")),
        None => out.push("killed".to_owned()),
    }
    while out.last().is_some_and(String::is_empty) {
        out.pop();
    }
    out
}

/// Whether lines are as expected.
pub fn matches(expected: &[String], lines: &[String]) -> bool {
    match expected.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if first == "⋮" => {
            (0..=lines.len()).any(|skipped| matches(rest, &lines[skipped..]))
        }
        Some((first, rest)) => lines
            .split_first()
            .is_some_and(|(line, others)| line_matches(first, line) && matches(rest, others)),
    }
}

fn line_matches(expected: &str, line: &str) -> bool {
    let (expected, line) = (squeezed(expected), squeezed(line));
    let mut parts = expected.split('…');
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Blanks between words made one, those before the first kept.
fn squeezed(line: &str) -> String {
    let words = line.trim_start_matches(' ');
    let indent = &line[..line.len() - words.len()];
    format!("{indent}{}", words.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Runs one step. Returns the lines seen when they are not those expected.
pub fn play(step: &Step, deadline: Duration, run: impl Fn(&str) -> Ran) -> Result<(), Vec<String>> {
    let started = std::time::Instant::now();
    loop {
        let seen = lines(&run(&step.command));
        if matches(&step.expected, &seen) {
            return Ok(());
        }
        if !step.patient || started.elapsed() > deadline {
            return Err(seen);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Writes a script anew.
pub fn write(path: &Path, head: &[String], steps: &[Step]) {
    let mut text = String::new();
    for line in head {
        text.push_str(line);
        text.push('\n');
    }
    for step in steps {
        text.push_str(if step.patient { "~ " } else { "$ " });
        text.push_str(&step.command);
        text.push('\n');
        for line in &step.expected {
            text.push_str(line);
            text.push('\n');
        }
        text.push('\n');
    }
    std::fs::write(path, format!("{}\n", text.trim_end())).expect("the script can be written");
}

/// A line with what changes from run to run made `…`: ages, times, identifiers, addresses, generated names.
pub fn steadied(line: &str) -> String {
    let mut out = String::new();
    let breaks = |c: char| c.is_whitespace() || "\"'()[]{},/=|".contains(c);
    let mut word = String::new();
    for c in line.chars() {
        if breaks(c) {
            out.push_str(&steady_word(&word));
            word.clear();
            out.push(c);
        } else {
            word.push(c);
        }
    }
    out.push_str(&steady_word(&word));
    out
}

fn steady_word(word: &str) -> String {
    let digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let age = word.len() > 1
        && word.starts_with(|c: char| c.is_ascii_digit())
        && word.ends_with(['s', 'm', 'h', 'd'])
        && word.split(['s', 'm', 'h', 'd']).all(|part| part.is_empty() || digits(part));
    let uid = word.len() == 36 && word.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    let time = word.len() >= 20 && word.starts_with("20") && word.contains('T') && word.ends_with('Z');
    let address = ["10.244.", "127.1"].iter().any(|net| word.starts_with(net))
        || word.strip_prefix("10.96.").is_some_and(|rest| rest != "0.1" && rest != "0.10");
    if age || uid || time || address {
        return "…".to_owned();
    }
    // The five of a generated name, and the hash of a template before them.
    let generated = |part: &str| {
        (part.len() == 5 || (8..=10).contains(&part.len()))
            && part.chars().all(|c| "bcdfghjklmnpqrstvwxz0123456789".contains(c))
    };
    let mut parts: Vec<&str> = word.split('-').collect();
    for part in parts.iter_mut().skip(1) {
        if generated(part) {
            *part = "…";
        }
    }
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(expected: &[&str], seen: &[&str]) -> bool {
        let own = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        matches(&own(expected), &own(seen))
    }

    #[test]
    fn columns_may_move_and_marked_text_may_differ() {
        assert!(ok(&["web-…   1/1   Running   …"], &["web-5f-x2 1/1       Running 3s"]));
        assert!(!ok(&["web-…   1/1   Running   …"], &["web-5f-x2 0/1       Running 3s"]));
        assert!(!ok(&["  name: a"], &["name: a"]), "indentation is structure");
        assert!(!ok(&["READY"], &["READY   AGE"]), "a column more");
        assert!(ok(&["a", "⋮", "z"], &["a", "b", "c", "z"]) && ok(&["a", "⋮", "z"], &["a", "z"]));
        assert!(!ok(&["a"], &["a", "b"]) && !ok(&["a", "b"], &["a"]));
    }

    #[test]
    fn a_script_is_read_as_it_is_written() {
        let text = "# About.\n\n$ one\nout\n2> err\nexit 1\n\n~ two\n";
        let (head, steps) = parse(text);
        assert_eq!((head.len(), steps.len()), (2, 2));
        assert_eq!(steps[0].expected, ["out", "2> err", "exit 1"]);
        assert!(steps[1].patient && steps[1].expected.is_empty());
        let folder = tempfile::tempdir().expect("a folder");
        write(&folder.path().join("x"), &head, &steps);
        assert_eq!(parse(&std::fs::read_to_string(folder.path().join("x")).expect("read")).1, steps);
    }

    #[test]
    fn what_changes_is_marked() {
        let line =
            "web-5f7c8d9b6-x2bcd   1/1  Running  0 (4m3s ago)  2d  10.244.1.3  10.96.0.1:443  8080/TCP";
        let wanted = "web-…-…   1/1  Running  0 (… ago)  …  …  10.96.0.1:443  8080/TCP";
        assert_eq!(steadied(line), wanted.replace("10.96.0.1:443", &steady_word("10.96.0.1:443")));
        assert_eq!(steadied("uid: 0b8f4c1e-1111-2222-3333-0123456789ab"), "uid: …");
        assert_eq!(steadied("kube-system ordered-0"), "kube-system ordered-0");
    }
}
