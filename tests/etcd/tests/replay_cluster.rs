//! Recorded clusters of one and three members, at the wire.

use std::path::Path;

use keelson_etcd_tests::replay::{Case, Known, replay};

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_member"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorded_watch_sees_what_other_members_wrote() {
    let chosen = |case: &Case| case.id == "cluster-watch-lease-across";
    replay(binary(), "cluster-three.jsonl", chosen, &[], &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorded_learner_is_refused_promoted_and_removed_as_etcd_does() {
    let known = &[
        Known {
            case: "cluster-learner-flow",
            steps: &[21],
            always: true,
            why: "a fresh etcd member shows the storage version of its first file for a moment",
        },
        Known {
            case: "cluster-learner-flow",
            steps: &[27, 28, 29, 30, 31, 32],
            always: false,
            why: "plain HTTP is replayed whole elsewhere",
        },
        Known {
            case: "cluster-learner-flow",
            steps: &[41, 43],
            always: false,
            why: "the removed member must have answered for five seconds, which a slow machine may reach",
        },
    ];
    replay(binary(), "cluster-one.jsonl", |case| case.id == "cluster-learner-flow", &[], known).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_changes_of_three_members_are_judged_as_etcd_does() {
    let known = &[Known {
        case: "cluster-three",
        steps: &[13],
        always: false,
        why: "members must have answered for five seconds, which a slow machine may reach",
    }];
    replay(binary(), "cluster-three.jsonl", |case| case.id == "cluster-three", &[], known).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorded_loss_of_the_quorum_is_answered_as_etcd_does() {
    let known = &[Known {
        case: "cluster-no-quorum",
        steps: &[13, 14, 15, 16, 17],
        always: false,
        why: "plain HTTP is replayed whole elsewhere",
    }];
    replay(binary(), "cluster-three.jsonl", |case| case.id == "cluster-no-quorum", &[], known).await;
}
