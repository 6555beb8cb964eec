//! Durations and timestamps.

use super::{Called, no_overload};
use crate::value::Value;
use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};

const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// Reads `1h30m`, `-1.5s`, in nanoseconds.
pub fn duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let (_, nanos) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let mut part = whole.checked_mul(*nanos as i128)?;
        if !fraction.is_empty() {
            let fraction: f64 = format!("0.{fraction}").parse().ok()?;
            part += (fraction * nanos) as i128;
        }
        total = total.checked_add(part)?;
        rest = tail;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// As `string(duration)` gives it: seconds.
pub fn duration_text(nanos: i64) -> String {
    let (sign, nanos) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let (seconds, fraction) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    if fraction == 0 {
        return format!("{sign}{seconds}s");
    }
    let fraction = format!("{fraction:09}");
    format!("{sign}{seconds}.{}s", fraction.trim_end_matches('0'))
}

/// Reads RFC 3339.
pub fn timestamp(text: &str) -> Option<Timestamp> {
    if text.len() < 20 || !text.is_char_boundary(10) {
        return None;
    }
    let zoned = text.ends_with(['Z', 'z']) || text[10..].contains(['+', '-']);
    if !zoned || text.contains('[') {
        return None;
    }
    text.parse().ok()
}

pub fn timestamp_text(at: Timestamp) -> String {
    at.to_string()
}

fn zone(text: &str) -> Result<TimeZone, String> {
    let unknown = || format!("unknown time zone {text}");
    let signed =
        text.strip_prefix('-').map(|rest| (-1, rest)).or_else(|| text.strip_prefix('+').map(|r| (1, r)));
    let (sign, rest) = signed.unwrap_or((1, text));
    if let Some((hours, minutes)) = rest.split_once(':')
        && let (Ok(hours), Ok(minutes)) = (hours.parse::<i32>(), minutes.parse::<i32>())
    {
        let seconds = sign * (hours.clamp(0, 24) * 3600 + minutes.clamp(0, 59) * 60);
        return Ok(TimeZone::fixed(Offset::from_seconds(seconds).map_err(|_| unknown())?));
    }
    TimeZone::get(text).map_err(|_| unknown())
}

/// `t.getHours()` and its like.
pub fn timestamp_part(function: &str, at: Timestamp, args: &[Value]) -> Called {
    let zone = match args {
        [] => TimeZone::UTC,
        [Value::String(name)] => zone(name)?,
        _ => return no_overload(),
    };
    let zoned = at.to_zoned(zone);
    let part = match function {
        "getFullYear" => i64::from(zoned.year()),
        "getMonth" => i64::from(zoned.month()) - 1,
        "getDayOfYear" => i64::from(zoned.day_of_year()) - 1,
        "getDayOfMonth" => i64::from(zoned.day()) - 1,
        "getDate" => i64::from(zoned.day()),
        "getDayOfWeek" => i64::from(zoned.weekday().to_sunday_zero_offset()),
        "getHours" => i64::from(zoned.hour()),
        "getMinutes" => i64::from(zoned.minute()),
        "getSeconds" => i64::from(zoned.second()),
        "getMilliseconds" => i64::from(zoned.millisecond()),
        _ => return no_overload(),
    };
    Ok(Value::Int(part))
}

/// `d.getHours()` and its like: the whole duration in that unit.
pub fn duration_part(function: &str, nanos: i64) -> Called {
    let unit = match function {
        "getHours" => 3_600_000_000_000,
        "getMinutes" => 60_000_000_000,
        "getSeconds" => 1_000_000_000,
        "getMilliseconds" => 1_000_000,
        _ => return no_overload(),
    };
    Ok(Value::Int(nanos / unit))
}
