//! `/livez`, `/readyz`, `/healthz`: a list of checks, each also under its own path.

use std::sync::atomic::Ordering;

use crate::handler::not_found;
use crate::request::Query;
use crate::respond::{self, Response};
use crate::server::Server;

/// Seconds of silence after which the store counts as gone.
const STORE_SILENCE: u64 = 15;

struct Check {
    name: &'static str,
    good: bool,
}

fn checks(server: &Server, endpoint: &str) -> Vec<Check> {
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
    let heard = now.saturating_sub(server.store_heard.load(Ordering::Relaxed)) <= STORE_SILENCE;
    let check = |name, good| Check { name, good };
    let mut out = vec![check("ping", true), check("log", true), check("etcd", heard)];
    if endpoint == "/readyz" {
        out.push(check("informer-sync", server.hub.ready()));
        out.push(check("shutdown", !server.stopping.is_cancelled()));
    }
    if endpoint != "/livez" {
        let made = server.bootstrapped.load(Ordering::Acquire);
        out.push(check("poststarthook/rbac/bootstrap-roles", made));
        out.push(check("poststarthook/scheduling/bootstrap-system-priority-classes", made));
        out.push(check("poststarthook/start-system-namespaces-controller", made));
    }
    out
}

/// Answers one of the three, or one check of it.
pub fn answer(server: &Server, path: &str, query: &Query) -> Response {
    let path = path.trim_end_matches('/');
    let (endpoint, one) = match path[1..].split_once('/') {
        Some((endpoint, one)) => (&path[..=endpoint.len()], one),
        None => (path, ""),
    };
    let name = &endpoint[1..];
    let mut checks = checks(server, endpoint);
    if !one.is_empty() {
        return match checks.iter().find(|c| c.name == one) {
            Some(check) if check.good => respond::text(200, "ok"),
            Some(check) => respond::text(500, format!("internal server error: {} is not good\n", check.name)),
            None => not_found(),
        };
    }
    checks.retain(|c| !query.all("exclude").iter().any(|e| e == c.name));
    let good = checks.iter().all(|c| c.good);
    if good && !query.has("verbose") {
        return respond::text(200, "ok");
    }
    let lines: String = checks
        .iter()
        .map(|c| {
            if c.good {
                format!("[+]{} ok\n", c.name)
            } else {
                format!("[-]{} failed: reason withheld\n", c.name)
            }
        })
        .collect();
    let verdict = if good { "passed" } else { "failed" };
    respond::text(if good { 200 } else { 500 }, format!("{lines}{name} check {verdict}\n"))
}
