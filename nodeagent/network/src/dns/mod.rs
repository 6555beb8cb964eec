//! The DNS server: sockets around `Zone::answer`.
//!
//! Order: a query is parsed, answered from the zone, or passed on to the node's own name servers byte for byte (with a
//! new id). Bounded: so many queries at once, the rest of UDP is dropped and retried by its sender.

mod upstream;
mod wire;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use keelson_nodeagent_core::dns::{Answer, Kind, Question, Zone};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use upstream::Upstream;

/// Queries answered at once, UDP and TCP together.
const QUERIES: usize = 512;
/// A TCP client that says nothing for this long is left.
const IDLE: Duration = Duration::from_secs(10);
/// Largest query taken over UDP, bytes.
const LARGEST: usize = 4096;
const RETRY: Duration = Duration::from_secs(1);

/// The zone, shared between the watches that change it and the sockets that read it.
#[derive(Clone)]
pub struct Dns {
    zone: Arc<RwLock<Zone>>,
    turn: Arc<AtomicUsize>,
}

impl Dns {
    pub fn new(domain: &str, server: IpAddr) -> Dns {
        Dns { zone: Arc::new(RwLock::new(Zone::new(domain, server))), turn: Arc::new(AtomicUsize::new(0)) }
    }

    pub fn change(&self, change: impl FnOnce(&mut Zone)) {
        change(&mut self.zone.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn ask(&self, question: &Question) -> Answer {
        self.zone.read().unwrap_or_else(PoisonError::into_inner).answer(question)
    }

    /// Serves UDP and TCP until the token is cancelled; an address that is taken is tried again.
    pub async fn serve(self, address: SocketAddr, upstream: Upstream, token: CancellationToken) {
        let server =
            Server { dns: self, upstream: Arc::new(upstream), slots: Arc::new(Semaphore::new(QUERIES)) };
        while !token.is_cancelled() {
            if let Err(error) = server.clone().listen(address, &token).await {
                warn!("cluster DNS not served, tried again in {RETRY:?}: {error:#}");
                tokio::select! {
                    () = token.cancelled() => {}
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
    }
}

#[derive(Clone)]
struct Server {
    dns: Dns,
    upstream: Arc<Upstream>,
    slots: Arc<Semaphore>,
}

impl Server {
    async fn listen(self, address: SocketAddr, token: &CancellationToken) -> Result<()> {
        let udp = UdpSocket::bind(address).await.with_context(|| format!("bind UDP {address}"))?;
        let tcp = TcpListener::bind(address).await.with_context(|| format!("bind TCP {address}"))?;
        info!(%address, "cluster DNS");
        let udp = Arc::new(udp);
        let mut buffer = vec![0u8; LARGEST];
        loop {
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                received = udp.recv_from(&mut buffer) => {
                    let Ok((length, client)) = received else { continue };
                    let Ok(slot) = self.slots.clone().try_acquire_owned() else { continue };
                    let (server, udp, query) = (self.clone(), udp.clone(), buffer[..length].to_vec());
                    tokio::spawn(async move {
                        if let Some(answer) = server.answer(&query, true).await
                            && let Err(error) = udp.send_to(&answer, client).await
                        {
                            debug!(%client, %error, "answer not sent");
                        }
                        drop(slot);
                    });
                }
                accepted = tcp.accept() => {
                    let (Ok((stream, _)), Ok(slot)) = (accepted, self.slots.clone().try_acquire_owned()) else { continue };
                    let server = self.clone();
                    tokio::spawn(async move {
                        // A client that goes away in the middle is no news.
                        let _ = server.converse(stream).await;
                        drop(slot);
                    });
                }
            }
        }
    }

    async fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let mut length = [0u8; 2];
            tokio::time::timeout(IDLE, stream.read_exact(&mut length)).await??;
            let mut query = vec![0u8; usize::from(u16::from_be_bytes(length))];
            tokio::time::timeout(IDLE, stream.read_exact(&mut query)).await??;
            let Some(answer) = self.answer(&query, false).await else { return Ok(()) };
            let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
            stream.write_all(&length.to_be_bytes()).await?;
            stream.write_all(&answer).await?;
        }
    }

    /// The answer to a query's bytes; `None` for what is no query.
    async fn answer(&self, bytes: &[u8], udp: bool) -> Option<Vec<u8>> {
        let query = wire::Query::read(bytes)?;
        let Some(question) = query.question() else { return query.refusal() };
        match self.dns.ask(&question) {
            Answer::Elsewhere => match self.upstream.pass_on(bytes, udp).await {
                Some(answer) => Some(answer),
                None => query.failure(),
            },
            Answer::Alias { record, target } => {
                let rest = match question.kind {
                    Kind::A | Kind::Aaaa => self.look_up(&query, &target, udp).await,
                    _ => Vec::new(),
                };
                query.alias(&record, rest, udp)
            }
            answer => query.answer(answer, self.dns.turn.fetch_add(1, Ordering::Relaxed), udp),
        }
    }

    /// Records of an outside name, from the node's name servers; empty when nobody answers.
    async fn look_up(&self, query: &wire::Query, name: &str, udp: bool) -> Vec<hickory_proto::rr::Record> {
        let Some(bytes) = query.ask_for(name) else { return Vec::new() };
        match self.upstream.pass_on(&bytes, udp).await {
            Some(answer) => wire::records(&answer),
            None => Vec::new(),
        }
    }
}
