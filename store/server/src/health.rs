//! `/health`, `/livez` and `/readyz`: what is checked, and what is said of it; bodies are etcd's to the byte.

use std::time::Duration;

use http::{Response, StatusCode};
use keelson_store_core::{AlarmType, RangeRequest};
use tonic::body::Body;

use crate::handle::Handle;
use crate::http::{TEXT, failure, not_found};
use crate::listen::plain;
use crate::metrics::Metrics;

/// How long a health check may take; probes give up sooner than clients.
const PROBE: Duration = Duration::from_secs(3);

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

/// Values of a query parameter.
fn query<'a>(query: &'a str, name: &str) -> Vec<&'a str> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).collect()
}

/// Checks one member.
pub(crate) struct Health<'a> {
    pub handle: &'a Handle,
    pub metrics: &'a Metrics,
}

impl Health<'_> {
    /// `/health`: alarms, a leader, a read.
    pub async fn health(&self, asked: &str) -> Response<Body> {
        let excluded = query(asked, "exclude");
        let serializable = query(asked, "serializable").first() == Some(&"true");
        let reason = self.unhealthy(&excluded, serializable).await;
        self.metrics.health(reason.is_none());
        let healthy = if reason.is_none() { "true" } else { "false" };
        let said = reason.as_deref().unwrap_or_default();
        let body = format!("{{\"health\":\"{healthy}\",\"reason\":{}}}", serde_json::Value::from(said));
        match reason {
            None => plain(StatusCode::OK, TEXT, body),
            Some(_) => failure(StatusCode::SERVICE_UNAVAILABLE, &body),
        }
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
                        Ok(true) => Err("alarm activated: CORRUPT".to_owned()),
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

    /// `/livez`, `/readyz`, or one check of them by name.
    pub async fn probe(&self, ready: bool, single: Option<&str>, asked: &str) -> Response<Body> {
        let (probe, checks) = if ready { ("readyz", Check::READY) } else { ("livez", Check::LIVE) };
        let chosen: Vec<Check> = match single {
            Some(name) => checks.iter().copied().filter(|check| check.name() == name).collect(),
            None => {
                let excluded = query(asked, "exclude");
                checks.iter().copied().filter(|check| !excluded.contains(&check.name())).collect()
            }
        };
        if single.is_some() && chosen.is_empty() {
            return not_found();
        }
        let mut lines = String::new();
        let mut failed = false;
        for check in chosen {
            let result = self.run(check).await;
            self.metrics.checked(probe, check.name(), result.is_ok());
            match result {
                Ok(()) => lines.push_str(&format!("[+]{} ok\n", check.name())),
                Err(error) => {
                    failed = true;
                    lines.push_str(&format!("[-]{} failed: {error}\n", check.name()));
                }
            }
        }
        if failed {
            return failure(StatusCode::SERVICE_UNAVAILABLE, &lines);
        }
        let verbose = !query(asked, "verbose").is_empty();
        plain(StatusCode::OK, TEXT, if verbose { lines + "ok\n" } else { "ok\n".to_owned() })
    }
}
