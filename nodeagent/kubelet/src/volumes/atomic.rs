//! Writes a volume's files so that a container sees all of the old or all of the new.
//!
//! Order: a fresh `..<time>` folder is filled → `..data` is switched to it by rename → top-level links into `..data` are
//! added and stale ones removed → the old folder goes. Containers keep their mount of the volume's folder throughout.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use keelson_nodeagent_core::pod::payload::Payload;

const DATA: &str = "..data";
const NEXT: &str = "..data_tmp";

/// Brings `dir` to `payload`. `stamp` names the new folder and must not repeat. True if anything changed.
pub fn write(dir: &Path, payload: &Payload, group: Option<u32>, stamp: &str) -> io::Result<bool> {
    fs::create_dir_all(dir)?;
    let current = fs::read_link(dir.join(DATA)).ok();
    if let Some(current) = &current
        && same(&dir.join(current), payload)?
    {
        return Ok(false);
    }
    let fresh_name = format!("..{stamp}");
    let fresh = dir.join(&fresh_name);
    fs::create_dir_all(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &file.content)?;
        // A group that owns the volume can read what its owner can.
        let mode = if group.is_some() { file.mode | (file.mode & 0o400) >> 3 } else { file.mode };
        fs::set_permissions(&target, fs::Permissions::from_mode(mode))?;
        std::os::unix::fs::chown(&target, None, group)?;
    }
    let next = dir.join(NEXT);
    match fs::remove_file(&next) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    symlink(&fresh_name, &next)?;
    fs::rename(&next, dir.join(DATA))?;
    link_top_level(dir, payload)?;
    if let Some(old) = current.filter(|old| old.as_os_str() != fresh_name.as_str()) {
        fs::remove_dir_all(dir.join(old))?;
    }
    Ok(true)
}

fn link_top_level(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) {
            fs::remove_file(dir.join(name.as_ref()))?;
        }
    }
    for name in wanted {
        match symlink(Path::new(DATA).join(name), dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn same(dir: &Path, payload: &Payload) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    collect(dir, PathBuf::new(), &mut found)?;
    let wanted: BTreeSet<PathBuf> = payload.keys().map(PathBuf::from).collect();
    if found != wanted {
        return Ok(false);
    }
    for (path, file) in payload {
        let target = dir.join(path);
        if fs::read(&target)? != file.content {
            return Ok(false);
        }
    }
    Ok(true)
}

fn collect(root: &Path, below: PathBuf, out: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    let entries = match fs::read_dir(root.join(&below)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, path, out)?;
        } else {
            out.insert(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_nodeagent_core::pod::payload::File;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |content: &str| File { content: content.into(), mode: 0o640 };
        files.iter().map(|(path, content)| (path.to_string(), file(content))).collect()
    }

    #[test]
    fn switches_all_files_at_once_and_drops_stale_ones() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(write(dir, &payload(&[("a", "1"), ("b/c", "2")]), None, "one").unwrap());
        assert_eq!(fs::read_to_string(dir.join("b/c")).unwrap(), "2");
        assert!(!write(dir, &payload(&[("a", "1"), ("b/c", "2")]), None, "two").unwrap());
        assert!(write(dir, &payload(&[("a", "3")]), None, "three").unwrap());
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(!dir.join("b").exists() && !dir.join("..one").exists());
        assert_eq!(fs::read_link(dir.join("..data")).unwrap(), Path::new("..three"));
        assert!(write(dir, &Payload::new(), None, "four").unwrap());
        assert!(!dir.join("a").exists());
    }
}
