//! The console in a real browser: our store and our API server as processes, a headless Chromium that shows the page.
//!
//! The browser is spoken to over the DevTools protocol on a pair of pipes (JSON texts that end in a zero byte), so that
//! it ends with the test. Skipped with a notice when there is no Chromium: `CHROMIUM`, or one on PATH.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use keelson_test_harness::{Ran, binary, call, eventually, run};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};

/// What `up` creates: the demo and the console's account, exactly as a cluster has them.
#[path = "../../../cluster/src/up/demo.rs"]
mod demo;

mod image {
    /// No node runs it here.
    pub const DEMO: &str = "demo.invalid/web:1";
}

const DEADLINE: Duration = Duration::from_secs(60);
const JSON: &str = "Content-Type: application/json";

#[test]
fn console_shows_the_cluster_in_a_browser() {
    let Some(program) = chromium() else {
        println!("notice: skipped, no chromium on PATH (or in CHROMIUM)");
        return;
    };
    let world = World::start();
    let token = world.fill();
    let mut browser = Browser::start(&program, world.folder.path());

    let page = world.url("/console/");
    browser.open(&page);
    browser.shows("how to get a token", &["no token", "keelson up"]);
    browser.go(&format!("{page}#token=not.a.token"));
    browser.shows("that the token is bad", &["not accepted", "keelson up"]);
    // The link with a good one, followed in the page that is open.
    browser.go(&format!("{page}#token={token}"));
    browser.shows("the node", &["live", "n1", "Ready", "1/1", "10.1.2.3"]);
    let address = browser.evaluate("location.href");
    assert_eq!(address, json!(format!("{page}#/nodes")), "the token stays in the address");
    browser.picture("nodes");

    // Changes appear in the open page.
    world.node("n2");
    browser.shows("a node that came", &["n1", "n2", "2/2"]);
    world.ask("/api/v1/nodes/n2", &["--request", "DELETE"], 200);
    browser.shows("that it went", &["n1", "1/1"]);
    browser.hides("n2");

    for (view, words) in [
        ("workloads", &["default", "demo", "Progressing", "0/3", "demo.invalid/web:1"][..]),
        ("pods", &["lonely", "Pending", "0/1"]),
        ("services", &["demo-lb", "LoadBalancer", "80:30080/TCP"]),
        ("events", &["Warning", "FailedScheduling", "no node is free"]),
        ("store", &["m1", "leader", "http://127.0.0.1:"]),
    ] {
        let click = format!(
            "[...document.querySelectorAll('#tabs button')].find(b => b.textContent === '{view}').click()"
        );
        browser.evaluate(&click);
        browser.shows(view, words);
        browser.picture(view);
    }
    // A view's own address, with the session's token.
    browser.go(&format!("{page}#/pods"));
    browser.shows("the view of the address", &["lonely", "Pending"]);
    // A pod nobody runs has an empty log.
    browser.evaluate("document.querySelector('td button').click()");
    browser.shows("an empty log", &["kube-system/lonely", "no output"]);
    browser.picture("log");
    assert!(browser.thrown.is_empty(), "the page threw: {:?}", browser.thrown);
}

#[test]
fn console_files_have_types_and_a_policy() {
    let world = World::start();
    for (name, media_type) in [
        ("", "text/html; charset=utf-8"),
        ("console.css", "text/css; charset=utf-8"),
        ("console.js", "text/javascript; charset=utf-8"),
        ("api.js", "text/javascript; charset=utf-8"),
        ("views.js", "text/javascript; charset=utf-8"),
    ] {
        // Without a certificate: the files are for everybody.
        let more = ["--dump-header", "-", "--output", "/dev/null"];
        let ran = world.curl("", &format!("/console/{name}"), &more);
        let head = ran.out.to_lowercase();
        assert!(ran.ok && head.ends_with("\n200"), "{name}: {ran:?}");
        for line in [
            &format!("content-type: {media_type}"),
            "content-security-policy: default-src 'self'",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
        ] {
            assert!(head.contains(line), "{name}: no {line:?} in {head}");
        }
    }
    let ran = world.curl("", "/", &["--dump-header", "-", "--header", "Accept: text/html"]);
    assert!(ran.out.ends_with("\n302") && ran.out.to_lowercase().contains("location: /console/"), "{ran:?}");
    world.ask("/console/absent.js", &[], 404);
}

/// The environment's browser, if there is one that runs.
fn chromium() -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        let mut command = Command::new(path);
        let status = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    if let Some(path) = std::env::var_os("CHROMIUM") {
        let path = PathBuf::from(path);
        assert!(runs(&path), "CHROMIUM={} does not run", path.display());
        return Some(path);
    }
    ["chromium", "chromium-browser"].map(PathBuf::from).into_iter().find(runs)
}

/// A child with all of its own children; killed at the end of its scope.
struct Running(Child);

