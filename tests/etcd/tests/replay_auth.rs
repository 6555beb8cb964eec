//! Recorded users, roles, tokens and permissions, at the wire.

use std::path::Path;

use keelson_etcd_tests::replay::{Case, Known, replay};

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_member"))
}

/// Hashing is not what is tested.
const CHEAP: &[&str] = &["--bcrypt-cost=4"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_auth_calls_are_answered_as_etcd_does() {
    replay(binary(), "auth-rpc.jsonl", |_| true, CHEAP, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_permissions_are_judged_as_etcd_does() {
    let matrix = |case: &Case| case.id.starts_with("auth-matrix");
    replay(binary(), "auth-matrix.jsonl", matrix, CHEAP, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_administration_is_root_s_alone() {
    let known = &[
        Known {
            case: "auth-admin-root",
            steps: &[40, 41, 42, 43, 44, 45, 46, 47, 50],
            always: true,
            why: "a voter added to a cluster of one costs etcd its quorum until it is started; here it votes when it has \
                  caught up, so the cluster goes on",
        },
        Known { case: "auth-admin-root", steps: &[48, 49], always: false, why: "as above" },
    ];
    let admin = |case: &Case| case.id.starts_with("auth-admin");
    replay(binary(), "auth-matrix.jsonl", admin, CHEAP, known).await;
}
