//! The gateway: connections passed on, byte by byte, to whichever endpoint can be reached.
//!
//! Endpoints take turns. One that cannot be reached is left out until a probe reaches it again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::{TcpListener, TcpStream};

use crate::flags::{self, Given};

/// How long reaching an endpoint may take.
const DIAL: Duration = Duration::from_secs(5);

pub(crate) const HELP: &str = "gateway related command

Usage:
  etcd gateway start [flags]

Flags:
      --endpoints strings      comma separated etcd cluster endpoints (default [127.0.0.1:2379])
      --listen-addr string     listen address (default \"127.0.0.1:23790\")
      --retry-delay duration   duration of delay before retrying failed endpoints (default 1m0s)";

/// How the gateway runs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub endpoints: Vec<String>,
    pub listen: String,
    pub retry: Duration,
}

impl Options {
    /// `None` when only help was asked for.
    ///
    /// # Errors
    /// Flags that are unknown or cannot be read.
    pub fn parse(args: &[String]) -> Result<Option<Options>> {
        let mut options = Options {
            endpoints: vec!["127.0.0.1:2379".to_owned()],
            listen: "127.0.0.1:23790".to_owned(),
            retry: Duration::from_secs(60),
        };
        let read = flags::each(args, &["insecure-discovery"], |Given { name, value }| {
            match name {
                "endpoints" => options.endpoints = flags::list(value),
                "listen-addr" => options.listen = value.to_owned(),
                "retry-delay" => options.retry = flags::duration(value)?,
                "discovery-srv" | "discovery-srv-name" | "insecure-discovery" | "trusted-ca-file"
                    if matches!(value, "" | "false") => {}
                "discovery-srv" | "discovery-srv-name" | "insecure-discovery" | "trusted-ca-file" => {
                    bail!("endpoints are not looked up in DNS here; name them with --endpoints")
                }
                _ => bail!("unknown flag"),
            }
            Ok(())
        })?;
        if read.is_none() {
            println!("{HELP}");
            return Ok(None);
        }
        if options.endpoints.is_empty() {
            bail!("no endpoints found");
        }
        Ok(Some(options))
    }
}

struct Endpoint {
    address: String,
    reachable: AtomicBool,
}

/// Endpoints and whose turn it is.
struct Endpoints {
    all: Vec<Endpoint>,
    turn: AtomicUsize,
}

async fn dial(address: &str) -> std::io::Result<TcpStream> {
    match tokio::time::timeout(DIAL, TcpStream::connect(address)).await {
        Ok(dialled) => dialled,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

impl Endpoints {
    /// A connection to the next endpoint that can be reached; those that cannot are marked.
    async fn connect(&self) -> Option<TcpStream> {
        for _ in 0..self.all.len() {
            let endpoint = &self.all[self.turn.fetch_add(1, Relaxed) % self.all.len()];
            if !endpoint.reachable.load(Relaxed) {
                continue;
            }
            match dial(&endpoint.address).await {
                Ok(stream) => return Some(stream),
                Err(error) => {
                    endpoint.reachable.store(false, Relaxed);
                    tracing::warn!(address = endpoint.address, %error, "deactivated endpoint");
                }
            }
        }
        None
    }

    /// Probes what could not be reached, for ever.
    async fn watch(&self, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            for endpoint in self.all.iter().filter(|endpoint| !endpoint.reachable.load(Relaxed)) {
                if dial(&endpoint.address).await.is_ok() {
                    endpoint.reachable.store(true, Relaxed);
                    tracing::info!(address = endpoint.address, "activated");
                }
            }
        }
    }
}

/// Serves until the process ends.
///
/// # Errors
/// The listen address cannot be bound.
pub(crate) async fn run(options: Options) -> Result<()> {
    let listener = TcpListener::bind(&options.listen)
        .await
        .with_context(|| format!("listen tcp {}: cannot bind for --listen-addr", options.listen))?;
    println!("etcd: ready to proxy client requests to {:?}", options.endpoints);
    serve(listener, options).await
}

async fn serve(listener: TcpListener, options: Options) -> Result<()> {
    let endpoint =
        |address: &String| Endpoint { address: flags::address(address), reachable: AtomicBool::new(true) };
    let all = options.endpoints.iter().map(endpoint).collect();
    let endpoints = Arc::new(Endpoints { all, turn: AtomicUsize::new(0) });
    let accepting = async {
        loop {
            let Ok((mut client, _)) = listener.accept().await else {
                // Out of descriptors: those in use must go first.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let endpoints = endpoints.clone();
            tokio::spawn(async move {
                let Some(mut server) = endpoints.connect().await else {
                    tracing::warn!("no endpoint can be reached; the connection is closed");
                    return;
                };
                // Either side may break off: then both are closed.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    };
    tokio::select! {
        never = accepting => never,
        () = endpoints.watch(options.retry) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn parse(args: &[&str]) -> Result<Option<Options>> {
        Options::parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_read_and_mistakes_named() {
        let options =
            parse(&["--endpoints", "http://a:1,b:2", "--retry-delay=5s"]).expect("good").expect("run");
        assert_eq!(options.endpoints, ["http://a:1", "b:2"]);
        assert_eq!(options.retry, Duration::from_secs(5));
        for bad in [&["--nope=1"][..], &["--retry-delay=x"], &["word"], &["--endpoints"], &["--endpoints="]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn bytes_reach_the_endpoint_that_lives_and_a_revived_one_is_used_again() {
        let echo = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let lives = echo.local_addr().expect("an address").to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = echo.accept().await {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.expect("echoed");
            }
        });
        let gone = TcpListener::bind("127.0.0.1:0").await.and_then(|l| l.local_addr()).expect("an address");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let door = listener.local_addr().expect("an address");
        let options = Options {
            endpoints: vec![gone.to_string(), lives],
            listen: String::new(),
            retry: Duration::from_millis(20),
        };
        tokio::spawn(serve(listener, options));
        let ask = async |word: &[u8]| {
            let mut stream = TcpStream::connect(door).await.expect("connected");
            stream.write_all(word).await.expect("sent");
            let mut answer = vec![0; word.len()];
            stream.read_exact(&mut answer).await.map(|_| answer)
        };
        for _ in 0..4 {
            assert_eq!(ask(b"hello").await.expect("echoed"), b"hello");
        }
        let back = TcpListener::bind(gone).await.expect("the port is free again");
        let reached = tokio::spawn(async move {
            loop {
                let (mut stream, _) = back.accept().await.expect("accepted");
                // A probe says nothing.
                let mut word = [0; 5];
                if stream.read_exact(&mut word).await.is_ok() {
                    stream.write_all(b"again").await.expect("sent");
                    return;
                }
            }
        });
        let begin = tokio::time::Instant::now();
        while !reached.is_finished() {
            let answer = ask(b"hello").await.expect("one of both answers");
            assert!(answer == b"hello" || answer == b"again");
            assert!(begin.elapsed() < Duration::from_secs(30), "never used again");
        }
    }
}
