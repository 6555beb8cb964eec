//! lock and elect: a lease, a key of the lease's name below the lock's, and waiting for those that came before.

use std::time::Duration;

use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_store_proto::etcdserverpb::kv_client::KvClient;
use keelson_store_proto::etcdserverpb::lease_client::LeaseClient;
use keelson_store_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelson_store_proto::etcdserverpb::request_op::Request;
use keelson_store_proto::etcdserverpb::response_op::Response;
use keelson_store_proto::etcdserverpb::watch_client::WatchClient;
use keelson_store_proto::etcdserverpb::watch_request::RequestUnion;
use keelson_store_proto::mvccpb::KeyValue;
use keelson_store_proto::mvccpb::event::EventType;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::ReceiverStream;

use crate::command::{Command, ERROR, Failure, bad_args, fail};
use crate::flags::{Args, Kind, flag, short};
use crate::kv::Got;
use crate::output::Output;
use crate::session::{Session, Settings, explain};
use crate::text::prefix_end;
use crate::{ask, call, lease};

pub const LOCK: Command = Command {
    group: 2,
    flags: &[flag("ttl", Kind::Int, "10", "timeout for session")],
    run: Some(|args| Box::pin(lock(args))),
    ..Command::new("lock", "<lockname> [exec-command arg1 arg2 ...]", "Acquires a named lock")
};

pub const ELECT: Command = Command {
    group: 2,
    flags: &[short("listen", 'l', Kind::Bool, "", "observation mode")],
    run: Some(|args| Box::pin(elect(args))),
    ..Command::new("elect", "<election-name> [proposal]", "Observes and participates in leader election")
};

/// etcd's default of a session, seconds.
const SESSION: i64 = 60;

/// A lease kept alive in the background, which ends with it.
struct Held {
    session: Session,
    lease: i64,
    /// Ends when the lease is lost.
    alive: tokio::task::JoinHandle<()>,
}

impl Held {
    async fn new(session: Session, ttl: i64) -> Result<Held, Failure> {
        let granted = ask!(session, LeaseClient.lease_grant(pb::LeaseGrantRequest { ttl, id: 0 })).await?;
        let keeper = session.clone();
        let (id, third) =
            (granted.id, Duration::from_millis(u64::try_from(granted.ttl).unwrap_or(1) * 1000 / 3));
        let alive = tokio::spawn(async move {
            let mut silent = Duration::ZERO;
            // A server that does not answer may come back before the lease has run out.
            while silent < third * 3 {
                tokio::time::sleep(third).await;
                match lease::once(&keeper, id).await {
                    Ok(answer) if answer.ttl <= 0 => return,
                    Ok(_) => silent = Duration::ZERO,
                    Err(_) => silent += third,
                }
            }
        });
        Ok(Held { session, lease: granted.id, alive })
    }

