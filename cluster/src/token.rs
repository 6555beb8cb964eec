//! The join token: `K10<SHA-256 of the cluster's CA>::<role>:<secret>`. The hash pins the CA, so a joiner with nothing but
//! the token trusts exactly one cluster; the secret proves the joiner.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

const PREFIX: &str = "K10";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// May become a server: gets the authorities' keys.
    Server,
    /// May become a node only.
    Node,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Lower-case hexadecimal SHA-256 of the CA certificate's DER.
    pub authority: String,
    pub role: Role,
    pub secret: String,
}

impl FromStr for Token {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Token> {
        let read = || {
            let (authority, rest) = text.trim().strip_prefix(PREFIX)?.split_once("::")?;
            let (role, secret) = rest.split_once(':')?;
            let role = match role {
                "server" => Role::Server,
                "node" => Role::Node,
                _ => return None,
            };
            let whole = authority.len() == 64 && authority.bytes().all(|byte| byte.is_ascii_hexdigit());
            (whole && !secret.is_empty()).then(|| Token {
                authority: authority.to_ascii_lowercase(),
                role,
                secret: secret.to_owned(),
            })
        };
        match read() {
            Some(token) => Ok(token),
            // The text itself is a secret, so it is not shown.
            None => bail!(
                "this is no join token: want the whole line of the first server's file server/token \
                 ({PREFIX}<64 hex digits>::server:<secret>)"
            ),
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.role {
            Role::Server => "server",
            Role::Node => "node",
        };
        write!(f, "{PREFIX}{}::{role}:{}", self.authority, self.secret)
    }
}

/// Hides the secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({:?})", self.role)
    }
}

/// The token of `--token`, else of `--token-file`; `None` when neither was given.
///
/// # Errors
/// When the file can't be read, or what is given is no token.
pub fn given(text: Option<&str>, file: Option<&Path>) -> Result<Option<Token>> {
    match (text, file) {
        (Some(text), _) => text.parse().map(Some),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            text.parse().map(Some)
        }
        (None, None) => Ok(None),
    }
}

/// SHA-256 of a certificate's DER, hexadecimal.
pub fn fingerprint(der: &[u8]) -> String {
    Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// [`fingerprint`] of the first certificate of a PEM text.
///
/// # Errors
/// When there is none.
pub fn fingerprint_pem(pem: &str) -> Result<String> {
    use rustls_pki_types::{CertificateDer, pem::PemObject};
    let certificate =
        CertificateDer::from_pem_slice(pem.as_bytes()).context("certificate of the authority")?;
    Ok(fingerprint(&certificate))
}

/// 32 random bytes, hexadecimal.
pub fn secret() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares secrets in a time that does not depend on where they differ.
pub fn same_secret(left: &str, right: &str) -> bool {
    let (left, right) = (Sha256::digest(left), Sha256::digest(right));
    left.iter().zip(right.iter()).fold(0, |differences, (left, right)| differences | (left ^ right)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_damage_is_refused_without_being_shown() {
        let token = Token { authority: "ab".repeat(32), role: Role::Server, secret: secret() };
        assert_eq!(token.to_string().parse::<Token>().expect("reads back"), token);
        for damaged in [
            "",
            "K10",
            "K10ab::server:x",
            &token.to_string()[1..],
            &format!("K10{}::root:x", "ab".repeat(32)),
        ] {
            let error = damaged.parse::<Token>().expect_err("no token").to_string();
            assert!(error.contains("server/token"));
        }
        assert!(!format!("{token:?}").contains(&token.secret));
        assert!(same_secret("a", "a") && !same_secret("a", "b"));
    }
}
