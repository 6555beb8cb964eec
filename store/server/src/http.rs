//! The client port: gRPC to the services, everything else to the small HTTP/1 API (health, version, metrics).

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use keelson_store_core::{AlarmType, RangeRequest};
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

use crate::calls::{Calls, Method, Outcome};
use crate::door::Answer;
use crate::handle::{CLUSTER_VERSION, ETCD_VERSION, Handle};
use crate::listen::{RequestBody, Serve, plain};
use crate::metrics::Metrics;
use crate::service::{self, OVERHEAD};

/// How long a health check may take; probes give up sooner than clients.
const PROBE: Duration = Duration::from_secs(3);

const TEXT: &str = "text/plain; charset=utf-8";

/// Answers clients.
#[derive(Clone)]
pub(crate) struct ClientService {
    pub handle: Handle,
    pub metrics: Metrics,
    /// Absent on listeners that only serve health and metrics.
    pub routes: Option<Routes>,
    /// Whether anything but gRPC is served.
    pub http: bool,
}

impl Calls for ClientService {
    fn largest(&self) -> usize {
        self.handle.config().max_request_bytes + OVERHEAD
    }

    fn patience(&self) -> Duration {
        self.handle.config().request_timeout()
    }

    fn call(&self, method: Method, message: Bytes, answer: Answer) -> Outcome {
        if self.routes.is_none() {
            return Outcome::Pass;
        }
        let outcome = self.handle.small_call(method, message, answer);
        if !matches!(outcome, Outcome::Pass) {
            self.metrics.started(method.path());
        }
        outcome
    }
}

impl Serve for ClientService {
    async fn serve(&self, request: Request<RequestBody>) -> Response<Body> {
        let grpc = request
            .headers()
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        match &self.routes {
            Some(routes) if grpc => {
                self.metrics.started(request.uri().path());
                if let Err(refusal) = service::admit(&self.handle, request.uri().path(), request.headers()) {
                    return refusal.into_http();
                }
                let answered = routes.clone().call(request).await;
                answered.unwrap_or_else(|never| match never {})
            }
            _ if self.http => self.http(&request).await,
            // --listen-client-http-urls took it elsewhere.
            _ => plain(StatusCode::NOT_FOUND, TEXT, "404 page not found\n"),
        }
    }
}

/// Checks of /livez and /readyz, in the order they are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

impl Check {
    const LIVE: &[Check] = &[Check::SerializableRead];
    const READY: &[Check] =
        &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];

    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }
}

fn query<'a>(request: &'a Request<RequestBody>, name: &str) -> Vec<&'a str> {
    let pairs = request.uri().query().unwrap_or_default().split('&');
    pairs
        .filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then_some(value)
        })
        .collect()
}

impl ClientService {
    async fn http(&self, request: &Request<RequestBody>) -> Response<Body> {
        let path = request.uri().path();
        let known = ["/health", "/livez", "/readyz", "/version", "/metrics"];
        let probe = path.strip_prefix("/livez/").or_else(|| path.strip_prefix("/readyz/"));
        if !known.contains(&path) && probe.is_none() {
            return plain(StatusCode::NOT_FOUND, TEXT, "404 page not found\n");
        }
        if request.method() != http::Method::GET {
            return plain(StatusCode::METHOD_NOT_ALLOWED, TEXT, "Method Not Allowed\n");
        }
        match path {
            "/health" => self.health(request).await,
            "/version" => {
                let body = format!(
                    r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{CLUSTER_VERSION}","storage":"{CLUSTER_VERSION}"}}"#
                );
                plain(StatusCode::OK, "application/json", body)
            }
            "/metrics" => {
                let body = self.metrics.render(&self.handle).await;
                plain(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body)
            }
            _ => self.probe(request, path, probe).await,
        }
    }

