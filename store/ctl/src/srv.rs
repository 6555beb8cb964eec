//! `--discovery-srv`: endpoints from DNS.

use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::{RData, RecordType};

use crate::command::{ERROR, Failure};
use crate::flags::Args;

/// Endpoints of the domain's SRV records; none when no domain was given.
///
/// # Errors
/// DNS does not know the domain.
pub async fn endpoints(args: &Args) -> Result<Vec<String>, Failure> {
    let domain = args.text("discovery-srv");
    if domain.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |message: String| Failure { code: ERROR, message };
    let resolver = TokioResolver::builder_tokio()
        .and_then(|builder| builder.build())
        .map_err(|error| failed(error.to_string()))?;
    let suffix = match args.text("discovery-srv-name") {
        "" => String::new(),
        name => format!("-{name}"),
    };
    let mut endpoints = Vec::new();
    let mut last = None;
    for (scheme, service) in [("https", "etcd-client-ssl"), ("http", "etcd-client")] {
        let name = format!("_{service}{suffix}._tcp.{}.", domain.trim_end_matches('.'));
        match resolver.lookup(name.as_str(), RecordType::SRV).await {
            Ok(found) => {
                for record in found.answers() {
                    let RData::SRV(srv) = &record.data else { continue };
                    let host = srv.target.to_utf8();
                    endpoints.push(format!("{scheme}://{}:{}", host.trim_end_matches('.'), srv.port));
                }
            }
            Err(error) => last = Some(error.to_string()),
        }
    }
    if !args.on("insecure-discovery") {
        endpoints.retain(|endpoint| {
            let secure = !endpoint.starts_with("http://");
            if !secure {
                eprintln!("ignoring discovered insecure endpoint {endpoint:?}");
            }
            secure
        });
    }
    match last {
        Some(error) if endpoints.is_empty() => Err(failed(error)),
        _ => Ok(endpoints),
    }
}
