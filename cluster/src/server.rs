//! `keelson server`: a store member, an API server, the controllers and the scheduler in one process.
//!
//! Order: who we are (from disk, as founder, or through the join endpoint), the store until it answers, the API server on
//! the store's in-process handle, what every cluster has, then controllers and scheduler, which elect their leaders among
//! all servers. A restart needs no flags.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use clap::Parser;
use ipnet::Ipv4Net;
use keelson_store_proto::client::Etcd;
use keelson_store_proto::etcdserverpb::{Member, MemberListRequest, RangeRequest};
use keelson_store_server::{ClusterState, Handle, Store, TlsConfig};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::addons::addons;
use crate::client::client;
use crate::join::{Door, Membership, SERVER, ServerAnswer, ServerRequest};
use crate::objects::create_missing;
use crate::pki::{Authorities, Pair, Subject, issue, kubeconfig, private_file, private_folder};
use crate::settings::{ServerState, Settings, load, save};
use crate::token::{Role, Token, fingerprint_pem, secret};
use crate::{call, host, token};

/// Between two attempts of anything.
const RETRY: Duration = Duration::from_millis(200);
const API_PORT: u16 = 6443;

#[derive(Parser, Debug)]
#[command(name = "keelson server", version, about = "Store member, API server, controllers and scheduler")]
struct Flags {
    /// Everything the server keeps.
    #[arg(long, default_value = "/var/lib/keelson")]
    data_dir: PathBuf,
    /// Found a new cluster (the default without --server).
    #[arg(long, conflicts_with = "server")]
    cluster_init: bool,
    /// Join the cluster of this server, https://HOST:6443.
    #[arg(long, env = "KEELSON_URL")]
    server: Option<String>,
    /// The join token (server/token on a server).
    #[arg(long, env = "KEELSON_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File with the join token.
    #[arg(long, conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// This server's name [default: the host's]
    #[arg(long)]
    node_name: Option<String>,
    /// This server's address [default: the default route's]
    #[arg(long)]
    node_ip: Option<Ipv4Addr>,
    /// The one address that everything listens on, in place of all of the machine's (API) and 127.0.0.1 (store's clients);
    /// so several servers run beside each other on one machine.
    #[arg(long)]
    bind_address: Option<Ipv4Addr>,
    /// More names and addresses of the API server's certificate.
    #[arg(long, value_delimiter = ',')]
    tls_san: Vec<String>,
    /// Pods of all nodes. Decided by the first server.
    #[arg(long, default_value = "10.244.0.0/16")]
    cluster_cidr: Ipv4Net,
    /// ClusterIPs. Decided by the first server.
    #[arg(long, default_value = "10.96.0.0/16")]
    service_cidr: Ipv4Net,
    /// The cluster's DNS domain. Decided by the first server.
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// Addresses for Services of type LoadBalancer: ranges or CIDRs. Decided by the first server.
    #[arg(long, value_delimiter = ',')]
    load_balancer_pool: Vec<String>,
    /// Folder on the nodes for volumes of the StorageClass local-path. Decided by the first server.
    #[arg(long, default_value = "/var/lib/keelson/local-path")]
    local_path: String,
    /// Silence after which a node counts as lost, e.g. 40s. Decided by the first server.
    #[arg(long, default_value = "40s", value_parser = seconds)]
    node_monitor_grace_period: u32,
}

fn seconds(text: &str) -> Result<u32, String> {
    let span: jiff::SignedDuration =
        text.parse().map_err(|_| format!("{text:?}: want a duration such as 40s"))?;
    u32::try_from(span.as_secs())
        .ok()
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| format!("{text:?}: want 1s or more"))
}

/// The subcommand; `args` start with the program's name.
pub fn main(args: Vec<String>) -> std::process::ExitCode {
    crate::program::<Flags, _>("keelson server", args, run)
}

