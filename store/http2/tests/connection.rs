//! One connection, fed with frames as a client would write them.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use keelson_store_http2::raw::{
    FLAG_ACK, FLAG_END_HEADERS, FLAG_END_STREAM, FrameHead, HEAD, Kind, put_head,
};
use keelson_store_http2::{Code, Config, Connection, Decoder, Event, PREFACE};

const CONFIG: Config =
    Config { max_streams: 4, stream_window: 1000, connection_window: 100_000, max_headers: 4096 };

/// Whole frames the server wrote.
type Frames = Vec<(FrameHead, Bytes)>;

struct Client {
    server: Connection,
    out: BytesMut,
    decoder: Decoder,
}

impl Client {
    fn new() -> Client {
        let mut client = Client {
            server: Connection::new(CONFIG),
            out: BytesMut::from(&PREFACE[..]),
            decoder: Decoder::new(1 << 16),
        };
        client.frame(Kind::Settings, 0, 0, &[]);
        client.events();
        client.answers();
        client
    }

    fn frame(&mut self, kind: Kind, flags: u8, stream: u32, payload: &[u8]) {
        put_head(&mut self.out, payload.len(), kind, flags, stream);
        self.out.put_slice(payload);
    }

    /// POST / with a path field.
    fn call(&mut self, stream: u32, end: bool) {
        let flags = FLAG_END_HEADERS | if end { FLAG_END_STREAM } else { 0 };
        self.frame(Kind::Headers, flags, stream, b"\x83\x86\x04\x02/p");
    }

    fn window(&mut self, stream: u32, more: u32) {
        self.frame(Kind::WindowUpdate, 0, stream, &more.to_be_bytes());
    }

    fn try_events(&mut self) -> Result<Vec<Event>, Code> {
        let mut events = Vec::new();
        self.server.receive(&mut self.out, &mut events).map_err(|fatal| fatal.code)?;
        Ok(events)
    }

    fn events(&mut self) -> Vec<Event> {
        self.try_events().expect("the connection goes on")
    }

    fn answers(&mut self) -> Frames {
        self.server.pump(usize::MAX);
        let mut out = std::mem::take(&mut self.server.out).freeze();
        let mut frames = Vec::new();
        while let Some(head) = FrameHead::read(&out) {
            out.advance(HEAD);
            frames.push((head, out.split_to(head.length)));
        }
        assert!(out.is_empty(), "whole frames only");
        frames
    }

    fn fields(&mut self, block: &[u8]) -> Vec<(String, String)> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let fields = self.decoder.decode(block).expect("decodes");
        fields.iter().map(|(name, value)| (text(name), text(value))).collect()
    }
}

fn kinds(frames: &Frames) -> Vec<(Kind, u32)> {
    frames.iter().map(|(head, _)| (head.kind, head.stream)).collect()
}

#[test]
fn a_unary_call_is_answered_in_three_frames_that_shrink_once_the_table_is_filled() {
    let mut client = Client::new();
    let mut lengths = Vec::new();
    for stream in [1, 3] {
        client.call(stream, false);
        client.frame(Kind::Data, FLAG_END_STREAM, stream, b"\0\0\0\0\x02hi");
        let events = client.events();
        let [Event::Request { head, end: false, .. }, Event::Data { data, end: true, .. }] = &events[..]
        else {
            panic!("{events:?}");
        };
        assert_eq!((&head.method[..], &head.path[..], &data[5..]), (&b"POST"[..], &b"/p"[..], &b"hi"[..]));
        client.server.unary(stream, 3, |out| out.put_slice(b"yes"));
        let frames = client.answers();
        assert_eq!(kinds(&frames), [(Kind::Headers, stream), (Kind::Data, stream), (Kind::Headers, stream)]);
        assert_eq!(&frames[1].1[..], b"\0\0\0\0\x03yes");
        let (head, trailers) = (client.fields(&frames[0].1), client.fields(&frames[2].1));
        assert_eq!(head[0], (":status".to_owned(), "200".to_owned()));
        assert_eq!(head[1], ("content-type".to_owned(), "application/grpc".to_owned()));
        assert_eq!(trailers, [("grpc-status".to_owned(), "0".to_owned())]);
        lengths.push(frames[0].1.len() + frames[2].1.len());
        assert!(client.server.is_idle());
    }
    assert_eq!(lengths[1], 3, "three references to tables");
}

