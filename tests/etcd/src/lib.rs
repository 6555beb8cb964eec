//! The store at the wire: members as processes or in this process, driven by gRPC clients and by etcdctl.
//!
//! Ports are free ones of loopback; everything waits on conditions with a deadline.

pub mod cases;
pub mod differential;
pub mod faults;
pub mod replay;
pub mod traffic;

use std::future::Future;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use keelson_store_proto::client::{ClientTls, Etcd, Remote};
use keelson_store_proto::etcdserverpb as pb;

/// The longest any condition is waited for.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A port of loopback nobody listens on now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// Asks until the answer is there.
///
/// # Panics
/// At the deadline, naming `what`.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The environment's etcdctl: `ETCDCTL`, or the one on PATH.
pub fn etcdctl() -> Option<PathBuf> {
    let path = std::env::var_os("ETCDCTL").map_or_else(|| PathBuf::from("etcdctl"), PathBuf::from);
    let found = Command::new(&path).arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success()).then_some(path)
}

/// One member as a process.
pub struct Process {
    /// Its name.
    pub name: String,
    /// Where clients reach it.
    pub client: String,
    /// Where peers reach it.
    pub peer: String,
    /// Its data.
    pub data_dir: PathBuf,
    /// Variables it is started with, beside this process's own.
    pub environment: Vec<(String, String)>,
    /// The group it runs with; ours when absent.
    pub group: Option<u32>,
    flags: Vec<String>,
    tls: Option<ClientTls>,
    log: PathBuf,
    child: Option<Child>,
    starts: usize,
}

impl Process {
    /// A member of that name below `folder`, not started.
    pub fn new(binary: &Path, folder: &Path, name: &str) -> Process {
        let client = format!("http://127.0.0.1:{}", free_port());
        let peer = format!("http://127.0.0.1:{}", free_port());
        Process {
            name: name.to_owned(),
            client,
            peer,
            data_dir: folder.join(name),
            environment: Vec::new(),
            group: None,
            flags: vec![binary.display().to_string()],
            tls: None,
            log: folder.join(format!("{name}.log")),
            child: None,
            starts: 0,
        }
    }

    /// TLS for clients and peers, both of whom must show a certificate.
    pub fn secure(&mut self, certificates: &Certificates) {
        self.tls = Some(certificates.client(true));
        for url in [&mut self.client, &mut self.peer] {
            *url = url.replace("http://", "https://");
        }
        let file = |flag: &str, name: &str| format!("--{flag}={}", certificates.path(name).display());
        self.flags.extend([
            file("cert-file", "server.pem"),
            file("key-file", "server-key.pem"),
            file("trusted-ca-file", "ca.pem"),
            "--client-cert-auth".to_owned(),
            file("peer-cert-file", "server.pem"),
            file("peer-key-file", "server-key.pem"),
            file("peer-trusted-ca-file", "ca.pem"),
            "--peer-client-cert-auth".to_owned(),
        ]);
    }

    /// How often it was started.
    pub fn starts(&self) -> usize {
        self.starts
    }

