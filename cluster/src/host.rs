//! What the machine says of itself, for flags that were not given.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use anyhow::{Context, Result, bail};
use tokio_util::sync::CancellationToken;

/// The host's name as a node's name: lower case.
///
/// # Errors
/// When it can't be read.
pub fn name() -> Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("read the host's name")?;
    Ok(name.trim().to_ascii_lowercase())
}

/// The address of the default route's interface. Nothing is sent.
///
/// # Errors
/// When there is no route; the message names the flag.
pub fn address() -> Result<Ipv4Addr> {
    let find = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    match find() {
        Ok(IpAddr::V4(address)) => Ok(address),
        _ => bail!("this machine has no default route to take its address from: give it with --node-ip"),
    }
}

/// A token that SIGTERM and SIGINT cancel.
///
/// # Errors
/// When the handlers can't be installed.
pub fn stop_token() -> Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let token = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let on_signal = token.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping");
        on_signal.cancel();
    });
    Ok(token)
}
