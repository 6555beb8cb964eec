//! The rules. A failing one prints every place and what to do about it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use keelson_tidy::{dependencies, files, root, shown};

fn fail(rule: &str, remedy: &str, places: &[String]) {
    assert!(places.is_empty(), "{rule}\n  {}\nremedy: {remedy}", places.join("\n  "));
}

/// Folder of each crate -> its dependencies.
fn crates() -> BTreeMap<String, Vec<String>> {
    files(&root(), "toml")
        .into_iter()
        .filter(|path| path.ends_with("Cargo.toml"))
        .filter_map(|path| {
            let text = fs::read_to_string(&path).ok()?;
            text.contains("[package]").then(|| {
                let folder = shown(path.parent().expect("a file has a folder"));
                (folder, dependencies(&text))
            })
        })
        .collect()
}

/// (crate folder prefix, what it must not depend on, why).
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    (
        "store/",
        &[
            "kube",
            "k8s-openapi",
            "keelson-api",
            "keelson-apiserver",
            "keelson-apiserver-core",
            "keelson-controllers",
        ],
        "the store knows nothing of Kubernetes",
    ),
    (
        "store/core",
        &["tokio", "tonic", "rocksdb", "openraft", "rand"],
        "a core has no runtime, IO or randomness",
    ),
    (
        "store/sync",
        &["tokio", "tonic", "rocksdb", "openraft"],
        "loom checks it, so it stays on its own types",
    ),
    (
        "store/ctl",
        &["keelson-store-server", "keelson-store-raft", "keelson-store-core", "rocksdb", "openraft"],
        "etcdctl speaks to any etcd",
    ),
    ("store/http2", &["tokio", "tonic", "hyper", "rand"], "a core has no runtime, IO or randomness"),
    (
        "store/files",
        &["tokio", "tonic", "rocksdb", "openraft", "rand"],
        "it turns bytes into values and back",
    ),
    ("store/raft", &["rocksdb", "tonic"], "the simulator builds it in seconds"),
    (
        "apiserver/api",
        &["tokio", "hyper", "kube", "rand", "tonic"],
        "a core has no runtime, IO or randomness",
    ),
    (
        "apiserver/core",
        &["tokio", "hyper", "kube", "rand", "tonic"],
        "a core has no runtime, IO or randomness",
    ),
    (
        "apiserver/cel",
        &["tokio", "hyper", "kube", "rand", "tonic", "keelson-apiserver-core"],
        "a language knows values, not resources; a core has no runtime, IO or randomness",
    ),
    (
        "apiserver/server",
        &["keelson-store-server", "keelson-store-raft", "keelson-store-core", "rocksdb", "openraft", "kube"],
        "the API server reaches any store through the etcd seam",
    ),
    ("controllers/core", &["tokio", "kube", "rand"], "a core has no runtime, IO or randomness"),
    ("scheduler/core", &["tokio", "kube", "rand"], "a core has no runtime, IO or randomness"),
    ("nodeagent/core", &["tokio", "kube", "rand", "tonic", "nix"], "a core has no runtime, IO or randomness"),
    (
        "controllers/",
        &["keelson-store-server", "keelson-store-core", "keelson-apiserver", "keelson-apiserver-core"],
        "controllers meet the API server through the Kubernetes API only",
    ),
    (
        "scheduler/",
        &["keelson-store-server", "keelson-store-core", "keelson-apiserver", "keelson-apiserver-core"],
        "the scheduler meets the API server through the Kubernetes API only",
    ),
    (
        "nodeagent/",
        &["keelson-store-server", "keelson-store-core", "keelson-apiserver", "keelson-apiserver-core"],
        "the node agent meets the API server through the Kubernetes API only",
    ),
];

/// Production never depends on these.
const TEST_ONLY: &[&str] = &[
    "keelson-loom",
    "keelson-sim",
    "keelson-simcluster",
    "keelson-tidy",
    "keelson-test-harness",
    "keelson-operator-example",
    "keelson-etcd-tests",
    "keelson-kubernetes-tests",
    "proptest",
    "loom",
];

