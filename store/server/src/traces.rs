//! `--enable-distributed-tracing`: a span a gRPC call, sent to an OpenTelemetry collector (OTLP over gRPC, without TLS, as
//! etcd does). A caller's `traceparent` decides whether its call is sampled; other calls are, so many of a million.

use anyhow::Context as _;
use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span};
use tonic::Code;

/// Where traces go, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `host:port` of the collector.
    pub address: String,
    /// `service.name`.
    pub service: String,
    /// `service.instance.id`; none when empty.
    pub instance: String,
    /// Sampled calls of a million, of those whose caller has not decided.
    pub rate: u32,
}

/// The most that `rate` may be.
pub const EVERY: u32 = 1_000_000;

impl Default for Options {
    fn default() -> Self {
        let (address, service) = ("localhost:4317".to_owned(), "etcd".to_owned());
        Options { address, service, instance: String::new(), rate: 0 }
    }
}

/// Makes spans; those that wait are sent when it is dropped.
#[derive(Debug)]
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

impl Traces {
    /// Nothing is sent yet: a collector that is away costs spans, not calls.
    ///
    /// # Errors
    /// An address that is none.
    pub fn start(options: &Options) -> anyhow::Result<Traces> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(format!("http://{}", options.address))
            .build()
            .with_context(|| format!("traces to {}", options.address))?;
        let mut about = vec![KeyValue::new("service.name", options.service.clone())];
        if !options.instance.is_empty() {
            about.push(KeyValue::new("service.instance.id", options.instance.clone()));
        }
        let rest = match options.rate {
            0 => Sampler::AlwaysOff,
            rate => Sampler::TraceIdRatioBased(f64::from(rate) / f64::from(EVERY)),
        };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(rest)))
            .with_resource(Resource::builder().with_attributes(about).build())
            .build();
        let tracer = provider.tracer("keelson");
        Ok(Traces { provider, tracer, propagator: TraceContextPropagator::new() })
    }

    /// A call begins at the server.
    pub fn begin(&self, path: &str, headers: &HeaderMap) -> CallSpan {
        let parent = self.propagator.extract_with_context(&Context::new(), &Headers(headers));
        let name = path.trim_start_matches('/').to_owned();
        let (service, method) = name.split_once('/').unwrap_or((&name, ""));
        let attributes = vec![
            KeyValue::new("rpc.system", "grpc"),
            KeyValue::new("rpc.service", service.to_owned()),
            KeyValue::new("rpc.method", method.to_owned()),
        ];
        let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Server).with_attributes(attributes);
        CallSpan(self.tracer.build_with_context(builder, &parent))
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!(%error, "the last traces were not sent");
        }
    }
}

/// The span of one call.
#[derive(Debug)]
pub(crate) struct CallSpan(Span);

impl CallSpan {
    /// The call has ended. As for servers elsewhere, only codes that are our own fault make the span one of an error.
    pub fn end(mut self, code: Code) {
        self.0.set_attribute(KeyValue::new("rpc.grpc.status_code", code as i64));
        let ours = [
            Code::Unknown,
            Code::DeadlineExceeded,
            Code::Unimplemented,
            Code::Internal,
            Code::Unavailable,
            Code::DataLoss,
        ];
        if ours.contains(&code) {
            self.0.set_status(Status::error(""));
        }
        self.0.end();
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
