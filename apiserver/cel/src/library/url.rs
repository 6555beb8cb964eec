//! URLs: what an HTTP request may ask for, an absolute URI or an absolute path.

use super::{Called, no_overload};
use crate::value::{Key, Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Url {
    pub scheme: String,
    /// With the port.
    pub host: String,
    /// As written, escaped.
    pub path: String,
    pub query: String,
}

/// Reads a URL.
///
/// # Errors
/// Upstream's sentence.
pub fn parse(text: &str) -> Result<Url, String> {
    let wrong = |why: &str| {
        let shown = keelson_api::field::quote(text);
        format!("URL parse error during conversion from string: parse {shown}: {why}")
    };
    if text.is_empty() {
        return Err(wrong("empty url"));
    }
    if let Some(bad) = text.bytes().find(|b| *b <= b' ' || *b == 0x7f) {
        return Err(wrong(if bad == b' ' {
            "invalid character \" \" in host name"
        } else {
            "net/url: invalid control character in URL"
        }));
    }
    let scheme_end = text.find(':').filter(|end| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text[..*end].bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    });
    let (scheme, rest) = match scheme_end {
        Some(end) => (text[..end].to_ascii_lowercase(), &text[end + 1..]),
        None => (String::new(), text),
    };
    if scheme.is_empty() && !rest.starts_with('/') {
        return Err(wrong("invalid URI for request"));
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, path) = match rest.strip_prefix("//").filter(|_| !scheme.is_empty()) {
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None => ("", rest),
    };
    if !scheme.is_empty() && host.is_empty() && !rest.starts_with('/') {
        return Err(wrong("invalid URI for request"));
    }
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    if let Some((_, port)) = port_of(host)
        && !port.bytes().all(|b| b.is_ascii_digit())
    {
        return Err(wrong(&format!("invalid port \":{port}\" after host")));
    }
    if let Some(bad) = bad_escape(path) {
        return Err(wrong(&format!("invalid URL escape \"{bad}\"")));
    }
    Ok(Url { scheme, host: host.into(), path: path.into(), query: query.into() })
}

fn bad_escape(path: &str) -> Option<&str> {
    path.match_indices('%').find_map(|(i, _)| {
        let digits = path.get(i + 1..i + 3);
        let fine = digits.is_some_and(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        (!fine).then(|| path.get(i..i + 3).unwrap_or(&path[i..]))
    })
}

/// Name and port of a host, when it has a port.
fn port_of(host: &str) -> Option<(&str, &str)> {
    if let Some(rest) = host.strip_prefix('[') {
        let (_, after) = rest.split_once(']')?;
        return after.strip_prefix(':').map(|port| (host, port));
    }
    host.rsplit_once(':')
}

fn unescaped(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut i) = (vec![], 0);
    while i < bytes.len() {
        let escape = text.get(i + 1..i + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (bytes[i], escape) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `url` and `isURL`.
pub fn make(function: &str, args: &[Value]) -> Called {
    let [Value::String(text)] = args else { return no_overload() };
    match (function, parse(text)) {
        ("isURL", parsed) => Ok(Value::Bool(parsed.is_ok())),
        (_, parsed) => parsed.map(|url| Value::Url(Arc::new(url))),
    }
}

/// Runs a member of a URL.
pub fn call(function: &str, url: &Url) -> Called {
    Ok(match function {
        "getScheme" => Value::string(url.scheme.as_str()),
        "getHost" => Value::string(url.host.as_str()),
        "getHostname" => {
            let name = match url.host.strip_prefix('[') {
                Some(rest) => rest.split(']').next().unwrap_or(""),
                None => port_of(&url.host).map_or(url.host.as_str(), |(name, _)| name),
            };
            Value::string(name)
        }
        "getPort" => Value::string(port_of(&url.host).map_or("", |(_, port)| port)),
        "getEscapedPath" => Value::string(url.path.as_str()),
        "getQuery" => {
            let mut out: BTreeMap<Key, Vec<Value>> = BTreeMap::new();
            for pair in url.query.split('&').filter(|p| !p.is_empty()) {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                out.entry(Key::text(&unescaped(key))).or_default().push(Value::string(unescaped(value)));
            }
            let entries = out.into_iter().map(|(key, values)| (key, values.into())).collect();
            Value::Map(Arc::new(Map { entries, of: None }))
        }
        _ => return no_overload(),
    })
}
