//! bcrypt, off the async workers.

use bytes::Bytes;
use tokio::sync::Semaphore;
use tonic::{Code, Status};

/// What bcrypt takes of a password, bytes.
const LONGEST: usize = 72;
/// bcrypt's own limits, and what is taken outside of them; as in etcd.
const COSTS: std::ops::RangeInclusive<u32> = 4..=31;
const DEFAULT_COST: u32 = 10;

/// Hashes and compares, a few at a time.
pub(crate) struct Passwords {
    cost: u32,
    turns: Semaphore,
}

impl Passwords {
    /// `cost` outside of bcrypt's limits is the default.
    pub fn new(cost: u32) -> Passwords {
        let cost = if COSTS.contains(&cost) { cost } else { DEFAULT_COST };
        let turns = std::thread::available_parallelism().map_or(1, usize::from);
        Passwords { cost, turns: Semaphore::new(turns) }
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, bcrypt::BcryptError> + Send + 'static,
    ) -> Result<T, Status> {
        // Never closed.
        let _turn = self.turns.acquire().await.map_err(|error| Status::internal(error.to_string()))?;
        let done = tokio::task::spawn_blocking(work).await;
        let done = done.map_err(|error| Status::internal(format!("hashing a password: {error}")))?;
        done.map_err(|error| Status::new(Code::Unknown, error.to_string()))
    }

    /// # Errors
    /// A password longer than bcrypt takes.
    pub async fn hash(&self, password: String) -> Result<Bytes, Status> {
        if password.len() > LONGEST {
            return Err(Status::new(Code::Unknown, "bcrypt: password length exceeds 72 bytes"));
        }
        let cost = self.cost;
        let parts = self.work(move || bcrypt::hash_with_result(password, cost)).await?;
        Ok(parts.format_for_version(bcrypt::Version::TwoA).into())
    }

    /// Whether it is the one that was hashed. A hash that is none matches nothing.
    pub async fn matches(&self, password: String, hash: Bytes) -> Result<bool, Status> {
        let Ok(hash) = String::from_utf8(hash.to_vec()) else { return Ok(false) };
        self.work(move || Ok(bcrypt::verify(password, &hash).unwrap_or(false))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_matches_its_hash_alone_and_too_long_ones_are_refused() {
        let passwords = Passwords::new(4);
        let hash = passwords.hash("secret".into()).await.expect("hashed");
        assert!(hash.starts_with(b"$2a$04$"), "{hash:?}");
        assert!(passwords.matches("secret".into(), hash.clone()).await.expect("compared"));
        assert!(!passwords.matches("Secret".into(), hash).await.expect("compared"));
        assert!(!passwords.matches("secret".into(), Bytes::from_static(b"none")).await.expect("compared"));
        assert!(passwords.hash("x".repeat(72)).await.is_ok());
        let refused = passwords.hash("x".repeat(73)).await.expect_err("too long");
        assert_eq!(refused.message(), "bcrypt: password length exceeds 72 bytes");
        assert_eq!(Passwords::new(3).cost, 10);
    }

    #[tokio::test]
    async fn hashes_made_by_etcd_match() {
        // Of the password "rp", by golang.org/x/crypto/bcrypt's format.
        let passwords = Passwords::new(4);
        let ours = passwords.hash("rp".into()).await.expect("hashed");
        let text = String::from_utf8(ours.to_vec()).expect("text");
        for version in ["$2a$", "$2b$", "$2y$"] {
            let other = Bytes::from(format!("{version}{}", &text[4..]));
            assert!(passwords.matches("rp".into(), other).await.expect("compared"), "{version}");
        }
    }
}
