//! Steps on the terminal: what is being done, and how long it took.

use std::io::Write;
use std::time::Instant;

/// A line on the terminal. A reader that went away (`up | head`) does not end the work.
pub fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

pub struct Progress {
    started: Instant,
}

impl Progress {
    pub fn new() -> Progress {
        Progress { started: Instant::now() }
    }

    /// A step that is done.
    pub fn done(&self, text: impl std::fmt::Display) {
        say(format_args!("{:6.1} s  {text}", self.started.elapsed().as_secs_f32()));
    }

    pub fn seconds(&self) -> f32 {
        self.started.elapsed().as_secs_f32()
    }
}
