//! Finding the other members of a new cluster: through a second cluster (v3 discovery), or in DNS.
//!
//! v3 discovery: under `/_etcd/registry/<token>/` stand `_config/size` and, per member, `members/<id>` with
//! `name=url,…`. Who comes first is in; whoever comes after the size is reached is refused.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::{RData, RecordType};
use keelson_store_proto::client::{ClientTls, Etcd, Remote};
use keelson_store_proto::etcdserverpb as pb;

use crate::config::{Address, Config, Discovery, DnsSrv, Endpoint};
use crate::flags::initial_cluster;
use crate::identity::initial_ids;

/// Between two looks at who has registered.
const POLL: Duration = Duration::from_millis(500);

/// Names and peer URLs of all members, and the token that makes their ids.
pub struct Found {
    /// As of `--initial-cluster`.
    pub members: Vec<(String, String)>,
    /// As of `--initial-cluster-token`.
    pub token: String,
}

/// Asks wherever the configuration says; `None` when it names its members itself.
///
/// # Errors
/// The cluster is full, no size is set, DNS does not know us.
pub async fn find(config: &Config) -> Result<Option<Found>> {
    if let Some(discovery) = &config.discovery {
        return join(config, discovery).await.map(Some);
    }
    match &config.discovery_srv {
        Some(srv) => {
            let members = from_dns(config, srv).await?;
            Ok(Some(Found { members, token: config.initial_cluster_token.clone() }))
        }
        None => Ok(None),
    }
}

/// The discovery service, as one new cluster sees it.
struct Registry<'a> {
    client: Remote,
    settings: &'a Discovery,
}

/// A registered member.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Registered {
    key: String,
    /// `name=url,…`
    info: String,
}

impl Registry<'_> {
    fn key(&self, rest: &str) -> String {
        format!("/_etcd/registry/{}/{rest}", self.settings.token)
    }

    async fn range(&self, key: String, prefix: bool) -> Result<pb::RangeResponse> {
        let mut end = key.clone().into_bytes();
        // The key ends in a letter or a slash: its last byte has a successor.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let request = pb::RangeRequest {
            key: key.into(),
            range_end: if prefix { end.into() } else { Default::default() },
            sort_target: pb::range_request::SortTarget::Create.into(),
            ..pb::RangeRequest::default()
        };
        let answer = tokio::time::timeout(self.settings.request_timeout, self.client.range(request)).await;
        answer.context("context deadline exceeded")?.map_err(|status| anyhow!(status.message().to_owned()))
    }

    async fn size(&self) -> Result<Option<Vec<u8>>> {
        let found = self.range(self.key("_config/size"), false).await?;
        Ok(found.kvs.first().map(|kv| kv.value.to_vec()))
    }

    /// In the order they came.
    async fn members(&self) -> Result<Vec<Registered>> {
        let found = self.range(self.key("members/"), true).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        Ok(found.kvs.iter().map(|kv| Registered { key: text(&kv.key), info: text(&kv.value) }).collect())
    }

    async fn register(&self, key: &str, info: &str) -> Result<()> {
        let request = pb::PutRequest {
            key: key.to_owned().into(),
            value: info.to_owned().into(),
            ..Default::default()
        };
        let answer = tokio::time::timeout(self.settings.request_timeout, self.client.put(request)).await;
        answer
            .context("context deadline exceeded")?
            .map_err(|status| anyhow!(status.message().to_owned()))?;
        Ok(())
    }
}

/// Repeats what failed for want of the service, which may start after us.
async fn patiently<T, F: Future<Output = Result<T>>>(ask: impl Fn() -> F) -> T {
    let mut wait = POLL;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "retry connecting to discovery service");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(30));
            }
        }
    }
}

/// Who is in: the first `size` of those registered.
///
/// # Errors
/// We are not registered and all places are taken.
fn places<'a>(registered: &'a [Registered], size: usize, ours: &str) -> Result<&'a [Registered]> {
    let taken = &registered[..registered.len().min(size)];
    if taken.len() == size && !taken.iter().any(|member| member.key == ours) {
        bail!("discovery: cluster is full");
    }
    Ok(taken)
}

