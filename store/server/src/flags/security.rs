//! Flags of TLS and authentication.

use std::path::PathBuf;
use std::time::Duration;

use super::Kind::{Bool, List, Text, Uint};
use super::{Flag, flag, go};

fn path(value: &str) -> Option<PathBuf> {
    (!value.is_empty()).then(|| value.into())
}

fn items(value: &str) -> Vec<String> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

macro_rules! set {
    ($name:literal, $kind:ident, $default:literal, $help:literal, |$d:ident, $v:ident| $body:expr) => {
        flag($name, $kind, $default, $help, |$d, $v| {
            $body;
            Ok(())
        })
    };
}

pub(super) const FLAGS: &[Flag] = &[
    set!("cert-file", Text, "", "Certificate for clients.", |d, v| d.client.cert_file = v.into()),
    set!("key-file", Text, "", "Its key.", |d, v| d.client.key_file = v.into()),
    set!("client-cert-file", Text, "", "Certificate shown where this member is the client.", |d, v| {
        d.client.dial.get_or_insert_default().0 = v.into()
    }),
    set!("client-key-file", Text, "", "Its key.", |d, v| d.client.dial.get_or_insert_default().1 = v.into()),
    set!("client-cert-auth", Bool, "false", "Demand certificates of clients.", |d, v| {
        d.client.client_cert_auth = go::truth(v)?
    }),
    set!("client-crl-file", Text, "", "Revoked certificates of clients.", |d, v| d.client.crl_file = path(v)),
    set!("client-cert-allowed-hostname", Text, "", "Host names clients' certificates may have.", |d, v| {
        d.client.allowed_hostnames = items(v)
    }),
    set!("trusted-ca-file", Text, "", "Authority of clients' certificates.", |d, v| {
        d.client.trusted_ca_file = path(v)
    }),
    set!("auto-tls", Bool, "false", "Make a certificate for clients.", |d, v| d.config.auto_tls =
        go::truth(v)?),
    set!("peer-cert-file", Text, "", "Certificate for peers.", |d, v| d.peer.cert_file = v.into()),
    set!("peer-key-file", Text, "", "Its key.", |d, v| d.peer.key_file = v.into()),
    set!("peer-client-cert-file", Text, "", "Certificate shown to peers.", |d, v| {
        d.peer.dial.get_or_insert_default().0 = v.into()
    }),
    set!("peer-client-key-file", Text, "", "Its key.", |d, v| d.peer.dial.get_or_insert_default().1 =
        v.into()),
    set!("peer-client-cert-auth", Bool, "false", "Demand certificates of peers.", |d, v| {
        d.peer.client_cert_auth = go::truth(v)?
    }),
    set!("peer-trusted-ca-file", Text, "", "Authority of peers' certificates.", |d, v| {
        d.peer.trusted_ca_file = path(v)
    }),
    set!("peer-cert-allowed-cn", Text, "", "Common names peers' certificates may have.", |d, v| {
        d.peer.allowed_cns = items(v)
    }),
    set!("peer-cert-allowed-hostname", Text, "", "Host names peers' certificates may have.", |d, v| {
        d.peer.allowed_hostnames = items(v)
    }),
    set!("peer-auto-tls", Bool, "false", "Make a certificate for peers.", |d, v| {
        d.config.peer_auto_tls = go::truth(v)?
    }),
    set!("self-signed-cert-validity", Uint, "1", "Years a made certificate is good for.", |d, v| {
        let years = go::number::<u32>(v)?.clamp(1, 100);
        d.config.self_signed_validity = Duration::from_secs(u64::from(years) * 365 * 86_400)
    }),
    set!("peer-crl-file", Text, "", "Revoked certificates of peers.", |d, v| d.peer.crl_file = path(v)),
    set!(
        "peer-skip-client-san-verification",
        Bool,
        "false",
        "Take peers' certificates from any address.",
        |d, v| { d.peer.skip_client_san_verify = go::truth(v)? }
    ),
    set!("cipher-suites", List, "", "TLS 1.2 suites by Go's names.", |d, v| {
        d.client.cipher_suites = items(v);
        d.peer.cipher_suites = items(v)
    }),
    set!("tls-min-version", Text, "TLS1.2", "TLS1.2 or TLS1.3.", |d, v| v.clone_into(&mut d.tls_min)),
    set!("tls-max-version", Text, "", "TLS1.2 or TLS1.3.", |d, v| v.clone_into(&mut d.tls_max)),
    set!("auth-token", Text, "simple", "simple, or jwt with its options.", |d, v| {
        v.clone_into(&mut d.config.auth_token)
    }),
    set!("bcrypt-cost", Uint, "10", "Cost of password hashes.", |d, v| d.config.bcrypt_cost = go::number(v)?),
    set!("auth-token-ttl", Uint, "300", "Seconds a token lives.", |d, v| {
        d.config.auth_token_ttl = Duration::from_secs(go::number::<u32>(v)?.into())
    }),
];
