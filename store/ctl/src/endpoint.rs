//! endpoint health, status, hashkv.

use std::time::Instant;

use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::cluster_client::ClusterClient;
use keelson_store_proto::etcdserverpb::kv_client::KvClient;
use keelson_store_proto::etcdserverpb::maintenance_client::MaintenanceClient;

use crate::command::{Command, ERROR, Failure, fail};
use crate::flags::{Args, Flag, Kind, flag};
use crate::output::{Show, Table, header};
use crate::session::{Settings, explain};
use crate::text::{human_bytes, quote, show_duration};
use crate::{call, json, line};

/// Of `defrag` too.
pub const CLUSTER: &[Flag] =
    &[flag("cluster", Kind::Bool, "", "use all endpoints from the cluster member list")];

pub const ENDPOINT: Command = Command {
    long: "Endpoint related commands",
    group: 1,
    shared: CLUSTER,
    ..Command::new(
        "endpoint",
        "<subcommand>",
        "Endpoint related commands. Use `etcdctl endpoint --help` to see subcommands",
    )
};

pub const HEALTH: Command = Command {
    run: Some(|args| Box::pin(health(args))),
    ..Command::new(
        "endpoint health",
        "",
        "Checks the healthiness of endpoints specified in `--endpoints` flag",
    )
};

pub const STATUS: Command = Command {
    long: "When --write-out is set to simple, this command prints out comma-separated status lists for each endpoint.
The items in the lists are endpoint, ID, version, db size, is leader, is learner, raft term, raft index, raft applied index, errors.
",
    run: Some(|args| Box::pin(status(args))),
    ..Command::new(
        "endpoint status",
        "",
        "Prints out the status of endpoints specified in `--endpoints` flag",
    )
};

pub const HASHKV: Command = Command {
    flags: &[flag("rev", Kind::Int, "", "maximum revision to hash (default: latest revision)")],
    run: Some(|args| Box::pin(hashkv(args))),
    ..Command::new("endpoint hashkv", "", "Prints the KV history hash for each endpoint in --endpoints")
};

/// The endpoints given, or with `--cluster` those of all members.
///
/// # Errors
/// The member list cannot be had.
pub async fn endpoints(args: &Args, settings: &Settings) -> Result<Vec<String>, Failure> {
    if !args.on("cluster") {
        return Ok(settings.endpoints.clone());
    }
    let session = settings.clone().open().await?;
    let request = pb::MemberListRequest { linearizable: true };
    match call!(session, ClusterClient.member_list(request)).await {
        Ok(answer) => Ok(answer.members.into_iter().flat_map(|member| member.client_ur_ls).collect()),
        Err(status) => fail(
            ERROR,
            format!("failed to fetch endpoints from etcd cluster member list: {}", explain(&status)),
        ),
    }
}

struct Health {
    endpoint: String,
    healthy: bool,
    took: String,
    error: String,
}

async fn probe(settings: Settings) -> Health {
    let endpoint = settings.endpoints.join(",");
    let sick =
        |error: String| Health { endpoint: endpoint.clone(), healthy: false, took: String::new(), error };
    let session = match settings.open().await {
        Ok(session) => session,
        Err(failure) => return sick(failure.message),
    };
    let start = Instant::now();
    let request = pb::RangeRequest { key: "health".into(), ..pb::RangeRequest::default() };
    let answer = call!(session, KvClient.range(request)).await;
    let took = show_duration(start.elapsed());
    match answer {
        Ok(_) => {}
        // It went through consensus to be refused.
        Err(status) if status.message() == "etcdserver: permission denied" => {}
        Err(status) => return Health { took, ..sick(explain(&status)) },
    }
    let request = pb::AlarmRequest::default();
    let error = match call!(session, MaintenanceClient.alarm(request)).await {
        Ok(answer) if answer.alarms.is_empty() => String::new(),
        Ok(answer) => {
            let names = answer.alarms.iter().map(|alarm| format!("{} ", alarm.alarm().as_str_name()));
            format!("Active Alarm(s): {}", names.collect::<String>())
        }
        Err(_) => "Unable to fetch the alarm list".to_owned(),
    };
    Health { endpoint: endpoint.clone(), healthy: error.is_empty(), took, error }
}

async fn health(mut args: Args) -> Result<(), Failure> {
    let (settings, output) = Settings::new(&mut args).await?;
    let endpoints = endpoints(&args, &settings).await?;
    let probes = endpoints.iter().map(|endpoint| probe(settings.only(endpoint)));
    let found = Healths(futures::future::join_all(probes).await);
    output.show(&found)?;
    if found.0.iter().any(|health| !health.error.is_empty()) {
        return fail(ERROR, "unhealthy cluster");
    }
    Ok(())
}