    async fn health(&self, request: &Request<RequestBody>) -> Response<Body> {
        let excluded = query(request, "exclude");
        let serializable = query(request, "serializable").contains(&"true");
        let reason = self.unhealthy(&excluded, serializable).await;
        let (code, healthy) = match reason {
            None => (StatusCode::OK, "true"),
            Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "false"),
        };
        let body = serde_json::json!({ "health": healthy, "reason": reason.unwrap_or_default() });
        plain(code, TEXT, body.to_string())
    }

    async fn unhealthy(&self, excluded: &[&str], serializable: bool) -> Option<String> {
        let alarms = self.handle.at_once(|state, _| state.alarms().clone()).await;
        let alarms = match alarms {
            Ok(alarms) => alarms,
            Err(error) => return Some(format!("RANGE ERROR:{}", error.message())),
        };
        for alarm in alarms {
            let name = match alarm.alarm {
                AlarmType::NoSpace => "NOSPACE",
                AlarmType::Corrupt => "CORRUPT",
            };
            if !excluded.contains(&name) {
                return Some(format!("ALARM {name}"));
            }
        }
        if !serializable && self.handle.replica().leader_id() == 0 {
            return Some("RAFT NO LEADER".to_owned());
        }
        let check = if serializable { Check::SerializableRead } else { Check::LinearizableRead };
        self.run(check).await.err().map(|error| format!("RANGE ERROR:{error}"))
    }

    async fn run(&self, check: Check) -> Result<(), String> {
        let work = async {
            match check {
                Check::DataCorruption => {
                    let corrupt = self.handle.at_once(|state, _| state.has_alarm(AlarmType::Corrupt)).await;
                    match corrupt {
                        Ok(false) => Ok(()),
                        Ok(true) => Err("ALARM CORRUPT".to_owned()),
                        Err(error) => Err(error.message().to_owned()),
                    }
                }
                Check::SerializableRead => self.read_one().await,
                Check::LinearizableRead => {
                    self.handle.linearize().await.map_err(|error| error.message().to_owned())?;
                    self.read_one().await
                }
                Check::NonLearner => self.handle.voters_only().map_err(|error| error.message().to_owned()),
            }
        };
        tokio::time::timeout(PROBE, work)
            .await
            .unwrap_or_else(|_| Err("context deadline exceeded".to_owned()))
    }

    async fn read_one(&self) -> Result<(), String> {
        let request = RangeRequest { key: "a".into(), limit: 1, ..RangeRequest::default() };
        let answer =
            self.handle.at_once(|state, rocks| keelson_store_core::range(state, rocks, &request)).await;
        answer.map_err(|error| error.message().to_owned())?.map(|_| ()).map_err(|error| error.to_string())
    }

    async fn probe(
        &self,
        request: &Request<RequestBody>,
        path: &str,
        single: Option<&str>,
    ) -> Response<Body> {
        let live = path.starts_with("/livez");
        let checks = if live { Check::LIVE } else { Check::READY };
        let chosen: Vec<Check> = match single {
            Some(name) => checks.iter().copied().filter(|check| check.name() == name).collect(),
            None => {
                let excluded = query(request, "exclude");
                checks.iter().copied().filter(|check| !excluded.contains(&check.name())).collect()
            }
        };
        if single.is_some() && chosen.is_empty() {
            return plain(StatusCode::NOT_FOUND, TEXT, "404 page not found\n");
        }
        let mut lines = String::new();
        let mut failed = false;
        for check in chosen {
            match self.run(check).await {
                Ok(()) => lines.push_str(&format!("[+]{} ok\n", check.name())),
                Err(error) => {
                    failed = true;
                    lines.push_str(&format!("[-]{} failed: {error}\n", check.name()));
                }
            }
        }
        if failed {
            return plain(StatusCode::SERVICE_UNAVAILABLE, TEXT, lines);
        }
        let verbose =
            request.uri().query().unwrap_or_default().split('&').any(|pair| pair.starts_with("verbose"));
        let body = if verbose { lines + "ok\n" } else { "ok\n".to_owned() };
        plain(StatusCode::OK, TEXT, body)
    }
}
