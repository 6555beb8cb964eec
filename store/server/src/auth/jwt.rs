//! JSON web tokens: `--auth-token jwt,sign-method=RS256,pub-key=FILE,priv-key=FILE,ttl=5m`.
//!
//! With a private key tokens are given and checked; with a public key alone they are only checked, and given by whoever
//! has the private one. The claims are etcd's: `username`, `revision`, `exp`.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ring::signature::KeyPair;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::tokens::Claim;

/// How long a token holds when `ttl` is not given; etcd's.
const TTL: Duration = Duration::from_secs(300);

#[derive(Serialize, Deserialize)]
struct Claims {
    username: String,
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
}

/// Signs and checks.
pub(crate) struct Jwt {
    algorithm: Algorithm,
    ttl: Duration,
    /// Absent: tokens are only checked.
    signing: Option<EncodingKey>,
    checking: DecodingKey,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Secret,
    Rsa,
    Elliptic,
    Edwards,
}

fn family(algorithm: Algorithm) -> Result<Family> {
    use Algorithm::{ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512};
    Ok(match algorithm {
        HS256 | HS384 | HS512 => Family::Secret,
        RS256 | RS384 | RS512 | PS256 | PS384 | PS512 => Family::Rsa,
        ES256 | ES384 => Family::Elliptic,
        EdDSA => Family::Edwards,
        other => bail!("sign-method {other:?} of --auth-token is not supported"),
    })
}

fn read(path: &str) -> Result<Vec<u8>> {
    std::fs::read(Path::new(path)).with_context(|| format!("cannot read the key {path} of --auth-token"))
}

impl Jwt {
    /// `options`: `name=value` each.
    ///
    /// # Errors
    /// Unknown options, a missing or unknown sign method, keys that are missing, unreadable or do not fit.
    pub fn new<'a>(options: impl Iterator<Item = &'a str>) -> Result<Jwt> {
        let (mut method, mut public, mut private, mut ttl) = (None, None, None, TTL);
        for option in options {
            let (name, value) = option.split_once('=').with_context(|| {
                format!("option {option:?} of --auth-token jwt is not of the form name=value")
            })?;
            match name {
                "sign-method" => method = Some(value),
                "pub-key" => public = Some(value),
                "priv-key" => private = Some(value),
                "ttl" => ttl = crate::flags::duration(value).context("ttl of --auth-token jwt")?,
                other => bail!("unknown option {other:?} of --auth-token jwt"),
            }
        }
        let method = method.context("--auth-token jwt needs sign-method=…")?;
        let algorithm: Algorithm =
            method.parse().map_err(|_| anyhow!("unknown sign-method {method:?} of --auth-token jwt"))?;
        let family = family(algorithm)?;
        let private = private.map(read).transpose()?;
        let public = public.map(read).transpose()?;
        let misfit = || format!("the keys of --auth-token jwt do not fit sign-method {method}");
        let signing = private.as_deref().map(|key| signing(family, key)).transpose().with_context(misfit)?;
        let checking = match (family, private.as_deref(), public.as_deref()) {
            (Family::Secret, Some(secret), _) => DecodingKey::from_secret(secret),
            (Family::Secret, None, _) => {
                bail!("--auth-token jwt with {method} needs priv-key=…, the shared secret")
            }
            (_, _, Some(public)) => checking(family, public).with_context(misfit)?,
            (_, Some(private), None) => of_private(algorithm, family, private).with_context(misfit)?,
            (_, None, None) => bail!("--auth-token jwt needs priv-key=… or pub-key=…"),
        };
        let jwt = Jwt { algorithm, ttl, signing, checking };
        if let Some(token) = jwt.give("probe", 1) {
            let token = token?;
            jwt.check(&token).context("the two keys of --auth-token jwt do not belong together")?;
        }
        Ok(jwt)
    }

    /// A new token; `None` when we have no key to sign with.
    pub fn give(&self, user: &str, revision: u64) -> Option<Result<String>> {
        let key = self.signing.as_ref()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let exp = Some((now + self.ttl).as_secs());
        let claims = Claims { username: user.to_owned(), revision, exp };
        let token = jsonwebtoken::encode(&Header::new(self.algorithm), &claims, key);
        Some(token.context("signing a token"))
    }

    /// Whose token it is; `None` when it is not ours, or its time is over.
    pub fn check(&self, token: &str) -> Option<Claim> {
        let mut validation = Validation::new(self.algorithm);
        validation.leeway = 0;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let found = jsonwebtoken::decode::<Claims>(token, &self.checking, &validation).ok()?;
        Some(Claim { user: found.claims.username, revision: Some(found.claims.revision) })
    }
}

fn signing(family: Family, key: &[u8]) -> Result<EncodingKey> {
    Ok(match family {
        Family::Secret => EncodingKey::from_secret(key),
        Family::Rsa => EncodingKey::from_rsa_pem(key)?,
        Family::Elliptic => EncodingKey::from_ec_pem(key)?,
        Family::Edwards => EncodingKey::from_ed_pem(key)?,
    })
}