struct Healths(Vec<Health>);

impl Show for Healths {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        for health in &self.0 {
            if health.error.is_empty() {
                let (endpoint, took) = (&health.endpoint, &health.took);
                line!(out, "{endpoint} is healthy: successfully committed proposal: took = {took}");
            } else {
                eprintln!("{} is unhealthy: failed to commit proposal: {}", health.endpoint, health.error);
            }
        }
    }

    fn fields(&self, out: &mut Vec<u8>, _: bool) -> bool {
        for health in &self.0 {
            line!(out, "\"Endpoint\" : {}", quote(health.endpoint.as_bytes()));
            line!(out, "\"Health\" : {}", health.healthy);
            line!(out, "\"Took\" : {}", health.took);
            line!(out, "\"Error\" : {}", health.error);
            line!(out, "");
        }
        true
    }

    fn json(&self, _: bool) -> Option<String> {
        let each = |health: &Health| {
            json::Object::default()
                .raw("endpoint", json::text(&health.endpoint))
                .raw("health", health.healthy.to_string())
                .raw("took", json::text(&health.took))
                .text("error", &health.error)
                .end()
        };
        Some(json::array(self.0.iter().map(each)))
    }

    fn table(&self) -> Option<Table> {
        let row = |health: &Health| {
            vec![
                health.endpoint.clone(),
                health.healthy.to_string(),
                health.took.clone(),
                health.error.clone(),
            ]
        };
        Some(Table {
            head: vec!["endpoint", "health", "took", "error"],
            rows: self.0.iter().map(row).collect(),
        })
    }
}

async fn status(mut args: Args) -> Result<(), Failure> {
    let (settings, output) = Settings::new(&mut args).await?;
    let mut found = Statuses(Vec::new());
    let mut failed = false;
    for endpoint in endpoints(&args, &settings).await? {
        let session = settings.only(&endpoint).open().await?;
        match call!(session, MaintenanceClient.status(pb::StatusRequest {})).await {
            Ok(answer) => found.0.push((endpoint, answer)),
            Err(status) => {
                eprintln!("Failed to get the status of endpoint {endpoint} ({})", explain(&status));
                failed = true;
            }
        }
    }
    output.show(&found)?;
    if failed { fail(ERROR, "") } else { Ok(()) }
}

struct Statuses(Vec<(String, pb::StatusResponse)>);

const STATUS_HEAD: [&str; 16] = [
    "endpoint",
    "ID",
    "version",
    "storage version",
    "db size",
    "in use",
    "percentage not in use",
    "quota",
    "is leader",
    "is learner",
    "raft term",
    "raft index",
    "raft applied index",
    "errors",
    "downgrade target version",
    "downgrade enabled",
];

fn status_row(endpoint: &str, status: &pb::StatusResponse) -> Vec<String> {
    let member = status.header.as_ref().map_or(0, |header| header.member_id);
    let size = |bytes: i64| human_bytes(u64::try_from(bytes).unwrap_or(0));
    let unused = 100 - status.db_size_in_use * 100 / status.db_size.max(1);
    let downgrade = status.downgrade_info.clone().unwrap_or_default();
    vec![
        endpoint.to_owned(),
        format!("{member:x}"),
        status.version.clone(),
        status.storage_version.clone(),
        size(status.db_size),
        size(status.db_size_in_use),
        format!("{unused}%"),
        size(status.db_size_quota),
        (status.leader == member).to_string(),
        status.is_learner.to_string(),
        status.raft_term.to_string(),
        status.raft_index.to_string(),
        status.raft_applied_index.to_string(),
        status.errors.join(", "),
        downgrade.target_version,
        downgrade.enabled.to_string(),
    ]
}

fn status_json(status: &pb::StatusResponse) -> String {
    let downgrade = status.downgrade_info.as_ref().map(|info| {
        json::Object::default()
            .flag("enabled", info.enabled)
            .text("targetVersion", &info.target_version)
            .end()
    });
    json::answer(status.header.as_ref())
        .text("version", &status.version)
        .number("dbSize", status.db_size)
        .number("leader", status.leader)
        .number("raftIndex", status.raft_index)
        .number("raftTerm", status.raft_term)
        .number("raftAppliedIndex", status.raft_applied_index)
        .list("errors", &status.errors, |error| json::text(error))
        .number("dbSizeInUse", status.db_size_in_use)
        .flag("isLearner", status.is_learner)
        .text("storageVersion", &status.storage_version)
        .number("dbSizeQuota", status.db_size_quota)
        .maybe("downgradeInfo", downgrade)
        .end()
}

