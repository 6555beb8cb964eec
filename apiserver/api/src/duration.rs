//! Durations as tables print them (`5s`, `3m20s`, `2h`, `5d10h`, `1y20d`) and as users write them (`1h30m`).

/// Humanizes a number of seconds the way every kubectl age column does; negative ones read `<invalid>`.
pub fn human(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".into();
    }
    if seconds < 0 {
        return "0s".into();
    }
    if seconds < 120 {
        return format!("{seconds}s");
    }
    let minutes = seconds / 60;
    if minutes < 10 {
        return with_rest(minutes, "m", seconds % 60, "s");
    }
    if minutes < 180 {
        return format!("{minutes}m");
    }
    let hours = seconds / 3600;
    if hours < 8 {
        return with_rest(hours, "h", minutes % 60, "m");
    }
    if hours < 48 {
        return format!("{hours}h");
    }
    if hours < 24 * 8 {
        return with_rest(hours / 24, "d", hours % 24, "h");
    }
    let days = hours / 24;
    if days < 365 * 2 {
        return format!("{days}d");
    }
    if days < 365 * 8 {
        return with_rest(days / 365, "y", days % 365, "d");
    }
    format!("{}y", days / 365)
}

fn with_rest(n: i64, unit: &str, rest: i64, rest_unit: &str) -> String {
    if rest == 0 { format!("{n}{unit}") } else { format!("{n}{unit}{rest}{rest_unit}") }
}

/// Reads a duration as Go writes it, in whole seconds.
///
/// # Errors
/// What is wrong with it.
pub fn seconds(text: &str) -> Result<i64, String> {
    let bad = || format!("time: invalid duration {}", crate::field::quote(text));
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let number: f64 = rest[..end].parse().map_err(|_| bad())?;
        rest = &rest[end..];
        let units = [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
        let (unit, factor) = units.iter().find(|(unit, _)| rest.starts_with(unit)).ok_or_else(bad)?;
        total += number * factor;
        rest = &rest[unit.len()..];
    }
    if text.is_empty() || total > 1e12 { Err(bad()) } else { Ok(total as i64) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn written_durations() {
        assert_eq!(super::seconds("1h30m"), Ok(5400));
        assert_eq!(super::seconds("1.5h10s"), Ok(5410));
        assert!(super::seconds("").is_err() && super::seconds("5").is_err() && super::seconds("5x").is_err());
    }

    #[test]
    fn ages() {
        for (s, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (9 * 3600, "9h"),
            (50 * 3600, "2d2h"),
            (24 * 3600 * 9, "9d"),
            (24 * 3600 * 800, "2y70d"),
        ] {
            assert_eq!(super::human(s), text);
        }
    }
}
