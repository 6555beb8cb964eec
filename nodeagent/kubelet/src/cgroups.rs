//! Pods' own cgroups, on version 1 and 2 of the kernel's interface behind one type.
//!
//! Only cgroupfs-style paths. Order: parents first, then limits; removal is deepest first and in every hierarchy, because a
//! runtime makes the pod's cgroup in each of them and removes it in none.
//! Hazard: a limit that cannot be written is a warning, not a failure: the container's own limits still hold.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use keelson_nodeagent_core::pod::qos::{self, PodLimits};
use tracing::warn;

#[derive(Clone, Debug)]
pub enum Cgroups {
    /// Mount point per controller, e.g. (`cpu`, `/sys/fs/cgroup/cpu`), with every other hierarchy besides.
    V1 {
        cpu: Option<PathBuf>,
        memory: Option<PathBuf>,
        all: Vec<PathBuf>,
    },
    V2 {
        root: PathBuf,
    },
}

impl Cgroups {
    /// Reads this process's mounts.
    pub fn detect() -> anyhow::Result<Cgroups> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        parse(&mounts).ok_or_else(|| {
            anyhow::anyhow!(
                "no cgroup file system is mounted: mount one, e.g. mount -t cgroup2 none /sys/fs/cgroup"
            )
        })
    }

    /// Makes a pod's cgroup and writes its limits.
    pub fn create(&self, path: &str, limits: &PodLimits) -> io::Result<()> {
        let below = path.trim_start_matches('/');
        match self {
            Cgroups::V1 { cpu, memory, .. } => {
                if let Some(cpu) = cpu {
                    let dir = cpu.join(below);
                    fs::create_dir_all(&dir)?;
                    write(&dir, "cpu.shares", limits.shares);
                    if limits.quota_us > 0 {
                        write(&dir, "cpu.cfs_period_us", qos::PERIOD_US);
                        write(&dir, "cpu.cfs_quota_us", limits.quota_us);
                    }
                }
                if let Some(memory) = memory {
                    let dir = memory.join(below);
                    fs::create_dir_all(&dir)?;
                    if limits.memory_bytes > 0 {
                        write(&dir, "memory.limit_in_bytes", limits.memory_bytes);
                    }
                }
            }
            Cgroups::V2 { root } => {
                let dir = enable_down_to(root, below)?;
                write(&dir, "cpu.weight", qos::weight(limits.shares));
                if limits.quota_us > 0 {
                    write_text(&dir, "cpu.max", &format!("{} {}", limits.quota_us, qos::PERIOD_US));
                }
                if limits.memory_bytes > 0 {
                    write(&dir, "memory.max", limits.memory_bytes);
                }
            }
        }
        Ok(())
    }

    /// The besteffort class gets next to no CPU under contention.
    pub fn create_classes(&self, kubepods: &str) -> io::Result<()> {
        let open = |shares| PodLimits { shares, quota_us: 0, memory_bytes: 0 };
        self.create(kubepods, &open(1024 * available_cpus()))?;
        self.create(&format!("{kubepods}/burstable"), &open(1024))?;
        self.create(&format!("{kubepods}/besteffort"), &open(qos::MIN_SHARES))
    }

    /// Removes the cgroup and all below it in every hierarchy. `Err` names the first that stays.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        let below = path.trim_start_matches('/');
        let mut first = Ok(());
        for root in self.roots() {
            if let Err(e) = remove_tree(&root.join(below)) {
                first = first.and(Err(e));
            }
        }
        first
    }

    pub fn exists(&self, path: &str) -> bool {
        let below = path.trim_start_matches('/');
        self.roots().iter().any(|root| root.join(below).exists())
    }

    fn roots(&self) -> Vec<PathBuf> {
        match self {
            Cgroups::V1 { all, .. } => all.clone(),
            Cgroups::V2 { root } => vec![root.clone()],
        }
    }

    /// Pod uids that have a cgroup below `kubepods`, in any hierarchy.
    pub fn pods(&self, kubepods: &str) -> Vec<(String, String)> {
        let below = kubepods.trim_start_matches('/');
        let mut out = Vec::new();
        for root in self.roots() {
            for class in ["", "/burstable", "/besteffort"] {
                let Ok(entries) = fs::read_dir(root.join(format!("{below}{class}"))) else { continue };
                for entry in entries.flatten() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    if let Some(uid) = name.strip_prefix("pod") {
                        out.push((uid.to_string(), format!("{kubepods}{class}/{name}")));
                    }
                }
            }
        }
        out.sort();
        out.dedup();
        out
    }

    /// `(CPU nanoseconds used, memory working set bytes)` of a cgroup.
    pub fn usage(&self, path: &str) -> Option<(u64, u64)> {
        let below = path.trim_start_matches('/');
        match self {
            Cgroups::V1 { memory, all, .. } => {
                let cpu = all.iter().find_map(|root| number(&root.join(below).join("cpuacct.usage")))?;
                let memory = memory.as_ref()?.join(below);
                let used = number(&memory.join("memory.usage_in_bytes"))?;
                let idle = field(&memory.join("memory.stat"), "total_inactive_file").unwrap_or(0);
                Some((cpu, used.saturating_sub(idle)))
            }
            Cgroups::V2 { root } => {
                let dir = root.join(below);
                let cpu = field(&dir.join("cpu.stat"), "usage_usec")?.saturating_mul(1000);
                let used = number(&dir.join("memory.current"))?;
                let idle = field(&dir.join("memory.stat"), "inactive_file").unwrap_or(0);
                Some((cpu, used.saturating_sub(idle)))
            }
        }
    }
}

