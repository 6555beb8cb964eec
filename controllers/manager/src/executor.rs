//! Runs a `Plan`: actions in order, the first refusal ends it.
//!
//! Like actions that stand side by side (creates, deletes, expectations) run together, in batches
//! that double (slow start), so that a server that refuses the first is not asked a thousand times.
//! Before each batch the leadership is checked: who may have been replaced sends nothing more.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use keelson_controllers_core::plan::{Expectation, slow_start};
use keelson_controllers_core::{Action, Plan};
use kube::Client;

use crate::cache::Written;
use crate::informer::number;
use crate::leader::Leadership;
use crate::recorder::Recorder;
use crate::request::{self, Answer, Refusal};

/// A request without an answer for so long is given up.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Most requests of one plan at a time.
const WIDTH: usize = 32;

pub struct Executor {
    pub client: Client,
    pub leadership: Arc<Leadership>,
    pub recorder: Recorder,
}

impl Executor {
    /// Runs the plan. The writes that went through are pushed on `written`, also when it is cut short.
    pub async fn run(
        &self,
        controller: &'static str,
        plan: &Plan,
        written: &mut Vec<Written>,
    ) -> Result<(), Refusal> {
        let mut rest = plan.actions.as_slice();
        while let Some(first) = rest.first() {
            let alike = rest.iter().take_while(|a| side_by_side(first, a)).count().max(1);
            let (group, tail) = rest.split_at(alike);
            rest = tail;
            self.group(controller, group, written).await?;
        }
        Ok(())
    }

    async fn group(
        &self,
        controller: &'static str,
        group: &[Action],
        written: &mut Vec<Written>,
    ) -> Result<(), Refusal> {
        let mut left = group;
        for size in slow_start(group.len()) {
            let (batch, tail) = left.split_at(size);
            left = tail;
            for chunk in batch.chunks(WIDTH) {
                if !self.leadership.leads() {
                    return Err(Refusal::NotLeading);
                }
                let results = join_all(chunk.iter().map(|action| self.act(controller, action))).await;
                let mut refusal = None;
                for result in results {
                    match result {
                        Ok(seen) => written.extend(seen),
                        Err(why) => refusal = refusal.or(Some(why)),
                    }
                }
                if let Some(why) = refusal {
                    return Err(why);
                }
            }
        }
        Ok(())
    }

    async fn act(&self, controller: &'static str, action: &Action) -> Result<Option<Written>, Refusal> {
        if let Action::Record(event) = action {
            self.recorder.record(controller, event.clone());
            return Ok(None);
        }
        let Some((request, words)) = request::of(action) else { return Ok(None) };
        tracing::debug!(controller, "{words}");
        let sent = tokio::time::timeout(TIMEOUT, self.client.request_text(request)).await;
        let sent = sent.map_err(|_| Refusal::Lost(format!("{words}: no answer within {TIMEOUT:?}")))?;
        if let Action::Expect(expectation) = action {
            return check(expectation, sent, &words).map(|()| None);
        }
        let text = match sent {
            Ok(text) => text,
            // What was to be removed is not there: done.
            Err(kube::Error::Api(status)) if status.code == 404 && is_delete(action) => return Ok(None),
            Err(error) => return Err(Refusal::of(&words, error)),
        };
        let answer: Answer = serde_json::from_str(&text).unwrap_or_default();
        if let Action::Create { announce: Some(event), .. } = action {
            let mut event = event.clone();
            event.message += &answer.metadata.name;
            self.recorder.record(controller, event);
        }
        Ok(written(action, &answer))
    }
}

fn is_delete(action: &Action) -> bool {
    matches!(action, Action::Delete { .. } | Action::DeleteAll { .. })
}

/// Whether two actions may run at the same time.
fn side_by_side(a: &Action, b: &Action) -> bool {
    match (a, b) {
        (Action::Create { resource: a, .. }, Action::Create { resource: b, .. }) => a == b,
        (Action::Delete { target: a, .. }, Action::Delete { target: b, .. }) => a.resource == b.resource,
        (Action::DeleteAll { .. }, Action::DeleteAll { .. }) => true,
        (Action::Expect(_), Action::Expect(_)) | (Action::Record(_), Action::Record(_)) => true,
        _ => false,
    }
}

fn written(action: &Action, answer: &Answer) -> Option<Written> {
    let version = number(&answer.metadata.resource_version);
    match action {
        Action::Create { resource, .. } => Some(Written::Version { resource: resource.clone(), version }),
        Action::Patch { target, .. } => Some(Written::Version { resource: target.resource.clone(), version }),
        Action::Delete { target, precondition, .. } => Some(Written::Removed {
            resource: target.resource.clone(),
            key: target.key.clone(),
            uid: precondition.uid.clone()?,
        }),
        _ => None,
    }
}

fn check(expectation: &Expectation, sent: Result<String, kube::Error>, words: &str) -> Result<(), Refusal> {
    let missing = matches!(&sent, Err(kube::Error::Api(status)) if status.code == 404);
    if let Expectation::Empty { resource, namespace } = expectation {
        // A resource that is not served holds nothing.
        if missing {
            return Ok(());
        }
        let text = sent.map_err(|e| Refusal::of(words, e))?;
        let list: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| Refusal::Lost(format!("{words}: {e}")))?;
        let empty = list["items"].as_array().is_none_or(|items| items.is_empty());
        return match empty {
            true => Ok(()),
            false => Err(Refusal::Stale(format!("{namespace} still holds {resource}"))),
        };
    }
    let found: Option<Answer> = match sent {
        Err(_) if missing => None,
        Err(error) => return Err(Refusal::of(words, error)),
        Ok(text) => Some(serde_json::from_str(&text).map_err(|e| Refusal::Lost(format!("{words}: {e}")))?),
    };
    let as_expected = match expectation {
        Expectation::Absent { uid: Some(uid), .. } => found.is_none_or(|f| f.metadata.uid != *uid),
        Expectation::Absent { uid: None, .. } => found.is_none(),
        Expectation::Live { uid, .. } => {
            found.is_some_and(|f| f.metadata.uid == *uid && f.metadata.deletion_timestamp.is_none())
        }
        Expectation::Empty { .. } => true,
    };
    if as_expected { Ok(()) } else { Err(Refusal::Stale(format!("{words}: not as expected"))) }
}
