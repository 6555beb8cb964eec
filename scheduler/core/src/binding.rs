//! What the outcome of a bind request means for the assumed pod.
//!
//! The hazard: a request whose answer was lost may have bound the pod. Forgetting the assumption then gives the room
//! away twice (C2 broken) and tries to bind again (C1 leans on the server alone). So an unknown outcome is resolved by
//! reading the pod back; only a definite refusal forgets.

use serde::Serialize;

/// How the bind request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum BindAnswer {
    /// 2xx.
    Accepted,
    /// The server refused and changed nothing: 4xx other than 408 and 429.
    Refused,
    /// 408, 429, 5xx, a broken connection, a timeout: bound or not, nobody knows.
    Unknown,
}

impl BindAnswer {
    /// Sorts an HTTP status.
    pub fn from_code(code: u16) -> BindAnswer {
        match code {
            200..=299 => BindAnswer::Accepted,
            408 | 429 => BindAnswer::Unknown,
            400..=499 => BindAnswer::Refused,
            _ => BindAnswer::Unknown,
        }
    }
}

/// What reading the pod back showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Observed {
    /// Nothing could be read.
    Unreadable,
    /// Gone, or replaced by another pod of this name.
    Gone,
    /// Its `spec.nodeName`; empty = unbound.
    Node(String),
}

/// What to do with the assumption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum AfterBind {
    /// Bound where we wanted: keep the assumption until the watch confirms it.
    Bound,
    /// Bound elsewhere or gone: give the room back; the watch tells the rest.
    Forget,
    /// Not bound: give the room back and queue the pod again.
    ForgetAndRequeue,
    /// Read the pod back, then ask again.
    ReadBack,
    /// Still unbound after an unknown answer: the request may be on its way; send the same one again.
    BindAgain,
}

/// Decides. `observed` is `None` right after the answer.
pub fn after_bind(node: &str, answer: BindAnswer, observed: Option<&Observed>) -> AfterBind {
    #[cfg(feature = "planted")]
    if keelson_plant::is(29) && answer != BindAnswer::Accepted {
        return AfterBind::ForgetAndRequeue;
    }
    match (answer, observed) {
        (BindAnswer::Accepted, _) => AfterBind::Bound,
        (_, Some(Observed::Node(found))) if found == node => AfterBind::Bound,
        (_, Some(Observed::Gone)) => AfterBind::Forget,
        (_, Some(Observed::Node(found))) if !found.is_empty() => AfterBind::Forget,
        (BindAnswer::Refused, Some(Observed::Node(_))) => AfterBind::ForgetAndRequeue,
        (BindAnswer::Unknown, Some(Observed::Node(_))) => AfterBind::BindAgain,
        (_, None | Some(Observed::Unreadable)) => AfterBind::ReadBack,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_read_back_and_forgotten() {
        assert_eq!(BindAnswer::from_code(409), BindAnswer::Refused);
        assert_eq!(after_bind("n", BindAnswer::Refused, None), AfterBind::ReadBack);
        let unbound = Observed::Node(String::new());
        assert_eq!(after_bind("n", BindAnswer::Refused, Some(&unbound)), AfterBind::ForgetAndRequeue);
        assert_eq!(
            after_bind("n", BindAnswer::Refused, Some(&Observed::Node("m".into()))),
            AfterBind::Forget
        );
        assert_eq!(after_bind("n", BindAnswer::Refused, Some(&Observed::Gone)), AfterBind::Forget);
    }

    #[test]
    fn a_lost_answer_of_a_bind_that_worked_keeps_the_assumption() {
        assert_eq!(BindAnswer::from_code(504), BindAnswer::Unknown);
        assert_eq!(after_bind("n", BindAnswer::Unknown, Some(&Observed::Node("n".into()))), AfterBind::Bound);
    }

    #[test]
    fn an_unknown_outcome_never_gives_the_room_away() {
        for observed in [None, Some(Observed::Unreadable), Some(Observed::Node(String::new()))] {
            let after = after_bind("n", BindAnswer::Unknown, observed.as_ref());
            assert!(matches!(after, AfterBind::ReadBack | AfterBind::BindAgain), "{observed:?} -> {after:?}");
        }
    }
}