fn checking(family: Family, key: &[u8]) -> Result<DecodingKey> {
    Ok(match family {
        Family::Secret => DecodingKey::from_secret(key),
        Family::Rsa => DecodingKey::from_rsa_pem(key)?,
        Family::Elliptic => DecodingKey::from_ec_pem(key)?,
        Family::Edwards => DecodingKey::from_ed_pem(key)?,
    })
}

/// The public half of a private key.
fn of_private(algorithm: Algorithm, family: Family, pem: &[u8]) -> Result<DecodingKey> {
    use ring::signature as sign;
    let refused = |error: ring::error::KeyRejected| anyhow!("{error}");
    let der = PrivateKeyDer::from_pem_slice(pem).map_err(|error| anyhow!("{error}"))?;
    Ok(match family {
        Family::Secret => DecodingKey::from_secret(pem),
        Family::Rsa => {
            let pair = match &der {
                PrivateKeyDer::Pkcs1(der) => sign::RsaKeyPair::from_der(der.secret_pkcs1_der()),
                other => sign::RsaKeyPair::from_pkcs8(other.secret_der()),
            };
            DecodingKey::from_rsa_der(pair.map_err(refused)?.public_key().as_ref())
        }
        Family::Elliptic => {
            let curve = if algorithm == Algorithm::ES256 {
                &sign::ECDSA_P256_SHA256_FIXED_SIGNING
            } else {
                &sign::ECDSA_P384_SHA384_FIXED_SIGNING
            };
            let random = ring::rand::SystemRandom::new();
            let pair = sign::EcdsaKeyPair::from_pkcs8(curve, der.secret_der(), &random).map_err(refused)?;
            DecodingKey::from_ec_der(pair.public_key().as_ref())
        }
        Family::Edwards => {
            let pair = sign::Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_der()).map_err(refused)?;
            DecodingKey::from_ed_der(pair.public_key().as_ref())
        }
    })
}

#[cfg(test)]
mod tests {
    use rcgen::KeyPair as Generated;

    use super::*;

    fn made(folder: &Path, name: &str, algorithm: &'static rcgen::SignatureAlgorithm) -> (String, String) {
        let pair = Generated::generate_for(algorithm).expect("a key");
        let (private, public) = (folder.join(format!("{name}.key")), folder.join(format!("{name}.pub")));
        std::fs::write(&private, pair.serialize_pem()).expect("written");
        std::fs::write(&public, pair.public_key_pem()).expect("written");
        (private.display().to_string(), public.display().to_string())
    }

    fn jwt(options: &str) -> Result<Jwt> {
        Jwt::new(options.split(','))
    }

    #[test]
    fn what_one_member_signs_another_checks_with_either_key() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (method, algorithm) in [
            ("ES256", &rcgen::PKCS_ECDSA_P256_SHA256),
            ("ES384", &rcgen::PKCS_ECDSA_P384_SHA384),
            ("EdDSA", &rcgen::PKCS_ED25519),
        ] {
            let (private, public) = made(folder.path(), method, algorithm);
            let signer = jwt(&format!("sign-method={method},priv-key={private}")).expect(method);
            let token = signer.give("u", 7).expect("a key to sign with").expect("signed");
            let claim = Claim { user: "u".to_owned(), revision: Some(7) };
            assert_eq!(signer.check(&token), Some(claim.clone()), "{method}");
            let checker = jwt(&format!("sign-method={method},pub-key={public}")).expect(method);
            assert_eq!(checker.check(&token), Some(claim), "{method}");
            assert!(checker.give("u", 7).is_none(), "{method}");
            let mut forged = token.clone();
            forged.replace_range(token.len() - 8..token.len() - 4, "AAAA");
            assert_eq!(checker.check(&forged), None, "{method}");
            let (_, other) = made(folder.path(), "other", algorithm);
            assert!(
                jwt(&format!("sign-method={method},priv-key={private},pub-key={other}")).is_err(),
                "{method}"
            );
        }
    }

    #[test]
    fn a_shared_secret_signs_and_a_token_ends() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "a secret of some length for hmac").expect("written");
        let secret = secret.display().to_string();
        let long = jwt(&format!("sign-method=HS256,priv-key={secret}")).expect("good");
        let token = long.give("u", 1).expect("a key").expect("signed");
        assert!(long.check(&token).is_some());
        let past = Claims { username: "u".to_owned(), revision: 1, exp: Some(1) };
        let key = EncodingKey::from_secret(&std::fs::read(&secret).expect("readable"));
        let old = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &past, &key).expect("signed");
        assert!(long.check(&old).is_none());
        let none = jsonwebtoken::encode(&Header::new(Algorithm::HS512), &past, &key).expect("signed");
        assert!(long.check(&none).is_none(), "another method is not ours");
        assert!(long.check("a.b.c").is_none());
        assert!(jwt(&format!("sign-method=RS256,priv-key={secret}")).is_err());
        assert!(jwt("sign-method=HS256").is_err());
        assert!(jwt(&format!("sign-method=HS256,priv-key={secret},nonsense=1")).is_err());
    }
}
