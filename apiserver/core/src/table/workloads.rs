//! Cells of what runs pods: containers, images and selectors stand in the wide form's columns.

use super::{age, containers, count, or_none, since};
use crate::value::{at, flag, int, items, name, terminating, text};
use keelson_api::LabelSelector;
use keelson_api::duration::human;
use serde_json::{Value, json};

/// Containers, images and selector: the columns that only the wide form shows.
fn wide(o: &Value, template: &str, selector: String) -> Vec<Value> {
    let (names, images) = containers(at(o, template));
    vec![json!(names), json!(images), json!(selector)]
}

fn selector(o: &Value, path: &str) -> String {
    or_none(&LabelSelector::from_object(at(o, path)).to_string())
}

fn labels(o: &Value, path: &str) -> String {
    or_none(&LabelSelector::from_map(at(o, path)).to_string())
}

pub fn pod_template(o: &Value) -> Vec<Value> {
    let mut cells = vec![json!(name(o))];
    cells.extend(wide(o, "template.spec", labels(o, "template.metadata.labels")));
    cells
}

pub fn replication_controller(o: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let mut cells = vec![
        json!(name(o)),
        count(o, "spec.replicas"),
        count(o, "status.replicas"),
        count(o, "status.readyReplicas"),
        json!(age(o, now)),
    ];
    cells.extend(wide(o, "spec.template.spec", labels(o, "spec.selector")));
    cells
}

pub fn daemon_set(o: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let mut cells = vec![
        json!(name(o)),
        count(o, "status.desiredNumberScheduled"),
        count(o, "status.currentNumberScheduled"),
        count(o, "status.numberReady"),
        count(o, "status.updatedNumberScheduled"),
        count(o, "status.numberAvailable"),
        json!(labels(o, "spec.template.spec.nodeSelector")),
        json!(age(o, now)),
    ];
    cells.extend(wide(o, "spec.template.spec", selector(o, "spec.selector")));
    cells
}

pub fn stateful_set(o: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let (names, images) = containers(at(o, "spec.template.spec"));
    vec![
        json!(name(o)),
        json!(format!("{}/{}", int(o, "status.readyReplicas"), int(o, "spec.replicas"))),
        json!(age(o, now)),
        json!(names),
        json!(images),
    ]
}

pub fn job(o: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let mut cells = vec![
        json!(name(o)),
        json!(job_status(o)),
        json!(completions(o)),
        json!(duration(o, now)),
        json!(age(o, now)),
    ];
    cells.extend(wide(o, "spec.template.spec", selector(o, "spec.selector")));
    cells
}

fn job_status(o: &Value) -> &'static str {
    let holds = |kind: &str| {
        let conditions = items(o, "status.conditions");
        conditions.iter().any(|c| text(c, "type") == kind && text(c, "status") == "True")
    };
    let ended = ["Complete", "Failed"].into_iter().find(|kind| holds(kind));
    let under_way =
        || ["Suspended", "FailureTarget", "SuccessCriteriaMet"].into_iter().find(|kind| holds(kind));
    match ended {
        Some(ended) => ended,
        None if terminating(o) => "Terminating",
        None => under_way().unwrap_or("Running"),
    }
}

/// Succeeded of wanted pods. Without `completions` one is enough, of as many as run beside each other.
fn completions(o: &Value) -> String {
    let succeeded = int(o, "status.succeeded");
    match (at(o, "spec.completions").as_i64(), int(o, "spec.parallelism")) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, beside) if beside > 1 => format!("{succeeded}/1 of {beside}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn duration(o: &Value, now: jiff::Timestamp) -> String {
    let time = |path: &str| text(o, path).parse::<jiff::Timestamp>().ok();
    match time("status.startTime") {
        Some(start) => human(time("status.completionTime").unwrap_or(now).as_second() - start.as_second()),
        None => String::new(),
    }
}

pub fn cron_job(o: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let last = at(o, "status.lastScheduleTime");
    let suspended = match at(o, "spec.suspend") {
        Value::Null => "<unset>",
        _ if flag(o, "spec.suspend") => "True",
        _ => "False",
    };
    let mut cells = vec![
        json!(name(o)),
        json!(text(o, "spec.schedule")),
        json!(or_none(text(o, "spec.timeZone"))),
        json!(suspended),
        json!(items(o, "status.active").len()),
        json!(if last.is_null() { "<none>".to_owned() } else { since(last, now) }),
        json!(age(o, now)),
    ];
    let template = "spec.jobTemplate.spec.template.spec";
    cells.extend(wide(o, template, selector(o, "spec.jobTemplate.spec.selector")));
    cells
}

/// A Scale, whichever resource it is a view of.
pub fn scale(o: &Value, now: jiff::Timestamp) -> Vec<Value> {
    vec![json!(name(o)), count(o, "spec.replicas"), count(o, "status.replicas"), json!(age(o, now))]
}
