//! make-mirror: copies a prefix to another cluster and follows its changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::kv_client::KvClient;
use keelson_store_proto::etcdserverpb::request_op::Request;
use keelson_store_proto::etcdserverpb::watch_client::WatchClient;
use keelson_store_proto::etcdserverpb::watch_request::RequestUnion;
use keelson_store_proto::mvccpb::event::EventType;
use tokio_stream::wrappers::ReceiverStream;

use crate::ask;
use crate::command::{Command, ERROR, Failure, bad_args, fail};
use crate::flags::{Args, Kind, flag};
use crate::output::say;
use crate::session::{Session, Settings, credentials, explain};
use crate::text::prefix_end;
use crate::tls::Security;

pub const MAKE_MIRROR: Command = Command {
    group: 4,
    flags: &[
        flag("prefix", Kind::Text, "", "Key-value prefix to mirror"),
        flag("rev", Kind::Int, "", "Specify the kv revision to start to mirror"),
        flag(
            "max-txn-ops",
            Kind::Uint,
            "128",
            "Maximum number of operations permitted in a transaction during syncing updates.",
        ),
        flag(
            "dest-prefix",
            Kind::Text,
            "",
            "destination prefix to mirror a prefix to a different prefix in the destination cluster",
        ),
        flag("no-dest-prefix", Kind::Bool, "", "mirror key-values to the root of the destination cluster"),
        flag(
            "dest-cert",
            Kind::Text,
            "",
            "Identify secure client using this TLS certificate file for the destination cluster",
        ),
        flag("dest-key", Kind::Text, "", "Identify secure client using this TLS key file"),
        flag(
            "dest-cacert",
            Kind::Text,
            "",
            "Verify certificates of TLS enabled secure servers using this CA bundle",
        ),
        flag(
            "dest-insecure-transport",
            Kind::Bool,
            "true",
            "Disable transport security for client connections",
        ),
        flag(
            "dest-user",
            Kind::Text,
            "",
            "Destination username[:password] for authentication (prompt if password is not supplied)",
        ),
        flag(
            "dest-password",
            Kind::Text,
            "",
            "Destination password for authentication (if this option is used, --user option shouldn't include password)",
        ),
    ],
    run: Some(|args| Box::pin(make_mirror(args))),
    ..Command::new("make-mirror", "[options] <destination>", "Makes a mirror at the destination etcd cluster")
};

/// Keys read at a time.
const PAGE: i64 = 1000;
/// Between two prints of how many were copied.
const REPORT: Duration = Duration::from_secs(30);

async fn make_mirror(mut args: Args) -> Result<(), Failure> {
    let [destination] =
        args.words.clone().try_into().or_else(|_| bad_args("make-mirror takes one destination argument"))?;
    let user = credentials(args.text("dest-user"), args.text("dest-password"), "Destination Password: ")?;
    let security = Security {
        cert: args.text("dest-cert").into(),
        key: args.text("dest-key").into(),
        ca: args.text("dest-cacert").into(),
        insecure_transport: args.on("dest-insecure-transport"),
        ..Security::default()
    };
    let (settings, _) = Settings::new(&mut args).await?;
    let settings = Settings { timeout: None, ..settings };
    let there = Settings { endpoints: vec![destination], security, user, token: None, ..settings.clone() };
    if args.on("no-dest-prefix") && !args.text("dest-prefix").is_empty() {
        return bad_args("`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one");
    }
    let from = args.text("prefix").as_bytes().to_vec();
    let to = match (args.on("no-dest-prefix"), args.text("dest-prefix")) {
        (true, _) => Vec::new(),
        (false, "") => from.clone(),
        (false, prefix) => prefix.as_bytes().to_vec(),
    };
    let max_ops = usize::try_from(args.int("max-txn-ops")).unwrap_or(128).max(1);
    let copied = Arc::new(AtomicU64::new(0));
    let counter = copied.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(REPORT).await;
            // Nobody reads it any more: the copying goes on.
            let _ = say(counter.load(Ordering::Relaxed).to_string());
        }
    });
    let there = there.open().await?;
    let mirror = Mirror { here: settings.open().await?, there, from, to, max_ops, copied };
    let start = args.int("rev") - 1;
    let revision = if start > 0 { start } else { mirror.copy().await? };
    mirror.follow(revision + 1).await
}

