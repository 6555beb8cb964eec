//! The cluster's authorities and the certificates they sign.
//!
//! Two authorities: one for the Kubernetes API and its clients, one for the store alone. Leaf certificates are made anew at
//! each start, so a restart renews them; only the authorities, the service-account key and the secrets last.
//! Hazard: whoever reads these files owns the cluster: folder 0700, files 0600.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde::{Deserialize, Serialize};

/// Years an authority lasts.
const AUTHORITY_YEARS: i16 = 10;

/// A certificate (chain) and its key, PEM.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

/// What all servers of a cluster share.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Authorities {
    /// Signs the API server's certificate and its clients'.
    pub cluster: Pair,
    /// Signs the store members' certificates and their clients'.
    pub store: Pair,
    /// Signs service-account tokens, PKCS#8 ECDSA P-256.
    pub service_account_key: String,
}

/// Who a certificate is for.
#[derive(Clone, Debug, Default)]
pub struct Subject<'a> {
    pub name: &'a str,
    pub group: Option<&'a str>,
    pub addresses: Vec<IpAddr>,
    pub hosts: Vec<String>,
}

impl Authorities {
    /// # Errors
    /// When the random source fails.
    pub fn create(now: jiff::Timestamp) -> Result<Authorities> {
        Ok(Authorities {
            cluster: authority("keelson-cluster-ca", now)?,
            store: authority("keelson-store-ca", now)?,
            service_account_key: KeyPair::generate().context("make a key")?.serialize_pem(),
        })
    }

    /// # Errors
    /// When the folder or a file can't be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        private_folder(folder)?;
        for (name, text) in self.files() {
            private_file(&folder.join(name), text.as_bytes())?;
        }
        Ok(())
    }

    /// `None`: the folder holds no authorities yet.
    ///
    /// # Errors
    /// When some files are there and others are not readable.
    pub fn load(folder: &Path) -> Result<Option<Authorities>> {
        if !folder.join("ca.crt").exists() {
            return Ok(None);
        }
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        Ok(Some(Authorities {
            cluster: Pair { cert: read("ca.crt")?, key: read("ca.key")? },
            store: Pair { cert: read("store-ca.crt")?, key: read("store-ca.key")? },
            service_account_key: read("sa.key")?,
        }))
    }

    /// `ca.crt` last: its presence says that all are there.
    fn files(&self) -> [(&'static str, &str); 5] {
        [
            ("ca.key", &self.cluster.key),
            ("store-ca.key", &self.store.key),
            ("store-ca.crt", &self.store.cert),
            ("sa.key", &self.service_account_key),
            ("ca.crt", &self.cluster.cert),
        ]
    }
}

fn authority(name: &str, now: jiff::Timestamp) -> Result<Pair> {
    let key = KeyPair::generate().context("make a key")?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{name}@{}", now.as_second()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    validity(&mut params, now, AUTHORITY_YEARS);
    let cert = params.self_signed(&key).context("sign an authority")?;
    Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
}

/// From yesterday (clocks differ) for so many years.
fn validity(params: &mut CertificateParams, now: jiff::Timestamp, years: i16) {
    let today = now.to_zoned(jiff::tz::TimeZone::UTC).date();
    let day = |date: jiff::civil::Date| {
        rcgen::date_time_ymd(
            i32::from(date.year()),
            u8::try_from(date.month()).unwrap_or(1),
            u8::try_from(date.day()).unwrap_or(1),
        )
    };
    params.not_before = day(today.yesterday().unwrap_or(today));
    // The 28th exists in every month of every year.
    let end =
        jiff::civil::Date::new(today.year() + years, today.month(), today.day().min(28)).unwrap_or(today);
    params.not_after = day(end);
}

fn leaf(subject: &Subject<'_>, now: jiff::Timestamp) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject.name);
    if let Some(group) = subject.group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    for host in &subject.hosts {
        params.subject_alt_names.push(SanType::DnsName(host.as_str().try_into().context("host name")?));
    }
    params.subject_alt_names.extend(subject.addresses.iter().map(|address| SanType::IpAddress(*address)));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, now, 1);
    Ok(params)
}

