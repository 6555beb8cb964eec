//! Admission webhooks: a real HTTPS server that labels what it likes and refuses what it does not.

mod support;

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use support::World;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Refuses what has `data.no`, labels the rest.
fn decide(review: &Value) -> Value {
    let request = &review["request"];
    let mut response = json!({"uid": request["uid"], "allowed": true});
    if !request["object"]["data"]["no"].is_null() {
        response = json!({"uid": request["uid"], "allowed": false, "status": {"message": "not this one", "code": 403}});
    } else if request["operation"] == "CREATE" {
        let patch = json!([{"op": "add", "path": "/metadata/labels", "value": {"seen": "yes"}}]).to_string();
        response["patch"] = base64::engine::general_purpose::STANDARD.encode(patch).into();
        response["patchType"] = "JSONPatch".into();
        response["warnings"] = json!(["labelled"]);
    }
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response})
}

async fn answer(request: http::Request<Incoming>) -> Result<http::Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap_or_default();
    Ok(http::Response::new(Full::new(decide(&review).to_string().into())))
}

/// Starts the webhook; its port.
async fn webhook(world: &World) -> u16 {
    let (certificate, key) = world.certificate("webhook", &["127.0.0.1"]);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("certificate")],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("key"),
        )
        .expect("identity");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("address").port();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let serving = hyper::server::conn::http1::Builder::new();
                let _ = serving.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            });
        }
    });
    port
}

fn configuration(kind: &str, world: &World, port: u16, failure: &str) -> Value {
    let bundle = base64::engine::general_purpose::STANDARD.encode(world.authority());
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "h"}, "webhooks": [{
        "name": "h.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": failure,
        "clientConfig": {"url": format!("https://127.0.0.1:{port}/x"), "caBundle": bundle},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}]}]})
}

fn map(name: &str, key: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {key: "v"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_change_and_refuse() {
    let world = World::start().await;
    let (admin, port) = (&world.admin, webhook(&world).await);
    let base = "/apis/admissionregistration.k8s.io/v1";
    for (plural, kind) in [
        ("mutatingwebhookconfigurations", "MutatingWebhookConfiguration"),
        ("validatingwebhookconfigurations", "ValidatingWebhookConfiguration"),
    ] {
        let made = admin.post(&format!("{base}/{plural}"), &configuration(kind, &world, port, "Fail")).await;
        assert_eq!(made.code, 201, "{}", made.text);
    }
    let made = admin.post(MAPS, &map("a", "yes")).await;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(made.json()["metadata"]["labels"]["seen"], "yes");
    assert!(made.headers["warning"].to_str().expect("text").contains("labelled"));
    let refused = admin.post(MAPS, &map("b", "no")).await;
    assert_eq!(refused.code, 403, "{}", refused.text);
    assert_eq!(
        refused.json()["message"],
        "admission webhook \"h.example.com\" denied the request: not this one"
    );
    let refused = admin.merge(&format!("{MAPS}/a"), &json!({"data": {"no": "x"}})).await;
    assert_eq!(refused.code, 403, "{}", refused.text);
    let fine = admin.merge(&format!("{MAPS}/a"), &json!({"data": {"other": "x"}})).await;
    assert_eq!((fine.code, &fine.json()["data"]["other"]), (200, &json!("x")));

    // Conditions say that some are not asked about: one that is false settles it, one that fails does as the policy says.
    let path = format!("{base}/validatingwebhookconfigurations/h");
    let when = |expression: &str, policy: &str| {
        let mut hooks = configuration("", &world, port, policy)["webhooks"].clone();
        hooks[0]["matchConditions"] = json!([{"name": "c", "expression": expression}]);
        json!({"webhooks": hooks})
    };
    let wrong = admin.merge(&path, &when("x", "Fail")).await;
    assert_eq!(wrong.code, 422, "{}", wrong.text);
    assert!(
        wrong.text.contains("webhooks[0].matchConditions[0].expression")
            && wrong.text.contains("undeclared reference to 'x'")
    );
    assert_eq!(admin.delete(&format!("{base}/mutatingwebhookconfigurations/h")).await.code, 200);
    assert_eq!(admin.merge(&path, &when("object.metadata.name != 'free'", "Fail")).await.code, 200);
    assert_eq!(admin.post(MAPS, &map("free", "no")).await.code, 201);
    assert_eq!(admin.post(MAPS, &map("asked", "no")).await.code, 403);
    assert_eq!(admin.merge(&path, &when("object.data.nothing == 'x'", "Fail")).await.code, 200);
    let failed = admin.post(MAPS, &map("asked", "no")).await;
    assert_eq!(failed.code, 403, "{}", failed.text);
    assert!(failed.text.contains("resulted in error: no such key: nothing"), "{}", failed.text);
    assert_eq!(admin.merge(&path, &when("object.data.nothing == 'x'", "Ignore")).await.code, 200);
    assert_eq!(admin.post(MAPS, &map("unasked", "no")).await.code, 201);
    assert_eq!(admin.delete(&path).await.code, 200);
    let made = admin
        .post(
            &format!("{base}/mutatingwebhookconfigurations"),
            &configuration("MutatingWebhookConfiguration", &world, port, "Fail"),
        )
        .await;
    assert_eq!(made.code, 201, "{}", made.text);

    // One that cannot be asked: closed or open, as it says.
    let path = format!("{base}/mutatingwebhookconfigurations/h");
    let gone = |policy: &str| json!({"webhooks": configuration("", &world, 1, policy)["webhooks"]});
    assert_eq!(admin.merge(&path, &gone("Fail")).await.code, 200);
    let failed = admin.post(MAPS, &map("c", "yes")).await;
    assert_eq!(failed.code, 500, "{}", failed.text);
    assert_eq!(admin.merge(&path, &gone("Ignore")).await.code, 200);
    assert_eq!(admin.post(MAPS, &map("c", "yes")).await.code, 201);
}
