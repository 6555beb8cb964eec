//! Service account tokens: JWTs signed and checked with our keys (ES256 or RS256), and the key set that lets others
//! check them. What a token's claims must say is decided here; whether the objects it is bound to still exist is asked
//! of the caller's view.

use std::sync::Arc;

use anyhow::{anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use keelson_apiserver_core::{UserInfo, View};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use serde_json::{Value, json};

/// Seconds by which clocks may differ.
const LEEWAY: i64 = 10;

enum Signer {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// A key whose signatures are accepted.
struct Verifier {
    id: String,
    rsa: bool,
    /// Point (EC) or PKCS#1 key (RSA).
    key: Vec<u8>,
    jwk: Value,
}

/// The keys of one cluster.
pub struct Tokens {
    signer: Signer,
    signer_id: String,
    verifiers: Vec<Verifier>,
    pub issuer: String,
    pub audiences: Vec<String>,
}

/// A token that is ours and in force.
#[derive(Debug, Clone)]
pub struct Verified {
    pub user: UserInfo,
    pub audiences: Vec<String>,
}

const EC_ALGORITHM: &[u8] = &[
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07,
];
const RSA_ALGORITHM: &[u8] =
    &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// A DER element.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        short @ 0..=127 => out.push(short as u8),
        long => {
            let bytes: Vec<u8> = long.to_be_bytes().into_iter().skip_while(|b| *b == 0).collect();
            out.push(0x80 | bytes.len() as u8);
            out.extend(bytes);
        }
    }
    out.extend_from_slice(content);
    out
}

/// SubjectPublicKeyInfo of a raw public key.
fn spki(rsa: bool, key: &[u8]) -> Vec<u8> {
    let mut bits = vec![0];
    bits.extend_from_slice(key);
    let algorithm = if rsa { RSA_ALGORITHM } else { EC_ALGORITHM };
    der(0x30, &[algorithm, &der(0x03, &bits)].concat())
}

fn digest(bytes: &[u8]) -> String {
    BASE64.encode(ring::digest::digest(&ring::digest::SHA256, bytes))
}

impl Verifier {
    fn new(rsa: bool, key: &[u8]) -> anyhow::Result<Verifier> {
        let info = spki(rsa, key);
        let id = digest(&info);
        let (_, parsed) =
            <x509_parser::x509::SubjectPublicKeyInfo as x509_parser::prelude::FromDer<_>>::from_der(&info)
                .map_err(|e| anyhow!("unusable public key: {e}"))?;
        let jwk = match parsed.parsed() {
            Ok(x509_parser::public_key::PublicKey::RSA(rsa)) => {
                let trim =
                    |n: &[u8]| BASE64.encode(n.iter().copied().skip_while(|b| *b == 0).collect::<Vec<u8>>());
                json!({"use": "sig", "kty": "RSA", "kid": id, "alg": "RS256", "n": trim(rsa.modulus), "e": trim(rsa.exponent)})
            }
            Ok(_) if key.len() == 65 => json!({
                "use": "sig", "kty": "EC", "kid": id, "crv": "P-256", "alg": "ES256",
                "x": BASE64.encode(&key[1..33]), "y": BASE64.encode(&key[33..]),
            }),
            _ => bail!("unsupported public key: use ECDSA P-256 or RSA"),
        };
        Ok(Verifier { id, rsa, key: key.to_vec(), jwk })
    }

    fn check(&self, message: &[u8], signature: &[u8]) -> bool {
        if self.rsa {
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.key).verify(message, signature).is_ok()
        } else {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.key).verify(message, signature).is_ok()
        }
    }
}