async fn join(config: &Config, settings: &Discovery) -> Result<Found> {
    let tls = settings.tls.as_ref().map(|(ca, cert, key)| -> Result<ClientTls> {
        let read = |path: &std::path::Path| std::fs::read(path).with_context(|| path.display().to_string());
        let identity = if cert.as_os_str().is_empty() { None } else { Some((read(cert)?, read(key)?)) };
        Ok(ClientTls { ca: read(ca)?, identity, domain: None })
    });
    let client = Remote::connect(&settings.endpoints, tls.transpose()?).await?;
    let registry = Registry { client, settings };
    let ourselves = BTreeMap::from([(config.name.clone(), config.initial_advertise_peer_urls.clone())]);
    let id = initial_ids(&ourselves, &settings.token)[&config.name];
    let ours = registry.key(&format!("members/{id:x}"));
    let size = patiently(|| registry.size()).await.context("discovery: size key not found")?;
    let size: usize = std::str::from_utf8(&size)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .filter(|size| *size > 0)
        .context("discovery: size key is bad")?;
    places(&patiently(|| registry.members()).await, size, &ours)?;
    let info: Vec<String> =
        config.initial_advertise_peer_urls.iter().map(|url| format!("{}={url}", config.name)).collect();
    let info = info.join(",");
    patiently(|| registry.register(&ours, &info)).await;
    loop {
        let registered = patiently(|| registry.members()).await;
        let taken = places(&registered, size, &ours)?;
        if taken.len() == size {
            let infos: Vec<&str> = taken.iter().map(|member| member.info.as_str()).collect();
            let members = initial_cluster(&infos.join(",")).map_err(|error| anyhow!(error))?;
            tracing::info!(cluster = infos.join(","), "discovery joined cluster successfully");
            return Ok(Found { members, token: settings.token.clone() });
        }
        tracing::info!(found = taken.len(), needed = size, "waiting for peers from discovery service");
        tokio::time::sleep(POLL).await;
    }
}

fn resolver() -> Result<TokioResolver> {
    TokioResolver::builder_tokio()
        .and_then(|builder| builder.build())
        .context("no DNS server is configured on this machine")
}

/// Names of an address; none when DNS does not answer.
pub async fn reverse(address: IpAddr) -> Vec<String> {
    let Ok(resolver) = resolver() else { return Vec::new() };
    let Ok(found) = resolver.reverse_lookup(address).await else { return Vec::new() };
    found
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::PTR(name) => Some(name.to_utf8().trim_end_matches('.').to_owned()),
            _ => None,
        })
        .collect()
}

/// (host, port) of a service.
async fn srv(resolver: &TokioResolver, name: &str) -> Result<Vec<(String, u16)>> {
    let found = resolver.lookup(name, RecordType::SRV).await.with_context(|| format!("lookup {name}"))?;
    Ok(found
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some((srv.target.to_utf8().trim_end_matches('.').to_owned(), srv.port)),
            _ => None,
        })
        .collect())
}

async fn addresses(host: &str, port: u16) -> Vec<SocketAddr> {
    tokio::net::lookup_host((host, port)).await.map(Iterator::collect).unwrap_or_default()
}

async fn from_dns(config: &Config, settings: &DnsSrv) -> Result<Vec<(String, String)>> {
    let resolver = resolver()?;
    let mut ours = Vec::new();
    for url in &config.initial_advertise_peer_urls {
        if let Address::Tcp(host, port) = Endpoint::parse(url)?.address {
            ours.extend(addresses(&host, port).await);
        }
    }
    let suffix = if settings.service.is_empty() { String::new() } else { format!("-{}", settings.service) };
    let mut members = Vec::new();
    let mut last = None;
    for (scheme, service) in [("https", "etcd-server-ssl"), ("http", "etcd-server")] {
        let name = format!("_{service}{suffix}._tcp.{}.", settings.domain.trim_end_matches('.'));
        let targets = match srv(&resolver, &name).await {
            Ok(targets) => targets,
            Err(error) => {
                last = Some(error);
                continue;
            }
        };
        for (host, port) in targets {
            let us = addresses(&host, port).await.iter().any(|address| ours.contains(address));
            let member = if us { config.name.clone() } else { members.len().to_string() };
            let url = format!("{scheme}://{host}:{port}");
            tracing::info!(node = format!("{member}={url}"), "got bootstrap from DNS for etcd-server");
            members.push((member, url));
        }
    }
    match last {
        Some(error) if members.is_empty() => Err(error.context("error setting up initial cluster")),
        _ if !members.iter().any(|(name, _)| *name == config.name) => bail!(
            "error setting up initial cluster: cannot find local etcd member {:?} in SRV records",
            config.name
        ),
        _ => Ok(members),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_go_to_the_first() {
        let of = |keys: &[&str]| -> Vec<Registered> {
            keys.iter().map(|key| Registered { key: (*key).to_owned(), info: String::new() }).collect()
        };
        assert_eq!(places(&of(&["a"]), 3, "b").expect("room left").len(), 1);
        assert_eq!(places(&of(&["a", "b", "c", "d"]), 3, "b").expect("among them").len(), 3);
        assert!(places(&of(&["a", "b", "c"]), 3, "d").is_err(), "full");
        assert!(places(&of(&["a", "b", "c", "d"]), 3, "d").is_err(), "came too late");
    }
}
