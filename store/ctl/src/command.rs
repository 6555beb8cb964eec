//! What a command is, how the one meant is found among them, and what its help says. The forms are cobra's.

use std::pin::Pin;

use crate::flags::{Args, Flag, GLOBAL, Kind, short};

/// How a command ends when it does not succeed.
#[derive(Debug)]
pub struct Failure {
    /// The process's exit code.
    pub code: u8,
    /// Said on stderr after `Error: `; nothing when empty.
    pub message: String,
}

/// Something went wrong.
pub const ERROR: u8 = 1;
/// The server could not be reached or refused the connection.
pub const BAD_CONNECTION: u8 = 2;
/// Standard input does not make sense.
pub const INVALID_INPUT: u8 = 3;
/// Something asked for does not exist.
pub const BAD_FEATURE: u8 = 4;
/// The server ended it.
pub const INTERRUPTED: u8 = 5;
/// Arguments missing or of the wrong form.
pub const BAD_ARGS: u8 = 128;

/// A failure of that code.
pub fn fail<T>(code: u8, message: impl Into<String>) -> Result<T, Failure> {
    Err(Failure { code, message: message.into() })
}

/// A failure of the arguments.
pub fn bad_args<T>(message: impl Into<String>) -> Result<T, Failure> {
    fail(BAD_ARGS, message)
}

/// What a command does.
pub type Run = fn(Args) -> Pin<Box<dyn Future<Output = Result<(), Failure>>>>;

/// Headings of the main help, in order.
pub const GROUPS: &[&str] = &[
    "Key-value commands",
    "Cluster maintenance commands",
    "Concurrency commands",
    "Authentication commands",
    "Utility commands",
];

/// One command.
pub struct Command {
    /// Its words, such as `member add`.
    pub path: &'static str,
    /// What follows the words in the usage line.
    pub usage: &'static str,
    /// One line.
    pub short: &'static str,
    /// In its own help; `short` when empty.
    pub long: &'static str,
    /// Examples in its help.
    pub example: &'static str,
    /// Index into [`GROUPS`]; of commands of one word.
    pub group: usize,
    /// Its flags.
    pub flags: &'static [Flag],
    /// Flags its subcommands take too.
    pub shared: &'static [Flag],
    /// `None` for one that only has subcommands.
    pub run: Option<Run>,
}

impl Command {
    /// One with nothing but these; the others by struct update.
    pub const fn new(path: &'static str, usage: &'static str, short: &'static str) -> Command {
        Command { path, usage, short, long: "", example: "", group: 0, flags: &[], shared: &[], run: None }
    }

    fn name(&self) -> &'static str {
        self.path.rsplit(' ').next().unwrap_or(self.path)
    }

    fn parent(&self) -> &'static str {
        self.path.rsplit_once(' ').map_or("", |(parent, _)| parent)
    }
}

/// All commands, looked through by path.
#[derive(Clone, Copy)]
pub struct Commands(pub &'static [&'static Command]);

const HELP: &[Flag] = &[short("help", 'h', Kind::Bool, "", "help for ")];

/// What the arguments ask for.
pub enum Asked {
    /// Run it.
    Run(Run, Args),
    /// Print this and succeed.
    Help(String),
}

