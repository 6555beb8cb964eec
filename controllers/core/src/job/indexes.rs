//! Sets of completion indexes as text: `1,3-5,7`.

use std::collections::BTreeSet;

/// Reads the text; what is malformed in it is left out.
pub fn parse(text: &str) -> BTreeSet<i32> {
    let mut out = BTreeSet::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            out.extend(first..=last);
        }
    }
    out
}

/// Writes the text; two indexes in a row stay a list, more become a range.
pub fn format(set: &BTreeSet<i32>) -> String {
    let mut out: Vec<String> = vec![];
    let mut run: Option<(i32, i32)> = None;
    let close = |run: Option<(i32, i32)>, out: &mut Vec<String>| match run {
        Some((first, last)) if first == last => out.push(first.to_string()),
        Some((first, last)) if first + 1 == last => out.extend([first.to_string(), last.to_string()]),
        Some((first, last)) => out.push(format!("{first}-{last}")),
        None => {}
    };
    for index in set {
        run = match run {
            Some((first, last)) if last + 1 == *index => Some((first, *index)),
            other => {
                close(other, &mut out);
                Some((*index, *index))
            }
        };
    }
    close(run, &mut out);
    out.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_become_ranges() {
        assert_eq!(format(&[1, 3, 4, 5, 7, 8].into()), "1,3-5,7,8");
        assert_eq!(format(&BTreeSet::new()), "");
        assert_eq!(parse("x,2-3"), [2, 3].into());
    }

    proptest! {
        #[test]
        fn text_keeps_the_set(set in proptest::collection::btree_set(0i32..60, 0..40)) {
            prop_assert_eq!(parse(&format(&set)), set);
        }
    }
}
