//! gRPC calls in closed loops, unary ones and streams, as cheap as they can be: what the load generator saves, the servers get, since both
//! share the machine. One task a connection keeps a number of calls under way; no task, channel or timer a call.

use std::time::Instant;

use anyhow::{Context, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use keelson_store_http2::raw::{
    FLAG_ACK, FLAG_END_HEADERS, FLAG_END_STREAM, FrameHead, HEAD, Kind, put_head,
};
use keelson_store_http2::{Decoder, PREFACE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const INITIAL_WINDOW_SIZE: u16 = 4;
const WINDOW: i64 = 65_535;
/// The largest frame a server must take, bytes.
const FRAME: usize = 16_384;
/// What the server may send before we say more, bytes.
const OURS: u32 = 1 << 30;

/// One connection's part of a load.
pub struct Caller<F> {
    /// `host:port`.
    pub address: String,
    /// `/package.Service/Method`.
    pub path: &'static str,
    /// Calls under way at a time.
    pub clients: usize,
    /// The next request's message; `None` when there are no more.
    pub next: F,
}

struct Line {
    decoder: Decoder,
    path: &'static str,
    authority: String,
    out: BytesMut,
    window: i64,
    stream_window: i64,
    stream: u32,
    greeted: bool,
    /// When each call under way began, by (stream - 1) / 2, modulo the length.
    began: Vec<Option<Instant>>,
    received: u32,
    finished: Vec<u64>,
    refused: Option<String>,
    /// Data of streams, when it is wanted.
    heard: Option<Vec<(u32, Bytes)>>,
}

impl<F: FnMut() -> Option<Vec<u8>>> Caller<F> {
    /// Runs to the end; each call's latency in microseconds.
    pub async fn run(mut self) -> anyhow::Result<Vec<u64>> {
        let mut socket = TcpStream::connect(&self.address).await.context(self.address.clone())?;
        socket.set_nodelay(true)?;
        let mut line = Line::new(self.path, self.address.clone());
        let mut input = BytesMut::with_capacity(64 * 1024);
        let mut waiting: Option<Vec<u8>> = None;
        let mut done = false;
        let mut under_way = 0;
        loop {
            while !done && under_way < self.clients {
                let Some(message) = waiting.take().or_else(&mut self.next) else {
                    done = true;
                    break;
                };
                if let Err(message) = line.call(message) {
                    waiting = Some(message);
                    break;
                }
                under_way += 1;
            }
            if done && under_way == 0 {
                return Ok(line.finished);
            }
            socket.write_all(&line.out).await?;
            line.out.clear();
            input.reserve(16 * 1024);
            ensure!(socket.read_buf(&mut input).await? > 0, "{} closed the connection", self.address);
            let before = line.finished.len();
            line.receive(&mut input)?;
            under_way -= line.finished.len() - before;
        }
    }
}

/// Streams of messages both ways, on one connection.
pub struct Streams<F> {
    /// `host:port`.
    pub address: String,
    /// `/package.Service/Method`.
    pub path: &'static str,
    /// What each stream says at first. All that a stream says must fit into the first window.
    pub first: Vec<Vec<Vec<u8>>>,
    /// What a stream, by its number, says to a message.
    pub answer: F,
}

/// What a stream says to a message.
pub enum Say {
    Nothing,
    More(Vec<u8>),
    /// It has had enough; the others go on.
    Enough,
}

impl<F: FnMut(usize, &[u8]) -> anyhow::Result<Say>> Streams<F> {
    /// Runs until every stream has had enough.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut socket = TcpStream::connect(&self.address).await.context(self.address.clone())?;
        socket.set_nodelay(true)?;
        let mut line = Line::new(self.path, self.address.clone());
        let mut pieces = Vec::new();
        let mut partial = vec![BytesMut::new(); self.first.len()];
        let mut left = self.first.len();
        for messages in &self.first {
            let stream = line.open();
            messages.iter().for_each(|message| line.say(stream, message, false));
        }
        let mut input = BytesMut::with_capacity(64 * 1024);
        while left > 0 {
            socket.write_all(&line.out).await?;
            line.out.clear();
            input.reserve(64 * 1024);
            ensure!(socket.read_buf(&mut input).await? > 0, "{} closed the connection", self.address);
            line.heard = Some(std::mem::take(&mut pieces));
            line.receive(&mut input)?;
            pieces = line.heard.take().unwrap_or_default();
            for (stream, piece) in pieces.drain(..) {
                let number = (stream / 2) as usize;
                let partial = &mut partial[number];
                partial.extend_from_slice(&piece);
                while let Some(prefix) = partial.get(..5) {
                    let end = 5 + u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
                    let Some(message) = partial.get(5..end) else { break };
                    match (self.answer)(number, message)? {
                        Say::Nothing => {}
                        Say::More(message) => line.say(stream, &message, false),
                        Say::Enough => left -= 1,
                    }
                    partial.advance(end);
                }
            }
        }
        Ok(())
    }
}

fn literal(out: &mut BytesMut, name: u8, value: &str) {
    // Indexing, with a name of the static table; all texts here are short.
    out.put_u8(0x40 | name);
    out.put_u8(value.len() as u8);
    out.put_slice(value.as_bytes());
}

impl Line {
    fn new(path: &'static str, authority: String) -> Line {
        let mut out = BytesMut::from(&PREFACE[..]);
        put_head(&mut out, 6, Kind::Settings, 0, 0);
        out.put_u16(INITIAL_WINDOW_SIZE);
        out.put_u32(OURS);
        put_head(&mut out, 4, Kind::WindowUpdate, 0, 0);
        out.put_u32(OURS);
        Line {
            decoder: Decoder::new(1 << 20),
            path,
            authority,
            out,
            window: WINDOW,
            stream_window: WINDOW,
            stream: 1,
            greeted: false,
            began: vec![None; 4096],
            received: 0,
            finished: Vec::new(),
            refused: None,
            heard: None,
        }
    }

    /// Begins a call, or gives the message back when the server's window is full.
    fn call(&mut self, message: Vec<u8>) -> Result<(), Vec<u8>> {
        let framed = message.len() + 5;
        if framed as i64 > self.window.min(self.stream_window) {
            return Err(message);
        }
        self.window -= framed as i64;
        let stream = self.open();
        self.say(stream, &message, true);
        let slots = self.began.len();
        self.began[(stream / 2) as usize % slots] = Some(Instant::now());
        Ok(())
    }

    /// Begins a stream.
    fn open(&mut self) -> u32 {
        let mut block = BytesMut::new();
        block.put_slice(&[0x83, 0x86]);
        if self.greeted {
            // Newest entry first: te, content-type, authority, path.
            block.put_slice(&[0xc1, 0xc0, 0xbf, 0xbe]);
        } else {
            self.greeted = true;
            literal(&mut block, 4, self.path);
            literal(&mut block, 1, &self.authority);
            literal(&mut block, 31, "application/grpc");
            block.put_slice(b"\x40\x02te\x08trailers");
        }
        put_head(&mut self.out, block.len(), Kind::Headers, FLAG_END_HEADERS, self.stream);
        self.out.put_slice(&block);
        self.stream += 2;
        self.stream - 2
    }

    /// A message on a stream; `last`: nothing comes after it.
    fn say(&mut self, stream: u32, message: &[u8], last: bool) {
        let mut body = BytesMut::with_capacity(message.len() + 5);
        body.put_u8(0);
        body.put_u32(message.len() as u32);
        body.put_slice(message);
        let mut pieces = body.chunks(FRAME).peekable();
        while let Some(piece) = pieces.next() {
            let end = if last && pieces.peek().is_none() { FLAG_END_STREAM } else { 0 };
            put_head(&mut self.out, piece.len(), Kind::Data, end, stream);
            self.out.put_slice(piece);
        }
    }

    fn receive(&mut self, input: &mut BytesMut) -> anyhow::Result<()> {
        while let Some(head) = FrameHead::read(input) {
            let end = HEAD + head.length;
            if input.len() < end {
                break;
            }
            self.frame(head, &input[HEAD..end])?;
            input.advance(end);
        }
        match self.refused.take() {
            Some(refused) => bail!("a call was refused: {refused}"),
            None => Ok(()),
        }
    }

    fn frame(&mut self, head: FrameHead, payload: &[u8]) -> anyhow::Result<()> {
        match head.kind {
            Kind::Headers => {
                ensure!(head.flags & FLAG_END_HEADERS != 0, "an answer's headers are in several frames");
                let fields = self.decoder.decode(payload)?;
                let status = fields.iter().find(|(name, _)| name == "grpc-status");
                if status.is_some_and(|(_, status)| status != "0") {
                    self.refused = Some(format!("{fields:?}"));
                }
            }
            Kind::Data => {
                if let Some(heard) = &mut self.heard {
                    heard.push((head.stream, Bytes::copy_from_slice(payload)));
                }
                self.received += payload.len() as u32;
                if self.received > OURS / 2 {
                    put_head(&mut self.out, 4, Kind::WindowUpdate, 0, 0);
                    self.out.put_u32(self.received);
                    self.received = 0;
                }
            }
            Kind::Settings if head.flags & FLAG_ACK == 0 => {
                for setting in payload.chunks_exact(6) {
                    if u16::from_be_bytes([setting[0], setting[1]]) == INITIAL_WINDOW_SIZE {
                        self.stream_window =
                            i64::from(u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]));
                    }
                }
                put_head(&mut self.out, 0, Kind::Settings, FLAG_ACK, 0);
            }
            Kind::Ping if head.flags & FLAG_ACK == 0 => {
                put_head(&mut self.out, payload.len(), Kind::Ping, FLAG_ACK, 0);
                self.out.put_slice(payload);
            }
            Kind::WindowUpdate if head.stream == 0 && payload.len() == 4 => {
                self.window +=
                    i64::from(u32::from_be_bytes([payload[0], payload[1], payload[2], payload[3]]));
            }
            Kind::GoAway | Kind::Reset => bail!("the server gave up: {head:?} {payload:?}"),
            _ => {}
        }
        let over = matches!(head.kind, Kind::Headers | Kind::Data) && head.flags & FLAG_END_STREAM != 0;
        if over && self.heard.is_some() {
            bail!("a stream ended");
        }
        if over {
            let slots = self.began.len();
            let began = self.began[(head.stream / 2) as usize % slots].take();
            let began = began.context("an answer of a call that is not under way")?;
            self.finished.push(began.elapsed().as_micros() as u64);
        }
        Ok(())
    }
}
