//! Faults for three members as processes: they are killed, paused, cut off, made to die or to meet a disk error at a
//! fail point. One fault at a time, each undone before the next.
//!
//! Partitions need a network of our own: each member runs with a group of its own there, by which rules know its packets
//! and drop what it sends to another's peer port. Without root and `nft` there are none; `Faults::partitions` says so.

use std::process::{Command, Stdio};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::replay::http::request;
use crate::{Process, free_port};

/// Set in the process that runs inside the network of its own.
const INSIDE: &str = "KEELSON_TEST_NETWORK";

/// First group that members run with inside it.
const GROUPS: u32 = 61_000;

/// Places where a member may be told to die while it serves.
const DEADLY: [&str; 5] = ["raftBeforeSave", "walBeforeSync", "walAfterSync", "beforeCommit", "afterCommit"];

/// Runs this test again in a network namespace of its own and answers true when it passed there; false when this already
/// is that run, or no such network can be had.
///
/// # Panics
/// When the test fails in there.
pub fn ran_in_a_network_of_its_own(test: &str) -> bool {
    let have = |program: &str| {
        let found =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.is_ok_and(|status| status.success())
    };
    if std::env::var_os(INSIDE).is_some() {
        return false;
    }
    if !nix::unistd::geteuid().is_root() || !have("unshare") || !have("nft") {
        println!("notice: no partitions here: they need root, unshare and nft");
        return false;
    }
    let itself = std::env::current_exe().expect("a test knows its program");
    let status = Command::new("unshare")
        .args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""])
        .arg(itself)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "yes")
        .status()
        .expect("unshare runs");
    assert!(status.success(), "{test} in a network of its own: {status}");
    true
}

/// What is being done to the members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    Kill(usize),
    /// SIGKILL to all of them.
    KillAll,
    /// SIGSTOP for a while.
    Pause(usize, Duration),
    /// Nothing of the first reaches the second.
    OneWay(usize, usize),
    /// One member and the rest hear nothing of each other.
    Isolate(usize),
    /// A panic at a fail point.
    Die(usize, &'static str),
    /// One failed sync or write of the log.
    Refuse(usize, &'static str),
}

/// The members and what may happen to them.
pub struct Faults {
    /// The members, started.
    pub members: Vec<Process>,
    points: Vec<String>,
    cluster: String,
    random: SmallRng,
    /// Whether members can be cut off from each other.
    pub partitions: bool,
}

impl Faults {
    /// Takes members that were not started, and starts them.
    pub fn start(mut members: Vec<Process>, seed: u64) -> Faults {
        let partitions = std::env::var_os(INSIDE).is_some();
        let points: Vec<String> = members.iter().map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let pairs: Vec<String> = members.iter().map(|m| format!("{}={}", m.name, m.peer)).collect();
        for (at, member) in members.iter_mut().enumerate() {
            member.environment = vec![("GOFAIL_HTTP".to_owned(), points[at].clone())];
            if partitions {
                member.group = Some(group(at));
            }
        }
        if partitions {
            nft("add table inet faults; add chain inet faults out { type filter hook output priority 0; }");
        }
        let random = SmallRng::seed_from_u64(seed);
        let mut faults = Faults { members, points, cluster: pairs.join(","), random, partitions };
        (0..faults.members.len()).for_each(|at| faults.run(at));
        faults
    }

    fn run(&mut self, at: usize) {
        let cluster = self.cluster.clone();
        self.members[at].start(&cluster, "new", &[]);
    }

    /// Draws the next fault; `leader` is hit more often than chance would.
    pub fn next(&mut self, leader: Option<usize>) -> Fault {
        let count = self.members.len();
        let favoured = leader.filter(|_| self.random.random_bool(0.5));
        let one = favoured.unwrap_or_else(|| self.random.random_range(0..count));
        let another = (one + self.random.random_range(1..count)) % count;
        let point = DEADLY[self.random.random_range(0..DEADLY.len())];
        let kinds = if self.partitions { 8 } else { 5 };
        match self.random.random_range(0..kinds) {
            0 => Fault::Kill(one),
            1 => Fault::KillAll,
            2 => Fault::Pause(one, Duration::from_millis(self.random.random_range(200..6000))),
            3 => Fault::Die(one, point),
            4 => Fault::Refuse(one, point),
            5 => Fault::OneWay(one, another),
            _ => Fault::Isolate(one),
        }
    }

    /// Does it, lets it last, and undoes it.
    pub async fn inflict(&mut self, fault: &Fault) {
        let lasting = Duration::from_millis(self.random.random_range(300..4000));
        match *fault {
            Fault::Kill(at) => {
                self.members[at].kill();
                tokio::time::sleep(lasting).await;
            }
            Fault::KillAll => self.members.iter_mut().for_each(Process::kill),
            Fault::Pause(at, time) => {
                self.members[at].signal("STOP");
                tokio::time::sleep(time).await;
                self.members[at].signal("CONT");
            }
            Fault::OneWay(from, to) => {
                nft(&self.dropped(from, to));
                tokio::time::sleep(lasting).await;
            }
            Fault::Isolate(at) => {
                let others = (0..self.members.len()).filter(|other| *other != at);
                let rules: Vec<String> =
                    others.flat_map(|other| [self.dropped(at, other), self.dropped(other, at)]).collect();
                nft(&rules.join("; "));
                tokio::time::sleep(lasting).await;
            }
            Fault::Die(at, point) => self.arm(at, point, "panic", lasting).await,
            Fault::Refuse(at, point) => self.arm(at, point, "1*return(\"EIO\")->off", lasting).await,
        }
        if self.partitions {
            nft("flush chain inet faults out");
        }
        for at in 0..self.members.len() {
            let gone = !self.members[at].runs() || self.members[at].ended().is_some();
            if gone {
                self.run(at);
            }
        }
    }

    async fn arm(&mut self, at: usize, point: &str, terms: &str, lasting: Duration) {
        // A member that has just started may not listen yet; then nothing happens to it this time.
        let _ = request(&self.points[at], "PUT", &format!("/{point}"), &[], terms.to_owned()).await;
        tokio::time::sleep(lasting).await;
        if self.members[at].ended().is_none() {
            let _ = request(&self.points[at], "DELETE", &format!("/{point}"), &[], "").await;
        }
    }

    /// The rule that drops what one member sends to another's peer port.
    fn dropped(&self, from: usize, to: usize) -> String {
        let port = |at: usize| self.members[at].peer.rsplit(':').next().unwrap_or_default().to_owned();
        format!("add rule inet faults out meta skgid {} tcp dport {} drop", group(from), port(to))
    }
}

fn group(at: usize) -> u32 {
    GROUPS + u32::try_from(at).expect("a few members")
}

fn nft(script: &str) {
    let status = Command::new("nft").arg(script).status().expect("nft runs");
    assert!(status.success(), "nft {script}");
}
