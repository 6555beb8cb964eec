//! Flags of the member itself: names, places, limits, background work.

use std::time::Duration;

use super::Kind::{Bool, Duration as Time, Int, Int64, List, Text, Uint, Uint32, Uint64};
use super::{Flag, flag, go, urls};

/// Gates of etcd 3.7, each with its default. What they switch is built in here, one way or the other.
const GATES: &[(&str, bool)] = &[
    ("CompactHashCheck", false),
    ("FastLeaseKeepAlive", true),
    ("InitialCorruptCheck", false),
    ("LeaseCheckpoint", false),
    ("LeaseCheckpointPersist", false),
    ("PriorityRequest", false),
    ("SetMemberLocalAddr", false),
    ("StopGRPCServiceOnDefrag", false),
    ("TxnModeWriteWithSharedBuffer", true),
];

fn gates(draft: &mut super::Draft, text: &str) -> Result<(), String> {
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let (name, value) = item.split_once('=').ok_or_else(|| format!("missing bool value for {item}"))?;
        let (name, value) = (name.trim(), value.trim());
        let value = go::truth(value).map_err(|_| {
            format!(
                "invalid value of {name}={value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax"
            )
        })?;
        let alpha_or_beta = match name {
            "AllAlpha" => Some(false),
            "AllBeta" => Some(true),
            _ => None,
        };
        if let Some(default) = alpha_or_beta {
            draft.gates.extend(GATES.iter().filter(|(_, on)| *on == default).map(|(gate, _)| (*gate, value)));
            continue;
        }
        let (gate, _) = GATES
            .iter()
            .find(|(gate, _)| *gate == name)
            .ok_or_else(|| format!("unrecognized feature gate: {name}"))?;
        draft.gates.insert(gate, value);
    }
    Ok(())
}

fn millis(value: &str) -> Result<Duration, String> {
    go::number::<u32>(value).map(|millis| Duration::from_millis(millis.into()))
}

