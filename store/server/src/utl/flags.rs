//! Flags in the manner of etcd's tools: `--name value`, `--name=value`, `-n value`; a switch needs no value. Usage texts
//! are laid out as theirs.

use std::collections::BTreeMap;

use super::Outcome;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Switch,
    Int,
    Uint,
    Duration,
}

impl Kind {
    /// How a usage text names its value.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Text => "string",
            Kind::Switch => "",
            Kind::Int => "int",
            Kind::Uint => "uint",
            Kind::Duration => "duration",
        }
    }

    /// Why a value does not fit.
    fn refuse(self, value: &str) -> Option<String> {
        let parse = |function: &str, ok: bool| {
            (!ok).then(|| format!("strconv.{function}: parsing {value:?}: invalid syntax"))
        };
        match self {
            Kind::Text => None,
            Kind::Switch => {
                let known = ["true", "false", "1", "0", "t", "f", "T", "F", "TRUE", "FALSE", "True", "False"];
                parse("ParseBool", known.contains(&value))
            }
            Kind::Int => parse("ParseInt", value.parse::<i64>().is_ok()),
            Kind::Uint => parse("ParseUint", value.parse::<u64>().is_ok()),
            Kind::Duration => {
                let sound = crate::flags::duration(value).is_ok();
                (!sound).then(|| format!("time: invalid duration {value:?}"))
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Flag {
    pub name: &'static str,
    pub kind: Kind,
    /// As text; empty, `0` and `false` are not shown.
    pub default: &'static str,
    pub help: &'static str,
    pub required: bool,
    pub short: Option<char>,
}

impl Flag {
    pub const fn of(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
        Flag { name, kind, default, help, required: false, short: None }
    }

    pub const fn text(name: &'static str, default: &'static str, help: &'static str) -> Flag {
        Flag::of(name, Kind::Text, default, help)
    }

    pub const fn switch(name: &'static str, help: &'static str) -> Flag {
        Flag::of(name, Kind::Switch, "false", help)
    }

    pub const fn required(self) -> Flag {
        Flag { required: true, ..self }
    }

    pub const fn short(self, short: char) -> Flag {
        Flag { short: Some(short), ..self }
    }

    fn default_shown(&self) -> String {
        match self.default {
            "" | "0" | "false" => String::new(),
            text if self.kind == Kind::Text => format!(" (default {text:?})"),
            text => format!(" (default {text})"),
        }
    }
}

pub struct Command {
    /// Its words.
    pub path: &'static str,
    /// Its words and arguments.
    pub usage: &'static str,
    pub short: &'static str,
    pub long: &'static str,
    pub flags: &'static [Flag],
    pub run: fn(&Values) -> Outcome,
    /// How many arguments exactly, where that is checked before it runs.
    pub arguments: Option<usize>,
}

/// What was given, or else the default.
pub struct Values {
    given: BTreeMap<&'static str, String>,
    pub arguments: Vec<String>,
}

impl Values {
    pub fn text(&self, name: &str) -> &str {
        self.given.get(name).map_or("", String::as_str)
    }

    pub fn switch(&self, name: &str) -> bool {
        matches!(self.text(name), "true" | "1" | "t" | "T" | "TRUE" | "True")
    }

    pub fn number<T: std::str::FromStr + Default>(&self, name: &str) -> T {
        self.text(name).parse().unwrap_or_default()
    }
}

pub enum Parsed {
    /// To stdout, success.
    Help(String),
    /// To stderr, exit code 1.
    Refused(String),
    Run(&'static Command, Values),
}

const PROGRAM: &str = "etcdutl";
const PURPOSE: &str = "An administrative command line tool for etcd3.";
const HELP: Flag = Flag::of("help", Kind::Switch, "false", "").short('h');

/// Finds the command and reads its flags.
pub fn parse(commands: &'static [Command], global: &'static [Flag], args: &[String]) -> Parsed {
    let mut words: Vec<&String> = Vec::new();
    let mut rest: Vec<String> = Vec::new();
    let mut command = None;
    for (at, arg) in args.iter().enumerate() {
        if command.is_some() || arg.starts_with('-') {
            rest.push(arg.clone());
            continue;
        }
        // The value of a global flag before the command.
        let valued = |flag: &&Flag| {
            let before = at.checked_sub(1).map(|before| args[before].as_str());
            flag.kind != Kind::Switch
                && before.is_some_and(|before| {
                    before.strip_prefix("--") == Some(flag.name)
                        || flag
                            .short
                            .is_some_and(|short| before.strip_prefix('-') == Some(short.to_string().as_str()))
                })
        };
        if global.iter().any(|flag| valued(&flag)) {
            rest.push(arg.clone());
            continue;
        }
        words.push(arg);
        let path = words.iter().map(|word| word.as_str()).collect::<Vec<_>>().join(" ");
        command = commands.iter().find(|command| command.path == path);
        let group = commands.iter().any(|command| command.path.starts_with(&format!("{path} ")));
        if command.is_none() && !group {
            return unknown(commands, global, &words);
        }
    }
    match command {
        Some(command) => read(command, global, &rest),
        None => {
            let group = words.first().map_or("", |word| word.as_str());
            Parsed::Help(group_help(commands, global, group))
        }
    }
}

fn unknown(commands: &'static [Command], global: &'static [Flag], words: &[&String]) -> Parsed {
    match words {
        [group, ..] if words.len() > 1 => Parsed::Help(group_help(commands, global, group)),
        [word] if *word == "help" => Parsed::Help(group_help(commands, global, "")),
        _ => {
            let error = format!("Error: unknown command {:?} for {PROGRAM:?}\n", words[0]);
            Parsed::Refused(format!("{error}Run '{PROGRAM} --help' for usage.\n{error}"))
        }
    }
}

fn read(command: &'static Command, global: &'static [Flag], rest: &[String]) -> Parsed {
    let flags: Vec<Flag> = command.flags.iter().chain(global).chain([&HELP]).copied().collect();
    let mut values = Values { given: BTreeMap::new(), arguments: Vec::new() };
    let mut seen: Vec<&str> = Vec::new();
    let mut rest = rest.iter();
    while let Some(arg) = rest.next() {
        let body = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).filter(|body| !body.is_empty());
        let Some(body) = body else {
            if arg == "--" {
                values.arguments.extend(rest.by_ref().cloned());
            } else {
                values.arguments.push(arg.clone());
            }
            continue;
        };
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        let long = arg.starts_with("--");
        let found = flags.iter().find(|flag| {
            if long { flag.name == name } else { flag.short.is_some_and(|short| name == short.to_string()) }
        });
        let Some(flag) = found else {
            let error = if long {
                format!("unknown flag: --{name}")
            } else {
                format!("unknown shorthand flag: {:?} in {arg}", name.chars().next().unwrap_or('-'))
            };
            return refused(command, global, &error);
        };
        let value = match (inline, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Switch) => "true".to_owned(),
            (None, _) => match rest.next() {
                Some(value) => value.clone(),
                None => return refused(command, global, &format!("flag needs an argument: {arg}")),
            },
        };
        if let Some(problem) = flag.kind.refuse(&value) {
            let shown =
                flag.short.map_or_else(|| format!("--{}", flag.name), |c| format!("-{c}, --{}", flag.name));
            let error = format!("invalid argument {value:?} for {shown:?} flag: {problem}");
            return refused(command, global, &error);
        }
        seen.push(flag.name);
        values.given.insert(flag.name, value);
    }
    if values.switch("help") {
        return Parsed::Help(help(command, global));
    }
    let missing: Vec<String> = flags
        .iter()
        .filter(|flag| flag.required && !seen.contains(&flag.name))
        .map(|flag| format!("{:?}", flag.name))
        .collect();
    if !missing.is_empty() {
        return refused(command, global, &format!("required flag(s) {} not set", missing.join(", ")));
    }
    if let Some(count) = command.arguments.filter(|count| *count != values.arguments.len()) {
        let error = format!("accepts {count} arg(s), received {}", values.arguments.len());
        return refused(command, global, &error);
    }
    for flag in &flags {
        values.given.entry(flag.name).or_insert_with(|| flag.default.to_owned());
    }
    Parsed::Run(command, values)
}

fn refused(command: &Command, global: &[Flag], error: &str) -> Parsed {
    Parsed::Refused(format!("Error: {error}\n{}\nError: {error}\n", usage(command, global)))
}

/// Lines of a list of flags, sorted by name; `of` is what `--help` helps with.
fn listed(flags: &[Flag], of: &str) -> String {
    let mut flags = flags.to_vec();
    flags.sort_by_key(|flag| flag.name);
    let left = |flag: &Flag| {
        let short = flag.short.map_or_else(|| "      ".to_owned(), |short| format!("  -{short}, "));
        let kind = flag.kind.name();
        if kind.is_empty() {
            format!("{short}--{}", flag.name)
        } else {
            format!("{short}--{} {kind}", flag.name)
        }
    };
    let width = flags.iter().map(|flag| left(flag).len()).max().unwrap_or(0);
    let line = |flag: &Flag| {
        let help = if flag.name == HELP.name { format!("help for {of}") } else { flag.help.to_owned() };
        format!("{:<width$}   {help}{}\n", left(flag), flag.default_shown())
    };
    flags.iter().map(line).collect()
}

fn usage(command: &Command, global: &[Flag]) -> String {
    let name = command.path.rsplit(' ').next().unwrap_or(command.path);
    let own: Vec<Flag> = command.flags.iter().copied().chain([HELP]).collect();
    let flags = if command.path == "completion" { "" } else { " [flags]" };
    format!(
        "Usage:\n  {PROGRAM} {}{flags}\n\nFlags:\n{}\nGlobal Flags:\n{}",
        command.usage,
        listed(&own, name),
        listed(global, name)
    )
}

fn help(command: &Command, global: &[Flag]) -> String {
    let text = if command.long.is_empty() { command.short } else { command.long.trim_end() };
    format!("{text}\n\n{}", usage(command, global))
}

/// The help of the program, or of a word that has subcommands.
fn group_help(commands: &[Command], global: &[Flag], group: &str) -> String {
    let mut listed_commands: Vec<(&str, &str)> = Vec::new();
    for command in commands {
        if group.is_empty() {
            let (word, rest) = command.path.split_once(' ').unwrap_or((command.path, ""));
            let short = if rest.is_empty() { command.short } else { "Manages etcd node snapshots" };
            if !listed_commands.iter().any(|(known, _)| *known == word) {
                listed_commands.push((word, short));
            }
        } else if let Some(word) = command.path.strip_prefix(group).and_then(|rest| rest.strip_prefix(' ')) {
            listed_commands.push((word, command.short));
        }
    }
    if group.is_empty() {
        listed_commands.push(("help", "Help about any command"));
        listed_commands.sort_unstable();
    }
    let lines: String =
        listed_commands.iter().map(|(word, short)| format!("  {word:<11} {short}\n")).collect();
    let name = if group.is_empty() { PROGRAM.to_owned() } else { format!("{PROGRAM} {group}") };
    let (head, flags) = if group.is_empty() {
        let all: Vec<Flag> = global.iter().copied().chain([HELP]).collect();
        (format!("{PURPOSE}\n\n"), format!("Flags:\n{}", listed(&all, PROGRAM)))
    } else {
        let (own, all) = (listed(&[HELP], group), listed(global, group));
        (String::new(), format!("Flags:\n{own}\nGlobal Flags:\n{all}"))
    };
    format!(
        "{head}Usage:\n  {name} [command]\n\nAvailable Commands:\n{lines}\n{flags}\n\
         Use \"{name} [command] --help\" for more information about a command.\n"
    )
}
