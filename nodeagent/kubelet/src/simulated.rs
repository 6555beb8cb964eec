//! A simulated node's shell: registers it, keeps its lease, brings its pods' changes in and their statuses out, and
//! refuses logs and streams, since no container runs.
//!
//! What happens to pods is decided in `keelson_nodeagent_core::simulated`. Needs no root, no runtime and no files but the
//! serving certificate.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use http::StatusCode;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::Ipv4Net;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node as NodeObject;
use keelson_nodeagent_core::pod::admission::Room;
use keelson_nodeagent_core::pod::naming;
use keelson_nodeagent_core::simulated::describe::Description;
use keelson_nodeagent_core::simulated::node::{SimulatedNode, Write};
use kube::api::Api;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::Config;
use crate::events::Events;
use crate::heartbeat;
use crate::publish;
use crate::server;
use crate::source::{Change, FromApi, PodSource as _};
use crate::tls;

/// The status is written anyway this often, in case somebody changed it.
const REPORT: Duration = Duration::from_secs(60);
/// Between two looks for the node's pod range, and after a failure.
const RETRY: Duration = Duration::from_millis(500);
/// Longest sleep without a wake time.
const IDLE: Duration = Duration::from_secs(60);
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Everything a simulated node needs.
#[derive(Clone)]
pub struct Simulation {
    pub node_name: String,
    pub client: kube::Client,
    /// Where its HTTPS server listens; the address is also the node's.
    pub bind: SocketAddr,
    /// PEM files of the serving certificate.
    pub tls_cert: PathBuf,
    pub tls_key: PathBuf,
    /// What the node claims to have.
    pub room: Room,
}

impl Simulation {
    fn description(&self) -> Description {
        Description {
            name: self.node_name.clone(),
            ip: self.bind.ip().to_string(),
            port: self.bind.port(),
            room: self.room,
            version: heartbeat::KUBELET_VERSION.into(),
            architecture: heartbeat::arch().into(),
        }
    }
}

/// Runs one simulated node until `stop`; what its pods are is in the API.
///
/// # Errors
/// When its address can't be listened on, or its certificate can't be read.
pub async fn simulate(simulation: Simulation, stop: CancellationToken) -> anyhow::Result<()> {
    let bind = simulation.bind;
    let listener =
        TcpListener::bind(bind).await.with_context(|| format!("cannot listen on {bind}: is it in use?"))?;
    let mut config = Config::new(&simulation.node_name, bind.ip(), "", std::path::Path::new(""));
    config.tls_cert = Some(simulation.tls_cert.clone());
    config.tls_key = Some(simulation.tls_key.clone());
    let tls = tls::server(&config)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(refuse(simulation.node_name.clone(), listener, tls));
    let api: Api<NodeObject> = Api::all(simulation.client.clone());
    let description = simulation.description();
    heartbeat::register(&simulation.node_name, &description.object(), &api).await;
    tasks.spawn(report(description, api.clone()));
    tasks.spawn(heartbeat::lease(simulation.node_name.clone(), simulation.client.clone()));
    let range = tokio::select! {
        range = pod_range(&simulation.node_name, &api) => range,
        () = stop.cancelled() => return Ok(()),
    };
    info!(node = simulation.node_name, %range, "simulated node runs");
    let node = SimulatedNode::new(&bind.ip().to_string(), range, simulation.room);
    pods(node, &simulation, stop).await;
    tasks.shutdown().await;
    Ok(())
}

