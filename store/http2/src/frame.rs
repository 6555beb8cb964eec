//! Frame heads, error codes, settings.

use bytes::{BufMut, BytesMut};

/// What a client says first.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame's head.
pub const HEAD: usize = 9;

pub const FLAG_END_STREAM: u8 = 0x1;
pub const FLAG_ACK: u8 = 0x1;
pub const FLAG_END_HEADERS: u8 = 0x4;
pub(crate) const FLAG_PADDED: u8 = 0x8;
pub(crate) const FLAG_PRIORITY: u8 = 0x20;

pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
pub(crate) const ENABLE_PUSH: u16 = 2;
pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(crate) const MAX_FRAME_SIZE: u16 = 5;
pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;

/// The kinds of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Data,
    Headers,
    Priority,
    Reset,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    /// To be ignored.
    Other(u8),
}

impl Kind {
    const ALL: [Kind; 10] = [
        Kind::Data,
        Kind::Headers,
        Kind::Priority,
        Kind::Reset,
        Kind::Settings,
        Kind::PushPromise,
        Kind::Ping,
        Kind::GoAway,
        Kind::WindowUpdate,
        Kind::Continuation,
    ];

    fn of(byte: u8) -> Kind {
        Kind::ALL.get(usize::from(byte)).copied().unwrap_or(Kind::Other(byte))
    }

    fn byte(self) -> u8 {
        match self {
            Kind::Other(byte) => byte,
            kind => Kind::ALL.iter().position(|other| *other == kind).unwrap_or_default() as u8,
        }
    }
}

/// Why a stream or a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    No = 0,
    Protocol = 1,
    Internal = 2,
    FlowControl = 3,
    StreamClosed = 5,
    FrameSize = 6,
    Refused = 7,
    Cancel = 8,
    Compression = 9,
    EnhanceYourCalm = 11,
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    pub length: usize,
    pub kind: Kind,
    pub flags: u8,
    pub stream: u32,
}

impl FrameHead {
    /// From the first nine bytes; `None` when there are fewer.
    pub fn read(input: &[u8]) -> Option<FrameHead> {
        let head: &[u8; HEAD] = input.first_chunk()?;
        Some(FrameHead {
            length: usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]),
            kind: Kind::of(head[3]),
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff,
        })
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Writes a frame's head.
pub fn put_head(out: &mut BytesMut, length: usize, kind: Kind, flags: u8, stream: u32) {
    debug_assert!(length < 1 << 24, "a frame is below 16 MiB");
    let length = (length as u32).to_be_bytes();
    let stream = stream.to_be_bytes();
    out.put_slice(&[
        length[1],
        length[2],
        length[3],
        kind.byte(),
        flags,
        stream[0],
        stream[1],
        stream[2],
        stream[3],
    ]);
}

pub(crate) fn put_setting(out: &mut BytesMut, name: u16, value: u32) {
    out.put_u16(name);
    out.put_u32(value);
}

pub(crate) fn number(payload: &[u8], at: usize) -> Option<u32> {
    payload.get(at..)?.first_chunk().map(|four| u32::from_be_bytes(*four))
}
