//! The client's side of SPDY/3.1, as far as a runtime's streaming server needs it: open streams, send, receive, close one
//! direction.
//!
//! Why SPDY towards the runtime: its WebSocket dialect has no way to end stdin. Headers are sent as stored (uncompressed)
//! zlib blocks without a dictionary, which every reader accepts; the peer's header blocks are skipped, nothing in them is
//! needed. Hazard: frame lengths come from the wire; 24 bits bound them.

use std::io;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

const FIN: u8 = 1;
const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;

/// Makes the frames of one connection.
#[derive(Default)]
pub struct Encoder {
    last: u32,
    deflating: bool,
}

impl Encoder {
    /// Opens a stream with the given headers (lower-case names). Returns its id.
    pub fn open(&mut self, headers: &[(&str, &str)], out: &mut BytesMut) -> u32 {
        let id = self.last + if self.last == 0 { 1 } else { 2 };
        self.last = id;
        let mut block = BytesMut::new();
        block.put_u32(headers.len() as u32);
        for (name, value) in headers {
            for text in [name, value] {
                block.put_u32(text.len() as u32);
                block.put_slice(text.as_bytes());
            }
        }
        let mut packed = BytesMut::new();
        if !self.deflating {
            // zlib's header: deflate, 32 KiB window, no dictionary.
            packed.put_slice(&[0x78, 0x01]);
            self.deflating = true;
        }
        packed.put_u8(0); // a stored block, not the last
        packed.put_u16_le(block.len() as u16);
        packed.put_u16_le(!(block.len() as u16));
        packed.put_slice(&block);
        // An empty stored block: readers hand out what they have at it, and not before.
        packed.put_slice(&[0, 0, 0, 0xff, 0xff]);
        control(out, SYN_STREAM, 0, packed.len() + 10);
        out.put_u32(id);
        out.put_u32(0);
        out.put_u16(0);
        out.put_slice(&packed);
        id
    }

    /// Sends data, in frames of at most 64 KiB.
    pub fn data(id: u32, mut content: &[u8], end: bool, out: &mut BytesMut) {
        loop {
            let size = content.len().min(64 << 10);
            let (now, rest) = content.split_at(size);
            let last = rest.is_empty();
            out.put_u32(id);
            out.put_u32((u32::from(if end && last { FIN } else { 0 }) << 24) | size as u32);
            out.put_slice(now);
            content = rest;
            if last {
                return;
            }
        }
    }
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.put_u16(0x8003);
    out.put_u16(kind);
    out.put_u32((u32::from(flags) << 24) | length as u32);
}

/// What the peer sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Data {
        id: u32,
        content: Bytes,
        end: bool,
    },
    /// The peer wants nothing more on this stream, or ended it.
    Reset(u32),
    /// Answer with the same frame.
    Ping(Bytes),
    GoAway,
}

/// Takes whole frames out of `buffer`; `None` when more bytes are needed.
pub fn decode(buffer: &mut BytesMut) -> io::Result<Option<Received>> {
    loop {
        if buffer.len() < 8 {
            return Ok(None);
        }
        let word = u32::from_be_bytes([buffer[4], buffer[5], buffer[6], buffer[7]]);
        let (flags, length) = ((word >> 24) as u8, (word & 0x00ff_ffff) as usize);
        if buffer.len() < 8 + length {
            return Ok(None);
        }
        let frame = buffer.split_to(8 + length).freeze();
        let head = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]);
        let mut payload = frame.slice(8..);
        if head & 0x8000_0000 == 0 {
            return Ok(Some(Received::Data { id: head, content: payload, end: flags & FIN != 0 }));
        }
        if (head >> 16) & 0x7fff != 3 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the runtime's stream is not SPDY/3"));
        }
        match (head & 0xffff) as u16 {
            RST_STREAM if payload.len() >= 4 => {
                return Ok(Some(Received::Reset(payload.get_u32() & 0x7fff_ffff)));
            }
            PING => return Ok(Some(Received::Ping(frame))),
            GOAWAY => return Ok(Some(Received::GoAway)),
            _ => {} // replies, settings, window updates: nothing to do
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_open_with_odd_ids_and_stored_headers() {
        let mut encoder = Encoder::default();
        let mut out = BytesMut::new();
        assert_eq!(encoder.open(&[("streamtype", "error")], &mut out), 1);
        let first = out.len();
        assert_eq!(encoder.open(&[("streamtype", "stdin")], &mut out), 3);
        assert_eq!(&out[..4], [0x80, 3, 0, 1]);
        assert_eq!(&out[18..21], [0x78, 1, 0]);
        assert_eq!(out[first + 18], 0, "the zlib header comes once");
        let block = &out[23 + 2..];
        assert_eq!(&block[..4], [0, 0, 0, 1].map(|b: u8| b));
    }

    #[test]
    fn frames_come_whole_or_not_at_all() {
        let mut wire = BytesMut::new();
        Encoder::data(5, b"hello", true, &mut wire);
        control(&mut wire, PING, 0, 4);
        wire.put_u32(9);
        control(&mut wire, 2, 0, 4); // a reply: skipped
        wire.put_u32(1);
        let mut seen = Vec::new();
        let mut buffer = BytesMut::new();
        for byte in wire {
            buffer.put_u8(byte);
            seen.extend(decode(&mut buffer).unwrap());
        }
        let data = Received::Data { id: 5, content: Bytes::from_static(b"hello"), end: true };
        assert_eq!(seen[0], data);
        assert!(matches!(&seen[1], Received::Ping(frame) if frame.len() == 12));
        assert_eq!(seen.len(), 2);
        assert!(decode(&mut BytesMut::from(&[0x80, 9, 0, 1, 0, 0, 0, 0][..])).is_err());
    }

    #[test]
    fn large_data_is_split_and_only_the_last_frame_ends() {
        let mut wire = BytesMut::new();
        Encoder::data(1, &vec![7; 100_000], true, &mut wire);
        let mut ends = Vec::new();
        while let Some(Received::Data { content, end, .. }) = decode(&mut wire).unwrap() {
            ends.push((content.len(), end));
        }
        assert_eq!(ends, [(65_536, false), (34_464, true)]);
    }
}
