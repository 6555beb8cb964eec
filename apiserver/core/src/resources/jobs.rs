//! Jobs and CronJobs.

use super::pod_spec::{self, Place};
use super::{Strategy, pod_validate};
use crate::context::{Context, Target};
use crate::meta::NameCheck;
use crate::validate::{immutable, label_selector, non_negative, one_of};
use crate::value::{at, default, each_mut, flag, int, is_empty, map_mut, object_mut, set, text};
use keelson_api::cron::Schedule;
use keelson_api::{ErrorList, FieldError, LabelSelector, Path, names};
use serde_json::{Map, Value};

mod policies;

/// Label of a Job's pods: the Job's uid.
pub const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
/// Label of a Job's pods: the Job's name.
pub const JOB_NAME: &str = "batch.kubernetes.io/job-name";
const OLD_CONTROLLER_UID: &str = "controller-uid";
const OLD_JOB_NAME: &str = "job-name";
/// An indexed Job makes at most so many pods at once.
const MAX_PARALLELISM: i64 = 100_000;
/// The name of a Job is the CronJob's and eleven characters.
const CRON_NAME_LIMIT: usize = 52;

fn default_pod(spec: &mut Value) {
    let template = map_mut(spec).entry("template").or_insert(Value::Null);
    pod_spec::default_spec(map_mut(template).entry("spec").or_insert(Value::Null), Place::Template);
    for rule in each_mut(spec, "podFailurePolicy.rules") {
        for pattern in each_mut(rule, "onPodConditions") {
            if is_empty(&pattern["status"]) {
                set(pattern, "status", "True");
            }
        }
    }
}

pub struct Jobs;

impl Strategy for Jobs {
    fn default(&self, object: &mut Value) {
        default_pod(map_mut(object).entry("spec").or_insert(Value::Null));
        let spec = &mut object["spec"];
        if spec["completions"].is_null() && spec["parallelism"].is_null() {
            set(spec, "completions", 1);
        }
        default(spec, "parallelism", 1);
        let limit = if spec["backoffLimitPerIndex"].is_null() { 6 } else { i32::MAX };
        default(spec, "backoffLimit", limit);
        default(spec, "completionMode", "NonIndexed");
        default(spec, "suspend", false);
        default(spec, "manualSelector", false);
        let replacement = if spec["podFailurePolicy"].is_null() { "TerminatingOrFailed" } else { "Failed" };
        default(spec, "podReplacementPolicy", replacement);
        // What the server marked a new Job's pods with comes to the Job itself when it is stored.
        let labels = at(object, "spec.template.metadata.labels");
        if labels.get(CONTROLLER_UID).is_none() || !text(object, "metadata.resourceVersion").is_empty() {
            own_labels(object);
        }
    }
    fn default_stored(&self, object: &mut Value) {
        own_labels(object);
    }
    fn looks_on_update(&self) -> usize {
        2
    }
    fn generation(&self) -> bool {
        true
    }
    fn prepare_create(&self, object: &mut Value, _: &Context) {
        if flag(object, "spec.manualSelector") {
            return;
        }
        let (uid, name) = (text(object, "metadata.uid").to_owned(), text(object, "metadata.name").to_owned());
        let template = object_mut(object, "spec").entry("template").or_insert(Value::Null);
        let labels = object_mut(template, "metadata").entry("labels").or_insert(Value::Null);
        mark(map_mut(labels), &uid, &name);
        let selector = object_mut(object, "spec").entry("selector").or_insert(Value::Null);
        let labels = object_mut(selector, "matchLabels");
        labels.entry(CONTROLLER_UID).or_insert_with(|| uid.into());
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let selector = &spec["selector"];
        let labels = at(spec, "template.metadata.labels");
        if !flag(spec, "manualSelector") && !selector.is_null() {
            let mut expected = Map::new();
            expected.insert(CONTROLLER_UID.into(), text(object, "metadata.uid").into());
            if !LabelSelector::from_object(selector).matches(&Value::Object(expected)) {
                let detail = "`selector` not auto-generated";
                errors.push(FieldError::invalid(&path.child("selector"), selector.clone(), detail));
            }
        }
        job_spec(spec, &path, errors);
        if selector.is_null() {
            errors.push(FieldError::required(&path.child("selector"), ""));
        } else {
            label_selector(selector, &path.child("selector"), errors);
        }
        if !LabelSelector::from_object(selector).matches(labels) {
            super::apps::mismatch(labels, &path.child("template"), errors);
        }
        let (name, completions) = (text(object, "metadata.name"), int(spec, "completions"));
        if text(spec, "completionMode") == "Indexed" && completions > 0 {
            let host = format!("{name}-{}", completions - 1);
            if !names::is_dns1123_label(&host) {
                let detail = format!("will not able to create pod with invalid DNS label: {host}");
                errors.push(FieldError::invalid(&Path::new("metadata").child("name"), name, &detail));
            }
        }
    }
    fn validate_update(&self, target: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource == Some("status") {
            let path = Path::new("status");
            for field in ["active", "succeeded", "failed", "ready", "terminating"] {
                non_negative(int(&new["status"], field), &path.child(field), errors);
            }
            return;
        }
        update(current, new, errors);
    }
}

