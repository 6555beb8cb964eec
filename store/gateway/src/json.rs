//! JSON as Go's decoder reads it: one value after the other from a stream, faults in Go's words (clients show them, and
//! a drop-in gives the same), every value with its place so that later faults can name it.
//!
//! Numbers stay text: whether `1e2` is an integer is for the reader of the field to say.

/// Deepest nesting; gRPC refuses deeper messages anyway.
const MOST_DEPTH: usize = 400;

/// A value and where it begins and ends in the text, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    pub at: usize,
    pub end: usize,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Null,
    Bool(bool),
    Number,
    /// `None`: not text, though JSON's syntax is kept (bytes that are no UTF-8, half a surrogate pair).
    String(Option<String>),
    List(Vec<Value>),
    /// Names in the order they came, duplicates included.
    Object(Vec<(Value, Value)>),
}

/// Why there is no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Only white space.
    Nothing,
    /// It may be the beginning of one.
    Incomplete,
    /// Never one; Go's words.
    Syntax(String),
}

/// The first value of a text; the next one begins where it ends.
///
/// # Errors
/// See [`Fault`].
pub fn first(text: &[u8]) -> Result<Value, Fault> {
    let mut reader = Reader { text, at: 0 };
    reader.space();
    if reader.at == text.len() {
        return Err(Fault::Nothing);
    }
    reader.value(0)
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

fn shown(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => r#"'"'"#.to_owned(),
        b'\\' => r"'\\'".to_owned(),
        b'\n' => r"'\n'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        b'\t' => r"'\t'".to_owned(),
        0..0x20 | 0x7f => format!(r"'\x{byte:02x}'"),
        0x80..0xa0 => format!(r"'\u{byte:04x}'"),
        _ => format!("'{}'", char::from(byte)),
    }
}

