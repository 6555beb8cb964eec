//! lease grant, revoke, timetolive, list, keep-alive.

use std::time::Duration;

use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::lease_client::LeaseClient;
use prost::Message as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::command::{BAD_CONNECTION, Command, ERROR, Failure, bad_args, fail};
use crate::flags::{Args, Kind, flag};
use crate::output::{Show, header, lease_id, say};
use crate::session::{Session, Settings, explain};
use crate::text::{parse_int, quote};
use crate::{call, json, line};

pub const LEASE: Command = Command {
    long: "Lease related commands",
    ..Command::new(
        "lease",
        "<subcommand>",
        "Lease related commands. Use `etcdctl lease --help` to see subcommands",
    )
};

pub const GRANT: Command = Command {
    run: Some(|args| Box::pin(grant(args))),
    ..Command::new("lease grant", "<ttl>", "Creates leases")
};

pub const REVOKE: Command = Command {
    run: Some(|args| Box::pin(revoke(args))),
    ..Command::new("lease revoke", "<leaseID>", "Revokes leases")
};

pub const TIME_TO_LIVE: Command = Command {
    flags: &[flag("keys", Kind::Bool, "", "Get keys attached to this lease")],
    run: Some(|args| Box::pin(time_to_live(args))),
    ..Command::new("lease timetolive", "<leaseID> [options]", "Get lease information")
};

pub const LIST: Command = Command {
    run: Some(|args| Box::pin(list(args))),
    ..Command::new("lease list", "", "List all active leases")
};

pub const KEEP_ALIVE: Command = Command {
    flags: &[flag(
        "once",
        Kind::Bool,
        "",
        "Resets the keep-alive time to its original value and cobrautl.Exits immediately",
    )],
    run: Some(|args| Box::pin(keep_alive(args))),
    ..Command::new("lease keep-alive", "[options] <leaseID>", "Keeps leases alive (renew)")
};

fn one<'a>(args: &'a Args, needs: &str) -> Result<&'a str, Failure> {
    match args.words.as_slice() {
        [word] => Ok(word),
        _ => bad_args(needs),
    }
}

fn lease(word: &str) -> Result<i64, Failure> {
    parse_int(word, 16).or_else(|error| bad_args(format!("bad lease ID arg ({error}), expecting ID in Hex")))
}

async fn grant(mut args: Args) -> Result<(), Failure> {
    let ttl = one(&args, "lease grant command needs TTL argument")?;
    let ttl = parse_int(ttl, 10).or_else(|error| bad_args(format!("bad TTL ({error})")))?;
    let (settings, output) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    let request = pb::LeaseGrantRequest { ttl, id: 0 };
    match call!(session, LeaseClient.lease_grant(request)).await {
        Ok(answer) => output.show(&answer),
        Err(status) => fail(ERROR, format!("failed to grant lease ({})", explain(&status))),
    }
}

async fn revoke(mut args: Args) -> Result<(), Failure> {
    let id = lease(one(&args, "lease revoke command needs 1 argument")?)?;
    let (settings, output) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    match call!(session, LeaseClient.lease_revoke(pb::LeaseRevokeRequest { id })).await {
        Ok(answer) => output.show(&Revoked(id, answer)),
        Err(status) => fail(ERROR, format!("failed to revoke lease ({})", explain(&status))),
    }
}

async fn time_to_live(mut args: Args) -> Result<(), Failure> {
    let id = lease(one(&args, "lease timetolive command needs lease ID as argument")?)?;
    let keys = args.on("keys");
    let (settings, output) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    let request = pb::LeaseTimeToLiveRequest { id, keys };
    match call!(session, LeaseClient.lease_time_to_live(request)).await {
        Ok(answer) => output.show(&Left { answer, keys }),
        Err(status) => fail(BAD_CONNECTION, explain(&status)),
    }
}

async fn list(mut args: Args) -> Result<(), Failure> {
    let (settings, output) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    match call!(session, LeaseClient.lease_leases(pb::LeaseLeasesRequest {})).await {
        Ok(answer) => output.show(&answer),
        Err(status) => fail(BAD_CONNECTION, explain(&status)),
    }
}

/// One keep-alive of a lease.
///
/// # Errors
/// The server's; the lease is gone (`ttl` 0 is returned, not an error).
pub async fn once(session: &Session, id: i64) -> Result<pb::LeaseKeepAliveResponse, tonic::Status> {
    let mut stream = session
        .call(move |service| {
            Box::pin(async move {
                let requests = futures::stream::iter([pb::LeaseKeepAliveRequest { id }]);
                LeaseClient::new(service).lease_keep_alive(requests).await
            })
        })
        .await?;
    let answer = stream.message().await?;
    answer.ok_or_else(|| tonic::Status::unavailable("the keep-alive stream has ended"))
}

