//! The command line: kubectl's flag forms (`-n x`, `-nx`, `-it`, `--output=json`, `--dry-run`, `-- tail`), flags and
//! words in any order.

use std::collections::BTreeMap;

/// What follows a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    Nothing,
    Value,
    /// `--flag=value`, or bare with this meaning.
    Optional(&'static str),
}

/// A flag.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    pub long: &'static str,
    pub short: Option<char>,
    pub takes: Takes,
    pub help: &'static str,
}

/// A switch; `--name=false` switches it off.
pub const fn switch(long: &'static str, short: Option<char>, help: &'static str) -> Flag {
    Flag { long, short, takes: Takes::Nothing, help }
}

/// A flag with a value; the last one wins unless the command reads all.
pub const fn value(long: &'static str, short: Option<char>, help: &'static str) -> Flag {
    Flag { long, short, takes: Takes::Value, help }
}

/// A flag whose value may be left out.
pub const fn optional(long: &'static str, bare: &'static str, help: &'static str) -> Flag {
    Flag { long, short: None, takes: Takes::Optional(bare), help }
}

/// Flags every command takes.
pub const GLOBAL: &[Flag] = &[
    value("namespace", Some('n'), "namespace of the request"),
    value("kubeconfig", None, "path of the kubeconfig (default KUBECONFIG, then ~/.kube/config)"),
    value("context", None, "context of the kubeconfig"),
    value("cluster", None, "cluster of the kubeconfig"),
    value("user", None, "user of the kubeconfig"),
    value("server", Some('s'), "address of the API server"),
    value("token", None, "bearer token"),
    value("request-timeout", None, "accepted, requests are not timed"),
    value("v", Some('v'), "accepted, has no effect"),
    switch("insecure-skip-tls-verify", None, "do not check the server's certificate"),
];

/// A parsed command line.
#[derive(Debug, Default)]
pub struct Parsed {
    /// Words after the command.
    pub words: Vec<String>,
    flags: BTreeMap<&'static str, Vec<String>>,
    /// What stands after `--`.
    pub tail: Option<Vec<String>>,
}

impl Parsed {
    /// Parses; the error names the flag. The first word (the command) is left out.
    pub fn new(args: &[String], own: &[Flag]) -> Result<Parsed, String> {
        let mut parsed = Parsed::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            if arg == "--" {
                parsed.tail = Some(args.cloned().collect());
                break;
            }
            if let Some(long) = arg.strip_prefix("--") {
                let (name, inline) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value)),
                    None => (long, None),
                };
                let flag = all(own).find(|flag| flag.long == name);
                let flag = flag.ok_or_else(|| format!("unknown flag: --{name}"))?;
                let value = match (flag.takes, inline) {
                    (_, Some(value)) => value.to_string(),
                    (Takes::Nothing, None) => "true".into(),
                    (Takes::Optional(bare), None) => bare.into(),
                    (Takes::Value, None) => {
                        args.next().cloned().ok_or_else(|| format!("flag needs an argument: --{name}"))?
                    }
                };
                parsed.flags.entry(flag.long).or_default().push(value);
            } else if arg.len() > 1 && arg.starts_with('-') {
                parsed.shorts(&arg[1..], own, &mut args)?;
            } else {
                parsed.words.push(arg.clone());
            }
        }
        if !parsed.words.is_empty() {
            parsed.words.remove(0);
        }
        Ok(parsed)
    }

    fn shorts<'a>(
        &mut self,
        letters: &str,
        own: &[Flag],
        args: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), String> {
        for (at, letter) in letters.char_indices() {
            let flag = all(own).find(|flag| flag.short == Some(letter));
            let flag = flag.ok_or_else(|| format!("unknown shorthand flag: '{letter}' in -{letters}"))?;
            let rest = letters[at + letter.len_utf8()..].trim_start_matches('=');
            if flag.takes == Takes::Nothing {
                self.flags.entry(flag.long).or_default().push("true".into());
                continue;
            }
            let value = if rest.is_empty() {
                args.next()
                    .cloned()
                    .ok_or_else(|| format!("flag needs an argument: '{letter}' in -{letters}"))?
            } else {
                rest.to_string()
            };
            self.flags.entry(flag.long).or_default().push(value);
            return Ok(());
        }
        Ok(())
    }

    /// The flag's last value.
    pub fn get(&self, long: &str) -> Option<&str> {
        self.flags.get(long).and_then(|values| values.last()).map(String::as_str)
    }

    /// All values of the flag.
    pub fn all(&self, long: &str) -> &[String] {
        self.flags.get(long).map(Vec::as_slice).unwrap_or_default()
    }

    /// A switch that is on.
    pub fn has(&self, long: &str) -> bool {
        self.get(long).is_some_and(|value| value != "false")
    }

    /// A number.
    pub fn number(&self, long: &str) -> anyhow::Result<Option<i64>> {
        match self.get(long) {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => {
                    anyhow::bail!("invalid argument {text:?} for \"--{long}\" flag: give a whole number")
                }
            },
        }
    }

    /// A duration in Go's form.
    pub fn duration(&self, long: &str) -> anyhow::Result<Option<std::time::Duration>> {
        let Some(text) = self.get(long) else { return Ok(None) };
        if text == "0" {
            return Ok(Some(std::time::Duration::ZERO));
        }
        let parsed: Result<jiff::SignedDuration, _> = text.parse();
        match parsed.ok().and_then(|duration| duration.try_into().ok()) {
            Some(duration) => Ok(Some(duration)),
            None => anyhow::bail!(
                "invalid argument {text:?} for \"--{long}\" flag: give a duration like 30s or 5m"
            ),
        }
    }
}

fn all(own: &[Flag]) -> impl Iterator<Item = Flag> {
    own.iter().chain(GLOBAL).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &[Flag] = &[
        switch("stdin", Some('i'), ""),
        switch("tty", Some('t'), ""),
        value("output", Some('o'), ""),
        optional("dry-run", "unchanged", ""),
    ];

    fn parsed(line: &str) -> Result<Parsed, String> {
        Parsed::new(&line.split(' ').map(str::to_string).collect::<Vec<_>>(), OWN)
    }

    #[test]
    fn kubectl_forms_are_understood() {
        let line = parsed("-n kube-system get pods -ojson --dry-run=server x -it -- ls -l").expect("parses");
        assert_eq!(line.words, ["pods", "x"]);
        assert_eq!((line.get("namespace"), line.get("output")), (Some("kube-system"), Some("json")));
        assert!(line.has("stdin") && line.has("tty"));
        assert_eq!(line.get("dry-run"), Some("server"));
        assert_eq!(line.tail.as_deref(), Some(&["ls".to_string(), "-l".to_string()][..]));
        assert_eq!(parsed("get --dry-run").expect("parses").get("dry-run"), Some("unchanged"));
        assert!(!parsed("get --tty=false").expect("parses").has("tty"));
        assert_eq!(parsed("get -o=yaml").expect("parses").get("output"), Some("yaml"));
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(parsed("get --nope").unwrap_err(), "unknown flag: --nope");
        assert_eq!(parsed("get -z").unwrap_err(), "unknown shorthand flag: 'z' in -z");
        assert_eq!(parsed("get -o").unwrap_err(), "flag needs an argument: 'o' in -o");
    }
}