#[test]
fn a_client_without_a_table_gets_whole_fields() {
    let mut client = Client::new();
    client.frame(Kind::Settings, 0, 0, b"\0\x01\0\0\0\0");
    for stream in [1, 3] {
        client.call(stream, true);
        client.events();
        client.server.unary(stream, 0, |_| {});
        let frames = client.answers();
        let blocks: Vec<Bytes> =
            frames.iter().filter(|(head, _)| head.kind == Kind::Headers).map(|(_, b)| b.clone()).collect();
        for block in blocks {
            assert!(!client.fields(&block).is_empty());
            assert!(block.iter().all(|byte| *byte < 0xbe), "no reference to the dynamic table");
        }
    }
}

#[test]
fn answers_wait_for_both_windows_and_calls_take_turns() {
    let mut client = Client::new();
    // A window of 10 bytes for each call.
    client.frame(Kind::Settings, 0, 0, b"\0\x04\0\0\0\x0a");
    for stream in [1, 3] {
        client.call(stream, true);
    }
    client.events();
    for stream in [1, 3] {
        client.server.head(stream, 200, [], false);
        client.server.data(stream, Bytes::from(vec![b'x'; 25]));
        client.server.end(stream);
    }
    let frames = client.answers();
    let data = |frames: &Frames| -> Vec<(u32, usize)> {
        let data = frames.iter().filter(|(head, _)| head.kind == Kind::Data);
        data.map(|(head, data)| (head.stream, data.len())).collect()
    };
    assert_eq!(data(&frames), [(1, 10), (3, 10)]);
    assert_eq!(client.server.take_sent(), [(1, 10), (3, 10)]);
    client.window(3, 100);
    client.events();
    assert_eq!(data(&client.answers()), [(3, 15), (3, 0)], "the other waits");
    // Larger windows for all calls, the one under way included.
    client.frame(Kind::Settings, 0, 0, b"\0\x04\0\0\0\x64");
    client.events();
    assert_eq!(data(&client.answers()), [(1, 15), (1, 0)]);
    assert!(client.server.is_idle());
}

#[test]
fn used_data_gives_the_window_back_and_more_than_the_window_ends_the_call() {
    let mut client = Client::new();
    client.call(1, false);
    client.frame(Kind::Data, 0, 1, &[0; 600]);
    assert_eq!(client.events().len(), 2);
    client.server.consumed(1, 600);
    let frames = client.answers();
    assert_eq!(kinds(&frames), [(Kind::WindowUpdate, 1)]);
    assert_eq!(&frames[0].1[..], 600u32.to_be_bytes());
    client.frame(Kind::Data, 0, 1, &[0; 600]);
    client.frame(Kind::Data, 0, 1, &[0; 600]);
    let events = client.events();
    assert!(matches!(&events[..], [Event::Data { .. }, Event::Reset { stream: 1 }]), "{events:?}");
    assert_eq!(kinds(&client.answers()), [(Kind::Reset, 1)]);
}

