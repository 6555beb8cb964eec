//! alarm, defrag, downgrade, snapshot save.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::alarm_request::AlarmAction;
use keelson_store_proto::etcdserverpb::downgrade_request::DowngradeAction;
use keelson_store_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use prost::Message as _;

use crate::command::{Command, ERROR, Failure, INTERRUPTED, bad_args, fail};
use crate::endpoint::{CLUSTER, endpoints};
use crate::flags::Args;
use crate::output::{Show, header, id, say};
use crate::session::{Session, Settings, explain};
use crate::text::{human_bytes, show_duration};
use crate::{ask, call, json, line};

pub const ALARM: Command = Command {
    long: "Alarm related commands",
    group: 1,
    ..Command::new(
        "alarm",
        "<subcommand>",
        "Alarm related commands. Use `etcdctl alarm --help` to see subcommands",
    )
};

pub const ALARM_DISARM: Command = Command {
    run: Some(|args| Box::pin(alarm(args, AlarmAction::Deactivate))),
    ..Command::new("alarm disarm", "", "Disarms all alarms")
};

pub const ALARM_LIST: Command = Command {
    run: Some(|args| Box::pin(alarm(args, AlarmAction::Get))),
    ..Command::new("alarm list", "", "Lists all alarms")
};

pub const DEFRAG: Command = Command {
    group: 1,
    flags: CLUSTER,
    run: Some(|args| Box::pin(defrag(args))),
    ..Command::new("defrag", "", "Defragments the storage of the etcd members with given endpoints")
};

pub const DOWNGRADE: Command = Command {
    long: "Downgrade related commands",
    group: 1,
    ..Command::new(
        "downgrade",
        "<TARGET_VERSION>",
        "Downgrade related commands. Use `etcdctl downgrade --help` to see subcommands",
    )
};

pub const DOWNGRADE_VALIDATE: Command = Command {
    run: Some(|args| Box::pin(downgrade(args, DowngradeAction::Validate))),
    ..Command::new(
        "downgrade validate",
        "<TARGET_VERSION>",
        "Validate downgrade capability before starting downgrade",
    )
};

pub const DOWNGRADE_ENABLE: Command = Command {
    run: Some(|args| Box::pin(downgrade(args, DowngradeAction::Enable))),
    ..Command::new("downgrade enable", "<TARGET_VERSION>", "Start a downgrade action to cluster")
};

pub const DOWNGRADE_CANCEL: Command = Command {
    run: Some(|args| Box::pin(downgrade(args, DowngradeAction::Cancel))),
    ..Command::new("downgrade cancel", "", "Cancel the ongoing downgrade action to cluster")
};

const SNAPSHOT_EXAMPLES: &str = "  # Save snapshot to a given file
  etcdctl snapshot save /backup/etcd-snapshot.db
  
  # Get snapshot from given address and save it to file
  etcdctl snapshot save --endpoints=127.0.0.1:3000 /backup/etcd-snapshot.db
  
  # Get snapshot from given address with certificates
  etcdctl --endpoints=https://127.0.0.1:2379 --cacert=/etc/etcd/ca.crt --cert=/etc/etcd/etcd.crt --key=/etc/etcd/etcd.key snapshot save /backup/etcd-snapshot.db
  
  # Get snapshot with certain user and password
  etcdctl --user=root --password=password123 snapshot save /backup/etcd-snapshot.db
  
  # Get snapshot from given address with timeout
  etcdctl --endpoints=https://127.0.0.1:2379 --dial-timeout=20s snapshot save /backup/etcd-snapshot.db
  
  # Save snapshot with desirable time format
  etcdctl snapshot save /mnt/backup/etcd/backup_$(date +%Y%m%d_%H%M%S).db";

pub const SNAPSHOT: Command = Command {
    example: SNAPSHOT_EXAMPLES,
    group: 1,
    ..Command::new("snapshot", "<subcommand>", "Manages etcd node snapshots")
};

pub const SNAPSHOT_SAVE: Command = Command {
    example: SNAPSHOT_EXAMPLES,
    run: Some(|args| Box::pin(snapshot_save(args))),
    ..Command::new("snapshot save", "<filename>", "Stores an etcd node backend snapshot to a given file")
};