    /// Starts it with the flags every harness passes, and these.
    pub fn start(&mut self, cluster: &str, state: &str, more: &[&str]) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).expect("a log file");
        let mut command = Command::new(&self.flags[0]);
        command
            .args(&self.flags[1..])
            .args(["--name", &self.name])
            .arg(format!("--data-dir={}", self.data_dir.display()))
            .arg(format!("--listen-client-urls={}", self.client))
            .arg(format!("--advertise-client-urls={}", self.client))
            .arg(format!("--listen-peer-urls={}", self.peer))
            .arg(format!("--initial-advertise-peer-urls={}", self.peer))
            .args(["--initial-cluster", cluster, "--initial-cluster-state", state])
            .args(["--initial-cluster-token", "test", "--snapshot-count=10000"])
            .args(more)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(group) = self.group {
            std::os::unix::process::CommandExt::gid(&mut command, group);
        }
        self.child = Some(command.spawn().expect("the member starts"));
        self.starts += 1;
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("gone");
        }
    }

    /// SIGTERM; answers the exit status.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let sent = Command::new("kill").arg(child.id().to_string()).status().expect("kill runs");
        assert!(sent.success(), "SIGTERM");
        child.wait().expect("gone")
    }

    /// Whether it was started and nobody has seen it end.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let id = self.child.as_ref().expect("it runs").id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status().expect("kill runs");
        assert!(sent.success(), "SIG{name}");
    }

    /// How it ended, once it has ended by itself.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        let status = self.child.as_mut()?.try_wait().expect("asked")?;
        self.child = None;
        Some(status)
    }

    /// Everything it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for the line that says it serves, `times` starts counted.
    pub async fn ready(&self, times: usize) {
        eventually(&format!("{} is ready; its log:\n{}", self.name, self.log()), || async {
            (self.log().matches("ready to serve client requests").count() >= times).then_some(())
        })
        .await;
    }

    /// A client of this member alone.
    pub async fn connect(&self) -> Remote {
        Remote::connect(std::slice::from_ref(&self.client), self.tls.clone()).await.expect("a good URL")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three members as processes that form a cluster.
pub struct Cluster {
    /// Removed with everything in it at the end.
    pub folder: tempfile::TempDir,
    /// The members.
    pub members: Vec<Process>,
}

impl Cluster {
    /// Starts `size` members and waits until all serve.
    pub async fn start(binary: &Path, size: usize, more: &[&str]) -> Cluster {
        Cluster::start_with(binary, size, more, None).await
    }

    /// Likewise, with TLS where there are certificates.
    pub async fn start_with(
        binary: &Path,
        size: usize,
        more: &[&str],
        tls: Option<&Certificates>,
    ) -> Cluster {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut members: Vec<Process> =
            (1..=size).map(|i| Process::new(binary, folder.path(), &format!("m{i}"))).collect();
        for member in &mut members {
            if let Some(certificates) = tls {
                member.secure(certificates);
            }
        }
        let mut cluster = Cluster { folder, members };
        let initial = cluster.initial();
        for member in &mut cluster.members {
            member.start(&initial, "new", more);
        }
        for member in &cluster.members {
            member.ready(1).await;
        }
        cluster
    }

    /// The `--initial-cluster` of the members.
    pub fn initial(&self) -> String {
        let pairs: Vec<String> = self.members.iter().map(|m| format!("{}={}", m.name, m.peer)).collect();
        pairs.join(",")
    }

    /// Client URLs of all members.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.client.clone()).collect()
    }

    /// The member that leads, as position.
    pub async fn leader(&self) -> usize {
        eventually("a leader", || async {
            for (i, member) in self.members.iter().enumerate() {
                if member.child.is_none() {
                    continue;
                }
                let status = member.connect().await.status(pb::StatusRequest {}).await;
                if status.is_ok_and(|s| s.header.is_some_and(|h| h.member_id == s.leader)) {
                    return Some(i);
                }
            }
            None
        })
        .await
    }
}

/// A put request.
pub fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

/// A read of one key.
pub fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

/// A read of all keys with a prefix.
pub fn prefix(key: &str) -> pb::RangeRequest {
    let mut end = key.as_bytes().to_vec();
    let last = end.last_mut().expect("a prefix that is not empty");
    *last += 1;
    pb::RangeRequest { range_end: end.into(), ..get(key) }
}

/// The value of a key, if it is there.
pub async fn value(client: &impl Etcd, key: &str) -> Result<Option<String>, tonic::Status> {
    let answer = client.range(get(key)).await?;
    Ok(answer.kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()))
}

/// Certificates of one authority for loopback, as files.
pub struct Certificates {
    folder: tempfile::TempDir,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Certificates {
    /// A new authority, a server's and a client's certificate.
    pub fn new() -> Certificates {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let folder = tempfile::tempdir().expect("a temporary folder");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("good");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).expect("signed");
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).expect("written");
        let certificates = Certificates { folder, issuer: Issuer::new(params, key) };
        for name in ["server", "client"] {
            certificates.issue(name);
        }
        certificates
    }

    /// Issues `name.pem` and `name-key.pem`, with the name as common name.
    pub fn issue(&self, name: &str) {
        use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
        let write = |name: &str, text: String| std::fs::write(self.path(name), text).expect("written");
        let key = KeyPair::generate().expect("a key");
        let mut params =
            CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("good names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        write(&format!("{name}.pem"), certificate.pem());
        write(&format!("{name}-key.pem"), key.serialize_pem());
    }

    /// The path of `ca.pem`, `server.pem`, `server-key.pem`, `client.pem` or `client-key.pem`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a client needs; without an identity the server must refuse it.
    pub fn client(&self, identity: bool) -> ClientTls {
        self.client_as(identity.then_some("client"))
    }

    /// What a client needs that shows the certificate issued under a name.
    pub fn client_as(&self, name: Option<&str>) -> ClientTls {
        let read = |name: &str| std::fs::read(self.path(name)).expect("readable");
        let identity = |name: &str| (read(&format!("{name}.pem")), read(&format!("{name}-key.pem")));
        ClientTls { ca: read("ca.pem"), identity: name.map(identity), domain: None }
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Certificates::new()
    }
}
