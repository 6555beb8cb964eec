//! A node's containerd: configuration, start, images, and the removal of all its pods.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper_util::rt::TokioIo;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{ListPodSandboxRequest, RemovePodSandboxRequest, StopPodSandboxRequest, VersionRequest};
use tokio::net::UnixStream;
use tokio::process::Command;
use tonic::transport::{Channel, Endpoint, Uri};

use super::image::PAUSE;
use super::layout::Node;
use super::process::{Background, running};

/// One call of the runtime.
const CALL: Duration = Duration::from_secs(20);
/// From start to first answer; under a second on a quiet machine.
const READY: Duration = Duration::from_secs(60);

fn configuration(node: &Node) -> String {
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    format!(
        "version = 2\nroot = {root}\nstate = {state}\n\
         [grpc]\n  address = {socket}\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n  restrict_oom_score_adj = true\n  sandbox_image = \"{PAUSE}\"\n\
         \x20 stream_server_address = \"127.0.0.1\"\n  stream_server_port = \"0\"\n\
         \x20 [plugins.\"io.containerd.grpc.v1.cri\".cni]\n    bin_dir = \"/usr/lib/cni\"\n    conf_dir = {cni}\n\
         \x20 [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n    snapshotter = \"overlayfs\"\n    default_runtime_name = \"runc\"\n\
         \x20   [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n      runtime_type = \"io.containerd.runc.v2\"\n\
         \x20 [plugins.\"io.containerd.grpc.v1.cri\".registry]\n    config_path = {certs}\n",
        root = quoted(&node.folder.join("containerd")),
        state = quoted(&node.state),
        socket = quoted(&node.socket),
        cni = quoted(&node.cni_folder()),
        certs = quoted(&node.folder.join("certs.d")),
    )
}

/// Starts the node's containerd unless it runs. Says whether it had to.
///
/// # Errors
/// When it can't be started or does not answer; the message names its log.
pub async fn start(node: &Node) -> Result<bool> {
    let config = node.folder.join("containerd.toml");
    let started = running(&node.pid_file("containerd"), &config).is_none();
    if started {
        for folder in [&node.folder, &node.state, &node.cni_folder()] {
            fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        fs::write(&config, configuration(node)).with_context(|| format!("write {}", config.display()))?;
        Background {
            program: "containerd".into(),
            args: vec!["-c".into(), config.display().to_string()],
            namespace: node.namespace.as_deref(),
            pid_file: node.pid_file("containerd"),
            log_file: node.log_file("containerd"),
        }
        .start()?;
    }
    let deadline = tokio::time::Instant::now() + READY;
    while version(&node.socket).await.is_err() {
        if running(&node.pid_file("containerd"), &config).is_none()
            && tokio::time::Instant::now() > deadline - READY + CALL / 10
        {
            bail!("containerd of {} ended: see {}", node.name, node.log_file("containerd").display());
        }
        if tokio::time::Instant::now() > deadline {
            bail!(
                "containerd of {} does not answer: see {}",
                node.name,
                node.log_file("containerd").display()
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(started)
}

async fn client(socket: &Path) -> Result<RuntimeServiceClient<Channel>> {
    let path = socket.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel =
        Endpoint::try_from("http://containerd.local")?.timeout(CALL).connect_with_connector(connect).await?;
    Ok(RuntimeServiceClient::new(channel))
}

async fn version(socket: &Path) -> Result<()> {
    client(socket).await?.version(VersionRequest { version: "v1".into() }).await?;
    Ok(())
}

/// Loads an OCI archive.
///
/// # Errors
/// What `ctr` says.
pub async fn import(node: &Node, archive: &Path) -> Result<()> {
    let output = Command::new("ctr")
        .arg("-a")
        .arg(&node.socket)
        .args(["-n", "k8s.io", "images", "import"])
        .arg(archive)
        .kill_on_drop(true)
        .output()
        .await
        .context("run ctr")?;
    if !output.status.success() {
        bail!(
            "load {} on {}: {}",
            archive.display(),
            node.name,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Stops and removes every pod of a containerd, all at once.
///
/// # Errors
/// When the runtime does not answer, or pods are left.
pub async fn remove_pods(socket: &Path) -> Result<usize> {
    let mut runtime = client(socket).await.context("the runtime does not answer")?;
    let list = ListPodSandboxRequest { filter: None };
    let pods = runtime.list_pod_sandbox(list).await?.into_inner().items;
    let count = pods.len();
    let removals = pods.into_iter().map(|pod| {
        let mut runtime = runtime.clone();
        async move {
            runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() }).await?;
            runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod.id }).await
        }
    });
    for removed in futures::future::join_all(removals).await {
        removed.context("remove a pod")?;
    }
    Ok(count)
}
