//! Answers as a case's text has them: revisions counted from the case's beginning, ids by the names they were saved under.

use std::collections::BTreeMap;

use super::operation::{Answer, Event, Operation, Record};

/// What is known when an answer is shown.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// The revision at the case's beginning.
    pub base: i64,
    /// What was saved.
    pub saved: BTreeMap<String, String>,
}

impl Names {
    /// A word of a command with its variable replaced.
    pub fn value(&self, word: &str) -> String {
        if let Some(name) = word.strip_prefix('$') {
            return self.saved.get(name).cloned().unwrap_or_else(|| panic!("nothing is saved as {name}"));
        }
        match word.strip_prefix('@').and_then(|offset| offset.parse::<i64>().ok()) {
            Some(offset) => (self.base + offset).to_string(),
            None => word.to_owned(),
        }
    }

    fn revision(&self, revision: i64) -> String {
        if revision == 0 { "0".to_owned() } else { format!("{:+}", revision - self.base) }
    }

    fn named(&self, id: &str) -> Option<String> {
        self.saved.iter().find(|(_, saved)| *saved == id).map(|(name, _)| format!("${name}"))
    }

    fn record(&self, record: &Record) -> String {
        let value = match record.value.len() {
            100.. => format!("x*{}", record.value.len()),
            _ => record.value.clone(),
        };
        let mut line = format!(
            "{} = {value:?} (create {}, mod {}, version {}",
            record.key,
            self.revision(record.create),
            self.revision(record.modified),
            record.version
        );
        if record.lease != 0 {
            let id = record.lease.to_string();
            line.push_str(&format!(", lease {}", self.named(&id).unwrap_or(id)));
        }
        line + ")"
    }

    fn event(&self, event: &Event) -> String {
        let mut line = match event.delete {
            true => format!("DELETE {} (mod {})", event.record.key, self.revision(event.record.modified)),
            false => format!("PUT {}", self.record(&event.record)),
        };
        if let Some(prev) = &event.prev {
            line.push_str(&format!(", before: {}", self.record(prev)));
        }
        line
    }

    /// The lines of an answer to an operation.
    pub fn show(&self, operation: &Operation, answer: &Answer) -> Vec<String> {
        let mut lines = Vec::new();
        if answer.revision != 0 {
            lines.push(format!("revision {}", self.revision(answer.revision)));
        }
        if let Some(succeeded) = answer.succeeded {
            lines.push(succeeded.to_string());
        }
        if let Some(deleted) = answer.deleted {
            lines.push(format!("deleted {deleted}"));
        }
        if let Some(count) = answer.count {
            lines.push(format!("count {count}{}", if answer.more { ", more" } else { "" }));
        }
        if answer.number != 0 {
            lines.push(format!("ttl {}", answer.number));
        }
        if let Some((holder, _)) = answer.id.split_once('/') {
            // What follows is the id of a lease that the client made.
            lines.push(format!("{holder}/..."));
        }
        lines.extend(answer.records.iter().map(|record| self.record(record)));
        lines.extend(answer.prev.iter().map(|record| format!("before: {}", self.record(record))));
        lines.extend(answer.events.iter().map(|event| self.event(event)));
        lines.extend(self.lines(operation, &answer.lines));
        for response in &answer.responses {
            let inner = self.show(operation, response);
            let inner = if inner.is_empty() { vec!["done".to_owned()] } else { inner };
            let mark = |(i, line)| format!("{}{line}", if i == 0 { "- " } else { "  " });
            lines.extend(inner.into_iter().enumerate().map(mark));
        }
        if let Some(error) = &answer.error {
            // An error that a client makes itself has no code that others would know.
            let own = ["", "Client"].contains(&error.code.as_str());
            let code = if own { "" } else { &format!(" {}", error.code) };
            lines.push(format!("error{code}: {}", error.message));
        }
        lines
    }

    /// Whether lines are those of a script. Not every client shows an error's code, nor a compaction's revision.
    pub fn same(operation: &Operation, expected: &[String], shown: &[String]) -> bool {
        let bare = |line: &str| {
            let rest = line.strip_prefix("error")?;
            rest.split_once(": ").map(|(code, text)| (code.to_owned(), text.to_owned()))
        };
        let blind = operation.name == "compact" && shown.is_empty();
        let expected =
            if blind && expected.iter().all(|line| line.starts_with("revision")) { &[] } else { expected };
        let line = |(a, b): (&String, &String)| match (bare(a), bare(b)) {
            (Some((x, text)), Some((y, other))) => text == other && (x == y || x.is_empty() || y.is_empty()),
            _ => a == b,
        };
        expected.len() == shown.len() && expected.iter().zip(shown).all(line)
    }

    fn lines(&self, operation: &Operation, lines: &[String]) -> Vec<String> {
        let first = |line: &String| line.split(' ').next().unwrap_or_default().to_owned();
        match operation.name.as_str() {
            "endpoint-status" => {
                let leaders: Vec<&str> = lines.iter().filter_map(|line| line.split(' ').nth(1)).collect();
                let led = leaders.iter().all(|leader| *leader == leaders[0] && *leader != "0");
                vec![format!("one leader: {led}")]
            }
            "endpoint-hashkv" => {
                let same = lines.iter().all(|hash| *hash == lines[0] && hash != "0");
                vec![format!("one hash: {same}")]
            }
            // Of other clients' sessions there may be more.
            "lease-list" => {
                let mut names: Vec<String> = lines.iter().filter_map(|id| self.named(id)).collect();
                names.sort();
                names
            }
            "member-list" => {
                let rest = |line: &String| line.split_once(' ').map_or("", |(_, rest)| rest).to_owned();
                let shown = |line| format!("{} {}", self.named(&first(line)).unwrap_or_default(), rest(line));
                let mut shown: Vec<String> = lines.iter().map(shown).collect();
                shown.sort();
                shown
            }
            _ => lines.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_counted_from_the_beginning_and_ids_have_names() {
        let saved = [("l".to_owned(), "77".to_owned())].into();
        let names = Names { base: 10, saved };
        assert_eq!(
            (names.value("@2"), names.value("$l"), names.value("x")),
            ("12".into(), "77".into(), "x".into())
        );
        let record =
            Record { key: "k".into(), value: "v".into(), create: 11, modified: 12, version: 2, lease: 77 };
        let answer = Answer { revision: 12, count: Some(1), records: vec![record], ..Answer::default() };
        let shown = names.show(&Operation::default(), &answer);
        assert_eq!(shown, ["revision +2", "count 1", r#"k = "v" (create +1, mod +2, version 2, lease $l)"#]);
    }
}
