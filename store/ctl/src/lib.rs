//! `keelson etcdctl`: etcd's command-line client, its commands, outputs, messages and exit codes.
//!
//! One file per family of commands; each command is a [`command::Command`] in its file and one line in [`COMMANDS`]. It
//! speaks the v3 API of any etcd and knows nothing of the store's inside.

mod auth;
mod check;
mod command;
mod concurrency;
mod endpoint;
mod flags;
mod json;
mod kv;
mod lease;
mod maintenance;
mod member;
mod metrics;
mod mirror;
mod output;
mod role;
mod session;
mod srv;
mod text;
mod tls;
mod txn;
mod user;
mod utility;
mod watch;

use std::process::ExitCode;

use command::{Asked, Commands, ERROR, Failure};

/// Every command.
const COMMANDS: Commands = Commands(&[
    &kv::GET,
    &kv::PUT,
    &kv::DEL,
    &kv::COMPACTION,
    &txn::TXN,
    &watch::WATCH,
    &lease::LEASE,
    &lease::GRANT,
    &lease::REVOKE,
    &lease::TIME_TO_LIVE,
    &lease::LIST,
    &lease::KEEP_ALIVE,
    &maintenance::ALARM,
    &maintenance::ALARM_DISARM,
    &maintenance::ALARM_LIST,
    &maintenance::DEFRAG,
    &maintenance::DOWNGRADE,
    &maintenance::DOWNGRADE_VALIDATE,
    &maintenance::DOWNGRADE_ENABLE,
    &maintenance::DOWNGRADE_CANCEL,
    &endpoint::ENDPOINT,
    &endpoint::HEALTH,
    &endpoint::STATUS,
    &endpoint::HASHKV,
    &member::MEMBER,
    &member::ADD,
    &member::REMOVE,
    &member::UPDATE,
    &member::LIST,
    &member::PROMOTE,
    &member::MOVE_LEADER,
    &maintenance::SNAPSHOT,
    &maintenance::SNAPSHOT_SAVE,
    &concurrency::ELECT,
    &concurrency::LOCK,
    &auth::AUTH,
    &auth::ENABLE,
    &auth::DISABLE,
    &auth::STATUS,
    &role::ROLE,
    &role::ADD,
    &role::DELETE,
    &role::GET,
    &role::LIST,
    &role::GRANT,
    &role::REVOKE,
    &user::USER,
    &user::ADD,
    &user::DELETE,
    &user::GET,
    &user::LIST,
    &user::PASSWD,
    &user::GRANT_ROLE,
    &user::REVOKE_ROLE,
    &check::CHECK,
    &check::PERF,
    &check::DATASCALE,
    &utility::COMPLETION,
    &mirror::MAKE_MIRROR,
    &utility::OPTIONS,
    &utility::VERSION,
]);

/// Runs a command: `args` without the program's name. Exit codes are etcdctl's.
pub fn main(args: Vec<String>) -> ExitCode {
    let outcome = match COMMANDS.find(&args) {
        Ok(Asked::Help(text)) => output::print(text.as_bytes()),
        Ok(Asked::Run(run, args)) => match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
            Ok(runtime) => {
                let outcome = runtime.block_on(run(args));
                // A read of standard input may still be waiting.
                runtime.shutdown_background();
                outcome
            }
            Err(error) => Err(Failure { code: ERROR, message: error.to_string() }),
        },
        Err(failure) => Err(failure),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("Error: {}", failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}
