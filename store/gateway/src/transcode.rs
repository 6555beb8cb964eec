//! JSON ↔ messages by their descriptors, as Go's protojson does it: names of either spelling, unknown ones ignored,
//! 64-bit integers as strings, bytes as base64; faults in its words and with its places.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions, Value};

use crate::json::{self, Kind as Json};

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);

/// Reads a message from a JSON value of `text`.
///
/// # Errors
/// What does not fit, where: `proto: (line 1:8): invalid value for bytes field key: 1`.
pub fn decode(
    text: &[u8],
    value: &json::Value,
    descriptor: &MessageDescriptor,
) -> Result<DynamicMessage, String> {
    let reader = Reader { text, base: value.at };
    reader.message(value, descriptor).map_err(|fault| format!("proto: {fault}"))
}

/// Writes a message as JSON; fields without a value are left out.
///
/// # Errors
/// None that is known: JSON can hold every message.
pub fn encode(message: &DynamicMessage) -> Result<Vec<u8>, serde_json::Error> {
    let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(true);
    let mut out = serde_json::Serializer::new(Vec::new());
    message.serialize_with_options(&mut out, &options)?;
    Ok(out.into_inner())
}

struct Reader<'a> {
    text: &'a [u8],
    /// Places are told from here.
    base: usize,
}

impl Reader<'_> {
    /// `(line 1:8)`, columns in characters.
    fn place(&self, at: usize) -> String {
        let before = String::from_utf8_lossy(&self.text[self.base..at]);
        let (line, column) = before.chars().fold((1, 1), |(line, column), char| match char {
            '\n' => (line + 1, 1),
            _ => (line, column + 1),
        });
        format!("(line {line}:{column})")
    }

    /// The token a value begins with, as written.
    fn raw(&self, value: &json::Value) -> String {
        let end = match value.kind {
            Json::List(_) | Json::Object(_) => value.at + 1,
            _ => value.end,
        };
        String::from_utf8_lossy(&self.text[value.at..end]).into_owned()
    }

    fn unexpected(&self, value: &json::Value) -> String {
        if value.kind == Json::String(None) {
            return format!("syntax error {}: invalid UTF-8 in string", self.place(value.at));
        }
        format!("syntax error {}: unexpected token {}", self.place(value.at), self.raw(value))
    }

    fn invalid(&self, field: &FieldDescriptor, value: &json::Value) -> String {
        let kind = match field.kind() {
            Kind::Bool => "bool",
            Kind::Int32 => "int32",
            Kind::Int64 => "int64",
            Kind::Uint32 => "uint32",
            Kind::Uint64 => "uint64",
            Kind::String => "string",
            Kind::Bytes => "bytes",
            Kind::Enum(_) => "enum",
            _ => "value",
        };
        let (place, raw) = (self.place(value.at), self.raw(value));
        format!("{place}: invalid value for {kind} field {}: {raw}", field.json_name())
    }

    fn message(&self, value: &json::Value, descriptor: &MessageDescriptor) -> Result<DynamicMessage, String> {
        let Json::Object(fields) = &value.kind else { return Err(self.unexpected(value)) };
        let mut message = DynamicMessage::new(descriptor.clone());
        let mut seen: Vec<u32> = Vec::new();
        let mut choices: Vec<String> = Vec::new();
        for (name, value) in fields {
            let Json::String(Some(text)) = &name.kind else { return Err(self.unexpected(name)) };
            let field =
                descriptor.get_field_by_json_name(text).or_else(|| descriptor.get_field_by_name(text));
            let Some(field) = field else { continue };
            if seen.contains(&field.number()) {
                return Err(format!("{}: duplicate field {}", self.place(name.at), self.raw(name)));
            }
            seen.push(field.number());
            if value.kind == Json::Null {
                continue;
            }
            if let Some(choice) = field.containing_oneof() {
                let choice = choice.full_name().to_owned();
                if choices.contains(&choice) {
                    let (place, raw) = (self.place(name.at), self.raw(name));
                    return Err(format!("{place}: error parsing {raw}, oneof {choice} is already set"));
                }
                choices.push(choice);
            }
            if let Some(read) = self.field(&field, value)? {
                message.set_field(&field, read);
            }
        }
        Ok(message)
    }

    fn field(&self, field: &FieldDescriptor, value: &json::Value) -> Result<Option<Value>, String> {
        if !field.is_list() {
            return self.single(field, value);
        }
        let Json::List(items) = &value.kind else { return Err(self.unexpected(value)) };
        let mut list = Vec::with_capacity(items.len());
        for item in items {
            list.extend(self.single(field, item)?);
        }
        Ok(Some(Value::List(list)))
    }

    /// `None`: a name no enum value has, which is ignored like an unknown field.
    fn single(&self, field: &FieldDescriptor, value: &json::Value) -> Result<Option<Value>, String> {
        let read = match (field.kind(), &value.kind) {
            (Kind::Message(descriptor), _) => Some(Value::Message(self.message(value, &descriptor)?)),
            (Kind::Bool, Json::Bool(truth)) => Some(Value::Bool(*truth)),
            (Kind::String, Json::String(Some(text))) => Some(Value::String(text.clone())),
            (Kind::Bytes, Json::String(Some(text))) => bytes(text).map(|read| Value::Bytes(read.into())),
            (Kind::Enum(values), Json::String(Some(name))) => {
                return Ok(values.get_value_by_name(name).map(|value| Value::EnumNumber(value.number())));
            }
            (Kind::Enum(_), Json::Number) => {
                integer(&self.raw(value)).and_then(|n| i32::try_from(n).ok()).map(Value::EnumNumber)
            }
            (kind, Json::Number) => number(&kind, &self.raw(value)),
            (kind, Json::String(Some(text))) => number(&kind, text),
            _ => None,
        };
        read.map(Some).ok_or_else(|| self.invalid(field, value))
    }
}

