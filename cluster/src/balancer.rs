//! TCP load balancer over the API servers, on a local address: what an agent and its pods' tools talk to.
//!
//! Order: a connection goes to the next server that is not known to be down, and to the others when that one refuses; a
//! server that fails its check loses the connections through it, so that clients with silent watches notice.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

/// Connections at once.
const CONNECTIONS: usize = 4096;
const CONNECT: Duration = Duration::from_millis(700);
const CHECK: Duration = Duration::from_secs(1);
/// Failed checks in a row until a server's connections are closed.
const STRIKES: u32 = 3;
/// Bytes that stay unacknowledged for so many milliseconds end a connection.
const UNACKNOWLEDGED: u32 = 15_000;

#[derive(Default)]
struct Backend {
    strikes: u32,
    /// Cancelled when the server is given up.
    lives: CancellationToken,
}

/// The servers, changeable while running.
#[derive(Clone)]
pub struct Servers {
    addresses: watch::Sender<Vec<SocketAddr>>,
    backends: Arc<Mutex<BTreeMap<SocketAddr, Backend>>>,
    turn: Arc<AtomicUsize>,
}

impl Servers {
    pub fn new(addresses: Vec<SocketAddr>) -> Servers {
        Servers { addresses: watch::Sender::new(addresses), backends: Arc::default(), turn: Arc::default() }
    }

    /// An empty list is ignored: better an old server than none. Says whether the list changed.
    pub fn set(&self, mut addresses: Vec<SocketAddr>) -> bool {
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return false;
        }
        self.addresses.send_if_modified(|known| {
            let changed = *known != addresses;
            if changed {
                *known = addresses;
            }
            changed
        })
    }

    pub fn list(&self) -> Vec<SocketAddr> {
        self.addresses.borrow().clone()
    }

    /// In the order to try: healthy ones first, starting with another each time.
    fn order(&self) -> Vec<SocketAddr> {
        let mut addresses = self.list();
        if addresses.is_empty() {
            return addresses;
        }
        let by = self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len();
        addresses.rotate_left(by);
        let backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.sort_by_key(|address| backends.get(address).is_some_and(|backend| backend.strikes > 0));
        addresses
    }

    fn lives(&self, address: SocketAddr) -> CancellationToken {
        self.backends
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(address)
            .or_default()
            .lives
            .child_token()
    }

    fn report(&self, address: SocketAddr, healthy: bool) {
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        let backend = backends.entry(address).or_default();
        if healthy {
            if backend.strikes >= STRIKES {
                info!(%address, "server answers again");
            }
            backend.strikes = 0;
            return;
        }
        backend.strikes = backend.strikes.saturating_add(1);
        if backend.strikes == STRIKES {
            info!(%address, "server does not answer: its connections are closed");
            std::mem::take(&mut backend.lives).cancel();
        }
    }
}

/// Serves `listen` until the token is cancelled.
///
/// # Errors
/// When the address is taken.
pub async fn serve(listen: SocketAddr, servers: Servers, token: CancellationToken) -> Result<()> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("local load balancer on {listen}: is another one running?"))?;
    tokio::spawn(check(servers.clone(), token.clone()));
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = token.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let (Ok((client, _)), Ok(slot)) = (accepted, slots.clone().try_acquire_owned()) else { continue };
        let (servers, token) = (servers.clone(), token.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = carry(client, servers) => {}
            }
            drop(slot);
        });
    }
}

async fn carry(mut client: TcpStream, servers: Servers) {
    for address in servers.order() {
        let lives = servers.lives(address);
        match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(mut server)) => {
                for stream in [&client, &server] {
                    let _ = stream.set_nodelay(true);
                    // A peer that vanished is noticed even when both sides are silent.
                    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
                    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &10);
                    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &5);
                    let _ = setsockopt(stream, sockopt::TcpUserTimeout, &UNACKNOWLEDGED);
                }
                tokio::select! {
                    () = lives.cancelled() => {}
                    ended = tokio::io::copy_bidirectional(&mut client, &mut server) => {
                        if let Err(error) = ended {
                            debug!(%address, %error, "connection");
                        }
                    }
                }
                return;
            }
            Ok(Err(_)) | Err(_) => servers.report(address, false),
        }
    }
}

async fn check(servers: Servers, token: CancellationToken) {
    loop {
        tokio::select! {
            () = token.cancelled() => return,
            () = tokio::time::sleep(CHECK) => {}
        }
        let probes = servers.list().into_iter().map(|address| async move {
            let answer = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
            (address, matches!(answer, Ok(Ok(_))))
        });
        for (address, healthy) in futures::future::join_all(probes).await {
            servers.report(address, healthy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A server that sends its name and keeps the connection.
    async fn server(name: &'static str) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let task = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(name.as_bytes()).await;
                open.push(stream);
            }
        });
        (address, task)
    }

    async fn greeting(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.expect("the balancer accepts");
        let mut name = [0u8; 1];
        match tokio::time::timeout(Duration::from_secs(30), stream.read_exact(&mut name)).await {
            Ok(Ok(_)) => String::from_utf8_lossy(&name).into_owned(),
            other => format!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn connections_spread_and_avoid_a_dead_server() {
        let ((a, _a), (b, task_b)) = (server("a").await, server("b").await);
        let listen =
            TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
        let servers = Servers::new(vec![a, b]);
        let token = CancellationToken::new();
        let running = tokio::spawn(serve(listen, servers.clone(), token.clone()));
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(listen).await.is_err() {
            assert!(tokio::time::Instant::now() < deadline, "the balancer listens");
            tokio::task::yield_now().await;
        }
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..8 {
            seen.insert(greeting(listen).await);
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["a", "b"]);
        task_b.abort();
        let _ = task_b.await;
        for _ in 0..8 {
            assert_eq!(greeting(listen).await, "a", "the dead server is passed over");
        }
        assert!(!servers.set(vec![]), "the last known servers are kept");
        token.cancel();
        running.await.expect("no panic").expect("a clean end");
    }
}
