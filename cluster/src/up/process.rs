//! The cluster's processes: started so that they outlive `up`, found again through pid files, stopped by pid.
//!
//! Hazard: a pid may have been given to somebody else's process since. A process counts as ours only if its command line
//! names the cluster's folder.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process to run in the background.
pub struct Background<'a> {
    pub program: PathBuf,
    pub args: Vec<String>,
    /// Network namespace to run in. (`nsenter`, not `ip netns exec`: the latter hides the cgroups.)
    pub namespace: Option<&'a str>,
    pub pid_file: PathBuf,
    pub log_file: PathBuf,
}

impl Background<'_> {
    /// Starts it in a session of its own, so that a terminal's end or Ctrl-C does not reach it.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(&self) -> Result<u32> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log_file)
            .with_context(|| format!("open {}", self.log_file.display()))?;
        let mut command = Command::new("setsid");
        if let Some(namespace) = self.namespace {
            command.arg("nsenter").arg(format!("--net=/run/netns/{namespace}"));
        }
        let child = command
            .arg(&self.program)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        // setsid and nsenter become the program: the pid stays.
        let pid = child.id();
        fs::write(&self.pid_file, pid.to_string())
            .with_context(|| format!("write {}", self.pid_file.display()))?;
        Ok(pid)
    }
}

/// The live process of a pid file, if it is ours: its command line names `mark`.
pub fn running(pid_file: &Path, mark: &Path) -> Option<u32> {
    let pid: u32 = fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    // While a process becomes another program (setsid, nsenter), its command line is empty for a moment.
    let deadline = Instant::now() + Duration::from_secs(1);
    while between_programs(pid) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    ours(pid, mark).then_some(pid)
}

fn between_programs(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty()) && alive(pid)
}

fn ours(pid: u32, mark: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    contains(&line, mark.as_os_str().as_bytes())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}

/// Every process whose command line names `mark`, this one and its parents left out.
pub fn all_with(mark: &Path) -> Vec<u32> {
    let mut family = vec![std::process::id()];
    while let Some(parent) = family.last().copied().and_then(parent) {
        family.push(parent);
    }
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| !family.contains(pid) && ours(*pid, mark))
        .collect()
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok().filter(|parent| *parent > 1)
}

fn alive(pid: u32) -> bool {
    // A zombie has ended; whoever started it has only not looked yet.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('Z')))
}

pub fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // It may have ended on its own.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// SIGTERM, then SIGKILL for those that do not end in time.
pub fn stop_all(pids: &[u32], patience: Duration) {
    pids.iter().for_each(|pid| signal(*pid, Signal::SIGTERM));
    // A stopped process would never see the signal.
    pids.iter().for_each(|pid| signal(*pid, Signal::SIGCONT));
    if !ended(pids, patience) {
        pids.iter().filter(|pid| alive(**pid)).for_each(|pid| signal(*pid, Signal::SIGKILL));
        ended(pids, Duration::from_secs(5));
    }
}

/// Waits until none is alive; says whether that happened.
pub fn ended(pids: &[u32], patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while pids.iter().any(|pid| alive(*pid)) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_background_process_is_found_by_its_mark_and_stopped() {
        let folder = tempfile::tempdir().expect("a folder");
        let background = Background {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), "sleep 600; :".into(), folder.path().display().to_string()],
            namespace: None,
            pid_file: folder.path().join("x.pid"),
            log_file: folder.path().join("x.log"),
        };
        let pid = background.start().expect("starts");
        let deadline = Instant::now() + Duration::from_secs(30);
        while running(&background.pid_file, folder.path()).is_none() {
            assert!(Instant::now() < deadline, "found through its pid file");
            std::thread::sleep(Duration::from_millis(10));
        }
        while !all_with(folder.path()).contains(&pid) {
            assert!(Instant::now() < deadline, "found by its mark");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(
            running(&background.pid_file, Path::new("/another/folder")),
            None,
            "a stranger's pid is let be"
        );
        let children = children_of(pid);
        stop_all(&[pid], Duration::from_secs(30));
        assert_eq!(running(&background.pid_file, folder.path()), None);
        stop_all(&children, Duration::from_secs(30));
    }

    fn children_of(pid: u32) -> Vec<u32> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        processes
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|child| parent(*child) == Some(pid))
            .collect()
    }
}