/// A new key and its certificate.
///
/// # Errors
/// When the authority's files are damaged.
pub fn issue(authority: &Pair, subject: &Subject<'_>, now: jiff::Timestamp) -> Result<Pair> {
    let key = KeyPair::generate().context("make a key")?;
    let cert = leaf(subject, now)?.signed_by(&key, &issuer(authority)?).context("sign a certificate")?;
    Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
}

/// A certificate for somebody else's key: everything but the key is ours to say, whatever the request asked for.
///
/// # Errors
/// When the request is no valid PKCS#10.
pub fn sign(authority: &Pair, request: &str, subject: &Subject<'_>, now: jiff::Timestamp) -> Result<String> {
    let mut request = CertificateSigningRequestParams::from_pem(request).context("certificate request")?;
    request.params = leaf(subject, now)?;
    Ok(request.signed_by(&issuer(authority)?).context("sign a certificate")?.pem())
}

/// A key and the request for its certificate.
///
/// # Errors
/// When the random source fails.
pub fn request(name: &str) -> Result<(String, String)> {
    let key = KeyPair::generate().context("make a key")?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let request =
        params.serialize_request(&key).and_then(|request| request.pem()).context("certificate request")?;
    Ok((key.serialize_pem(), request))
}

fn issuer(authority: &Pair) -> Result<Issuer<'static, KeyPair>> {
    let key = KeyPair::from_pem(&authority.key).context("key of the authority")?;
    Issuer::from_ca_cert_pem(&authority.cert, key).context("certificate of the authority")
}

/// A kubeconfig with everything in it.
pub fn kubeconfig(server: &str, authority: &str, user: &str, pair: &Pair) -> String {
    let encode = |text: &str| BASE64_STANDARD.encode(text);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: keelson\n\
         clusters:\n- name: keelson\n  cluster:\n    server: {server}\n    certificate-authority-data: {}\n\
         users:\n- name: {user}\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n\
         contexts:\n- name: keelson\n  context: {{cluster: keelson, user: \"{user}\"}}\n",
        encode(authority),
        encode(&pair.cert),
        encode(&pair.key)
    )
}

/// # Errors
/// When it can't be made.
pub fn private_folder(folder: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("make {}", folder.display()))
}

/// Writes a file that only its owner reads; it appears whole.
///
/// # Errors
/// When it can't be written.
pub fn private_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let fresh = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::*;

    fn parsed(pem: &str) -> Vec<u8> {
        x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM").1.contents
    }

    #[test]
    fn a_signed_request_says_what_the_signer_says() {
        let now: jiff::Timestamp = "2026-02-28T12:00:00Z".parse().expect("a time");
        let authorities = Authorities::create(now).expect("authorities");
        let (_, request) = request("system:masters-please").expect("a request");
        let subject = Subject {
            name: "system:node:n1",
            group: Some("system:nodes"),
            addresses: vec!["172.30.0.11".parse().expect("an address")],
            hosts: vec!["n1".into()],
        };
        let signed = sign(&authorities.cluster, &request, &subject, now).expect("a certificate");
        let (bytes, authority) = (parsed(&signed), parsed(&authorities.cluster.cert));
        let (_, certificate) = X509Certificate::from_der(&bytes).expect("X.509");
        let (_, authority) = X509Certificate::from_der(&authority).expect("X.509");
        assert_eq!(certificate.subject().to_string(), "CN=system:node:n1, O=system:nodes");
        certificate
            .verify_signature(Some(authority.public_key()))
            .expect("signed by the cluster's authority");
        assert!(!certificate.is_ca());
        let names = certificate.subject_alternative_name().expect("readable").expect("there");
        assert_eq!(names.value.general_names.len(), 2);
        let days = (certificate.validity().not_after.timestamp() - now.as_second()) / 86_400;
        assert!((360..=366).contains(&days), "{days} days");
    }

    #[test]
    fn authorities_survive_on_disk_and_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("pki");
        assert_eq!(Authorities::load(&path).expect("readable"), None);
        let authorities = Authorities::create(jiff::Timestamp::UNIX_EPOCH).expect("authorities");
        authorities.save(&path).expect("saved");
        assert_eq!(Authorities::load(&path).expect("readable"), Some(authorities));
        for entry in std::fs::read_dir(&path).expect("a folder") {
            let mode = entry.expect("an entry").metadata().expect("metadata").permissions().mode();
            assert_eq!(mode & 0o077, 0);
        }
    }
}
