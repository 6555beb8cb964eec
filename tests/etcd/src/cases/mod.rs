//! One table of cases for several clients: `testdata/cases/*.txt` says what is asked and what every client shows, against
//! etcd and against us, with one member and with three, with and without TLS.
//!
//! `script` reads the table, `operation` is the form in which clients are asked and answer, `show` makes text of answers;
//! `etcdctl`, `go` and `rust` are the clients. With `KEELSON_REWRITE=1` a run writes what it was shown into the table, for
//! review as a diff: run that against etcd.

pub mod etcdctl;
pub mod go;
pub mod operation;
pub mod rust;
pub mod script;
pub mod show;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keelson_store_proto::client::{Etcd, Remote};
use keelson_store_proto::etcdserverpb as pb;
use sha2::Digest;

use crate::{Certificates, Cluster, eventually};
use operation::{Answer, Operation};
use script::{Case, Client, Step};
use show::Names;

/// The longest that a client is given for one operation.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Where a client finds its server.
#[derive(Clone)]
pub struct Place {
    /// Of every member.
    pub endpoints: Vec<String>,
    /// The server's authority and the client's certificate.
    pub tls: Option<Arc<Certificates>>,
}

/// A client that has been started.
pub enum Driver {
    Etcdctl(etcdctl::Etcdctl),
    Go(go::Go),
    Rust(Box<rust::Rust>),
}

impl Driver {
    fn kind(&self) -> Client {
        match self {
            Driver::Etcdctl(_) => Client::Etcdctl,
            Driver::Go(_) => Client::Go,
            Driver::Rust(_) => Client::Rust,
        }
    }

    async fn call(&mut self, operation: &Operation) -> Answer {
        match self {
            Driver::Etcdctl(client) => tokio::task::block_in_place(|| client.call(operation)),
            Driver::Go(client) => tokio::task::block_in_place(|| client.call(operation)),
            Driver::Rust(client) => client.call(operation).await,
        }
    }
}

/// The files of the table.
pub fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cases");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("the table").flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// What a run found.
#[derive(Default)]
pub struct Outcome {
    /// Cases that were run, and steps in them.
    pub cases: usize,
    pub steps: usize,
    /// What was not shown as the table has it.
    pub differences: Vec<String>,
}

/// A cluster under the table, with what is needed to tidy up between cases.
pub struct Table {
    place: Place,
    keeper: Remote,
    folder: tempfile::TempDir,
    members: Vec<(String, u64)>,
    version: (u32, u32),
}

impl Table {
    /// For a cluster whose members serve.
    pub async fn new(cluster: &Cluster, tls: Option<Arc<Certificates>>) -> Table {
        let place = Place { endpoints: cluster.endpoints(), tls };
        let tls = place.tls.as_ref().map(|certificates| certificates.client(true));
        let keeper = Remote::connect(&place.endpoints, tls).await.expect("good URLs");
        let list = keeper.member_list(pb::MemberListRequest { linearizable: true }).await.expect("members");
        let members = list.members.into_iter().map(|member| (member.name, member.id)).collect();
        let status = keeper.status(pb::StatusRequest {}).await.expect("a status");
        let version = script::version(&status.version).expect("a version");
        Table { place, keeper, folder: tempfile::tempdir().expect("a folder"), members, version }
    }

    /// Where clients find it.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Runs all that a client can do of one file.
    pub async fn run(&self, driver: &mut Driver, file: &Path, outcome: &mut Outcome) {
        let text =
            std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut cases = script::parse(&text);
        for case in &mut cases {
            let can = case.only.as_ref().is_none_or(|only| only.contains(&driver.kind()));
            let fits = case.members.is_none_or(|members| members == self.place.endpoints.len());
            let new = case.since.is_none_or(|since| since <= self.version);
            if can && fits && new {
                outcome.cases += 1;
                self.case(driver, case, file, outcome).await;
            }
        }
        // Of all clients Go's shows most.
        if std::env::var_os("KEELSON_REWRITE").is_some() && driver.kind() == Client::Go {
            std::fs::write(file, rewritten(&text, &cases)).expect("written");
        }
    }

    async fn case(&self, driver: &mut Driver, case: &mut Case, file: &Path, outcome: &mut Outcome) {
        let mut names = self.names().await;
        for step in &mut case.steps {
            let (operation, save) = script::command(step, |word| names.value(word));
            outcome.steps += 1;
            let (answer, shown) = self.step(driver, &operation, &mut names).await;
            if let Some(save) = save {
                names.saved.insert(save, answer.id.clone());
            }
            if !Names::same(&operation, &step.shown, &shown) {
                let place = format!("{}:{}", file.file_name().unwrap_or_default().display(), step.line);
                outcome.differences.push(format!(
                    "{place}: {}: {}\nexpected\n  {}\nshown\n  {}",
                    case.name,
                    step.text.join("\n"),
                    step.shown.join("\n  "),
                    shown.join("\n  "),
                ));
                if std::env::var_os("KEELSON_REWRITE").is_none() {
                    // What follows may depend on it.
                    break;
                }
            }
            step.shown = shown;
        }
        self.tidy(driver).await;
    }

