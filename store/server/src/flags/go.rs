//! Values as Go's `flag` and `strconv` read and refuse them.

use std::time::Duration;

/// What `flag` says of a value of the wrong form.
const PARSE: &str = "parse error";
/// What it says of a number out of its type's range.
const RANGE: &str = "value out of range";

/// `1`, `t`, `true` and their like.
pub fn truth(value: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(PARSE.to_owned()),
    }
}

/// Decimal, or with Go's prefixes `0x`, `0o`, `0b`, `0`; underscores between digits.
pub fn number<T: TryFrom<i128>>(value: &str) -> Result<T, String> {
    let (negative, digits) = match value.strip_prefix(['-', '+']) {
        Some(rest) => (value.starts_with('-'), rest),
        None => (false, value),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    let plain: String = digits.chars().filter(|c| *c != '_').collect();
    if plain.is_empty() || !plain.chars().all(|c| c.is_digit(radix)) {
        return Err(PARSE.to_owned());
    }
    let magnitude = i128::from_str_radix(&plain, radix).map_err(|_| RANGE.to_owned())?;
    T::try_from(if negative { -magnitude } else { magnitude }).map_err(|_| RANGE.to_owned())
}

/// `10m`, `1h30m`, `500ms`, `0`; a negative one is taken as zero, which is what its users do with it.
pub fn duration(value: &str) -> Result<Duration, String> {
    let (negative, mut rest) = match value.strip_prefix(['-', '+']) {
        Some(rest) => (value.starts_with('-'), rest),
        None => (false, value),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(PARSE.to_owned());
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(PARSE)?;
        let number: f64 = rest[..digits].parse().map_err(|_| PARSE)?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..end] {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(PARSE.to_owned()),
            };
        rest = &rest[end..];
    }
    if negative {
        return Ok(Duration::ZERO);
    }
    Duration::try_from_secs_f64(total).map_err(|_| PARSE.to_owned())
}

/// Items between commas, in order, each once.
pub fn unique(value: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    for item in value.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        if !items.iter().any(|other| other == item) {
            items.push(item.to_owned());
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert!(duration("5").is_err());
        assert!(duration("").is_err());
    }

    #[test]
    fn numbers() {
        assert_eq!(number::<u64>("0x10"), Ok(16));
        assert_eq!(number::<i64>("-1_000"), Ok(-1000));
        assert_eq!(number::<u32>("-1"), Err("value out of range".to_owned()));
        assert_eq!(number::<u32>("x"), Err("parse error".to_owned()));
        assert!(number::<u32>("").is_err());
    }
}
