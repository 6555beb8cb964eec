//! What a case asks and what a client answers, in one form for all clients. The Go client reads and writes it as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One call. Names and arguments are etcdctl's, `lease grant` written `lease-grant`; beside them there are
/// `watch NAME KEY`, `events NAME N`, `progress NAME`, `ended NAME`, `cancel NAME` of an open watch, `lock NAME PREFIX`,
/// `elect NAME PREFIX VALUE`, `held NAME`, `release NAME` of what is held, `leader PREFIX`, and `go NAME` for what only
/// that client has. Ids are decimal.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Operation {
    pub name: String,
    pub args: Vec<String>,
    pub flags: BTreeMap<String, String>,
    /// `name:password`, or empty.
    pub user: String,
    /// Of a transaction.
    #[serde(rename = "if")]
    pub compare: Vec<Compare>,
    pub then: Vec<Operation>,
    #[serde(rename = "else")]
    pub otherwise: Vec<Operation>,
}

/// One comparison of a transaction.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Compare {
    /// `version`, `create`, `mod`, `value` or `lease`.
    pub target: String,
    pub key: String,
    /// Of all keys with that prefix.
    pub prefix: bool,
    /// `=`, `!=`, `<` or `>`.
    pub result: String,
    pub value: String,
}

/// A key with its value.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Record {
    pub key: String,
    pub value: String,
    pub create: i64,
    #[serde(rename = "mod")]
    pub modified: i64,
    pub version: i64,
    pub lease: i64,
}

/// A change.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Event {
    pub delete: bool,
    pub record: Record,
    pub prev: Option<Record>,
}

/// A refusal as the client shows it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Failure {
    /// gRPC's name of the code; `Client` for an error of the client itself; empty where the client does not show it.
    pub code: String,
    pub message: String,
}

/// What came back; what an operation does not answer is left at its default.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Answer {
    pub error: Option<Failure>,
    pub revision: i64,
    pub count: Option<i64>,
    pub more: bool,
    pub deleted: Option<i64>,
    pub records: Vec<Record>,
    pub prev: Vec<Record>,
    /// Of a transaction; whether auth is enabled.
    pub succeeded: Option<bool>,
    pub responses: Vec<Answer>,
    pub events: Vec<Event>,
    /// Names, permissions, members (`ID NAME LEARNER`), statuses (`MEMBER LEADER`), hashes.
    pub lines: Vec<String>,
    /// Of what was made: a lease, a member, the key of a lock.
    pub id: String,
    /// A TTL.
    pub number: i64,
}

impl Answer {
    /// A refusal.
    pub fn failed(code: &str, message: &str) -> Answer {
        let error = Some(Failure { code: code.to_owned(), message: message.to_owned() });
        Answer { error, ..Answer::default() }
    }
}

impl Operation {
    /// An argument, or the empty string.
    pub fn arg(&self, i: usize) -> &str {
        self.args.get(i).map_or("", String::as_str)
    }

    /// Whether a flag was given.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.contains_key(flag)
    }

    /// A flag's number, 0 without it.
    pub fn number(&self, flag: &str) -> i64 {
        self.flags.get(flag).map_or(0, |text| number(text))
    }
}

/// A number as a case has it.
///
/// # Panics
/// It is none.
pub fn number(text: &str) -> i64 {
    text.parse().unwrap_or_else(|_| panic!("no number: {text:?}"))
}