    async fn step(&self, driver: &mut Driver, o: &Operation, names: &mut Names) -> (Answer, Vec<String>) {
        match o.name.as_str() {
            "await-count" => {
                self.await_count(o.arg(0), operation::number(o.arg(1))).await;
                (Answer::default(), Vec::new())
            }
            "snapshot-check" => {
                let path = o.arg(0);
                let shown = vec![format!("sound: {}", sound(Path::new(path)))];
                (Answer::default(), shown)
            }
            _ => {
                let answer = driver.call(o).await;
                if o.name == "endpoint-status" {
                    know_leader(&answer, names);
                }
                let shown = names.show(o, &answer);
                (answer, shown)
            }
        }
    }

    async fn names(&self) -> Names {
        let base = self.keeper.range(crate::get("none")).await.expect("a read").header;
        let mut names = Names { base: base.map_or(0, |header| header.revision), ..Names::default() };
        for (name, id) in &self.members {
            names.saved.insert(name.clone(), id.to_string());
        }
        let snapshot = self.folder.path().join("snapshot.db").display().to_string();
        names.saved.insert("snapshot".to_owned(), snapshot);
        names
    }

    async fn await_count(&self, prefix: &str, count: i64) {
        eventually(&format!("{count} keys below {prefix}"), || async {
            let answer = self.keeper.range(crate::prefix(prefix)).await.ok()?;
            (answer.count == count).then_some(())
        })
        .await;
    }

    /// An empty store without users, so that cases do not meet each other.
    async fn tidy(&self, driver: &mut Driver) {
        let all = pb::DeleteRangeRequest {
            key: bytes::Bytes::from_static(b"\0"),
            range_end: bytes::Bytes::from_static(b"\0"),
            prev_kv: false,
        };
        if self.keeper.delete_range(all.clone()).await.is_err() {
            // A case that broke off with auth enabled.
            let operation = Operation {
                name: "auth-disable".to_owned(),
                user: "root:secret".to_owned(),
                ..Operation::default()
            };
            driver.call(&operation).await;
            self.keeper.delete_range(all).await.expect("emptied");
        }
    }
}

/// `$leader` and `$follower` are members' ids.
fn know_leader(answer: &Answer, names: &mut Names) {
    for line in &answer.lines {
        let Some((member, leader)) = line.split_once(' ') else { continue };
        names.saved.insert("leader".to_owned(), leader.to_owned());
        if member != leader {
            names.saved.insert("follower".to_owned(), member.to_owned());
        }
    }
}

/// Whether a file is a database followed by its SHA-256.
fn sound(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap_or_default();
    let Some((database, sum)) = bytes.split_last_chunk::<32>() else { return false };
    bytes.len() % 512 == 32 && sha2::Sha256::digest(database)[..] == sum[..]
}

/// A table with what was shown in place of what it had; comments and order stay.
fn rewritten(text: &str, cases: &[Case]) -> String {
    let mut steps = cases.iter().flat_map(|case| &case.steps).peekable();
    let mut out = String::new();
    let mut pending: Option<&Step> = None;
    let flush = |out: &mut String, pending: &mut Option<&Step>| {
        for line in pending.take().map(|step| &step.shown).into_iter().flatten() {
            out.push_str(&format!("  {line}\n"));
        }
    };
    for (i, line) in text.lines().enumerate() {
        if line.starts_with("  ") {
            continue;
        }
        if !line.starts_with('|') {
            flush(&mut out, &mut pending);
        }
        if let Some(step) = steps.next_if(|step| step.line == i + 1) {
            pending = Some(step);
        }
        out.push_str(line);
        out.push('\n');
    }
    flush(&mut out, &mut pending);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_rewritten_in_place() {
        let text = "# about\ncase one\ntxn\n| then get a\n  old\n\n# next\nput a 1\n";
        let mut cases = script::parse(text);
        cases[0].steps[0].shown = vec!["new".to_owned(), "lines".to_owned()];
        let expected = "# about\ncase one\ntxn\n| then get a\n  new\n  lines\n\n# next\nput a 1\n";
        assert_eq!(rewritten(text, &cases), expected);
    }

    #[test]
    fn the_table_is_readable_and_no_case_has_a_twin() {
        let mut names = std::collections::BTreeSet::new();
        for file in files() {
            let text = std::fs::read_to_string(&file).expect("readable");
            for case in script::parse(&text) {
                assert!(!case.steps.is_empty(), "{} is empty", case.name);
                assert!(names.insert(case.name.clone()), "{} is there twice", case.name);
            }
        }
        assert!(names.len() >= 40, "{} cases", names.len());
    }
}