impl Running {
    fn start(command: &mut Command, log: &Path) -> Running {
        let out = File::options().create(true).append(true).open(log).expect("a log file");
        let err = out.try_clone().expect("a second handle");
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        Running(command.spawn().expect("it starts"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _killed = call("kill", &["-9".to_owned(), "--".to_owned(), format!("-{}", self.0.id())]);
        let _status = self.0.wait();
    }
}

/// A store and an API server on free ports; `admin` may do everything.
struct World {
    // In this order: the API server ends before its store, the folder goes last.
    api: Option<Running>,
    _store: Running,
    secure: u16,
    folder: tempfile::TempDir,
}

impl World {
    fn start() -> World {
        let folder = tempfile::tempdir().expect("a temporary folder");
        certificates(folder.path());
        let port = || {
            TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("free").port()
        };
        let (client, peer, secure) = (port(), port(), port());
        let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let mut command = Command::new(binary());
        command.args(["etcd", "--name=m1", "--data-dir"]).arg(folder.path().join("store"));
        for (flag, value) in [
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
            ("--initial-cluster", &format!("m1={peer}")),
        ] {
            command.args([flag, value]);
        }
        let store = Running::start(&mut command, &folder.path().join("store.log"));
        let mut command = Command::new(binary());
        command.args(["apiserver", "--bind-address=127.0.0.1", &format!("--secure-port={secure}")]);
        command.args([
            &format!("--etcd-servers={client}"),
            "--service-account-issuer=https://kubernetes.default.svc",
        ]);
        for (flag, file) in [
            ("--tls-cert-file", "server.pem"),
            ("--tls-private-key-file", "server.key"),
            ("--client-ca-file", "ca.pem"),
            ("--service-account-signing-key-file", "server.key"),
        ] {
            command.arg(flag).arg(folder.path().join(file));
        }
        let log = folder.path().join("api.log");
        let mut world = World { api: None, _store: store, secure, folder };
        world.api = Some(Running::start(&mut command, &log));
        eventually("the API server is ready", DEADLINE, || {
            let ran = world.curl("admin", "/readyz", &[]);
            let log = || std::fs::read_to_string(&log).unwrap_or_default();
            if ran.out.ends_with("\n200") { Ok(()) } else { Err(format!("{ran:?}\n{}", log())) }
        });
        world
    }

    fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.secure)
    }

    /// curl as the user of that certificate ("" for none); the code is the last line.
    fn curl(&self, user: &str, path: &str, more: &[&str]) -> Ran {
        let file = |name: &str| self.folder.path().join(name);
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "30", "--write-out", "\n%{http_code}"]);
        command.arg("--cacert").arg(file("ca.pem"));
        if !user.is_empty() {
            command.arg("--cert").arg(file(&format!("{user}.pem")));
            command.arg("--key").arg(file(&format!("{user}.key")));
        }
        run(command.args(more).arg(self.url(path)), DEADLINE)
    }

    /// The body of an answer to the administrator, which must have that code.
    #[track_caller]
    fn ask(&self, path: &str, more: &[&str], code: u16) -> String {
        let ran = self.curl("admin", path, more);
        let (body, got) = ran.out.rsplit_once('\n').unwrap_or_default();
        assert_eq!(got, code.to_string(), "{path} {more:?}: {ran:?}");
        body.to_owned()
    }

    #[track_caller]
    fn create(&self, path: &str, object: &Value) -> Value {
        let body = self.ask(path, &["--header", JSON, "--data-raw", &object.to_string()], 201);
        serde_json::from_str(&body).expect("JSON")
    }

    /// A ready node.
    fn node(&self, name: &str) {
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        self.create("/api/v1/nodes", &object);
        let status = json!({"status": {
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "addresses": [{"type": "InternalIP", "address": "10.1.2.3"}],
        }});
        let merge = "Content-Type: application/merge-patch+json";
        let more = ["--request", "PATCH", "--header", merge, "--data-raw", &status.to_string()];
        self.ask(&format!("/api/v1/nodes/{name}/status"), &more, 200);
    }

    /// What the page is to show; answers the console's token.
    fn fill(&self) -> String {
        self.node("n1");
        for object in demo::demo().iter().chain(&demo::console()) {
            let path = match object["kind"].as_str().expect("a kind") {
                "Deployment" => "/apis/apps/v1/namespaces/default/deployments",
                "Service" => "/api/v1/namespaces/default/services",
                "ServiceAccount" => "/api/v1/namespaces/kube-system/serviceaccounts",
                "ClusterRole" => "/apis/rbac.authorization.k8s.io/v1/clusterroles",
                "ClusterRoleBinding" => "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
                kind => panic!("where is {kind} created?"),
            };
            self.create(path, object);
        }
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lonely"},
            "spec": {"serviceAccountName": "console", "containers": [{"name": "main", "image": image::DEMO}]},
        });
        self.create("/api/v1/namespaces/kube-system/pods", &pod);
        let event = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "lonely.1"},
            "involvedObject": {"kind": "Pod", "namespace": "kube-system", "name": "lonely"},
            "type": "Warning", "reason": "FailedScheduling", "message": "no node is free", "count": 1,
        });
        self.create("/api/v1/namespaces/kube-system/events", &event);
        let ask = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let made = self.create("/api/v1/namespaces/kube-system/serviceaccounts/console/token", &ask);
        made["status"]["token"].as_str().expect("a token").to_owned()
    }
}