/// A signing key from PEM.
fn signer(pem: &[u8]) -> anyhow::Result<Signer> {
    const HELP: &str =
        "the service account key (--service-account-signing-key-file) must be RSA or ECDSA P-256 in PEM";
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|e| anyhow!("{HELP}: {e}"))?;
    let rng = SystemRandom::new();
    match &key {
        PrivateKeyDer::Pkcs1(der) => {
            RsaKeyPair::from_der(der.secret_pkcs1_der()).map(Signer::Rsa).map_err(|e| anyhow!("{HELP}: {e}"))
        }
        PrivateKeyDer::Pkcs8(der) => {
            let der = der.secret_pkcs8_der();
            let ec = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &rng).map(Signer::Ec);
            ec.or_else(|_| RsaKeyPair::from_pkcs8(der).map(Signer::Rsa)).map_err(|e| anyhow!("{HELP}: {e}"))
        }
        PrivateKeyDer::Sec1(sec1) => {
            // PKCS#8 around the same key.
            let inner = der(0x04, sec1.secret_sec1_der());
            let pkcs8 = der(0x30, &[&[0x02, 0x01, 0x00], EC_ALGORITHM, &inner].concat());
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8, &rng)
                .map(Signer::Ec)
                .map_err(|e| anyhow!("{HELP}: {e}"))
        }
        _ => bail!("{HELP}"),
    }
}

impl Signer {
    fn verifier(&self) -> anyhow::Result<Verifier> {
        match self {
            Signer::Ec(key) => Verifier::new(false, key.public_key().as_ref()),
            Signer::Rsa(key) => Verifier::new(true, key.public_key().as_ref()),
        }
    }

    fn sign(&self, message: &[u8]) -> anyhow::Result<Vec<u8>> {
        let rng = SystemRandom::new();
        match self {
            Signer::Ec(key) => {
                Ok(key.sign(&rng, message).map_err(|_| anyhow!("signing failed"))?.as_ref().to_vec())
            }
            Signer::Rsa(key) => {
                let mut out = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &rng, message, &mut out)
                    .map_err(|_| anyhow!("signing failed"))?;
                Ok(out)
            }
        }
    }
}

/// A key that verifies, from PEM of a private or a public key or of a certificate.
fn verifier(pem: &[u8]) -> anyhow::Result<Verifier> {
    if let Ok(private) = signer(pem) {
        return private.verifier();
    }
    let info = SubjectPublicKeyInfoDer::from_pem_slice(pem)
        .map_err(|e| anyhow!("a service account key (--service-account-key-file) is no PEM key: {e}"))?;
    let (_, parsed) =
        <x509_parser::x509::SubjectPublicKeyInfo as x509_parser::prelude::FromDer<_>>::from_der(&info)
            .map_err(|e| anyhow!("unusable public key: {e}"))?;
    let rsa = matches!(parsed.parsed(), Ok(x509_parser::public_key::PublicKey::RSA(_)));
    Verifier::new(rsa, &parsed.subject_public_key.data)
}

impl Tokens {
    /// Reads the keys.
    ///
    /// # Errors
    /// A key is unusable; the error says which.
    pub fn new(
        signing: &[u8],
        more: &[Vec<u8>],
        issuer: &str,
        audiences: &[String],
    ) -> anyhow::Result<Arc<Tokens>> {
        let signer = signer(signing)?;
        let mut verifiers = vec![signer.verifier()?];
        for pem in more {
            let next = verifier(pem)?;
            if verifiers.iter().all(|v| v.id != next.id) {
                verifiers.push(next);
            }
        }
        let audiences = if audiences.is_empty() { vec![issuer.to_owned()] } else { audiences.to_vec() };
        let signer_id = verifiers[0].id.clone();
        Ok(Arc::new(Tokens { signer, signer_id, verifiers, issuer: issuer.to_owned(), audiences }))
    }

    /// Signs claims; `iss` is set when the claims have none.
    ///
    /// # Errors
    /// The key refuses (never, for a key that was read).
    pub fn sign(&self, mut claims: Value) -> anyhow::Result<String> {
        if claims.get("iss").is_none() {
            claims["iss"] = json!(self.issuer);
        }
        let algorithm = if matches!(self.signer, Signer::Ec(_)) { "ES256" } else { "RS256" };
        let header = json!({"alg": algorithm, "kid": self.signer_id});
        let message = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
        let signature = self.signer.sign(message.as_bytes())?;
        Ok(format!("{message}.{}", BASE64.encode(signature)))
    }

