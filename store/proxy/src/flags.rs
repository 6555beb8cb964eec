//! Flags of the form `--name value` or `--name=value`; switches need no value.

use std::time::Duration;

use anyhow::{Context, Result, bail};

/// One flag, and the value it came with.
pub(crate) struct Given<'a> {
    pub name: &'a str,
    pub value: &'a str,
}

/// Reads flags one by one; `switches` are those that may stand alone. `None` when help was asked for.
///
/// # Errors
/// What is no flag; a flag without its value; what `set` refuses.
pub(crate) fn each(
    args: &[String],
    switches: &[&str],
    mut set: impl FnMut(Given<'_>) -> Result<()>,
) -> Result<Option<()>> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(body) = arg.strip_prefix("--") else { bail!("unknown argument {arg:?}") };
        if body == "help" {
            return Ok(None);
        }
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, value),
            None if switches.contains(&body) => (body, "true"),
            None => {
                (body, args.next().with_context(|| format!("flag needs an argument: --{body}"))?.as_str())
            }
        };
        set(Given { name, value })
            .with_context(|| format!("invalid argument {value:?} for \"--{name}\" flag"))?;
    }
    Ok(Some(()))
}

/// Items between commas.
pub(crate) fn list(value: &str) -> Vec<String> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// Go's durations of one unit: `500ms`, `10s`, `1m`, `2h`.
///
/// # Errors
/// Another form.
pub(crate) fn duration(value: &str) -> Result<Duration> {
    let digits = value.find(|c: char| !c.is_ascii_digit()).context("a duration needs a unit, such as 10s")?;
    let number: u64 = value[..digits].parse().context("a duration begins with a number")?;
    match &value[digits..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        "h" => Ok(Duration::from_secs(number * 3600)),
        unit => bail!("unknown unit {unit:?} in a duration"),
    }
}

/// `host:port` of an endpoint that may be written as a URL.
pub(crate) fn address(endpoint: &str) -> String {
    endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest).trim_end_matches('/').to_owned()
}