#[test]
fn dependency_edges_follow_the_architecture() {
    let mut places = Vec::new();
    for (folder, dependencies) in crates() {
        for (prefix, forbidden, why) in FORBIDDEN {
            let inside = folder == prefix.trim_end_matches('/')
                || (prefix.ends_with('/') && folder.starts_with(prefix));
            for dependency in dependencies.iter().filter(|name| inside && forbidden.contains(&name.as_str()))
            {
                places.push(format!("{folder} -> {dependency}: {why}"));
            }
        }
        let production = !folder.starts_with("tests/") && !folder.starts_with("models/");
        if production && folder != "cmd" && dependencies.iter().any(|name| name == "keelson-models") {
            places.push(format!("{folder} -> keelson-models: only the binary has the models"));
        }
        for dependency in dependencies.iter().filter(|name| production && TEST_ONLY.contains(&name.as_str()))
        {
            places.push(format!("{folder} -> {dependency}: production depends on test code"));
        }
    }
    fail(
        "forbidden dependency",
        "move the code to the crate where it belongs, or meet at a seam (docs/architecture.md)",
        &places,
    );
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let places: Vec<String> = files(&root(), "rs")
        .into_iter()
        .filter(|path| !fs::read_to_string(path).is_ok_and(|text| text.trim_start().starts_with("//!")))
        .map(|path| shown(&path))
        .collect();
    fail(
        "no `//!` header",
        "say in a sentence or three what the file is for, its order, its hazards",
        &places,
    );
}

#[test]
fn files_stay_readable() {
    const MOST: usize = 1000;
    let places: Vec<String> = files(&root(), "rs")
        .into_iter()
        .filter_map(|path| {
            let lines = fs::read_to_string(&path).ok()?.lines().count();
            (lines > MOST).then(|| format!("{} has {lines} lines", shown(&path)))
        })
        .collect();
    fail("file too long", "split it by concept (around 800 lines is the aim)", &places);
}

#[test]
fn cores_read_no_clock_no_randomness_and_no_unordered_maps() {
    const CORES: &[&str] = &[
        "store/core",
        "apiserver/api",
        "apiserver/cel",
        "apiserver/core",
        "controllers/core",
        "scheduler/core",
        "nodeagent/core",
    ];
    const BANNED: &[&str] = &[
        "Instant::now",
        "SystemTime::now",
        "Timestamp::now",
        "Zoned::now",
        "std::env::var",
        "std::fs::",
        "std::net::Tcp",
        "HashMap<",
        "HashSet<",
        "HashMap::",
        "HashSet::",
        "thread_rng",
        "rand::",
    ];
    let mut places = Vec::new();
    for core in CORES {
        for path in files(&root().join(core).join("src"), "rs") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (number, line) in shipped.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for banned in BANNED.iter().filter(|banned| code.contains(**banned)) {
                    places.push(format!("{}:{}: {banned}", shown(&path), number + 1));
                }
            }
        }
    }
    fail(
        "impure core",
        "take time, randomness and the world as arguments; use BTreeMap or an indexed vector",
        &places,
    );
}

#[test]
fn nothing_pretends() {
    const SIGNS: &[&str] = &["todo!(", "unimplemented!(", "assert!(true)", "#[ignore]"];
    let mut places = Vec::new();
    for path in files(&root(), "rs").into_iter().filter(|path| !path.starts_with(root().join("tests/tidy"))) {
        for (number, line) in fs::read_to_string(&path).unwrap_or_default().lines().enumerate() {
            for sign in SIGNS.iter().filter(|sign| line.contains(**sign)) {
                places.push(format!("{}:{}: {sign}", shown(&path), number + 1));
            }
        }
    }
    fail(
        "a stub",
        "build it, or answer with the API's own error and say `no` in docs/compatibility.md",
        &places,
    );
}