async fn run(flags: Flags) -> Result<()> {
    let stop = host::stop_token()?;
    let folder = flags.data_dir.join("server");
    private_folder(&folder).with_context(|| unusable(&flags.data_dir))?;
    let Some((state, authorities)) = identity(&flags, &folder, &stop).await? else { return Ok(()) };
    let fingerprint = fingerprint_pem(&authorities.cluster.cert)?;
    write_tokens(&folder, &state.settings, &fingerprint)?;

    // The store ends last: everything above it needs it to stop cleanly.
    let store_stop = CancellationToken::new();
    let store = Store::start(store_config(&folder, &state, &authorities)?, store_stop.clone())
        .await
        .context("store")?;
    let handle = store.handle();
    if !answers(&store, &stop).await? {
        store_stop.cancel();
        return store.stopped().await.context("store");
    }
    let door = Arc::new(Door {
        authorities: authorities.clone(),
        settings: state.settings.clone(),
        fingerprint,
        membership: Arc::new(StoreMembership(handle.clone())),
        now: jiff::Timestamp::now,
    });
    let api_stop = CancellationToken::new();
    let api = api_config(&flags, &state, &authorities, handle, door)?;
    let mut api = tokio::spawn(keelson_apiserver::run(api, api_stop.clone()));
    let parts = tokio::spawn(above_the_api(folder, state, authorities, stop.clone()));
    let ended = tokio::select! {
        ended = &mut api => Some(ended),
        ended = store.stopped() => {
            ended.context("store")?;
            bail!("the store ended by itself")
        }
        () = stop.cancelled() => None,
    };
    stop.cancel();
    let parts = parts.await.context("controllers and scheduler");
    api_stop.cancel();
    let api = match ended {
        Some(ended) => ended,
        None => api.await,
    };
    store_stop.cancel();
    store.stopped().await.context("store")?;
    api.context("the API server broke")?.context("API server")?;
    parts?
}

fn unusable(folder: &Path) -> String {
    format!("cannot use {}: choose another --data-dir, or run this as root", folder.display())
}

/// Who this server is; `None` when told to stop while joining.
async fn identity(
    flags: &Flags,
    folder: &Path,
    stop: &CancellationToken,
) -> Result<Option<(ServerState, Authorities)>> {
    let (state_file, pki) = (folder.join("state.json"), folder.join("pki"));
    if let Some(state) = load::<ServerState>(&state_file)? {
        let authorities = Authorities::load(&pki)?
            .with_context(|| format!("{} is there but {} is empty", state_file.display(), pki.display()))?;
        return Ok(Some((state, authorities)));
    }
    let node_name = flags.node_name.clone().map_or_else(host::name, Ok)?;
    let node_ip = flags.node_ip.map_or_else(host::address, Ok)?;
    let peer_url = peer_url(node_ip);
    let (state, authorities) = match &flags.server {
        None => {
            let settings = Settings {
                cluster_cidr: flags.cluster_cidr,
                service_cidr: flags.service_cidr,
                domain: flags.cluster_domain.clone(),
                load_balancer_pool: flags.load_balancer_pool.clone(),
                local_path: flags.local_path.clone(),
                node_monitor_grace_seconds: flags.node_monitor_grace_period,
                server_secret: secret(),
                node_secret: secret(),
            };
            settings.check()?;
            let members = vec![(node_name.clone(), peer_url)];
            let bind = flags.bind_address;
            let state = ServerState { node_name, node_ip, bind, settings, members, founder: true };
            info!(name = state.node_name, "founding a cluster");
            (state, Authorities::create(jiff::Timestamp::now())?)
        }
        Some(server) => {
            let token = join_token(flags)?;
            let body = ServerRequest { name: node_name.clone(), ip: node_ip, peer_url };
            let Some(answer) = patiently::<ServerAnswer>(server, SERVER, &token, &body, stop).await? else {
                return Ok(None);
            };
            let state = ServerState {
                node_name,
                node_ip,
                bind: flags.bind_address,
                settings: answer.settings,
                members: answer.members,
                founder: false,
            };
            (state, answer.authorities)
        }
    };
    authorities.save(&pki)?;
    save(&state_file, &state)?;
    Ok(Some((state, authorities)))
}

