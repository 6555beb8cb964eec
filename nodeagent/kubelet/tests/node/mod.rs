//! A node for tests: a containerd of its own in a network namespace of its own, with a busybox image made from the
//! machine's static busybox. Everything is under one temporary folder and goes away on drop.
//!
//! Hazard: containerd is started with `nsenter`, not `ip netns exec`: the latter hides the cgroup mounts.

#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use keelson_kubelet::cri::Cri;
use keelson_kubelet::{Config, cgroups, volumes};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

pub const IMAGE: &str = "localhost/busybox:1";
const PAUSE: &str = "localhost/pause:1";

pub struct TestNode {
    pub dir: PathBuf,
    pub name: String,
    containerd: Child,
    kubelet: Option<(CancellationToken, std::thread::JoinHandle<()>)>,
}

/// `None`, with a notice, where the machine has no root, containerd or busybox.
pub fn start(test: &str) -> Option<TestNode> {
    let missing = ["/usr/bin/containerd", "/usr/bin/busybox", "/usr/lib/cni/bridge"]
        .iter()
        .find(|p| !Path::new(p).exists());
    let missing = missing.or_else(|| (!Path::new("/bin/busybox").exists()).then_some(&"/bin/busybox"));
    if !nix::unistd::geteuid().is_root() || missing.is_some() {
        eprintln!("skipped: needs root, containerd, CNI plugins and busybox-static (missing: {missing:?})");
        return None;
    }
    let name = format!("kg-{test}-{}", std::process::id());
    let dir = std::env::temp_dir().join(&name);
    fs::create_dir_all(&dir).unwrap();
    run("ip", &["netns", "add", &name]);
    for args in [&["link", "set", "lo", "up"][..], &["addr", "add", "172.31.99.1/24", "dev", "lo"]] {
        run("ip", &[&["-n", &name][..], args].concat());
    }
    write_config(&dir);
    let log = fs::File::create(dir.join("containerd.log")).unwrap();
    let containerd = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{name}"))
        .args(["containerd", "-c"])
        .arg(dir.join("config.toml"))
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let node = TestNode { dir, name, containerd, kubelet: None };
    let socket = node.socket();
    wait("containerd answers", || {
        Command::new("ctr").args(["-a", &socket, "version"]).output().unwrap().status.success()
    });
    node.import(IMAGE, &["/bin/sh"]);
    node.import(PAUSE, &["/bin/tail", "-f", "/dev/null"]);
    Some(node)
}

fn write_config(dir: &Path) {
    let d = dir.display();
    fs::create_dir_all(dir.join("cni")).unwrap();
    let config = format!(
        r#"version = 2
root = "{d}/root"
state = "{d}/state"
[grpc]
  address = "{d}/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "{PAUSE}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{d}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
"#
    );
    fs::write(dir.join("config.toml"), config).unwrap();
    let network = format!(
        r#"{{"cniVersion":"1.0.0","name":"pods","plugins":[{{"type":"bridge","bridge":"cni0","isGateway":true,
        "ipMasq":false,"ipam":{{"type":"host-local","ranges":[[{{"subnet":"10.244.77.0/24"}}]],
        "routes":[{{"dst":"0.0.0.0/0"}}],"dataDir":"{d}/ipam"}}}}]}}"#
    );
    fs::write(dir.join("cni/10-pods.conflist"), network).unwrap();
}

impl TestNode {
    pub fn socket(&self) -> String {
        self.dir.join("c.sock").to_string_lossy().into_owned()
    }

    pub fn config(&self) -> Config {
        let mut config =
            Config::new("node-1", "172.31.99.1".parse().unwrap(), &self.socket(), &self.dir.join("kubelet"));
        config.log_dir = self.dir.join("logs");
        config.cgroup_root = format!("/{}", self.name);
        config.static_pods = Some(self.dir.join("manifests"));
        fs::create_dir_all(self.dir.join("manifests")).unwrap();
        config
    }

    /// Runs the kubelet in this node's network, on a thread of its own.
    pub fn run_kubelet(&mut self, config: Config) {
        let stop = CancellationToken::new();
        let (netns, token) = (format!("/run/netns/{}", self.name), stop.clone());
        let thread = std::thread::spawn(move || {
            let file = fs::File::open(netns).unwrap();
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(keelson_kubelet::run(config, token)).unwrap();
        });
        self.kubelet = Some((stop, thread));
    }

    /// Stops the kubelet; its pods go on.
    pub fn stop_kubelet(&mut self) {
        let (stop, thread) = self.kubelet.take().expect("a kubelet runs");
        stop.cancel();
        thread.join().expect("the kubelet ends without a panic");
    }

