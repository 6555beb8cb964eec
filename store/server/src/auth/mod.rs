//! Who asks: tokens and passwords. What a user may do is the core's to say.
//!
//! A simple token is given through the log, so that every member knows it; only its digest is logged, and members keep it
//! in memory, so it is void after a restart. A JWT says itself whose it is, and is void once users or roles change.
//!
//! Hazard: a password costs tens of milliseconds of a processor on purpose. It is hashed on threads of its own, a
//! bounded number at a time.

mod caller;
mod jwt;
mod passwords;
mod tokens;

pub(crate) use caller::{Caller, ClientName, Credential};
pub(crate) use passwords::Passwords;
pub(crate) use tokens::{Tokens, draw};
