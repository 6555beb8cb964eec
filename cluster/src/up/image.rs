//! Images made here, from Debian's static busybox: nothing is downloaded.
//!
//! An OCI archive is a tar of `oci-layout`, `index.json` and blobs named by their SHA-256; a layer is a tar too, so one
//! small tar writer makes both. The bytes depend on busybox alone (no times, no order), so a second import is a no-op.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The sandbox of every pod.
pub const PAUSE: &str = "localhost/pause:3.10";
/// The demo: a web server that names its pod, and busybox's tools.
pub const DEMO: &str = "localhost/demo:1";

/// Where Debian's busybox-static puts it.
pub const BUSYBOX: &str = "/bin/busybox";

/// As process 1 it must catch SIGTERM itself; the kernel ignores it otherwise.
const PAUSE_COMMAND: &str = "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait $!; done";
const DEMO_COMMAND: &str = "echo \"demo: hello from $(hostname)\" > /www/index.html; \
     trap 'exit 0' TERM INT; httpd -f -p 8080 -h /www & wait $!";

/// A tar archive in the making.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn entry(&mut self, name: &str, kind: u8, mode: u32, link: &str, content: &[u8]) {
        let mut header = [0u8; 512];
        let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
        debug_assert!(name.len() < 100 && link.len() < 100, "ustar's short form");
        put(0, name.as_bytes());
        put(100, format!("{mode:07o}\0").as_bytes());
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, b'0', mode, "", content);
    }

    fn folder(&mut self, name: &str, mode: u32) {
        self.entry(name, b'5', mode, "", &[]);
    }

    fn link(&mut self, name: &str, target: &str) {
        self.entry(name, b'2', 0o777, target, &[]);
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn layer(busybox: &[u8], applets: &[&str], web: bool) -> Vec<u8> {
    let mut tar = Tar::default();
    let mut folders = vec![("bin/", 0o755), ("etc/", 0o755), ("tmp/", 0o1777), ("root/", 0o700)];
    folders.extend([("proc/", 0o755), ("sys/", 0o755), ("dev/", 0o755), ("var/", 0o755), ("run/", 0o755)]);
    if web {
        folders.push(("www/", 0o777));
    }
    folders.iter().for_each(|(name, mode)| tar.folder(name, *mode));
    tar.file("bin/busybox", 0o755, busybox);
    applets.iter().for_each(|applet| tar.link(&format!("bin/{applet}"), "busybox"));
    tar.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    );
    tar.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n");
    tar.finish()
}

/// The OCI archive of one image.
fn archive(name: &str, layer: &[u8], command: &str, ports: Value) -> Vec<u8> {
    let layer_digest = hex(layer);
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Cmd": ["/bin/sh", "-c", command], "Env": ["PATH=/bin"], "ExposedPorts": ports},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": config.len(),
            "digest": format!("sha256:{}", hex(config.as_bytes()))},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "size": layer.len(),
            "digest": format!("sha256:{layer_digest}")}],
    })
    .to_string();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": manifest.len(),
            "digest": format!("sha256:{}", hex(manifest.as_bytes())),
            "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}}],
    });
    let mut tar = Tar::default();
    tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    tar.file("index.json", 0o644, index.to_string().as_bytes());
    tar.folder("blobs/", 0o755);
    tar.folder("blobs/sha256/", 0o755);
    for blob in [layer, config.as_bytes(), manifest.as_bytes()] {
        tar.file(&format!("blobs/sha256/{}", hex(blob)), 0o644, blob);
    }
    tar.finish()
}

/// (name, archive) of each image.
///
/// # Errors
/// When busybox is missing or not static.
pub fn make() -> Result<Vec<(&'static str, Vec<u8>)>> {
    let busybox = std::fs::read(BUSYBOX)
        .with_context(|| format!("read {BUSYBOX}: install the package busybox-static"))?;
    let output = Command::new(BUSYBOX).arg("--list").output().context("list busybox's tools")?;
    let applets = String::from_utf8_lossy(&output.stdout).into_owned();
    let applets: Vec<&str> = applets.lines().filter(|applet| *applet != "busybox").collect();
    ensure!(applets.contains(&"httpd"), "{BUSYBOX} has no httpd: install the package busybox-static");
    Ok(vec![
        (PAUSE, archive(PAUSE, &layer(&busybox, &["sh", "sleep"], false), PAUSE_COMMAND, json!({}))),
        (DEMO, archive(DEMO, &layer(&busybox, &applets, true), DEMO_COMMAND, json!({"8080/tcp": {}}))),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tar_reads_what_was_written() {
        let bytes = archive("localhost/x:1", &layer(b"program", &["sh"], true), "true", json!({}));
        assert_eq!(bytes, archive("localhost/x:1", &layer(b"program", &["sh"], true), "true", json!({})));
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.tar");
        std::fs::write(&path, &bytes).expect("written");
        let listed = Command::new("tar").arg("-tf").arg(&path).output().expect("tar runs");
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains("oci-layout") && listed.contains("index.json"));
        assert_eq!(
            listed.lines().filter(|line| line.starts_with("blobs/sha256/") && line.len() > 20).count(),
            3
        );
        let layer = layer(b"program", &["sh"], true);
        std::fs::write(&path, &layer).expect("written");
        let listed = Command::new("tar").arg("-tvf").arg(&path).output().expect("tar runs");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains("bin/sh -> busybox") && listed.contains("drwxrwxrwt"), "{listed}");
    }
}
