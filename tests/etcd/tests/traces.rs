//! Traces of calls arrive at an OpenTelemetry collector.

use std::path::Path;
use std::sync::{Arc, Mutex};

use keelson_etcd_tests::{Process, eventually, free_port, put};
use keelson_store_proto::client::Etcd;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::kv_client::KvClient;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::{Request, Response, Status};

/// A collector that keeps what it is sent: the resource's service name and the span.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for group in request.into_inner().resource_spans {
            let about = group.resource.map(|resource| resource.attributes).unwrap_or_default();
            let service = text(&about, "service.name");
            let spans = group.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let mut kept = self.0.lock().expect("no panic while locked");
            kept.extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(attributes: &[KeyValue], name: &str) -> String {
    let value = attributes.iter().find(|pair| pair.key == name).and_then(|pair| pair.value.clone()?.value);
    match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_traced_as_their_callers_decide() {
    let collector = Collector::default();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let serving = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(collector.clone()))
        .serve(address.parse().expect("an address"));
    tokio::spawn(serving);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut member = Process::new(Path::new(env!("CARGO_BIN_EXE_member")), folder.path(), "m1");
    let initial = format!("{}={}", member.name, member.peer);
    let to = format!("--distributed-tracing-address={address}");
    let flags = ["--enable-distributed-tracing", &to, "--distributed-tracing-service-name=store-of-mine"];
    member.start(&initial, "new", &flags);
    member.ready(1).await;
    // Nobody asked for this one to be traced, and the rate is zero.
    member.connect().await.put(put("untraced", "v")).await.expect("written");
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let mut client = KvClient::connect(member.client.clone()).await.expect("connected");
    let asked = |put: pb::PutRequest| {
        let mut request = Request::new(put);
        let parent = format!("00-{trace}-b7ad6b7169203331-01").parse().expect("plain text");
        request.metadata_mut().insert("traceparent", parent);
        request
    };
    client.put(asked(put("traced", "v"))).await.expect("written");
    client.put(asked(pb::PutRequest::default())).await.expect_err("a key is needed");
    let spans = eventually("two spans", || async {
        let kept = collector.0.lock().expect("no panic while locked").clone();
        (kept.len() >= 2).then_some(kept)
    })
    .await;
    assert_eq!(spans.len(), 2, "{spans:?}");
    let (good, bad) = (0, 3);
    for ((service, span), code) in spans.iter().zip([good, bad]) {
        assert_eq!(service, "store-of-mine");
        assert_eq!(span.name, "etcdserverpb.KV/Put");
        let id: String = span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(id, trace);
        assert_eq!(text(&span.attributes, "rpc.method"), "Put");
        assert_eq!(text(&span.attributes, "rpc.grpc.status_code"), code.to_string());
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    }
}