impl Reader<'_> {
    fn space(&mut self) {
        while self.text.get(self.at).is_some_and(|byte| b" \t\r\n".contains(byte)) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Result<u8, Fault> {
        self.text.get(self.at).copied().ok_or(Fault::Incomplete)
    }

    fn unexpected<T>(&self, context: &str) -> Result<T, Fault> {
        Err(Fault::Syntax(format!("invalid character {} {context}", shown(self.peek()?))))
    }

    fn value(&mut self, depth: usize) -> Result<Value, Fault> {
        if depth > MOST_DEPTH {
            return Err(Fault::Syntax("exceeded max depth".to_owned()));
        }
        self.space();
        let at = self.at;
        let kind = match self.peek()? {
            b'{' => self.object(depth)?,
            b'[' => self.list(depth)?,
            b'"' => Kind::String(self.string()?),
            b'-' | b'0'..=b'9' => {
                self.number()?;
                Kind::Number
            }
            b't' => self.literal("true", Kind::Bool(true))?,
            b'f' => self.literal("false", Kind::Bool(false))?,
            b'n' => self.literal("null", Kind::Null)?,
            _ => return self.unexpected("looking for beginning of value"),
        };
        Ok(Value { at, end: self.at, kind })
    }

    fn literal(&mut self, word: &str, kind: Kind) -> Result<Kind, Fault> {
        for expected in word.bytes() {
            if self.peek()? != expected {
                let expected = char::from(expected);
                return self.unexpected(&format!("in literal {word} (expecting '{expected}')"));
            }
            self.at += 1;
        }
        Ok(kind)
    }

    fn object(&mut self, depth: usize) -> Result<Kind, Fault> {
        self.at += 1;
        let mut fields = Vec::new();
        self.space();
        if self.peek()? == b'}' {
            self.at += 1;
            return Ok(Kind::Object(fields));
        }
        loop {
            self.space();
            if self.peek()? != b'"' {
                return self.unexpected("looking for beginning of object key string");
            }
            let name = self.value(depth + 1)?;
            self.space();
            if self.peek()? != b':' {
                return self.unexpected("after object key");
            }
            self.at += 1;
            fields.push((name, self.value(depth + 1)?));
            self.space();
            match self.peek()? {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Ok(Kind::Object(fields));
                }
                _ => return self.unexpected("after object key:value pair"),
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Kind, Fault> {
        self.at += 1;
        let mut items = Vec::new();
        self.space();
        if self.peek()? == b']' {
            self.at += 1;
            return Ok(Kind::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            match self.peek()? {
                b',' => self.at += 1,
                b']' => {
                    self.at += 1;
                    return Ok(Kind::List(items));
                }
                _ => return self.unexpected("after array element"),
            }
        }
    }

    fn digits(&mut self, context: &str) -> Result<(), Fault> {
        if !self.peek()?.is_ascii_digit() {
            return self.unexpected(context);
        }
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), Fault> {
        if self.peek()? == b'-' {
            self.at += 1;
        }
        if self.peek()? == b'0' {
            self.at += 1;
        } else {
            self.digits("in numeric literal")?;
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits("after decimal point in numeric literal")?;
        }
        if matches!(self.text.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek()?, b'+' | b'-') {
                self.at += 1;
            }
            self.digits("in exponent of numeric literal")?;
        }
        Ok(())
    }

    fn string(&mut self) -> Result<Option<String>, Fault> {
        self.at += 1;
        let mut bytes = Vec::new();
        let mut whole = true;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Ok(String::from_utf8(bytes).ok().filter(|_| whole));
                }
                b'\\' => match self.escape()? {
                    Some(char) => bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
                    None => whole = false,
                },
                0..0x20 => return self.unexpected("in string literal"),
                byte => {
                    bytes.push(byte);
                    self.at += 1;
                }
            }
        }
    }

    /// What a backslash and its followers stand for; `None` for half a pair.
    fn escape(&mut self) -> Result<Option<char>, Fault> {
        self.at += 1;
        let char = match self.peek()? {
            escaped @ (b'"' | b'\\' | b'/') => char::from(escaped),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let high = self.hexadecimal()?;
                if !(0xd800..0xdc00).contains(&high) || !self.text[self.at..].starts_with(b"\\u") {
                    return Ok(char::from_u32(high));
                }
                self.at += 1;
                let low = self.hexadecimal()?;
                let joined = 0x10000 + ((high - 0xd800) << 10) + low.wrapping_sub(0xdc00);
                return Ok(if (0xdc00..0xe000).contains(&low) { char::from_u32(joined) } else { None });
            }
            _ => return self.unexpected("in string escape code"),
        };
        self.at += 1;
        Ok(Some(char))
    }

    /// `u` and four digits.
    fn hexadecimal(&mut self) -> Result<u32, Fault> {
        self.at += 1;
        let mut code = 0;
        for _ in 0..4 {
            let Some(digit) = char::from(self.peek()?).to_digit(16) else {
                return self.unexpected(r"in \u hexadecimal character escape");
            };
            code = code * 16 + digit;
            self.at += 1;
        }
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fault(text: &str) -> String {
        match first(text.as_bytes()) {
            Err(Fault::Syntax(words)) => words,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn faults_are_told_in_the_words_of_go() {
        for (text, words) in [
            ("x", "invalid character 'x' looking for beginning of value"),
            ("{x", "invalid character 'x' looking for beginning of object key string"),
            (r#"{"a" 1}"#, "invalid character '1' after object key"),
            (r#"{"a":1 "b"}"#, "invalid character '\"' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            ("tru3", "invalid character '3' in literal true (expecting 'e')"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1ex", "invalid character 'x' in exponent of numeric literal"),
            ("\"\n\"", r"invalid character '\n' in string literal"),
            (r#""\q""#, "invalid character 'q' in string escape code"),
            (r#""\u12x4""#, r"invalid character 'x' in \u hexadecimal character escape"),
        ] {
            assert_eq!(fault(text), words, "{text}");
        }
        assert_eq!(fault(&"[".repeat(1000)), "exceeded max depth");
    }

    #[test]
    fn beginnings_are_incomplete_and_the_next_value_begins_where_one_ends() {
        let text = br#" {"a":[1,null,"\u00e9\ud83d\ude00"]} {}"#;
        let value = first(text).expect("a value");
        assert_eq!(&text[value.at..value.end], br#"{"a":[1,null,"\u00e9\ud83d\ude00"]}"#);
        for length in value.at + 1..value.end {
            assert_eq!(first(&text[..length]), Err(Fault::Incomplete), "{length}");
        }
        assert!(first(&text[value.end..]).is_ok());
        assert_eq!(first(b" \n"), Err(Fault::Nothing));
    }

    proptest! {
        #[test]
        fn what_serde_json_reads_is_read_and_nothing_panics(text in ".{0,40}|[\\[\\]{}\":,0-9eE.\\\\ntu-]{0,40}") {
            let ours = first(text.as_bytes());
            if let Ok(theirs) = serde_json::from_str::<serde_json::Value>(&text) {
                prop_assert!(ours.is_ok(), "{text:?} {theirs:?} {ours:?}");
            }
        }
    }
}
