//! The server's side of one connection.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::frame::{
    self, Code, FLAG_ACK, FLAG_END_HEADERS, FLAG_END_STREAM, FLAG_PADDED, FLAG_PRIORITY, FrameHead, HEAD,
    Kind, PREFACE, put_head, put_setting,
};
use crate::hpack::{self, Decoder, Fields};

/// The window both sides begin with, bytes.
const WINDOW: i64 = 65_535;
/// The greatest a window may become.
const MOST_WINDOW: i64 = (1 << 31) - 1;
/// The largest frame we take and send, bytes.
const FRAME: usize = 16_384;
/// Resets of calls not yet answered that a client may send beyond the answers it got.
const RESETS: u64 = 1024;
/// Header blocks remembered with what they say.
const KNOWN: usize = 4;
/// The longest of them, bytes.
const KNOWN_BLOCK: usize = 512;
const CONTENT_TYPE: (&[u8], &[u8]) = (b"content-type", b"application/grpc");
const STATUS_OK: (&[u8], &[u8]) = (b"grpc-status", b"0");

/// What a connection offers.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Calls at a time.
    pub max_streams: u32,
    /// Bytes of one call that may wait for us.
    pub stream_window: u32,
    /// Bytes of all calls that may wait for us.
    pub connection_window: u32,
    /// Most a call's headers may take, bytes.
    pub max_headers: usize,
}

/// The head of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    pub method: Bytes,
    pub path: Bytes,
    /// All fields, pseudo fields first.
    pub fields: Fields,
}

impl Head {
    fn new(fields: Fields) -> Option<Head> {
        let find = |name: &[u8]| fields.iter().find(|(n, _)| &n[..] == name).map(|(_, value)| value.clone());
        let (method, path) = (find(b":method")?, find(b":path")?);
        let lower = fields.iter().all(|(name, _)| !name.iter().any(u8::is_ascii_uppercase));
        lower.then_some(Head { method, path, fields })
    }

    /// The first field of this name.
    pub fn field(&self, name: &str) -> Option<&Bytes> {
        self.fields.iter().find(|(n, _)| n == name.as_bytes()).map(|(_, value)| value)
    }
}

/// What the client said.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A call begins; with `end` it has no data.
    Request { stream: u32, head: Arc<Head>, end: bool },
    /// Data of a call; `end` with the last, which may be empty. Report it with [`Connection::consumed`].
    Data { stream: u32, data: Bytes, end: bool },
    /// The client gave the call up; the stream is gone.
    Reset { stream: u32 },
}

/// The connection cannot go on; GOAWAY is in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("HTTP/2 {code:?}: {reason}")]
pub struct Fatal {
    pub code: Code,
    pub reason: &'static str,
}

enum Piece {
    Data(Bytes),
    Trailers(Vec<(Bytes, Bytes)>),
    End,
}

struct Stream {
    /// What the client may still send, bytes.
    receive: i64,
    /// Taken by the shell and not yet given back to the client, bytes.
    taken: u32,
    open: bool,
    /// What we may still send, bytes.
    send: i64,
    pending: VecDeque<Piece>,
    /// In `waiting`.
    queued: bool,
    /// Its answer has begun.
    begun: bool,
}

/// What our header blocks may put into the client's table.
#[derive(Default)]
struct Table {
    forbidden: bool,
    /// The client must be told that its table is empty now.
    tell: bool,
    entries: usize,
    content_type: Option<usize>,
    status_ok: Option<usize>,
}

impl Table {
    /// Writes one of the two fields every unary call has.
    fn put(&mut self, out: &mut BytesMut, field: (&[u8], &[u8])) {
        if self.forbidden {
            return hpack::put_plain(out, field.0, field.1);
        }
        let place = if field == CONTENT_TYPE { &mut self.content_type } else { &mut self.status_ok };
        match *place {
            Some(at) => hpack::put_index(out, hpack::STATIC_LENGTH + self.entries - at),
            None => {
                *place = Some(self.entries);
                self.entries += 1;
                hpack::put_indexing(out, field.0, field.1);
            }
        }
    }
}

struct KnownBlock {
    block: Bytes,
    generation: u64,
    head: Arc<Head>,
}

struct OpenBlock {
    stream: u32,
    end: bool,
    block: BytesMut,
}

