//! Recorded Maintenance calls, at the wire.

use std::path::Path;

use keelson_etcd_tests::replay::{Known, replay};

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_member"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_maintenance_is_answered_as_etcd_does() {
    let known = &[Known {
        case: "maintenance-status-hash",
        steps: &[18],
        always: true,
        why: "at the compaction's own revision etcd answers the hash it took while compacting, under the compaction \
              before it",
    }];
    replay(binary(), "maintenance-rpc.jsonl", |_| true, &[], known).await;
}
