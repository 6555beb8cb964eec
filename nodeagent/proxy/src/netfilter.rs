//! The two tools: `nft` for rules, `conntrack` for flows that outlived theirs.

use std::collections::BTreeSet;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use keelson_nodeagent_core::proxy::{Flow, TABLE};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tracing::warn;

/// At most this much of nft's complaint is kept.
const COMPLAINT: usize = 600;

pub struct Netfilter {
    namespace: Option<String>,
    no_conntrack: AtomicBool,
}

impl Netfilter {
    pub fn new(namespace: Option<String>) -> Netfilter {
        Netfilter { namespace, no_conntrack: AtomicBool::new(false) }
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = match &self.namespace {
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{namespace}")).arg(tool);
                command
            }
            None => Command::new(tool),
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// # Errors
    /// When rules can't be read: nft is missing or the process may not.
    pub async fn check(&self) -> Result<()> {
        let output = self
            .command("nft")
            .args(["list", "tables"])
            .output()
            .await
            .context("cannot run nft: install the package nftables")?;
        if !output.status.success() {
            bail!("nft can't read rules ({}): the proxy needs root or CAP_NET_ADMIN", complaint(&output));
        }
        Ok(())
    }

    pub async fn table_is_there(&self) -> bool {
        let args = ["list", "chain", "ip", TABLE, "services"];
        self.command("nft").args(args).output().await.is_ok_and(|output| output.status.success())
    }

    /// One atomic transaction.
    ///
    /// # Errors
    /// nft's own words when it refuses; nothing was changed then.
    pub async fn apply(&self, script: &str) -> Result<()> {
        let mut child =
            self.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("start nft")?;
        let mut input = child.stdin.take().context("nft has no standard input")?;
        // nft reads everything before it answers, so writing first can't block for ever.
        let written = input.write_all(script.as_bytes()).await;
        drop(input);
        let output = child.wait_with_output().await.context("wait for nft")?;
        if !output.status.success() {
            bail!("{}", complaint(&output));
        }
        written.context("write to nft")
    }

    /// Deletes flows; a failure costs those flows their next packets only, so it is logged and not returned.
    pub async fn forget(&self, flows: &BTreeSet<Flow>) {
        for flow in flows {
            if self.no_conntrack.load(Ordering::Relaxed) {
                return;
            }
            let mut command = self.command("conntrack");
            command.args(["-D", "-f", "ipv4", "-p", "udp"]).args(filter(flow));
            match command.output().await {
                // 1 also stands for "no such flow".
                Ok(output) if matches!(output.status.code(), Some(0 | 1)) => {}
                Ok(output) => warn!("conntrack: {}", complaint(&output)),
                Err(error) => {
                    self.no_conntrack.store(true, Ordering::Relaxed);
                    warn!(
                        "cannot run conntrack ({error}): UDP clients may stick to removed endpoints; install the package conntrack"
                    );
                }
            }
        }
    }
}

fn filter(flow: &Flow) -> Vec<String> {
    let text = |words: &[&dyn ToString]| words.iter().map(|word| word.to_string()).collect();
    match flow {
        Flow::ToEndpoint { address, port, endpoint } => {
            text(&[&"--orig-dst", address, &"--orig-port-dst", port, &"--dst-nat", endpoint])
        }
        Flow::NotRewritten { address, port } => text(&[&"--orig-dst", address, &"--orig-port-dst", port]),
        Flow::NodePortToEndpoint { port, endpoint } => {
            text(&[&"--orig-port-dst", port, &"--dst-nat", endpoint])
        }
        Flow::NodePortNotRewritten { port } => text(&[&"--orig-port-dst", port]),
    }
}

fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.trim().chars().take(COMPLAINT).collect()
}
