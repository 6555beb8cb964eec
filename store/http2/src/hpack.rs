//! Header compression: a decoder with its dynamic table, and writers that use almost none of it.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

/// Names and values of one block, in order; pseudo fields included.
pub type Fields = Vec<(Bytes, Bytes)>;

/// The dynamic table's size we offer (the protocol's default), bytes.
const TABLE: usize = 4096;
/// What an entry of the table costs beside its text, bytes.
const ENTRY: usize = 32;

const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// A block that breaks the rules; the connection cannot go on, since the tables of both sides differ from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("a header block ends within a field")]
    Short,
    #[error("a header field names an entry that is not there")]
    Index,
    #[error("a number in a header block is too large")]
    Number,
    #[error("a header text is badly encoded")]
    Huffman,
    #[error("the header table was made larger than allowed")]
    Table,
    #[error("the headers are too large")]
    TooLarge,
}

/// Decodes the blocks of one connection, in order.
#[derive(Debug)]
pub struct Decoder {
    /// Newest first.
    table: VecDeque<(Bytes, Bytes)>,
    size: usize,
    allowed: usize,
    /// Changes whenever the table does: a block of indexes means the same while it stands still.
    generation: u64,
    /// Most a decoded block may hold, bytes.
    most: usize,
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Result<u8, Broken> {
        let (first, rest) = self.0.split_first().ok_or(Broken::Short)?;
        self.0 = rest;
        Ok(*first)
    }

    /// An integer whose first `bits` bits are in `first`.
    fn number(&mut self, first: u8, bits: u32) -> Result<usize, Broken> {
        let mask = (1usize << bits) - 1;
        let mut number = usize::from(first) & mask;
        if number < mask {
            return Ok(number);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            number += usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Broken::Number)
    }

    fn text(&mut self, most: usize) -> Result<Bytes, Broken> {
        let first = self.byte()?;
        let length = self.number(first, 7)?;
        if length > most {
            return Err(Broken::TooLarge);
        }
        let (text, rest) = self.0.split_at_checked(length).ok_or(Broken::Short)?;
        self.0 = rest;
        if first & 0x80 == 0 {
            return Ok(Bytes::copy_from_slice(text));
        }
        let mut plain = Vec::with_capacity(length * 8 / 5);
        httlib_huffman::decode(text, &mut plain, httlib_huffman::DecoderSpeed::FourBits)
            .map_err(|_| Broken::Huffman)?;
        Ok(plain.into())
    }
}

impl Decoder {
    /// `most`: the decoded size of one block that is still taken, bytes.
    pub fn new(most: usize) -> Decoder {
        Decoder { table: VecDeque::new(), size: 0, allowed: TABLE, generation: 0, most }
    }

    /// Changes whenever the dynamic table does.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Decodes one whole block.
    ///
    /// # Errors
    /// The block is malformed or too large.
    pub fn decode(&mut self, block: &[u8]) -> Result<Fields, Broken> {
        let mut input = Input(block);
        let mut fields = Fields::new();
        let mut total = 0;
        while let Some(first) = input.0.first().copied() {
            input.0 = &input.0[1..];
            let (name, value) = match first {
                0x80.. => {
                    let index = input.number(first, 7)?;
                    self.entry(index)?
                }
                0x40..0x80 => {
                    let (name, value) = self.literal(&mut input, first, 6)?;
                    self.insert(name.clone(), value.clone());
                    (name, value)
                }
                0x20..0x40 => {
                    let allowed = input.number(first, 5)?;
                    if allowed > TABLE {
                        return Err(Broken::Table);
                    }
                    self.allowed = allowed;
                    self.evict(0);
                    continue;
                }
                _ => self.literal(&mut input, first, 4)?,
            };
            total += name.len() + value.len() + ENTRY;
            if total > self.most {
                return Err(Broken::TooLarge);
            }
            fields.push((name, value));
        }
        Ok(fields)
    }

    fn literal(&self, input: &mut Input<'_>, first: u8, bits: u32) -> Result<(Bytes, Bytes), Broken> {
        let index = input.number(first, bits)?;
        let name = if index == 0 { input.text(self.most)? } else { self.entry(index)?.0 };
        Ok((name, input.text(self.most)?))
    }

    fn entry(&self, index: usize) -> Result<(Bytes, Bytes), Broken> {
        let before = index.checked_sub(1).ok_or(Broken::Index)?;
        if let Some((name, value)) = STATIC.get(before) {
            return Ok((Bytes::from_static(name.as_bytes()), Bytes::from_static(value.as_bytes())));
        }
        self.table.get(before - STATIC.len()).cloned().ok_or(Broken::Index)
    }

    fn insert(&mut self, name: Bytes, value: Bytes) {
        let size = name.len() + value.len() + ENTRY;
        self.evict(size);
        if size <= self.allowed {
            self.size += size;
            self.table.push_front((name, value));
        }
    }

