//! gofail's terms as the library's actions: `3*sleep("1s")->return("EIO")` becomes `3*sleep(1000)->return(EIO)`.

/// The actions; `None` when these are no terms, or one that only a debugger could serve.
pub fn translate(point: &str, terms: &str) -> Option<String> {
    let actions: Option<Vec<String>> = terms.split("->").map(|term| one(point, term.trim())).collect();
    actions.map(|actions| actions.join("->"))
}

fn one(point: &str, term: &str) -> Option<String> {
    let at = term.find(|c: char| c.is_ascii_alphabetic())?;
    let (limits, rest) = term.split_at(at);
    let (action, value) = match rest.split_once('(') {
        Some((action, value)) => (action, value.strip_suffix(')')?),
        None => (rest, ""),
    };
    let value = value.strip_prefix('"').map_or(Some(value), |quoted| quoted.strip_suffix('"'))?;
    let action = match action {
        "off" => "off".to_owned(),
        "print" => format!("print({point})"),
        "panic" => format!("panic(failpoint panic: {})", if value.is_empty() { point } else { value }),
        "return" => format!("return({value})"),
        "sleep" => format!("sleep({})", milliseconds(value)?),
        _ => return None,
    };
    Some(limits_of(limits)? + &action)
}

/// `50.5%` and `3*` in any order; the library wants the chance first.
fn limits_of(mut text: &str) -> Option<String> {
    let (mut chance, mut count) = (String::new(), String::new());
    while !text.is_empty() {
        let at = text.find(['%', '*'])?;
        let (number, rest) = text.split_at(at);
        if rest.starts_with('%') {
            number.parse::<f32>().ok()?;
            chance = format!("{number}%");
        } else {
            number.parse::<usize>().ok()?;
            count = format!("{number}*");
        }
        text = &rest[1..];
    }
    Some(chance + &count)
}

/// Go's durations of one unit; a bare number is milliseconds.
fn milliseconds(text: &str) -> Option<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let scale = match unit {
        "" | "ms" => 1.0,
        "us" | "µs" => 0.001,
        "s" => 1000.0,
        "m" => 60_000.0,
        _ => return None,
    };
    let milliseconds = number.parse::<f64>().ok()? * scale;
    (milliseconds.is_finite() && milliseconds >= 0.0).then_some(milliseconds as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_become_actions() {
        let cases = [
            ("panic", Some("panic(failpoint panic: here)")),
            ("panic(\"boom\")", Some("panic(failpoint panic: boom)")),
            ("sleep(20)", Some("sleep(20)")),
            ("sleep(\"1.5s\")", Some("sleep(1500)")),
            ("return(\"EIO\")", Some("return(EIO)")),
            ("return()", Some("return()")),
            ("2*50%print(\"\")->off", Some("50%2*print(here)->off")),
            ("3*off -> panic", Some("3*off->panic(failpoint panic: here)")),
            ("", None),
            ("break", None),
            ("sleep(\"soon\")", None),
            ("x*panic", None),
            ("return(\"half", None),
        ];
        for (terms, wanted) in cases {
            assert_eq!(translate("here", terms).as_deref(), wanted, "{terms}");
        }
    }
}
