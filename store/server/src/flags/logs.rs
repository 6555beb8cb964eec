//! Flags of logs, metrics and traces.

use super::Kind::{Bool, Duration as Time, Int, List, Text};
use super::{Flag, flag, go, urls};

pub(super) const FLAGS: &[Flag] = &[
    flag("logger", Text, "zap", "zap.", |d, v| {
        v.clone_into(&mut d.logging.logger);
        Ok(())
    }),
    flag("log-outputs", List, "default", "default, stderr, stdout, systemd/journal, or files.", |d, v| {
        d.logging.outputs = go::unique(v);
        Ok(())
    }),
    flag("log-level", Text, "info", "debug, info, warn, error, panic or fatal.", |d, v| {
        v.clone_into(&mut d.logging.level);
        Ok(())
    }),
    flag("log-format", Text, "json", "json or console.", |d, v| {
        v.clone_into(&mut d.logging.format);
        Ok(())
    }),
    flag("enable-log-rotation", Bool, "false", "Begin a new file when one is full.", |d, v| {
        d.logging.rotate = go::truth(v)?;
        Ok(())
    }),
    flag(
        "log-rotation-config-json",
        Text,
        r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#,
        "When a file is full (MB), and how long (days) and how many old ones are kept.",
        |d, v| {
            v.clone_into(&mut d.logging.rotation);
            Ok(())
        },
    ),
    flag("enable-pprof", Bool, "false", "Go's profiler at /debug/pprof/.", |_, v| go::truth(v).map(|_| ())),
    flag("metrics", Text, "basic", "basic, or extensive with histograms of gRPC calls.", |d, v| {
        d.config.metrics_extensive = v == "extensive";
        Ok(())
    }),
    flag("listen-metrics-urls", Text, "", "Where /metrics and /health are served too.", |d, v| {
        d.config.listen_metrics_urls = urls(v)?;
        Ok(())
    }),
    flag("warning-apply-duration", Time, "100ms", "A write that takes longer is logged.", |_, v| {
        go::duration(v).map(|_| ())
    }),
    flag("warning-unary-request-duration", Time, "300ms", "A call that takes longer is logged.", |d, v| {
        d.config.warning_unary_request_duration = go::duration(v)?;
        Ok(())
    }),
    flag("enable-distributed-tracing", Bool, "false", "Send OpenTelemetry traces.", |d, v| {
        d.tracing = go::truth(v)?;
        Ok(())
    }),
    flag("distributed-tracing-address", Text, "localhost:4317", "The collector.", |d, v| {
        d.traces.address = v.to_owned();
        Ok(())
    }),
    flag("distributed-tracing-service-name", Text, "etcd", "Name in traces.", |d, v| {
        d.traces.service = v.to_owned();
        Ok(())
    }),
    flag("distributed-tracing-instance-id", Text, "", "Instance in traces.", |d, v| {
        d.traces.instance = v.to_owned();
        Ok(())
    }),
    flag("distributed-tracing-sampling-rate", Int, "0", "Traces of a million.", |d, v| {
        d.trace_rate = go::number(v)?;
        Ok(())
    }),
];