async fn alarm(mut args: Args, action: AlarmAction) -> Result<(), Failure> {
    if !args.words.is_empty() {
        let name = if action == AlarmAction::Get { "list" } else { "disarm" };
        return bad_args(format!("alarm {name} command accepts no arguments"));
    }
    let (settings, output) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    if action == AlarmAction::Get {
        let answer = ask!(session, MaintenanceClient.alarm(pb::AlarmRequest::default())).await?;
        return output.show(&answer);
    }
    // All alarms: each that is there, as etcd's client does.
    let all = ask!(session, MaintenanceClient.alarm(pb::AlarmRequest::default())).await?;
    let mut gone = pb::AlarmResponse { header: all.header, alarms: Vec::new() };
    for alarm in all.alarms {
        let request =
            pb::AlarmRequest { action: action.into(), member_id: alarm.member_id, alarm: alarm.alarm };
        let answer = ask!(session, MaintenanceClient.alarm(request)).await?;
        gone.alarms.extend(answer.alarms);
    }
    output.show(&gone)
}

impl Show for pb::AlarmResponse {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        for alarm in &self.alarms {
            line!(out, "memberID:{} alarm:{} ", alarm.member_id, alarm.alarm().as_str_name());
        }
    }

    fn fields(&self, out: &mut Vec<u8>, hex: bool) -> bool {
        header(out, self.header.as_ref(), hex);
        for alarm in &self.alarms {
            line!(out, "\"MemberID\" : {}", id(alarm.member_id, hex));
            line!(out, "\"AlarmType\" : {}", alarm.alarm().as_str_name());
            line!(out, "");
        }
        true
    }

    fn json(&self, _: bool) -> Option<String> {
        let each = |alarm: &pb::AlarmMember| {
            json::Object::default().number("memberID", alarm.member_id).number("alarm", alarm.alarm).end()
        };
        Some(json::answer(self.header.as_ref()).list("alarms", &self.alarms, each).end())
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

/// Defragments one endpoint.
///
/// # Errors
/// The server's.
pub async fn defragment(session: &Session) -> Result<pb::DefragmentResponse, tonic::Status> {
    call!(session, MaintenanceClient.defragment(pb::DefragmentRequest {})).await
}

async fn defrag(mut args: Args) -> Result<(), Failure> {
    let (settings, _) = Settings::new(&mut args).await?;
    let mut failed = false;
    for endpoint in endpoints(&args, &settings).await? {
        let session = settings.only(&endpoint).open().await?;
        let start = Instant::now();
        let answer = defragment(&session).await;
        let took = show_duration(start.elapsed());
        match answer {
            Ok(_) => say(format!("Finished defragmenting etcd member[{endpoint}]. took {took}"))?,
            Err(status) => {
                let error = explain(&status);
                eprintln!("Failed to defragment etcd member[{endpoint}]. took {took}. ({error})");
                failed = true;
            }
        }
    }
    if failed { fail(ERROR, "") } else { Ok(()) }
}

struct Downgraded {
    what: &'static str,
    answer: pb::DowngradeResponse,
}

impl Show for Downgraded {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        line!(out, "Downgrade {} success, cluster version {}", self.what, self.answer.version);
    }

    fn json(&self, _: bool) -> Option<String> {
        Some(json::answer(self.answer.header.as_ref()).text("version", &self.answer.version).end())
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.answer.encode_to_vec())
    }
}

async fn downgrade(mut args: Args, action: DowngradeAction) -> Result<(), Failure> {
    let version = match (action, args.words.as_slice()) {
        (DowngradeAction::Cancel, _) => String::new(),
        (_, []) => return bad_args("TARGET_VERSION not provided"),
        (_, [version]) if version.is_empty() => return bad_args("target version not provided"),
        (_, [version]) => version.clone(),
        _ => return bad_args("too many arguments"),
    };
    let (settings, output) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    let request = pb::DowngradeRequest { action: action.into(), version };
    let answer = ask!(session, MaintenanceClient.downgrade(request)).await?;
    let what = match action {
        DowngradeAction::Validate => "validate",
        DowngradeAction::Enable => "enable",
        DowngradeAction::Cancel => "cancel",
    };
    output.show(&Downgraded { what, answer })
}

