//! The proxy against a scripted API and real packets: one namespace is the node, two are pods on its bridge, one is a
//! client outside. Needs root and the node tools; says so and passes elsewhere.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use keelson_proxy::{Config, run};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

type Answer = http::Response<UnsyncBoxBody<Bytes, Infallible>>;

/// An API server of two kinds: what it lists, and the changes it sends to watchers.
#[derive(Clone)]
struct Api {
    listed: Arc<Mutex<Vec<(&'static str, Value)>>>,
    changes: broadcast::Sender<(&'static str, Value)>,
}

impl Api {
    fn change(&self, kind: &'static str, event: &str, object: Value) {
        self.changes.send((kind, json!({"type": event, "object": object}))).expect("someone watches");
    }

    fn answer(&self, request: &http::Request<Body>) -> Answer {
        let path = request.uri().path();
        let kind = if path.ends_with("/services") { "services" } else { "endpointslices" };
        let watching = request.uri().query().unwrap_or_default().contains("watch=true");
        let body: Pin<Box<dyn futures::Stream<Item = Bytes> + Send>> = if watching {
            let changes = self.changes.subscribe();
            Box::pin(stream::unfold(changes, move |mut changes| async move {
                loop {
                    let (of, change) = changes.recv().await.ok()?;
                    if of == kind {
                        return Some((Bytes::from(format!("{change}\n")), changes));
                    }
                }
            }))
        } else {
            let listed = self.listed.lock().expect("no panic while held");
            let items: Vec<&Value> =
                listed.iter().filter(|(of, _)| *of == kind).map(|(_, item)| item).collect();
            let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
            Box::pin(stream::once(async move { Bytes::from(list.to_string()) }))
        };
        let frames = body.map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
        http::Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

struct World {
    prefix: String,
    children: Vec<Child>,
}

impl World {
    fn name(&self, part: &str) -> String {
        format!("{}-{part}", self.prefix)
    }

    fn ip(&self, line: &str) {
        let line = line.replace('@', &format!("{}-", self.prefix));
        let output = Command::new("ip").args(line.split_whitespace()).output().expect("ip runs");
        assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn inside(&self, part: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name(part))).args(args);
        command
    }

    fn new() -> World {
        let mut world = World { prefix: format!("kh{}", std::process::id()), children: Vec::new() };
        for line in [
            "netns add @n",
            "netns add @p1",
            "netns add @p2",
            "netns add @c",
            "-n @n link set lo up",
            "-n @n link add cni0 type bridge",
            "-n @n link set cni0 up",
            "-n @n addr add 10.244.1.1/24 dev cni0",
            "link add v1 netns @n type veth peer name eth0 netns @p1",
            "link add v2 netns @n type veth peer name eth0 netns @p2",
            "link add out netns @n type veth peer name eth0 netns @c",
            "-n @n link set v1 master cni0 up",
            "-n @n link set v2 master cni0 up",
            "-n @n link set v1 type bridge_slave hairpin on",
            "-n @n link set v2 type bridge_slave hairpin on",
            "-n @p1 link set lo up",
            "-n @p1 link set eth0 up",
            "-n @p1 addr add 10.244.1.2/24 dev eth0",
            "-n @p1 route add default via 10.244.1.1",
            "-n @p2 link set lo up",
            "-n @p2 link set eth0 up",
            "-n @p2 addr add 10.244.1.3/24 dev eth0",
            "-n @p2 route add default via 10.244.1.1",
            "-n @n link set out up",
            "-n @n addr add 172.31.9.1/24 dev out",
            "-n @n route add default via 172.31.9.2",
            "-n @c link set lo up",
            "-n @c link set eth0 up",
            "-n @c addr add 172.31.9.2/24 dev eth0",
            "-n @c route add 10.96.0.0/16 via 172.31.9.1",
        ] {
            world.ip(line);
        }
        let forward =
            world.inside("n", &["sysctl", "-qw", "net.ipv4.ip_forward=1"]).status().expect("sysctl runs");
        assert!(forward.success());
        for (part, page) in [("p1", "one"), ("p2", "two")] {
            let folder = std::env::temp_dir().join(format!("{}-{part}", world.prefix));
            std::fs::create_dir_all(&folder).expect("a folder");
            std::fs::write(folder.join("index.html"), page).expect("a page");
            let folder = folder.to_str().expect("a path").to_owned();
            let child = world
                .inside(part, &["busybox", "httpd", "-f", "-p", "8080", "-h", &folder])
                .stdout(Stdio::null())
                .spawn()
                .expect("httpd starts");
            world.children.push(child);
        }
        world
    }

    /// The page at `url` from inside `part`, or curl's exit code (7: refused, 28: no answer).
    fn get(&self, part: &str, url: &str) -> Result<String, i32> {
        let output = self.inside(part, &["curl", "-s", "-m", "2", url]).output().expect("curl runs");
        match output.status.code() {
            Some(0) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            code => Err(code.unwrap_or(-1)),
        }
    }

    fn pages(&self, part: &str, url: &str, tries: usize) -> BTreeSet<Result<String, i32>> {
        (0..tries).map(|_| self.get(part, url)).collect()
    }

    /// Waits until asking gives exactly `wanted`.
    async fn until(&self, part: &str, url: &str, wanted: Result<&str, i32>) {
        let wanted = wanted.map(str::to_owned);
        let deadline = Instant::now() + Duration::from_secs(40);
        loop {
            let got = self.pages(part, url, 1);
            if got.contains(&wanted) {
                return;
            }
            assert!(Instant::now() < deadline, "{url} from {part}: want {wanted:?}, got {got:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for part in ["n", "p1", "p2", "c"] {
            let _ = Command::new("ip").args(["netns", "del", &self.name(part)]).status();
            let _ = std::fs::remove_dir_all(std::env::temp_dir().join(format!("{}-{part}", self.prefix)));
        }
    }
}

fn able() -> bool {
    let tools = ["nft", "ip", "nsenter", "curl", "busybox", "sysctl"];
    let there = |tool: &&str| {
        ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
            .iter()
            .any(|folder| std::path::Path::new(folder).join(tool).exists())
    };
    let missing: Vec<&&str> = tools.iter().filter(|tool| !there(tool)).collect();
    let able = nix::unistd::geteuid().is_root() && missing.is_empty();
    if !able {
        eprintln!("skipped: needs root and {tools:?} (missing: {missing:?})");
    }
    able
}

fn service(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "d", "resourceVersion": "2"}, "spec": spec})
}

fn slice(addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|ip| json!({"addresses": [ip], "nodeName": "n", "conditions": {"ready": true}}))
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "d", "resourceVersion": "3",
            "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_packets_follow_services() {
    if !able() {
        return;
    }
    let world = World::new();
    let spec =
        json!({"type": "NodePort", "clusterIP": "10.96.0.10", "ports": [{"port": 80, "nodePort": 30080}]});
    let listed =
        vec![("services", service(spec.clone())), ("endpointslices", slice(&["10.244.1.2", "10.244.1.3"]))];
    let api = Api { listed: Arc::new(Mutex::new(listed)), changes: broadcast::Sender::new(64) };
    let serving = api.clone();
    let client = kube::Client::new(
        tower::service_fn(move |request: http::Request<Body>| {
            let answer = serving.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        }),
        "default",
    );
    let token = CancellationToken::new();
    let config = Config {
        node_name: "n".into(),
        cluster_cidr: Some("10.244.0.0/16".parse().expect("a CIDR")),
        health_address: None,
        pods: None,
        namespace: Some(world.name("n")),
    };
    let proxy = tokio::spawn(run(client, config, token.clone()));

