//! Small texts as Go and its libraries write and read them.

use std::time::Duration;

/// `strconv.Quote` of bytes: printable characters as they are, the rest escaped.
pub fn quote(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\u{7}' => text.push_str("\\a"),
                '\u{8}' => text.push_str("\\b"),
                '\u{c}' => text.push_str("\\f"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\u{b}' => text.push_str("\\v"),
                ' '..='~' => text.push(letter),
                '\0'..='\u{7f}' => text.push_str(&format!("\\x{:02x}", letter as u32)),
                _ if printable(letter) => text.push(letter),
                '\u{80}'..='\u{ffff}' => text.push_str(&format!("\\u{:04x}", letter as u32)),
                _ => text.push_str(&format!("\\U{:08x}", letter as u32)),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text + "\""
}

/// Go prints letters, marks, numbers, punctuation and symbols; of the spaces only U+0020.
fn printable(letter: char) -> bool {
    !letter.is_control()
        && !letter.is_whitespace()
        && !matches!(letter, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

/// A Go-quoted text at the beginning of `text`, and what follows it.
pub fn unquote(text: &str) -> Option<(Vec<u8>, &str)> {
    if let Some(raw) = text.strip_prefix('`') {
        let (inner, rest) = raw.split_once('`')?;
        return Some((inner.as_bytes().to_vec(), rest));
    }
    let mut letters = text.strip_prefix('"')?.char_indices();
    let inner = &text[1..];
    let mut bytes = Vec::new();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((bytes, &inner[at + 1..])),
            '\\' => escape(&mut letters, &mut bytes)?,
            _ => bytes.extend(letter.to_string().bytes()),
        }
    }
    None
}

/// That many digits, as a number.
fn digits(letters: &mut std::str::CharIndices<'_>, count: usize, radix: u32) -> Option<u32> {
    let text: String = letters.by_ref().take(count).map(|(_, digit)| digit).collect();
    if text.len() == count { u32::from_str_radix(&text, radix).ok() } else { None }
}

/// What follows a backslash.
fn escape(letters: &mut std::str::CharIndices<'_>, bytes: &mut Vec<u8>) -> Option<()> {
    let first = letters.clone().next()?.1;
    if first.is_digit(8) {
        bytes.push(u8::try_from(digits(letters, 3, 8)?).ok()?);
        return Some(());
    }
    letters.next();
    let unicode = |code: u32| char::from_u32(code).map(|letter| letter.to_string().into_bytes());
    match first {
        'x' => bytes.push(u8::try_from(digits(letters, 2, 16)?).ok()?),
        'u' => bytes.extend(unicode(digits(letters, 4, 16)?)?),
        'U' => bytes.extend(unicode(digits(letters, 8, 16)?)?),
        'a' => bytes.push(7),
        'b' => bytes.push(8),
        'f' => bytes.push(12),
        'n' => bytes.push(b'\n'),
        'r' => bytes.push(b'\r'),
        't' => bytes.push(b'\t'),
        'v' => bytes.push(11),
        '\\' => bytes.push(b'\\'),
        '\'' => bytes.push(b'\''),
        '"' => bytes.push(b'"'),
        _ => return None,
    }
    Some(())
}

/// Words of a line: bare, in single quotes, or in double quotes with Go's escapes. `None` for a broken escape.
pub fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let closed = match first {
            '\'' => rest[1..].find('\'').map(|end| (rest[1..=end].to_owned(), &rest[end + 2..])),
            '"' => match unquote(rest) {
                Some((bytes, after)) => Some((String::from_utf8_lossy(&bytes).into_owned(), after)),
                None if rest[1..].contains('"') => return None,
                None => None,
            },
            _ => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                Some((rest[..end].to_owned(), &rest[end..]))
            }
        };
        match closed {
            Some((word, after)) => {
                words.push(word);
                rest = after.trim_start();
            }
            // A quote that is never closed is no word.
            None => rest = rest[1..].trim_start(),
        }
    }
    Some(words)
}