/// One connection.
pub struct Connection {
    config: Config,
    greeted: bool,
    decoder: Decoder,
    known: VecDeque<KnownBlock>,
    block: Option<OpenBlock>,
    streams: BTreeMap<u32, Stream>,
    last: u32,
    receive: i64,
    taken: u32,
    send: i64,
    peer_window: i64,
    table: Table,
    waiting: VecDeque<u32>,
    answered: u64,
    resets: u64,
    leaving: bool,
    sent: Vec<(u32, usize)>,
    /// To be written to the socket.
    pub out: BytesMut,
}

impl Connection {
    /// A connection whose client has said nothing yet; `out` begins with our settings.
    pub fn new(config: Config) -> Connection {
        let mut out = BytesMut::with_capacity(8 * 1024);
        put_head(&mut out, 18, Kind::Settings, 0, 0);
        put_setting(&mut out, frame::MAX_CONCURRENT_STREAMS, config.max_streams);
        put_setting(&mut out, frame::INITIAL_WINDOW_SIZE, config.stream_window);
        put_setting(
            &mut out,
            frame::MAX_HEADER_LIST_SIZE,
            u32::try_from(config.max_headers).unwrap_or(u32::MAX),
        );
        let more = config.connection_window.saturating_sub(WINDOW as u32);
        if more > 0 {
            put_head(&mut out, 4, Kind::WindowUpdate, 0, 0);
            out.put_u32(more);
        }
        Connection {
            config,
            greeted: false,
            decoder: Decoder::new(config.max_headers),
            known: VecDeque::new(),
            block: None,
            streams: BTreeMap::new(),
            last: 0,
            receive: WINDOW + i64::from(more),
            taken: 0,
            send: WINDOW,
            peer_window: WINDOW,
            table: Table::default(),
            waiting: VecDeque::new(),
            answered: 0,
            resets: 0,
            leaving: false,
            sent: Vec::new(),
            out,
        }
    }

    /// No call is under way.
    pub fn is_idle(&self) -> bool {
        self.streams.is_empty()
    }

    /// One side has said that it opens no more calls.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Whether the call is under way.
    pub fn is_open(&self, stream: u32) -> bool {
        self.streams.contains_key(&stream)
    }

    /// Tells the client to open no more calls here.
    pub fn leave(&mut self) {
        if !self.leaving {
            self.leaving = true;
            self.go_away(Code::No);
        }
    }

    /// Asks whether the client is still there.
    pub fn ping(&mut self) {
        put_head(&mut self.out, 8, Kind::Ping, 0, 0);
        self.out.put_u64(0);
    }

    fn go_away(&mut self, code: Code) {
        put_head(&mut self.out, 8, Kind::GoAway, 0, 0);
        self.out.put_u32(self.last);
        self.out.put_u32(code as u32);
    }

    fn fatal<T>(&mut self, code: Code, reason: &'static str) -> Result<T, Fatal> {
        self.go_away(code);
        Err(Fatal { code, reason })
    }

    /// Takes what has come, as far as it is whole.
    ///
    /// # Errors
    /// The client broke the protocol; write `out` and close.
    pub fn receive(&mut self, input: &mut BytesMut, events: &mut Vec<Event>) -> Result<(), Fatal> {
        if !self.greeted {
            let seen = input.len().min(PREFACE.len());
            if input[..seen] != PREFACE[..seen] {
                return self.fatal(Code::Protocol, "the connection does not begin as HTTP/2");
            }
            if seen < PREFACE.len() {
                return Ok(());
            }
            input.advance(PREFACE.len());
            self.greeted = true;
        }
        while let Some(head) = FrameHead::read(input) {
            if head.length > FRAME {
                return self.fatal(Code::FrameSize, "a frame is larger than offered");
            }
            let end = HEAD + head.length;
            if input.len() < end {
                break;
            }
            if head.kind == Kind::Data && self.block.is_none() {
                let mut payload = input.split_to(end);
                payload.advance(HEAD);
                self.data_frame(head, payload.freeze(), events)?;
            } else {
                self.frame(head, &input[HEAD..end], events)?;
                input.advance(end);
            }
        }
        Ok(())
    }

