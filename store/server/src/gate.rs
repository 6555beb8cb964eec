//! What is looked at after a TLS handshake, on every listener alike: revocation, common name, host names, address.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use crate::auth::ClientName;

/// Serial numbers, big-endian without leading zeros.
type Serials = Vec<Vec<u8>>;

/// The conditions of one listener.
pub struct Gate {
    crl_file: Option<PathBuf>,
    /// The list as last read, and when it was written.
    revoked: Mutex<(Option<SystemTime>, Serials)>,
    cns: Vec<String>,
    hostnames: Vec<String>,
    check_address: bool,
}

fn plain(serial: &[u8]) -> Vec<u8> {
    serial.iter().copied().skip_while(|byte| *byte == 0).collect()
}

/// DER, or PEM around it.
fn serials(content: &[u8]) -> Result<Serials, String> {
    let unwrapped = x509_parser::pem::parse_x509_pem(content).map(|(_, pem)| pem.contents);
    let der = unwrapped.as_deref().unwrap_or(content);
    let (_, list) =
        CertificateRevocationList::from_der(der).map_err(|error| format!("x509: malformed crl: {error}"))?;
    Ok(list.iter_revoked_certificates().map(|entry| plain(entry.raw_serial())).collect())
}

/// Whether a name in a certificate stands for this host; `*.` stands for one label.
fn covers(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(suffix) => host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(suffix)),
        None => name.eq_ignore_ascii_case(host),
    }
}

struct Names<'a> {
    dns: Vec<&'a str>,
    ips: Vec<IpAddr>,
}

fn names<'a>(certificate: &'a X509Certificate<'_>) -> Names<'a> {
    let mut names = Names { dns: Vec::new(), ips: Vec::new() };
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return names };
    for name in &extension.value.general_names {
        match name {
            GeneralName::DNSName(dns) => names.dns.push(dns),
            GeneralName::IPAddress(bytes) => {
                let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                names.ips.extend(four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)));
            }
            _ => {}
        }
    }
    names
}

impl Gate {
    pub fn new(
        crl_file: Option<PathBuf>,
        cns: Vec<String>,
        hostnames: Vec<String>,
        check_address: bool,
    ) -> Gate {
        Gate { crl_file, revoked: Mutex::default(), cns, hostnames, check_address }
    }

    /// Whether the list can be read.
    ///
    /// # Errors
    /// IO; no revocation list.
    pub fn check(&self) -> Result<(), String> {
        self.refresh()
    }

    /// Reads the list again when it was written since.
    fn refresh(&self) -> Result<(), String> {
        let Some(path) = &self.crl_file else { return Ok(()) };
        let failed =
            |error: std::io::Error| format!("open {}: {}", path.display(), crate::process::errno(&error));
        let written = std::fs::metadata(path).and_then(|meta| meta.modified()).map_err(failed)?;
        let mut revoked = self.revoked.lock().expect("no panic while locked");
        if revoked.0 != Some(written) {
            *revoked = (Some(written), serials(&std::fs::read(path).map_err(failed)?)?);
        }
        Ok(())
    }

    /// Whether whoever showed these certificates may come in from `remote`; its common name.
    ///
    /// # Errors
    /// Why not. A list that cannot be read lets nobody in.
    pub async fn admit(
        &self,
        certificates: &[CertificateDer<'_>],
        remote: Option<IpAddr>,
    ) -> Result<Option<ClientName>, String> {
        let Some(first) = certificates.first() else { return Ok(None) };
        self.refresh()?;
        let broken = |_| "x509: malformed certificate".to_owned();
        for certificate in certificates {
            let (_, parsed) = X509Certificate::from_der(certificate).map_err(broken)?;
            let serial = plain(parsed.raw_serial());
            if self.revoked.lock().expect("no panic while locked").1.contains(&serial) {
                let hex: String = serial.iter().map(|byte| format!("{byte:02x}")).collect();
                return Err(format!("transport: certificate serial {hex} revoked"));
            }
        }
        let (_, parsed) = X509Certificate::from_der(first).map_err(broken)?;
        let cn = parsed.subject().iter_common_name().next().and_then(|cn| cn.as_str().ok());
        if !self.cns.is_empty() && !cn.is_some_and(|cn| self.cns.iter().any(|allowed| allowed == cn)) {
            return Err("client certificate authentication failed".to_owned());
        }
        let names = names(&parsed);
        if !self.hostnames.is_empty() && !self.hostnames.iter().any(|host| good_for(&names, host)) {
            return Err("client certificate authentication failed".to_owned());
        }
        if let (true, Some(remote)) = (self.check_address, remote) {
            at_home(&names, remote).await?;
        }
        Ok(cn.map(|cn| ClientName(cn.into())))
    }
}

fn good_for(names: &Names<'_>, host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(ip) => names.ips.contains(&ip),
        Err(_) => names.dns.iter().any(|name| covers(name, host)),
    }
}

