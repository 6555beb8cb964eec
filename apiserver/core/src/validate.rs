//! Checks that several kinds share.

use crate::value::{at, text};
use keelson_api::{ErrorList, FieldError, Path, Quantity, names};
use serde_json::Value;

/// Reports a negative number.
pub fn non_negative(n: i64, path: &Path, errors: &mut ErrorList) {
    if n < 0 {
        errors.push(FieldError::invalid(path, n, "must be greater than or equal to 0"));
    }
}

/// Reports a change of a field that may not change.
pub fn immutable(current: &Value, new: &Value, path: &str, errors: &mut ErrorList) {
    if !crate::value::same(at(current, path), at(new, path)) {
        let field = path.split('.').fold(Path::root(), |p, key| p.child(key));
        errors.push(FieldError::invalid(&field, at(new, path).clone(), "field is immutable"));
    }
}

/// Checks a `LabelSelector` object.
pub fn label_selector(selector: &Value, path: &Path, errors: &mut ErrorList) {
    crate::meta::labels(&selector["matchLabels"], &path.child("matchLabels"), errors);
    for (i, e) in crate::value::items(selector, "matchExpressions").iter().enumerate() {
        requirement(e, &path.child("matchExpressions").index(i), errors);
    }
}

fn requirement(e: &Value, path: &Path, errors: &mut ErrorList) {
    let empty = crate::value::is_empty(&e["values"]);
    match text(e, "operator") {
        "In" | "NotIn" if empty => {
            let detail = "must be specified when `operator` is 'In' or 'NotIn'";
            errors.push(FieldError::required(&path.child("values"), detail));
        }
        "In" | "NotIn" => {}
        "Exists" | "DoesNotExist" if !empty => {
            let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(FieldError::forbidden(&path.child("values"), detail));
        }
        "Exists" | "DoesNotExist" => {}
        other => {
            errors.push(FieldError::invalid(&path.child("operator"), other, "not a valid selector operator"))
        }
    }
    for problem in names::qualified_name(text(e, "key")) {
        errors.push(FieldError::invalid(&path.child("key"), text(e, "key"), &problem));
    }
    for (i, v) in crate::value::items(e, "values").iter().enumerate() {
        let v = v.as_str().unwrap_or("");
        for problem in names::label_value(v) {
            errors.push(FieldError::invalid(&path.child("values").index(i), v, &problem));
        }
    }
}

/// Checks a number (not negative) or a percentage.
pub fn int_or_percent(value: &Value, path: &Path, errors: &mut ErrorList) {
    match value {
        Value::Number(n) => non_negative(n.as_i64().unwrap_or(0), path, errors),
        Value::String(s) => {
            let digits = s.strip_suffix('%').unwrap_or("");
            if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
                let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex \
                              used for validation is '[0-9]+%')";
                errors.push(FieldError::invalid(path, s.as_str(), detail));
            }
        }
        _ => {}
    }
}

/// Reports more than 100 %.
pub fn at_most_100_percent(value: &Value, path: &Path, errors: &mut ErrorList) {
    let percent = value.as_str().and_then(|s| s.strip_suffix('%')).and_then(|s| s.parse::<i64>().ok());
    if percent.is_some_and(|p| p > 100) {
        errors.push(FieldError::invalid(path, value.clone(), "must not be greater than 100%"));
    }
}

/// Checks a value against a list.
pub fn one_of(value: &str, supported: &[&str], path: &Path, errors: &mut ErrorList) {
    if !supported.contains(&value) {
        errors.push(FieldError::not_supported(path, value, supported));
    }
}

/// Checks a value against a list, when there is one.
pub fn one_of_if_set(value: &Value, supported: &[&str], path: &Path, errors: &mut ErrorList) {
    if let Some(text) = value.as_str() {
        one_of(text, supported, path, errors);
    }
}

/// Reports a required string that is missing.
pub fn required(value: &Value, field: &str, path: &Path, errors: &mut ErrorList) -> bool {
    let missing = crate::value::is_empty(at(value, field));
    if missing {
        errors.push(FieldError::required(&path.child(field), ""));
    }
    !missing
}

/// How a quantity of bytes is written when it is no whole number of them.
pub fn fractional_bytes(value: &Value) -> Option<String> {
    let quantity = Quantity::from_value(value).ok()?;
    let text = value.as_str().unwrap_or("");
    // Upstream counts in thousandths and keeps the low 64 bits of them, but for decimal numbers that fit in 64 bits.
    let small = quantity.value() < i64::MAX || ["9223372036854775807", "9223372036854775808"].contains(&text);
    let low = quantity.value().wrapping_mul(1000);
    let odd = match (small, text.ends_with('i')) {
        (true, false) => !quantity.is_integer(),
        (true, true) => !quantity.is_integer() || low % 1000 != 0,
        (false, _) => true,
    };
    odd.then(|| match value {
        // Amounts are kept in thousandths at least.
        _ if quantity.is_finer_than_milli() => {
            keelson_api::field::quote(&Quantity::from_milli(quantity.milli()).to_string())
        }
        Value::String(s) => keelson_api::field::quote(s),
        other => keelson_api::field::quote(&other.to_string()),
    })
}

/// Reports a negative quantity.
pub fn non_negative_quantity(value: &Value, path: &Path, errors: &mut ErrorList) {
    if let Ok(q) = Quantity::from_value(value)
        && q.is_negative()
    {
        errors.push(FieldError::invalid(path, value.clone(), "must be greater than or equal to 0"));
    }
}

/// Whether a text would be an IPv4 address without its leading zeros.
pub fn leading_zeros(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    parts.len() == 4
        && parts.iter().all(|p| !p.is_empty() && p.parse::<u16>().is_ok_and(|n| n < 256))
        && parts.iter().any(|p| p.len() > 1 && p.starts_with('0'))
}

/// Why this is no network, strictly read.
pub fn cidr_problem(cidr: &str) -> Option<&'static str> {
    let zeros =
        |part: &str| part.len() > 1 && part.starts_with('0') && part.bytes().all(|b| b.is_ascii_digit());
    let parts = cidr.split(['.', '/']);
    if cidr.contains('.') && cidr.contains('/') && !cidr.contains(':') && parts.clone().any(zeros) {
        return Some("must not have leading 0s in IP or prefix length");
    }
    let Ok(network) = cidr.parse::<ipnet::IpNet>() else {
        return Some("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
    };
    if matches!(network, ipnet::IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some()) {
        return Some("must not have an IPv4-mapped IPv6 address");
    }
    (network.trunc() != network).then_some("must not have bits set beyond the prefix length")
}

/// Whether a text is an IP address.
pub fn is_ip(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok()
}

/// Reports what is no IP address.
pub fn ip(text: &str, path: &Path, errors: &mut ErrorList) {
    if text.parse::<std::net::Ipv6Addr>().is_ok_and(|v6| v6.to_ipv4_mapped().is_some()) {
        errors.push(FieldError::invalid(path, text, "must not be an IPv4-mapped IPv6 address"));
    } else if leading_zeros(text) {
        errors.push(FieldError::invalid(path, text, "must not have leading 0s"));
    } else if !is_ip(text) {
        errors.push(FieldError::invalid(
            path,
            text,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ));
    }
}
