//! Leader election: keeps the Lease while we lead, takes it when it is free.
//!
//! The decisions are `election`'s; here are the clock and the requests. `Leadership` is what the
//! executor asks before each request.

use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_controllers_core::election::{Election, Step, Timing};
use kube::Client;
use kube::api::{Api, PostParams};
use tokio_util::sync::CancellationToken;

/// Whether this process may act, as of now.
#[derive(Debug, Default)]
pub struct Leadership {
    until: Mutex<Option<Timestamp>>,
    always: bool,
}

impl Leadership {
    /// Without election.
    pub fn always() -> Leadership {
        Leadership { until: Mutex::new(None), always: true }
    }

    pub fn leads(&self) -> bool {
        let until = *self.until.lock().unwrap_or_else(|p| p.into_inner());
        self.always || until.is_some_and(|until| Timestamp::now() < until)
    }

    fn set(&self, until: Option<Timestamp>) {
        *self.until.lock().unwrap_or_else(|p| p.into_inner()) = until;
    }
}

#[derive(Clone, Debug)]
pub struct LeaseName {
    pub namespace: String,
    pub name: String,
    /// Unique among candidates: host name and a random part.
    pub identity: String,
}

pub struct Elector {
    leases: Api<Lease>,
    name: LeaseName,
    timing: Timing,
    election: Election,
    /// The Lease as we last read or wrote it.
    last: Option<Lease>,
}

impl Elector {
    pub fn new(client: Client, name: LeaseName, timing: Timing) -> Elector {
        let election = Election::new(&name.identity, timing.clone());
        Elector { leases: Api::namespaced(client, &name.namespace), name, timing, election, last: None }
    }

    /// Waits until we lead; false when stopped before.
    pub async fn acquire(&mut self, leadership: &Leadership, stop: &CancellationToken) -> bool {
        while !stop.is_cancelled() {
            if self.round(leadership).await {
                tracing::info!(lease = %self.name.name, identity = %self.name.identity, "leading");
                return true;
            }
            self.pause(stop).await;
        }
        false
    }

    /// Renews until the lead is lost (returns) or we are stopped (releases and returns).
    pub async fn hold(&mut self, leadership: &Leadership, stop: &CancellationToken) {
        loop {
            self.pause(stop).await;
            if stop.is_cancelled() {
                return;
            }
            self.round(leadership).await;
            if !leadership.leads() {
                tracing::error!(lease = %self.name.name, "lost the lead; stopping until it is won again");
                leadership.set(None);
                return;
            }
        }
    }

    /// Gives the Lease up, so that another candidate leads at once.
    pub async fn release(&mut self, leadership: &Leadership) {
        let led = leadership.leads();
        leadership.set(None);
        let Some(mut lease) = self.last.take().filter(|_| led) else { return };
        let spec = lease.spec.clone().unwrap_or_default();
        lease.spec = Some(self.election.release(&spec, Timestamp::now()));
        if let Err(error) = self.replace(&lease).await {
            tracing::warn!(lease = %self.name.name, "not released, another takes over when it expires: {error}");
        }
    }

    async fn pause(&self, stop: &CancellationToken) {
        let period = Duration::try_from(self.timing.retry_period).unwrap_or(Duration::from_secs(2));
        let jitter: f64 = rand::random_range(1.0..1.2);
        stop.run_until_cancelled(tokio::time::sleep(period.mul_f64(jitter))).await;
    }

    /// One look at the Lease, and the write it calls for. Whether we lead now.
    async fn round(&mut self, leadership: &Leadership) -> bool {
        let limit = Duration::try_from(self.timing.renew_deadline).unwrap_or(Duration::from_secs(10));
        match tokio::time::timeout(limit, self.attempt()).await {
            Ok(Ok(true)) => leadership.set(self.election.acting_until()),
            Ok(Ok(false)) => leadership.set(None),
            Ok(Err(error)) => tracing::warn!(lease = %self.name.name, "leader election: {error}"),
            Err(_) => tracing::warn!(lease = %self.name.name, "leader election: no answer within {limit:?}"),
        }
        leadership.leads()
    }

    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let lease = self.leases.get_opt(&self.name.name).await?;
        let began = Timestamp::now();
        let written = match self.election.next(lease.as_ref(), began) {
            Step::Wait => return Ok(false),
            Step::Create(spec) => {
                let metadata = ObjectMeta {
                    name: Some(self.name.name.clone()),
                    namespace: Some(self.name.namespace.clone()),
                    ..Default::default()
                };
                let new = Lease { metadata, spec: Some(spec) };
                self.leases.create(&PostParams::default(), &new).await?
            }
            Step::Update(spec) => {
                let mut new = lease.unwrap_or_default();
                new.spec = Some(spec);
                self.replace(&new).await?
            }
        };
        self.election.renewed(began);
        self.last = Some(written);
        Ok(true)
    }

    async fn replace(&self, lease: &Lease) -> Result<Lease, kube::Error> {
        self.leases.replace(&self.name.name, &PostParams::default(), lease).await
    }
}
