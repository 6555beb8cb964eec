//! The doors of the parts started alone: our API server on a real etcd, malformed requests, start-up mistakes.
//!
//! Everything runs on free ports of loopback in a temporary folder, without root. The real etcd is skipped when `ETCD`
//! names none. curl is the client, so that nothing of ours makes the requests well-formed.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use keelson_test_harness::{Ran, binary, call, eventually, is_root, run};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};

/// For what takes a second on a quiet machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// One byte more than a request may carry: the refusal comes when all is sent, so that no client is cut off sending.
const OVERSIZED: usize = 3 * 1024 * 1024 + 1;

/// A port of loopback nobody listens on now, below the range the kernel gives to outgoing connections: those of the
/// other tests must not take it before its server does.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset = std::process::id().wrapping_mul(61).wrapping_add(step) % 20_000;
        let port = 12_000 + u16::try_from(offset).expect("below 20000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A program that is killed at the end of its scope.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(command: &mut Command, log: &Path) -> Running {
        let file = File::options().create(true).append(true).open(log).expect("a log file");
        let copy = file.try_clone().expect("a second handle");
        let child = command.stdin(Stdio::null()).stdout(copy).stderr(file).spawn().expect("it starts");
        Running { child, log: log.to_owned() }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks it to stop with SIGTERM and waits until it is gone.
    fn terminate(mut self) {
        let pid = self.child.id().to_string();
        assert!(call("kill", &[pid.as_str()]).ok, "SIGTERM");
        eventually("a stop after SIGTERM", DEADLINE, || match self.child.try_wait() {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}; its log:\n{}", self.log())),
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// An authority with an administrator's certificate, as files `NAME-ca.pem`, `NAME.pem` and `NAME.key`.
fn authority(folder: &Path, name: &str) -> Issuer<'static, KeyPair> {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("good");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, format!("{name} authority"));
    let certificate = params.self_signed(&key).expect("signed");
    std::fs::write(folder.join(format!("{name}-ca.pem")), certificate.pem()).expect("written");
    let issuer = Issuer::new(params, key);
    certificate_of(folder, &issuer, name, "kubernetes-admin", Some("system:masters"));
    issuer
}

fn certificate_of(
    folder: &Path,
    issuer: &Issuer<'static, KeyPair>,
    file: &str,
    name: &str,
    group: Option<&str>,
) {
    let key = KeyPair::generate().expect("a key");
    let mut params =
        CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("good names");
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, issuer).expect("signed");
    std::fs::write(folder.join(format!("{file}.pem")), certificate.pem()).expect("written");
    std::fs::write(folder.join(format!("{file}.key")), key.serialize_pem()).expect("written");
}

/// A folder with certificates, and the ports of one store and one API server.
struct Place {
    folder: tempfile::TempDir,
    client: u16,
    peer: u16,
    secure: u16,
}

/// One answer.
#[derive(Debug)]
struct Answer {
    code: u16,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Whether it is a Status of that code, in the head and in the body.
    #[track_caller]
    fn is_status(&self, code: u16, reason: &str, word: &str) {
        assert_eq!(self.code, code, "{self:?}");
        let status = self.json();
        assert_eq!(
            (&status["kind"], &status["status"], &status["code"], &status["reason"]),
            (&json!("Status"), &json!("Failure"), &json!(code), &json!(reason)),
            "{self:?}"
        );
        assert!(status["message"].as_str().is_some_and(|message| message.contains(word)), "{self:?}");
    }
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let issuer = authority(folder.path(), "admin");
        certificate_of(folder.path(), &issuer, "server", "kube-apiserver", None);
        Place { folder, client: free_port(), peer: free_port(), secure: free_port() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The flags of etcd and of our store alike, for data below that name.
    fn store(&self, program: &Path, words: &[&str], data: &str) -> Command {
        let (client, peer) =
            (format!("http://127.0.0.1:{}", self.client), format!("http://127.0.0.1:{}", self.peer));
        let mut command = Command::new(program);
        command
            .args(words)
            .args(["--name", "m1", "--initial-cluster-state", "new", "--data-dir"])
            .arg(self.path(data))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("m1={peer}")]);
        command
    }

    fn our_store(&self, data: &str) -> Command {
        self.store(&binary(), &["etcd"], data)
    }

    fn api_server(&self, port: u16, certificate: &str) -> Command {
        let mut command = Command::new(binary());
        command
            .args(["apiserver", "--bind-address=127.0.0.1", &format!("--secure-port={port}")])
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.client))
            .arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local");
        for (flag, file) in [
            ("--tls-cert-file", certificate),
            ("--tls-private-key-file", "server.key"),
            ("--client-ca-file", "admin-ca.pem"),
            ("--service-account-signing-key-file", "server.key"),
        ] {
            command.arg(flag).arg(self.path(file));
        }
        command
    }

    /// Starts the API server and waits until it is ready.
    fn serve(&self) -> Running {
        let server = Running::start(&mut self.api_server(self.secure, "server.pem"), &self.path("api.log"));
        eventually("the API server is ready", DEADLINE, || {
            let ran = self.curl("admin", "/readyz", &[]);
            let ready = ran.ok && ran.out.ends_with("\n200");
            if ready { Ok(()) } else { Err(format!("{ran:?}; its log:\n{}", server.log())) }
        });
        server
    }

    /// curl as the user of that certificate ("" for none); the code is the last line.
    fn curl(&self, user: &str, path: &str, more: &[&str]) -> Ran {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "30", "--write-out", "\n%{http_code}"]);
        command.arg("--cacert").arg(self.path("admin-ca.pem"));
        if !user.is_empty() {
            command.arg("--cert").arg(self.path(&format!("{user}.pem")));
            command.arg("--key").arg(self.path(&format!("{user}.key")));
        }
        command.args(more).arg(format!("https://127.0.0.1:{}{path}", self.secure));
        run(&mut command, DEADLINE)
    }

    #[track_caller]
    fn ask(&self, user: &str, path: &str, more: &[&str]) -> Answer {
        let ran = self.curl(user, path, more);
        assert!(ran.ok, "curl {path} {more:?}: {ran:?}");
        let (body, code) = ran.out.rsplit_once('\n').expect("a code on the last line");
        Answer { code: code.parse().expect("a code"), body: body.to_owned() }
    }

    #[track_caller]
    fn post(&self, path: &str, media_type: &str, body: &str) -> Answer {
        self.ask("admin", path, &["--header", &format!("Content-Type: {media_type}"), "--data-raw", body])
    }
}

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: &str = "application/json";

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"kept": "safe"}})
}