#[test]
fn headers_may_come_in_pieces_and_with_padding() {
    let mut client = Client::new();
    client.frame(Kind::Headers, FLAG_END_STREAM, 1, b"\x83\x86");
    client.frame(Kind::Continuation, 0, 1, b"\x04\x02");
    client.frame(Kind::Continuation, FLAG_END_HEADERS, 1, b"/p");
    // Two bytes of padding, and a priority.
    client.frame(Kind::Headers, FLAG_END_HEADERS | 0x8 | 0x20, 3, b"\x02\0\0\0\0\x10\x83\x86\x04\x02/q\0\0");
    client.frame(Kind::Data, FLAG_END_STREAM | 0x8, 3, b"\x03ok\0\0\0");
    let events = client.events();
    let [
        Event::Request { head: first, end: true, .. },
        Event::Request { head: second, .. },
        Event::Data { data, .. },
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!((&first.path[..], &second.path[..], &data[..]), (&b"/p"[..], &b"/q"[..], &b"ok"[..]));
}

#[test]
fn broken_clients_are_cut_off_with_the_reason() {
    type Break = fn(&mut Client);
    let cases: [(Code, Break); 8] = [
        (Code::Protocol, |client| client.frame(Kind::Headers, FLAG_END_HEADERS, 2, b"\x83")),
        (Code::Protocol, |client| client.frame(Kind::Data, 0, 9, b"x")),
        (Code::Protocol, |client| client.frame(Kind::PushPromise, 0, 1, b"")),
        (Code::Protocol, |client| {
            client.frame(Kind::Headers, 0, 1, b"\x83");
            client.frame(Kind::Ping, 0, 0, &[0; 8]);
        }),
        (Code::Compression, |client| {
            client.frame(Kind::Headers, FLAG_END_HEADERS, 1, b"\xff\xff\xff\xff\xff")
        }),
        (Code::FrameSize, |client| client.frame(Kind::Ping, 0, 0, b"short")),
        (Code::FlowControl, |client| client.window(0, 0x7fff_ffff)),
        (Code::EnhanceYourCalm, |client| {
            client.frame(Kind::Headers, 0, 1, b"\x83");
            for _ in 0..100 {
                client.frame(Kind::Continuation, 0, 1, &[0; 1000]);
            }
        }),
    ];
    for (code, breaks) in cases {
        let mut client = Client::new();
        breaks(&mut client);
        assert_eq!(client.try_events(), Err(code));
        assert_eq!(client.answers().last().map(|(head, _)| head.kind), Some(Kind::GoAway));
    }
    let mut server = Connection::new(CONFIG);
    let mut input = BytesMut::from(&b"GET / HTTP/1.1\r\n"[..]);
    assert!(server.receive(&mut input, &mut Vec::new()).is_err());
}

#[test]
fn more_calls_than_allowed_are_refused_and_endless_resets_end_the_connection() {
    let mut client = Client::new();
    for stream in [1, 3, 5, 7, 9] {
        client.call(stream, false);
    }
    assert_eq!(client.events().len(), 4);
    let frames = client.answers();
    assert_eq!(kinds(&frames), [(Kind::Reset, 9)]);
    assert_eq!(&frames[0].1[..], (Code::Refused as u32).to_be_bytes());
    let mut client = Client::new();
    let mut outcome = Ok(Vec::new());
    for number in 0..3000 {
        client.call(2 * number + 1, false);
        client.frame(Kind::Reset, 0, 2 * number + 1, &8u32.to_be_bytes());
        outcome = client.try_events();
        if outcome.is_err() {
            break;
        }
    }
    assert_eq!(outcome, Err(Code::EnhanceYourCalm));
}

#[test]
fn pings_are_answered_and_leaving_lets_calls_finish() {
    let mut client = Client::new();
    client.frame(Kind::Ping, 0, 0, b"are you?");
    client.call(1, true);
    client.events();
    client.server.leave();
    let frames = client.answers();
    assert_eq!(kinds(&frames), [(Kind::Ping, 0), (Kind::GoAway, 0)]);
    assert_eq!((frames[0].0.flags, &frames[0].1[..]), (FLAG_ACK, &b"are you?"[..]));
    client.call(3, true);
    assert!(client.events().is_empty(), "no new call");
    client.server.unary(1, 0, |_| {});
    assert_eq!(client.answers().len(), 4, "a refusal, and the answer");
    assert!(client.server.is_idle() && client.server.is_leaving());
}