pub(super) const FLAGS: &[Flag] = &[
    flag("name", Text, "default", "This member's name, unique in its cluster.", |d, v| {
        v.clone_into(&mut d.config.name);
        Ok(())
    }),
    flag("data-dir", Text, "${name}.etcd", "Where everything durable is kept.", |d, v| {
        v.clone_into(&mut d.data_dir);
        Ok(())
    }),
    flag("wal-dir", Text, "", "Where the Raft log is kept, when not below the data directory.", |d, v| {
        d.config.wal_dir = (!v.is_empty()).then(|| v.into());
        Ok(())
    }),
    flag(
        "config-file",
        Text,
        "",
        "YAML or JSON file that replaces all other flags and variables.",
        |d, v| {
            v.clone_into(&mut d.config_file);
            Ok(())
        },
    ),
    flag(
        "snapshot-count",
        Uint64,
        "10000",
        "Committed entries after which the Raft log is purged.",
        |d, v| {
            d.config.snapshot_count = go::number(v)?;
            Ok(())
        },
    ),
    flag("snapshot-catchup-entries", Uint64, "5000", "Entries kept for slow followers.", |d, v| {
        d.config.snapshot_catchup_entries = go::number(v)?;
        Ok(())
    }),
    flag("heartbeat-interval", Uint, "100", "Milliseconds between heartbeats.", |d, v| {
        d.config.heartbeat_interval = millis(v)?;
        Ok(())
    }),
    flag("election-timeout", Uint, "1000", "Milliseconds of silence before an election.", |d, v| {
        d.config.election_timeout = millis(v)?;
        Ok(())
    }),
    flag("initial-election-tick-advance", Bool, "true", "Fast-forward the first election.", |_, v| {
        go::truth(v).map(|_| ())
    }),
    flag("listen-peer-urls", Text, "http://localhost:2380", "Where peers are served.", |d, v| {
        d.config.listen_peer_urls = urls(v)?;
        Ok(())
    }),
    flag("listen-client-urls", Text, "http://localhost:2379", "Where clients are served.", |d, v| {
        d.config.listen_client_urls = urls(v)?;
        Ok(())
    }),
    flag(
        "listen-client-http-urls",
        Text,
        "",
        "Everything but gRPC; --listen-client-urls is then gRPC alone.",
        |d, v| {
            d.config.listen_client_http_urls = urls(v)?;
            Ok(())
        },
    ),
    flag("max-snapshots", Uint, "5", "Snapshot files kept.", |_, v| go::number::<u64>(v).map(|_| ())),
    flag("max-wals", Uint, "5", "Log files kept.", |_, v| go::number::<u64>(v).map(|_| ())),
    flag("memory-mlock", Bool, "false", "Keep the database file in memory.", |_, v| go::truth(v).map(|_| ())),
    flag(
        "quota-backend-bytes",
        Int64,
        "0",
        "Database size that raises NOSPACE; 0 = 2 GiB, negative = none.",
        |d, v| {
            d.config.quota_backend_bytes = go::number(v)?;
            Ok(())
        },
    ),
    flag("backend-bbolt-freelist-type", Text, "map", "Of the bbolt file.", |_, _| Ok(())),
    flag("backend-batch-interval", Time, "0s", "Longest a write waits for its batch.", |_, v| {
        go::duration(v).map(|_| ())
    }),
    flag("backend-batch-limit", Int, "0", "Writes in a batch.", |_, v| go::number::<i64>(v).map(|_| ())),
    flag("bootstrap-defrag-threshold-megabytes", Uint, "0", "Defragment at start beyond this.", |_, v| {
        go::number::<u64>(v).map(|_| ())
    }),
    flag("max-txn-ops", Uint, "128", "Operations in a transaction.", |d, v| {
        d.config.max_txn_ops = go::number(v)?;
        Ok(())
    }),
    flag("max-request-bytes", Uint, "1572864", "Largest request.", |d, v| {
        d.config.max_request_bytes = go::number(v)?;
        Ok(())
    }),
    flag("max-concurrent-streams", Uint32, "4294967295", "Streams of one client connection.", |d, v| {
        d.config.max_concurrent_streams = go::number(v).map_err(|error| match error.as_str() {
            "parse error" => format!("strconv.ParseUint: parsing {v:?}: invalid syntax"),
            _ => format!("strconv.ParseUint: parsing {v:?}: {error}"),
        })?;
        Ok(())
    }),
    flag("grpc-keepalive-min-time", Time, "5s", "Shortest time between a client's pings.", |_, v| {
        go::duration(v).map(|_| ())
    }),
    flag("grpc-keepalive-interval", Time, "2h0m0s", "Silence after which a client is pinged.", |d, v| {
        d.config.grpc_keepalive_interval = go::duration(v)?;
        Ok(())
    }),
    flag("grpc-keepalive-timeout", Time, "20s", "How long a pinged client may take.", |d, v| {
        d.config.grpc_keepalive_timeout = go::duration(v)?;
        Ok(())
    }),
    flag("socket-reuse-port", Bool, "false", "SO_REUSEPORT on listeners.", |d, v| {
        d.config.socket_reuse_port = go::truth(v)?;
        Ok(())
    }),
    flag("socket-reuse-address", Bool, "false", "SO_REUSEADDR on listeners; it is always set.", |_, v| {
        go::truth(v).map(|_| ())
    }),
    flag("enable-grpc-gateway", Bool, "true", "Answer the JSON gateway.", |d, v| {
        d.config.enable_grpc_gateway = go::truth(v)?;
        Ok(())
    }),
    flag("raft-read-timeout", Time, "5s", "Of a peer connection.", |_, v| go::duration(v).map(|_| ())),
    flag("raft-write-timeout", Time, "5s", "Of a peer connection.", |_, v| go::duration(v).map(|_| ())),
    flag("feature-gates", Text, "", "Gates as name=true,name=false.", gates),
    flag("cors", Text, "*", "Origins allowed to call from a browser.", |d, v| {
        d.config.cors = if v.is_empty() { vec!["*".to_owned()] } else { go::unique(v) };
        Ok(())
    }),
    flag("host-whitelist", List, "*", "Host names HTTP requests may be for without TLS.", |d, v| {
        d.config.host_whitelist = if v.is_empty() { vec!["*".to_owned()] } else { go::unique(v) };
        Ok(())
    }),
    flag("corrupt-check-time", Time, "0s", "Between comparisons of all members' hashes.", |d, v| {
        d.config.corrupt_check_time = go::duration(v)?;
        Ok(())
    }),
    flag(
        "compact-hash-check-time",
        Time,
        "1m0s",
        "Between comparisons of hashes kept at compactions.",
        |d, v| {
            d.compact_hash_check = go::duration(v)?;
            Ok(())
        },
    ),
    flag("compaction-batch-limit", Int, "1000", "Revisions deleted in one batch.", |_, v| {
        go::number::<i64>(v).map(|_| ())
    }),
    flag("compaction-sleep-interval", Time, "10ms", "Between batches.", |_, v| go::duration(v).map(|_| ())),
    flag("watch-progress-notify-interval", Time, "10m0s", "Between progress notifications.", |d, v| {
        // etcd's floor.
        d.config.watch_progress_notify_interval = go::duration(v)?.max(Duration::from_millis(100));
        Ok(())
    }),
    flag("downgrade-check-time", Time, "5s", "Between looks at a downgrade.", |_, v| {
        go::duration(v).map(|_| ())
    }),
    flag("max-learners", Int, "1", "Learners at a time.", |d, v| {
        d.config.max_learners = usize::try_from(go::number::<i64>(v)?).unwrap_or(0);
        Ok(())
    }),
    flag("unsafe-no-fsync", Bool, "false", "Acknowledge before data is on disk. Loses data.", |d, v| {
        d.config.unsafe_no_fsync = go::truth(v)?;
        Ok(())
    }),
];