impl Commands {
    fn get(self, path: &str) -> Option<&'static Command> {
        self.0.iter().find(|command| command.path == path).copied()
    }

    fn children(self, path: &str) -> Vec<&'static Command> {
        let mut children: Vec<_> =
            self.0.iter().filter(|c| c.parent() == path && c.path != path).copied().collect();
        children.sort_by_key(|command| command.name());
        children
    }

    /// By its name, or by the beginning of one name.
    fn child(self, path: &str, word: &str) -> Option<&'static Command> {
        let children = self.children(path);
        if let Some(exact) = children.iter().find(|command| command.name() == word) {
            return Some(exact);
        }
        let mut starts = children.iter().filter(|command| command.name().starts_with(word));
        match (starts.next(), starts.next()) {
            (Some(only), None) if !word.is_empty() => Some(only),
            _ => None,
        }
    }

    /// Flags a command takes: its own, its ancestors' shared ones, the global ones, `--help`.
    pub fn flags_of(self, command: Option<&'static Command>) -> Vec<&'static Flag> {
        let mut flags: Vec<&'static Flag> = Vec::new();
        if let Some(command) = command {
            flags.extend(command.flags.iter().chain(command.shared));
            flags.extend(self.get(command.parent()).map(|parent| parent.shared).unwrap_or_default());
        }
        flags.extend(GLOBAL.iter().chain(HELP));
        flags
    }

    /// Finds the command and reads its flags.
    ///
    /// # Errors
    /// An unknown command or flag, with the usage.
    pub fn find(self, args: &[String]) -> Result<Asked, Failure> {
        let mut rest: Vec<String> = args.to_vec();
        let mut command: Option<&'static Command> = None;
        while let Some(at) = first_word(&rest) {
            let path = command.map_or("", |command| command.path);
            let Some(child) = self.child(path, &rest[at]) else { break };
            command = Some(child);
            rest.remove(at);
            if self.children(child.path).is_empty() {
                break;
            }
        }
        let flags = self.flags_of(command);
        let parsed = Args::parse(&rest, flags.iter().copied())
            .map_err(|error| Failure { code: ERROR, message: format!("{error}\n{}", self.usage(command)) })?;
        let Some(command) = command else { return self.root(&parsed) };
        match command.run {
            Some(run) if !parsed.on("help") => Ok(Asked::Run(run, parsed)),
            _ => Ok(Asked::Help(self.help(Some(command)))),
        }
    }

    fn root(self, parsed: &Args) -> Result<Asked, Failure> {
        match parsed.words.first().map(String::as_str) {
            None => Ok(Asked::Help(self.help(None))),
            Some("help") => {
                let (mut path, mut command) = (String::new(), None);
                for word in &parsed.words[1..] {
                    match self.child(&path, word) {
                        Some(child) => {
                            child.path.clone_into(&mut path);
                            command = Some(child);
                        }
                        None => return Ok(Asked::Help(self.help(None))),
                    }
                }
                Ok(Asked::Help(self.help(command)))
            }
            Some(_) if parsed.on("help") => Ok(Asked::Help(self.help(None))),
            Some(word) => {
                let mut text = format!("unknown command {word:?} for \"etcdctl\"\n");
                let close: Vec<&str> = self.names().into_iter().filter(|name| near(word, name)).collect();
                if !close.is_empty() {
                    text.push_str("\nDid you mean this?\n");
                    close.iter().for_each(|name| text.push_str(&format!("\t{name}\n")));
                }
                fail(ERROR, format!("{text}\nRun 'etcdctl --help' for usage."))
            }
        }
    }

    fn names(self) -> Vec<&'static str> {
        self.children("").iter().map(|command| command.name()).chain(["help"]).collect()
    }

    /// The whole help of a command, or of the program.
    pub fn help(self, command: Option<&'static Command>) -> String {
        let about = match command {
            None => "A simple command line client for etcd3.",
            Some(command) if command.long.is_empty() => command.short,
            Some(command) => command.long,
        };
        format!(
            "{}\n\n{}Use \"etcdctl options\" for a list of global command-line options (applies to all commands).\n",
            about.trim_end(),
            self.usage(command)
        )
    }

    fn usage(self, command: Option<&'static Command>) -> String {
        let path = command.map_or("", |command| command.path);
        let called = if path.is_empty() { "etcdctl".to_owned() } else { format!("etcdctl {path}") };
        let children = self.children(path);
        let mut text = String::from("Usage:");
        if let Some(command) = command.filter(|command| command.run.is_some()) {
            let parent =
                if command.parent().is_empty() { String::new() } else { format!("{} ", command.parent()) };
            let flags = if command.path == "completion" { "" } else { " [flags]" };
            let usage = if command.usage.is_empty() { String::new() } else { format!(" {}", command.usage) };
            text.push_str(&format!("\n  etcdctl {parent}{}{usage}{flags}", command.name()));
        }
        if !children.is_empty() {
            text.push_str(&format!("\n  {called} [command]"));
        }
        if let Some(command) = command.filter(|command| !command.example.is_empty()) {
            text.push_str(&format!("\n\nExamples:\n{}", command.example));
        }
        text.push_str(&self.listing(command, &children));
        if let Some(command) = command {
            let own: Vec<&Flag> = command.flags.iter().chain(command.shared).chain(HELP).collect();
            text.push_str(&format!("\n\nFlags:\n{}", usages(own, command.name())));
            let shared = self.get(command.parent()).map(|parent| parent.shared).unwrap_or_default();
            if !shared.is_empty() {
                text.push_str(&format!("\n\nGlobal Flags:\n{}", usages(shared.iter().collect(), "")));
            }
        }
        if !children.is_empty() {
            text.push_str(&format!(
                "\n\nUse \"{called} [command] --help\" for more information about a command."
            ));
        }
        text + "\n"
    }

    fn listing(self, command: Option<&'static Command>, children: &[&'static Command]) -> String {
        if children.is_empty() {
            return String::new();
        }
        let width = children.iter().map(|child| child.name().len()).max().unwrap_or(0).max(11);
        let line = |name: &str, short: &str| format!("\n  {name:<width$} {short}");
        if command.is_some() {
            let lines: String = children.iter().map(|child| line(child.name(), child.short)).collect();
            return format!("\n\nAvailable Commands:{lines}");
        }
        let mut text = String::new();
        for (index, title) in GROUPS.iter().enumerate() {
            let mut lines: Vec<(&str, &str)> =
                children.iter().filter(|c| c.group == index).map(|c| (c.name(), c.short)).collect();
            if index == GROUPS.len() - 1 {
                lines.push(("help", "Help about any command"));
            }
            lines.sort_unstable();
            text.push_str(&format!("\n\n{title}"));
            lines.iter().for_each(|(name, short)| text.push_str(&line(name, short)));
        }
        text
    }
}

