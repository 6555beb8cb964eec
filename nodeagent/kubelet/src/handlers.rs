//! Probes and lifecycle hooks: exec, HTTP, TCP and gRPC checks against a container, each with a hard time limit.
//!
//! HTTP answers 200–399 pass; redirects to another host pass as they are. A body is read to a bound and dropped.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::cri::Cri;

/// Where a container can be reached.
#[derive(Clone)]
pub struct Target {
    pub container_id: String,
    pub ip: Option<IpAddr>,
}

/// Runs one probe. `Err` is the failure's text for the event.
pub async fn probe(cri: &Cri, target: &Target, spec: &Container, probe: &Probe) -> Result<(), String> {
    let limit = Duration::from_secs(probe.timeout_seconds.filter(|t| *t > 0).unwrap_or(1) as u64);
    let run = async {
        if let Some(exec) = &probe.exec {
            run_command(cri, target, exec.command.as_deref().unwrap_or_default(), limit).await
        } else if let Some(get) = &probe.http_get {
            http_get(target, spec, get, "kube-probe/1.36").await
        } else if let Some(tcp) = &probe.tcp_socket {
            let at = address(target, tcp.host.as_deref(), &tcp.port, spec)?;
            TcpStream::connect(at).await.map(|_| ()).map_err(|e| format!("dial tcp {at}: {e}"))
        } else if let Some(grpc) = &probe.grpc {
            let port = IntOrString::Int(grpc.port);
            let at = address(target, None, &port, spec)?;
            grpc_health(at, grpc.service.as_deref().unwrap_or_default()).await
        } else {
            Err("the probe names no action".to_string())
        }
    };
    let hard = if probe.exec.is_some() { limit + Duration::from_secs(3) } else { limit };
    match tokio::time::timeout(hard, run).await {
        Ok(result) => result,
        Err(_) => Err(format!("probe timed out after {}s", limit.as_secs())),
    }
}

/// Runs a lifecycle hook within `limit`.
pub async fn hook(
    cri: &Cri,
    target: &Target,
    spec: &Container,
    hook: &LifecycleHandler,
    limit: Duration,
) -> Result<(), String> {
    let run = async {
        if let Some(exec) = &hook.exec {
            run_command(cri, target, exec.command.as_deref().unwrap_or_default(), limit).await
        } else if let Some(get) = &hook.http_get {
            http_get(target, spec, get, "kube-lifecycle/1.36").await
        } else if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
            Ok(())
        } else {
            Ok(())
        }
    };
    tokio::time::timeout(limit, run)
        .await
        .unwrap_or_else(|_| Err(format!("hook timed out after {}s", limit.as_secs())))
}

async fn run_command(cri: &Cri, target: &Target, command: &[String], limit: Duration) -> Result<(), String> {
    let output =
        cri.exec_sync(&target.container_id, command, limit).await.map_err(|e| e.message().to_string())?;
    if output.code == 0 {
        return Ok(());
    }
    let mut text = output.stdout;
    text.extend_from_slice(&output.stderr);
    text.truncate(10 << 10);
    Err(format!("command exited with {}: {}", output.code, String::from_utf8_lossy(&text).trim()))
}

fn address(
    target: &Target,
    host: Option<&str>,
    port: &IntOrString,
    spec: &Container,
) -> Result<SocketAddr, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = spec.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            match named {
                Some(port) => port.container_port,
                None => name.parse().map_err(|_| format!("no container port named \"{name}\""))?,
            }
        }
    };
    let port =
        u16::try_from(number).ok().filter(|p| *p > 0).ok_or_else(|| format!("invalid port {number}"))?;
    let ip = match host.filter(|h| !h.is_empty()) {
        Some("localhost") => IpAddr::from([127, 0, 0, 1]),
        Some(host) => host.parse().map_err(|_| format!("host {host:?} is not an address"))?,
        None => target.ip.ok_or("the pod has no address yet")?,
    };
    Ok(SocketAddr::new(ip, port))
}

async fn http_get(target: &Target, spec: &Container, get: &HTTPGetAction, agent: &str) -> Result<(), String> {
    let at = address(target, get.host.as_deref(), &get.port, spec)?;
    let secure = get.scheme.as_deref() == Some("HTTPS");
    let path = get.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_string() } else { format!("/{path}") };
    let given = get.http_headers.as_deref().unwrap_or_default();
    let host = given
        .iter()
        .find(|h| h.name.eq_ignore_ascii_case("host"))
        .map_or(at.to_string(), |h| h.value.clone());
    let mut request =
        http::Request::get(&path).header("host", host).header("accept", "*/*").header("connection", "close");
    if !given.iter().any(|h| h.name.eq_ignore_ascii_case("user-agent")) {
        request = request.header("user-agent", agent);
    }
    for header in given.iter().filter(|h| !h.name.eq_ignore_ascii_case("host")) {
        request = request.header(header.name.as_str(), header.value.as_str());
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let shown = format!("{}://{at}{path}", if secure { "https" } else { "http" });
    let stream = TcpStream::connect(at).await.map_err(|e| format!("Get \"{shown}\": dial tcp {at}: {e}"))?;
    let status = if secure {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(crate::tls::trusting_client()?));
        let name = rustls_pki_types::ServerName::IpAddress(at.ip().into());
        let stream = connector.connect(name, stream).await.map_err(|e| format!("Get \"{shown}\": {e}"))?;
        send(stream, request).await
    } else {
        send(stream, request).await
    };
    let status = status.map_err(|e| format!("Get \"{shown}\": {e}"))?;
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {status}"))
    }
}

async fn send<S>(stream: S, request: http::Request<Empty<Bytes>>) -> Result<u16, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|e| e.to_string());
    let status = match answer {
        Ok(answer) => {
            let status = answer.status().as_u16();
            // Read on a little, so that the server does not see a reset.
            let _ = Limited::new(answer.into_body(), 10 << 10).collect().await;
            Ok(status)
        }
        Err(e) => Err(e),
    };
    driver.abort();
    status
}

/// `grpc.health.v1.Health/Check`, spoken without generated code: one string in, one enum out.
async fn grpc_health(at: SocketAddr, service: &str) -> Result<(), String> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Check {
        #[prost(string, tag = "1")]
        service: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Answer {
        #[prost(int32, tag = "1")]
        status: i32,
    }
    let endpoint =
        tonic::transport::Endpoint::from_shared(format!("http://{at}")).map_err(|e| e.to_string())?;
    let channel = endpoint.connect().await.map_err(|e| format!("dial {at}: {e}"))?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|e| e.to_string())?;
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec: tonic_prost::ProstCodec<Check, Answer> = tonic_prost::ProstCodec::default();
    let request = tonic::Request::new(Check { service: service.to_string() });
    let answer = client.unary(request, path, codec).await.map_err(|e| e.message().to_string())?;
    match answer.into_inner().status {
        1 => Ok(()),
        other => Err(format!("service unhealthy (responded with status {other})")),
    }
}