#[test]
fn our_api_server_runs_on_a_real_etcd() {
    let (Some(etcd), Some(etcdctl)) = (std::env::var_os("ETCD"), std::env::var_os("ETCDCTL")) else {
        println!("skipped: set ETCD and ETCDCTL to etcd's own programs");
        return;
    };
    let place = Place::new();
    let _etcd = Running::start(&mut place.store(Path::new(&etcd), &[], "real-etcd"), &place.path("etcd.log"));
    let server = place.serve();
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "harbour"}});
    let answer = place.post("/api/v1/namespaces", JSON, &space.to_string());
    assert_eq!(answer.code, 201, "{answer:?}");
    let answer = place.post(CONFIG_MAPS, JSON, &config_map("chart").to_string());
    assert_eq!(answer.code, 201, "{answer:?}");
    let made = answer.json();

    let read = |path: &str| {
        let answer = place.ask("admin", path, &[]);
        assert_eq!(answer.code, 200, "{answer:?}");
        answer.json()
    };
    let path = format!("{CONFIG_MAPS}/chart");
    assert_eq!(read(&path), made);
    assert_eq!(made["data"]["kept"], "safe");

    let endpoint = format!("--endpoints=http://127.0.0.1:{}", place.client);
    let ran = call(&etcdctl, &[&endpoint, "get", "--prefix", "/registry/configmaps/default/"]);
    assert!(ran.ok && ran.out.lines().any(|line| line == "/registry/configmaps/default/chart"), "{ran:?}");
    assert!(ran.out.contains(made["metadata"]["uid"].as_str().expect("a uid")), "{ran:?}");

    server.terminate();
    let _server = place.serve();
    assert_eq!(read(&path), made, "after a restart");
    assert_eq!(read("/api/v1/namespaces/harbour")["status"]["phase"], "Active");
}

