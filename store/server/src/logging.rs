//! Logs in etcd's form: a line per event with `level`, `ts`, `caller`, `msg` and the event's fields, as JSON or for a
//! console, to stderr, stdout, files or the journal.
//!
//! Lines go through a bounded queue to one thread, so that a blocked sink stops nobody's work: what does not fit is
//! dropped, and counted in the next line that does. An event of the target [`FATAL`] has etcd's level `fatal`.

use std::fmt;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::rotate::{RotatingFile, Rotation};

/// Target of events after which the process ends.
pub const FATAL: &str = "fatal";
/// Lines that wait for the sink.
const QUEUE: usize = 8192;
/// How long the end of the process waits for the sink.
const FLUSH: Duration = Duration::from_secs(1);

/// What the log flags ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// `zap`.
    pub logger: String,
    /// debug, info, warn, error, panic or fatal.
    pub level: String,
    /// json or console.
    pub format: String,
    /// default, stderr, stdout, systemd/journal, or paths.
    pub outputs: Vec<String>,
    /// Whether the one path is begun anew when full.
    pub rotate: bool,
    /// JSON of [`Rotation`].
    pub rotation: String,
}

impl Default for Logging {
    fn default() -> Self {
        Logging {
            logger: "zap".to_owned(),
            level: "info".to_owned(),
            format: "json".to_owned(),
            outputs: vec!["default".to_owned()],
            rotate: false,
            rotation: r#"{"maxsize": 100}"#.to_owned(),
        }
    }
}

impl Logging {
    /// # Errors
    /// What etcd refuses, in its words.
    pub fn check(&self) -> Result<(), String> {
        match self.logger.as_str() {
            "zap" => {}
            "capnslog" => return Err("--logger=capnslog is removed in v3.5".to_owned()),
            other => return Err(format!("unknown logger option {other:?}")),
        }
        if self.outputs.len() > 1 && self.outputs.iter().any(|output| output == "default") {
            return Err("multi logoutput for \"default\" is not supported yet".to_owned());
        }
        if self.outputs.len() > 1 && self.outputs.iter().any(|output| output == "systemd/journal") {
            return Err(format!(
                "running with systemd/journal but other '--log-outputs' values ({:?}) are configured with 'default'; \
                 override 'default' value with something else",
                self.outputs
            ));
        }
        if self.rotate {
            let files = self.outputs.iter().filter(|output| !is_stream(output)).count();
            if files != 1 || self.outputs.len() != 1 {
                return Err(
                    "--log-outputs requires a single file path when --log-rotate-config-json is defined"
                        .to_owned(),
                );
            }
            Rotation::parse(&self.rotation)?;
        }
        match self.format.as_str() {
            "json" | "console" => Ok(()),
            other => Err(format!("unknown log format: {other}, supported values json, console")),
        }
    }

    /// Whether the level is one of etcd's; it panics at another.
    pub fn level_is_known(&self) -> bool {
        matches!(self.level.as_str(), "debug" | "info" | "warn" | "error" | "panic" | "dpanic" | "fatal")
    }
}

fn is_stream(output: &str) -> bool {
    matches!(output, "default" | "stderr" | "stdout" | "systemd/journal")
}

/// One line per event.
struct Lines {
    console: bool,
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: Map<String, Value>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.rest.insert(field.name().to_owned(), Value::String(text));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.rest.insert(field.name().to_owned(), Value::String(value.to_owned()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.rest.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.rest.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.rest.insert(field.name().to_owned(), value.into());
    }
}

/// `2006-01-02T15:04:05.999999Z`.
pub(crate) fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days as i64);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

/// Date of a day counted from 1970-01-01, by eras of 400 years that begin in March.
pub(crate) fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let meta = event.metadata();
        let level = match *meta.level() {
            Level::ERROR if meta.target() == FATAL => "fatal",
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        let file = meta.file().unwrap_or("unknown");
        let mut parts: Vec<&str> = file.rsplit('/').take(2).collect();
        parts.reverse();
        let caller = format!("{}:{}", parts.join("/"), meta.line().unwrap_or(0));
        if self.console {
            write!(writer, "{}\t{level}\t{caller}\t{}", now(), fields.message)?;
            if !fields.rest.is_empty() {
                write!(writer, "\t{}", Value::Object(fields.rest))?;
            }
            return writeln!(writer);
        }
        // The order of the keys is etcd's.
        write!(
            writer,
            r#"{{"level":"{level}","ts":"{}","caller":{},"msg":{}"#,
            now(),
            Value::String(caller),
            Value::String(fields.message)
        )?;
        for (key, value) in fields.rest {
            write!(writer, ",{}:{value}", Value::String(key))?;
        }
        writeln!(writer, "}}")
    }
}

/// Where lines end.
enum Sink {
    Stderr,
    Stdout,
    File(RotatingFile),
    Journal(UnixDatagram),
}