/// A certificate with alternative names must name the address it is used from, or a name of that address.
async fn at_home(names: &Names<'_>, remote: IpAddr) -> Result<(), String> {
    let remote = remote.to_canonical();
    if (names.ips.is_empty() && names.dns.is_empty()) || names.ips.contains(&remote) {
        return Ok(());
    }
    if names.dns.is_empty() {
        return Err(format!("x509: certificate is not valid for {remote}"));
    }
    for name in names.dns.iter().filter(|name| !name.starts_with("*.")) {
        if let Ok(mut found) = tokio::net::lookup_host((*name, 0)).await
            && found.any(|address| address.ip().to_canonical() == remote)
        {
            return Ok(());
        }
    }
    if names.dns.iter().any(|name| name.starts_with("*.")) {
        let hosts = crate::discovery::reverse(remote).await;
        if hosts.iter().any(|host| names.dns.iter().any(|name| covers(name, host))) {
            return Ok(());
        }
    }
    Err(format!("tls: \"{remote}\" does not match any of DNSNames {:?}", names.dns))
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
        KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
    };

    fn certificate(cn: &str, names: &[&str], serial: u64) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).expect("names");
        parameters.distinguished_name.push(DnType::CommonName, cn);
        parameters.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().expect("a key");
        parameters.self_signed(&key).expect("signed").der().clone()
    }

    fn list(serials: &[u64]) -> Vec<u8> {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let issuer = Issuer::new(authority, key);
        let now = rcgen::date_time_ymd(2026, 1, 1);
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        });
        let parameters = CertificateRevocationListParams {
            this_update: now,
            next_update: rcgen::date_time_ymd(2036, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        parameters.signed_by(&issuer).expect("signed").der().to_vec()
    }

    const HOME: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

    #[tokio::test]
    async fn revoked_serials_stay_out_and_the_list_is_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("crl");
        std::fs::write(&path, list(&[7])).expect("written");
        let gate = Gate::new(Some(path.clone()), Vec::new(), Vec::new(), false);
        let (seven, eight) = (certificate("a", &[], 7), certificate("a", &[], 8));
        assert!(gate.admit(from_ref(&seven), HOME).await.expect_err("revoked").contains("serial 07 revoked"));
        assert_eq!(gate.admit(from_ref(&eight), HOME).await, Ok(Some(ClientName("a".into()))));
        assert_eq!(gate.admit(&[], HOME).await, Ok(None), "nothing was shown");
        std::fs::write(&path, list(&[7, 8])).expect("written");
        let later = std::fs::File::options().write(true).open(&path).expect("opens");
        later.set_modified(SystemTime::now() + std::time::Duration::from_secs(5)).expect("touched");
        gate.admit(from_ref(&eight), HOME).await.expect_err("revoked since");
        std::fs::remove_file(&path).expect("removed");
        gate.admit(&[eight], HOME).await.expect_err("no list, nobody");
    }

    #[tokio::test]
    async fn names_are_demanded() {
        let cn = Gate::new(None, vec!["one".to_owned()], Vec::new(), false);
        cn.admit(&[certificate("one", &[], 1)], HOME).await.expect("named");
        cn.admit(&[certificate("two", &[], 1)], HOME).await.expect_err("another name");
        let host = Gate::new(None, Vec::new(), vec!["a.example.com".to_owned()], false);
        host.admit(&[certificate("x", &["*.example.com"], 1)], HOME).await.expect("covered");
        host.admit(&[certificate("x", &["b.example.com"], 1)], HOME).await.expect_err("another host");
    }

    #[tokio::test]
    async fn a_certificate_is_used_from_where_it_lives() {
        let gate = Gate::new(None, Vec::new(), Vec::new(), true);
        gate.admit(&[certificate("x", &["127.0.0.1"], 1)], HOME).await.expect("its address");
        gate.admit(&[certificate("x", &["localhost"], 1)], HOME).await.expect("its name");
        gate.admit(&[certificate("x", &["10.0.0.1"], 1)], HOME).await.expect_err("another address");
        gate.admit(&[certificate("x", &[], 1)], HOME).await.expect("names nothing");
    }
}