/// A Job without labels has those of its pods.
fn own_labels(object: &mut Value) {
    let labels = at(object, "spec.template.metadata.labels").clone();
    if !is_empty(&labels) && is_empty(at(object, "metadata.labels")) {
        set(object, "metadata.labels", labels);
    }
}

/// Labels by which a Job finds its pods; the old names stay for old clients.
fn mark(labels: &mut Map<String, Value>, uid: &str, name: &str) {
    for (key, value) in
        [(CONTROLLER_UID, uid), (JOB_NAME, name), (OLD_CONTROLLER_UID, uid), (OLD_JOB_NAME, name)]
    {
        labels.entry(key).or_insert_with(|| value.into());
    }
}

fn update(current: &Value, new: &Value, errors: &mut ErrorList) {
    let (old, spec) = (&current["spec"], &new["spec"]);
    let indexed = text(spec, "completionMode") == "Indexed";
    if old["completions"] != spec["completions"] {
        let path = Path::new("spec").child("completions");
        let together = spec["completions"] == spec["parallelism"];
        if !indexed || spec["completions"].is_null() || old["completions"].is_null() {
            errors.push(FieldError::invalid(&path, spec["completions"].clone(), "field is immutable"));
        } else if !together {
            let detail = "may only be modified in tandem with spec.parallelism";
            errors.push(FieldError::invalid(&path, spec["completions"].clone(), detail));
        }
    }
    immutable(current, new, "spec.selector", errors);
    // The pods of a suspended Job that has not started may still be placed otherwise.
    let movable = flag(old, "suspend") && at(current, "status.startTime").is_null();
    if !same_template(&old["template"], &spec["template"], movable) {
        immutable(current, new, "spec.template", errors);
    }
    immutable(current, new, "spec.completionMode", errors);
    if old["podFailurePolicy"] != spec["podFailurePolicy"] {
        let shown = shown("batch.v1.PodFailurePolicy", &spec["podFailurePolicy"]);
        let path = Path::new("spec").child("podFailurePolicy");
        errors.push(FieldError::invalid_shown(&path, &shown, "field is immutable"));
    }
    immutable(current, new, "spec.backoffLimitPerIndex", errors);
    immutable(current, new, "spec.managedBy", errors);
    if old["successPolicy"] != spec["successPolicy"] {
        let shown = shown("batch.v1.SuccessPolicy", &spec["successPolicy"]);
        let path = Path::new("spec").child("successPolicy");
        errors.push(FieldError::invalid_shown(&path, &shown, "field is immutable"));
    }
}

/// A policy as messages show it.
fn shown(type_name: &str, policy: &Value) -> String {
    if policy.is_null() { "null".into() } else { crate::gotext::inner(type_name, policy) }
}

