//! The API server over its own HTTPS port, on a store in memory that can misbehave.

mod support;

use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use support::World;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"l": name}}, "data": {"k": "v"}})
}

fn revision(object: &Value) -> i64 {
    let text =
        object["metadata"]["resourceVersion"].as_str().unwrap_or_else(|| panic!("no revision: {object}"));
    text.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_lives_its_life() {
    let world = World::start().await;
    let admin = &world.admin;
    let made = admin.post(MAPS, &map("a")).await;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(admin.post(MAPS, &map("a")).await.json()["reason"], "AlreadyExists");
    let got = admin.get(&format!("{MAPS}/a")).await.json();
    assert_eq!((revision(&got), &got["data"]["k"]), (revision(&made.json()), &json!("v")));

    let patched = admin.merge(&format!("{MAPS}/a"), &json!({"data": {"k": "w"}})).await.json();
    assert!(revision(&patched) > revision(&got));
    let same = admin.merge(&format!("{MAPS}/a"), &json!({"data": {"k": "w"}})).await.json();
    assert_eq!(revision(&same), revision(&patched), "a patch that changes nothing writes nothing");
    let stale = admin.put(&format!("{MAPS}/a"), &got).await;
    assert_eq!((stale.code, stale.json()["reason"].clone()), (409, json!("Conflict")));

    let dry = admin.delete(&format!("{MAPS}/a?dryRun=All")).await;
    assert_eq!((dry.code, admin.get(&format!("{MAPS}/a")).await.code), (200, 200));
    assert_eq!(admin.delete(&format!("{MAPS}/a")).await.json()["status"], "Success");
    assert_eq!(admin.get(&format!("{MAPS}/a")).await.json()["reason"], "NotFound");
    assert_eq!(admin.delete(&format!("{MAPS}/a")).await.code, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_select_and_page_at_one_revision() {
    let world = World::start().await;
    let admin = &world.admin;
    for name in ["a", "b", "c"] {
        assert_eq!(admin.post(MAPS, &map(name)).await.code, 201);
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().expect("items").iter();
        items.map(|i| i["metadata"]["name"].as_str().expect("name").to_owned()).collect()
    };
    let by_label = admin.get(&format!("{MAPS}?labelSelector=l%21%3Db")).await.json();
    assert_eq!(names(&by_label), ["a", "c"]);
    let by_field = admin.get(&format!("{MAPS}?fieldSelector=metadata.name%3Dc")).await.json();
    assert_eq!(names(&by_field), ["c"]);
    let first = admin.get(&format!("{MAPS}?limit=2")).await.json();
    assert_eq!(
        (names(&first), &first["metadata"]["remainingItemCount"]),
        (vec!["a".into(), "b".into()], &json!(1))
    );
    // What comes between the pages is not in the second one.
    assert_eq!(admin.post(MAPS, &map("d")).await.code, 201);
    let token = first["metadata"]["continue"].as_str().expect("a token");
    let second = admin.get(&format!("{MAPS}?limit=2&continue={token}")).await.json();
    assert_eq!((names(&second), revision(&second)), (vec!["c".to_owned()], revision(&first)));
    assert_eq!(admin.get(&format!("{MAPS}?fieldSelector=zz%3D1")).await.code, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_sees_each_change_once_though_the_store_cuts_its_streams() {
    let world = World::start().await;
    let admin = &world.admin;
    let start = revision(&admin.get(MAPS).await.json());
    let mut events = admin.watch(&format!("{MAPS}?watch=1&resourceVersion={start}&labelSelector=l")).await;
    for round in 0..5 {
        let name = format!("m{round}");
        assert_eq!(admin.post(MAPS, &map(&name)).await.code, 201);
        world.store.cut_streams();
        let unlabelled = json!({"metadata": {"labels": {"l": null}}});
        assert_eq!(admin.merge(&format!("{MAPS}/{name}"), &unlabelled).await.code, 200);
        assert_eq!(admin.delete(&format!("{MAPS}/{name}")).await.code, 200);
        assert_eq!(events.named().await, ("ADDED".to_owned(), name.clone()));
        assert_eq!(events.named().await, ("DELETED".to_owned(), name), "it no longer matches");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_list_ends_its_beginning_with_a_bookmark() {
    let world = World::start().await;
    assert_eq!(world.admin.post(MAPS, &map("a")).await.code, 201);
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=3";
    let mut events = world.admin.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(events.named().await, ("ADDED".to_owned(), "a".to_owned()));
    let bookmark = events.next().await.expect("a bookmark");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert!(revision(&bookmark["object"]) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_is_lost_happens_once() {
    let world = World::start().await;
    let admin = &world.admin;
    world.store.lose_answers.store(1, Ordering::SeqCst);
    let made = admin.post(MAPS, &map("a")).await;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(revision(&admin.get(&format!("{MAPS}/a")).await.json()), revision(&made.json()));
    world.store.refuse.store(2, Ordering::SeqCst);
    world.store.lose_answers.store(1, Ordering::SeqCst);
    let patched = admin.merge(&format!("{MAPS}/a"), &json!({"data": {"k": "w"}})).await;
    assert_eq!(patched.code, 200, "{}", patched.text);
    assert_eq!(revision(&admin.get(&format!("{MAPS}/a")).await.json()), revision(&patched.json()));
    world.store.lose_answers.store(1, Ordering::SeqCst);
    assert_eq!(admin.delete(&format!("{MAPS}/a")).await.code, 200);
    assert_eq!(admin.get(&format!("{MAPS}/a")).await.code, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_patches_all_take_effect() {
    let world = World::start().await;
    assert_eq!(world.admin.post(MAPS, &map("a")).await.code, 201);
    let patches = (0..8).map(|i| {
        let admin = world.admin.clone();
        tokio::spawn(async move {
            let body = json!({"data": {format!("k{i}"): "v"}});
            admin.merge(&format!("{MAPS}/a"), &body).await.code
        })
    });
    for patch in patches.collect::<Vec<_>>() {
        assert_eq!(patch.await.expect("no panic"), 200);
    }
    let data = world.admin.get(&format!("{MAPS}/a")).await.json()["data"].clone();
    assert_eq!(data.as_object().map(serde_json::Map::len), Some(9), "{data}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_may_may() {
    let world = World::start().await;
    assert_eq!(world.nobody.get("/livez").await.code, 200);
    assert_eq!(world.nobody.get("/version").await.code, 200);
    let refused = world.nobody.get(MAPS).await;
    assert_eq!(refused.code, 403);
    assert!(refused.text.contains("User \\\"system:anonymous\\\" cannot list resource"), "{}", refused.text);
    let mut bad = world.nobody.clone();
    bad.token = Some("x".to_owned());
    assert_eq!(bad.get("/version").await.code, 401);

    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    assert_eq!(world.admin.post(accounts, &account).await.code, 201);
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let answer = world.admin.post(&format!("{accounts}/robot/token"), &request).await;
    assert_eq!(answer.code, 201, "{}", answer.text);
    let mut robot = world.nobody.clone();
    robot.token = answer.json()["status"]["token"].as_str().map(str::to_owned);
    assert_eq!(robot.get("/api").await.code, 200);
    assert_eq!(robot.get(MAPS).await.code, 403);
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "robot"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": "default"}]});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    assert_eq!(world.admin.post(bindings, &role).await.code, 201);
    support::until("the binding is known", || async { robot.get(MAPS).await.code == 200 }).await;
    assert_eq!(robot.post(MAPS, &map("x")).await.code, 403);
    assert_eq!(world.admin.delete(&format!("{accounts}/robot")).await.code, 200);
    support::until("the token is no longer good", || async { robot.get("/api").await.code == 401 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_describes_itself() {
    let world = World::start().await;
    let admin = &world.admin;
    let resources = admin.get("/api/v1").await.json();
    assert!(resources["resources"].as_array().is_some_and(|r| r.iter().any(|r| r["name"] == "pods/log")));
    let index = admin.get("/openapi/v3").await.json();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("a path").to_owned();
    let document = admin.get(&url).await;
    assert_eq!(document.headers["cache-control"], "public, immutable");
    assert_eq!(admin.get("/openapi/v3/apis/apps/v1?hash=AA").await.code, 301);
    support::until("the server is an endpoint of its own Service", || async {
        admin.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").await.code == 200
    })
    .await;
    let members = admin.get("/keelson/v1/store/members").await.json();
    assert_eq!(
        (&members["members"][0]["name"], &members["members"][0]["isLeader"]),
        (&json!("memory"), &json!(true))
    );
    let metrics = admin.get("/metrics").await.text;
    assert!(metrics.contains("apiserver_request_total{code=\"200\""), "{metrics}");
    assert_eq!(admin.get("/nope").await.code, 404);
    assert_eq!(admin.get("/apis/apps/v1/nopes").await.json()["reason"], "NotFound");
}

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const FOOS: &str = "/apis/g.example/v1/namespaces/default/foos";

fn definition() -> Value {
    let spec = json!({"type": "object", "properties": {
        "size": {"type": "integer", "maximum": 9, "default": 3}, "image": {"type": "string"},
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "number": {"type": "integer"}}}}}});
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "subresources": {"status": {}},
            "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}})
    };
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "foos.g.example"},
        "spec": {"group": "g.example", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo", "shortNames": ["fo"]},
            "versions": [version("v1beta1", false), version("v1", true)]}})
}

fn foo(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "g.example/v1", "kind": "Foo", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_serves_its_objects_and_takes_them_along() {
    let world = World::start().await;
    let admin = &world.admin;
    assert_eq!(admin.get(FOOS).await.code, 404);
    let made = admin.post(DEFINITIONS, &definition()).await;
    assert_eq!(made.code, 201, "{}", made.text);
    support::until("the definition is established", || async { admin.get(FOOS).await.code == 200 }).await;

    let made = admin.post(FOOS, &foo("a", json!({"image": "i", "bogus": 1}))).await;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(made.json()["spec"], json!({"image": "i", "size": 3}), "pruned and defaulted");
    assert!(made.headers["warning"].to_str().expect("text").contains("unknown field"));
    let refused = admin.post(FOOS, &foo("b", json!({"size": 10}))).await.json();
    assert!(
        refused["message"]
            .as_str()
            .expect("text")
            .contains("spec.size in body should be less than or equal to 9")
    );

    let old = admin.get("/apis/g.example/v1beta1/namespaces/default/foos/a").await.json();
    assert_eq!((&old["apiVersion"], &old["spec"]["size"]), (&json!("g.example/v1beta1"), &json!(3)));
    let status = admin
        .merge(&format!("{FOOS}/a/status"), &json!({"status": {"phase": "Ready"}, "spec": {"size": 5}}))
        .await
        .json();
    assert_eq!((&status["status"]["phase"], &status["spec"]["size"]), (&json!("Ready"), &json!(3)));

    // Lists merge by their keys when two apply to the same object.
    for (manager, name) in [("one", "http"), ("two", "https")] {
        let config = foo("a", json!({"ports": [{"name": name, "number": 1}]}));
        let path = format!("{FOOS}/a?fieldManager={manager}");
        let applied = admin
            .send("PATCH", &path, &[("content-type", "application/apply-patch+yaml")], config.to_string())
            .await;
        assert_eq!(applied.code, 200, "{}", applied.text);
    }
    let both = admin.get(&format!("{FOOS}/a")).await.json();
    assert_eq!(both["spec"]["ports"].as_array().map(Vec::len), Some(2));

    let groups = admin.get("/apis/g.example").await.json();
    assert_eq!(groups["preferredVersion"]["version"], "v1");
    let document = admin.get("/openapi/v3/apis/g.example/v1").await.json();
    assert!(document["components"]["schemas"]["example.g.v1.Foo"]["properties"]["spec"].is_object());

    assert_eq!(admin.delete(&format!("{DEFINITIONS}/foos.g.example")).await.code, 200);
    support::until("definition and objects are gone", || async {
        admin.get(&format!("{DEFINITIONS}/foos.g.example")).await.code == 404
            && admin.get(FOOS).await.code == 404
    })
    .await;
    assert_eq!(admin.post(DEFINITIONS, &definition()).await.code, 201);
    support::until("it is established again", || async { admin.get(FOOS).await.code == 200 }).await;
    assert_eq!(admin.get(FOOS).await.json()["items"], json!([]), "the objects went with it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn protobuf_is_answered_to_those_who_ask_for_it() {
    use keelson_apiserver_core::{decode, protobuf};
    let world = World::start().await;
    let admin = &world.admin;
    let accept = [("accept", "application/vnd.kubernetes.protobuf,application/json")];
    let shape = decode::shape_of("", "v1", "ConfigMap").expect("a shape");
    let table = keelson_api::schema::builtin();

    let body = protobuf::encode(&map("a")).expect("encoded");
    let sent = [accept[0], ("content-type", "application/vnd.kubernetes.protobuf")];
    let made = admin.send_bytes("POST", MAPS, &sent, body).await;
    assert_eq!(
        (made.code, made.headers["content-type"].as_bytes()),
        (201, &b"application/vnd.kubernetes.protobuf"[..])
    );
    let got = admin.send("GET", &format!("{MAPS}/a"), &accept, String::new()).await;
    let object = protobuf::decode(table, &shape, &got.bytes).expect("an object");
    assert_eq!((&object["kind"], &object["data"]["k"]), (&json!("ConfigMap"), &json!("v")));

    let list = admin.send("GET", MAPS, &accept, String::new()).await;
    let shape_of_list = decode::shape_of("", "v1", "ConfigMapList").expect("a shape");
    let items = protobuf::decode(table, &shape_of_list, &list.bytes).expect("a list");
    assert_eq!((items["items"].as_array().map(Vec::len), &items["kind"]), (Some(1), &json!("ConfigMapList")));

    let watched = admin
        .send("GET", &format!("{MAPS}?watch=1&resourceVersion=0&timeoutSeconds=1"), &accept, String::new())
        .await;
    assert_eq!(watched.headers["content-type"], "application/vnd.kubernetes.protobuf;stream=watch");
    let length = u32::from_be_bytes(watched.bytes[..4].try_into().expect("a length"));
    assert_eq!(watched.bytes.len(), length as usize + 4, "one frame");
    assert!(watched.bytes[4..].windows(5).any(|w| w == b"ADDED"));

    let missing = admin.send("GET", &format!("{MAPS}/zz"), &accept, String::new()).await;
    let shape = keelson_api::schema::Shape::Object(
        table.id("io.k8s.apimachinery.pkg.apis.meta.v1.Status").expect("Status"),
    );
    assert_eq!(protobuf::decode(table, &shape, &missing.bytes).expect("a status")["reason"], "NotFound");
    let only_metadata =
        [("accept", "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")];
    let list = admin.send("GET", MAPS, &only_metadata, String::new()).await;
    assert!(list.code == 200 && list.bytes.starts_with(protobuf::MAGIC));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_answers_as_get_does_without_a_body() {
    let world = World::start().await;
    for (path, code) in [
        ("/console/", 200),
        ("/console/console.js", 200),
        ("/console/nope", 404),
        ("/readyz", 200),
        ("/nope", 404),
    ] {
        let (head, get) = (world.admin.head(path).await, world.admin.get(path).await);
        assert_eq!((head.code, head.text.as_str()), (code, ""), "HEAD {path}: {}", head.text);
        assert_eq!(head.headers["content-type"], get.headers["content-type"], "{path}");
        assert_eq!(head.headers["content-length"], get.text.len().to_string(), "{path}");
    }
    // As upstream: its routes of the API take no HEAD.
    assert_eq!(world.admin.head("/version").await.code, 405);
}

/// kubectl top asks so; there is no message for metrics, so they come as JSON.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_come_as_json_to_clients_that_would_rather_have_protobuf() {
    let world = World::start().await;
    let accept = [("accept", "application/vnd.kubernetes.protobuf,application/json")];
    for kind in ["Pod", "Node"] {
        let path = format!("/apis/metrics.k8s.io/v1beta1/{}s", kind.to_lowercase());
        let answer = world.admin.send("GET", &path, &accept, String::new()).await;
        assert_eq!(answer.code, 200, "{}", answer.text);
        assert_eq!(answer.headers["content-type"], "application/json");
        assert_eq!(answer.json()["kind"], format!("{kind}MetricsList"));
    }
}
