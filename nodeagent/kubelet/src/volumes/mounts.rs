//! The kernel's mounts under a folder: make, find, remove.
//!
//! Hazard: `/` may be private. Propagation into or out of a container needs a shared mount at its source; `make_shared`
//! binds a folder onto itself for that.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mount points at or below `dir`, deepest first.
pub fn below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|point| point.starts_with(dir))
        .collect();
    found.sort();
    found.reverse();
    Ok(found)
}

pub fn is_mount_point(dir: &Path) -> io::Result<bool> {
    Ok(below(dir)?.iter().any(|point| point == dir))
}

/// mountinfo writes blanks and backslashes as octal.
fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).and_then(|d| std::str::from_utf8(d).ok());
        match (bytes[at], octal.and_then(|d| u8::from_str_radix(d, 8).ok())) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                at += 4;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    PathBuf::from(String::from_utf8_lossy(&out).into_owned())
}

pub fn tmpfs(dir: &Path, size: Option<i64>) -> io::Result<()> {
    let options = size.filter(|s| *s > 0).map(|s| format!("size={s}"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), dir, Some("tmpfs"), flags, options.as_deref()).map_err(io::Error::from)
}

pub fn bind(from: &Path, to: &Path) -> io::Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(io::Error::from)
}

/// Unmounts everything at or below `dir`, also stacked and busy mounts.
pub fn unmount_all(dir: &Path) -> io::Result<()> {
    for point in below(dir)? {
        unmount(&point)?;
    }
    Ok(())
}

pub fn unmount(point: &Path) -> io::Result<()> {
    match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(e) => Err(io::Error::new(io::Error::from(e).kind(), format!("unmount {}: {e}", point.display()))),
    }
}

/// Whether the mount that holds `path` is in a peer group.
pub fn is_shared(path: &Path) -> io::Result<bool> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let mut best: Option<(usize, bool)> = None;
    for line in text.lines() {
        let mut fields = line.split(' ');
        let Some(point) = fields.nth(4).map(unescape) else { continue };
        if !path.starts_with(&point) {
            continue;
        }
        let shared = fields.skip(1).take_while(|f| *f != "-").any(|f| f.starts_with("shared:"));
        let length = point.as_os_str().len();
        if best.is_none_or(|(longest, _)| length >= longest) {
            best = Some((length, shared));
        }
    }
    Ok(best.is_some_and(|(_, shared)| shared))
}

/// Makes `dir` a shared mount of itself, unless it is on one. True if a mount was made.
pub fn make_shared(dir: &Path) -> io::Result<bool> {
    if is_shared(dir)? {
        return Ok(false);
    }
    bind(dir, dir)?;
    mount(None::<&str>, dir, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_escapes() {
        assert_eq!(unescape(r"/a\040b\134c"), PathBuf::from("/a b\\c"));
        assert_eq!(unescape("/plain"), PathBuf::from("/plain"));
    }
}
