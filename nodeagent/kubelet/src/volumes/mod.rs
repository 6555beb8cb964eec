//! A pod's volumes on this node: prepared before its sandbox, refreshed while it runs, released after its last container.
//!
//! Preparing is idempotent: an adopted pod's volumes are found in place. Content from Secrets and tokens lives on tmpfs.
//! Errors are for the user (`FailedMount`) and name the volume; preparation is retried.

pub mod atomic;
pub mod mounts;
pub mod subpath;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod, Volume,
};
use keelson_nodeagent_core::pod::downward::Facts;
use keelson_nodeagent_core::pod::{amounts, naming, payload};

use crate::context::Node;

/// Where each volume of a pod is on the node.
pub type Places = BTreeMap<String, PathBuf>;

fn volumes(pod: &Pod) -> &[Volume] {
    pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default()
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// Makes every volume of the pod.
pub async fn prepare(node: &Node, pod: &Pod) -> Result<(), String> {
    for volume in volumes(pod) {
        let failed = |e: String| format!("MountVolume.SetUp failed for volume \"{}\" : {e}", volume.name);
        place(node, pod, volume, true).await.map_err(failed)?;
    }
    Ok(())
}

/// Rewrites the volumes whose content comes from the API, where it changed.
pub async fn refresh(node: &Node, pod: &Pod) -> Result<(), String> {
    for volume in volumes(pod).iter().filter(|v| payload::is_projected(v)) {
        project(node, pod, volume).await.map_err(|e| format!("volume \"{}\": {e}", volume.name))?;
    }
    Ok(())
}

/// Whether anything of the pod needs `refresh`.
pub fn needs_refresh(pod: &Pod) -> bool {
    volumes(pod).iter().any(payload::is_projected)
}

/// Where the volumes of a prepared pod are.
pub async fn places(node: &Node, pod: &Pod) -> Result<Places, String> {
    let mut out = Places::new();
    for volume in volumes(pod) {
        out.insert(volume.name.clone(), place(node, pod, volume, false).await?);
    }
    Ok(out)
}

async fn place(node: &Node, pod: &Pod, volume: &Volume, make: bool) -> Result<PathBuf, String> {
    if let Some(source) = &volume.host_path {
        if make {
            check_host_path(source)?;
        }
        return Ok(PathBuf::from(&source.path));
    }
    if payload::is_projected(volume) {
        let dir = projected_dir(node, pod, volume);
        if make {
            project(node, pod, volume).await?;
        }
        return Ok(dir);
    }
    if let Some(source) = &volume.empty_dir {
        let dir = node.config.volume_dir(naming::uid(pod), "kubernetes.io~empty-dir", &volume.name);
        if make {
            let memory = source.medium.as_deref() == Some("Memory");
            let size = source.size_limit.as_ref().and_then(|q| amounts::whole(&q.0));
            empty_dir(&dir, memory, size, fs_group(pod)).map_err(|e| e.to_string())?;
        }
        return Ok(dir);
    }
    let claim = match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => claim.claim_name.clone(),
        (None, Some(_)) => format!("{}-{}", naming::name(pod), volume.name),
        _ => return Err("this kind of volume is not supported by this node".into()),
    };
    persistent(node, pod, &claim, make).await
}

fn projected_dir(node: &Node, pod: &Pod, volume: &Volume) -> PathBuf {
    let plugin = match volume {
        v if v.config_map.is_some() => "kubernetes.io~configmap",
        v if v.secret.is_some() => "kubernetes.io~secret",
        v if v.downward_api.is_some() => "kubernetes.io~downward-api",
        _ => "kubernetes.io~projected",
    };
    node.config.volume_dir(naming::uid(pod), plugin, &volume.name)
}

async fn project(node: &Node, pod: &Pod, volume: &Volume) -> Result<(), String> {
    let dir = projected_dir(node, pod, volume);
    let sources = node.objects.fetch(naming::namespace(pod), &payload::references(volume)).await?;
    let mut tokens = BTreeMap::new();
    for wanted in payload::tokens(volume) {
        let token = node.tokens.get(node, pod, &wanted).await?;
        tokens.insert(wanted, token);
    }
    let facts: Facts = node.facts(&[]);
    let content = payload::build(pod, volume, &sources, &tokens, &facts)?;
    let stamp = jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%9f").to_string();
    let (sensitive, group) = (payload::is_sensitive(volume), fs_group(pod));
    let work = move || -> std::io::Result<()> {
        fs::create_dir_all(&dir)?;
        if sensitive && !mounts::is_mount_point(&dir)? {
            mounts::tmpfs(&dir, None)?;
        }
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        atomic::write(&dir, &content, group, &stamp)?;
        Ok(())
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

fn empty_dir(dir: &Path, memory: bool, size: Option<i64>, group: Option<u32>) -> std::io::Result<()> {
    let fresh = !dir.exists();
    fs::create_dir_all(dir)?;
    if memory && !mounts::is_mount_point(dir)? {
        mounts::tmpfs(dir, size)?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777))?;
    if let Some(group) = group.filter(|_| fresh) {
        give_to_group(dir, group)?;
    }
    Ok(())
}

/// The group owns the tree, folders pass the group on.
fn give_to_group(path: &Path, group: u32) -> std::io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    std::os::unix::fs::lchown(path, None, Some(group))?;
    if metadata.is_symlink() {
        return Ok(());
    }
    let mode = metadata.mode() & 0o7777;
    let wanted = if metadata.is_dir() { mode | 0o2770 } else { mode | 0o660 };
    fs::set_permissions(path, fs::Permissions::from_mode(wanted))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            give_to_group(&entry?.path(), group)?;
        }
    }
    Ok(())
}

