//! Flags as etcdctl's library (pflag) takes them: `--name=value`, `--name value`, `-w json`, `-wjson`, anywhere among the
//! arguments; `--` ends them.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::text;

/// The type of a flag's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Int,
    Uint,
    Text,
    Duration,
    Slice,
}

/// One flag.
#[derive(Debug)]
pub struct Flag {
    pub name: &'static str,
    /// `\0` = none.
    pub short: char,
    pub kind: Kind,
    pub default: &'static str,
    pub help: &'static str,
}

/// Shortens the tables.
pub const fn flag(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag { name, short: '\0', kind, default, help }
}

/// With a letter.
pub const fn short(
    name: &'static str,
    short: char,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> Flag {
    Flag { name, short, kind, default, help }
}

/// Of every command.
pub const GLOBAL: &[Flag] = &[
    flag(
        "auth-jwt-token",
        Kind::Text,
        "",
        "JWT token used for authentication (if this option is used, --user and --password should not be set)",
    ),
    flag("cacert", Kind::Text, "", "verify certificates of TLS-enabled secure servers using this CA bundle"),
    flag("cert", Kind::Text, "", "identify secure client using this TLS certificate file"),
    flag(
        "command-timeout",
        Kind::Duration,
        "5s",
        "timeout for short running command (excluding dial timeout)",
    ),
    flag("debug", Kind::Bool, "", "enable client-side debug logging"),
    flag("dial-timeout", Kind::Duration, "2s", "dial timeout for client connections"),
    short(
        "discovery-srv",
        'd',
        Kind::Text,
        "",
        "domain name to query for SRV records describing cluster endpoints",
    ),
    flag("discovery-srv-name", Kind::Text, "", "service name to query when using DNS discovery"),
    flag("endpoints", Kind::Slice, "127.0.0.1:2379", "gRPC endpoints"),
    flag("hex", Kind::Bool, "", "print byte strings as hex encoded strings"),
    flag(
        "insecure-discovery",
        Kind::Bool,
        "true",
        "accept insecure SRV records describing cluster endpoints",
    ),
    flag(
        "insecure-skip-tls-verify",
        Kind::Bool,
        "",
        "skip server certificate verification (CAUTION: this option should be enabled only for testing purposes)",
    ),
    flag("insecure-transport", Kind::Bool, "true", "disable transport security for client connections"),
    flag("keepalive-time", Kind::Duration, "2s", "keepalive time for client connections"),
    flag("keepalive-timeout", Kind::Duration, "6s", "keepalive timeout for client connections"),
    flag("key", Kind::Text, "", "identify secure client using this TLS key file"),
    flag(
        "max-recv-bytes",
        Kind::Int,
        "",
        "client-side response receive limit in bytes (if 0, it defaults to \"math.MaxInt32\")",
    ),
    flag(
        "max-request-bytes",
        Kind::Int,
        "",
        "client-side request send limit in bytes (if 0, it defaults to 2.0 MiB (2 * 1024 * 1024).)",
    ),
    flag(
        "password",
        Kind::Text,
        "",
        "password for authentication (if this option is used, --user option shouldn't include password)",
    ),
    flag(
        "user",
        Kind::Text,
        "",
        "username[:password] for authentication (prompt if password is not supplied)",
    ),
    short(
        "write-out",
        'w',
        Kind::Text,
        "simple",
        "set the output format (fields, json, protobuf, simple, table)",
    ),
];

/// What was given.
#[derive(Clone, Debug, Default)]
pub struct Args {
    /// Arguments that are no flags.
    pub words: Vec<String>,
    /// How many of `words` stood before `--`, where there was one.
    pub separator: Option<usize>,
    values: BTreeMap<&'static str, String>,
    defaults: BTreeMap<&'static str, &'static str>,
}

impl Args {
    /// Splits `args`.
    ///
    /// # Errors
    /// An unknown flag, a value missing or of the wrong form, in pflag's words.
    pub fn parse<'a>(
        args: &[String],
        flags: impl Iterator<Item = &'static Flag> + Clone + 'a,
    ) -> Result<Args, String> {
        let mut parsed = Args::default();
        parsed.defaults.extend(flags.clone().map(|flag| (flag.name, flag.default)));
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            if arg == "--" {
                parsed.separator = Some(parsed.words.len());
                parsed.words.extend(args.cloned());
                return Ok(parsed);
            }
            if let Some(body) = arg.strip_prefix("--") {
                let (name, value) =
                    body.split_once('=').map_or((body, None), |(n, v)| (n, Some(v.to_owned())));
                if name.is_empty() || name.starts_with('-') {
                    return Err(format!("bad flag syntax: {arg}"));
                }
                let flag = flags
                    .clone()
                    .find(|flag| flag.name == name)
                    .ok_or_else(|| format!("unknown flag: --{name}"))?;
                let value = match (value, flag.kind) {
                    (Some(value), _) => value,
                    (None, Kind::Bool) => "true".to_owned(),
                    (None, _) => {
                        args.next().cloned().ok_or_else(|| format!("flag needs an argument: --{name}"))?
                    }
                };
                parsed.set(flag, value)?;
            } else if let Some(letters) = arg.strip_prefix('-').filter(|letters| !letters.is_empty()) {
                parsed.letters(letters, &mut args, flags.clone())?;
            } else {
                parsed.words.push(arg.clone());
            }
        }
        Ok(parsed)
    }

    fn letters<'a>(
        &mut self,
        letters: &str,
        args: &mut std::slice::Iter<'_, String>,
        flags: impl Iterator<Item = &'static Flag> + Clone + 'a,
    ) -> Result<(), String> {
        let mut rest = letters;
        while let Some(letter) = rest.chars().next() {
            let flag = flags
                .clone()
                .find(|flag| flag.short == letter)
                .ok_or_else(|| format!("unknown shorthand flag: '{letter}' in -{letters}"))?;
            rest = &rest[letter.len_utf8()..];
            if let Some(value) = rest.strip_prefix('=') {
                return self.set(flag, value.to_owned());
            }
            if flag.kind == Kind::Bool {
                self.set(flag, "true".to_owned())?;
                continue;
            }
            let value = match rest {
                "" => args
                    .next()
                    .cloned()
                    .ok_or_else(|| format!("flag needs an argument: '{letter}' in -{letters}"))?,
                rest => rest.to_owned(),
            };
            return self.set(flag, value);
        }
        Ok(())
    }

    fn set(&mut self, flag: &'static Flag, value: String) -> Result<(), String> {
        let name = match flag.short {
            '\0' => format!("--{}", flag.name),
            letter => format!("-{letter}, --{}", flag.name),
        };
        check(flag.kind, &value).map_err(|error| {
            format!(
                "invalid argument {} for {} flag: {error}",
                text::quote(value.as_bytes()),
                text::quote(name.as_bytes())
            )
        })?;
        // A slice given again grows.
        match self.values.get_mut(flag.name) {
            Some(before) if flag.kind == Kind::Slice => *before = format!("{before},{value}"),
            _ => drop(self.values.insert(flag.name, value)),
        }
        Ok(())
    }

    /// A value from the environment.
    ///
    /// # Errors
    /// Of the wrong form.
    pub fn set_default(&mut self, flag: &'static Flag, value: String) -> Result<(), String> {
        check(flag.kind, &value)?;
        self.values.insert(flag.name, value);
        Ok(())
    }

    /// Whether the flag was given.
    pub fn given(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// A flag's text.
    pub fn text(&self, name: &str) -> &str {
        self.values
            .get(name)
            .map(String::as_str)
            .or_else(|| self.defaults.get(name).copied())
            .unwrap_or_default()
    }

    /// A switch.
    pub fn on(&self, name: &str) -> bool {
        truth(self.text(name)).unwrap_or(false)
    }

    /// A number; checked when it was taken.
    pub fn int(&self, name: &str) -> i64 {
        text::parse_int(self.text(name), 10).unwrap_or(0)
    }

    /// A duration; checked when it was taken.
    pub fn duration(&self, name: &str) -> Duration {
        text::parse_duration(self.text(name)).unwrap_or_default()
    }

    /// A list.
    pub fn list(&self, name: &str) -> Vec<String> {
        self.text(name)
            .split(',')
            .map(|item| item.trim().to_owned())
            .filter(|item| !item.is_empty())
            .collect()
    }
}

fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn check(kind: Kind, value: &str) -> Result<(), String> {
    match kind {
        Kind::Bool => truth(value).map(|_| ()).ok_or_else(|| {
            format!("strconv.ParseBool: parsing {}: invalid syntax", text::quote(value.as_bytes()))
        }),
        Kind::Int => text::parse_int(value, 10).map(|_| ()),
        Kind::Uint => text::parse_uint(value, 10).map(|_| ()),
        Kind::Duration => text::parse_duration(value)
            .map(|_| ())
            .ok_or_else(|| format!("time: invalid duration {}", text::quote(value.as_bytes()))),
        Kind::Text | Kind::Slice => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        flag("prefix", Kind::Bool, "", "x"),
        flag("rev", Kind::Int, "", "x"),
        short("interactive", 'i', Kind::Bool, "", "x"),
    ];

    fn parse(args: &[&str]) -> Result<Args, String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        Args::parse(&args, FLAGS.iter().chain(GLOBAL))
    }

    #[test]
    fn flags_stand_anywhere() {
        let args = parse(&["a", "--prefix", "b", "--rev=3", "-wjson", "-i", "--", "--c"]).expect("good");
        assert_eq!(args.words, ["a", "b", "--c"]);
        assert_eq!(args.separator, Some(2));
        assert!(
            args.on("prefix") && args.on("interactive") && !args.on("hex") && args.on("insecure-transport")
        );
        assert_eq!((args.int("rev"), args.text("write-out")), (3, "json"));
    }

    #[test]
    fn mistakes_have_pflags_words() {
        let mistake = |args: &[&str]| parse(args).expect_err("a mistake");
        assert_eq!(mistake(&["--nope"]), "unknown flag: --nope");
        assert_eq!(mistake(&["-c"]), "unknown shorthand flag: 'c' in -c");
        assert_eq!(mistake(&["--rev"]), "flag needs an argument: --rev");
        assert_eq!(
            mistake(&["--rev=x"]),
            "invalid argument \"x\" for \"--rev\" flag: strconv.ParseInt: parsing \"x\": invalid syntax"
        );
    }
}
