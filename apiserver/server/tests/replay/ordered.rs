//! JSON whose members stay in the order they were written in: errors show how a body begins.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// A JSON value.
pub enum Ordered {
    Map(Vec<(String, Ordered)>),
    List(Vec<Ordered>),
    Other(Value),
}

impl Ordered {
    /// What stands at a path of members.
    pub fn at(&self, path: &[&str]) -> Option<&Ordered> {
        let Some((first, rest)) = path.split_first() else { return Some(self) };
        match self {
            Ordered::Map(members) => members.iter().find(|(k, _)| k == first)?.1.at(rest),
            _ => None,
        }
    }

    /// With a space after each comma and colon, as the recorder wrote it.
    pub fn spaced(&self) -> String {
        match self {
            Ordered::List(list) => {
                format!("[{}]", list.iter().map(Ordered::spaced).collect::<Vec<_>>().join(", "))
            }
            Ordered::Map(members) => {
                let one = |(k, v): &(String, Ordered)| format!("{}: {}", Value::from(k.as_str()), v.spaced());
                format!("{{{}}}", members.iter().map(one).collect::<Vec<_>>().join(", "))
            }
            Ordered::Other(value) => value.to_string(),
        }
    }
}

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Ordered, D::Error> {
        d.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Ordered;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Ordered, E> {
        Ok(Ordered::Other(v.into()))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Ordered, E> {
        Ok(Ordered::Other(v.into()))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Ordered, E> {
        Ok(Ordered::Other(v.into()))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Ordered, E> {
        Ok(Ordered::Other(v.into()))
    }
    fn visit_str<E>(self, v: &str) -> Result<Ordered, E> {
        Ok(Ordered::Other(v.into()))
    }
    fn visit_unit<E>(self) -> Result<Ordered, E> {
        Ok(Ordered::Other(Value::Null))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Ordered, A::Error> {
        let mut out = vec![];
        while let Some(item) = access.next_element()? {
            out.push(item);
        }
        Ok(Ordered::List(out))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Ordered, A::Error> {
        let mut out = vec![];
        while let Some(entry) = access.next_entry()? {
            out.push(entry);
        }
        Ok(Ordered::Map(out))
    }
}