fn same_template(old: &Value, new: &Value, movable: bool) -> bool {
    if !movable {
        return old == new;
    }
    let fixed = |template: &Value| {
        let mut template = template.clone();
        for field in ["nodeSelector", "affinity", "tolerations", "schedulingGates"] {
            object_mut(&mut template, "spec").remove(field);
        }
        for field in ["labels", "annotations"] {
            object_mut(&mut template, "metadata").remove(field);
        }
        template
    };
    fixed(old) == fixed(new)
}

/// What Jobs and the templates of CronJobs have in common.
fn job_spec(spec: &Value, path: &Path, errors: &mut ErrorList) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        non_negative(int(spec, field), &path.child(field), errors);
    }
    if !spec["maxFailedIndexes"].is_null() && spec["backoffLimitPerIndex"].is_null() {
        let detail = "when maxFailedIndexes is specified";
        errors.push(FieldError::required(&path.child("backoffLimitPerIndex"), detail));
    }
    if let Some(manager) = spec["managedBy"].as_str() {
        managed_by(manager, &path.child("managedBy"), errors);
    }
    completion_mode(spec, path, errors);
    if !spec["podFailurePolicy"].is_null() {
        policies::pod_failure(spec, &path.child("podFailurePolicy"), errors);
    }
    if !spec["successPolicy"].is_null() {
        policies::success(spec, &path.child("successPolicy"), errors);
    }
    if let Some(policy) = spec["podReplacementPolicy"].as_str() {
        let supported: &[&str] =
            if spec["podFailurePolicy"].is_null() { &["Failed", "TerminatingOrFailed"] } else { &["Failed"] };
        one_of(policy, supported, &path.child("podReplacementPolicy"), errors);
    }
    pod_validate::template(&spec["template"], &path.child("template"), errors);
    let at_policy = path.child("template").child("spec").child("restartPolicy");
    match text(spec, "template.spec.restartPolicy") {
        "Never" => {}
        "OnFailure" if spec["podFailurePolicy"].is_null() => {}
        "OnFailure" => {
            let detail = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.push(FieldError::invalid(&at_policy, "OnFailure", detail));
        }
        _ => errors.push(FieldError::required(&at_policy, "valid values: \"OnFailure\", \"Never\"")),
    }
}

fn managed_by(manager: &str, path: &Path, errors: &mut ErrorList) {
    let Some((domain, rest)) = manager.split_once('/').filter(|(d, r)| !d.is_empty() && !r.is_empty()) else {
        let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        errors.push(FieldError::invalid(path, manager, detail));
        return;
    };
    for problem in names::dns1123_subdomain(domain) {
        errors.push(FieldError::invalid(path, domain, &problem));
    }
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(&b);
    if !rest.bytes().all(fine) {
        let detail = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
        errors.push(FieldError::invalid(path, rest, detail));
    }
    if manager.len() > 63 {
        errors.push(FieldError::too_long(path, 63));
    }
}

fn completion_mode(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let mode = text(spec, "completionMode");
    if !mode.is_empty() {
        one_of(mode, &["NonIndexed", "Indexed"], &path.child("completionMode"), errors);
    }
    if mode == "Indexed" {
        if spec["completions"].is_null() {
            let detail = "when completion mode is Indexed";
            errors.push(FieldError::required(&path.child("completions"), detail));
        }
        let parallelism = int(spec, "parallelism");
        if parallelism > MAX_PARALLELISM {
            let detail =
                format!("must be less than or equal to {MAX_PARALLELISM} when completion mode is Indexed");
            errors.push(FieldError::invalid(&path.child("parallelism"), parallelism, &detail));
        }
        let (failed, completions) = (int(spec, "maxFailedIndexes"), int(spec, "completions"));
        if !spec["completions"].is_null() && failed > completions {
            let detail = "must be less than or equal to completions";
            errors.push(FieldError::invalid(&path.child("maxFailedIndexes"), failed, detail));
        }
    } else if mode.is_empty() || mode == "NonIndexed" {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if !spec[field].is_null() {
                let detail = "requires indexed completion mode";
                errors.push(FieldError::invalid(&path.child(field), spec[field].clone(), detail));
            }
        }
    }
}