    /// Puts a static pod's manifest in place.
    pub fn apply(&self, name: &str, spec: serde_json::Value) {
        let pod =
            serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        let path = self.dir.join("manifests").join(format!("{name}.json"));
        let next = self.dir.join(format!("{name}.tmp"));
        fs::write(&next, pod.to_string()).unwrap();
        fs::rename(next, path).unwrap();
    }

    pub fn delete(&self, name: &str) {
        fs::remove_file(self.dir.join("manifests").join(format!("{name}.json"))).unwrap();
    }

    pub fn log_of(&self, pod: &str, container: &str, attempt: u32) -> String {
        let prefix = format!("default_{pod}-node-1_");
        let dirs = fs::read_dir(self.dir.join("logs")).into_iter().flatten().flatten();
        let dir =
            dirs.map(|e| e.path()).find(|p| p.file_name().unwrap().to_string_lossy().starts_with(&prefix));
        let path = dir.map(|d| d.join(container).join(format!("{attempt}.log")));
        path.and_then(|p| fs::read_to_string(p).ok()).unwrap_or_default()
    }

    /// Asserts that nothing of any pod is left: no mount, cgroup, folder or pod network.
    pub fn assert_clean(&self) {
        wait("no pod folder is left", || count(&self.dir.join("kubelet/pods")) == 0);
        assert_eq!(volumes::mounts::below(&self.dir.join("kubelet")).unwrap(), Vec::<PathBuf>::new());
        let cgroups = cgroups::Cgroups::detect().unwrap();
        assert_eq!(cgroups.pods(&format!("/{}/kubepods", self.name)), Vec::new());
        assert_eq!(count(&self.dir.join("logs")), 0, "log folders left");
        let addresses = fs::read_dir(self.dir.join("ipam/pods")).into_iter().flatten().flatten();
        let held: Vec<_> =
            addresses.map(|e| e.file_name()).filter(|n| n.to_string_lossy().starts_with("10.")).collect();
        assert!(held.is_empty(), "addresses still held: {held:?}");
    }

    fn import(&self, name: &str, entrypoint: &[&str]) {
        let archive = image_archive(&self.dir, name, entrypoint);
        run("ctr", &["-a", &self.socket(), "-n", "k8s.io", "images", "import", archive.to_str().unwrap()]);
    }
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.kubelet.take() {
            stop.cancel();
            let _ = thread.join();
        }
        let socket = self.socket();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let Ok(cri) = Cri::connect(&socket).await else { return };
            for sandbox in cri.sandboxes(None).await.unwrap_or_default() {
                let _ = cri.stop_sandbox(&sandbox.id).await;
                let _ = cri.remove_sandbox(&sandbox.id).await;
            }
        });
        let _ = self.containerd.kill();
        let _ = self.containerd.wait();
        let _ = volumes::mounts::unmount_all(&self.dir);
        if let Ok(cgroups) = cgroups::Cgroups::detect() {
            let _ = cgroups.remove(&format!("/{}", self.name));
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
        if std::thread::panicking() {
            eprintln!("the node's files are kept in {}", self.dir.display());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

pub fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Waits for a condition, at most a minute.
pub fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// An OCI archive with busybox and links to its applets.
fn image_archive(dir: &Path, name: &str, entrypoint: &[&str]) -> PathBuf {
    let work = dir.join(format!("image-{}", name.replace(['/', ':'], "-")));
    let root = work.join("root");
    for folder in ["bin", "tmp", "etc", "dev", "proc", "sys"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "echo", "sleep", "tail", "ls", "touch", "id", "true", "false", "httpd", "wget", "head",
        "dd", "mount", "grep", "test", "nc", "rm", "mkdir",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    let layout = work.join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let layer = work.join("layer.tar");
    run("tar", &["-C", root.to_str().unwrap(), "-cf", layer.to_str().unwrap(), "."]);
    let layer = fs::read(layer).unwrap();
    let put = |content: &[u8]| -> (String, usize) {
        let digest: String = Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect();
        fs::write(layout.join("blobs/sha256").join(&digest), content).unwrap();
        (format!("sha256:{digest}"), content.len())
    };
    let (layer_digest, layer_size) = put(&layer);
    let config = serde_json::json!({"architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": entrypoint, "Env": ["PATH=/bin"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]}});
    let (config_digest, config_size) = put(config.to_string().as_bytes());
    let manifest = serde_json::json!({"schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer_size}]});
    let (manifest_digest, manifest_size) = put(manifest.to_string().as_bytes());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest_digest, "size": manifest_size,
        "annotations": {"io.containerd.image.name": name}}]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let archive = work.join("image.tar");
    run("tar", &["-C", layout.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
    archive
}
