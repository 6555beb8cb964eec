//! etcd's answers as Go's `encoding/json` writes their structs: fields in order, empty ones left out, bytes in base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::mvccpb::{Event, KeyValue};

/// An object being written.
#[derive(Default)]
pub struct Object(String);

/// A text, with Go's escapes of HTML.
pub fn text(value: &str) -> String {
    let plain = serde_json::Value::from(value).to_string();
    plain
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

/// Bytes.
pub fn bytes(value: &[u8]) -> String {
    format!("\"{}\"", STANDARD.encode(value))
}

/// An array.
pub fn array(items: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", items.into_iter().collect::<Vec<_>>().join(","))
}

impl Object {
    /// A field as it is.
    pub fn raw(mut self, name: &str, value: impl AsRef<str>) -> Object {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        self.0.push_str(&format!("\"{name}\":{}", value.as_ref()));
        self
    }

    /// Left out when absent.
    pub fn maybe(self, name: &str, value: Option<String>) -> Object {
        match value {
            Some(value) => self.raw(name, value),
            None => self,
        }
    }

    /// Left out when zero.
    pub fn number<N: ToString + Default + PartialEq>(self, name: &str, value: N) -> Object {
        if value == N::default() { self } else { self.raw(name, value.to_string()) }
    }

    /// Left out when empty.
    pub fn text(self, name: &str, value: &str) -> Object {
        if value.is_empty() { self } else { self.raw(name, text(value)) }
    }

    /// Left out when empty.
    pub fn bytes(self, name: &str, value: &[u8]) -> Object {
        if value.is_empty() { self } else { self.raw(name, bytes(value)) }
    }

    /// Left out when false.
    pub fn flag(self, name: &str, value: bool) -> Object {
        if value { self.raw(name, "true") } else { self }
    }

    /// Left out when empty.
    pub fn list<T>(self, name: &str, items: &[T], each: impl Fn(&T) -> String) -> Object {
        if items.is_empty() { self } else { self.raw(name, array(items.iter().map(each))) }
    }

    /// The other's fields, here.
    pub fn embed(mut self, other: &str) -> Object {
        let inner = other.trim_start_matches('{').trim_end_matches('}');
        if !inner.is_empty() {
            self.0.push(if self.0.is_empty() { '{' } else { ',' });
            self.0.push_str(inner);
        }
        self
    }

    /// The object.
    pub fn end(self) -> String {
        if self.0.is_empty() { "{}".to_owned() } else { self.0 + "}" }
    }
}

/// A header; ids in hexadecimal texts where asked for.
pub fn header(header: Option<&pb::ResponseHeader>, hex: bool) -> Option<String> {
    header.map(|h| {
        let ids = if hex {
            Object::default()
                .raw("cluster_id", format!("\"{:x}\"", h.cluster_id))
                .raw("member_id", format!("\"{:x}\"", h.member_id))
        } else {
            Object::default().number("cluster_id", h.cluster_id).number("member_id", h.member_id)
        };
        ids.number("revision", h.revision).number("raft_term", h.raft_term).end()
    })
}

/// The beginning of an answer.
pub fn answer(h: Option<&pb::ResponseHeader>) -> Object {
    Object::default().maybe("header", header(h, false))
}

/// A key with everything of it.
pub fn kv(kv: &KeyValue) -> String {
    Object::default()
        .bytes("key", &kv.key)
        .number("create_revision", kv.create_revision)
        .number("mod_revision", kv.mod_revision)
        .number("version", kv.version)
        .bytes("value", &kv.value)
        .number("lease", kv.lease)
        .end()
}

/// A watch event.
pub fn event(event: &Event) -> String {
    Object::default()
        .number("type", event.r#type)
        .maybe("kv", event.kv.as_ref().map(kv))
        .maybe("prev_kv", event.prev_kv.as_ref().map(kv))
        .end()
}

/// A member; its id a hexadecimal text where asked for.
pub fn member(member: &pb::Member, hex: bool) -> String {
    let id = Object::default();
    let id = if hex { id.raw("ID", format!("\"{:x}\"", member.id)) } else { id.number("ID", member.id) };
    id.text("name", &member.name)
        .list("peerURLs", &member.peer_ur_ls, |url| text(url))
        .list("clientURLs", &member.client_ur_ls, |url| text(url))
        .flag("isLearner", member.is_learner)
        .end()
}
