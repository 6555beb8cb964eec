//! What all requests share, and the parts every handler needs: context, deadlines, bodies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use keelson_api::{Resource, Status};
use keelson_apiserver_core::{Context, Target, UserInfo};
use rand::Rng as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::hub::Hub;
use crate::kubelet::KubeletClient;
use crate::metrics::Metrics;
use crate::metrics_api::MetricsApi;
use crate::request::{ApiPath, Query};
use crate::storage::Storage;
use crate::tokens::Tokens;
use crate::view::CacheView;

/// Most bytes of a request body.
pub const BODY_LIMIT: usize = 3 * 1024 * 1024;
/// Most bytes beyond it that are read only to be thrown away, so that the client sees the refusal.
const DISCARD: usize = 16 * 1024 * 1024;
/// How long a request that is no stream may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Shared by all requests.
pub struct Server {
    pub config: Config,
    pub storage: Storage,
    pub hub: Arc<Hub>,
    pub view: CacheView,
    pub tokens: Arc<Tokens>,
    pub kubelets: KubeletClient,
    pub metrics_api: MetricsApi,
    pub metrics: Metrics,
    pub documents: crate::documents::Documents,
    pub definitions: crate::definitions::Definitions,
    /// The objects every cluster has are in the store.
    pub bootstrapped: AtomicBool,
    /// A stop was asked for: no longer ready.
    pub stopping: CancellationToken,
    /// The last moment (seconds since 1970) the store answered.
    pub store_heard: AtomicU64,
    pub port: u16,
}

/// One request about an API object, after authentication and authorization.
pub struct Call<'a> {
    pub server: &'a Arc<Server>,
    pub resource: &'static Resource,
    pub path: &'a ApiPath,
    pub query: &'a Query,
    pub headers: &'a http::HeaderMap,
    pub user: &'a UserInfo,
    pub deadline: Instant,
}

impl<'a> Call<'a> {
    /// The namespace as storage sees it.
    pub fn namespace(&self) -> &'a str {
        self.path.object_namespace(self.resource)
    }

    /// The object (or collection) of the path.
    pub fn target(&self) -> Target<'a> {
        let target = Target::object(self.resource, self.namespace(), &self.path.name);
        if self.path.subresource.is_empty() { target } else { target.sub(&self.path.subresource) }
    }

    /// Runs a step with a fresh context.
    pub fn with_context<T>(&self, step: impl FnOnce(&Context) -> T) -> T {
        self.server.with_context(self.user, step)
    }
}

impl Server {
    /// Runs a step with a fresh context: the clock, a uid, a name suffix.
    pub fn with_context<T>(&self, user: &UserInfo, step: impl FnOnce(&Context) -> T) -> T {
        let uid = uuid::Uuid::new_v4().to_string();
        let suffix = suffix();
        step(&Context {
            now: jiff::Timestamp::now(),
            uid: &uid,
            suffix: &suffix,
            user,
            view: &self.view,
            service_cidr: self.config.service_cidr,
            node_ports: self.config.node_ports,
        })
    }

    /// The user this server acts as when it writes for itself.
    pub fn own_user() -> UserInfo {
        UserInfo {
            name: "system:apiserver".to_owned(),
            groups: vec!["system:masters".to_owned(), "system:authenticated".to_owned()],
            ..UserInfo::default()
        }
    }
}

/// Five characters for generated names.
fn suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    (0..5).map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())])).collect()
}

/// Reads a whole body.
///
/// # Errors
/// 413 when it is too large, 400 when the client breaks off.
pub async fn read_body<B>(body: B) -> Result<Bytes, Status>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut body = std::pin::pin!(body);
    let (mut whole, mut seen) = (BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        let unreadable = |error: B::Error| {
            Status::bad_request(format!("the request body could not be read: {}", error.into()))
        };
        let Ok(data) = frame.map_err(unreadable)?.into_data() else { continue };
        seen += data.len();
        if seen <= BODY_LIMIT {
            whole.extend_from_slice(&data);
        } else if seen <= BODY_LIMIT + DISCARD {
            // Read on: a client that is still sending when the answer comes may never see it.
            whole = BytesMut::new();
        } else {
            break;
        }
    }
    if seen > BODY_LIMIT {
        return Err(Status::too_large(format!("Request entity too large: limit is {BODY_LIMIT}")));
    }
    Ok(whole.freeze())
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    #[tokio::test]
    async fn a_body_is_taken_up_to_the_limit_and_refused_beyond() {
        let body = |length| Full::new(Bytes::from(vec![b'x'; length]));
        assert_eq!(read_body(body(BODY_LIMIT)).await.map(|whole| whole.len()).ok(), Some(BODY_LIMIT));
        for length in [BODY_LIMIT + 1, BODY_LIMIT + DISCARD + 1] {
            assert_eq!(read_body(body(length)).await.map_err(|status| status.code), Err(413));
        }
    }
}
