//! The container runtime over CRI v1 on a unix socket: one method per call that the kubelet makes.
//!
//! Every call has a deadline of its own: a stopped runtime must never stop the kubelet. `ExecSync` in particular may ignore
//! its timeout (a grandchild can hold the pipe), so the gRPC deadline is the one that counts.
//! Wire types stop here for what the core reads (`observe`); configurations are built in `containers` and `sandboxes`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use keelson_nodeagent_core::pod::naming;
use keelson_nodeagent_core::pod::observed;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

const QUICK: Duration = Duration::from_secs(10);
const SLOW: Duration = Duration::from_secs(120);
const PULL: Duration = Duration::from_secs(1800);
const MESSAGE_LIMIT: usize = 16 << 20;

#[derive(Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    /// E.g. `containerd`.
    pub name: String,
    pub version: String,
}

/// Output of a command run to its end.
#[derive(Clone, Debug, Default)]
pub struct ExecOutput {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// The socket's path of an endpoint, or what is wrong with it.
pub fn socket_path(endpoint: &str) -> anyhow::Result<PathBuf> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if !path.starts_with('/') {
        return Err(anyhow!("container runtime endpoint {endpoint:?} must be unix:// and an absolute path"));
    }
    Ok(PathBuf::from(path))
}

fn timed<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