impl Sink {
    fn open(output: &str, logging: &Logging) -> Result<Sink, String> {
        Ok(match output {
            "default" | "stderr" => Sink::Stderr,
            "stdout" => Sink::Stdout,
            "systemd/journal" => {
                let open = || {
                    let socket = UnixDatagram::unbound()?;
                    socket.connect("/run/systemd/journal/socket").map(|()| socket)
                };
                Sink::Journal(open().map_err(|error: std::io::Error| {
                    format!("systemd journal is not available: {}", crate::process::errno(&error))
                })?)
            }
            path => {
                let rotation = if logging.rotate { Some(Rotation::parse(&logging.rotation)?) } else { None };
                Sink::File(RotatingFile::open(path.as_ref(), rotation).map_err(|error| {
                    format!("couldn't open sink {path:?}: open {path}: {}", crate::process::errno(&error))
                })?)
            }
        })
    }

    fn write(&mut self, line: &[u8]) {
        // There is nowhere left to say that a log cannot be written.
        let _ = match self {
            Sink::Stderr => std::io::stderr().write_all(line),
            Sink::Stdout => std::io::stdout().write_all(line).and_then(|()| std::io::stdout().flush()),
            Sink::File(file) => file.write_line(line),
            Sink::Journal(socket) => {
                let text = String::from_utf8_lossy(line);
                socket
                    .send(format!("SYSLOG_IDENTIFIER=etcd\nMESSAGE={}\n", text.trim_end()).as_bytes())
                    .map(|_| ())
            }
        };
    }
}

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// The queue's near end; cloned by every event.
#[derive(Clone)]
struct Queue {
    lines: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let lost = self.dropped.swap(0, Ordering::Relaxed);
        let text = match lost {
            0 => line.to_vec(),
            lost => {
                let note = format!(
                    r#"{{"level":"warn","ts":"{}","caller":"log:0","msg":"log lines dropped","lines":{lost}}}"#,
                    now()
                );
                [note.as_bytes(), b"\n", line].concat()
            }
        };
        if self.lines.try_send(Message::Line(text)).is_err() {
            self.dropped.fetch_add(lost + 1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Queue;

    fn make_writer(&'a self) -> Queue {
        self.clone()
    }
}

static QUEUE_OF_PROCESS: OnceLock<Queue> = OnceLock::new();

fn drain(lines: &Receiver<Message>, sinks: &mut [Sink]) {
    while let Ok(message) = lines.recv() {
        match message {
            Message::Line(line) => sinks.iter_mut().for_each(|sink| sink.write(&line)),
            // Whoever waited may have given up.
            Message::Flush(done) => drop(done.send(())),
        }
    }
}

/// Logs go where they are asked to from now on; a second call changes nothing.
///
/// # Errors
/// An output that cannot be opened.
pub fn init(logging: &Logging) -> Result<(), String> {
    let mut sinks =
        logging.outputs.iter().map(|output| Sink::open(output, logging)).collect::<Result<Vec<_>, _>>()?;
    let (lines, receiver) = sync_channel(QUEUE);
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || drain(&receiver, &mut sinks))
        .map_err(|error| error.to_string())?;
    let queue = Queue { lines, dropped: Arc::default() };
    let directives = match logging.level.as_str() {
        "debug" => "debug,h2=info,hyper=info,rustls=info,tower=info,hickory_resolver=info".to_owned(),
        "panic" | "dpanic" | "fatal" => format!("off,{FATAL}=error"),
        level => format!("{level},openraft=off,h2=warn,hyper=warn,rustls=warn,hickory_resolver=warn"),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(directives))
        .with_writer(queue.clone())
        .event_format(Lines { console: logging.format == "console" })
        .finish();
    // Somebody else may have chosen another form already (tests, an embedding process).
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        QUEUE_OF_PROCESS.get_or_init(|| queue);
    }
    Ok(())
}

/// Waits until what was logged has been written, but not for ever.
pub fn flush() {
    let Some(queue) = QUEUE_OF_PROCESS.get() else { return };
    let (done, wait) = sync_channel(1);
    if queue.lines.try_send(Message::Flush(done)).is_ok() {
        // A sink that hangs must not keep the process.
        let _ = wait.recv_timeout(FLUSH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_088), (2024, 12, 31));
        assert_eq!(civil(20_089), (2025, 1, 1));
    }

    #[test]
    fn what_etcd_refuses_is_refused() {
        let with = |change: fn(&mut Logging)| {
            let mut logging = Logging::default();
            change(&mut logging);
            logging.check()
        };
        assert_eq!(with(|_| {}), Ok(()));
        assert!(with(|l| l.logger = "capnslog".to_owned()).is_err());
        assert!(with(|l| l.format = "xml".to_owned()).is_err());
        assert!(with(|l| l.outputs = vec!["default".to_owned(), "/x".to_owned()]).is_err());
        assert!(with(|l| l.rotate = true).is_err(), "stderr does not rotate");
        assert!(
            with(|l| {
                l.rotate = true;
                l.outputs = vec!["/x".to_owned()]
            })
            .is_ok()
        );
    }

    #[test]
    fn lines_that_do_not_fit_are_counted() {
        let (lines, receiver) = sync_channel(1);
        let mut queue = Queue { lines, dropped: Arc::default() };
        for _ in 0..3 {
            assert_eq!(queue.write(b"x\n").expect("never fails"), 2);
        }
        assert!(matches!(receiver.try_recv(), Ok(Message::Line(line)) if line == b"x\n"));
        queue.write_all(b"y\n").expect("never fails");
        let Ok(Message::Line(line)) = receiver.try_recv() else { panic!("a line") };
        assert!(String::from_utf8_lossy(&line).contains(r#""lines":2"#));
    }
}