async fn keep_alive(mut args: Args) -> Result<(), Failure> {
    let id = lease(one(&args, "lease keep-alive command needs lease ID as argument")?)?;
    let (settings, output) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    if args.on("once") {
        return match once(&session, id).await {
            Ok(answer) if answer.ttl > 0 => output.show(&answer),
            Ok(_) => fail(BAD_CONNECTION, "etcdserver: requested lease not found"),
            Err(status) => fail(BAD_CONNECTION, explain(&status)),
        };
    }
    let (requests, outgoing) = tokio::sync::mpsc::channel(1);
    let mut client = LeaseClient::new(session.service());
    let mut stream = match client.lease_keep_alive(ReceiverStream::new(outgoing)).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return fail(BAD_CONNECTION, explain(&status)),
    };
    loop {
        if requests.send(pb::LeaseKeepAliveRequest { id }).await.is_err() {
            break;
        }
        match stream.message().await {
            Ok(Some(answer)) if answer.ttl > 0 => {
                output.show(&answer)?;
                // A third of what is left, as etcd's client.
                let third = u64::try_from(answer.ttl).unwrap_or(0) * 1000 / 3;
                tokio::time::sleep(Duration::from_millis(third.max(500))).await;
            }
            _ => break,
        }
    }
    if output.is_simple() {
        say(format!("lease {id:016x} expired or revoked."))?;
    }
    Ok(())
}

fn flat(h: Option<&pb::ResponseHeader>) -> json::Object {
    json::Object::default().embed(&json::header(h, false).unwrap_or_default())
}

impl Show for pb::LeaseGrantResponse {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        line!(out, "lease {:016x} granted with TTL({}s)", self.id, self.ttl);
    }

    fn fields(&self, out: &mut Vec<u8>, hex: bool) -> bool {
        header(out, self.header.as_ref(), hex);
        line!(out, "\"ID\" : {}", lease_id(self.id, hex));
        line!(out, "\"TTL\" : {}", self.ttl);
        true
    }

    fn json(&self, _: bool) -> Option<String> {
        let head = flat(self.header.as_ref());
        let body = head.raw("ID", self.id.to_string()).raw("TTL", self.ttl.to_string());
        Some(body.raw("Error", json::text(&self.error)).end())
    }
}

struct Revoked(i64, pb::LeaseRevokeResponse);

impl Show for Revoked {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        line!(out, "lease {:016x} revoked", self.0);
    }

    fn fields(&self, out: &mut Vec<u8>, hex: bool) -> bool {
        header(out, self.1.header.as_ref(), hex);
        true
    }

    fn json(&self, _: bool) -> Option<String> {
        Some(json::answer(self.1.header.as_ref()).end())
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.1.encode_to_vec())
    }
}

impl Show for pb::LeaseKeepAliveResponse {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        line!(out, "lease {:016x} keepalived with TTL({})", self.id, self.ttl);
    }

    fn fields(&self, out: &mut Vec<u8>, hex: bool) -> bool {
        header(out, self.header.as_ref(), hex);
        line!(out, "\"ID\" : {}", lease_id(self.id, hex));
        line!(out, "\"TTL\" : {}", self.ttl);
        true
    }

    fn json(&self, _: bool) -> Option<String> {
        let head = flat(self.header.as_ref());
        Some(head.raw("ID", self.id.to_string()).raw("TTL", self.ttl.to_string()).end())
    }
}

struct Left {
    answer: pb::LeaseTimeToLiveResponse,
    keys: bool,
}

impl Show for Left {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        let (id, left, granted) = (self.answer.id, self.answer.ttl, self.answer.granted_ttl);
        if granted == 0 && left == -1 {
            line!(out, "lease {id:016x} already expired");
            return;
        }
        let mut text = format!("lease {id:016x} granted with TTL({granted}s), remaining({left}s)");
        if self.keys {
            let keys: Vec<_> = self.answer.keys.iter().map(|key| String::from_utf8_lossy(key)).collect();
            text.push_str(&format!(", attached keys([{}])", keys.join(" ")));
        }
        line!(out, "{text}");
    }

    fn fields(&self, out: &mut Vec<u8>, hex: bool) -> bool {
        header(out, self.answer.header.as_ref(), hex);
        line!(out, "\"ID\" : {}", lease_id(self.answer.id, hex));
        line!(out, "\"TTL\" : {}", self.answer.ttl);
        line!(out, "\"GrantedTTL\" : {}", self.answer.granted_ttl);
        self.answer.keys.iter().for_each(|key| line!(out, "\"Key\" : {}", quote(key)));
        true
    }

    fn json(&self, _: bool) -> Option<String> {
        let keys = match self.answer.keys.as_slice() {
            [] => "null".to_owned(),
            keys => json::array(keys.iter().map(|key| json::bytes(key))),
        };
        Some(
            flat(self.answer.header.as_ref())
                .raw("id", self.answer.id.to_string())
                .raw("ttl", self.answer.ttl.to_string())
                .raw("granted-ttl", self.answer.granted_ttl.to_string())
                .raw("keys", keys)
                .end(),
        )
    }
}

impl Show for pb::LeaseLeasesResponse {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        line!(out, "found {} leases", self.leases.len());
        self.leases.iter().for_each(|lease| line!(out, "{:016x}", lease.id));
    }

    fn fields(&self, out: &mut Vec<u8>, hex: bool) -> bool {
        header(out, self.header.as_ref(), hex);
        self.leases.iter().for_each(|lease| line!(out, "\"ID\" : {}", lease_id(lease.id, hex)));
        true
    }

    fn json(&self, _: bool) -> Option<String> {
        let each = |lease: &pb::LeaseStatus| format!("{{\"id\":{}}}", lease.id);
        Some(flat(self.header.as_ref()).raw("leases", json::array(self.leases.iter().map(each))).end())
    }
}
