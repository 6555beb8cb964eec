//! Passing questions on to the node's own name servers.
//!
//! Hazards: a server that is ourselves would be a loop, so our own addresses are left out; a node without other servers
//! answers SERVFAIL at once.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// At most this many servers are asked (as resolv.conf's readers do).
const SERVERS: usize = 3;
/// How long a reading of resolv.conf is trusted.
const FRESH: Duration = Duration::from_secs(10);

pub struct Upstream {
    resolv_conf: PathBuf,
    ourselves: Vec<IpAddr>,
    known: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
}

impl Upstream {
    pub fn new(resolv_conf: PathBuf, ourselves: Vec<IpAddr>) -> Upstream {
        Upstream { resolv_conf, ourselves, known: Mutex::new(None) }
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, servers)) = known.as_ref()
            && read.elapsed() < FRESH
        {
            return servers.clone();
        }
        let text = std::fs::read_to_string(&self.resolv_conf).unwrap_or_default();
        let servers = name_servers(&text, &self.ourselves);
        *known = Some((Instant::now(), servers.clone()));
        servers
    }

    /// The first answer of a server, with the question's own id; `None` when none answers.
    pub async fn pass_on(&self, query: &[u8], udp: bool) -> Option<Vec<u8>> {
        if query.len() < 12 {
            return None;
        }
        for server in self.servers() {
            let asked = async {
                match udp {
                    true => over_udp(server, query).await,
                    false => over_tcp(server, query).await,
                }
            };
            if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, asked).await {
                return Some(answer);
            }
        }
        None
    }
}

/// Servers of a resolv.conf, ourselves left out.
fn name_servers(text: &str, ourselves: &[IpAddr]) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.split_whitespace().collect::<Vec<_>>().try_into().ok())
        .filter(|words: &[&str; 2]| words[0] == "nameserver")
        .filter_map(|words| words[1].parse::<IpAddr>().ok())
        .filter(|server| !ourselves.contains(server))
        .take(SERVERS)
        .map(|server| SocketAddr::new(server, 53))
        .collect()
}

/// The socket is connected and its port is the kernel's random choice, so the sender's id is as good as any.
async fn over_udp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0u8; 65_535];
    loop {
        let length = socket.recv(&mut answer).await?;
        if length >= 12 && answer[..2] == query[..2] {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let length = u16::try_from(query.len()).map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(query).await?;
    let mut length = [0u8; 2];
    stream.read_exact(&mut length).await?;
    let mut answer = vec![0u8; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_address_is_no_upstream() {
        let text = "# comment\nsearch a b\nnameserver 10.96.0.10\nnameserver 192.0.2.1\nnameserver fd00::1\nnameserver x\n";
        let servers = name_servers(text, &["10.96.0.10".parse().expect("an address")]);
        assert_eq!(servers, ["192.0.2.1:53".parse().expect("one"), "[fd00::1]:53".parse().expect("two")]);
    }
}
