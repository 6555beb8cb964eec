//! Quantities: `100m`, `1Gi`, `1e3`. Exact decimal arithmetic in nano units on 128-bit integers, saturating.
//!
//! Canonical form is upstream's: the suffix family is kept (binary, decimal, exponent), the mantissa has no fraction
//! where the family has a unit for it, precision below nano rounds up.

use std::cmp::Ordering;
use std::fmt;

const NANO: i128 = 1_000_000_000;
const PARSE_ERROR: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Family {
    Binary,
    Decimal,
    Exponent,
}

/// A parsed quantity.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nano: i128,
    family: Family,
}

impl Quantity {
    pub fn from_int(n: i64) -> Quantity {
        Quantity { nano: n as i128 * NANO, family: Family::Decimal }
    }
    pub fn from_milli(n: i64) -> Quantity {
        Quantity { nano: n as i128 * (NANO / 1000), family: Family::Decimal }
    }

    /// Parses; the error is upstream's sentence.
    pub fn parse(text: &str) -> Result<Quantity, &'static str> {
        if text.is_empty() {
            return Err(PARSE_ERROR);
        }
        let (negative, rest) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (whole, rest) = rest.split_at(end);
        let after_point = rest.strip_prefix('.').unwrap_or("");
        let end = after_point.find(|c: char| !c.is_ascii_digit()).unwrap_or(after_point.len());
        let fraction = &after_point[..end];
        let suffix = if rest.starts_with('.') { &after_point[end..] } else { rest };
        let letters = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
        let tail = letters.strip_prefix(['-', '+']).unwrap_or(letters);
        if !tail.bytes().all(|c| c.is_ascii_digit()) {
            return Err(PARSE_ERROR);
        }
        let (family, base2, base10) = suffix_of(suffix).ok_or("unable to parse quantity's suffix")?;
        if whole.is_empty() && fraction.is_empty() {
            return Err(PARSE_ERROR);
        }
        let digits: String = format!("{whole}{fraction}");
        let mut value: i128 = 0;
        for d in digits.bytes() {
            value = value.saturating_mul(10).saturating_add((d - b'0') as i128);
        }
        let exponent = 9 + base10 - fraction.len() as i32;
        let mut nano = value.saturating_mul(1i128.checked_shl(base2).unwrap_or(i128::MAX));
        if exponent >= 0 {
            nano = nano.saturating_mul(10i128.checked_pow(exponent as u32).unwrap_or(i128::MAX));
        } else {
            let divisor = 10i128.checked_pow(exponent.unsigned_abs()).unwrap_or(i128::MAX);
            nano = nano / divisor + i128::from(nano % divisor != 0);
        }
        Ok(Quantity { nano: if negative { -nano } else { nano }, family })
    }

    /// Parses what an object holds: a string or a number.
    pub fn from_value(value: &serde_json::Value) -> Result<Quantity, &'static str> {
        match value {
            serde_json::Value::String(s) => Quantity::parse(s.trim()),
            serde_json::Value::Number(n) => Quantity::parse(&n.to_string()),
            _ => Err(PARSE_ERROR),
        }
    }

    /// What an object keeps of a quantity it was given: the text as it is, or the canonical form when it has a fraction.
    pub fn kept(value: &serde_json::Value) -> Result<String, &'static str> {
        let text = match value {
            serde_json::Value::String(s) => s.trim().to_string(),
            serde_json::Value::Number(n) => n.to_string(),
            _ => return Err(PARSE_ERROR),
        };
        let quantity = Quantity::parse(&text)?;
        let fraction = text.split_once('.').is_some_and(|(_, f)| f.starts_with(|c: char| c.is_ascii_digit()));
        Ok(if fraction { quantity.to_string() } else { text })
    }

    /// Finer than a thousandth.
    pub fn is_finer_than_milli(&self) -> bool {
        self.nano % (NANO / 1000) != 0
    }
    /// Units, rounded up.
    pub fn value(&self) -> i64 {
        clamp(div_up(self.nano, NANO))
    }
    /// Thousandths, rounded up.
    pub fn milli(&self) -> i64 {
        clamp(div_up(self.nano, NANO / 1000))
    }
    /// Near enough.
    pub fn as_f64(&self) -> f64 {
        self.nano as f64 / NANO as f64
    }
    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }
    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }
    /// A whole number of units.
    pub fn is_integer(&self) -> bool {
        self.nano % NANO == 0
    }
    /// The sum, in the first one's family.
    pub fn plus(&self, other: &Quantity) -> Quantity {
        let family = if self.nano == 0 { other.family } else { self.family };
        Quantity { nano: self.nano.saturating_add(other.nano), family }
    }
    pub fn minus(&self, other: &Quantity) -> Quantity {
        Quantity { nano: self.nano.saturating_sub(other.nano), family: self.family }
    }
}

fn clamp(n: i128) -> i64 {
    n.clamp(i64::MIN as i128, i64::MAX as i128) as i64
}

fn div_up(n: i128, d: i128) -> i128 {
    n / d + i128::from(n % d > 0)
}

fn suffix_of(s: &str) -> Option<(Family, u32, i32)> {
    let decimal = |e| Some((Family::Decimal, 0, e));
    let binary = |e| Some((Family::Binary, e, 0));
    match s {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = s.strip_prefix(['e', 'E'])?;
            let n: i32 = exponent.parse().ok()?;
            (-30..=30).contains(&n).then_some((Family::Exponent, 0, n))
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let abs = self.nano.unsigned_abs();
        let sign = if self.nano < 0 { "-" } else { "" };
        let nano = NANO as u128;
        // Binary units hold whole numbers of at least 1024 only; everything else is written in decimal.
        if self.family == Family::Binary && abs.is_multiple_of(nano) && abs / nano >= 1024 {
            let mut n = abs / nano;
            let mut unit = 0;
            while n.is_multiple_of(1024) && unit < 6 {
                n /= 1024;
                unit += 1;
            }
            return write!(f, "{sign}{n}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][unit]);
        }
        let (mut n, mut exponent) = (abs, -9);
        while n.is_multiple_of(1000) && exponent < 18 {
            n /= 1000;
            exponent += 3;
        }
        if self.family == Family::Exponent {
            return if exponent == 0 { write!(f, "{sign}{n}") } else { write!(f, "{sign}{n}e{exponent}") };
        }
        let suffix = match exponent {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            0 => "",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            _ => "E",
        };
        write!(f, "{sign}{n}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_forms() {
        for (text, canonical) in [
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1000", "1k"),
            ("1e3", "1e3"),
            ("100", "100"),
            ("0Gi", "0"),
            ("-1", "-1"),
            ("1Ki", "1Ki"),
            ("0.1Ki", "102400m"),
            ("1.0", "1"),
            ("12e6", "12e6"),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().to_string(), canonical, "{text}");
        }
        for bad in ["", "a", "1.2.3", "1kk", "1 ", ".", "1e", "--1", "0x10"] {
            assert!(Quantity::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn canonical_form_is_a_fixed_point(n in -1_000_000_000i64..1_000_000_000, s in "(|n|u|m|k|M|G|Ki|Mi|Gi|e3)") {
            let q = Quantity::parse(&format!("{n}{s}")).unwrap();
            let again = Quantity::parse(&q.to_string()).unwrap();
            prop_assert_eq!(q, again);
            prop_assert_eq!(q.to_string(), again.to_string());
        }
    }
}
