//! `down`: removes every trace, from whatever state the machine is in.
//!
//! Order: agents first (they would start pods again), then servers, then pods through each containerd while it runs, then
//! whatever of a pod is left by its cgroup, mounts, namespaces, cgroups, folders. Only what belongs to the cluster's folder
//! is touched.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use super::layout::{Kind, Layout, Node};
use super::process::{all_with, ended, running, signal, stop_all};
use super::progress::Progress;
use super::{netns, preflight, runtime};

/// How long processes have to end by themselves.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long the runtimes have to remove all pods.
const REMOVAL: Duration = Duration::from_secs(40);

pub async fn down(layout: &Layout, keep_data: bool) -> Result<()> {
    let progress = Progress::new();
    if layout.kind == Kind::Real && !preflight::is_root() {
        bail!("removing namespaces and containers needs root: run this as root");
    }
    let nodes = layout.known_nodes();
    stop_processes(layout, &nodes, &progress).await?;
    if layout.kind == Kind::Real {
        remove_nodes(layout, &nodes, &progress).await?;
    } else {
        let strays: Vec<u32> = all_with(&layout.data).into_iter().filter(|pid| is_a_part(*pid)).collect();
        strays.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
        ended(&strays, PATIENCE);
    }
    if !keep_data {
        remove_data(layout, &nodes)?;
    }
    progress.done(match keep_data {
        true => format!("down; the data stays in {}", layout.data.display()),
        false => "down; nothing is left".into(),
    });
    Ok(())
}

/// Those that start others first.
async fn stop_processes(layout: &Layout, nodes: &[Node], progress: &Progress) -> Result<()> {
    let pids = |part: &str| -> Vec<u32> {
        nodes.iter().filter_map(|node| running(&node.pid_file(part), &node.folder)).collect()
    };
    let mut agents = pids("agent");
    agents.extend(running(&layout.simulated_pid(), &layout.data));
    stop_all(&agents, PATIENCE);
    let mut servers = pids("server");
    servers.extend(running(&layout.data.join("lb.pid"), &layout.data));
    // Without a quorum a server can't end gracefully: they end together.
    let count = servers.len();
    tokio::task::spawn_blocking(move || stop_all(&servers, PATIENCE)).await?;
    progress.done(format!("agents stopped, {count} servers and balancers stopped"));
    Ok(())
}

/// Pods, runtimes, and everything of them that the machine holds.
async fn remove_nodes(layout: &Layout, nodes: &[Node], progress: &Progress) -> Result<()> {
    let removals = nodes.iter().filter(|node| node.socket.exists()).map(|node| async move {
        tokio::time::timeout(REMOVAL, runtime::remove_pods(&node.socket)).await.ok()?.ok()
    });
    let removed: usize = futures::future::join_all(removals).await.into_iter().flatten().sum();
    progress.done(format!("{removed} pods removed"));

    let runtimes: Vec<u32> =
        nodes.iter().filter_map(|node| running(&node.pid_file("containerd"), &node.folder)).collect();
    stop_all(&runtimes, PATIENCE);
    let leftovers = Leftovers::find(layout, nodes);
    leftovers.kill();
    unmount(&[&layout.data, &layout.run])?;
    leftovers.remove_files();
    netns::remove(nodes)?;
    nodes.iter().try_for_each(remove_cgroups)?;
    remove_folder(&layout.run)?;
    // The folder of all clusters goes with the last one.
    let _ = layout.run.parent().map(fs::remove_dir);
    Ok(())
}

/// What removing pods through the runtime left: after a crash, or a runtime that does not answer.
struct Leftovers {
    processes: BTreeSet<u32>,
    /// Pods' network namespaces, as paths.
    namespaces: Vec<PathBuf>,
    /// Shims' sockets, and what CNI remembers of their sandboxes.
    files: Vec<PathBuf>,
}

impl Leftovers {
    fn find(layout: &Layout, nodes: &[Node]) -> Leftovers {
        let mut processes: BTreeSet<u32> = BTreeSet::new();
        let mut files = Vec::new();
        for mark in [&layout.data, &layout.run] {
            processes.extend(all_with(mark).into_iter().filter(|pid| is_a_part(*pid)));
        }
        for node in nodes {
            for root in cgroup_roots(node) {
                processes.extend(processes_below(&root));
            }
            files.extend(shim_files(&node.state));
        }
        let namespaces = pod_namespaces(&processes);
        Leftovers { processes, namespaces, files }
    }

