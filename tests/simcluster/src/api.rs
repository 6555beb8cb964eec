//! API servers without sockets, and the way to them: a `kube::Client` whose connections are in-memory streams to
//! whichever server runs, with delays, lost requests and lost answers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use keelson_apiserver::InProcess;
use keelson_apiserver_core::UserInfo;
use kube::client::Body;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Why a request has no answer.
#[derive(Debug)]
pub struct Lost(pub &'static str);

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the simulated network: {}", self.0)
    }
}

impl std::error::Error for Lost {}

/// The servers that run, and the state of the links to them; clones share it.
#[derive(Clone)]
pub struct Servers(Arc<Mutex<Inner>>);

struct Inner {
    running: BTreeMap<u64, Arc<InProcess>>,
    random: SmallRng,
    /// Of a thousand messages, how many are lost.
    lost: u32,
    slowest: Duration,
}

enum Fate {
    /// After so long, at this server.
    Arrives(Duration, Arc<InProcess>),
    NoServer,
    Lost,
}

impl Servers {
    pub fn new(seed: u64, lost: u32, slowest: Duration) -> Servers {
        let random = SmallRng::seed_from_u64(seed);
        Servers(Arc::new(Mutex::new(Inner { running: BTreeMap::new(), random, lost, slowest })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no panic while locked")
    }

    pub fn join(&self, id: u64, server: InProcess) {
        self.inner().running.insert(id, Arc::new(server));
    }

    /// It crashes: whoever waits for an answer waits in vain.
    pub fn crash(&self, id: u64) -> bool {
        let server = self.inner().running.remove(&id);
        server.is_some_and(|server| {
            server.abort();
            true
        })
    }

    pub fn runs(&self, id: u64) -> bool {
        self.inner().running.contains_key(&id)
    }

    /// No losses from here on.
    pub fn heal(&self) {
        self.inner().lost = 0;
    }

    fn delay(&self) -> Option<Duration> {
        let mut inner = self.inner();
        let longest = u64::try_from(inner.slowest.as_micros()).unwrap_or(u64::MAX).max(100);
        let takes = Duration::from_micros(inner.random.random_range(50..=longest));
        let lost = inner.random.random_range(0..1_000) < inner.lost;
        (!lost).then_some(takes)
    }

    fn fate(&self) -> Fate {
        let Some(takes) = self.delay() else { return Fate::Lost };
        let mut inner = self.inner();
        let many = inner.running.len();
        if many == 0 {
            return Fate::NoServer;
        }
        let at = inner.random.random_range(0..many);
        match inner.running.values().nth(at) {
            Some(server) => Fate::Arrives(takes, server.clone()),
            None => Fate::NoServer,
        }
    }

    async fn send(self, user: UserInfo, mut request: Request<Body>) -> Result<Response<Incoming>, Lost> {
        let server = match self.fate() {
            Fate::NoServer => {
                tokio::time::sleep(Duration::from_millis(5)).await;
                return Err(Lost("no API server runs"));
            }
            Fate::Lost => {
                tokio::time::sleep(Duration::from_secs(5)).await;
                return Err(Lost("the request was lost"));
            }
            Fate::Arrives(takes, server) => {
                tokio::time::sleep(takes).await;
                server
            }
        };
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("simulated"));
        let stream = TokioIo::new(server.connect(user));
        drop(server);
        let opened = hyper::client::conn::http1::handshake(stream).await;
        let (mut sender, connection) = opened.map_err(|_| Lost("the server is gone"))?;
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|_| Lost("the server went away"))?;
        match self.delay() {
            Some(takes) => tokio::time::sleep(takes).await,
            None => {
                tokio::time::sleep(Duration::from_secs(5)).await;
                return Err(Lost("the answer was lost"));
            }
        }
        Ok(response)
    }

    /// A client that speaks as this user.
    pub fn client(&self, name: &str, groups: &[&str]) -> kube::Client {
        let user = UserInfo {
            name: name.to_owned(),
            groups: groups.iter().chain(&["system:authenticated"]).map(|group| (*group).to_owned()).collect(),
            ..UserInfo::default()
        };
        let servers = self.clone();
        let service =
            tower::service_fn(move |request: Request<Body>| servers.clone().send(user.clone(), request));
        kube::Client::new(service, "default")
    }

    /// One with all rights.
    pub fn admin(&self) -> kube::Client {
        self.client("admin", &["system:masters"])
    }
}
