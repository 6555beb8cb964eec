//! Steps on the terminal: what is being done, and how long it took.

use std::time::Instant;

pub struct Progress {
    started: Instant,
}

impl Progress {
    pub fn new() -> Progress {
        Progress { started: Instant::now() }
    }

    /// A step that is done.
    pub fn done(&self, text: impl std::fmt::Display) {
        println!("{:6.1} s  {text}", self.started.elapsed().as_secs_f32());
    }

    pub fn seconds(&self) -> f32 {
        self.started.elapsed().as_secs_f32()
    }
}
