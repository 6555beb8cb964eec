//! `$(VAR)` expansion in commands, arguments and environment values.
//!
//! `$$(VAR)` escapes; an unknown name stays as written; there is no nesting.

/// Replaces every `$(NAME)` that `lookup` knows.
pub fn expand(input: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(close) = rest.strip_prefix('(').and_then(|r| r.find(')')) {
            let name = &rest[1..=close];
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = &rest[close + 2..];
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_escapes_and_unknowns() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_string());
        let cases = [
            ("x$(A)y", "x1y"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$(A", "$(A"),
            ("$A$", "$A$"),
            ("$$$(A)", "$1"),
            ("$()", "$()"),
            ("ü$(A)", "ü1"),
        ];
        for (input, wanted) in cases {
            assert_eq!(expand(input, lookup), wanted, "{input}");
        }
    }
}