/// The first argument that is no flag and no flag's value.
fn first_word(args: &[String]) -> Option<usize> {
    let mut skip = false;
    for (at, arg) in args.iter().enumerate() {
        if std::mem::take(&mut skip) {
            continue;
        }
        if arg == "--" {
            return None;
        }
        let takes_value = |matches: &dyn Fn(&Flag) -> bool| {
            GLOBAL.iter().find(|flag| matches(flag)).is_some_and(|flag| flag.kind != Kind::Bool)
        };
        if let Some(name) = arg.strip_prefix("--") {
            skip = !name.contains('=') && takes_value(&|flag| flag.name == name);
        } else if let Some(letter) = arg.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            skip = letter.chars().count() == 1 && takes_value(&|flag| letter.starts_with(flag.short));
        } else {
            return Some(at);
        }
    }
    None
}

/// The lines of a help's flags.
pub fn usages(mut flags: Vec<&Flag>, name: &str) -> String {
    flags.sort_by_key(|flag| flag.name);
    let head = |flag: &Flag| {
        let letter = if flag.short == '\0' { "    ".to_owned() } else { format!("-{}, ", flag.short) };
        let kind = match flag.kind {
            Kind::Bool => "",
            Kind::Int => " int",
            Kind::Uint => " uint",
            Kind::Text => " string",
            Kind::Duration => " duration",
            Kind::Slice => " strings",
        };
        format!("  {letter}--{}{kind}", flag.name)
    };
    let width = flags.iter().map(|flag| head(flag).len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for flag in flags {
        let default = match flag.kind {
            _ if flag.default.is_empty() => String::new(),
            Kind::Text => format!(" (default \"{}\")", flag.default),
            Kind::Slice => format!(" (default [{}])", flag.default),
            _ => format!(" (default {})", flag.default),
        };
        let suffix = if flag.name == "help" { name } else { "" };
        lines.push(format!("{:<width$}   {}{suffix}{default}", head(flag), flag.help));
    }
    lines.join("\n")
}

/// Whether a mistyped word may mean this name: two edits apart at most, or its beginning.
fn near(word: &str, name: &str) -> bool {
    name.starts_with(&word.to_lowercase()) || distance(word, name) <= 2
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let change = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