struct Mirror {
    here: Session,
    there: Session,
    from: Vec<u8>,
    to: Vec<u8>,
    max_ops: usize,
    copied: Arc<AtomicU64>,
}

impl Mirror {
    /// Where the range begins and ends; everything for an empty prefix.
    fn range(&self) -> (Vec<u8>, Vec<u8>) {
        if self.from.is_empty() { (vec![0], vec![0]) } else { (self.from.clone(), prefix_end(&self.from)) }
    }

    fn renamed(&self, key: &[u8]) -> Vec<u8> {
        let rest = key.strip_prefix(self.from.as_slice()).unwrap_or(key);
        [&self.to, rest].concat()
    }

    /// Copies everything as of one revision, which it answers.
    async fn copy(&self) -> Result<i64, Failure> {
        let (mut key, range_end) = self.range();
        let mut revision = 0;
        loop {
            let request = pb::RangeRequest {
                key: key.clone().into(),
                range_end: range_end.clone().into(),
                limit: PAGE,
                revision,
                ..pb::RangeRequest::default()
            };
            let page = ask!(self.here, KvClient.range(request)).await?;
            if revision == 0 {
                revision = page.header.as_ref().map_or(0, |header| header.revision);
            }
            for kv in &page.kvs {
                let put = pb::PutRequest {
                    key: self.renamed(&kv.key).into(),
                    value: kv.value.clone(),
                    ..pb::PutRequest::default()
                };
                ask!(self.there, KvClient.put(put)).await?;
                self.copied.fetch_add(1, Ordering::Relaxed);
            }
            match page.kvs.last() {
                Some(last) if page.more => key = [last.key.as_ref(), b"\0"].concat(),
                _ => return Ok(revision),
            }
        }
    }

    /// Carries changes over, those of one revision together.
    async fn follow(&self, revision: i64) -> Result<(), Failure> {
        let (key, range_end) = self.range();
        let create = pb::WatchCreateRequest {
            key: key.into(),
            range_end: range_end.into(),
            start_revision: revision,
            ..pb::WatchCreateRequest::default()
        };
        let (requests, outgoing) = tokio::sync::mpsc::channel(1);
        let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.send(request).await.or_else(|_| fail(ERROR, "the watch stream was never opened"))?;
        let mut client = WatchClient::new(self.here.service()).max_decoding_message_size(usize::MAX);
        let broken = |status: tonic::Status| Failure { code: ERROR, message: explain(&status) };
        let mut answers = client.watch(ReceiverStream::new(outgoing)).await.map_err(broken)?.into_inner();
        while let Some(answer) = answers.message().await.map_err(broken)? {
            if answer.compact_revision != 0 {
                return fail(ERROR, "etcdserver: mvcc: required revision has been compacted");
            }
            if answer.canceled {
                return fail(ERROR, answer.cancel_reason);
            }
            let mut ops: Vec<pb::RequestOp> = Vec::new();
            let mut last = 0;
            for event in answer.events {
                let kind = event.r#type();
                let Some(kv) = event.kv else { continue };
                if (last != 0 && kv.mod_revision > last) || ops.len() == self.max_ops {
                    self.carry(std::mem::take(&mut ops)).await?;
                }
                last = kv.mod_revision;
                let key = self.renamed(&kv.key).into();
                let request = match kind {
                    EventType::Put => Request::RequestPut(pb::PutRequest {
                        key,
                        value: kv.value,
                        ..pb::PutRequest::default()
                    }),
                    EventType::Delete => {
                        Request::RequestDeleteRange(pb::DeleteRangeRequest { key, ..Default::default() })
                    }
                };
                ops.push(pb::RequestOp { request: Some(request) });
            }
            self.carry(ops).await?;
        }
        fail(ERROR, "the watch stream has ended")
    }

    async fn carry(&self, ops: Vec<pb::RequestOp>) -> Result<(), Failure> {
        if ops.is_empty() {
            return Ok(());
        }
        let count = ops.len() as u64;
        ask!(self.there, KvClient.txn(pb::TxnRequest { success: ops, ..pb::TxnRequest::default() })).await?;
        self.copied.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }
}
