//! Stock clients against a control plane without containers: kubectl through every verb on every push (but for the script
//! that describes), that script and clients in other languages with KEELSON_NIGHTLY=1.
//!
//! The tour's scripts stand in testdata/tour; see `script` for how they read. KEELSON_TOUR=06 plays those that begin so,
//! KEELSON_TOUR_KUBECONFIG names another cluster to play them against, KEELSON_REWRITE=1 takes its answers as expected.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use keelson_kubernetes_tests::plane::Plane;
use keelson_kubernetes_tests::{LATER, SOON, script};
use keelson_test_harness::{Ran, kubectl, run};

/// The minor version whose words the tour expects.
const KUBECTL: &str = "1.36";
/// For fetching and compiling a client.
const BUILD: Duration = Duration::from_secs(1_800);

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

/// Runs a program that must succeed.
fn must(command: &mut Command, deadline: Duration) -> Ran {
    let ran = run(command, deadline);
    assert!(ran.ok, "{command:?}\n{}{}", ran.out, ran.err);
    ran
}

fn copied(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    must(Command::new("cp").arg("-R").arg(from.join(".")).arg(to), SOON);
}

// ---- kubectl

/// A session: a folder of its own with the files of the tour, a kubeconfig whose namespace is the script's.
struct Session {
    folder: tempfile::TempDir,
    namespace: String,
    kubectl: PathBuf,
}

impl Session {
    fn new(kubectl: &Path, kubeconfig: &Path, name: &str) -> Session {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let session = Session { folder, namespace: format!("tour-{name}"), kubectl: kubectl.to_owned() };
        let path = session.folder.path();
        copied(&here("testdata/tour/files"), path);
        std::fs::copy(kubeconfig, path.join("kubeconfig")).expect("a copy of the kubeconfig");
        std::fs::create_dir(path.join("bin")).expect("a folder");
        std::os::unix::fs::symlink(kubectl, path.join("bin/kubectl")).expect("a link");
        certificates(path);
        let made = session.play("kubectl create namespace $NAMESPACE && kubectl config set-context --current --namespace=$NAMESPACE");
        assert!(made.ok, "{made:?}");
        session
    }

    fn play(&self, command: &str) -> Ran {
        let folder = self.folder.path();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(folder);
        shell.env_clear().env("PATH", format!("{}:{path}", text(&folder.join("bin"))));
        shell.env("HOME", folder).env("KUBECONFIG", folder.join("kubeconfig")).env("LC_ALL", "C.UTF-8");
        shell.env("NAMESPACE", &self.namespace).env("TMPDIR", folder);
        let mut ran = run(&mut shell, LATER);
        for text in [&mut ran.out, &mut ran.err] {
            *text =
                text.replace(&self.namespace, "$NAMESPACE").replace(folder.to_str().expect("UTF-8"), "$HOME");
        }
        ran
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut delete = Command::new(&self.kubectl);
        delete.args(["delete", "namespace", &self.namespace, "--wait=false"]);
        let _asked = run(delete.env("KUBECONFIG", self.folder.path().join("kubeconfig")), SOON);
    }
}

/// A certificate with its key, and a request for one: `tls.crt`, `tls.key`, `request.pem`.
fn certificates(folder: &Path) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec!["tour.example".to_owned()]).expect("a good name");
    params.distinguished_name.push(rcgen::DnType::CommonName, "tour");
    let certificate = params.self_signed(&key).expect("signed");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("good");
    params.distinguished_name.push(rcgen::DnType::CommonName, "tour");
    let request = params.serialize_request(&key).expect("signed").pem().expect("PEM");
    for (file, content) in
        [("tls.crt", certificate.pem()), ("tls.key", key.serialize_pem()), ("request.pem", request)]
    {
        std::fs::write(folder.join(file), content).expect("written");
    }
}

/// Waits for the volume of the script before it, whose going takes as long as it takes: not on every push.
const SHARES_A_VOLUME: &str = "04-describe.txt";

fn scripts() -> Vec<PathBuf> {
    let chosen = std::env::var("KEELSON_TOUR").unwrap_or_default();
    let night = std::env::var_os("KEELSON_NIGHTLY").is_some();
    let entries = std::fs::read_dir(here("testdata/tour")).expect("the tour");
    let mut all: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&chosen)))
        .filter(|path| !chosen.is_empty() || night || !path.ends_with(SHARES_A_VOLUME))
        .collect();
    all.sort();
    all
}

