//! One command's connection: the global flags and `ETCDCTL_*` variables, TLS, endpoints tried in turn, the token.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::auth_client::AuthClient;
use tokio::net::{TcpStream, UnixStream};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};
use tower::service_fn;

use crate::command::{BAD_ARGS, BAD_CONNECTION, BAD_FEATURE, ERROR, Failure, fail};
use crate::flags::{Args, GLOBAL};
use crate::output::Output;
use crate::tls::{self, Security};

/// What the client stubs are made over.
pub type Service = InterceptedService<Channel, Token>;

/// Between two tries of an endpoint nobody listens on.
const RETRY: Duration = Duration::from_millis(50);

/// Puts the token and `hasleader` into requests.
#[derive(Clone, Default)]
pub struct Token {
    token: Option<MetadataValue<Ascii>>,
    require_leader: bool,
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        if self.require_leader {
            request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        }
        Ok(request)
    }
}

/// Where and how to connect.
#[derive(Clone)]
pub struct Settings {
    pub endpoints: Vec<String>,
    pub security: Security,
    /// User and password.
    pub user: Option<(String, String)>,
    /// A token from elsewhere.
    pub token: Option<String>,
    pub dial_timeout: Duration,
    pub keep_alive: (Duration, Duration),
    /// Of one command; `None` = as long as it takes.
    pub timeout: Option<Duration>,
    pub send_limit: usize,
    pub receive_limit: usize,
}

/// An open session.
#[derive(Clone)]
pub struct Session {
    /// As given.
    pub settings: Settings,
    channels: Arc<Vec<Channel>>,
    current: Arc<AtomicUsize>,
    token: Token,
}

fn json_line(level: &str, message: &str, key: &str, value: &str) {
    eprintln!(
        "{{\"level\":\"{level}\",\"ts\":\"{}\",\"caller\":\"flags/flag.go:87\",\"msg\":{},{}:{}}}",
        jiff::Timestamp::now(),
        serde_json::Value::from(message),
        serde_json::Value::from(key),
        serde_json::Value::from(value)
    );
}

/// Takes `ETCDCTL_*` for the flags not given.
fn from_environment(args: &mut Args) -> Result<(), Failure> {
    let mut variables: Vec<(String, String)> =
        std::env::vars().filter(|(name, _)| name.starts_with("ETCDCTL_")).collect();
    variables.sort_unstable();
    for (name, value) in variables {
        if matches!(name.as_str(), "ETCDCTL_WATCH_KEY" | "ETCDCTL_WATCH_RANGE_END") {
            continue;
        }
        let flag = GLOBAL
            .iter()
            .find(|flag| format!("ETCDCTL_{}", flag.name.to_uppercase().replace('-', "_")) == name);
        let Some(flag) = flag else {
            json_line(
                "warn",
                "unrecognized environment variable",
                "environment-variable",
                &format!("{name}={value}"),
            );
            continue;
        };
        if args.given(flag.name) {
            json_line(
                "fatal",
                "conflicting environment variable is shadowed by corresponding command-line flag (either unset \
                 environment variable or disable flag))",
                "environment-variable",
                &name,
            );
            return fail(ERROR, "");
        }
        if !value.is_empty() {
            // etcdctl goes on with its default; a wrong value is better said.
            args.set_default(flag, value.clone()).map_err(|error| Failure {
                code: ERROR,
                message: format!("invalid value {value:?} for {name}: {error}"),
            })?;
        }
    }
    Ok(())
}

fn ask(prompt: &str) -> Result<String, Failure> {
    rpassword::prompt_password(prompt).map_err(|error| Failure { code: ERROR, message: error.to_string() })
}

/// `user` or `user:password`, the password asked for when it is missing.
pub fn credentials(user: &str, password: &str, prompt: &str) -> Result<Option<(String, String)>, Failure> {
    Ok(match (user, password) {
        ("", _) => None,
        (user, "") => Some(match user.split_once(':') {
            Some((user, password)) => (user.to_owned(), password.to_owned()),
            None => (user.to_owned(), ask(prompt)?),
        }),
        (user, password) => Some((user.to_owned(), password.to_owned())),
    })
}

