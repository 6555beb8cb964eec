//! A few facts of the state, for paths that cannot afford to look at it: kept by whoever applies, read with one load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keelson_store_core::State;

/// The facts.
#[derive(Debug)]
pub(crate) struct Facts {
    auth: AtomicBool,
    learner: AtomicBool,
    began: Instant,
    /// When a peer last spoke to us, milliseconds after `began`.
    heard: AtomicU64,
}

impl Default for Facts {
    fn default() -> Facts {
        let (auth, learner) = (AtomicBool::new(false), AtomicBool::new(false));
        Facts { auth, learner, began: Instant::now(), heard: AtomicU64::new(0) }
    }
}

impl Facts {
    /// A peer spoke to us.
    pub fn hear(&self) {
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(millis, Ordering::Relaxed);
    }

    /// How long no peer has spoken to us.
    pub fn silence(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.heard.load(Ordering::Relaxed)))
    }

    /// Called after each applied batch, `id` being ours.
    pub fn note(&self, state: &State, id: u64) {
        let learner = state.members().get(id).is_some_and(|member| member.is_learner);
        self.auth.store(state.auth().enabled(), Ordering::Relaxed);
        self.learner.store(learner, Ordering::Relaxed);
    }

    /// Whether auth is on. What is applied is judged by the state itself, so a moment's delay here lets nobody through.
    pub fn auth(&self) -> bool {
        self.auth.load(Ordering::Relaxed)
    }

    /// Whether we are a learner.
    pub fn learner(&self) -> bool {
        self.learner.load(Ordering::Relaxed)
    }
}
