//! kubectl's verbs for machines without kubectl, and `why`.
//!
//! [`run`] parses one command of [`commands::COMMANDS`] and answers its exit code: 0, 1 (the server or the command
//! refused), 2 (bad usage), or for `exec` the process's own. Objects are dynamic JSON throughout; kinds come from the
//! server's discovery, tables from its printers, so custom resources work like built-in ones.
//!
//! Absences: no plugins, no kustomize, no port-forward, no editor.

mod apply;
mod args;
mod commands;
mod create;
mod delete;
mod describe;
mod discovery;
mod exec;
mod get;
mod jsonpath;
mod logs;
mod manifest;
mod node_load;
mod output;
mod rollout;
mod scale;
mod session;
mod small;
mod three_way;
mod top;
mod wait;
mod why;

use args::Parsed;
use session::Session;

/// Whether a word is one of this crate's commands, so that `keelson get …` can be passed on.
pub fn is_command(word: &str) -> bool {
    commands::find(word).is_some()
}

/// Runs one command line (without the program's name) and returns the exit code.
pub async fn run(args: Vec<String>) -> i32 {
    let Some(word) = args.iter().find(|arg| !arg.starts_with('-')) else {
        println!("{}", commands::help());
        return i32::from(!args.iter().any(|arg| arg == "--help" || arg == "-h" || arg == "help"));
    };
    if word == "help" {
        println!("{}", commands::help());
        return 0;
    }
    let Some(command) = commands::find(word) else {
        eprintln!("error: unknown command {word:?}\n\n{}", commands::help());
        return 2;
    };
    if args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--help" || arg == "-h") {
        println!("{}", command.help());
        return 0;
    }
    let parsed = match Parsed::new(&args, command.flags) {
        Ok(parsed) => parsed,
        Err(message) => {
            eprintln!("error: {message}\nSee 'keelson kubectl {} --help' for usage.", command.name);
            return 2;
        }
    };
    match dispatch(command.name, parsed).await {
        Ok(code) => code,
        Err(error) if output::is_closed_pipe(&error) => 0,
        Err(error) => {
            eprintln!("{}", session::sentence(&error));
            1
        }
    }
}

async fn dispatch(name: &str, parsed: Parsed) -> anyhow::Result<i32> {
    if name == "version" && parsed.has("client") {
        return small::client_version();
    }
    let session = Session::connect(&parsed).await?;
    match name {
        "get" => get::run(&session, &parsed).await,
        "describe" => describe::run(&session, &parsed).await,
        "apply" => apply::run(&session, &parsed).await,
        "create" => create::run(&session, &parsed).await,
        "delete" => delete::run(&session, &parsed).await,
        "logs" => logs::run(&session, &parsed).await,
        "exec" => exec::run(&session, &parsed).await,
        "scale" => scale::run(&session, &parsed).await,
        "rollout" => rollout::run(&session, &parsed).await,
        "top" => top::run(&session, &parsed).await,
        "wait" => wait::run(&session, &parsed).await,
        "why" => why::run(&session, &parsed).await,
        "api-resources" => small::api_resources(&session, &parsed).await,
        "version" => small::version(&session).await,
        "label" => small::metadata(&session, &parsed, "labels").await,
        "annotate" => small::metadata(&session, &parsed, "annotations").await,
        "patch" => small::patch(&session, &parsed).await,
        "cordon" => small::cordon(&session, &parsed, true).await,
        "uncordon" => small::cordon(&session, &parsed, false).await,
        _ => anyhow::bail!("command {name:?} is listed but not carried out"),
    }
}