    fn frame(&mut self, head: FrameHead, payload: &[u8], events: &mut Vec<Event>) -> Result<(), Fatal> {
        if self.block.is_some() != (head.kind == Kind::Continuation) {
            return self
                .fatal(Code::Protocol, "a header block is interrupted, or continued without a beginning");
        }
        match head.kind {
            Kind::Headers => self.headers_frame(head, payload, events),
            Kind::Continuation => self.continuation(head, payload, events),
            Kind::Reset => self.reset_frame(head, payload, events),
            Kind::Settings => self.settings_frame(head, payload),
            Kind::Ping => self.ping_frame(head, payload),
            Kind::WindowUpdate => self.window_frame(head, payload, events),
            Kind::GoAway => {
                self.leaving = true;
                Ok(())
            }
            Kind::PushPromise => self.fatal(Code::Protocol, "a client cannot push"),
            Kind::Data | Kind::Priority | Kind::Other(_) => Ok(()),
        }
    }

    fn data_frame(&mut self, head: FrameHead, payload: Bytes, events: &mut Vec<Event>) -> Result<(), Fatal> {
        if head.stream == 0 || head.stream > self.last {
            return self.fatal(Code::Protocol, "data of a call that was never opened");
        }
        let whole = payload.len();
        let Some(data) = unpadded(head, payload) else {
            return self.fatal(Code::Protocol, "more padding than data");
        };
        self.receive -= whole as i64;
        if self.receive < 0 {
            return self.fatal(Code::FlowControl, "more data than the connection's window");
        }
        let end = head.has(FLAG_END_STREAM);
        match self.streams.get_mut(&head.stream) {
            Some(stream) if stream.open => {
                stream.receive -= whole as i64;
                if stream.receive < 0 {
                    self.give_back(whole);
                    self.reset(head.stream, Code::FlowControl);
                    events.push(Event::Reset { stream: head.stream });
                    return Ok(());
                }
                stream.open = !end;
                let padding = whole - data.len();
                if padding > 0 {
                    self.consumed(head.stream, padding);
                }
                events.push(Event::Data { stream: head.stream, data, end });
            }
            Some(_) => {
                self.give_back(whole);
                self.reset(head.stream, Code::StreamClosed);
                events.push(Event::Reset { stream: head.stream });
            }
            // A call that is over; the data was under way.
            None => self.give_back(whole),
        }
        Ok(())
    }

    fn headers_frame(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), Fatal> {
        if head.stream.is_multiple_of(2) {
            return self.fatal(Code::Protocol, "a client's calls have odd numbers");
        }
        let padded = if head.has(FLAG_PADDED) {
            payload
                .split_first()
                .and_then(|(pad, rest)| rest.len().checked_sub(usize::from(*pad)).map(|n| &rest[..n]))
        } else {
            Some(payload)
        };
        let block = match padded {
            Some(block) if head.has(FLAG_PRIORITY) => block.get(5..),
            block => block,
        };
        let Some(block) = block else {
            return self.fatal(Code::Protocol, "more padding than headers");
        };
        let end = head.has(FLAG_END_STREAM);
        if head.has(FLAG_END_HEADERS) {
            return self.headers(head.stream, end, block, events);
        }
        self.block = Some(OpenBlock { stream: head.stream, end, block: BytesMut::from(block) });
        Ok(())
    }

    fn continuation(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), Fatal> {
        let Some(mut open) = self.block.take().filter(|open| open.stream == head.stream) else {
            return self.fatal(Code::Protocol, "another call's header block is continued");
        };
        if payload.is_empty() || open.block.len() + payload.len() > self.config.max_headers {
            return self.fatal(Code::EnhanceYourCalm, "a header block is too large");
        }
        open.block.put_slice(payload);
        if head.has(FLAG_END_HEADERS) {
            return self.headers(open.stream, open.end, &open.block, events);
        }
        self.block = Some(open);
        Ok(())
    }

    /// What a block says; `None` inside: not a request.
    fn decode(&mut self, block: &[u8]) -> Result<Option<Arc<Head>>, Fatal> {
        let generation = self.decoder.generation();
        let same = |known: &&KnownBlock| known.generation == generation && known.block == block;
        if let Some(known) = self.known.iter().find(same) {
            return Ok(Some(known.head.clone()));
        }
        let Ok(fields) = self.decoder.decode(block) else {
            return self.fatal(Code::Compression, "a header block does not decode");
        };
        let head = Head::new(fields).map(Arc::new);
        // A block that left the table as it was says the same the next time.
        let lasting = self.decoder.generation() == generation && block.len() <= KNOWN_BLOCK;
        if let Some(head) = head.as_ref().filter(|_| lasting) {
            if self.known.len() == KNOWN {
                self.known.pop_front();
            }
            let (block, head) = (Bytes::copy_from_slice(block), head.clone());
            self.known.push_back(KnownBlock { block, generation, head });
        }
        Ok(head)
    }