fn number(kind: &Kind, text: &str) -> Option<Value> {
    let number = integer(text)?;
    match kind {
        Kind::Int32 => i32::try_from(number).ok().map(Value::I32),
        Kind::Int64 => i64::try_from(number).ok().map(Value::I64),
        Kind::Uint32 => u32::try_from(number).ok().map(Value::U32),
        Kind::Uint64 => u64::try_from(number).ok().map(Value::U64),
        _ => None,
    }
}

/// An integer in JSON's number syntax, exponents and zero fractions included.
fn integer(text: &str) -> Option<i128> {
    if json::first(text.as_bytes()).ok()? != (json::Value { at: 0, end: text.len(), kind: Json::Number }) {
        return None;
    }
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{whole}{fraction}");
    let mantissa: i128 = digits.parse().ok()?;
    if mantissa == 0 {
        return Some(0);
    }
    let shift = exponent.parse::<i64>().ok()?.checked_sub(fraction.len() as i64)?;
    let power = 10_i128.checked_pow(u32::try_from(shift.unsigned_abs()).ok()?)?;
    match shift {
        0.. => mantissa.checked_mul(power),
        _ if mantissa % power == 0 => Some(mantissa / power),
        _ => None,
    }
}

/// Base64 of either alphabet, padded or not.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let text: String = text.chars().filter(|char| !matches!(char, '\r' | '\n')).collect();
    let alphabet = if text.contains(['-', '_']) { alphabet::URL_SAFE } else { alphabet::STANDARD };
    let padding = match text.len() % 4 {
        0 => DecodePaddingMode::RequireCanonical,
        _ => DecodePaddingMode::RequireNone,
    };
    let engine = GeneralPurpose::new(&alphabet, LENIENT.with_decode_padding_mode(padding));
    engine.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_reflect::ReflectMessage;

    use super::*;
    use crate::routes::pool;

    fn read(message: &str, text: &str) -> Result<DynamicMessage, String> {
        let descriptor = pool().get_message_by_name(message).expect("a message of the API");
        let value = json::first(text.as_bytes()).expect("JSON");
        decode(text.as_bytes(), &value, &descriptor)
    }

    fn fault(message: &str, text: &str) -> String {
        read(message, text).expect_err("does not fit")
    }

    #[test]
    fn faults_name_field_and_place() {
        let range = "etcdserverpb.RangeRequest";
        assert_eq!(fault(range, "null"), "proto: syntax error (line 1:1): unexpected token null");
        assert_eq!(
            fault(range, r#"{"key":"!!"}"#),
            r#"proto: (line 1:8): invalid value for bytes field key: "!!""#
        );
        assert_eq!(
            fault(range, "{\n \"limit\": 5.5}"),
            "proto: (line 2:11): invalid value for int64 field limit: 5.5"
        );
        assert_eq!(
            fault(range, r#"{"range_end":"","rangeEnd":""}"#),
            r#"proto: (line 1:17): duplicate field "rangeEnd""#
        );
        assert_eq!(
            fault("etcdserverpb.RequestOp", r#"{"requestPut":{},"request_range":{}}"#),
            r#"proto: (line 1:18): error parsing "request_range", oneof etcdserverpb.RequestOp.request is already set"#
        );
    }

    #[test]
    fn numbers_come_in_every_spelling() {
        for (text, number) in [("100", 100), ("1e2", 100), ("1.50e1", 15), ("-0.0", 0), ("1000e-3", 1)] {
            assert_eq!(integer(text), Some(number), "{text}");
        }
        for text in
            ["", "x", "1.5", "1e99999", "1e-1", " 1", "01", "99999999999999999999999999999999999999999"]
        {
            assert_eq!(integer(text), None, "{text}");
        }
    }

    #[test]
    fn a_message_written_and_read_is_the_same_and_what_is_empty_is_left_out() {
        let text = concat!(
            r#"{"header":{"cluster_id":"18446744073709551615","revision":"7"},"kvs":[{"key":"+/8=","#,
            r#""create_revision":"-1"},{}],"more":true,"count":"9"}"#
        );
        let message = read("etcdserverpb.RangeResponse", text).expect("fits");
        assert_eq!(String::from_utf8(encode(&message).expect("JSON")).expect("text"), text);
        let again = DynamicMessage::decode(message.descriptor(), &*message.encode_to_vec()).expect("decodes");
        assert_eq!(again, message);
        assert_eq!(bytes("-_8"), bytes("+/8="));
    }
}