/// An authority (`ca.pem`), a server's certificate for loopback, and an administrator's.
fn certificates(folder: &Path) {
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).expect("written");
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("good");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "console test authority");
    write("ca.pem", params.self_signed(&key).expect("signed").pem());
    let issuer = Issuer::new(params, key);
    for (file, name, group) in
        [("server", "kube-apiserver", "servers"), ("admin", "kubernetes-admin", "system:masters")]
    {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("good names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        write(&format!("{file}.pem"), params.signed_by(&key, &issuer).expect("signed").pem());
        write(&format!("{file}.key"), key.serialize_pem());
    }
}

/// A headless browser with one page.
struct Browser {
    _process: Running,
    commands: File,
    messages: Receiver<Value>,
    session: Value,
    last: u64,
    /// Uncaught errors of the page.
    thrown: Vec<Value>,
}

impl Browser {
    fn start(program: &Path, folder: &Path) -> Browser {
        let pipes = [folder.join("commands"), folder.join("messages")];
        assert!(call("mkfifo", &pipes).ok, "mkfifo {pipes:?}");
        let mut command = Command::new("sh");
        // The browser reads commands on descriptor 3 and answers on 4; when 3 closes, it ends.
        command.args(["-c", r#"in=$1 out=$2; shift 2; exec "$@" 3<"$in" 4>"$out""#, "browser"]).args(&pipes);
        command.arg(program).args([
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--ignore-certificate-errors",
            "--window-size=1280,720",
        ]);
        command.arg(format!("--user-data-dir={}", folder.join("profile").display())).arg("about:blank");
        let process = Running::start(&mut command, &folder.join("browser.log"));
        let commands = File::options().write(true).open(&pipes[0]).expect("the browser's input");
        let answers = BufReader::new(File::open(&pipes[1]).expect("the browser's output"));
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for text in answers.split(0).map_while(Result::ok) {
                let Ok(message) = serde_json::from_slice(&text) else { return };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        Browser { _process: process, commands, messages, session: Value::Null, last: 0, thrown: Vec::new() }
    }

    /// One command of the protocol; answers its result.
    #[track_caller]
    fn command(&mut self, method: &str, params: &Value) -> Value {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": params});
        if !self.session.is_null() {
            message["sessionId"] = self.session.clone();
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).expect("the browser takes a command");
        loop {
            let answer = self.messages.recv_timeout(DEADLINE);
            let answer = answer.unwrap_or_else(|error| panic!("no answer to {method}: {error}"));
            if answer["method"] == "Runtime.exceptionThrown" {
                self.thrown.push(answer["params"]["exceptionDetails"].clone());
            }
            if answer["id"] == self.last {
                assert!(answer["error"].is_null(), "{method} {params}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// Opens the page that the other functions are about.
    fn open(&mut self, url: &str) {
        let target = self.command("Target.createTarget", &json!({"url": url}))["targetId"].clone();
        let attach = json!({"targetId": target, "flatten": true});
        self.session = self.command("Target.attachToTarget", &attach)["sessionId"].clone();
        self.command("Runtime.enable", &json!({}));
    }

    /// As if the address were typed into the page's tab.
    fn go(&mut self, url: &str) {
        self.command("Page.navigate", &json!({"url": url}));
    }

    #[track_caller]
    fn evaluate(&mut self, expression: &str) -> Value {
        let result =
            self.command("Runtime.evaluate", &json!({"expression": expression, "returnByValue": true}));
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    fn text(&mut self) -> String {
        self.evaluate("document.body?.innerText ?? ''").as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the page's visible text has all the words.
    #[track_caller]
    fn shows(&mut self, what: &str, words: &[&str]) {
        eventually(&format!("the page shows {what}: {words:?}"), DEADLINE, || {
            let text = self.text();
            if words.iter().all(|word| text.contains(word)) { Ok(()) } else { Err(text) }
        });
    }

    /// Waits until the page's visible text lacks the word.
    #[track_caller]
    fn hides(&mut self, word: &str) {
        eventually(&format!("the page hides {word}"), DEADLINE, || {
            let text = self.text();
            if text.contains(word) { Err(text) } else { Ok(()) }
        });
    }

    /// Writes a picture of the page into the folder `CONSOLE_PICTURES`, if that is set.
    fn picture(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("CONSOLE_PICTURES") else { return };
        let picture = self.command("Page.captureScreenshot", &json!({}));
        let path = Path::new(&folder).join(format!("{name}.png.base64"));
        std::fs::write(path, picture["data"].as_str().expect("a picture")).expect("a picture is written");
    }
}
