//! The scheduler's shell: watches in, decisions by `keelson_scheduler_core`, binds, events and conditions out.
//!
//! [`run`] campaigns for the Lease (when told to), and while it leads runs one [`scheduler`] loop: watch inputs,
//! outcomes of binds and timer ticks enter; a popped pod is decided at once; everything slow (binding, preempting,
//! reporting) is a task of its own. Only the leader keeps watches, so a stand-by costs next to no memory.
//! [`main`] is `keelson scheduler` with upstream's flags.

mod binder;
mod config;
pub mod leader_election;
mod preemptor;
mod reporter;
mod scheduler;
mod watches;

pub use config::{Config, LeaderElection, main};

use tokio_util::sync::CancellationToken;

/// Schedules pods until the token is cancelled. Errors are those that retrying cannot cure (none today: a server that
/// cannot be reached is waited for).
pub async fn run(client: kube::Client, config: Config, token: CancellationToken) -> anyhow::Result<()> {
    if !config.leader_election.enabled {
        scheduler::lead(client, &config, token).await;
        return Ok(());
    }
    leader_election::campaign(client.clone(), &config.leader_election, token, |term| {
        scheduler::lead(client.clone(), &config, term)
    })
    .await;
    Ok(())
}
