//! One number of a server's `/metrics`.

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;

use crate::session::{Settings, dial};
use crate::tls::Target;

const NAME: &str = "process_resident_memory_bytes";

/// Memory of the process at an endpoint, bytes.
///
/// # Errors
/// Not reachable; it does not say.
pub async fn resident_memory(settings: &Settings, endpoint: &str) -> Result<f64, String> {
    // HTTP/1 is offered beside HTTP/2 where there is TLS.
    let target = Target::http1(endpoint, &settings.security)?;
    let failed = |error: &dyn std::fmt::Display| format!("fetch error: {error}");
    let host = target.authority();
    let stream = dial(target).await.map_err(|error| failed(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(|error| failed(&error))?;
    tokio::spawn(connection);
    let request = Request::get("/metrics")
        .header("host", host)
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
    let body = answer.into_body().collect().await.map_err(|error| failed(&error))?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    let value = text.lines().find_map(|line| line.strip_prefix(NAME)).map(str::trim);
    let value = value.ok_or_else(|| format!("could not find: {NAME}"))?;
    value.parse().map_err(|error| format!("parse error: {error}"))
}