pub fn available_cpus() -> i64 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as i64)
}

fn parse(mountinfo: &str) -> Option<Cgroups> {
    let (mut cpu, mut memory, mut all, mut unified) = (None, None, Vec::new(), None);
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
        let mut right = right.split(' ');
        match right.next() {
            Some("cgroup") => {
                let options = right.nth(1).unwrap_or_default();
                let has = |wanted: &str| options.split(',').any(|o| o == wanted);
                if has("cpu") {
                    cpu = Some(point.clone());
                }
                if has("memory") {
                    memory = Some(point.clone());
                }
                all.push(point);
            }
            Some("cgroup2") if unified.is_none() => unified = Some(point),
            _ => {}
        }
    }
    match (all.is_empty(), unified) {
        (true, Some(root)) => Some(Cgroups::V2 { root }),
        (true, None) => None,
        (false, unified) => {
            all.extend(unified);
            Some(Cgroups::V1 { cpu, memory, all })
        }
    }
}

/// Makes each level and hands it the controllers its parent has.
fn enable_down_to(root: &Path, below: &str) -> io::Result<PathBuf> {
    let mut dir = root.to_path_buf();
    for part in below.split('/').filter(|p| !p.is_empty()) {
        let controllers = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
        for controller in controllers.split_whitespace() {
            // One by one: a controller that cannot be handed down must not hold back the others.
            let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        dir = dir.join(part);
        fs::create_dir_all(&dir)?;
    }
    Ok(dir)
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    let mut first = Ok(());
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            first = first.and(remove_tree(&entry.path()));
        }
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => first.and(Err(e)),
        _ => first,
    }
}

fn write(dir: &Path, file: &str, value: i64) {
    write_text(dir, file, &value.to_string());
}

fn write_text(dir: &Path, file: &str, value: &str) {
    let path = dir.join(file);
    if let Err(e) = fs::write(&path, value) {
        warn!(path = %path.display(), value, error = %e, "cannot write a cgroup limit");
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn field(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_hybrid_from_unified() {
        let v1 = "30 25 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                  31 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                  32 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        match parse(v1).unwrap() {
            Cgroups::V1 { cpu, all, .. } => {
                assert_eq!(cpu.unwrap(), Path::new("/sys/fs/cgroup/cpu"));
                assert_eq!(all.len(), 3);
            }
            other => panic!("{other:?}"),
        }
        let v2 = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        assert!(matches!(parse(v2).unwrap(), Cgroups::V2 { root } if root == Path::new("/sys/fs/cgroup")));
        assert!(parse("").is_none());
    }

    #[test]
    fn version_two_writes_weight_and_limits() {
        let dir = std::env::temp_dir().join(format!("kg-cgroup-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let cgroups = Cgroups::V2 { root: dir.clone() };
        let limits = PodLimits { shares: 1024, quota_us: 50_000, memory_bytes: 1 << 20 };
        cgroups.create("/n/kubepods/podx", &limits).unwrap();
        let read = |file: &str| fs::read_to_string(dir.join("n/kubepods/podx").join(file)).unwrap();
        assert_eq!(
            (read("cpu.weight"), read("cpu.max"), read("memory.max")),
            ("39".into(), "50000 100000".into(), "1048576".into())
        );
        assert_eq!(cgroups.pods("/n/kubepods"), [("x".to_string(), "/n/kubepods/podx".to_string())]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
