//! Defaults against recorded answers: what was posted must come back as the real server gave it.
//!
//! The recordings are not part of the tree: `KEELSON_SHARED` names a directory that has `data/kubernetes/defaults.json`.
//! Without it the test says so and passes.

// A test may read its environment.
#![allow(clippy::disallowed_methods)]

use keelson_api::resource;
use keelson_apiserver_core::{self as core, Context, FieldValidation, Target, UserInfo, View, WriteOptions};
use serde_json::{Value, json};
use std::sync::Arc;

struct Fresh;

impl View for Fresh {
    fn get(&self, _: &str, plural: &str, _: &str, name: &str) -> Option<Arc<Value>> {
        ["namespaces", "serviceaccounts"]
            .contains(&plural)
            .then(|| Arc::new(json!({"metadata": {"name": name}, "status": {"phase": "Active"}})))
    }
    fn list(&self, _: &str, _: &str, _: Option<&str>) -> Vec<Arc<Value>> {
        vec![]
    }
}

/// Takes out what is allocated, random or a time.
fn bare(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let gone = [
                "uid",
                "resourceVersion",
                "creationTimestamp",
                "managedFields",
                "nodePort",
                "healthCheckNodePort",
                "clusterIP",
                "clusterIPs",
                "lastPhaseTransitionTime",
            ];
            Value::Object(
                map.iter()
                    .filter(|(k, _)| !gone.contains(&k.as_str()))
                    .map(|(k, v)| (k.clone(), bare(v)))
                    .collect(),
            )
        }
        Value::Array(list) => list.iter().map(bare).collect(),
        Value::String(s) if s.starts_with("kube-api-access-") => "kube-api-access-XXXXX".into(),
        other => other.clone(),
    }
}

#[test]
fn defaults_are_upstreams() {
    let roots = [std::env::var("KEELSON_SHARED").ok(), Some("../../../../shared".into())];
    let path = roots
        .into_iter()
        .flatten()
        .map(|r| std::path::PathBuf::from(r).join("data/kubernetes/defaults.json"));
    let Some(text) = path.filter_map(|p| std::fs::read_to_string(p).ok()).next() else {
        println!("skipped: no defaults.json (set KEELSON_SHARED to a directory with data/kubernetes)");
        return;
    };
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let user =
        UserInfo { name: "admin".into(), groups: vec!["system:masters".into()], ..UserInfo::default() };
    let (mut judged, mut wrong) = (0, vec![]);
    for case in &cases {
        let (gv, plural) = (case["gv"].as_str().unwrap(), case["resource"].as_str().unwrap());
        let (group, version) = gv.rsplit_once('/').unwrap_or(("", gv));
        let Some(r) = resource::find(group, version, plural).filter(|r| r.storage.is_some()) else {
            continue;
        };
        if case["code"] != 201 || plural == "certificatesigningrequests" {
            continue;
        }
        let namespace =
            if r.namespaced { case["out"]["metadata"]["namespace"].as_str().unwrap_or("probe") } else { "" };
        let target = Target::collection(r, namespace);
        let ctx = Context {
            now: "2026-01-02T03:04:05Z".parse().unwrap(),
            uid: "00000000-0000-4000-8000-000000000000",
            suffix: "bcdfg",
            user: &user,
            view: &Fresh,
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            node_ports: (30000, 32767),
        };
        let options = WriteOptions { field_manager: "m".into(), ..WriteOptions::default() };
        let got = core::decode(
            &target,
            "application/json",
            case["in"].to_string().as_bytes(),
            FieldValidation::Warn,
        )
        .and_then(|(object, _)| core::create(&target, object, &options, &ctx));
        // The recording has a mark where a uid was.
        let got = got.map(|mut outcome| {
            let text = outcome.object.to_string().replace(ctx.uid, "UID");
            outcome.object = serde_json::from_str(&text).unwrap();
            outcome
        });
        judged += 1;
        match got {
            Ok(outcome) if bare(&outcome.object) == bare(&case["out"]) => {}
            Ok(outcome) => wrong.push(format!(
                "{gv} {plural} {}\n  want {}\n  got  {}",
                case["name"],
                bare(&case["out"]),
                bare(&outcome.object)
            )),
            Err(status) => wrong.push(format!("{gv} {plural} {}: {status}", case["name"])),
        }
    }
    wrong.iter().for_each(|w| println!("{w}"));
    assert!(judged > 40, "only {judged} cases found");
    assert!(wrong.is_empty(), "{} of {judged} differ", wrong.len());
}