    /// The JWK set.
    pub fn jwks(&self) -> Value {
        json!({"keys": self.verifiers.iter().map(|v| v.jwk.clone()).collect::<Vec<_>>()})
    }

    /// Signing algorithms in use, for discovery.
    pub fn algorithms(&self) -> Vec<&'static str> {
        let mut out: Vec<_> = self.verifiers.iter().map(|v| if v.rsa { "RS256" } else { "ES256" }).collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    fn claims(&self, token: &str) -> Option<Value> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, body) = message.split_once('.')?;
        let header: Value = serde_json::from_slice(&BASE64.decode(header).ok()?).ok()?;
        let signature = BASE64.decode(signature).ok()?;
        let kid = header["kid"].as_str();
        let algorithm = header["alg"].as_str()?;
        let good = self.verifiers.iter().any(|v| {
            let named = kid.is_none_or(|kid| kid == v.id);
            named
                && algorithm == (if v.rsa { "RS256" } else { "ES256" })
                && v.check(message.as_bytes(), &signature)
        });
        if !good {
            return None;
        }
        serde_json::from_slice(&BASE64.decode(body).ok()?).ok()
    }

    /// Checks signature, issuer, times, audiences, and that the objects the token is bound to still exist.
    /// `wanted` empty means this server's audiences. `now` in seconds since 1970.
    ///
    /// # Errors
    /// Why it is refused, in words.
    pub fn verify(
        &self,
        token: &str,
        wanted: &[String],
        now: i64,
        view: &dyn View,
    ) -> Result<Verified, String> {
        let claims = self.claims(token).ok_or("invalid bearer token")?;
        if claims["iss"] != json!(self.issuer) {
            return Err("the token is of another issuer".to_owned());
        }
        let after = |name: &str| claims[name].as_i64();
        if after("exp").is_none_or(|exp| now > exp + LEEWAY) {
            return Err("service account token has expired".to_owned());
        }
        if after("nbf").is_some_and(|nbf| now + LEEWAY < nbf) {
            return Err("service account token is not valid yet".to_owned());
        }
        let has: Vec<&str> = match &claims["aud"] {
            Value::String(one) => vec![one],
            Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
            _ => vec![],
        };
        let wanted = if wanted.is_empty() { &self.audiences } else { wanted };
        let audiences: Vec<String> = wanted.iter().filter(|w| has.contains(&w.as_str())).cloned().collect();
        if audiences.is_empty() {
            return Err(format!(
                "[invalid bearer token, token audiences {has:?} is invalid for the target audiences {wanted:?}]"
            ));
        }
        let user = bound_user(&claims, view)?;
        Ok(Verified { user, audiences })
    }
}

