//! Name formats and what is said when a name does not have one. Each check returns the complaints, none when it is right.

const DNS_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";

fn is_alnum_lower(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

fn label_shape(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty()
        && is_alnum_lower(b[0])
        && is_alnum_lower(b[b.len() - 1])
        && b.iter().all(|c| is_alnum_lower(*c) || *c == b'-')
}

fn max_bytes(n: usize) -> String {
    format!("must be no more than {n} bytes")
}

pub fn max_len(n: usize) -> String {
    format!("must be no more than {n} characters")
}

pub fn is_dns1123_label(s: &str) -> bool {
    s.len() <= 63 && label_shape(s)
}
pub fn is_dns1123_subdomain(s: &str) -> bool {
    s.len() <= 253 && s.split('.').all(label_shape)
}

/// RFC 1123 label, 63 bytes.
pub fn dns1123_label(s: &str) -> Vec<String> {
    let mut out = vec![];
    if s.len() > 63 {
        out.push(max_len(63));
    }
    if !label_shape(s) {
        out.push(format!(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an \
             alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{DNS_LABEL}')"
        ));
    }
    out
}

/// RFC 1123 label where a subdomain would come to mind: a dot is named as the problem.
pub fn dns1123_label_without_dots(s: &str) -> Vec<String> {
    if s.contains('.') && is_dns1123_subdomain(s) {
        return vec!["must not contain dots".into()];
    }
    dns1123_label(s)
}

/// RFC 1123 subdomain, 253 bytes.
pub fn dns1123_subdomain(s: &str) -> Vec<String> {
    subdomain(s, max_len(253))
}

/// With the words for one that is too long: they differ by place.
fn subdomain(s: &str, too_long: String) -> Vec<String> {
    let mut out = vec![];
    if s.len() > 253 {
        out.push(too_long);
    }
    if !s.split('.').all(label_shape) {
        out.push(format!(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end \
             with an alphanumeric character (e.g. 'example.com', regex used for validation is '{DNS_LABEL}(\\.{DNS_LABEL})*')"
        ));
    }
    out
}

/// RFC 1035 label, 63 bytes.
pub fn dns1035_label(s: &str) -> Vec<String> {
    let mut out = vec![];
    if s.len() > 63 {
        out.push(max_len(63));
    }
    if !(label_shape(s) && s.as_bytes()[0].is_ascii_lowercase()) {
        out.push(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end \
             with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is \
             '[a-z]([-a-z0-9]*[a-z0-9])?')"
                .into(),
        );
    }
    out
}

/// `*.` and a subdomain.
pub fn wildcard_dns1123_subdomain(s: &str) -> Vec<String> {
    let mut out = vec![];
    if s.len() > 253 {
        out.push(max_len(253));
    }
    if !s.strip_prefix("*.").is_some_and(|rest| rest.split('.').all(label_shape)) {
        out.push(format!(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case \
             alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for \
             validation is '\\*\\.{DNS_LABEL}(\\.{DNS_LABEL})*')"
        ));
    }
    out
}

/// Names that are path segments only (RBAC).
pub fn path_segment(s: &str) -> Vec<String> {
    if s == "." || s == ".." {
        return vec![format!("may not be '{s}'")];
    }
    let mut out = vec![];
    for c in ["/", "%"] {
        if s.contains(c) {
            out.push(format!("may not contain '{c}'"));
        }
    }
    out
}

fn qualified_part(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty()
        && b[0].is_ascii_alphanumeric()
        && b[b.len() - 1].is_ascii_alphanumeric()
        && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// Label and annotation keys, resource names: `[prefix/]name`.
pub fn qualified_name(s: &str) -> Vec<String> {
    let mut out = vec![];
    let parts: Vec<&str> = s.split('/').collect();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                out.push("prefix part must be non-empty".into());
            } else {
                out.extend(subdomain(prefix, max_bytes(253)).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => {
            return vec!["a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
                 character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                 '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')".to_string()];
        }
    };
    if name.is_empty() {
        out.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        out.push(format!("name part {}", max_bytes(63)));
    }
    if !qualified_part(name) {
        out.push(
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character \
             (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
                .into(),
        );
    }
    out
}

/// Label values.
pub fn label_value(s: &str) -> Vec<String> {
    let mut out = vec![];
    if s.len() > 63 {
        out.push(max_bytes(63));
    }
    if !s.is_empty() && !qualified_part(s) {
        out.push(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
             an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
             '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
                .into(),
        );
    }
    out
}

/// Keys of ConfigMaps and Secrets.
pub fn config_map_key(s: &str) -> Vec<String> {
    let mut out = vec![];
    if s.len() > 253 {
        out.push(max_len(253));
    }
    if s.is_empty() || !s.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.')) {
        out.push(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or \
             'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .into(),
        );
    }
    if s == "." {
        out.push("must not be '.'".into());
    } else if s == ".." {
        out.push("must not be '..'".into());
    } else if s.starts_with("..") {
        out.push("must not start with '..'".into());
    }
    out
}

/// Port names (IANA service names).
pub fn port_name(s: &str) -> Vec<String> {
    let mut out = vec![];
    if s.len() > 15 {
        out.push("must be no more than 15 characters".into());
    }
    if !s.bytes().all(|c| is_alnum_lower(c) || c == b'-') || s.is_empty() {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !s.bytes().any(|c| c.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".into());
    }
    if s.contains("--") {
        out.push("must not contain consecutive hyphens".into());
    }
    if s.starts_with('-') || s.ends_with('-') {
        out.push("must not begin or end with a hyphen".into());
    }
    out
}

/// Environment variable names: printable ASCII without `=`.
pub fn env_var_name(s: &str) -> Vec<String> {
    if !s.is_empty() && s.bytes().all(|c| (0x20..0x7f).contains(&c) && c != b'=') {
        return vec![];
    }
    vec![
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
            .into(),
    ]
}

/// HTTP header names.
pub fn http_header_name(s: &str) -> Vec<String> {
    if !s.is_empty() && s.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') {
        return vec![];
    }
    vec!["a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is \
          '[-A-Za-z0-9]+')"
        .into()]
}

/// Complaint about a port number.
pub fn port_number(n: i64) -> Option<&'static str> {
    (!(1..=65535).contains(&n)).then_some("must be between 1 and 65535, inclusive")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        assert!(
            dns1123_label("a-1").is_empty()
                && !dns1123_label("A").is_empty()
                && !dns1123_label("a.b").is_empty()
        );
        assert!(dns1123_subdomain("a.b").is_empty() && !dns1123_subdomain("a..b").is_empty());
        assert!(dns1035_label("a1").is_empty() && !dns1035_label("1a").is_empty());
        assert!(
            qualified_name("a.b/C_d").is_empty()
                && !qualified_name("/c").is_empty()
                && !qualified_name("a/b/c").is_empty()
        );
        assert!(label_value("").is_empty() && !label_value("-a").is_empty());
        assert!(port_name("http").is_empty() && !port_name("80").is_empty() && !port_name("a--b").is_empty());
        assert!(
            config_map_key("a.b").is_empty()
                && !config_map_key("..a").is_empty()
                && !config_map_key("a b").is_empty()
        );
    }
}
