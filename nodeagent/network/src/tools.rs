//! `ip` and `nft`, run once each, with their complaint as the error.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Runs `ip` with words.
///
/// # Errors
/// What `ip` says when it fails, with its arguments.
pub async fn ip(words: &[&str]) -> Result<Vec<u8>> {
    let mut command = Command::new("ip");
    let output = command
        .args(words)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("cannot run ip: install the package iproute2")?;
    if !output.status.success() {
        bail!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// Runs `ip -j` and reads its list.
///
/// # Errors
/// As [`ip`], or when the answer is not JSON.
pub async fn ip_list(words: &[&str]) -> Result<Vec<Value>> {
    let words: Vec<&str> = [&["-j"], words].concat();
    let output = ip(&words).await?;
    // Nothing found is an empty answer, not an empty list.
    if output.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&output).with_context(|| format!("answer of ip {}", words.join(" ")))
}

/// One nft transaction.
///
/// # Errors
/// What nft says when it refuses.
pub async fn nft(script: &str) -> Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot run nft: install the package nftables")?;
    let mut input = child.stdin.take().context("nft has no standard input")?;
    let written = input.write_all(script.as_bytes()).await;
    drop(input);
    let output = child.wait_with_output().await.context("wait for nft")?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    written.context("write to nft")
}