fn log(message: &str, fields: &[(&str, &str)]) {
    let rest: String = fields
        .iter()
        .map(|(key, value)| format!(",{}:{}", serde_json::Value::from(*key), serde_json::Value::from(*value)))
        .collect();
    let message = serde_json::Value::from(message);
    eprintln!(
        "{{\"level\":\"info\",\"ts\":\"{}\",\"caller\":\"ctl/maintenance.rs:{}\",\"msg\":{message}{rest}}}",
        jiff::Timestamp::now(),
        std::line!()
    );
}

async fn snapshot_save(mut args: Args) -> Result<(), Failure> {
    let [path] = args.words.as_slice() else {
        return bad_args("snapshot save expects one argument <filename>");
    };
    let path = PathBuf::from(path);
    // Only a timeout that was asked for ends a snapshot.
    let limited = args.given("command-timeout");
    let (settings, _) = Settings::new(&mut args).await?;
    let settings = Settings { timeout: settings.timeout.filter(|_| limited), ..settings };
    if settings.endpoints.len() != 1 {
        let endpoints = settings.endpoints.join(" ");
        return fail(
            INTERRUPTED,
            format!("snapshot must be requested to one selected node, not multiple [{endpoints}]"),
        );
    }
    let mut part = path.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    let work = download(settings.clone(), &part, &path);
    let saved = match settings.timeout {
        Some(limit) => tokio::time::timeout(limit, work)
            .await
            .unwrap_or_else(|_| fail(INTERRUPTED, "context deadline exceeded")),
        None => work.await,
    };
    // Gone already when all went well.
    let _ = std::fs::remove_file(&part);
    let version = saved?;
    say(format!("Snapshot saved at {}", path.display()))?;
    if version.is_empty() { Ok(()) } else { say(format!("Server version {version}")) }
}

async fn download(settings: Settings, part: &PathBuf, path: &PathBuf) -> Result<String, Failure> {
    use std::os::unix::fs::OpenOptionsExt;
    let io = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| Failure { code: INTERRUPTED, message: format!("{what} ({error})") }
    };
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(part)
        .map_err(io(&format!("could not open {}", part.display())))?;
    log("created temporary db file", &[("path", &part.display().to_string())]);
    let start = Instant::now();
    let endpoint = settings.endpoints[0].clone();
    let session = Settings { timeout: None, ..settings }.open().await?;
    let broken = |status: tonic::Status| Failure { code: INTERRUPTED, message: explain(&status) };
    let opened = call!(session, MaintenanceClient.snapshot(pb::SnapshotRequest {})).await;
    let mut stream = opened.map_err(broken)?;
    log("opened snapshot stream; downloading", &[]);
    log("fetching snapshot", &[("endpoint", &endpoint)]);
    let (mut size, mut version) = (0u64, String::new());
    while let Some(chunk) = stream.message().await.map_err(broken)? {
        file.write_all(&chunk.blob).map_err(io("could not write snapshot"))?;
        size += chunk.blob.len() as u64;
        if !chunk.version.is_empty() {
            version = chunk.version;
        }
    }
    log("completed snapshot read; closing", &[]);
    // Pages of 512 bytes, and the checksum after them.
    if size % 512 != 32 {
        return fail(INTERRUPTED, format!("sha256 checksum not found [bytes: {size}]"));
    }
    file.sync_all().map_err(io("could not fsync snapshot"))?;
    let took = show_duration(start.elapsed());
    let fields = [
        ("endpoint", endpoint.as_str()),
        ("size", &human_bytes(size)),
        ("took", &took),
        ("etcd-version", &version),
    ];
    log("fetched snapshot", &fields);
    std::fs::rename(part, path).map_err(io(&format!(
        "could not rename {} to {}",
        part.display(),
        path.display()
    )))?;
    log("saved", &[("path", &path.display().to_string())]);
    Ok(version)
}
