//! The servers under test as real processes: started alike, on loopback, with their defaults and fsync on.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use keelson_store_proto::etcdserverpb::PutRequest;
use keelson_store_proto::etcdserverpb::kv_client::KvClient;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Etcd,
    Keelson,
}

impl Kind {
    /// The program and the words before etcd's flags.
    fn command(self) -> anyhow::Result<Command> {
        let variable = if self == Kind::Etcd { "ETCD" } else { "KEELSON_BIN" };
        let path =
            std::env::var_os(variable).with_context(|| format!("{variable} names the server's binary"))?;
        let mut command = Command::new(path);
        if self == Kind::Keelson {
            command.arg("etcd");
        }
        Ok(command)
    }
}

/// One cluster; dropping it kills its processes and removes its data.
pub struct Servers {
    pub endpoints: Vec<String>,
    pub version: String,
    processes: Vec<Child>,
    commands: Vec<Command>,
    folder: PathBuf,
}

/// A port that was free a moment ago.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Servers {
    pub async fn start(kind: Kind, members: usize) -> anyhow::Result<Servers> {
        let folder =
            std::env::temp_dir().join(format!("keelson-bench-{kind:?}-{}-{members}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let version = String::from_utf8_lossy(&kind.command()?.arg("--version").output()?.stdout)
            .lines()
            .next()
            .unwrap_or_default()
            .to_string();
        let ports: Vec<(u16, u16)> =
            (0..members).map(|_| Ok((free_port()?, free_port()?))).collect::<anyhow::Result<_>>()?;
        let initial: Vec<String> =
            ports.iter().enumerate().map(|(n, (_, peer))| format!("n{n}=http://127.0.0.1:{peer}")).collect();
        let mut servers = Servers {
            endpoints: Vec::new(),
            version,
            processes: Vec::new(),
            commands: Vec::new(),
            folder: folder.clone(),
        };
        for (number, (client, peer)) in ports.iter().enumerate() {
            let client_url = format!("http://127.0.0.1:{client}");
            let peer_url = format!("http://127.0.0.1:{peer}");
            let log = fs::File::create(folder.join(format!("n{number}.log")))?;
            let mut command = kind.command()?;
            command
                .arg(format!("--name=n{number}"))
                .arg(format!("--data-dir={}", folder.join(format!("n{number}")).display()))
                .arg(format!("--listen-client-urls={client_url}"))
                .arg(format!("--advertise-client-urls={client_url}"))
                .arg(format!("--listen-peer-urls={peer_url}"))
                .arg(format!("--initial-advertise-peer-urls={peer_url}"))
                .arg(format!("--initial-cluster={}", initial.join(",")))
                .arg("--quota-backend-bytes=8589934592")
                .arg("--log-level=warn")
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log);
            servers.processes.push(command.spawn()?);
            servers.commands.push(command);
            servers.endpoints.push(client_url);
        }
        servers.ready(kind).await?;
        Ok(servers)
    }

    /// Waits until every member answers a write.
    async fn ready(&self, kind: Kind) -> anyhow::Result<()> {
        let started = Instant::now();
        for endpoint in &self.endpoints {
            while let Err(error) = write_once(endpoint).await {
                if started.elapsed() > Duration::from_secs(30) {
                    bail!(
                        "{kind:?} at {endpoint} is not ready after 30 s ({error}); its logs are in {}",
                        self.folder.display()
                    );
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    /// User and system time of all processes so far.
    pub fn cpu_micros(&self) -> u64 {
        self.processes.iter().map(|process| cpu_micros(process.id())).sum()
    }

    /// Resident set of each process in MiB.
    pub fn resident(&self) -> Vec<u64> {
        self.processes.iter().map(|process| resident(process.id())).collect()
    }

    /// Bytes on disk of all members.
    pub fn disk(&self) -> u64 {
        fn below(folder: &std::path::Path) -> u64 {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            let sizes = entries.map(|entry| match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => below(&entry.path()),
                Ok(metadata) => std::os::unix::fs::MetadataExt::blocks(&metadata) * 512,
                Err(_) => 0,
            });
            sizes.sum()
        }
        below(&self.folder)
    }

    /// Stops the first member, by SIGTERM or SIGKILL, starts it again, and answers the seconds from the start until it
    /// serves a write.
    pub async fn restart(&mut self, kill: bool) -> anyhow::Result<f64> {
        let process = &mut self.processes[0];
        if kill {
            process.kill()?;
        } else {
            Command::new("kill").arg(process.id().to_string()).status()?;
        }
        process.wait()?;
        let started = Instant::now();
        self.processes[0] = self.commands[0].spawn()?;
        while write_once(&self.endpoints[0]).await.is_err() {
            anyhow::ensure!(
                started.elapsed() < Duration::from_secs(120),
                "not serving 120 s after a restart"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(started.elapsed().as_secs_f64())
    }

    /// SIGTERM, then a wait with a bound.
    pub fn stop(&mut self, bound: Duration) -> anyhow::Result<()> {
        for process in &self.processes {
            Command::new("kill").arg(process.id().to_string()).status()?;
        }
        let started = Instant::now();
        for process in &mut self.processes {
            while process.try_wait()?.is_none() {
                if started.elapsed() > bound {
                    process.kill()?;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _gone = process.kill();
            let _reaped = process.wait();
        }
        let _removed = fs::remove_dir_all(&self.folder);
    }
}

async fn write_once(endpoint: &str) -> anyhow::Result<()> {
    let mut client = KvClient::connect(endpoint.to_string()).await?;
    let put = PutRequest { key: "ready".into(), value: "yes".into(), ..Default::default() };
    tokio::time::timeout(Duration::from_secs(2), client.put(put)).await??;
    Ok(())
}

/// Fields 14 and 15 of /proc/PID/stat, in clock ticks of 10 ms.
fn cpu_micros(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = text.rsplit(')').next().unwrap_or_default();
    after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>()
        * 10_000
}

fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}
