//! Joining: what a running server hands to a newcomer that shows the token.
//!
//! `POST /keelson/v1/join/server` gives a new server the authorities' keys and the member list, after adding it to the store
//! (which counts it for the quorum only once it has caught up, so a newcomer that never comes can't block the cluster);
//! `POST /keelson/v1/join/agent` signs a node's certificate requests. All else stays behind the API server's own
//! authentication.
//!
//! Hazard: the handler runs before authentication, so the token is compared first, in constant time.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use ipnet::Ipv4Net;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::pki::{Authorities, Subject, sign};
use crate::settings::Settings;
use crate::token::{Role, Token, same_secret};

pub const SERVER: &str = "/keelson/v1/join/server";
pub const AGENT: &str = "/keelson/v1/join/agent";

#[derive(Debug, Serialize, Deserialize)]
pub struct ServerRequest {
    pub name: String,
    pub ip: Ipv4Addr,
    pub peer_url: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ServerAnswer {
    pub authorities: Authorities,
    pub settings: Settings,
    /// (name, peer URL) of every member, the newcomer included.
    pub members: Vec<(String, String)>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct AgentRequest {
    pub name: String,
    pub ip: Ipv4Addr,
    /// PKCS#10, PEM.
    pub kubelet: String,
    pub proxy: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct AgentAnswer {
    pub authority: String,
    pub kubelet: String,
    pub proxy: String,
    pub cluster_cidr: Ipv4Net,
    pub dns_ip: Ipv4Addr,
    pub domain: String,
    /// Folder of the StorageClass local-path on every node.
    pub local_path: String,
}

/// The store's membership, as the join endpoint changes it.
#[async_trait]
pub trait Membership: Send + Sync + 'static {
    /// Adds a member; one that was added before and never came is no error. Returns (name, peer URL) of all members.
    async fn add(&self, name: &str, peer_url: &str) -> Result<Vec<(String, String)>>;
}

/// The handler behind the API server's extra routes.
pub struct Door {
    pub authorities: Authorities,
    pub settings: Settings,
    pub fingerprint: String,
    pub membership: Arc<dyn Membership>,
    pub now: fn() -> jiff::Timestamp,
}

enum Refusal {
    Unauthorized,
    Bad(anyhow::Error),
    Failed(anyhow::Error),
}

impl Door {
    /// `None`: not a path of ours.
    pub async fn open(&self, request: Request<Bytes>) -> Option<Response<Bytes>> {
        let path = request.uri().path().to_owned();
        if ![SERVER, AGENT].contains(&path.as_str()) {
            return None;
        }
        if request.method() != Method::POST {
            return Some(respond(StatusCode::METHOD_NOT_ALLOWED, "POST only".into()));
        }
        let answer = match path.as_str() {
            SERVER => self.server(&request).await,
            _ => self.agent(&request),
        };
        Some(match answer {
            Ok(body) => respond(StatusCode::OK, body),
            Err(Refusal::Unauthorized) => respond(
                StatusCode::UNAUTHORIZED,
                "the token is not valid here: see server/token on a server".into(),
            ),
            Err(Refusal::Bad(error)) => respond(StatusCode::BAD_REQUEST, format!("{error:#}")),
            Err(Refusal::Failed(error)) => respond(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")),
        })
    }

    /// The bearer's role, if the token is of this cluster.
    fn role(&self, request: &Request<Bytes>) -> Result<Role, Refusal> {
        let bearer = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = bearer.and_then(|value| value.strip_prefix("Bearer "));
        let token: Token = token.and_then(|text| text.parse().ok()).ok_or(Refusal::Unauthorized)?;
        let secret = match token.role {
            Role::Server => &self.settings.server_secret,
            Role::Node => &self.settings.node_secret,
        };
        if same_secret(&token.secret, secret) && token.authority == self.fingerprint {
            Ok(token.role)
        } else {
            Err(Refusal::Unauthorized)
        }
    }

    fn server_role(&self, request: &Request<Bytes>) -> Result<(), Refusal> {
        match self.role(request)? {
            Role::Server => Ok(()),
            Role::Node => {
                Err(Refusal::Bad(anyhow!("a node's token can't make a server: use the server token")))
            }
        }
    }

    async fn server(&self, request: &Request<Bytes>) -> Result<String, Refusal> {
        self.server_role(request)?;
        let newcomer: ServerRequest = read(request)?;
        name(&newcomer.name)?;
        let members =
            self.membership.add(&newcomer.name, &newcomer.peer_url).await.map_err(Refusal::Failed)?;
        tracing::info!(name = newcomer.name, ip = %newcomer.ip, "server joins");
        write(&ServerAnswer {
            authorities: self.authorities.clone(),
            settings: self.settings.clone(),
            members,
        })
    }

    fn agent(&self, request: &Request<Bytes>) -> Result<String, Refusal> {
        self.role(request)?;
        let node: AgentRequest = read(request)?;
        name(&node.name)?;
        let user = format!("system:node:{}", node.name);
        let kubelet = Subject {
            name: &user,
            group: Some("system:nodes"),
            addresses: vec![node.ip.into(), Ipv4Addr::LOCALHOST.into()],
            hosts: vec![node.name.clone()],
        };
        let proxy = Subject { name: "system:kube-proxy", ..Subject::default() };
        let certify = |request: &str, subject: &Subject<'_>| {
            sign(&self.authorities.cluster, request, subject, (self.now)()).map_err(Refusal::Bad)
        };
        let answer = AgentAnswer {
            kubelet: certify(&node.kubelet, &kubelet)?,
            proxy: certify(&node.proxy, &proxy)?,
            authority: self.authorities.cluster.cert.clone(),
            cluster_cidr: self.settings.cluster_cidr,
            dns_ip: self.settings.dns_ip(),
            domain: self.settings.domain.clone(),
            local_path: self.settings.local_path.clone(),
        };
        tracing::info!(name = node.name, ip = %node.ip, "node joins");
        write(&answer)
    }
}

fn read<T: DeserializeOwned>(request: &Request<Bytes>) -> Result<T, Refusal> {
    serde_json::from_slice(request.body()).context("request body").map_err(Refusal::Bad)
}

fn write<T: Serialize>(answer: &T) -> Result<String, Refusal> {
    serde_json::to_string(answer).context("answer").map_err(Refusal::Failed)
}

/// A name becomes part of a user's name, so it must be a plain one.
fn name(name: &str) -> Result<(), Refusal> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    if bytes.len() <= 253
        && bytes.iter().all(|byte| plain(*byte))
        && ends(bytes.first())
        && ends(bytes.last())
    {
        Ok(())
    } else {
        Err(Refusal::Bad(anyhow!("{name:?} is no node name: lower-case letters, digits, '-' and '.' only")))
    }
}

fn respond(status: StatusCode, body: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Members(Mutex<Vec<(String, String)>>);

    #[async_trait]
    impl Membership for Members {
        async fn add(&self, name: &str, peer_url: &str) -> Result<Vec<(String, String)>> {
            let mut members = self.0.lock().expect("no panic while held");
            members.push((name.into(), peer_url.into()));
            Ok(members.clone())
        }
    }

    fn door() -> Door {
        let now = || "2026-01-01T00:00:00Z".parse().expect("a time");
        let authorities = Authorities::create(now()).expect("authorities");
        let settings = Settings {
            cluster_cidr: "10.244.0.0/16".parse().expect("a CIDR"),
            service_cidr: "10.96.0.0/16".parse().expect("a CIDR"),
            domain: "cluster.local".into(),
            load_balancer_pool: vec![],
            node_monitor_grace_seconds: 40,
            local_path: "/var/lib/keelson/local-path".into(),
            server_secret: "abc".into(),
            node_secret: "xyz".into(),
        };
        let fingerprint = crate::token::fingerprint_pem(&authorities.cluster.cert).expect("a certificate");
        Door { authorities, settings, fingerprint, membership: Arc::new(Members::default()), now }
    }

    async fn knock(door: &Door, path: &str, token: &str, body: &impl Serialize) -> (u16, String) {
        let body = Bytes::from(serde_json::to_vec(body).expect("JSON"));
        let request = Request::post(path).header(header::AUTHORIZATION, format!("Bearer {token}"));
        let response = door.open(request.body(body).expect("a request")).await.expect("a path of ours");
        (response.status().as_u16(), String::from_utf8_lossy(response.body()).into_owned())
    }

    #[tokio::test]
    async fn only_the_right_token_opens_and_a_nodes_token_makes_no_server() {
        let door = door();
        let token = |role, secret: &str| {
            Token { authority: door.fingerprint.clone(), role, secret: secret.into() }.to_string()
        };
        let server = ServerRequest {
            name: "n2".into(),
            ip: Ipv4Addr::new(172, 30, 0, 12),
            peer_url: "https://172.30.0.12:2380".into(),
        };
        for wrong in ["", "x", &token(Role::Server, "xyz"), &token(Role::Node, "abc")] {
            assert_eq!(knock(&door, SERVER, wrong, &server).await.0, 401);
        }
        let (code, text) = knock(&door, SERVER, &token(Role::Node, "xyz"), &server).await;
        assert!(code == 400 && !text.contains("PRIVATE"), "{text}");
        let (code, text) = knock(&door, SERVER, &token(Role::Server, "abc"), &server).await;
        let answer: ServerAnswer = serde_json::from_str(&text).expect("an answer");
        assert_eq!((code, answer.authorities), (200, door.authorities.clone()));
        assert_eq!(answer.members, [("n2".to_owned(), "https://172.30.0.12:2380".to_owned())]);
        assert!(
            door.open(Request::post("/keelson/v1/other").body(Bytes::new()).expect("a request"))
                .await
                .is_none()
        );
    }

    #[tokio::test]
    async fn a_node_gets_certificates_for_its_own_name_only() {
        let door = door();
        let token =
            Token { authority: door.fingerprint.clone(), role: Role::Node, secret: "xyz".into() }.to_string();
        let request = |name: &str| AgentRequest {
            name: name.into(),
            ip: Ipv4Addr::new(172, 30, 0, 11),
            kubelet: crate::pki::request("whatever").expect("a request").1,
            proxy: crate::pki::request("whatever").expect("a request").1,
        };
        let (code, text) = knock(&door, AGENT, &token, &request("n1")).await;
        assert_eq!(code, 200, "{text}");
        for bad in ["", "n1,O=system:masters", "N1", "n1:x", "-n1"] {
            assert_eq!(knock(&door, AGENT, &token, &request(bad)).await.0, 400, "{bad}");
        }
    }
}
