//! Tokens: given, looked up, lost. `--auth-token` says of which kind.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use keelson_store_core::TokenChange;
use rand::Rng;
use sha2::{Digest, Sha256};

use super::jwt::Jwt;

/// Letters of a simple token before its dot.
const LENGTH: usize = 16;
/// Above so many kept tokens those whose time is over are looked for when one is given.
const SWEEP: usize = 1024;

/// Where tokens come from.
pub(crate) enum Tokens {
    /// Random, known to every member through the log, void after a time without use.
    Simple(Simple),
    /// Signed; nobody keeps them.
    Jwt(Box<Jwt>),
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Whose it is.
    pub user: String,
    /// The auth revision it was given under; `None` for a token that follows every change.
    pub revision: Option<u64>,
}

impl Tokens {
    /// `kind` as in `--auth-token`: `simple`, or `jwt,sign-method=…,pub-key=…,priv-key=…,ttl=…`.
    ///
    /// # Errors
    /// Another kind; options or key files that do not fit.
    pub fn new(kind: &str, ttl: Duration) -> Result<Tokens> {
        let mut parts = kind.split(',');
        match parts.next() {
            Some("" | "simple") => Ok(Tokens::Simple(Simple::new(ttl))),
            Some("jwt") => Ok(Tokens::Jwt(Box::new(Jwt::new(parts)?))),
            _ => bail!("unknown token type {kind:?} of --auth-token: expected simple or jwt,sign-method=…"),
        }
    }

    /// Follows what was applied.
    pub fn follow(&self, changes: Vec<TokenChange>) {
        if let Tokens::Simple(simple) = self {
            simple.follow(changes);
        }
    }
}

/// A new token's random part, and the digest that is logged.
pub(crate) fn draw() -> (String, [u8; 32]) {
    let mut rng = rand::rng();
    let letter = |_| {
        char::from(
            *b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                .get(rng.random_range(0..52))
                .unwrap_or(&b'x'),
        )
    };
    let secret: String = (0..LENGTH).map(letter).collect();
    let digest = digest(&secret);
    (secret, digest)
}

fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

struct Given {
    user: Arc<str>,
    until: Instant,
}

/// Tokens given, by digest. A lookup renews them.
pub(crate) struct Simple {
    ttl: Duration,
    given: Mutex<HashMap<[u8; 32], Given>>,
}

impl Simple {
    fn new(ttl: Duration) -> Simple {
        Simple { ttl, given: Mutex::default() }
    }

    fn follow(&self, changes: Vec<TokenChange>) {
        let now = Instant::now();
        let mut given = self.given.lock().expect("no panic while locked");
        for change in changes {
            match change {
                TokenChange::Given { user, digest } => {
                    if given.len() >= SWEEP {
                        given.retain(|_, token| token.until > now);
                    }
                    given.insert(digest, Given { user: user.into(), until: now + self.ttl });
                }
                TokenChange::LostBy { user } => given.retain(|_, token| *token.user != *user),
                TokenChange::AllLost => given.clear(),
            }
        }
    }

    /// The log position a token says it was given at, and its random part.
    pub fn split(token: &str) -> Option<(&str, u64)> {
        let (secret, index) = token.rsplit_once('.')?;
        Some((secret, index.parse().ok()?))
    }

    /// Whose token it is.
    pub fn look_up(&self, secret: &str) -> Option<String> {
        let now = Instant::now();
        let digest = digest(secret);
        let mut given = self.given.lock().expect("no panic while locked");
        let token = given.get_mut(&digest)?;
        if token.until <= now {
            given.remove(&digest);
            return None;
        }
        token.until = now + self.ttl;
        Some(token.user.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_its_user_s_until_it_is_lost_or_its_time_is_over() {
        let tokens = Simple::new(Duration::from_secs(300));
        let (secret, digest) = draw();
        assert_eq!(secret.len(), LENGTH);
        assert_eq!(tokens.look_up(&secret), None);
        let give = |user: &str| vec![TokenChange::Given { user: user.to_owned(), digest }];
        tokens.follow(give("u"));
        assert_eq!(tokens.look_up(&secret).as_deref(), Some("u"));
        tokens.follow(vec![TokenChange::LostBy { user: "v".to_owned() }]);
        assert_eq!(tokens.look_up(&secret).as_deref(), Some("u"));
        tokens.follow(vec![TokenChange::LostBy { user: "u".to_owned() }]);
        assert_eq!(tokens.look_up(&secret), None);
        tokens.follow(give("u"));
        tokens.follow(vec![TokenChange::AllLost]);
        assert_eq!(tokens.look_up(&secret), None);
        let short = Simple::new(Duration::ZERO);
        short.follow(give("u"));
        assert_eq!(short.look_up(&secret), None);
    }

    #[test]
    fn kinds_of_tokens() {
        assert!(Tokens::new("simple", Duration::ZERO).is_ok());
        for bad in ["other", "jwt", "jwt,sign-method=none", "jwt,sign-method=RS256,pub-key=/nowhere"] {
            assert!(Tokens::new(bad, Duration::ZERO).is_err(), "{bad}");
        }
    }
}
