//! Kubernetes API clients of our own components.

use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::pki::{Pair, kubeconfig};

/// A client with a certificate.
///
/// # Errors
/// When the certificate or the address can't be used.
pub async fn client(server: &str, authority: &str, pair: &Pair) -> Result<kube::Client> {
    from_kubeconfig(&kubeconfig(server, authority, "client", pair)).await
}

/// A client from the text of a kubeconfig.
///
/// # Errors
/// When the text is none, or what it holds can't be used.
pub async fn from_kubeconfig(text: &str) -> Result<kube::Client> {
    let file = Kubeconfig::from_yaml(text).context("kubeconfig")?;
    let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    // Watches are silent for minutes; broken connections end through TCP keep-alive.
    config.read_timeout = None;
    config.connect_timeout = Some(std::time::Duration::from_secs(5));
    kube::Client::try_from(config).context("client")
}
