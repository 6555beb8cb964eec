//! `subPath`: one folder or file of a volume, reached without leaving the volume.
//!
//! Hazard: a container can plant symbolic links in its volume. The kernel resolves the path beneath the volume's own
//! descriptor (`openat2`, `RESOLVE_BENEATH`), and what was opened is bind-mounted by descriptor, so nothing can be swapped
//! between the check and the mount.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};

use super::mounts;

/// Opens `sub` beneath `volume`, making missing folders.
pub fn resolve(volume: &Path, sub: &str) -> io::Result<OwnedFd> {
    let sub = Path::new(sub);
    if !sub.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "subPath must be relative and without \"..\"",
        ));
    }
    let root = open(volume, OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY, Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(&root, sub, how) {
        Ok(found) => return Ok(found),
        Err(nix::errno::Errno::ENOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let mut at = root;
    for part in sub.components().filter(|c| matches!(c, Component::Normal(_))) {
        let part = Path::new(part.as_os_str());
        match mkdirat(&at, part, Mode::from_bits_truncate(0o750)) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(e) => return Err(e.into()),
        }
        at = openat2(&at, part, how)?;
    }
    Ok(at)
}

/// Bind-mounts `sub` of `volume` at `target` (made as a folder or file to match) unless it is mounted already.
pub fn mount(volume: &Path, sub: &str, target: &Path) -> io::Result<()> {
    if mounts::is_mount_point(target)? {
        return Ok(());
    }
    let found = resolve(volume, sub)?;
    let is_dir = SFlag::from_bits_truncate(fstat(&found)?.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
    if is_dir {
        fs::create_dir_all(target)?;
    } else {
        fs::create_dir_all(target.parent().unwrap_or(Path::new("/")))?;
        fs::OpenOptions::new().create(true).append(true).open(target)?;
    }
    let by_descriptor = format!("/proc/self/fd/{}", found.as_raw_fd());
    mounts::bind(Path::new(&by_descriptor), target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_beneath_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        fs::create_dir_all(volume.join("in")).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("in", volume.join("ok")).unwrap();
        assert!(resolve(&volume, "in").is_ok());
        assert!(resolve(&volume, "ok").is_ok());
        assert!(resolve(&volume, "new/deep").is_ok() && volume.join("new/deep").is_dir());
        for bad in ["out", "out/passwd", "../x", "/etc", "in/../../x"] {
            assert!(resolve(&volume, bad).is_err(), "{bad}");
        }
    }
}