#[test]
fn kubectl_tours_every_verb() {
    let Some(kubectl) = kubectl() else {
        println!("skipped: no stock kubectl; name one in KUBECTL");
        return;
    };
    let version = run(Command::new(&kubectl).args(["version", "--client"]), SOON);
    if !version.out.contains(&format!("v{KUBECTL}.")) {
        println!("skipped: the tour has the words of kubectl {KUBECTL}; name one in KUBECTL");
        return;
    }
    let other = std::env::var_os("KEELSON_TOUR_KUBECONFIG").map(PathBuf::from);
    let plane = other.is_none().then(|| Plane::start(&kubectl, 3));
    let kubeconfig = other.or_else(|| plane.as_ref().map(Plane::kubeconfig)).expect("a cluster");
    let (mut played, mut differences) = (0, String::new());
    for path in scripts() {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let started = Instant::now();
        let (count, differs) = tour(&Session::new(&kubectl, &kubeconfig, &name), &path);
        println!("{name}: {count} commands in {:.1} s", started.elapsed().as_secs_f32());
        played += count;
        differences.push_str(&differs);
    }
    println!("{played} commands");
    assert!(differences.is_empty(), "{differences}");
    assert!(played >= 150 || std::env::var_os("KEELSON_TOUR").is_some(), "{played} commands");
}

/// Plays a script; how many commands it has, and what differed.
fn tour(session: &Session, path: &Path) -> (usize, String) {
    let (head, mut steps) = script::parse(&std::fs::read_to_string(path).expect("a script"));
    let rewrite = std::env::var_os("KEELSON_REWRITE").is_some();
    let patience = if rewrite { Duration::from_secs(5) } else { SOON };
    let mut differences = String::new();
    for step in &mut steps {
        let Err(seen) = script::play(step, patience, |command| session.play(command)) else { continue };
        differences.push_str(&format!(
            "{}: {}\nexpected:\n  {}\nseen:\n  {}\n",
            path.display(),
            step.command,
            step.expected.join("\n  "),
            seen.join("\n  ")
        ));
        step.expected = seen.iter().map(|line| script::steadied(line)).collect();
    }
    if rewrite && !differences.is_empty() {
        script::write(path, &head, &steps);
    }
    (steps.len(), differences)
}

// ---- clients of other languages

/// Whether what takes long runs, and its tool is there.
fn wanted(tools: &[&str]) -> bool {
    if std::env::var_os("KEELSON_NIGHTLY").is_none() {
        println!("skipped: runs with KEELSON_NIGHTLY=1");
        return false;
    }
    for tool in tools {
        let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output();
        if !found.is_ok_and(|output| output.status.success()) {
            println!("skipped: there is no {tool}");
            return false;
        }
    }
    true
}

/// A folder in the user's cache for a client, with our sources of it. What was fetched or built there stays for the next run.
fn cached(client: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")))
        .expect("a home");
    let folder = cache.join("keelson/clients").join(client);
    copied(&here("clients").join(client), &folder);
    folder
}

/// Fetches once per content of `lock`: the command makes what the mark says is there.
fn fetched(folder: &Path, lock: &str, command: &mut Command) {
    let (wanted, mark) = (std::fs::read(folder.join(lock)).expect("a lock file"), folder.join(".fetched"));
    if std::fs::read(&mark).is_ok_and(|made| made == wanted) {
        return;
    }
    must(command.current_dir(folder), BUILD);
    std::fs::write(mark, wanted).expect("written");
}

/// Runs a client's checks. Each prints a line `ok NAME`; the last says how many there were.
fn checks(command: &mut Command, plane: &Plane, at_least: usize) {
    command.env("KUBECONFIG", plane.kubeconfig());
    let ran = run(command, LATER);
    println!("{}", ran.out);
    assert!(ran.ok, "{}\n{}\nthe server's log:\n{}", ran.out, ran.err, plane.log("server"));
    let passed = ran.out.lines().filter(|line| line.starts_with("ok ")).count();
    assert!(passed >= at_least, "{passed} checks passed, {at_least} are there");
}

fn plane() -> Option<Plane> {
    let Some(kubectl) = kubectl() else {
        println!("skipped: no stock kubectl; name one in KUBECTL");
        return None;
    };
    Some(Plane::start(&kubectl, 3))
}

#[test]
fn python_s_client_works() {
    if !wanted(&["python3"]) {
        return;
    }
    let folder = cached("python");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]);
    pip.args(["--target", "packages", "--upgrade", "-r", "requirements.txt"]);
    fetched(&folder, "requirements.txt", &mut pip);
    let Some(plane) = plane() else { return };
    let mut client = Command::new("python3");
    client.arg(folder.join("client.py")).env("PYTHONPATH", folder.join("packages"));
    checks(&mut client, &plane, 8);
}

#[test]
fn javascript_s_client_works() {
    if !wanted(&["node", "npm"]) {
        return;
    }
    let folder = cached("javascript");
    fetched(&folder, "package-lock.json", Command::new("npm").args(["ci", "--no-audit", "--no-fund"]));
    let Some(plane) = plane() else { return };
    checks(Command::new("node").arg(folder.join("client.mjs")), &plane, 6);
}