    fn kill(&self) {
        let pids: Vec<u32> = self.processes.iter().copied().collect();
        pids.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
        ended(&pids, PATIENCE);
    }

    fn remove_files(&self) {
        for namespace in &self.namespaces {
            // A pod's namespace is a mount over an empty file.
            let _ = umount2(namespace, MntFlags::MNT_DETACH);
            let _ = fs::remove_file(namespace);
        }
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
    }
}

/// Somebody's `tail -f` of a log names the folder too, and is let be.
fn is_a_part(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    ["keelson", "containerd", "runc"].iter().any(|part| name.starts_with(part))
}

/// The pods' namespaces under /run/netns that one of the processes is in.
fn pod_namespaces(processes: &BTreeSet<u32>) -> Vec<PathBuf> {
    let inode = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let of_pods: BTreeSet<_> =
        processes.iter().filter_map(|pid| inode(&PathBuf::from(format!("/proc/{pid}/ns/net")))).collect();
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("cni-")))
        .filter(|path| inode(path).is_some_and(|found| of_pods.contains(&found)))
        .collect()
}

/// Of each task that containerd left behind: its shim's socket and CNI's memory of it.
fn shim_files(state: &Path) -> Vec<PathBuf> {
    let tasks = state.join("io.containerd.runtime.v2.task/k8s.io");
    let mut files = Vec::new();
    for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
        let address = fs::read_to_string(task.path().join("address")).unwrap_or_default();
        if let Some(socket) = address.trim().strip_prefix("unix://") {
            files.push(PathBuf::from(socket));
        }
        let name = format!("keelson-{}-eth0", task.file_name().to_string_lossy());
        files.push(Path::new("/var/lib/cni/results").join(name));
    }
    files
}

/// The node's cgroup in every hierarchy of v1, and in v2.
fn cgroup_roots(node: &Node) -> Vec<PathBuf> {
    let name = node.cgroup.trim_start_matches('/');
    let base = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(base).into_iter().flatten().flatten().map(|entry| entry.path());
    hierarchies
        .chain([base.to_owned()])
        .map(|folder| folder.join(name))
        .filter(|path| path.is_dir())
        .collect()
}

fn folders_below(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut next = 0;
    while let Some(folder) = found.get(next).cloned() {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        found.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
        next += 1;
    }
    found
}

fn processes_below(root: &Path) -> BTreeSet<u32> {
    let read = |folder: PathBuf| fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let texts: Vec<String> = folders_below(root).into_iter().map(read).collect();
    texts.iter().flat_map(|text| text.lines()).filter_map(|line| line.trim().parse().ok()).collect()
}

fn remove_cgroups(node: &Node) -> Result<()> {
    for root in cgroup_roots(node) {
        // Deepest first; a cgroup whose last process just ended may refuse for a moment.
        for folder in folders_below(&root).into_iter().rev() {
            let mut tries = 0;
            while let Err(error) = fs::remove_dir(&folder) {
                tries += 1;
                if tries > 100 {
                    return Err(error).with_context(|| format!("remove cgroup {}", folder.display()));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    Ok(())
}

/// Unmounts everything below the folders, what was mounted last first.
fn unmount(folders: &[&Path]) -> Result<()> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    let mounts = text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let ours: Vec<PathBuf> =
        mounts.filter(|mount| folders.iter().any(|folder| mount.starts_with(folder))).collect();
    for mount in ours.iter().rev() {
        umount2(mount, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", mount.display()))?;
    }
    Ok(())
}

/// mountinfo writes a blank as `\040`.
fn unescape(text: &str) -> PathBuf {
    PathBuf::from(text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Removes what `up` made, and the folder itself if nothing else is in it.
fn remove_data(layout: &Layout, nodes: &[Node]) -> Result<()> {
    nodes.iter().try_for_each(|node| remove_folder(&node.folder))?;
    remove_folder(&layout.data.join("images"))?;
    remove_folder(&layout.data.join("volumes"))?;
    remove_folder(&layout.simulated_folder())?;
    for file in ["kubeconfig", "lb.pid", "lb.log", "simulated.pid", "simulated.log", "resolv.conf", "lock"] {
        let _ = fs::remove_file(layout.data.join(file));
    }
    let _ = fs::remove_dir(&layout.data);
    Ok(())
}
