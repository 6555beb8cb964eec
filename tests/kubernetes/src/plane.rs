//! A control plane without containers: one server on a loopback address of its own, simulated nodes, an administrator's
//! kubeconfig. As many beside each other as there are test processes; without root.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use keelson_test_harness::{binary, eventually, run};

use crate::SOON;

pub struct Plane {
    folder: tempfile::TempDir,
    /// Server, then nodes. They end with the test, however it ends.
    running: Vec<Child>,
}

impl Plane {
    /// Starts it and waits until its nodes are Ready. Nodes are named `sim-1`, `sim-2` and so on.
    pub fn start(kubectl: &Path, nodes: u8) -> Plane {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut plane = Plane { folder, running: vec![] };
        let network = free_network();
        let address = format!("{network}.1");
        let data = plane.path("data");
        let mut server = Command::new(binary());
        server.args(["server", "--cluster-init", "--node-name=server"]);
        server.args([format!("--node-ip={address}"), format!("--bind-address={address}")]);
        server.arg("--data-dir").arg(&data);
        plane.spawn("server", server);
        let token = data.join("server/node-token");
        eventually("the server has a token for nodes", SOON, || {
            if token.exists() { Ok(()) } else { Err(plane.log("server")) }
        });
        let mut simulate = Command::new(binary());
        simulate.args(["simulate", &format!("--nodes={nodes}"), &format!("--first-address={network}.11")]);
        simulate.arg(format!("--server=https://{address}:6443")).arg("--token-file").arg(token);
        simulate.arg("--data-dir").arg(plane.path("nodes"));
        plane.spawn("nodes", simulate);
        eventually("all nodes are Ready", SOON, || {
            let mut command = Command::new(kubectl);
            let path = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}";
            command.args(["get", "nodes", "-o", path]).env("KUBECONFIG", plane.kubeconfig());
            let ran = run(&mut command, SOON);
            let ready = ran.out.matches("True").count();
            if ready == usize::from(nodes) {
                Ok(())
            } else {
                Err(format!("{ran:?}\n{}\n{}", plane.log("server"), plane.log("nodes")))
            }
        });
        plane
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.path("data/server/admin.kubeconfig")
    }

    /// A path in the folder that goes away with the control plane.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The end of what a part has logged.
    pub fn log(&self, part: &str) -> String {
        let log = std::fs::read_to_string(self.path(&format!("{part}.log"))).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    fn spawn(&mut self, part: &str, mut command: Command) {
        let log = File::create(self.path(&format!("{part}.log"))).expect("a log file");
        let copy = log.try_clone().expect("a second handle");
        let child = command.stdin(Stdio::null()).stdout(copy).stderr(log).spawn();
        self.running.push(child.expect("the binary starts"));
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        for child in self.running.iter_mut().rev() {
            // It may have ended already.
            let _gone = child.kill();
            let _status = child.wait();
        }
    }
}

/// The first three numbers of a network of loopback on which nobody serves an API.
fn free_network() -> String {
    let first = std::process::id();
    (0..)
        .map(|step| {
            let number = first.wrapping_add(step) % (100 * 256);
            format!("127.{}.{}", 100 + number / 256, number % 256)
        })
        .find(|network| TcpListener::bind((format!("{network}.1"), 6443)).is_ok())
        .expect("a free network of loopback")
}