fn status_fields(out: &mut Vec<u8>, endpoint: &str, status: &pb::StatusResponse, hex: bool) {
    let downgrade = status.downgrade_info.clone().unwrap_or_default();
    header(out, status.header.as_ref(), hex);
    line!(out, "\"Version\" : {}", quote(status.version.as_bytes()));
    line!(out, "\"StorageVersion\" : {}", quote(status.storage_version.as_bytes()));
    line!(out, "\"DBSize\" : {}", status.db_size);
    line!(out, "\"DBSizeInUse\" : {}", status.db_size_in_use);
    line!(out, "\"DBSizeQuota\" : {}", status.db_size_quota);
    line!(out, "\"Leader\" : {}", status.leader);
    line!(out, "\"IsLearner\" : {}", status.is_learner);
    line!(out, "\"RaftIndex\" : {}", status.raft_index);
    line!(out, "\"RaftTerm\" : {}", status.raft_term);
    line!(out, "\"RaftAppliedIndex\" : {}", status.raft_applied_index);
    line!(out, "\"Errors\" : [{}]", status.errors.join(" "));
    line!(out, "\"Endpoint\" : {}", quote(endpoint.as_bytes()));
    line!(out, "\"DowngradeTargetVersion\" : {}", quote(downgrade.target_version.as_bytes()));
    line!(out, "\"DowngradeEnabled\" : {}", downgrade.enabled);
    line!(out, "");
}

impl Show for Statuses {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        self.0
            .iter()
            .for_each(|(endpoint, status)| line!(out, "{}", status_row(endpoint, status).join(", ")));
    }

    fn fields(&self, out: &mut Vec<u8>, hex: bool) -> bool {
        self.0.iter().for_each(|(endpoint, status)| status_fields(out, endpoint, status, hex));
        true
    }

    fn json(&self, _: bool) -> Option<String> {
        // Go writes a list that was never begun as null.
        if self.0.is_empty() {
            return Some("null".to_owned());
        }
        let each = |(endpoint, status): &(String, pb::StatusResponse)| {
            json::Object::default()
                .raw("Endpoint", json::text(endpoint))
                .raw("Status", status_json(status))
                .end()
        };
        Some(json::array(self.0.iter().map(each)))
    }

    fn table(&self) -> Option<Table> {
        let rows = self.0.iter().map(|(endpoint, status)| status_row(endpoint, status)).collect();
        Some(Table { head: STATUS_HEAD.to_vec(), rows })
    }
}

async fn hashkv(mut args: Args) -> Result<(), Failure> {
    let revision = args.int("rev");
    let (settings, output) = Settings::new(&mut args).await?;
    let mut found = Hashes(Vec::new());
    let mut last = None;
    for endpoint in endpoints(&args, &settings).await? {
        let session = settings.only(&endpoint).open().await?;
        match call!(session, MaintenanceClient.hash_kv(pb::HashKvRequest { revision })).await {
            Ok(answer) => found.0.push((endpoint, answer)),
            Err(status) => {
                eprintln!("Failed to get the hash of endpoint {endpoint} ({})", explain(&status));
                last = Some(explain(&status));
            }
        }
    }
    output.show(&found)?;
    last.map_or(Ok(()), |error| fail(ERROR, error))
}

struct Hashes(Vec<(String, pb::HashKvResponse)>);

impl Show for Hashes {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        for (endpoint, answer) in &self.0 {
            line!(out, "{endpoint}, {}, {}", answer.hash, answer.hash_revision);
        }
    }

    fn fields(&self, out: &mut Vec<u8>, hex: bool) -> bool {
        for (endpoint, answer) in &self.0 {
            header(out, answer.header.as_ref(), hex);
            line!(out, "\"Endpoint\" : {}", quote(endpoint.as_bytes()));
            line!(out, "\"Hash\" : {}", answer.hash);
            line!(out, "\"HashRevision\" : {}", answer.hash_revision);
            line!(out, "");
        }
        true
    }

    fn json(&self, _: bool) -> Option<String> {
        if self.0.is_empty() {
            return Some("null".to_owned());
        }
        let each = |(endpoint, answer): &(String, pb::HashKvResponse)| {
            let hash = json::answer(answer.header.as_ref())
                .number("hash", answer.hash)
                .number("compact_revision", answer.compact_revision)
                .number("hash_revision", answer.hash_revision)
                .end();
            json::Object::default().raw("Endpoint", json::text(endpoint)).raw("HashKV", hash).end()
        };
        Some(json::array(self.0.iter().map(each)))
    }

    fn table(&self) -> Option<Table> {
        let row = |(endpoint, answer): &(String, pb::HashKvResponse)| {
            vec![endpoint.clone(), answer.hash.to_string(), answer.hash_revision.to_string()]
        };
        Some(Table {
            head: vec!["endpoint", "hash", "hash_revision"],
            rows: self.0.iter().map(row).collect(),
        })
    }
}