pub struct CronJobs;

fn cron_name(name: &str) -> Vec<String> {
    let mut problems = names::dns1123_subdomain(name);
    if name.len() > CRON_NAME_LIMIT {
        problems.push(names::max_len(CRON_NAME_LIMIT));
    }
    problems
}

impl Strategy for CronJobs {
    fn name_check(&self) -> NameCheck {
        cron_name
    }
    fn default(&self, object: &mut Value) {
        let spec = map_mut(object).entry("spec").or_insert(Value::Null);
        let template = object_mut(spec, "jobTemplate");
        default_pod(template.entry("spec").or_insert(Value::Null));
        if is_empty(at(object, "spec.concurrencyPolicy")) {
            set(object, "spec.concurrencyPolicy", "Allow");
        }
        default(object, "spec.suspend", false);
        default(object, "spec.successfulJobsHistoryLimit", 3);
        default(object, "spec.failedJobsHistoryLimit", 1);
    }
    fn generation(&self) -> bool {
        true
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let schedule = text(spec, "schedule");
        if schedule.is_empty() {
            errors.push(FieldError::required(&path.child("schedule"), ""));
        } else {
            let at = path.child("schedule");
            if let Err(problem) = Schedule::parse(schedule) {
                errors.push(FieldError::invalid(&at, schedule, &problem));
            }
            if schedule.contains("TZ") {
                let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
                errors.push(FieldError::invalid(&at, schedule, detail));
            }
        }
        let deadline = int(spec, "startingDeadlineSeconds");
        non_negative(deadline, &path.child("startingDeadlineSeconds"), errors);
        if let Some(zone) = spec["timeZone"].as_str() {
            time_zone(zone, &path.child("timeZone"), errors);
        }
        let policies = ["Allow", "Forbid", "Replace"];
        one_of(text(spec, "concurrencyPolicy"), &policies, &path.child("concurrencyPolicy"), errors);
        let job = path.child("jobTemplate").child("spec");
        let template = at(spec, "jobTemplate.spec");
        if flag(template, "manualSelector") {
            let at = job.child("manualSelector");
            errors.push(FieldError::not_supported(&at, true, &["nil", "false"]));
        }
        job_spec(template, &job, errors);
        for field in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
            non_negative(int(spec, field), &path.child(field), errors);
        }
    }
}

fn time_zone(zone: &str, path: &Path, errors: &mut ErrorList) {
    let problem = if zone.is_empty() {
        "timeZone must be nil or non-empty string".to_owned()
    } else if zone.eq_ignore_ascii_case("local") {
        "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones".to_owned()
    } else if keelson_api::cron::zone(zone).is_none() {
        format!("unknown time zone {zone}")
    } else {
        return;
    };
    errors.push(FieldError::invalid(path, zone, &problem));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::items;
    use serde_json::json;

    #[test]
    fn a_new_job_selects_the_pods_it_will_make() {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {}}});
        Jobs.default(&mut job);
        let user = crate::UserInfo::default();
        let ctx = Context {
            now: jiff::Timestamp::UNIX_EPOCH,
            uid: "u",
            suffix: "bcdfg",
            user: &user,
            view: &crate::context::EmptyView,
            service_cidr: "10.96.0.0/16".parse().expect("a network"),
            node_ports: (30000, 32767),
        };
        Jobs.prepare_create(&mut job, &ctx);
        let labels = at(&job, "spec.template.metadata.labels");
        assert!(LabelSelector::from_object(at(&job, "spec.selector")).matches(labels));
        assert_eq!(items(&job, "spec.template.spec.containers").len(), 0);
    }
}
