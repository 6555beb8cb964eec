//! Log lines on standard error: klog's form, or JSON.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// What is said without KEELSON_LOG.
const DEFAULT: &str =
    "info,openraft=off,kube_client=off,kube_runtime=error,hyper=warn,h2=warn,rustls=warn,tower=warn";

/// Installs the log for the whole process.
pub fn start() {
    let filter = std::env::var("KEELSON_LOG").unwrap_or_else(|_| DEFAULT.to_owned());
    let filter = EnvFilter::try_new(&filter).unwrap_or_else(|error| {
        eprintln!("keelson: KEELSON_LOG={filter} is not understood ({error}); using info");
        EnvFilter::new(DEFAULT)
    });
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match std::env::var("KEELSON_LOG_FORMAT").as_deref() {
        Ok("json") => lines.json().try_init(),
        _ => lines.event_format(Klog).try_init(),
    };
    if let Err(error) = installed {
        eprintln!("keelson: no log: {error}");
    }
}

/// `I1121 10:15:30.123456 4242 lib.rs:17] text key="value"`.
struct Klog;

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.rest.push_str(&format!(" {name}={value:?}")),
        }
    }
}

impl<S, N> FormatEvent<S, N> for Klog
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let meta = event.metadata();
        let letter = match *meta.level() {
            Level::ERROR => 'E',
            Level::WARN => 'W',
            _ => 'I',
        };
        // RFC 3339: 2026-11-21T10:15:30.123456Z
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let part = |from: usize, to: usize| time.get(from..to).unwrap_or_default();
        let file = meta.file().and_then(|file| file.rsplit('/').next()).unwrap_or(meta.target());
        let mut fields = Fields::default();
        event.record(&mut fields);
        writeln!(
            out,
            "{letter}{}{} {} {} {file}:{}] {}{}",
            part(5, 7),
            part(8, 10),
            part(11, 26),
            std::process::id(),
            meta.line().unwrap_or_default(),
            fields.message,
            fields.rest
        )
    }
}
