//! What the runtime reports about one pod, free of wire types. Cheap to clone and compare.

use jiff::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContainerPhase {
    Created,
    Running,
    Exited,
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Container {
    pub id: String,
    pub sandbox: String,
    pub name: String,
    /// The restart count this container was made with.
    pub attempt: u32,
    pub phase: ContainerPhase,
    pub created: Timestamp,
    pub started: Option<Timestamp>,
    pub finished: Option<Timestamp>,
    pub exit_code: i32,
    pub reason: String,
    /// The termination message (already read by the shell for exited containers).
    pub message: String,
    pub image: String,
    pub image_id: String,
    pub hash: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created: Timestamp,
    pub ips: Vec<String>,
}

/// One pod as the runtime has it. Both lists are newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Observed {
    pub sandboxes: Vec<Sandbox>,
    pub containers: Vec<Container>,
}

impl Container {
    pub fn running(&self) -> bool {
        self.phase == ContainerPhase::Running
    }

    pub fn exited(&self) -> bool {
        self.phase == ContainerPhase::Exited
    }

    pub fn succeeded(&self) -> bool {
        self.exited() && self.exit_code == 0
    }

    /// When it ended, or was made if it never started.
    pub fn ended(&self) -> Timestamp {
        self.finished.unwrap_or(self.created)
    }
}

impl Observed {
    /// Puts both lists into the order the rest relies on.
    pub fn sorted(mut self) -> Observed {
        self.sandboxes.sort_by(|a, b| (b.attempt, b.created, &b.id).cmp(&(a.attempt, a.created, &a.id)));
        self.containers.sort_by(|a, b| (b.attempt, b.created, &b.id).cmp(&(a.attempt, a.created, &a.id)));
        self
    }

    /// The sandbox the pod lives in: the newest, if it is ready.
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|s| s.ready)
    }

    /// The newest container of that name.
    pub fn latest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The one before the newest.
    pub fn previous(&self, name: &str) -> Option<&Container> {
        self.containers.iter().filter(|c| c.name == name).nth(1)
    }

    pub fn any_running(&self) -> bool {
        self.containers.iter().any(Container::running)
    }

    /// Nothing of the pod runs any more: no live container, no ready sandbox.
    pub fn stopped(&self) -> bool {
        !self.any_running() && self.sandboxes.iter().all(|s| !s.ready)
    }
}