#[test]
fn malformed_requests_get_typed_errors() {
    let place = Place::new();
    authority(place.folder.path(), "stranger");
    let _store = Running::start(&mut place.our_store("store"), &place.path("store.log"));
    let server = place.serve();

    place.post(CONFIG_MAPS, JSON, "{\"kind\":").is_status(400, "BadRequest", "json");
    let mut unknown = config_map("unknown");
    unknown["ballast"] = json!(1);
    let strict = format!("{CONFIG_MAPS}?fieldValidation=Strict");
    place.post(&strict, JSON, &unknown.to_string()).is_status(400, "BadRequest", "unknown field \"ballast\"");
    place.post(CONFIG_MAPS, "text/csv", "a,b").is_status(415, "UnsupportedMediaType", JSON);
    place.ask("admin", CONFIG_MAPS, &["--header", "Accept: text/csv"]).is_status(406, "NotAcceptable", JSON);

    let mut large = config_map("large");
    large["data"]["kept"] = json!("");
    let frame = large.to_string().len();
    large["data"]["kept"] = json!("x".repeat(OVERSIZED - frame));
    std::fs::write(place.path("large.json"), large.to_string()).expect("written");
    let body = format!("@{}", place.path("large.json").display());
    // HTTP/1.1: curl 7.88 loses an HTTP/2 answer that comes before it has ended its stream.
    let large = ["--http1.1", "--header", "Content-Type: application/json", "--data-binary", &body];
    place.ask("admin", CONFIG_MAPS, &large).is_status(413, "RequestEntityTooLarge", "too large");

    place.ask("", CONFIG_MAPS, &[]).is_status(403, "Forbidden", "system:anonymous");
    let stranger = place.curl("stranger", CONFIG_MAPS, &[]);
    assert!(!stranger.ok || stranger.out.ends_with("\n401"), "another authority's certificate: {stranger:?}");

    place.ask("admin", "/api/v1/namespaces/default/unicorns", &[]).is_status(
        404,
        "NotFound",
        "requested resource",
    );
    place.ask("admin", &format!("{CONFIG_MAPS}/absent"), &[]).is_status(404, "NotFound", "\"absent\"");
    // Outside of every API group upstream answers in plain text.
    let answer = place.ask("admin", "/nowhere", &[]);
    assert_eq!((answer.code, answer.body.trim()), (404, "404 page not found"));

    // None of these wrote anything or hurt the server.
    let answer = place.post(CONFIG_MAPS, JSON, &config_map("sound").to_string());
    assert_eq!(answer.code, 201, "{answer:?}");
    let list = place.ask("admin", CONFIG_MAPS, &[]).json();
    let names = list["items"].as_array().expect("items").iter().map(|item| &item["metadata"]["name"]);
    let names: Vec<&Value> = names.filter(|name| *name != "kube-root-ca.crt").collect();
    assert_eq!(names, [&json!("sound")]);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

/// Runs what must fail: soon, with a line that has all the words, and without a panic.
#[track_caller]
fn fails(command: &mut Command, words: &[&str]) {
    let ran = run(command, DEADLINE);
    assert!(!ran.ok, "it must not start: {command:?}\n{ran:?}");
    let text = format!("{}{}", ran.out, ran.err);
    assert!(
        text.lines().any(|line| words.iter().all(|word| line.contains(word))),
        "no line names {words:?}: {command:?}\n{text}"
    );
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn start_up_mistakes_name_their_remedy() {
    let place = Place::new();
    let keelson = |words: &[&str]| {
        let mut command = Command::new(binary());
        command.args(words);
        command
    };
    let store = Running::start(&mut place.our_store("store"), &place.path("store.log"));
    let server = place.serve();

    let secure = place.secure.to_string();
    let in_use = ["cannot listen on", secure.as_str(), "choose another", "--secure-port", "in use"];
    fails(&mut place.api_server(place.secure, "server.pem"), &in_use);
    let in_use = ["listen tcp 127.0.0.1:", "address already in use", "--listen-peer-urls", "another member"];
    fails(&mut place.our_store("second"), &in_use);
    let mut elsewhere = place.our_store("store");
    for flag in ["--listen-client-urls", "--listen-peer-urls"] {
        elsewhere.args([flag, &format!("http://127.0.0.1:{}", free_port())]);
    }
    fails(&mut elsewhere, &["in use by another process", "choose another --data-dir"]);
    let missing = ["--tls-cert-file", "absent.pem", "check the path", "No such file"];
    fails(&mut place.api_server(free_port(), "absent.pem"), &missing);

    fails(&mut keelson(&["apiserver", "--ballast=1"]), &["unknown flag --ballast", "--help"]);
    fails(&mut keelson(&["etcd", "--ballast=1"]), &["not defined", "-ballast"]);
    fails(&mut keelson(&["kubelet", "--ballast=1"]), &["unexpected argument", "--ballast"]);
    fails(&mut keelson(&["ballast"]), &["unknown command", "ballast"]);

    let folder = |name: &str| {
        let path = place.path(name);
        std::fs::create_dir_all(&path).expect("a folder");
        path.display().to_string()
    };
    let socket = format!("unix://{}", place.path("absent.sock").display());
    let mut kubelet = keelson(&["kubelet", "--node-ip=127.0.0.1", "--address=127.0.0.1"]);
    kubelet.args([&format!("--port={}", free_port()), "--hostname-override=n1"]);
    kubelet.args(["--container-runtime-endpoint", &socket, "--pod-manifest-path", &folder("manifests")]);
    kubelet.args(["--root-dir", &folder("kubelet"), "--pod-log-dir", &folder("pods")]);
    let wanted = ["cannot reach containerd", "absent.sock", "--container-runtime-endpoint"];
    fails(&mut kubelet, if is_root() { &wanted } else { &["needs root"] });
    let mut agent = keelson(&["agent", "--node-ip=127.0.0.1", "--data-dir", &folder("agent")]);
    agent.args(["--container-runtime-endpoint", &socket]);
    agent.args([format!("--balancer-address=127.0.0.1:{}", free_port())]);
    agent.env_remove("KEELSON_URL").env_remove("KEELSON_TOKEN");
    let wanted = if is_root() { &["not joined", "--server", "--token"][..] } else { &["needs root"] };
    fails(&mut agent, wanted);

    drop(server);
    drop(store);
    damage(&place.path("store/member/wal"));
    fails(&mut place.our_store("store"), &["raft log", "corrupt at byte", "delete its data directory"]);
}

/// Overwrites the middle of the first raft log segment, which was durable long ago.
fn damage(folder: &Path) {
    let mut segments: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("the log").map(|entry| entry.expect("an entry").path()).collect();
    segments.sort();
    let mut bytes = std::fs::read(&segments[0]).expect("a segment");
    // Space is set aside ahead: what was written ends before the file does.
    let middle = bytes.iter().rposition(|byte| *byte != 0).unwrap_or_default() / 2;
    assert!(middle > 1000, "{} bytes: the log holds what the API server wrote", bytes.len());
    bytes[middle..middle + 64].fill(0xa5);
    std::fs::write(&segments[0], bytes).expect("written");
}
