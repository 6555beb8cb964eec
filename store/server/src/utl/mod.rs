//! `keelson etcdutl`: etcd's offline tool. It reads etcd's files and ours; what it restores is a data directory of ours.
//!
//! A command is one entry of [`COMMANDS`], with its flags: they make parsing, help and completion. Usage, messages and
//! exit codes are those of etcd's tool: 1 an error, 4 an output format that cannot show the answer, 128 bad arguments.

mod completion;
mod files;
mod flags;
mod print;
mod restore;

use std::process::ExitCode;

use flags::{Command, Flag, Kind, Parsed, Values};

/// What ends a command early.
pub(crate) struct Exit {
    code: u8,
    text: String,
}

impl Exit {
    fn new(code: u8, text: impl Into<String>) -> Exit {
        Exit { code, text: text.into() }
    }

    /// Bad arguments.
    fn arguments(text: impl Into<String>) -> Exit {
        Exit::new(128, text)
    }
}

impl From<anyhow::Error> for Exit {
    fn from(error: anyhow::Error) -> Exit {
        Exit::new(1, format!("{error:#}"))
    }
}

type Outcome = Result<(), Exit>;

const DATA_DIR: Flag = Flag::text("data-dir", "", "Path to the etcd data dir").required();

const COMMANDS: &[Command] = &[
    Command {
        path: "completion",
        usage: "completion [bash|zsh|fish|powershell]",
        short: "Generate completion script",
        long: completion::LONG,
        flags: &[],
        run: completion::run,
        arguments: None,
    },
    Command {
        path: "defrag",
        usage: "defrag",
        short: "Defragments the storage of the etcd members with given endpoints",
        long: "",
        flags: &[Flag::text(
            "data-dir",
            "",
            "Required. Defragments a data directory not in use by etcd.",
        )
        .required()],
        run: files::defrag,
        arguments: None,
    },
    Command {
        path: "hashkv",
        usage: "hashkv <filename>",
        short: "Prints the KV history hash of a given file",
        long: "",
        flags: &[Flag::of("rev", Kind::Int, "0", "maximum revision to hash (default: latest revision)")],
        run: files::hashkv,
        arguments: Some(1),
    },
    Command {
        path: "migrate",
        usage: "migrate",
        short: "Migrates schema of etcd data dir files to make them compatible with different etcd version",
        long: "",
        flags: &[
            DATA_DIR,
            Flag::switch(
                "force",
                "Ignore migration failure and forcefully override storage version. Not recommended.",
            ),
            Flag::text(
                "target-version",
                "",
                "Target etcd version to migrate contents of data dir. Minimal value 3.5. Format \"X.Y\" for example 3.6.",
            )
            .required(),
        ],
        run: files::migrate,
        arguments: None,
    },
    Command {
        path: "snapshot restore",
        usage: "snapshot restore <filename> --data-dir {output dir} [options]",
        short: "Restores an etcd member snapshot to an etcd directory",
        long: "",
        flags: restore::FLAGS,
        run: restore::run,
        arguments: None,
    },
    Command {
        path: "snapshot status",
        usage: "snapshot status <filename>",
        short: "Gets backend snapshot status of a given file",
        long: "When --write-out is set to simple, this command prints out comma-separated status lists for each endpoint.\n\
               The items in the lists are hash, revision, total keys, total size, version.\n",
        flags: &[],
        run: files::status,
        arguments: None,
    },
    Command {
        path: "version",
        usage: "version",
        short: "Prints the version of etcdutl",
        long: "",
        flags: &[],
        run: version,
        arguments: None,
    },
];

/// Flags of every command.
const GLOBAL: &[Flag] = &[
    Flag::of(
        "timeout",
        Kind::Duration,
        "10s",
        "time to wait to obtain a file lock on db file, 0 to block indefinitely",
    ),
    Flag::text("write-out", "simple", "set the output format (fields, json, protobuf, simple, table)")
        .short('w'),
];

fn version(_: &Values) -> Outcome {
    println!("etcdutl version: {}\nAPI version: 3.7", crate::handle::ETCD_VERSION);
    Ok(())
}

/// Runs the tool; `args` without the program's name.
pub fn main(args: Vec<String>) -> ExitCode {
    match flags::parse(COMMANDS, GLOBAL, &args) {
        Parsed::Help(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Parsed::Refused(text) => {
            eprint!("{text}");
            ExitCode::FAILURE
        }
        Parsed::Run(command, values) => match (command.run)(&values) {
            Ok(()) => ExitCode::SUCCESS,
            Err(exit) => {
                eprintln!("Error: {}", exit.text);
                ExitCode::from(exit.code)
            }
        },
    }
}

/// A line of log on stderr, in the console form of etcd's tools.
pub(crate) fn log(level: &str, line: u32, file: &str, message: &str, fields: &[(&str, serde_json::Value)]) {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
    let place = file.rsplit('/').take(2).collect::<Vec<_>>();
    let place = place.into_iter().rev().collect::<Vec<_>>().join("/");
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name:?}: {value}")).collect();
    let fields = if fields.is_empty() { String::new() } else { format!("\t{{{}}}", fields.join(", ")) };
    eprintln!("{now}\t{level}\t{place}:{line}\t{message}{fields}");
}
