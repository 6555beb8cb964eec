//! member add, remove, update, list, promote; move-leader.

use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::cluster_client::ClusterClient;
use keelson_store_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use prost::Message as _;

use crate::command::{Command, Failure, bad_args};
use crate::flags::{Args, Kind, flag};
use crate::kv::serializable;
use crate::output::{Show, Table, header, id, print};
use crate::session::Settings;
use crate::text::{parse_uint, quote};
use crate::{ask, json, line};

pub const MEMBER: Command = Command {
    long: "Membership related commands",
    group: 1,
    ..Command::new(
        "member",
        "<subcommand>",
        "Membership related commands. Use `etcdctl member --help` to see subcommands",
    )
};

pub const ADD: Command = Command {
    flags: &[
        flag("peer-urls", Kind::Text, "", "comma separated peer URLs for the new member."),
        flag("learner", Kind::Bool, "", "indicates if the new member is raft learner"),
    ],
    run: Some(|args| Box::pin(add(args))),
    ..Command::new("member add", "<memberName> [options]", "Adds a member into the cluster")
};

pub const REMOVE: Command = Command {
    run: Some(|args| Box::pin(remove(args))),
    ..Command::new("member remove", "<memberID>", "Removes a member from the cluster")
};

pub const UPDATE: Command = Command {
    flags: &[flag("peer-urls", Kind::Text, "", "comma separated peer URLs for the updated member.")],
    run: Some(|args| Box::pin(update(args))),
    ..Command::new("member update", "<memberID> [options]", "Updates a member in the cluster")
};

pub const LIST: Command = Command {
    long: "When --write-out is set to simple, this command prints out comma-separated member lists for each endpoint.
The items in the lists are ID, Status, Name, Peer Addrs, Client Addrs, Is Learner.
",
    flags: &[flag("consistency", Kind::Text, "l", "Linearizable(l) or Serializable(s)")],
    run: Some(|args| Box::pin(list(args))),
    ..Command::new("member list", "", "Lists all members in the cluster")
};

pub const PROMOTE: Command = Command {
    long: "Promotes a non-voting learner member to a voting one in the cluster.\n",
    run: Some(|args| Box::pin(promote(args))),
    ..Command::new("member promote", "<memberID>", "Promotes a non-voting member in the cluster")
};

pub const MOVE_LEADER: Command = Command {
    group: 1,
    run: Some(|args| Box::pin(move_leader(args))),
    ..Command::new(
        "move-leader",
        "<transferee-member-id>",
        "Transfers leadership to another etcd cluster member.",
    )
};

fn member_id(args: &Args) -> Result<u64, Failure> {
    let [word] = args.words.as_slice() else { return bad_args("member ID is not provided") };
    parse_uint(word, 16)
        .or_else(|error| bad_args(format!("bad member ID arg ({error}), expecting ID in Hex")))
}

/// The URLs, each looked at before the server is asked, as etcd's client does.
fn peer_urls(args: &Args) -> Result<Vec<String>, Failure> {
    if args.text("peer-urls").is_empty() {
        return bad_args("member peer urls not provided");
    }
    Ok(args.text("peer-urls").split(',').map(str::to_owned).collect())
}

fn check_urls(urls: &[String]) -> Result<(), Failure> {
    for url in urls {
        let known =
            ["http://", "https://", "unix://", "unixs://"].iter().any(|scheme| url.starts_with(scheme));
        if !known {
            return crate::command::fail(
                crate::command::ERROR,
                format!("URL scheme must be http, https, unix, or unixs: {url}"),
            );
        }
    }
    Ok(())
}

async fn add(mut args: Args) -> Result<(), Failure> {
    let name = match args.words.as_slice() {
        [] => return bad_args("member name not provided"),
        [name] => name.clone(),
        words => {
            let urls = words.iter().filter(|word| word.to_lowercase().starts_with("http"));
            let hints: String = urls.map(|url| format!(", did you mean --peer-urls={url}")).collect();
            return bad_args(format!("too many arguments{hints}"));
        }
    };
    let peer_ur_ls = peer_urls(&args)?;
    let (settings, output) = Settings::new(&mut args).await?;
    check_urls(&peer_ur_ls)?;
    let session = settings.open().await?;
    let request = pb::MemberAddRequest { peer_ur_ls, is_learner: args.on("learner") };
    let answer = ask!(session, ClusterClient.member_add(request)).await?;
    output.show(&answer)?;
    if !output.is_simple() {
        return Ok(());
    }
    let new = answer.member.as_ref().map_or(0, |member| member.id);
    let mut cluster = Vec::new();
    for member in &answer.members {
        let called = if member.id == new { &name } else { &member.name };
        cluster.extend(member.peer_ur_ls.iter().map(|url| format!("{called}={url}")));
    }
    let mut out = Vec::new();
    line!(out, "");
    line!(out, "ETCD_NAME={}", quote(name.as_bytes()));
    line!(out, "ETCD_INITIAL_CLUSTER={}", quote(cluster.join(",").as_bytes()));
    line!(out, "ETCD_INITIAL_ADVERTISE_PEER_URLS={}", quote(args.text("peer-urls").as_bytes()));
    line!(out, "ETCD_INITIAL_CLUSTER_STATE=\"existing\"");
    print(&out)
}

async fn remove(mut args: Args) -> Result<(), Failure> {
    let id = member_id(&args)?;
    let (settings, output) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    let answer = ask!(session, ClusterClient.member_remove(pb::MemberRemoveRequest { id })).await?;
    let bytes = answer.encode_to_vec();
    output.show(&Changed { id, done: "removed from", header: answer.header, members: answer.members, bytes })
}