fn check_host_path(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let io = |e: std::io::Error| format!("hostPath {}: {e}", source.path);
    match kind {
        "" => {
            // The runtime makes a missing source; an unset type checks nothing.
            if !path.exists() {
                fs::create_dir_all(path).map_err(io)?;
            }
            return Ok(());
        }
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(path).map_err(io)?;
            return Ok(());
        }
        "FileOrCreate" if !path.exists() => {
            return fs::OpenOptions::new().create(true).append(true).open(path).map(|_| ()).map_err(io);
        }
        _ => {}
    }
    let metadata = fs::metadata(path);
    let (what, ok) = match (kind, &metadata) {
        ("Directory" | "DirectoryOrCreate", m) => ("directory", m.as_ref().is_ok_and(|m| m.is_dir())),
        ("File" | "FileOrCreate", m) => ("file", m.as_ref().is_ok_and(|m| m.is_file())),
        ("Socket", m) => ("socket file", m.as_ref().is_ok_and(|m| m.file_type().is_socket())),
        ("CharDevice", m) => ("character device", m.as_ref().is_ok_and(|m| m.file_type().is_char_device())),
        ("BlockDevice", m) => ("block device", m.as_ref().is_ok_and(|m| m.file_type().is_block_device())),
        (other, _) => return Err(format!("unknown hostPath type {other:?}")),
    };
    if ok { Ok(()) } else { Err(format!("hostPath type check failed: {} is not a {what}", source.path)) }
}

async fn persistent(node: &Node, pod: &Pod, claim: &str, make: bool) -> Result<PathBuf, String> {
    let client = node.config.client.clone().ok_or("a persistent volume claim needs an API server")?;
    let claims: kube::Api<PersistentVolumeClaim> =
        kube::Api::namespaced(client.clone(), naming::namespace(pod));
    let found = claims.get(claim).await.map_err(|e| format!("persistentvolumeclaim \"{claim}\": {e}"))?;
    let bound = found.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let name = found.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|_| bound);
    let name = name.ok_or_else(|| format!("persistentvolumeclaim \"{claim}\" is not bound"))?;
    let volumes: kube::Api<PersistentVolume> = kube::Api::all(client);
    let volume = volumes.get(&name).await.map_err(|e| format!("persistentvolume \"{name}\": {e}"))?;
    let spec = volume.spec.unwrap_or_default();
    let path = match (&spec.host_path, &spec.local) {
        (Some(host), _) => {
            let path = PathBuf::from(&host.path);
            if make {
                let fresh = !path.exists();
                check_host_path(host)?;
                if fresh && path.starts_with(&node.config.local_path_base) {
                    // A provisioned volume belongs to its claim: pods of any user may write.
                    let open = fs::set_permissions(&path, fs::Permissions::from_mode(0o777));
                    open.map_err(|e| format!("{}: {e}", path.display()))?;
                }
            }
            path
        }
        (None, Some(local)) => {
            let path = PathBuf::from(&local.path);
            if make && !path.exists() {
                return Err(format!("path \"{}\" of persistentvolume \"{name}\" does not exist", local.path));
            }
            path
        }
        _ => {
            return Err(format!(
                "persistentvolume \"{name}\": only hostPath and local volumes are supported"
            ));
        }
    };
    if let Some(group) = fs_group(pod).filter(|_| make) {
        let at = path.clone();
        let given = tokio::task::spawn_blocking(move || give_to_group(&at, group)).await;
        given.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    }
    Ok(path)
}

/// Makes the source of a mount with propagation shared, remembering in the pod's folder what was bound for that.
pub fn share(node: &Node, uid: &str, source: &Path) -> std::io::Result<()> {
    if mounts::make_shared(source)? {
        use std::io::Write as _;
        let list = node.config.pod_dir(uid).join("shared-mounts");
        let mut file = fs::OpenOptions::new().create(true).append(true).open(list)?;
        writeln!(file, "{}", source.display())?;
    }
    Ok(())
}

/// Unmounts all that `prepare`, `share` and `subpath` mounted for the pod.
pub fn release(node: &Node, uid: &str) -> std::io::Result<()> {
    let dir = node.config.pod_dir(uid);
    mounts::unmount_all(&dir)?;
    let list = dir.join("shared-mounts");
    if let Ok(text) = fs::read_to_string(&list) {
        for line in text.lines().rev() {
            mounts::unmount(Path::new(line))?;
        }
        fs::remove_file(&list)?;
    }
    // Content of emptyDir volumes goes with the pod's end; hostPath and persistent volumes lie elsewhere.
    match fs::remove_dir_all(dir.join("volumes")) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