    fn headers(&mut self, id: u32, end: bool, block: &[u8], events: &mut Vec<Event>) -> Result<(), Fatal> {
        let head = self.decode(block)?;
        if let Some(stream) = self.streams.get_mut(&id) {
            // Trailers: nothing is made of them but that the call's data is over.
            if !end || !stream.open {
                self.reset(id, Code::Protocol);
                events.push(Event::Reset { stream: id });
                return Ok(());
            }
            stream.open = false;
            events.push(Event::Data { stream: id, data: Bytes::new(), end: true });
            return Ok(());
        }
        if id <= self.last {
            // Trailers of a call that is over already.
            return Ok(());
        }
        self.last = id;
        let Some(head) = head else {
            self.put_reset(id, Code::Protocol);
            return Ok(());
        };
        if self.leaving || self.streams.len() >= self.config.max_streams as usize {
            self.put_reset(id, Code::Refused);
            return Ok(());
        }
        let stream = Stream {
            receive: i64::from(self.config.stream_window),
            taken: 0,
            open: !end,
            send: self.peer_window,
            pending: VecDeque::new(),
            queued: false,
            begun: false,
        };
        self.streams.insert(id, stream);
        events.push(Event::Request { stream: id, head, end });
        Ok(())
    }

    fn reset_frame(&mut self, head: FrameHead, payload: &[u8], events: &mut Vec<Event>) -> Result<(), Fatal> {
        if payload.len() != 4 {
            return self.fatal(Code::FrameSize, "a reset has four bytes");
        }
        if head.stream == 0 || head.stream > self.last {
            return self.fatal(Code::Protocol, "a reset of a call that was never opened");
        }
        if let Some(stream) = self.streams.remove(&head.stream) {
            events.push(Event::Reset { stream: head.stream });
            // A stream that is being answered ends so when the client has had enough.
            self.resets += u64::from(!stream.begun);
            if self.resets > RESETS + self.answered {
                return self.fatal(Code::EnhanceYourCalm, "too many calls are given up at once");
            }
        }
        Ok(())
    }

