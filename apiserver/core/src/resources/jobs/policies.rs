//! When a Job counts as failed or done: pod failure policy and success policy.

use crate::value::{int, items, text};
use keelson_api::{ErrorList, FieldError, Path};
use serde_json::Value;

const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;

/// A complaint that shows no value.
fn invalid(path: &Path, detail: &str, errors: &mut ErrorList) {
    let message = format!("Invalid value: {detail}");
    errors.push(FieldError { reason: "FieldValueInvalid", path: path.clone(), message });
}

pub fn pod_failure(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let rules = items(&spec["podFailurePolicy"], "rules");
    if rules.len() > MAX_RULES {
        errors.push(FieldError::too_many(&path.child("rules"), rules.len(), MAX_RULES));
    }
    for (i, rule) in rules.iter().enumerate() {
        failure_rule(spec, rule, &path.child("rules").index(i), errors);
    }
}

fn failure_rule(spec: &Value, rule: &Value, path: &Path, errors: &mut ErrorList) {
    let at = path.child("action");
    match text(rule, "action") {
        "" => {
            let detail = "valid values: \"Count\", \"FailIndex\", \"FailJob\", \"Ignore\"";
            errors.push(FieldError::required(&at, detail));
        }
        "FailIndex" if spec["backoffLimitPerIndex"].is_null() => {
            let detail = "requires the backoffLimitPerIndex to be set";
            errors.push(FieldError::invalid(&at, "FailIndex", detail));
        }
        action => crate::validate::one_of(action, &["Count", "FailIndex", "FailJob", "Ignore"], &at, errors),
    }
    let (codes, conditions) = (&rule["onExitCodes"], items(rule, "onPodConditions"));
    if !codes.is_null() {
        exit_codes(spec, codes, &path.child("onExitCodes"), errors);
    }
    if conditions.len() > MAX_RULES {
        errors.push(FieldError::too_many(&path.child("onPodConditions"), conditions.len(), MAX_RULES));
    }
    for (i, pattern) in conditions.iter().enumerate() {
        condition(pattern, &path.child("onPodConditions").index(i), errors);
    }
    match (!codes.is_null(), !conditions.is_empty()) {
        (true, true) => {
            invalid(path, "specifying both OnExitCodes and OnPodConditions is not supported", errors)
        }
        (false, false) => {
            invalid(path, "specifying one of OnExitCodes and OnPodConditions is required", errors)
        }
        _ => {}
    }
}

fn condition(pattern: &Value, path: &Path, errors: &mut ErrorList) {
    let kind = text(pattern, "type");
    for problem in keelson_api::names::qualified_name(kind) {
        errors.push(FieldError::invalid(&path.child("type"), kind, &problem));
    }
    match text(pattern, "status") {
        "" => {
            let detail = "valid values: \"False\", \"True\", \"Unknown\"";
            errors.push(FieldError::required(&path.child("status"), detail));
        }
        status => {
            crate::validate::one_of(status, &["False", "True", "Unknown"], &path.child("status"), errors)
        }
    }
}

fn exit_codes(spec: &Value, codes: &Value, path: &Path, errors: &mut ErrorList) {
    let operator = text(codes, "operator");
    if operator.is_empty() {
        errors.push(FieldError::required(&path.child("operator"), "valid values: \"In\", \"NotIn\""));
    } else {
        crate::validate::one_of(operator, &["In", "NotIn"], &path.child("operator"), errors);
    }
    if let Some(name) = codes["containerName"].as_str() {
        let lists = [items(spec, "template.spec.containers"), items(spec, "template.spec.initContainers")];
        if !lists.iter().flat_map(|l| l.iter()).any(|c| c["name"] == name) {
            let detail = "must be one of the container or initContainer names in the pod template";
            errors.push(FieldError::invalid(&path.child("containerName"), name, detail));
        }
    }
    let (values, path) = (items(codes, "values"), path.child("values"));
    if values.is_empty() {
        errors.push(FieldError::invalid(&path, Value::Array(vec![]), "at least one value is required"));
    } else if values.len() > MAX_EXIT_CODES {
        errors.push(FieldError::too_many(&path, values.len(), MAX_EXIT_CODES));
    }
    let numbers: Vec<i64> = values.iter().filter_map(Value::as_i64).collect();
    let mut seen = std::collections::BTreeSet::new();
    for (i, code) in numbers.iter().enumerate() {
        if operator == "In" && *code == 0 {
            errors.push(FieldError::invalid(&path.index(i), 0, "must not be 0 for the In operator"));
        }
        if !seen.insert(*code) {
            errors.push(FieldError::duplicate(&path.index(i), *code));
        }
    }
    if !numbers.is_sorted() {
        errors.push(FieldError::invalid(&path, numbers, "must be ordered"));
    }
}

