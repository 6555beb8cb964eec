//! HTTP/2 (RFC 9113) and its header compression (RFC 7541), for servers of many small calls: no IO, no clock, no tasks.
//!
//! ```text
//! bytes from the socket ─► Connection::receive ─► Event*        (a request, its data, its end)
//! answers ─► Connection::{head, data, trailers, unary} ─► Connection::out ─► bytes to the socket
//! ```
//!
//! Why our own: a gRPC call of a few hundred bytes spent more time in general-purpose HTTP/2 than in the store (see the
//! decision "a gRPC door of our own"). What makes it cheap: a header block equal to an earlier one is not decoded again,
//! all frames of one read are answered by one write, and a unary answer is appended to the output as it is.
//!
//! Duties of the shell: write `out` before reading more once it is large; after an error write `out` (it ends with
//! GOAWAY) and close.

mod connection;
mod frame;
mod hpack;

pub use connection::{Config, Connection, Event, Fatal, Head};
pub use frame::{Code, PREFACE};
pub use hpack::{Decoder, Fields};

pub mod raw {
    //! The frames themselves, for clients and tests.
    pub use crate::frame::{FLAG_ACK, FLAG_END_HEADERS, FLAG_END_STREAM, FrameHead, HEAD, Kind, put_head};
}