async fn update(mut args: Args) -> Result<(), Failure> {
    let id = member_id(&args)?;
    let peer_ur_ls = peer_urls(&args)?;
    let (settings, output) = Settings::new(&mut args).await?;
    check_urls(&peer_ur_ls)?;
    let session = settings.open().await?;
    let request = pb::MemberUpdateRequest { id, peer_ur_ls };
    let answer = ask!(session, ClusterClient.member_update(request)).await?;
    let bytes = answer.encode_to_vec();
    output.show(&Changed { id, done: "updated in", header: answer.header, members: answer.members, bytes })
}

async fn promote(mut args: Args) -> Result<(), Failure> {
    let id = member_id(&args)?;
    let (settings, output) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    let answer = ask!(session, ClusterClient.member_promote(pb::MemberPromoteRequest { id })).await?;
    let bytes = answer.encode_to_vec();
    output.show(&Changed { id, done: "promoted in", header: answer.header, members: answer.members, bytes })
}

async fn list(mut args: Args) -> Result<(), Failure> {
    let linearizable = !serializable(args.text("consistency"))?;
    let (settings, output) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    let answer = ask!(session, ClusterClient.member_list(pb::MemberListRequest { linearizable })).await?;
    output.show(&answer)
}

async fn move_leader(mut args: Args) -> Result<(), Failure> {
    let [word] = args.words.as_slice() else { return bad_args("move-leader command needs 1 argument") };
    let target_id = parse_uint(word, 16).or_else(bad_args)?;
    let (settings, output) = Settings::new(&mut args).await?;
    for endpoint in &settings.endpoints {
        let session = settings.only(endpoint).open().await?;
        let status = ask!(session, MaintenanceClient.status(pb::StatusRequest {})).await?;
        if status.header.as_ref().is_some_and(|header| header.member_id == status.leader) {
            let request = pb::MoveLeaderRequest { target_id };
            let answer = ask!(session, MaintenanceClient.move_leader(request)).await?;
            return output.show(&Moved { from: status.leader, to: target_id, answer });
        }
    }
    bad_args(format!("no leader endpoint given at [{}]", settings.endpoints.join(" ")))
}

struct Moved {
    from: u64,
    to: u64,
    answer: pb::MoveLeaderResponse,
}

impl Show for Moved {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        line!(out, "Leadership transferred from {:x} to {:x}", self.from, self.to);
    }

    fn json(&self, _: bool) -> Option<String> {
        Some(json::answer(self.answer.header.as_ref()).end())
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.answer.encode_to_vec())
    }
}

fn members_json(
    h: Option<&pb::ResponseHeader>,
    new: Option<&pb::Member>,
    members: &[pb::Member],
    hex: bool,
) -> String {
    let head = json::Object::default().maybe("header", json::header(h, hex));
    let head = head.maybe("member", new.map(|member| json::member(member, hex)));
    head.list("members", members, |member| json::member(member, hex)).end()
}

impl Show for pb::MemberAddResponse {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        let member = self.member.clone().unwrap_or_default();
        let role = if member.is_learner { " as learner " } else { " " };
        let cluster = self.header.as_ref().map_or(0, |header| header.cluster_id);
        line!(out, "Member {:16x} added{role}to cluster {cluster:16x}", member.id);
    }

    fn json(&self, hex: bool) -> Option<String> {
        Some(members_json(self.header.as_ref(), self.member.as_ref(), &self.members, hex))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

/// A member removed, updated or promoted.
struct Changed {
    id: u64,
    done: &'static str,
    header: Option<pb::ResponseHeader>,
    members: Vec<pb::Member>,
    bytes: Vec<u8>,
}

impl Show for Changed {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        let cluster = self.header.as_ref().map_or(0, |header| header.cluster_id);
        line!(out, "Member {:16x} {} cluster {cluster:16x}", self.id, self.done);
    }

    fn json(&self, hex: bool) -> Option<String> {
        Some(members_json(self.header.as_ref(), None, &self.members, hex))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.bytes.clone())
    }
}

impl Show for pb::MemberListResponse {
    fn simple(&self, out: &mut Vec<u8>, _: bool) {
        self.table()
            .into_iter()
            .flat_map(|table| table.rows)
            .for_each(|row| line!(out, "{}", row.join(", ")));
    }

    fn fields(&self, out: &mut Vec<u8>, hex: bool) -> bool {
        header(out, self.header.as_ref(), hex);
        for member in &self.members {
            line!(out, "\"ID\" : {}", id(member.id, hex));
            line!(out, "\"Name\" : {}", quote(member.name.as_bytes()));
            member.peer_ur_ls.iter().for_each(|url| line!(out, "\"PeerURL\" : {}", quote(url.as_bytes())));
            member
                .client_ur_ls
                .iter()
                .for_each(|url| line!(out, "\"ClientURL\" : {}", quote(url.as_bytes())));
            line!(out, "\"IsLearner\" : {}", member.is_learner);
            line!(out, "");
        }
        true
    }

    fn json(&self, hex: bool) -> Option<String> {
        Some(members_json(self.header.as_ref(), None, &self.members, hex))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn table(&self) -> Option<Table> {
        let row = |member: &pb::Member| {
            vec![
                format!("{:x}", member.id),
                if member.name.is_empty() { "unstarted" } else { "started" }.to_owned(),
                member.name.clone(),
                member.peer_ur_ls.join(","),
                member.client_ur_ls.join(","),
                member.is_learner.to_string(),
            ]
        };
        let head = vec!["ID", "Status", "Name", "Peer Addrs", "Client Addrs", "Is Learner"];
        Some(Table { head, rows: self.members.iter().map(row).collect() })
    }
}