/// The user of the claims, if everything they are bound to exists with the same uid.
fn bound_user(claims: &Value, view: &dyn View) -> Result<UserInfo, String> {
    let bound = &claims["kubernetes.io"];
    let namespace = bound["namespace"].as_str().ok_or("no namespace in the token")?;
    let account = bound["serviceaccount"]["name"].as_str().ok_or("no service account in the token")?;
    let uid = bound["serviceaccount"]["uid"].as_str().unwrap_or("");
    let exists = |resource: &str, namespace: &str, of: &Value| -> bool {
        let found = view.get("", resource, namespace, of["name"].as_str().unwrap_or(""));
        found.is_some_and(|object| object["metadata"]["uid"] == of["uid"])
    };
    if !exists("serviceaccounts", namespace, &bound["serviceaccount"]) {
        return Err("service account token has been invalidated".to_owned());
    }
    let mut extra = std::collections::BTreeMap::new();
    let mut add = |name: &str, value: &Value| {
        if let Some(text) = value.as_str() {
            extra.insert(format!("authentication.kubernetes.io/{name}"), vec![text.to_owned()]);
        }
    };
    for (kind, resource) in [("pod", "pods"), ("secret", "secrets")] {
        if bound[kind].is_object() && !exists(resource, namespace, &bound[kind]) {
            return Err("service account token has been invalidated".to_owned());
        }
    }
    // A node beside a pod is information; alone it is a binding.
    if bound["node"].is_object() && !bound["pod"].is_object() && !exists("nodes", "", &bound["node"]) {
        return Err("service account token has been invalidated".to_owned());
    }
    add("pod-name", &bound["pod"]["name"]);
    add("pod-uid", &bound["pod"]["uid"]);
    add("node-name", &bound["node"]["name"]);
    add("node-uid", &bound["node"]["uid"]);
    if let Some(id) = claims["jti"].as_str() {
        add("credential-id", &json!(format!("JTI={id}")));
    }
    Ok(UserInfo {
        name: format!("system:serviceaccount:{namespace}:{account}"),
        uid: uid.to_owned(),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".to_owned(),
        ],
        extra,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Account;
    impl View for Account {
        fn get(&self, _: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
            let known = (resource, namespace, name) == ("serviceaccounts", "d", "sa");
            known.then(|| Arc::new(json!({"metadata":{"uid":"u1"}})))
        }
        fn list(&self, _: &str, _: &str, _: Option<&str>) -> Vec<Arc<Value>> {
            vec![]
        }
    }

    fn tokens() -> Arc<Tokens> {
        let key = rcgen::KeyPair::generate().expect("key").serialize_pem();
        Tokens::new(key.as_bytes(), &[], "https://issuer", &[]).expect("tokens")
    }

    fn claims(uid: &str) -> Value {
        json!({"aud":["https://issuer"],"exp":2000,"nbf":1000,"jti":"x",
               "kubernetes.io":{"namespace":"d","serviceaccount":{"name":"sa","uid":uid}}})
    }

    #[test]
    fn tokens_are_checked_against_time_audience_and_bound_objects() {
        let tokens = tokens();
        let good = tokens.sign(claims("u1")).expect("signed");
        let user = tokens.verify(&good, &[], 1500, &Account).expect("good").user;
        assert_eq!(user.name, "system:serviceaccount:d:sa");
        assert!(tokens.verify(&good, &[], 3000, &Account).is_err(), "expired");
        assert!(tokens.verify(&good, &[], 900, &Account).is_err(), "too early");
        assert!(tokens.verify(&good, &["other".to_owned()], 1500, &Account).is_err(), "audience");
        let gone = tokens.sign(claims("u2")).expect("signed");
        assert!(tokens.verify(&gone, &[], 1500, &Account).is_err(), "another account of the same name");
        let mut pod = claims("u1");
        pod["kubernetes.io"]["pod"] = json!({"name":"p","uid":"u"});
        assert!(
            tokens.verify(&tokens.sign(pod).expect("signed"), &[], 1500, &Account).is_err(),
            "pod is gone"
        );
    }

    #[test]
    fn another_key_and_a_changed_token_are_refused() {
        let tokens = tokens();
        let foreign = self::tokens().sign(claims("u1")).expect("signed");
        assert!(tokens.verify(&foreign, &[], 1500, &Account).is_err());
        let good = tokens.sign(claims("u1")).expect("signed");
        let (head, tail) = good.split_at(good.len() / 2);
        let flipped = if tail.starts_with('A') { "B" } else { "A" };
        assert!(tokens.verify(&format!("{head}{flipped}{}", &tail[1..]), &[], 1500, &Account).is_err());
        assert!(tokens.verify("x", &[], 1500, &Account).is_err());
        assert_eq!(tokens.jwks()["keys"][0]["kty"], "EC");
    }
}