/// Decimal units: `29 kB`, `2.1 GB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let power = ((bytes as f64).ln() / 1000f64.ln()).floor();
    let value = (bytes as f64 / 1000f64.powf(power) * 10.0 + 0.5).floor() / 10.0;
    let unit = UNITS[(power as usize).min(6)];
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// Where a prefix ends; `\0` when nothing is beyond it.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// `strconv.ParseInt`.
pub fn parse_int(text: &str, radix: u32) -> Result<i64, String> {
    check(text, radix, true)
        .and_then(|()| i64::from_str_radix(text, radix).map_err(|_| out_of_range("ParseInt", text)))
        .map_err(|error| error.replace("FUNC", "ParseInt"))
}

/// `strconv.ParseUint`.
pub fn parse_uint(text: &str, radix: u32) -> Result<u64, String> {
    check(text, radix, false)
        .and_then(|()| u64::from_str_radix(text, radix).map_err(|_| out_of_range("ParseUint", text)))
        .map_err(|error| error.replace("FUNC", "ParseUint"))
}

fn out_of_range(function: &str, text: &str) -> String {
    format!("strconv.{function}: parsing {}: value out of range", quote(text.as_bytes()))
}

fn check(text: &str, radix: u32, signed: bool) -> Result<(), String> {
    let digits = if signed { text.strip_prefix(['-', '+']).unwrap_or(text) } else { text };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(format!("strconv.FUNC: parsing {}: invalid syntax", quote(text.as_bytes())));
    }
    Ok(())
}

/// Go's durations, `1h30m`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut total = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
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
                _ => return None,
            };
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(total).ok()
}

/// A duration as Go prints it, `24.735182ms`.
pub fn show_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let unit = |size: u128, name: &str| {
        let text = format!("{}.{:0width$}", nanos / size, nanos % size, width = size.ilog10() as usize);
        format!("{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => unit(1_000, "µs"),
        1_000_000..1_000_000_000 => unit(1_000_000, "ms"),
        _ => {
            let whole = duration.as_secs();
            let seconds = format!("{}.{:09}", whole % 60, duration.subsec_nanos());
            let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
            match (whole / 3600, whole / 60 % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_and_back() {
        assert_eq!(quote(b"a\"\\\n\x00\xff"), r#""a\"\\\n\x00\xff""#);
        assert_eq!(quote("ä€😀\u{2028}".as_bytes()), "\"ä€😀\\u2028\"");
        for bytes in [&b"plain"[..], b"\x00\x01\"\\\xff", "ä\u{2028}".as_bytes()] {
            let quoted = quote(bytes);
            assert_eq!(unquote(&quoted), Some((bytes.to_vec(), "")), "{quoted}");
        }
        assert_eq!(unquote(r#""\101\u00e4" rest"#), Some(("Aä".as_bytes().to_vec(), " rest")));
        assert_eq!(unquote("`raw\\n`x"), Some((b"raw\\n".to_vec(), "x")));
        assert_eq!(unquote("\"open"), None);
    }

    #[test]
    fn words_of_a_line() {
        let words = |line: &str| words(line).expect("well formed");
        assert_eq!(words(r#"put a "x y""#), ["put", "a", "x y"]);
        assert_eq!(words("get --prefix ''  'b c' d"), ["get", "--prefix", "", "b c", "d"]);
        assert!(words("   ").is_empty());
    }

    #[test]
    fn sizes() {
        let shown: Vec<String> =
            [9, 28_672, 24_576, 2_147_483_648, 1_500].iter().map(|bytes| human_bytes(*bytes)).collect();
        assert_eq!(shown, ["9 B", "29 kB", "25 kB", "2.1 GB", "1.5 kB"]);
    }

    #[test]
    fn numbers_are_refused_in_gos_words() {
        assert_eq!(parse_int("zz", 16), Err("strconv.ParseInt: parsing \"zz\": invalid syntax".to_owned()));
        assert_eq!(
            parse_uint("10000000000000000", 16),
            Err("strconv.ParseUint: parsing \"10000000000000000\": value out of range".to_owned())
        );
        assert_eq!(parse_int("-1f", 16), Ok(-31));
    }

    #[test]
    fn prefixes() {
        assert_eq!(prefix_end(b"a"), b"b");
        assert_eq!(prefix_end(b"a\xff"), b"b");
        assert_eq!(prefix_end(b"\xff"), b"\0");
    }
}