pub fn success(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let policy = &spec["successPolicy"];
    if text(spec, "completionMode") != "Indexed" {
        errors.push(FieldError::invalid_shown(
            path,
            &crate::gotext::inner("batch.v1.SuccessPolicy", policy),
            "requires indexed completion mode",
        ));
        return;
    }
    let rules = items(policy, "rules");
    if rules.is_empty() {
        let detail = "at least one rules must be specified when the successPolicy is specified";
        errors.push(FieldError::required(&path.child("rules"), detail));
    }
    if rules.len() > MAX_RULES {
        errors.push(FieldError::too_many(&path.child("rules"), rules.len(), MAX_RULES));
    }
    for (i, rule) in rules.iter().enumerate() {
        success_rule(rule, int(spec, "completions"), &path.child("rules").index(i), errors);
    }
}

fn success_rule(rule: &Value, completions: i64, path: &Path, errors: &mut ErrorList) {
    if rule["succeededCount"].is_null() && rule["succeededIndexes"].is_null() {
        let detail = "at least one of succeededCount or succeededIndexes must be specified";
        errors.push(FieldError::required(path, detail));
    }
    let mut named = None;
    if let Some(text) = rule["succeededIndexes"].as_str() {
        match indexes(text, completions) {
            Ok(count) => named = Some(count),
            Err(problem) => {
                let detail = format!("error parsing succeededIndexes: {problem}");
                errors.push(FieldError::invalid(&path.child("succeededIndexes"), text, &detail));
            }
        }
    }
    if let Some(count) = rule["succeededCount"].as_i64() {
        let at = path.child("succeededCount");
        crate::validate::non_negative(count, &at, errors);
        if count > completions {
            let detail =
                format!("must be less than or equal to {completions} (the number of specified completions)");
            errors.push(FieldError::invalid(&at, count, &detail));
        }
        if let Some(named) = named.filter(|n| count > *n) {
            let detail = format!(
                "must be less than or equal to {named} (the number of indexes in the specified succeededIndexes field)"
            );
            errors.push(FieldError::invalid(&at, count, &detail));
        }
    }
}

/// How many indexes a list like `1,3-5` names.
fn indexes(text: &str, completions: i64) -> Result<i64, String> {
    let number = |part: &str| {
        let quoted = keelson_api::field::quote(part);
        part.parse::<i64>().map_err(|_| format!("cannot convert string to integer for index: {quoted}"))
    };
    let (mut total, mut last) = (0, None::<i64>);
    for interval in text.split(',').filter(|_| !text.is_empty()) {
        let ends: Vec<&str> = interval.split('-').collect();
        if ends.len() > 2 {
            let quoted = keelson_api::field::quote(interval);
            return Err(format!(
                "the fragment {quoted} violates the requirement that an index interval can have at most two parts separated by '-'"
            ));
        }
        let first = number(ends[0])?;
        if let Some(previous) = last.filter(|l| *l >= first) {
            return Err(format!("non-increasing order, previous: {previous}, current: {first}"));
        }
        let mut end = first;
        if first >= completions {
            return Err(format!("too large index: {}", keelson_api::field::quote(ends[0])));
        }
        if let Some(second) = ends.get(1) {
            end = number(second)?;
            if first >= end {
                return Err(format!("non-increasing order, previous: {first}, current: {end}"));
            }
            if end >= completions {
                return Err(format!("too large index: {}", keelson_api::field::quote(second)));
            }
        }
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}
