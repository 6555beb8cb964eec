//! A node that joins: its certificates from disk, or signed through the join endpoint for whoever shows the token.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::join::{AGENT, AgentAnswer, AgentRequest};
use crate::pki::{Pair, request};
use crate::settings::{AgentState, load, save};
use crate::token::Token;
use crate::{call, host};

/// Certificates last a year and are renewed at a start in their last third.
const RENEW_AFTER: Duration = Duration::from_secs(240 * 24 * 3600);
/// Between two attempts to join.
const RETRY: Duration = Duration::from_millis(250);

/// What a node is told at its first start.
pub struct Newcomer {
    /// A server's URL.
    pub server: Option<String>,
    pub token: Option<Token>,
    /// `None`: the host's.
    pub name: Option<String>,
    /// `None`: the default route's.
    pub ip: Option<Ipv4Addr>,
}

impl Newcomer {
    /// This node's certificates and what it must know of the cluster, kept in `folder`; `None` when told to stop meanwhile.
    ///
    /// # Errors
    /// When it never joined and was not told how, or a server refuses it.
    pub async fn identity(self, folder: &Path, stop: &CancellationToken) -> Result<Option<AgentState>> {
        let file = folder.join("state.json");
        let known: Option<AgentState> = load(&file)?;
        let now = jiff::Timestamp::now().as_second();
        let (server, token) = match (known, self.server, self.token) {
            (Some(state), Some(_), Some(_)) if state.renew_after > now => return Ok(Some(state)),
            (_, Some(server), Some(token)) => (server, token),
            (Some(state), ..) => return Ok(Some(state)),
            (None, ..) => anyhow::bail!(
                "this node has not joined yet: give --server https://HOST:6443 and --token (server/token on a server)"
            ),
        };
        let node_name = self.name.map_or_else(host::name, Ok)?;
        let node_ip = self.ip.map_or_else(host::address, Ok)?;
        let (kubelet_key, kubelet) = request(&node_name)?;
        let (proxy_key, proxy) = request("proxy")?;
        let body = AgentRequest { name: node_name.clone(), ip: node_ip, kubelet, proxy };
        let Some(answer) = join(&server, &token, &body, stop).await? else { return Ok(None) };
        let state = AgentState {
            node_name,
            node_ip,
            cluster_cidr: answer.cluster_cidr,
            dns_ip: answer.dns_ip,
            domain: answer.domain,
            local_path: answer.local_path,
            authority: answer.authority,
            kubelet: Pair { cert: answer.kubelet, key: kubelet_key },
            proxy: Pair { cert: answer.proxy, key: proxy_key },
            renew_after: now + i64::try_from(RENEW_AFTER.as_secs()).unwrap_or(0),
        };
        save(&file, &state)?;
        Ok(Some(state))
    }
}

/// Asks until there is an answer; only a refusal that repeating can't change is an error.
async fn join(
    server: &str,
    token: &Token,
    body: &AgentRequest,
    stop: &CancellationToken,
) -> Result<Option<AgentAnswer>> {
    loop {
        let attempt = call::post(server, AGENT, token, body);
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            answer = attempt => match answer {
                Ok(answer) => return Ok(Some(answer)),
                Err(error) if error.to_string().contains(" answers 4") => return Err(error),
                Err(error) => warn!("cannot join yet, tried again: {error:#}"),
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}