async fn report(description: Description, api: Api<NodeObject>) {
    let since = Timestamp::now();
    loop {
        let status = description.status(since, Timestamp::now());
        let wait = match heartbeat::publish(&description.name, &api, &status).await {
            Ok(()) => REPORT,
            Err(kube::Error::Api(e)) if e.code == 404 => {
                heartbeat::register(&description.name, &description.object(), &api).await;
                Duration::ZERO
            }
            Err(e) => {
                warn!(node = description.name, error = %e, "node status not published, will be retried");
                RETRY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// The addresses of the node's pods, once the controllers gave it a range.
async fn pod_range(name: &str, api: &Api<NodeObject>) -> Ipv4Net {
    let mut said = false;
    loop {
        match api.get(name).await {
            Ok(node) => {
                let range = node.spec.and_then(|spec| spec.pod_cidr?.parse().ok());
                if let Some(range) = range {
                    return range;
                }
                if !std::mem::replace(&mut said, true) {
                    info!(node = name, "waiting for the node's pod range (spec.podCIDR)");
                }
            }
            Err(e) => debug!(node = name, error = %e, "cannot read the own node"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The loop: changes and answers in, writes out.
async fn pods(mut node: SimulatedNode, simulation: &Simulation, stop: CancellationToken) {
    let events = Events::start(Some(simulation.client.clone()), &simulation.node_name);
    let (sender, mut changes) = mpsc::channel(64);
    let source = FromApi { client: simulation.client.clone(), node_name: simulation.node_name.clone() };
    let source = tokio::spawn(Box::new(source).run(sender, stop.clone()));
    let mut writes: JoinSet<(String, Result<(), String>)> = JoinSet::new();
    loop {
        let turn = node.turn(Timestamp::now());
        for note in turn.notes {
            events.pod(&note.pod, note.container.as_deref(), false, note.reason, note.message);
        }
        for write in turn.writes {
            let client = simulation.client.clone();
            writes.spawn(async move { carry_out(&client, write).await });
        }
        let until = turn.wake.map(|at| at.duration_since(Timestamp::now()));
        let until = until.map_or(IDLE, |left| left.max(jiff::SignedDuration::ZERO).unsigned_abs().min(IDLE));
        tokio::select! {
            change = changes.recv() => match change {
                Some(change) => take(&mut node, change),
                None => break,
            },
            Some(done) = writes.join_next() => match done {
                Ok((uid, answer)) => node.written(&uid, answer, Timestamp::now()),
                Err(error) => warn!(%error, "a write's task failed"),
            },
            () = tokio::time::sleep(until) => {}
            () = stop.cancelled() => break,
        }
        // What has come meanwhile is taken in before the next turn.
        while let Ok(change) = changes.try_recv() {
            take(&mut node, change);
        }
    }
    source.abort();
}

fn take(node: &mut SimulatedNode, change: Change) {
    let now = Timestamp::now();
    match change {
        Change::Apply(pod) => node.apply(*pod, now),
        Change::Delete(pod) => node.delete(*pod),
        Change::Complete(_, pods) => node.complete(pods, now),
    }
}

async fn carry_out(client: &kube::Client, write: Write) -> (String, Result<(), String>) {
    let (pod, answer) = match write {
        Write::Status { pod, status } => {
            let answer = publish::status(client, &pod, &status).await;
            (pod, answer)
        }
        Write::Delete { pod, status } => {
            let told = match &status {
                Some(status) => publish::status(client, &pod, status).await,
                None => Ok(()),
            };
            let answer = match told {
                Ok(()) => publish::confirm_deletion(client, &pod).await,
                Err(message) => Err(message),
            };
            (pod, answer)
        }
    };
    if let Err(message) = &answer {
        warn!(pod = naming::name(&pod), message, "not written, will be retried");
    }
    (naming::uid(&pod).to_string(), answer)
}

/// Answers everything that a kubelet would be asked with why there is no answer. Nothing here is worth a certificate: it
/// is the same refusal for everybody.
async fn refuse(name: String, listener: TcpListener, tls: rustls::ServerConfig) {
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(tls));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (acceptor, name) = (acceptor.clone(), name.clone());
                tokio::spawn(async move {
                    let answered = tokio::time::timeout(HANDSHAKE * 2, refusal(acceptor, stream, &name));
                    if let Ok(Err(error)) = answered.await {
                        debug!(%error, "connection ended");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn refusal(acceptor: tokio_rustls::TlsAcceptor, stream: TcpStream, name: &str) -> anyhow::Result<()> {
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
        let answer = if request.uri().path() == "/healthz" {
            server::text(StatusCode::OK, "ok")
        } else {
            let what = request.uri().path().split('/').nth(1).unwrap_or_default().to_string();
            server::text(StatusCode::NOT_IMPLEMENTED, why_not(name, &what))
        };
        async move { Ok::<_, Infallible>(answer) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

/// The refusal of a kubelet's path, by its first word.
fn why_not(node: &str, what: &str) -> String {
    let missing = match what {
        "containerLogs" | "logs" => "so there are no logs",
        "exec" | "run" => "so there is nothing to run a command in",
        "attach" => "so there is nothing to attach to",
        "portForward" => "so there is nothing to forward a port to",
        "stats" | "metrics" => "so nothing is measured",
        _ => "so there is no kubelet to ask",
    };
    format!("node {node} is simulated: no container runs on it, {missing}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_is_missing_and_why() {
        let said = why_not("sim-1", "containerLogs");
        assert_eq!(said, "node sim-1 is simulated: no container runs on it, so there are no logs");
        assert!(why_not("sim-1", "exec").contains("command"));
    }
}
