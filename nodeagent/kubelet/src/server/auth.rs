//! Who calls the node, and may they.
//!
//! The API server's own certificate may do everything. Anyone else the cluster's CA or a token identifies is looked up by
//! a subject access review on `nodes/<subresource>`, as upstream maps paths. No identity: 401.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{Method, Request, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Answer, text};
use crate::context::Node;

/// The verified client certificate's subject, if one was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer(Option<Arc<Subject>>);

#[derive(Debug, PartialEq, Eq)]
struct Subject {
    user: String,
    groups: Vec<String>,
}

impl Peer {
    pub fn of(certificates: Option<&[CertificateDer<'_>]>) -> Peer {
        let subject = certificates.and_then(|c| c.first()).and_then(|der| {
            let (_, certificate) = X509Certificate::from_der(der).ok()?;
            let subject = certificate.subject();
            let user = subject.iter_common_name().next()?.as_str().ok()?.to_string();
            let groups =
                subject.iter_organization().filter_map(|o| o.as_str().ok()).map(String::from).collect();
            Some(Arc::new(Subject { user, groups }))
        });
        Peer(subject)
    }
}

/// The API server itself: no review could say anything else.
fn is_api_server(subject: &Subject) -> bool {
    subject.user == "kube-apiserver-kubelet-client" || subject.groups.iter().any(|g| g == "system:masters")
}

/// `Err` is the answer to send: 401 or 403.
pub async fn check<B>(node: &Node, peer: &Peer, request: &Request<B>) -> Result<(), Answer> {
    let reviewed;
    let subject = match &peer.0 {
        Some(subject) => subject.as_ref(),
        None => {
            let Some(subject) = by_token(node, request).await else {
                return Err(text(StatusCode::UNAUTHORIZED, "Unauthorized"));
            };
            reviewed = subject;
            &reviewed
        }
    };
    if is_api_server(subject) {
        return Ok(());
    }
    let (verb, subresource) = attributes(request.method(), request.uri().path());
    if allowed(node, subject, verb, subresource).await {
        return Ok(());
    }
    let message =
        format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource={subresource})", subject.user);
    Err(text(StatusCode::FORBIDDEN, message))
}

fn attributes(method: &Method, path: &str) -> (&'static str, &'static str) {
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let subresource = match path.trim_start_matches('/').split('/').next() {
        Some("stats") => "stats",
        Some("metrics") => "metrics",
        Some("healthz") => "healthz",
        Some("pods") => "pods",
        Some("configz") => "configz",
        _ => "proxy",
    };
    (verb, subresource)
}

async fn by_token<B>(node: &Node, request: &Request<B>) -> Option<Subject> {
    let header = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
    let token = header.strip_prefix("Bearer ")?.trim().to_string();
    let client = node.config.client.clone()?;
    let spec = TokenReviewSpec { token, ..TokenReviewSpec::default() };
    let review = TokenReview { spec, ..TokenReview::default() };
    let api: Api<TokenReview> = Api::all(client);
    let status = api.create(&PostParams::default(), &review).await.ok()?.status?;
    if status.authenticated != Some(true) {
        return None;
    }
    let user = status.user?;
    Some(Subject { user: user.username?, groups: user.groups.unwrap_or_default() })
}

async fn allowed(node: &Node, subject: &Subject, verb: &str, subresource: &str) -> bool {
    let Some(client) = node.config.client.clone() else { return false };
    let wanted = ResourceAttributes {
        verb: Some(verb.into()),
        version: Some("v1".into()),
        resource: Some("nodes".into()),
        subresource: Some(subresource.into()),
        name: Some(node.config.node_name.clone()),
        ..ResourceAttributes::default()
    };
    let spec = SubjectAccessReviewSpec {
        user: Some(subject.user.clone()),
        groups: Some(subject.groups.clone()),
        resource_attributes: Some(wanted),
        ..SubjectAccessReviewSpec::default()
    };
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let api: Api<SubjectAccessReview> = Api::all(client);
    let answer = api.create(&PostParams::default(), &review).await;
    answer.ok().and_then(|r| r.status).is_some_and(|s| s.allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_api_servers_certificate_passes_unreviewed() {
        let subject = |user: &str, group: &str| Subject { user: user.into(), groups: vec![group.into()] };
        assert!(is_api_server(&subject("kube-apiserver-kubelet-client", "x")));
        assert!(is_api_server(&subject("x", "system:masters")));
        assert!(!is_api_server(&subject("system:node:n1", "system:nodes")));
        assert_eq!(attributes(&Method::POST, "/exec/a/b/c"), ("create", "proxy"));
        assert_eq!(attributes(&Method::GET, "/stats/summary"), ("get", "stats"));
    }
}