    /// Puts our key below `prefix` unless it is there, and answers it as it stands.
    async fn enter(&self, prefix: &str, value: &str) -> Result<(Vec<u8>, i64), Failure> {
        let key = format!("{prefix}/{:x}", self.lease).into_bytes();
        let compare = pb::Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Create.into(),
            key: key.clone().into(),
            target_union: Some(TargetUnion::CreateRevision(0)),
            ..pb::Compare::default()
        };
        let put = pb::PutRequest {
            key: key.clone().into(),
            value: value.to_owned().into(),
            lease: self.lease,
            ..pb::PutRequest::default()
        };
        let get = pb::RangeRequest { key: key.clone().into(), ..pb::RangeRequest::default() };
        let op = |request| pb::RequestOp { request: Some(request) };
        let request = pb::TxnRequest {
            compare: vec![compare],
            success: vec![op(Request::RequestPut(put))],
            failure: vec![op(Request::RequestRange(get))],
        };
        let answer = ask!(self.session, KvClient.txn(request)).await?;
        let created = match answer.responses.first().and_then(|op| op.response.as_ref()) {
            Some(Response::ResponseRange(found)) => found.kvs.first().map_or(0, |kv| kv.create_revision),
            _ => answer.header.as_ref().map_or(0, |header| header.revision),
        };
        Ok((key, created))
    }

    /// Waits until nobody is left who came before `created`.
    async fn wait_for_turn(&self, prefix: &str, created: i64) -> Result<(), Failure> {
        let start = format!("{prefix}/").into_bytes();
        loop {
            let request = pb::RangeRequest {
                range_end: prefix_end(&start).into(),
                key: start.clone().into(),
                limit: 1,
                sort_order: SortOrder::Descend.into(),
                sort_target: SortTarget::Create.into(),
                max_create_revision: created - 1,
                ..pb::RangeRequest::default()
            };
            let found = ask!(self.session, KvClient.range(request)).await?;
            let Some(before) = found.kvs.first() else { return Ok(()) };
            let revision = found.header.as_ref().map_or(0, |header| header.revision);
            self.until_deleted(before, revision).await?;
        }
    }

    async fn until_deleted(&self, kv: &KeyValue, revision: i64) -> Result<(), Failure> {
        let mut watch = changes(&self.session, kv.key.to_vec(), Vec::new(), revision + 1).await?;
        while let Some(answer) = watch.next().await? {
            if answer.events.iter().any(|event| event.r#type() == EventType::Delete) {
                return Ok(());
            }
        }
        fail(ERROR, "lost watcher waiting for delete")
    }

    async fn leave(&self, key: &[u8]) -> Result<(), Failure> {
        let request =
            pb::DeleteRangeRequest { key: key.to_vec().into(), ..pb::DeleteRangeRequest::default() };
        ask!(self.session, KvClient.delete_range(request)).await?;
        // It would end by itself; nobody shall wait for that.
        let _ =
            call!(self.session, LeaseClient.lease_revoke(pb::LeaseRevokeRequest { id: self.lease })).await;
        Ok(())
    }

    async fn show(&self, key: &[u8], output: Output, lost: &str) -> Result<(), Failure> {
        let request = pb::RangeRequest { key: key.to_vec().into(), ..pb::RangeRequest::default() };
        let answer = ask!(self.session, KvClient.range(request)).await?;
        if answer.kvs.is_empty() {
            return fail(ERROR, lost);
        }
        output.show(&Got { answer: &answer, value_only: false })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.alive.abort();
    }
}

/// A watch of one range; dropped with its stream.
struct Changes {
    _requests: tokio::sync::mpsc::Sender<pb::WatchRequest>,
    answers: tonic::Streaming<pb::WatchResponse>,
}

impl Changes {
    async fn next(&mut self) -> Result<Option<pb::WatchResponse>, Failure> {
        self.answers.message().await.or_else(|status| fail(ERROR, explain(&status)))
    }
}

async fn changes(
    session: &Session,
    key: Vec<u8>,
    range_end: Vec<u8>,
    revision: i64,
) -> Result<Changes, Failure> {
    let create = pb::WatchCreateRequest {
        key: key.into(),
        range_end: range_end.into(),
        start_revision: revision,
        ..pb::WatchCreateRequest::default()
    };
    let (requests, outgoing) = tokio::sync::mpsc::channel(1);
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    requests.send(request).await.or_else(|_| fail(ERROR, "the watch stream was never opened"))?;
    let mut client = WatchClient::new(session.service()).max_decoding_message_size(usize::MAX);
    match client.watch(ReceiverStream::new(outgoing)).await {
        Ok(answer) => Ok(Changes { _requests: requests, answers: answer.into_inner() }),
        Err(status) => fail(ERROR, explain(&status)),
    }
}

