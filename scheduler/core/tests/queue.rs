//! The queue's promises: order, backoff, hints, the flush, gates, and events that arrive while a pod is in flight.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use keelson_scheduler_core::events::{ClusterEvent, NodeChange};
use keelson_scheduler_core::queue::Place;
use keelson_scheduler_core::{PodInfo, SchedulingQueue};
use serde_json::{Value, json};

fn pod(name: &str, spec: Value) -> Arc<PodInfo> {
    let mut spec = spec;
    spec["containers"] = json!([{"name": "c", "resources": {"requests": {"cpu": "1"}}}]);
    Arc::new(PodInfo::new(
        &serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "d", "uid": name}, "spec": spec}),
        )
        .expect("a pod"),
    ))
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn refused_by(plugin: &'static str) -> BTreeSet<&'static str> {
    BTreeSet::from([plugin])
}

fn cordon_lifted() -> ClusterEvent {
    ClusterEvent::Node {
        change: NodeChange { cordon: true, ..NodeChange::default() },
        labels: Default::default(),
    }
}

fn popped(queue: &mut SchedulingQueue) -> Option<String> {
    queue.pop().map(|popped| popped.pod.name.clone())
}

#[test]
fn higher_priority_first_then_the_longer_wait() {
    let mut queue = SchedulingQueue::default();
    queue.update(pod("late", json!({})), at(2));
    queue.update(pod("early", json!({})), at(1));
    queue.update(pod("vip", json!({"priority": 9})), at(3));
    let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue)).collect();
    assert_eq!(order, ["vip", "early", "late"]);
}

#[test]
fn backoff_doubles_from_one_to_ten_seconds() {
    let mut queue = SchedulingQueue::default();
    queue.update(pod("p", json!({})), at(0));
    let mut now = 0;
    for wait in [1, 2, 4, 8, 10, 10] {
        assert_eq!(popped(&mut queue).as_deref(), Some("p"));
        queue.failed("p", BTreeSet::new(), at(now));
        assert_eq!(queue.place("p"), Some(Place::Backoff(at(now + wait))));
        assert_eq!(queue.next_wakeup(), Some(at(now + wait)));
        queue.tick(at(now + wait) - Duration::from_millis(1));
        assert_eq!(popped(&mut queue), None);
        now += wait;
        queue.tick(at(now));
    }
    assert_eq!(popped(&mut queue).as_deref(), Some("p"));
}

#[test]
fn only_events_the_refusing_plugin_hopes_for_wake_a_pod() {
    let mut queue = SchedulingQueue::default();
    queue.update(pod("p", json!({})), at(0));
    queue.pop();
    queue.failed("p", refused_by("NodeResourcesFit"), at(0));
    assert_eq!(queue.event(cordon_lifted(), at(20)), 0, "a lifted cordon brings no cpu");
    assert_eq!(queue.event(ClusterEvent::PodLeft(pod("other", json!({}))), at(20)), 1);
    assert_eq!(popped(&mut queue).as_deref(), Some("p"));
}

#[test]
fn an_event_before_the_backoff_is_over_waits_for_it() {
    let mut queue = SchedulingQueue::default();
    queue.update(pod("p", json!({})), at(0));
    queue.pop();
    queue.failed("p", refused_by("NodeUnschedulable"), at(5));
    queue.event(cordon_lifted(), at(5));
    assert_eq!(queue.place("p"), Some(Place::Backoff(at(6))));
}

#[test]
fn an_event_that_arrives_while_a_pod_is_in_flight_is_not_lost() {
    let mut queue = SchedulingQueue::default();
    queue.update(pod("p", json!({})), at(0));
    queue.update(pod("q", json!({})), at(0));
    queue.event(cordon_lifted(), at(0));
    queue.pop();
    queue.pop();
    queue.event(cordon_lifted(), at(1));
    queue.failed("p", refused_by("NodeUnschedulable"), at(1));
    assert!(matches!(queue.place("p"), Some(Place::Backoff(_))), "the cordon was lifted meanwhile");
    queue.failed("q", refused_by("NodeResourcesFit"), at(1));
    assert!(matches!(queue.place("q"), Some(Place::Unschedulable(_))), "that does not help this one");
}

#[test]
fn five_minutes_without_an_event_are_enough() {
    let mut queue = SchedulingQueue::default();
    queue.update(pod("p", json!({})), at(0));
    queue.pop();
    queue.failed("p", refused_by("NodeName"), at(10));
    assert_eq!(queue.next_wakeup(), Some(at(310)));
    queue.tick(at(309));
    assert_eq!(popped(&mut queue), None);
    queue.tick(at(310));
    assert_eq!(popped(&mut queue).as_deref(), Some("p"));
}

#[test]
fn a_gated_pod_is_tried_only_when_the_last_gate_is_gone() {
    let mut queue = SchedulingQueue::default();
    queue.update(pod("p", json!({"schedulingGates": [{"name": "a"}, {"name": "b"}]})), at(0));
    assert_eq!((queue.place("p"), popped(&mut queue)), (Some(Place::Gated), None));
    queue.update(pod("p", json!({"schedulingGates": [{"name": "b"}]})), at(1));
    assert_eq!(popped(&mut queue), None);
    queue.update(pod("p", json!({})), at(2));
    assert_eq!(popped(&mut queue).as_deref(), Some("p"));
}

#[test]
fn a_pod_whose_spec_changed_is_tried_again_and_one_whose_status_changed_is_not() {
    let mut queue = SchedulingQueue::default();
    queue.update(pod("p", json!({})), at(0));
    queue.pop();
    queue.failed("p", refused_by("NodeAffinity"), at(0));
    queue.update(pod("p", json!({})), at(30));
    assert!(matches!(queue.place("p"), Some(Place::Unschedulable(_))));
    queue.update(pod("p", json!({"nodeSelector": {"a": "b"}})), at(30));
    assert_eq!(popped(&mut queue).as_deref(), Some("p"));
}

#[test]
fn a_deleted_pod_is_nowhere_even_when_it_was_in_flight() {
    let mut queue = SchedulingQueue::default();
    queue.update(pod("p", json!({})), at(0));
    queue.pop();
    queue.remove("p");
    queue.failed("p", BTreeSet::new(), at(1));
    assert_eq!((queue.place("p"), queue.pending()), (None, [0, 0, 0, 0]));
}
