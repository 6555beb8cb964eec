//! Cron schedules as CronJobs write them: five fields, lists, ranges, steps, names, and the `@daily` family.
//!
//! A field is a bit set; a time matches when all its fields do, except that day of month and day of week are joined by *or*
//! when neither is `*`.

use jiff::civil::DateTime;
use jiff::{Span, ToSpan};

/// Bit set of the values a field allows, and whether it was written as `*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Field {
    bits: u64,
    star: bool,
}

impl Field {
    fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|v| self.bits >> v & 1 == 1)
    }
}

/// The rules of a time zone by its IANA name (written exactly so), from the database that is built in.
pub fn zone(name: &str) -> Option<jiff::tz::TimeZone> {
    let zone = jiff::tz::TimeZoneDatabase::bundled().get(name).ok()?;
    (zone.iana_name() == Some(name)).then_some(zone)
}

/// A parsed schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    Fields(Fields),
    /// `@every 1h30m`: whole seconds.
    Every(i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    minute: Field,
    hour: Field,
    day: Field,
    month: Field,
    weekday: Field,
}

/// Lowest and highest value of a field, and the names its values have, from the lowest on.
struct Bounds {
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const MINUTE: Bounds = Bounds { low: 0, high: 59, names: &[] };
const HOUR: Bounds = Bounds { low: 0, high: 23, names: &[] };
const DAY: Bounds = Bounds { low: 1, high: 31, names: &[] };
const MONTH: Bounds = Bounds {
    low: 1,
    high: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAY: Bounds = Bounds { low: 0, high: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

/// Longest look ahead: a schedule that matches nothing (30 February) has no next time.
const YEARS_AHEAD: i16 = 5;

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// What is wrong with it, in the words users know from cron libraries of this syntax.
    pub fn parse(text: &str) -> Result<Schedule, String> {
        if text.is_empty() {
            return Err("empty spec string".into());
        }
        let text = match text.strip_prefix("CRON_TZ=").or_else(|| text.strip_prefix("TZ=")) {
            Some(rest) => rest.split_once(' ').map_or("", |(_, fields)| fields.trim()),
            None => text,
        };
        if text.starts_with('@') {
            return descriptor(text);
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields.as_slice() else {
            let shown = fields.join(" ");
            return Err(format!("expected exactly 5 fields, found {}: [{shown}]", fields.len()));
        };
        Ok(Schedule::Fields(Fields {
            minute: field(minute, &MINUTE)?,
            hour: field(hour, &HOUR)?,
            day: field(day, &DAY)?,
            month: field(month, &MONTH)?,
            weekday: field(weekday, &WEEKDAY)?,
        }))
    }

    /// The first time after `after` that matches, in the same (civil) clock.
    pub fn next(&self, after: DateTime) -> Option<DateTime> {
        match self {
            Schedule::Every(seconds) => {
                let whole = after.with().subsec_nanosecond(0).build().ok()?;
                whole.checked_add(Span::new().try_seconds(*seconds).ok()?).ok()
            }
            Schedule::Fields(fields) => fields.next(after),
        }
    }
}

impl Fields {
    fn day_matches(&self, at: DateTime) -> bool {
        let day = self.day.has(at.day());
        let weekday = self.weekday.has(at.weekday().to_sunday_zero_offset());
        if self.day.star || self.weekday.star { day && weekday } else { day || weekday }
    }

    fn next(&self, after: DateTime) -> Option<DateTime> {
        let mut at = after.with().second(0).subsec_nanosecond(0).build().ok()?;
        at = at.checked_add(1.minute()).ok()?;
        let last = at.year().checked_add(YEARS_AHEAD)?;
        while at.year() <= last {
            if !self.month.has(at.month()) {
                at = at.date().first_of_month().checked_add(1.month()).ok()?.at(0, 0, 0, 0);
            } else if !self.day_matches(at) {
                at = at.date().tomorrow().ok()?.at(0, 0, 0, 0);
            } else if !self.hour.has(at.hour()) {
                at = at.with().minute(0).build().ok()?.checked_add(1.hour()).ok()?;
            } else if !self.minute.has(at.minute()) {
                at = at.checked_add(1.minute()).ok()?;
            } else {
                return Some(at);
            }
        }
        None
    }
}

fn descriptor(text: &str) -> Result<Schedule, String> {
    let fields = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        _ => {
            let Some(duration) = text.strip_prefix("@every ") else {
                return Err(format!("unrecognized descriptor: {text}"));
            };
            let seconds = crate::duration::seconds(duration)
                .map_err(|e| format!("failed to parse duration {text}: {e}"))?;
            return Ok(Schedule::Every(seconds.max(1)));
        }
    };
    Schedule::parse(fields)
}

fn field(text: &str, bounds: &Bounds) -> Result<Field, String> {
    let mut out = Field { bits: 0, star: false };
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let one = range(part, bounds)?;
        out.bits |= one.bits;
        out.star |= one.star;
    }
    Ok(out)
}

fn range(text: &str, bounds: &Bounds) -> Result<Field, String> {
    let parts: Vec<&str> = text.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let (mut star, single) = (false, ends.len() == 1);
    let (start, mut end) = if ends[0] == "*" || ends[0] == "?" {
        star = true;
        (bounds.low, bounds.high)
    } else {
        let start = number_or_name(ends[0], bounds)?;
        match ends.as_slice() {
            [_] => (start, start),
            [_, end] => (start, number_or_name(end, bounds)?),
            _ => return Err(format!("too many hyphens: {text}")),
        }
    };
    let step = match parts.as_slice() {
        [_] => 1,
        [_, step] => {
            let step = number(step)?;
            if single {
                end = bounds.high;
            }
            star &= step <= 1;
            step
        }
        _ => return Err(format!("too many slashes: {text}")),
    };
    if start < bounds.low {
        return Err(format!("beginning of range ({start}) below minimum ({}): {text}", bounds.low));
    }
    if end > bounds.high {
        return Err(format!("end of range ({end}) above maximum ({}): {text}", bounds.high));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    let bits = (start..=end).step_by(step).fold(0, |bits, value| bits | 1u64 << value);
    Ok(Field { bits, star })
}

fn number_or_name(text: &str, bounds: &Bounds) -> Result<u32, String> {
    let lower = text.to_lowercase();
    match bounds.names.iter().position(|n| *n == lower).and_then(|i| u32::try_from(i).ok()) {
        Some(i) => Ok(bounds.low + i),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, String> {
    let quoted = crate::field::quote(text);
    match text.parse::<i64>() {
        Ok(n) if n < 0 => Err(format!("negative number ({n}) not allowed: {text}")),
        Ok(n) => u32::try_from(n).map_err(|_| {
            format!("failed to parse int from {text}: strconv.Atoi: parsing {quoted}: value out of range")
        }),
        Err(_) => {
            Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {quoted}: invalid syntax"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str) -> Option<String> {
        let schedule = Schedule::parse(schedule).expect("a schedule");
        schedule.next(after.parse().expect("a time")).map(|t| t.to_string())
    }

    #[test]
    fn the_next_time_is_the_first_that_matches() {
        let at = |s: &str| Some(s.to_owned());
        assert_eq!(next("*/5 * * * *", "2026-01-01T00:03:10"), at("2026-01-01T00:05:00"));
        assert_eq!(next("0 0 1 1 *", "2026-01-01T00:00:00"), at("2027-01-01T00:00:00"));
        assert_eq!(next("30 4 1,15 * 5", "2026-01-01T05:00:00"), at("2026-01-02T04:30:00"), "day or weekday");
        assert_eq!(next("0 12 * * mon-fri", "2026-01-02T13:00:00"), at("2026-01-05T12:00:00"));
        assert_eq!(next("0 0 29 2 *", "2026-03-01T00:00:00"), at("2028-02-29T00:00:00"));
        assert_eq!(next("0 0 30 2 *", "2026-03-01T00:00:00"), None);
        assert_eq!(next("@every 90s", "2026-03-01T00:00:00"), at("2026-03-01T00:01:30"));
        assert_eq!(next("59 23 31 12 *", "2026-12-31T23:59:00"), at("2027-12-31T23:59:00"));
    }

    #[test]
    fn mistakes_are_named() {
        let problem = |text: &str| Schedule::parse(text).expect_err(text);
        assert_eq!(problem("60 * * * *"), "end of range (60) above maximum (59): 60");
        assert_eq!(problem("* * 0 * *"), "beginning of range (0) below minimum (1): 0");
        assert_eq!(problem("* * * *"), "expected exactly 5 fields, found 4: [* * * *]");
        assert_eq!(problem("*/0 * * * *"), "step of range should be a positive number: */0");
        assert_eq!(
            problem("-1 * * * *"),
            "failed to parse int from : strconv.Atoi: parsing \"\": invalid syntax"
        );
        assert_eq!(problem("@foo"), "unrecognized descriptor: @foo");
        assert_eq!(problem("1-2-3 * * * *"), "too many hyphens: 1-2-3");
    }
}