/// Words in backticks in docs/ and README.md that look like a path of ours must exist.
#[test]
fn documents_name_only_what_exists() {
    let tops: Vec<String> = fs::read_dir(root())
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| format!("{}/", entry.file_name().to_string_lossy()))
        .collect();
    let mut documents = files(&root().join("docs"), "md");
    documents.push(root().join("README.md"));
    let mut places = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).unwrap_or_default();
        for word in text.split('`').skip(1).step_by(2) {
            let path = word.split([' ', ':']).next().unwrap_or_default();
            if tops.iter().any(|top| path.starts_with(top.as_str()))
                && !path.contains(['*', '<', '{'])
                && !root().join(path).exists()
            {
                places.push(format!("{}: {path}", shown(&document)));
            }
        }
    }
    fail("a document names a path that does not exist", "mend the document or restore the file", &places);
}

/// A row of docs/compatibility.md that says `yes` or `partly` names a test function that exists.
#[test]
fn compatibility_rows_are_proved_by_existing_tests() {
    let sources: String =
        files(&root(), "rs").into_iter().map(|path| fs::read_to_string(path).unwrap_or_default()).collect();
    let text = fs::read_to_string(root().join("docs/compatibility.md")).unwrap_or_default();
    let mut places = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [feature, answer, proof, ..] = cells.as_slice() else { continue };
        if !answer.starts_with("yes") && !answer.starts_with("partly") {
            continue;
        }
        let names: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            places.push(format!("{feature}: names no test"));
        }
        for name in names.into_iter().filter(|name| !sources.contains(&format!("fn {name}("))) {
            places.push(format!("{feature}: no test function {name}"));
        }
    }
    fail("an unproved row in docs/compatibility.md", "name the test that proves it, or answer `no`", &places);
}

/// Planted bugs (models/plant) are optional everywhere, never on by default, and as many as the catalogue says.
#[test]
fn planted_bugs_stay_out_of_what_is_shipped() {
    let mut places = Vec::new();
    for path in files(&root(), "toml").into_iter().filter(|path| path.ends_with("Cargo.toml")) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let suite = ["models", "tests", "xtask"].iter().any(|top| path.starts_with(root().join(top)));
        for line in text.lines().map(str::trim) {
            let always = line.starts_with("keelson-plant") && !line.contains("optional = true");
            if always && !suite && path != root().join("Cargo.toml") {
                places.push(format!("{}: keelson-plant is not optional", shown(&path)));
            }
            let turned_on = line.starts_with("default") || line.contains("features = [");
            if turned_on && line.contains("planted") {
                places.push(format!("{}: {line}", shown(&path)));
            }
        }
    }
    let catalogue = fs::read_to_string(root().join("models/plant/src/lib.rs")).unwrap_or_default();
    let numbers = |text: &str, before: &str| -> BTreeSet<u32> {
        let after = text.split(before).skip(1);
        after.filter_map(|rest| rest.split([',', ')']).next()?.trim().parse().ok()).collect()
    };
    let listed = numbers(&catalogue, "    bug(");
    let mut planted = BTreeSet::new();
    for path in files(&root(), "rs").into_iter().filter(|path| !path.starts_with(root().join("tests/tidy"))) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let found = numbers(&text, "keelson_plant::is(");
        let guards = text.matches("#[cfg(feature = \"planted\")]").count();
        if !found.is_empty() && guards == 0 {
            places.push(format!("{}: a planted bug without #[cfg(feature = \"planted\")]", shown(&path)));
        }
        planted.extend(found);
    }
    for number in listed.symmetric_difference(&planted) {
        places.push(format!("bug {number} is in the catalogue or in the code, not in both"));
    }
    fail(
        "a planted bug could be shipped, or is not accounted for",
        "make the dependency optional behind the feature `planted`, and list each bug in models/plant",
        &places,
    );
}