impl Settings {
    /// From the flags and variables; the form of the output too.
    ///
    /// # Errors
    /// Values that make no sense.
    pub async fn new(args: &mut Args) -> Result<(Settings, Output), Failure> {
        from_environment(args)?;
        for name in ["cert", "key", "cacert"] {
            if args.given(name) && args.text(name).is_empty() {
                return fail(BAD_ARGS, format!("empty string is passed to --{name} option"));
            }
        }
        let mut endpoints = crate::srv::endpoints(args).await?;
        if endpoints.is_empty() {
            endpoints = args.list("endpoints");
        }
        let token = Some(args.text("auth-jwt-token").to_owned()).filter(|token| !token.is_empty());
        let user = match token {
            Some(_) => None,
            None => credentials(args.text("user"), args.text("password"), "Password: ")?,
        };
        let Some(output) = Output::new(args.text("write-out"), args.on("hex")) else {
            return fail(BAD_FEATURE, "unsupported output format");
        };
        let limit = |name: &str, default: usize| match args.int(name) {
            bytes if bytes > 0 => usize::try_from(bytes).unwrap_or(default),
            _ => default,
        };
        let server_name = args.text("discovery-srv");
        let settings = Settings {
            endpoints,
            security: Security {
                cert: args.text("cert").into(),
                key: args.text("key").into(),
                ca: args.text("cacert").into(),
                server_name: if args.on("insecure-discovery") {
                    String::new()
                } else {
                    server_name.to_owned()
                },
                insecure_transport: args.on("insecure-transport"),
                skip_verify: args.on("insecure-skip-tls-verify"),
            },
            user,
            token,
            dial_timeout: args.duration("dial-timeout"),
            keep_alive: (args.duration("keepalive-time"), args.duration("keepalive-timeout")),
            timeout: Some(args.duration("command-timeout")),
            send_limit: limit("max-request-bytes", 2 << 20),
            receive_limit: limit("max-recv-bytes", i32::MAX as usize),
        };
        Ok((settings, output))
    }

    /// For one endpoint of these.
    pub fn only(&self, endpoint: &str) -> Settings {
        Settings { endpoints: vec![endpoint.to_owned()], ..self.clone() }
    }

    fn channel(&self, endpoint: &str) -> Result<Channel, String> {
        let target = tls::Target::new(endpoint, &self.security)?;
        let (interval, timeout) = self.keep_alive;
        let uri: Uri =
            format!("http://{}", target.authority()).parse().map_err(|error| format!("{error}"))?;
        let channel = Endpoint::from(uri)
            .connect_timeout(self.dial_timeout)
            .http2_keep_alive_interval(interval)
            .keep_alive_timeout(timeout)
            .initial_connection_window_size(8 << 20)
            .initial_stream_window_size(4 << 20);
        let connector = service_fn(move |_: Uri| {
            let target = target.clone();
            async move { dial(target).await }
        });
        Ok(channel.connect_with_connector_lazy(connector))
    }

    /// Prepares the connections and fetches a token where there is a user.
    ///
    /// # Errors
    /// Certificates that cannot be used; the user is refused.
    pub async fn open(self) -> Result<Session, Failure> {
        if self.endpoints.is_empty() {
            return fail(BAD_CONNECTION, "etcdclient: no available endpoints");
        }
        let channels: Result<Vec<Channel>, String> =
            self.endpoints.iter().map(|endpoint| self.channel(endpoint)).collect();
        let channels = channels.map_err(|message| Failure { code: BAD_ARGS, message })?;
        let mut session = Session {
            settings: self,
            channels: Arc::new(channels),
            current: Arc::default(),
            token: Token::default(),
        };
        session.token.token = session.settings.token.as_deref().and_then(|token| token.parse().ok());
        if let Some((name, password)) = session.settings.user.clone() {
            session.authenticate(name, password).await?;
        }
        Ok(session)
    }
}