impl Cri {
    /// Connects and asks for the version; the error names the remedy.
    pub async fn connect(endpoint: &str) -> anyhow::Result<Cri> {
        let path = socket_path(endpoint)?;
        let channel = channel(&path);
        let runtime = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_LIMIT);
        let images = ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT);
        let mut cri = Cri { runtime, images, name: String::new(), version: String::new() };
        let asked = cri.runtime.version(timed(VersionRequest { version: "v1".into() }, QUICK)).await;
        let answer = asked.map_err(|e| anyhow!("{}", e.message())).with_context(|| {
            format!(
                "cannot reach containerd at {}: start it or pass --container-runtime-endpoint",
                path.display()
            )
        })?;
        let answer = answer.into_inner();
        cri.name = answer.runtime_name;
        cri.version = answer.runtime_version;
        Ok(cri)
    }

    fn rt(&self) -> RuntimeServiceClient<Channel> {
        self.runtime.clone()
    }

    fn im(&self) -> ImageServiceClient<Channel> {
        self.images.clone()
    }

    /// `(runtime ready, network ready)` with the runtime's messages.
    pub async fn status(&self) -> Result<Vec<RuntimeCondition>, Status> {
        let answer = self.rt().status(timed(StatusRequest { verbose: false }, QUICK)).await?.into_inner();
        Ok(answer.status.map(|s| s.conditions).unwrap_or_default())
    }

    pub async fn sandboxes(&self, uid: Option<&str>) -> Result<Vec<PodSandbox>, Status> {
        let filter =
            uid.map(|uid| PodSandboxFilter { label_selector: by_uid(uid), ..PodSandboxFilter::default() });
        let request = timed(ListPodSandboxRequest { filter }, QUICK);
        Ok(self.rt().list_pod_sandbox(request).await?.into_inner().items)
    }

    pub async fn containers(&self, uid: Option<&str>) -> Result<Vec<Container>, Status> {
        let filter =
            uid.map(|uid| ContainerFilter { label_selector: by_uid(uid), ..ContainerFilter::default() });
        let request = timed(ListContainersRequest { filter }, QUICK);
        Ok(self.rt().list_containers(request).await?.into_inner().containers)
    }

    pub async fn container_status(&self, id: &str) -> Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        let answer = self.rt().container_status(timed(request, QUICK)).await?.into_inner();
        answer.status.ok_or_else(|| Status::not_found("the runtime sent no container status"))
    }

    pub async fn sandbox_status(&self, id: &str) -> Result<PodSandboxStatus, Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        let answer = self.rt().pod_sandbox_status(timed(request, QUICK)).await?.into_inner();
        answer.status.ok_or_else(|| Status::not_found("the runtime sent no sandbox status"))
    }

    /// One pod as the runtime has it now.
    pub async fn observe(&self, uid: &str) -> Result<observed::Observed, Status> {
        let mut out = observed::Observed::default();
        for sandbox in self.sandboxes(Some(uid)).await? {
            let ready = sandbox.state == PodSandboxState::SandboxReady as i32;
            let ips = if ready { self.sandbox_ips(&sandbox.id).await? } else { Vec::new() };
            out.sandboxes.push(observed::Sandbox {
                attempt: sandbox.metadata.as_ref().map_or(0, |m| m.attempt),
                id: sandbox.id,
                ready,
                created: nanos(sandbox.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
                ips,
            });
        }
        for container in self.containers(Some(uid)).await? {
            let status = match self.container_status(&container.id).await {
                Ok(status) => status,
                Err(e) if e.code() == tonic::Code::NotFound => continue, // removed in between
                Err(e) => return Err(e),
            };
            out.containers.push(from_status(status, container.pod_sandbox_id));
        }
        Ok(out.sorted())
    }

    async fn sandbox_ips(&self, id: &str) -> Result<Vec<String>, Status> {
        match self.sandbox_status(id).await {
            Ok(status) => {
                let network = status.network.unwrap_or_default();
                let more = network.additional_ips.into_iter().map(|p| p.ip);
                Ok([network.ip].into_iter().chain(more).filter(|ip| !ip.is_empty()).collect())
            }
            Err(e) if e.code() == tonic::Code::NotFound => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    pub async fn run_sandbox(&self, config: PodSandboxConfig, handler: &str) -> Result<String, Status> {
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: handler.into() };
        Ok(self.rt().run_pod_sandbox(timed(request, SLOW * 2)).await?.into_inner().pod_sandbox_id)
    }

    pub async fn stop_sandbox(&self, id: &str) -> Result<(), Status> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.into() };
        gone_is_fine(self.rt().stop_pod_sandbox(timed(request, SLOW)).await)
    }

    pub async fn remove_sandbox(&self, id: &str) -> Result<(), Status> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        gone_is_fine(self.rt().remove_pod_sandbox(timed(request, SLOW)).await)
    }

    pub async fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        Ok(self.rt().create_container(timed(request, SLOW)).await?.into_inner().container_id)
    }

    pub async fn start_container(&self, id: &str) -> Result<(), Status> {
        let request = StartContainerRequest { container_id: id.into() };
        self.rt().start_container(timed(request, SLOW)).await.map(|_| ())
    }

    /// Stops with at most `grace` seconds between the signal and the kill.
    pub async fn stop_container(&self, id: &str, grace: i64) -> Result<(), Status> {
        let request = StopContainerRequest { container_id: id.into(), timeout: grace.max(0) };
        let limit = Duration::from_secs(grace.max(0) as u64) + SLOW;
        gone_is_fine(self.rt().stop_container(timed(request, limit)).await)
    }

    pub async fn remove_container(&self, id: &str) -> Result<(), Status> {
        let request = RemoveContainerRequest { container_id: id.into() };
        gone_is_fine(self.rt().remove_container(timed(request, SLOW)).await)
    }

    pub async fn reopen_log(&self, id: &str) -> Result<(), Status> {
        let request = ReopenContainerLogRequest { container_id: id.into() };
        self.rt().reopen_container_log(timed(request, QUICK)).await.map(|_| ())
    }

    /// Runs a command to its end within `limit`; past it the answer is `DeadlineExceeded`, whatever the runtime does.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        limit: Duration,
    ) -> Result<ExecOutput, Status> {
        let seconds = limit.as_secs().max(1) as i64;
        let request = ExecSyncRequest { container_id: id.into(), cmd: command.to_vec(), timeout: seconds };
        let hard = limit + Duration::from_secs(2);
        let mut client = self.rt();
        let call = client.exec_sync(timed(request, hard));
        let answer = tokio::time::timeout(hard, call).await;
        let answer =
            answer.map_err(|_| Status::deadline_exceeded(format!("command timed out after {limit:?}")))??;
        let answer = answer.into_inner();
        Ok(ExecOutput { code: answer.exit_code, stdout: answer.stdout, stderr: answer.stderr })
    }

    pub async fn exec_url(&self, request: ExecRequest) -> Result<String, Status> {
        Ok(self.rt().exec(timed(request, QUICK)).await?.into_inner().url)
    }

    pub async fn attach_url(&self, request: AttachRequest) -> Result<String, Status> {
        Ok(self.rt().attach(timed(request, QUICK)).await?.into_inner().url)
    }

    pub async fn port_forward_url(&self, request: PortForwardRequest) -> Result<String, Status> {
        Ok(self.rt().port_forward(timed(request, QUICK)).await?.into_inner().url)
    }

    pub async fn stats(&self) -> Result<Vec<ContainerStats>, Status> {
        let request = timed(ListContainerStatsRequest { filter: None }, QUICK);
        Ok(self.rt().list_container_stats(request).await?.into_inner().stats)
    }

    pub async fn image(&self, name: &str) -> Result<Option<Image>, Status> {
        let image = Some(ImageSpec { image: name.into(), ..ImageSpec::default() });
        let request = ImageStatusRequest { image, verbose: false };
        Ok(self.im().image_status(timed(request, QUICK)).await?.into_inner().image)
    }

    pub async fn images(&self) -> Result<Vec<Image>, Status> {
        let request = timed(ListImagesRequest { filter: None }, QUICK);
        Ok(self.im().list_images(request).await?.into_inner().images)
    }

    pub async fn pull(
        &self,
        name: &str,
        auth: Option<AuthConfig>,
        sandbox: PodSandboxConfig,
    ) -> Result<String, Status> {
        let image = Some(ImageSpec { image: name.into(), ..ImageSpec::default() });
        let request = PullImageRequest { image, auth, sandbox_config: Some(sandbox) };
        Ok(self.im().pull_image(timed(request, PULL)).await?.into_inner().image_ref)
    }

    pub async fn remove_image(&self, id: &str) -> Result<(), Status> {
        let image = Some(ImageSpec { image: id.into(), ..ImageSpec::default() });
        gone_is_fine(self.im().remove_image(timed(RemoveImageRequest { image }, SLOW)).await)
    }

    pub async fn image_file_systems(&self) -> Result<Vec<FilesystemUsage>, Status> {
        let answer = self.im().image_fs_info(timed(ImageFsInfoRequest {}, QUICK)).await?;
        Ok(answer.into_inner().image_filesystems)
    }
}