fn join_token(flags: &Flags) -> Result<Token> {
    token::given(flags.token.as_deref(), flags.token_file.as_deref())?
        .context("--server needs --token or --token-file: the file server/token of a running server")
}

/// Asks until there is an answer; only a refusal that repeating can't change is an error.
async fn patiently<A: serde::de::DeserializeOwned>(
    server: &str,
    path: &str,
    token: &Token,
    body: &impl serde::Serialize,
    stop: &CancellationToken,
) -> Result<Option<A>> {
    let mut said = String::new();
    loop {
        let answer = tokio::select! {
            () = stop.cancelled() => return Ok(None),
            answer = call::post(server, path, token, body) => answer,
        };
        match answer {
            Ok(answer) => return Ok(Some(answer)),
            Err(error) if error.to_string().contains(" answers 4") => return Err(error),
            Err(error) => {
                let text = format!("{error:#}");
                if text != said {
                    warn!("cannot join yet, tried again: {text}");
                    said = text;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn write_tokens(folder: &Path, settings: &Settings, fingerprint: &str) -> Result<()> {
    for (file, role, secret) in
        [("token", Role::Server, &settings.server_secret), ("node-token", Role::Node, &settings.node_secret)]
    {
        let token = Token { authority: fingerprint.to_owned(), role, secret: secret.clone() };
        private_file(&folder.join(file), format!("{token}\n").as_bytes())?;
    }
    Ok(())
}

fn peer_url(ip: Ipv4Addr) -> String {
    format!("https://{ip}:2380")
}

fn store_config(
    folder: &Path,
    state: &ServerState,
    authorities: &Authorities,
) -> Result<keelson_store_server::Config> {
    let pki = folder.join("pki");
    let now = jiff::Timestamp::now();
    let member = Subject {
        name: &state.node_name,
        group: None,
        addresses: vec![state.node_ip.into(), Ipv4Addr::LOCALHOST.into(), state.local().into()],
        hosts: vec!["localhost".into(), state.node_name.clone()],
    };
    for (file, subject) in
        [("store-member", &member), ("store-client", &Subject { name: "root", ..Subject::default() })]
    {
        let pair = issue(&authorities.store, subject, now)?;
        private_file(&pki.join(format!("{file}.crt")), pair.cert.as_bytes())?;
        private_file(&pki.join(format!("{file}.key")), pair.key.as_bytes())?;
    }
    let tls = TlsConfig {
        cert_file: pki.join("store-member.crt"),
        key_file: pki.join("store-member.key"),
        trusted_ca_file: Some(pki.join("store-ca.crt")),
        client_cert_auth: true,
        // A node reaches its peers from any of its addresses.
        skip_client_san_verify: true,
        ..TlsConfig::default()
    };
    let client_url = format!("https://{}:2379", state.local());
    Ok(keelson_store_server::Config {
        name: state.node_name.clone(),
        data_dir: folder.join("store"),
        listen_client_urls: vec![client_url.clone()],
        advertise_client_urls: vec![client_url],
        listen_peer_urls: vec![peer_url(state.node_ip)],
        initial_advertise_peer_urls: vec![peer_url(state.node_ip)],
        initial_cluster: state.members.clone(),
        initial_cluster_state: if state.founder { ClusterState::New } else { ClusterState::Existing },
        initial_cluster_token: "keelson".into(),
        tls: Some(tls.clone()),
        peer_tls: Some(tls),
        // Twice the store's own: a busy machine shall not lose its leader to a late heartbeat.
        heartbeat_interval: Duration::from_millis(200),
        election_timeout: Duration::from_secs(2),
        ..keelson_store_server::Config::default()
    })
}

/// Waits until the store answers a consistent read: it has a leader and, for a newcomer, has made it a voter. `false`: told
/// to stop.
async fn answers(store: &Store, stop: &CancellationToken) -> Result<bool> {
    let handle = store.handle();
    let read = RangeRequest { key: "/keelson/ready".into(), ..RangeRequest::default() };
    let mut said = String::new();
    loop {
        let answer = tokio::select! {
            () = stop.cancelled() => return Ok(false),
            ended = store.stopped() => {
                ended.context("store")?;
                bail!("the store ended by itself")
            }
            answer = handle.range(read.clone()) => answer,
        };
        match answer {
            Ok(_) => return Ok(true),
            Err(status) if status.message() != said => {
                said = status.message().to_owned();
                info!("waiting for the store: {said}");
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY / 4).await;
    }
}

fn api_config(
    flags: &Flags,
    state: &ServerState,
    authorities: &Authorities,
    handle: Handle,
    door: Arc<Door>,
) -> Result<keelson_apiserver::Config> {
    let now = jiff::Timestamp::now();
    let domain = &state.settings.domain;
    let mut server = Subject {
        name: "kube-apiserver",
        group: None,
        addresses: vec![
            state.node_ip.into(),
            Ipv4Addr::LOCALHOST.into(),
            state.local().into(),
            state.settings.api_ip().into(),
        ],
        hosts: ["localhost", &state.node_name, "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
            .map(str::to_owned)
            .into(),
    };
    server.hosts.push(format!("kubernetes.default.svc.{domain}"));
    for name in &flags.tls_san {
        match name.parse() {
            Ok(address) => server.addresses.push(address),
            Err(_) => server.hosts.push(name.clone()),
        }
    }
    let serving = issue(&authorities.cluster, &server, now)?;
    let kubelet = Subject {
        name: "kube-apiserver-kubelet-client",
        group: Some("system:masters"),
        ..Subject::default()
    };
    let kubelet = issue(&authorities.cluster, &kubelet, now)?;
    let authority = authorities.cluster.cert.as_bytes().to_vec();
    let pki = keelson_apiserver::Pki {
        // The authority comes along, so that a joiner finds the one its token names.
        server_cert: format!("{}{}", serving.cert, authorities.cluster.cert).into_bytes(),
        server_key: serving.key.into_bytes(),
        client_ca: authority.clone(),
        service_account_key: authorities.service_account_key.as_bytes().to_vec(),
        service_account_verify_keys: vec![],
        kubelet_client: Some((kubelet.cert.into_bytes(), kubelet.key.into_bytes())),
        kubelet_ca: Some(authority),
    };
    let bind = (state.bind.unwrap_or(Ipv4Addr::UNSPECIFIED), API_PORT).into();
    let mut config = keelson_apiserver::Config::new(Arc::new(handle), bind, state.node_ip.into(), pki);
    config.service_cidr = state.settings.service_cidr;
    config.service_account_issuer = format!("https://kubernetes.default.svc.{domain}");
    config.extra = Some(Arc::new(move |request| {
        let door = door.clone();
        Box::pin(async move { door.open(request).await })
    }));
    Ok(config)
}

/// What stands on the API: the admin's kubeconfig, the addons, controllers, scheduler.
async fn above_the_api(
    folder: PathBuf,
    state: ServerState,
    authorities: Authorities,
    stop: CancellationToken,
) -> Result<()> {
    let url = format!("https://{}:{API_PORT}", state.local());
    let authority = &authorities.cluster.cert;
    let user = |name: &str| -> Result<Pair> {
        let subject = Subject { name, group: Some("system:masters"), ..Subject::default() };
        issue(&authorities.cluster, &subject, jiff::Timestamp::now())
    };
    let admin = user("kubernetes-admin")?;
    private_file(
        &folder.join("admin.kubeconfig"),
        kubeconfig(&url, authority, "kubernetes-admin", &admin).as_bytes(),
    )?;
    let admin = client(&url, authority, &admin).await?;
    let objects = addons(state.settings.dns_ip());
    let mut said = String::new();
    while let Err(error) = create_missing(&admin, &objects).await {
        let text = format!("{error:#}");
        if text != said {
            info!("waiting for the API: {text}");
            said = text;
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(RETRY) => {}
        }
    }
    let controllers = keelson_controllers::Config {
        identity: Some(state.node_name.clone()),
        cluster_cidrs: vec![state.settings.cluster_cidr.to_string()],
        node_monitor_grace: jiff::SignedDuration::from_secs(state.settings.node_monitor_grace_seconds.into()),
        root_ca: authority.clone(),
        load_balancer_pool: state.settings.load_balancer_pool.clone(),
        local_path: state.settings.local_path.clone(),
        ..keelson_controllers::Config::default()
    };
    let mut scheduler = keelson_scheduler::Config::default();
    scheduler.leader_election.identity.clone_from(&state.node_name);
    let manager = client(&url, authority, &user("system:kube-controller-manager")?).await?;
    let binder = client(&url, authority, &user("system:kube-scheduler")?).await?;
    let controllers = again("controllers", stop.clone(), || {
        keelson_controllers::run(manager.clone(), controllers.clone(), stop.child_token())
    });
    let scheduler = again("scheduler", stop.clone(), || {
        keelson_scheduler::run(binder.clone(), scheduler.clone(), stop.child_token())
    });
    tokio::join!(controllers, scheduler);
    Ok(())
}

/// Starts a part again when it ends before it was told to.
async fn again<R: Future<Output = Result<()>>>(name: &str, stop: CancellationToken, start: impl Fn() -> R) {
    while !stop.is_cancelled() {
        match start().await {
            Ok(()) if stop.is_cancelled() => return,
            Ok(()) => warn!("{name} ended, started again"),
            Err(error) => warn!("{name} failed, started again: {error:#}"),
        }
        tokio::time::sleep(RETRY * 5).await;
    }
}

/// How long a server that joins waits for one that joined just before it.
const ADDING: Duration = Duration::from_secs(60);

/// The join endpoint's view of the store.
struct StoreMembership(Handle);

impl StoreMembership {
    async fn members(&self) -> Result<Vec<Member>> {
        let list = self.0.member_list(MemberListRequest { linearizable: true }).await;
        Ok(list.context("list the store's members")?.members)
    }

    /// While a member that joined a moment ago has not started, the store takes no other.
    async fn add_patiently(&self, name: &str, peer_url: &str) -> Result<(), tonic::Status> {
        let deadline = tokio::time::Instant::now() + ADDING;
        loop {
            match self.0.add_member(name, vec![peer_url.to_owned()], false).await {
                Err(refused)
                    if matches!(
                        refused.code(),
                        tonic::Code::FailedPrecondition | tonic::Code::Unavailable
                    ) && tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                answer => return answer.map(|_| ()),
            }
        }
    }
}

#[async_trait]
impl Membership for StoreMembership {
    async fn add(&self, name: &str, peer_url: &str) -> Result<Vec<(String, String)>> {
        let known = self.members().await?;
        match known.iter().find(|member| member.peer_ur_ls.iter().any(|url| url == peer_url)) {
            // It asked before and did not get our answer, or never came.
            Some(member) if member.is_learner || member.client_ur_ls.is_empty() => {}
            Some(member) => bail!(
                "{peer_url} is a member already ({:x}): if its data is lost, remove it first (etcdctl member remove)",
                member.id
            ),
            None => {
                self.add_patiently(name, peer_url)
                    .await
                    .with_context(|| format!("add {name} to the store"))?;
            }
        }
        let members = self.members().await?;
        Ok(members
            .into_iter()
            .flat_map(|member| {
                let known_as = if member.peer_ur_ls.iter().any(|url| url == peer_url) {
                    name.to_owned()
                } else {
                    member.name
                };
                member.peer_ur_ls.into_iter().map(move |url| (known_as.clone(), url))
            })
            .collect())
    }
}