/// Connects.
///
/// # Errors
/// IO; the TLS handshake's.
pub async fn dial(target: tls::Target) -> std::io::Result<TokioIo<tls::Stream>> {
    let stream = match &target.unix {
        Some(path) => tls::Stream::unix(UnixStream::connect(path).await?),
        None => {
            let stream = TcpStream::connect(target.authority()).await?;
            stream.set_nodelay(true)?;
            tls::Stream::tcp(stream)
        }
    };
    target.secure(stream).await.map(TokioIo::new)
}

/// Whether a failed call never reached a server.
fn never_sent(status: &Status) -> bool {
    if status.code() != Code::Unavailable {
        return false;
    }
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|error| {
            matches!(error.kind(), std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound)
        }) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What a status means to the user: etcd's own texts alone, anything else with its code.
pub fn explain(status: &Status) -> String {
    let text = status.message();
    if text.starts_with("etcdserver: ") || text.starts_with("auth: ") || text == "context deadline exceeded" {
        return text.to_owned();
    }
    format!("rpc error: code = {:?} desc = {text}", status.code())
}

impl Session {
    async fn authenticate(&mut self, name: String, password: String) -> Result<(), Failure> {
        let request = pb::AuthenticateRequest { name, password };
        let answer = self
            .call(|service| {
                let request = request.clone();
                Box::pin(async move { AuthClient::new(service).authenticate(request).await })
            })
            .await;
        match answer {
            Ok(answer) => {
                self.token.token = answer.token.parse().ok();
                Ok(())
            }
            // As in etcd's client: users may be given before authentication is on.
            Err(status) if status.message() == "etcdserver: authentication is not enabled" => Ok(()),
            Err(status) => fail(BAD_CONNECTION, explain(&status)),
        }
    }

    /// A session that asks for a leader on every call.
    pub fn requiring_leader(&self) -> Session {
        let mut session = self.clone();
        session.token.require_leader = true;
        session
    }

    /// A session that waits as long as it takes.
    pub fn without_timeout(&self) -> Session {
        let mut session = self.clone();
        session.settings.timeout = None;
        session
    }

    /// The stub's service of the endpoint in use.
    pub fn service(&self) -> Service {
        let channel = &self.channels[self.current.load(Ordering::Relaxed) % self.channels.len()];
        InterceptedService::new(channel.clone(), self.token.clone())
    }

    /// One call, on the next endpoint when nobody listens on this one, until the command's time is up.
    ///
    /// # Errors
    /// The server's; `context deadline exceeded`.
    pub async fn call<T>(
        &self,
        ask: impl Fn(Service) -> BoxFuture<'static, Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        let start = Instant::now();
        let expired = || Status::deadline_exceeded("context deadline exceeded");
        loop {
            let left = match self.settings.timeout {
                Some(timeout) => timeout.checked_sub(start.elapsed()).ok_or_else(expired)?,
                None => Duration::MAX,
            };
            let status = match tokio::time::timeout(left, ask(self.service())).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => return Err(expired()),
            };
            if !never_sent(&status) {
                return Err(status);
            }
            self.current.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// `call!(session, KvClient.range(request))`: one call of a stub over the session's endpoints.
#[macro_export]
macro_rules! call {
    ($session:expr, $client:ident.$method:ident($request:expr)) => {{
        let (request, settings) = ($request, &$session.settings);
        let (send, receive) = (settings.send_limit, settings.receive_limit);
        $session.call(move |service| {
            let request = request.clone();
            Box::pin(async move {
                $client::new(service)
                    .max_encoding_message_size(send)
                    .max_decoding_message_size(receive)
                    .$method(request)
                    .await
            })
        })
    }};
}

/// [`call!`] whose failure ends the command with exit code 1.
#[macro_export]
macro_rules! ask {
    ($session:expr, $client:ident.$method:ident($request:expr)) => {
        async {
            $crate::call!($session, $client.$method($request)).await.map_err(|status| {
                $crate::command::Failure {
                    code: $crate::command::ERROR,
                    message: $crate::session::explain(&status),
                }
            })
        }
    };
}
