//! The API server alone, for trying it by hand against any etcd.
//!
//! `apiserver pki DIR [PORT]` writes a CA, certificates, keys and kubeconfigs for 127.0.0.1 into DIR;
//! `apiserver --etcd-servers=… --tls-cert-file=DIR/server.crt …` then serves with upstream's flags.

use std::path::Path;
use std::process::ExitCode;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "pki") {
        let port = args.get(2).map_or("6443", String::as_str);
        return match args.get(1).map(|dir| pki(Path::new(dir), port)) {
            Some(Ok(())) => ExitCode::SUCCESS,
            Some(Err(error)) => {
                eprintln!("Error: {error}");
                ExitCode::FAILURE
            }
            None => {
                eprintln!("usage: apiserver pki DIR [PORT]");
                ExitCode::FAILURE
            }
        };
    }
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    keelson_apiserver::main(args)
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn pki(dir: &Path, port: &str) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut params = CertificateParams::new(vec![])?;
    params.distinguished_name.push(DnType::CommonName, "kubernetes");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    std::fs::write(dir.join("ca.crt"), ca.pem())?;
    let names = ["127.0.0.1", "localhost", "kubernetes", "kubernetes.default", "10.96.0.1"];
    leaf(dir, &ca, "server", "kube-apiserver", None, &names)?;
    leaf(dir, &ca, "admin", "kubernetes-admin", Some("system:masters"), &[])?;
    leaf(dir, &ca, "kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"), &[])?;
    for (user, group) in [("alice", "devs"), ("bob", "ops")] {
        leaf(dir, &ca, user, user, Some(group), &[])?;
    }
    std::fs::write(dir.join("sa.key"), KeyPair::generate()?.serialize_pem())?;
    let at = |file: &str| dir.join(file).display().to_string();
    let config = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: dev\nclusters:\n- name: dev\n  cluster:\n    server: https://127.0.0.1:{port}\n    certificate-authority: {}\nusers:\n- name: admin\n  user:\n    client-certificate: {}\n    client-key: {}\ncontexts:\n- name: dev\n  context: {{cluster: dev, user: admin}}\n",
        at("ca.crt"),
        at("admin.crt"),
        at("admin.key")
    );
    std::fs::write(dir.join("kubeconfig"), config)?;
    Ok(())
}

fn leaf(
    dir: &Path,
    ca: &CertifiedIssuer<'_, KeyPair>,
    file: &str,
    name: &str,
    group: Option<&str>,
    hosts: &[&str],
) -> Result<()> {
    let mut params = CertificateParams::new(hosts.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    let usage = if hosts.is_empty() {
        ExtendedKeyUsagePurpose::ClientAuth
    } else {
        ExtendedKeyUsagePurpose::ServerAuth
    };
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, ca)?;
    std::fs::write(dir.join(format!("{file}.crt")), certificate.pem())?;
    std::fs::write(dir.join(format!("{file}.key")), key.serialize_pem())?;
    Ok(())
}