fn channel(path: &Path) -> Channel {
    let path = path.to_path_buf();
    // The address is never used: the connector dials the socket.
    Endpoint::from_static("http://cri.invalid").connect_with_connector_lazy(tower::service_fn(
        move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
        },
    ))
}

fn by_uid(uid: &str) -> HashMap<String, String> {
    HashMap::from([(naming::LABEL_POD_UID.to_string(), uid.to_string())])
}

fn gone_is_fine<T>(answer: Result<T, Status>) -> Result<(), Status> {
    match answer {
        Ok(_) => Ok(()),
        Err(e) if e.code() == tonic::Code::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Nanoseconds since 1970 as the runtime sends them; 0 means "not yet".
pub fn nanos(value: i64) -> Option<Timestamp> {
    if value <= 0 { None } else { Timestamp::from_nanosecond(i128::from(value)).ok() }
}

fn from_status(status: ContainerStatus, sandbox: String) -> observed::Container {
    let metadata = status.metadata.unwrap_or_default();
    let phase = match ContainerState::try_from(status.state) {
        Ok(ContainerState::ContainerCreated) => observed::ContainerPhase::Created,
        Ok(ContainerState::ContainerRunning) => observed::ContainerPhase::Running,
        Ok(ContainerState::ContainerExited) => observed::ContainerPhase::Exited,
        _ => observed::ContainerPhase::Unknown,
    };
    let termination = Termination {
        host_path: status
            .annotations
            .get(naming::ANNOTATION_TERMINATION_PATH)
            .and_then(|path| status.mounts.iter().find(|m| m.container_path == *path))
            .map(|m| m.host_path.clone()),
        fall_back: status.annotations.get(naming::ANNOTATION_TERMINATION_POLICY).is_some_and(|p| p != "File"),
        log_path: status.log_path,
    };
    let exited = phase == observed::ContainerPhase::Exited;
    let own = if exited { termination.read(status.exit_code) } else { String::new() };
    observed::Container {
        id: status.id,
        sandbox,
        name: metadata.name,
        attempt: metadata.attempt,
        phase,
        created: nanos(status.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
        started: nanos(status.started_at),
        finished: nanos(status.finished_at),
        exit_code: status.exit_code,
        reason: status.reason,
        message: if own.is_empty() { status.message } else { own },
        image: status.image.map(|i| i.image).unwrap_or_default(),
        image_id: status.image_ref,
        hash: status.annotations.get(naming::ANNOTATION_HASH).cloned().unwrap_or_default(),
    }
}

/// Where an exited container may have left its last words.
struct Termination {
    host_path: Option<String>,
    fall_back: bool,
    log_path: String,
}

impl Termination {
    /// At most 4096 bytes of the message file; on failure, if asked for, the log's last 2048 bytes.
    fn read(&self, exit_code: i32) -> String {
        let file = self.host_path.as_deref().map(|path| head(Path::new(path), 4096)).unwrap_or_default();
        if file.is_empty() && self.fall_back && exit_code != 0 {
            let tail = crate::server::logs::last_bytes(Path::new(&self.log_path), 80, 2048);
            return String::from_utf8_lossy(&tail.unwrap_or_default()).into_owned();
        }
        file
    }
}

fn head(path: &Path, most: u64) -> String {
    use std::io::Read as _;
    let mut out = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(most).read_to_end(&mut out);
    }
    String::from_utf8_lossy(&out).into_owned()
}