/// SIGINT or SIGTERM.
async fn interrupted() -> Result<(), Failure> {
    let broken = |error: std::io::Error| Failure { code: ERROR, message: error.to_string() };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(broken)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(broken)?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn lock(mut args: Args) -> Result<(), Failure> {
    let Some((name, command)) =
        args.words.clone().split_first().map(|(name, rest)| (name.clone(), rest.to_vec()))
    else {
        return bad_args("lock takes a lock name argument and an optional command to execute");
    };
    let ttl = args.int("ttl");
    let (settings, output) = Settings::new(&mut args).await?;
    let mut held = Held::new(settings.open().await?, ttl).await?;
    let (key, created) = held.enter(&name, "").await?;
    tokio::select! {
        turn = held.wait_for_turn(&name, created) => turn?,
        stop = interrupted() => {
            stop?;
            held.leave(&key).await?;
            return fail(ERROR, "context canceled");
        }
    }
    if !command.is_empty() {
        let ended = execute(&command, &key, created).await;
        let left = held.leave(&key).await;
        ended?;
        return left;
    }
    held.show(&key, output, "lock lost on init").await?;
    tokio::select! {
        stop = interrupted() => {
            stop?;
            held.leave(&key).await
        }
        _ = &mut held.alive => fail(ERROR, "session expired"),
    }
}

/// Runs a command that holds the lock; its exit code becomes ours.
async fn execute(command: &[String], key: &[u8], revision: i64) -> Result<(), Failure> {
    let status = tokio::process::Command::new(&command[0])
        .args(&command[1..])
        .env("ETCD_LOCK_KEY", String::from_utf8_lossy(key).as_ref())
        .env("ETCD_LOCK_REV", revision.to_string())
        .status()
        .await;
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let code = status.code().unwrap_or(1);
            fail(u8::try_from(code).unwrap_or(ERROR), format!("exit status {code}"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            fail(ERROR, format!("exec: {:?}: executable file not found in $PATH", command[0]))
        }
        Err(error) => fail(ERROR, error.to_string()),
    }
}

async fn elect(mut args: Args) -> Result<(), Failure> {
    let listen = args.on("listen");
    let (name, proposal) = match (args.words.as_slice(), listen) {
        ([name], true) => (name.clone(), None),
        ([_], false) => return bad_args("no proposal argument but -l not set"),
        ([_, _], true) => return bad_args("proposal given but -l is set"),
        ([name, proposal], false) => (name.clone(), Some(proposal.clone())),
        _ => {
            return bad_args("elect takes one election name argument and an optional proposal argument");
        }
    };
    let (settings, output) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    match proposal {
        None => tokio::select! {
            lost = observe(&session, &name, output) => lost,
            stop = interrupted() => stop,
        },
        Some(proposal) => campaign(session, &name, &proposal, output).await,
    }
}

async fn campaign(session: Session, name: &str, proposal: &str, output: Output) -> Result<(), Failure> {
    let mut held = Held::new(session, SESSION).await?;
    let (key, created) = held.enter(name, proposal).await?;
    tokio::select! {
        turn = held.wait_for_turn(name, created) => turn?,
        stop = interrupted() => {
            stop?;
            held.leave(&key).await?;
            return fail(ERROR, "context canceled");
        }
    }
    held.show(&key, output, "election: leader lost").await?;
    tokio::select! {
        stop = interrupted() => {
            stop?;
            held.leave(&key).await
        }
        _ = &mut held.alive => fail(ERROR, "elect: session expired"),
    }
}

/// Prints the leader, and each who follows, and what each proclaims.
async fn observe(session: &Session, name: &str, output: Output) -> Result<(), Failure> {
    let start = format!("{name}/").into_bytes();
    loop {
        let request = pb::RangeRequest {
            range_end: prefix_end(&start).into(),
            key: start.clone().into(),
            limit: 1,
            sort_order: SortOrder::Ascend.into(),
            sort_target: SortTarget::Create.into(),
            ..pb::RangeRequest::default()
        };
        let found = ask!(session, KvClient.range(request)).await?;
        let revision = found.header.as_ref().map_or(0, |header| header.revision);
        let Some(leader) = found.kvs.first().cloned() else {
            let mut watch = changes(session, start.clone(), prefix_end(&start), revision + 1).await?;
            while let Some(answer) = watch.next().await? {
                if answer.events.iter().any(|event| event.r#type() == EventType::Put) {
                    break;
                }
            }
            continue;
        };
        output.show(&Got { answer: &found, value_only: false })?;
        follow(session, &leader, revision, output).await?;
    }
}

/// Prints what a leader proclaims until it is one no more.
async fn follow(session: &Session, leader: &KeyValue, revision: i64, output: Output) -> Result<(), Failure> {
    let mut watch = changes(session, leader.key.to_vec(), Vec::new(), revision + 1).await?;
    while let Some(answer) = watch.next().await? {
        if answer.canceled {
            return Ok(());
        }
        for event in answer.events {
            if event.r#type() == EventType::Delete {
                return Ok(());
            }
            let kvs = event.kv.into_iter().collect();
            let answer = pb::RangeResponse { header: answer.header, kvs, ..pb::RangeResponse::default() };
            output.show(&Got { answer: &answer, value_only: false })?;
        }
    }
    fail(ERROR, "elect: observer lost")
}