    let cluster = "http://10.96.0.10/";
    let both = BTreeSet::from([Ok("one".to_owned()), Ok("two".to_owned())]);
    world.until("n", cluster, Ok("one")).await;
    assert_eq!(world.pages("n", cluster, 30), both, "from the node");
    assert_eq!(world.pages("c", "http://172.31.9.1:30080/", 30), both, "node port, from outside");
    // 30 tries reach the asking pod itself too: without masquerade those hang.
    assert_eq!(world.pages("p1", cluster, 30), both, "from a pod, hairpin included");

    api.change("endpointslices", "MODIFIED", slice(&["10.244.1.2"]));
    world.until("n", cluster, Ok("one")).await;
    let deadline = Instant::now() + Duration::from_secs(40);
    while world.pages("n", cluster, 12) != BTreeSet::from([Ok("one".to_owned())]) {
        assert!(Instant::now() < deadline, "the removed endpoint still gets traffic");
    }

    let mut sticky = spec.clone();
    sticky["sessionAffinity"] = json!("ClientIP");
    api.change("endpointslices", "MODIFIED", slice(&["10.244.1.2", "10.244.1.3"]));
    api.change("services", "MODIFIED", service(sticky));
    let deadline = Instant::now() + Duration::from_secs(40);
    while world.pages("c", "http://172.31.9.1:30080/", 12).len() != 1 {
        assert!(Instant::now() < deadline, "a client with affinity keeps changing its endpoint");
    }

    api.change("endpointslices", "MODIFIED", slice(&[]));
    world.until("n", cluster, Err(7)).await;
    assert_eq!(world.pages("p2", cluster, 1), BTreeSet::from([Err(7)]), "refused at once, from a pod");

    api.change("services", "DELETED", service(spec));
    world.until("c", "http://172.31.9.1:30080/", Err(7)).await;
    token.cancel();
    proxy.await.expect("no panic").expect("a clean end");
}