    fn settings_frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream != 0 {
            return self.fatal(Code::Protocol, "settings of a call");
        }
        if head.has(FLAG_ACK) {
            return Ok(());
        }
        if !payload.len().is_multiple_of(6) {
            return self.fatal(Code::FrameSize, "a setting has six bytes");
        }
        for setting in payload.chunks_exact(6) {
            let name = u16::from_be_bytes([setting[0], setting[1]]);
            let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
            match name {
                frame::HEADER_TABLE_SIZE if value < 4096 && !self.table.forbidden => {
                    self.table = Table { forbidden: true, tell: true, ..Table::default() };
                }
                frame::ENABLE_PUSH if value > 1 => return self.fatal(Code::Protocol, "push is 0 or 1"),
                frame::INITIAL_WINDOW_SIZE => self.new_window(i64::from(value))?,
                frame::MAX_FRAME_SIZE if (value as usize) < FRAME => {
                    return self.fatal(Code::Protocol, "frames cannot be that small");
                }
                _ => {}
            }
        }
        put_head(&mut self.out, 0, Kind::Settings, FLAG_ACK, 0);
        Ok(())
    }

    fn new_window(&mut self, window: i64) -> Result<(), Fatal> {
        if window > MOST_WINDOW {
            return self.fatal(Code::FlowControl, "a window is too large");
        }
        let change = window - self.peer_window;
        self.peer_window = window;
        let mut over = false;
        for (id, stream) in &mut self.streams {
            stream.send += change;
            over |= stream.send > MOST_WINDOW;
            if !stream.pending.is_empty() && !stream.queued {
                stream.queued = true;
                self.waiting.push_back(*id);
            }
        }
        if over { self.fatal(Code::FlowControl, "a window is too large") } else { Ok(()) }
    }

    fn ping_frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        if payload.len() != 8 {
            return self.fatal(Code::FrameSize, "a ping has eight bytes");
        }
        if !head.has(FLAG_ACK) {
            put_head(&mut self.out, 8, Kind::Ping, FLAG_ACK, 0);
            self.out.put_slice(payload);
        }
        Ok(())
    }

    fn window_frame(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), Fatal> {
        let more = match frame::number(payload, 0) {
            Some(more) if payload.len() == 4 => i64::from(more & 0x7fff_ffff),
            _ => return self.fatal(Code::FrameSize, "a window update has four bytes"),
        };
        if head.stream == 0 {
            self.send += more;
            if more == 0 || self.send > MOST_WINDOW {
                return self.fatal(Code::FlowControl, "the connection's window cannot become that");
            }
            return Ok(());
        }
        if head.stream > self.last {
            return self.fatal(Code::Protocol, "a window of a call that was never opened");
        }
        let Some(stream) = self.streams.get_mut(&head.stream) else { return Ok(()) };
        stream.send += more;
        if more == 0 || stream.send > MOST_WINDOW {
            self.reset(head.stream, Code::FlowControl);
            events.push(Event::Reset { stream: head.stream });
        } else if !stream.pending.is_empty() && !stream.queued {
            stream.queued = true;
            self.waiting.push_back(head.stream);
        }
        Ok(())
    }

    /// Bytes of the connection's window that the client may use again.
    fn give_back(&mut self, bytes: usize) {
        self.taken += bytes as u32;
        if self.taken >= self.config.connection_window / 2 {
            put_head(&mut self.out, 4, Kind::WindowUpdate, 0, 0);
            self.out.put_u32(self.taken);
            self.receive += i64::from(self.taken);
            self.taken = 0;
        }
    }

    /// The shell has made use of data: the client may send as much again.
    pub fn consumed(&mut self, stream: u32, bytes: usize) {
        self.give_back(bytes);
        let half = self.config.stream_window / 2;
        let Some(open) = self.streams.get_mut(&stream).filter(|stream| stream.open) else { return };
        open.taken += bytes as u32;
        if open.taken >= half {
            put_head(&mut self.out, 4, Kind::WindowUpdate, 0, stream);
            self.out.put_u32(open.taken);
            open.receive += i64::from(open.taken);
            open.taken = 0;
        }
    }

    fn put_reset(&mut self, stream: u32, code: Code) {
        put_head(&mut self.out, 4, Kind::Reset, 0, stream);
        self.out.put_u32(code as u32);
    }

    /// Ends a call without an answer.
    pub fn reset(&mut self, stream: u32, code: Code) {
        if self.streams.remove(&stream).is_some() {
            self.put_reset(stream, code);
        }
    }

    /// Writes a header block as one HEADERS frame (and CONTINUATIONs, should it be large).
    fn put_block(&mut self, stream: u32, flags: u8, write: impl FnOnce(&mut Table, &mut BytesMut)) {
        let at = self.out.len();
        put_head(&mut self.out, 0, Kind::Headers, 0, stream);
        if std::mem::take(&mut self.table.tell) {
            self.out.put_u8(0x20);
        }
        write(&mut self.table, &mut self.out);
        let length = self.out.len() - at - HEAD;
        if length <= FRAME {
            patch(&mut self.out, at, length, flags | FLAG_END_HEADERS);
            return;
        }
        let block = self.out.split_off(at).split_off(HEAD);
        let mut pieces = block.chunks(FRAME).peekable();
        let mut kind = Kind::Headers;
        while let Some(piece) = pieces.next() {
            let first = if kind == Kind::Headers { flags } else { 0 };
            let last = if pieces.peek().is_none() { FLAG_END_HEADERS } else { 0 };
            put_head(&mut self.out, piece.len(), kind, first | last, stream);
            self.out.put_slice(piece);
            kind = Kind::Continuation;
        }
    }

    /// The head of an answer; with `end` it is all of it. Nothing happens when the call is over.
    pub fn head<'a>(
        &mut self,
        stream: u32,
        status: u16,
        fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        end: bool,
    ) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        open.begun = true;
        let flags = if end { FLAG_END_STREAM } else { 0 };
        self.put_block(stream, flags, |table, out| {
            hpack::put_status(out, status);
            for field in fields {
                if field == CONTENT_TYPE {
                    table.put(out, field);
                } else {
                    hpack::put_plain(out, field.0, field.1);
                }
            }
        });
        if end {
            self.answered(stream);
        }
    }

    /// The answer is whole: the stream is over; what the client still sends of its request is not wanted.
    fn answered(&mut self, id: u32) {
        self.answered += 1;
        if let Some(stream) = self.streams.remove(&id)
            && stream.open
        {
            self.put_reset(id, Code::No);
        }
    }

    fn push(&mut self, id: u32, piece: Piece) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.pending.push_back(piece);
        if !stream.queued {
            stream.queued = true;
            self.waiting.push_back(id);
        }
    }

    /// Data of an answer, sent as the client's windows allow: see [`Connection::pump`].
    pub fn data(&mut self, stream: u32, data: Bytes) {
        if !data.is_empty() {
            self.push(stream, Piece::Data(data));
        }
    }

    /// The end of an answer, with its trailers.
    pub fn trailers(&mut self, stream: u32, fields: Vec<(Bytes, Bytes)>) {
        self.push(stream, Piece::Trailers(fields));
    }

    /// The end of an answer without trailers.
    pub fn end(&mut self, stream: u32) {
        self.push(stream, Piece::End);
    }

    /// A whole gRPC answer of one message; `encode` appends `length` bytes.
    pub fn unary(&mut self, stream: u32, length: usize, encode: impl FnOnce(&mut BytesMut)) {
        let framed = length + 5;
        let Some(state) = self.streams.get(&stream) else { return };
        let direct = framed <= FRAME
            && framed as i64 <= state.send.min(self.send)
            && state.pending.is_empty()
            && self.waiting.is_empty();
        self.head(stream, 200, [CONTENT_TYPE], false);
        let prefix = |out: &mut BytesMut| {
            out.put_u8(0);
            out.put_u32(length as u32);
        };
        if direct {
            self.send -= framed as i64;
            put_head(&mut self.out, framed, Kind::Data, 0, stream);
            prefix(&mut self.out);
            encode(&mut self.out);
            self.put_block(stream, FLAG_END_STREAM, |table, out| table.put(out, STATUS_OK));
            self.answered(stream);
        } else {
            let mut message = BytesMut::with_capacity(framed);
            prefix(&mut message);
            encode(&mut message);
            self.data(stream, message.freeze());
            self.trailers(stream, vec![(Bytes::from_static(STATUS_OK.0), Bytes::from_static(STATUS_OK.1))]);
        }
    }

    /// Moves waiting data to `out` in turn, as windows allow, while `out` is below `most` bytes.
    pub fn pump(&mut self, most: usize) {
        let mut turns = self.waiting.len();
        while turns > 0 && self.out.len() < most {
            turns -= 1;
            let Some(id) = self.waiting.pop_front() else { return };
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            match stream.pending.front_mut() {
                Some(Piece::Data(data)) => {
                    let window = stream.send.min(self.send).clamp(0, FRAME as i64) as usize;
                    if window == 0 {
                        if stream.send > 0 {
                            // The connection's window is what lacks.
                            self.waiting.push_front(id);
                            return;
                        }
                        stream.queued = false;
                        continue;
                    }
                    let piece = data.split_to(data.len().min(window));
                    if data.is_empty() {
                        stream.pending.pop_front();
                    }
                    stream.send -= piece.len() as i64;
                    self.send -= piece.len() as i64;
                    put_head(&mut self.out, piece.len(), Kind::Data, 0, id);
                    self.out.put_slice(&piece);
                    self.sent.push((id, piece.len()));
                }
                Some(Piece::Trailers(fields)) => {
                    let fields = std::mem::take(fields);
                    self.put_block(id, FLAG_END_STREAM, |table, out| {
                        for (name, value) in &fields {
                            let field = (&name[..], &value[..]);
                            if field == STATUS_OK {
                                table.put(out, field)
                            } else {
                                hpack::put_plain(out, field.0, field.1)
                            }
                        }
                    });
                    self.answered(id);
                    continue;
                }
                Some(Piece::End) => {
                    put_head(&mut self.out, 0, Kind::Data, FLAG_END_STREAM, id);
                    self.answered(id);
                    continue;
                }
                None => {
                    stream.queued = false;
                    continue;
                }
            }
            self.waiting.push_back(id);
            turns += 1;
        }
    }

    /// How much data of which call has been moved to `out` since the last look.
    pub fn take_sent(&mut self) -> Vec<(u32, usize)> {
        std::mem::take(&mut self.sent)
    }
}

fn patch(out: &mut BytesMut, at: usize, length: usize, flags: u8) {
    let bytes = (length as u32).to_be_bytes();
    out[at..at + 3].copy_from_slice(&bytes[1..]);
    out[at + 4] = flags;
}

fn unpadded(head: FrameHead, mut payload: Bytes) -> Option<Bytes> {
    if !head.has(FLAG_PADDED) {
        return Some(payload);
    }
    if payload.is_empty() {
        return None;
    }
    let padding = usize::from(payload.get_u8());
    let length = payload.len().checked_sub(padding)?;
    payload.truncate(length);
    Some(payload)
}