    /// Makes room for an entry of `size`.
    fn evict(&mut self, size: usize) {
        self.generation += 1;
        while self.size + size > self.allowed {
            let Some((name, value)) = self.table.pop_back() else { return };
            self.size -= name.len() + value.len() + ENTRY;
        }
    }
}

fn put_number(out: &mut BytesMut, number: usize, bits: u32, flags: u8) {
    let mask = (1usize << bits) - 1;
    if number < mask {
        out.put_u8(flags | number as u8);
        return;
    }
    out.put_u8(flags | mask as u8);
    let mut rest = number - mask;
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

fn put_text(out: &mut BytesMut, text: &[u8]) {
    put_number(out, text.len(), 7, 0);
    out.put_slice(text);
}

/// A field that leaves the reader's table as it is.
pub(crate) fn put_plain(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.put_u8(0);
    put_text(out, name);
    put_text(out, value);
}

/// A field that becomes the newest entry of the reader's table.
pub(crate) fn put_indexing(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.put_u8(0x40);
    put_text(out, name);
    put_text(out, value);
}

/// A field that is in a table.
pub(crate) fn put_index(out: &mut BytesMut, index: usize) {
    put_number(out, index, 7, 0x80);
}

/// The status line's field.
pub(crate) fn put_status(out: &mut BytesMut, status: u16) {
    let known = |entry: &(&str, &str)| entry.0 == ":status" && entry.1.parse() == Ok(status);
    match STATIC.iter().position(known) {
        Some(at) => put_index(out, at + 1),
        None => put_plain(out, b":status", status.to_string().as_bytes()),
    }
}

/// Entries of the static table.
pub(crate) const STATIC_LENGTH: usize = STATIC.len();

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(fields: &Fields) -> Vec<(&str, &str)> {
        let utf8 = |bytes: &'_ Bytes| -> &'static str {
            Box::leak(String::from_utf8_lossy(bytes).into_owned().into_boxed_str())
        };
        fields.iter().map(|(name, value)| (utf8(name), utf8(value))).collect()
    }

    fn hex(digits: &str) -> Vec<u8> {
        let digits: Vec<u8> = digits.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pair =
            |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ascii"), 16).expect("hex");
        digits.chunks(2).map(pair).collect()
    }

    /// RFC 7541, C.4: three requests with Huffman coding, on one table.
    #[test]
    fn the_standards_own_examples_decode() {
        let mut decoder = Decoder::new(1 << 16);
        let first = decoder.decode(&hex("828684418cf1e3c2e5f23a6ba0ab90f4ff")).expect("decodes");
        assert_eq!(
            text(&first),
            [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")]
        );
        let second = decoder.decode(&hex("828684be5886a8eb10649cbf")).expect("decodes");
        assert_eq!(text(&second)[3..], [(":authority", "www.example.com"), ("cache-control", "no-cache")]);
        let third =
            decoder.decode(&hex("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf")).expect("decodes");
        assert_eq!(
            text(&third)[2..],
            [(":path", "/index.html"), (":authority", "www.example.com"), ("custom-key", "custom-value")]
        );
    }

    #[test]
    fn the_table_evicts_its_oldest() {
        let mut decoder = Decoder::new(1 << 16);
        let mut block = BytesMut::new();
        // A table of 2 * (32 + 2) bytes holds two entries of one-letter texts.
        put_number(&mut block, 68, 5, 0x20);
        for name in [b"a", b"b", b"c"] {
            put_indexing(&mut block, name, b"v");
        }
        put_index(&mut block, STATIC_LENGTH + 1);
        put_index(&mut block, STATIC_LENGTH + 2);
        let fields = decoder.decode(&block).expect("decodes");
        assert_eq!(text(&fields)[3..], [("c", "v"), ("b", "v")]);
        let mut gone = BytesMut::new();
        put_index(&mut gone, STATIC_LENGTH + 3);
        assert_eq!(decoder.decode(&gone), Err(Broken::Index));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(fields in prop::collection::vec(("[a-z:-]{1,40}", "[ -~]{0,300}", any::<bool>()), 0..20)) {
            let mut decoder = Decoder::new(1 << 20);
            let mut block = BytesMut::new();
            for (name, value, indexing) in &fields {
                match indexing {
                    true => put_indexing(&mut block, name.as_bytes(), value.as_bytes()),
                    false => put_plain(&mut block, name.as_bytes(), value.as_bytes()),
                }
            }
            let read = decoder.decode(&block).expect("decodes");
            let wanted: Vec<(&str, &str)> = fields.iter().map(|(name, value, _)| (&name[..], &value[..])).collect();
            prop_assert_eq!(text(&read), wanted);
        }

        #[test]
        fn any_bytes_are_read_or_refused(block in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::new(4096);
            let _either = decoder.decode(&block);
            prop_assert!(decoder.size <= TABLE);
        }
    }
}
