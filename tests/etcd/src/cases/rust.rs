//! The crate etcd-client as a client.

use std::collections::BTreeMap;
use std::sync::Arc;

use etcd_client::{
    Client, CompactionOptions, Compare, CompareOp, ConnectOptions, DeleteOptions, DeleteResponse, Error,
    EventType, GetOptions, GetResponse, Identity, KeyValue, LeaderKey, LeaseTimeToLiveOptions, LockOptions,
    MemberAddOptions, Permission, PutOptions, PutResponse, ResignOptions, ResponseHeader,
    RoleRevokePermissionOptions, SortOrder, SortTarget, TlsOptions, Txn, TxnOp, TxnOpResponse, TxnResponse,
    UserAddOptions, WatchFilterType, WatchOptions, WatchStream,
};
use tokio::task::JoinHandle;

use super::operation::{Answer, Event, Operation, Record, number};
use super::{PATIENCE, Place};

type Result<T = Answer> = std::result::Result<T, Error>;

/// Seconds of a lease that something is held by.
const HOLD: i64 = 30;

/// An open watch.
struct Watch {
    stream: WatchStream,
    waiting: Vec<Event>,
}

/// Something held or waited for: its lease, and what ends it.
struct Hold {
    lease: i64,
    taking: Option<JoinHandle<Result<Held>>>,
    held: Option<Held>,
}

enum Held {
    Lock(Vec<u8>),
    Office(LeaderKey),
}

/// The client.
pub struct Rust {
    place: Arc<Place>,
    client: Client,
    watches: BTreeMap<String, Watch>,
    holds: BTreeMap<String, Hold>,
}

async fn connect(place: &Place, endpoints: &[String], user: &str) -> Result<Client> {
    let mut options = ConnectOptions::new();
    if let Some(tls) = &place.tls {
        let read = |name: &str| std::fs::read(tls.path(name)).expect("readable");
        options = options.with_tls(
            TlsOptions::new()
                .ca_certificate(etcd_client::Certificate::from_pem(read("ca.pem")))
                .identity(Identity::from_pem(read("client.pem"), read("client-key.pem"))),
        );
    }
    if let Some((name, password)) = user.split_once(':') {
        options = options.with_user(name, password);
    }
    Client::connect(endpoints, Some(options)).await
}

fn failed(error: &Error) -> Answer {
    match error {
        Error::GRpcStatus(status) => Answer::failed(&format!("{:?}", status.code()), status.message()),
        Error::LeaseKeepAliveError(text) if text == "lease not found" => {
            Answer::failed("Client", "etcdserver: requested lease not found")
        }
        other => Answer::failed("Client", &other.to_string()),
    }
}

impl Rust {
    /// A client of the members of a place.
    pub async fn new(place: Arc<Place>) -> Rust {
        let client = connect(&place, &place.endpoints, "").await.expect("it connects");
        Rust { place, client, watches: BTreeMap::new(), holds: BTreeMap::new() }
    }

    /// Carries an operation out.
    pub async fn call(&mut self, operation: &Operation) -> Answer {
        match tokio::time::timeout(PATIENCE, self.carry(operation)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => failed(&error),
            Err(_) => Answer::failed("Client", "no answer in time"),
        }
    }

    async fn carry(&mut self, o: &Operation) -> Result {
        let mut client = match o.user.as_str() {
            "" => self.client.clone(),
            user => connect(&self.place, &self.place.endpoints, user).await?,
        };
        match o.name.as_str() {
            "watch" | "events" | "progress" | "ended" | "cancel" => self.watch(client, o).await,
            "lock" | "elect" | "held" | "release" | "leader" => self.hold(client, o).await,
            name if name.starts_with("lease-") => lease(client, o).await,
            name if ["auth-", "user-", "role-"].iter().any(|family| name.starts_with(family)) => {
                auth(client, o).await
            }
            "put" => Ok(put(&client.put(o.arg(0), o.arg(1), Some(put_options(o))).await?)),
            "get" => Ok(get(&client.get(o.arg(0), Some(get_options(o))).await?)),
            "del" => Ok(delete(&client.delete(o.arg(0), Some(delete_options(o))).await?)),
            "txn" => Ok(txn(&client.txn(transaction(o)).await?)),
            "compact" => {
                let options = CompactionOptions::new();
                let options = if o.has("physical") { options.with_physical() } else { options };
                let answer = client.compact(number(o.arg(0)), Some(options)).await?;
                Ok(Answer { revision: at(answer.header()), ..Answer::default() })
            }
            _ => self.members(client, o).await,
        }
    }

    async fn watch(&mut self, mut client: Client, o: &Operation) -> Result {
        let name = o.arg(0);
        if o.name == "watch" {
            let mut stream = client.watch(o.arg(1), Some(watch_options(o))).await?;
            let first = stream.message().await?;
            assert!(first.is_some_and(|first| first.created()), "a watch is created first");
            self.watches.insert(name.to_owned(), Watch { stream, waiting: Vec::new() });
            return Ok(Answer::default());
        }
        if o.name == "cancel" {
            let mut watch = self.watches.remove(name).expect("it was opened");
            watch.stream.cancel(0).await?;
            while let Some(response) = watch.stream.message().await? {
                assert!(response.events().is_empty(), "more events: {response:?}");
                if response.canceled() {
                    break;
                }
            }
            return Ok(Answer::default());
        }
        let watch = self.watches.get_mut(name).expect("it was opened");
        if o.name == "progress" {
            watch.stream.request_progress().await?;
        }
        let wanted = if o.name == "events" { number(o.arg(1)) as usize } else { usize::MAX };
        while watch.waiting.len() < wanted {
            let response = watch.stream.message().await?;
            let response = response.ok_or_else(|| Error::WatchError("the stream ended".to_owned()))?;
            if response.canceled() {
                let compacted = response.compact_revision();
                let reason = match compacted {
                    0 => response.cancel_reason(),
                    // etcd leaves the reason empty, its own clients put it there.
                    _ => "etcdserver: mvcc: required revision has been compacted",
                };
                return Ok(Answer { revision: compacted, ..Answer::failed("Client", reason) });
            }
            if o.name == "progress" && response.events().is_empty() && !response.created() {
                return Ok(Answer { revision: at(response.header()), ..Answer::default() });
            }
            watch.waiting.extend(response.events().iter().map(event));
        }
        Ok(Answer { events: std::mem::take(&mut watch.waiting), ..Answer::default() })
    }

    async fn hold(&mut self, mut client: Client, o: &Operation) -> Result {
        let name = o.arg(0).to_owned();
        match o.name.as_str() {
            "leader" => {
                let answer = client.leader(o.arg(0)).await?;
                let value = answer.kv().map(|kv| text(kv.value()));
                Ok(Answer { lines: value.into_iter().collect(), ..Answer::default() })
            }
            "held" => {
                let hold = self.holds.get_mut(&name).expect("it was asked for");
                let held = hold.taking.take().expect("asked once").await.expect("it does not panic")?;
                let key = match &held {
                    Held::Lock(key) => text(key),
                    Held::Office(key) => text(key.key()),
                };
                hold.held = Some(held);
                Ok(Answer { id: key, ..Answer::default() })
            }
            "release" => {
                let hold = self.holds.remove(&name).expect("it was asked for");
                match hold.held.expect("it is held") {
                    Held::Lock(key) => {
                        client.unlock(key).await?;
                    }
                    Held::Office(key) => {
                        client.resign(Some(ResignOptions::new().with_leader(key))).await?;
                    }
                }
                client.lease_revoke(hold.lease).await?;
                Ok(Answer::default())
            }
            kind => {
                let lease = client.lease_grant(HOLD, None).await?.id();
                let (lock, prefix, value) = (kind == "lock", o.arg(1).to_owned(), o.arg(2).to_owned());
                let taking = tokio::spawn(async move {
                    if lock {
                        let options = LockOptions::new().with_lease(lease);
                        return Ok(Held::Lock(client.lock(prefix, Some(options)).await?.key().to_vec()));
                    }
                    let mut answer = client.campaign(prefix, value, lease).await?;
                    Ok(Held::Office(answer.take_leader().expect("whoever won has a key")))
                });
                self.holds.insert(name, Hold { lease, taking: Some(taking), held: None });
                Ok(Answer::default())
            }
        }
    }

    /// Clients of one member each.
    async fn each(&self, user: &str) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        for endpoint in &self.place.endpoints {
            clients.push(connect(&self.place, std::slice::from_ref(endpoint), user).await?);
        }
        Ok(clients)
    }

    async fn members(&self, mut client: Client, o: &Operation) -> Result {
        let id = || o.arg(0).parse::<u64>().unwrap_or_default();
        let urls = || vec![o.flags.get("peer-urls").cloned().unwrap_or_default()];
        let mut lines = Vec::new();
        match o.name.as_str() {
            "member-list" => {
                let answer = client.member_list().await?;
                let line = |m: &etcd_client::Member| format!("{} {} {}", m.id(), m.name(), m.is_learner());
                lines = answer.members().iter().map(line).collect();
                lines.sort();
            }
            "member-add" => {
                let options = o.has("learner").then(|| MemberAddOptions::new().with_is_learner());
                let answer = client.member_add(urls(), options).await?;
                let id = answer.member().map_or_else(String::new, |member| member.id().to_string());
                return Ok(Answer { id, ..Answer::default() });
            }
            "member-remove" => {
                client.member_remove(id()).await?;
            }
            "member-promote" => {
                client.member_promote(id()).await?;
            }
            "member-update" => {
                client.member_update(id(), urls()).await?;
            }
            "alarm-list" => {
                use etcd_client::{AlarmAction, AlarmType};
                let answer = client.alarm(AlarmAction::Get, AlarmType::None, None).await?;
                lines = answer
                    .alarms()
                    .iter()
                    .map(|alarm| format!("{:?}", alarm.alarm()).to_uppercase())
                    .collect();
            }
            "defrag" => {
                for mut one in self.each(&o.user).await? {
                    one.defragment().await?;
                }
            }
            "endpoint-status" => {
                for mut one in self.each(&o.user).await? {
                    let status = one.status().await?;
                    let member = status.header().map_or(0, ResponseHeader::member_id);
                    lines.push(format!("{member} {}", status.leader()));
                }
            }
            "endpoint-hashkv" => {
                for mut one in self.each(&o.user).await? {
                    lines.push(one.hash_kv(o.number("rev")).await?.hash().to_string());
                }
            }
            "snapshot-save" => {
                let mut stream = client.snapshot().await?;
                let mut bytes = Vec::new();
                while let Some(piece) = stream.message().await? {
                    bytes.extend_from_slice(piece.blob());
                }
                std::fs::write(o.arg(0), bytes)?;
            }
            "move-leader" => {
                for mut one in self.each(&o.user).await? {
                    let status = one.status().await?;
                    if status.header().is_some_and(|header| header.member_id() == status.leader()) {
                        one.move_leader(id()).await?;
                        return Ok(Answer::default());
                    }
                }
                return Err(Error::Internal("no leader".to_owned()));
            }
            other => return Err(Error::InvalidArgs(format!("no operation {other}"))),
        }
        Ok(Answer { lines, ..Answer::default() })
    }
}

fn at(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, ResponseHeader::revision)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn record(kv: &KeyValue) -> Record {
    Record {
        key: text(kv.key()),
        value: text(kv.value()),
        create: kv.create_revision(),
        modified: kv.mod_revision(),
        version: kv.version(),
        lease: kv.lease(),
    }
}

fn event(event: &etcd_client::Event) -> Event {
    Event {
        delete: event.event_type() == EventType::Delete,
        record: event.kv().map(record).unwrap_or_default(),
        prev: event.prev_kv().map(record),
    }
}

fn put_options(o: &Operation) -> PutOptions {
    let mut options = PutOptions::new();
    if o.has("lease") {
        options = options.with_lease(o.number("lease"));
    }
    if o.has("prev-kv") {
        options = options.with_prev_key();
    }
    if o.has("ignore-value") {
        options = options.with_ignore_value();
    }
    if o.has("ignore-lease") {
        options = options.with_ignore_lease();
    }
    options
}

fn get_options(o: &Operation) -> GetOptions {
    let mut options = GetOptions::new();
    if o.has("prefix") {
        options = options.with_prefix();
    } else if o.has("from-key") {
        options = options.with_from_key();
    } else if o.args.len() > 1 {
        options = options.with_range(o.arg(1));
    }
    let flag = |name| o.has(name).then(|| o.number(name));
    if let Some(n) = flag("rev") {
        options = options.with_revision(n);
    }
    if let Some(n) = flag("limit") {
        options = options.with_limit(n);
    }
    if let Some(n) = flag("min-mod-rev") {
        options = options.with_min_mod_revision(n);
    }
    if let Some(n) = flag("max-mod-rev") {
        options = options.with_max_mod_revision(n);
    }
    if let Some(n) = flag("min-create-rev") {
        options = options.with_min_create_revision(n);
    }
    if let Some(n) = flag("max-create-rev") {
        options = options.with_max_create_revision(n);
    }
    if o.has("sort-by") || o.has("order") {
        let target = match o.flags.get("sort-by").map_or("KEY", String::as_str) {
            "VERSION" => SortTarget::Version,
            "CREATE" => SortTarget::Create,
            "MODIFY" => SortTarget::Mod,
            "VALUE" => SortTarget::Value,
            _ => SortTarget::Key,
        };
        let order = match o.flags.get("order").map_or("", String::as_str) {
            "ASCEND" => SortOrder::Ascend,
            "DESCEND" => SortOrder::Descend,
            _ => SortOrder::None,
        };
        options = options.with_sort(target, order);
    }
    if o.has("keys-only") {
        options = options.with_keys_only();
    }
    if o.has("count-only") {
        options = options.with_count_only();
    }
    if o.flags.get("consistency").is_some_and(|kind| kind == "s") {
        options = options.with_serializable();
    }
    options
}

fn delete_options(o: &Operation) -> DeleteOptions {
    let mut options = DeleteOptions::new();
    if o.has("prefix") {
        options = options.with_prefix();
    } else if o.has("from-key") {
        options = options.with_from_key();
    } else if o.args.len() > 1 {
        options = options.with_range(o.arg(1));
    }
    if o.has("prev-kv") { options.with_prev_key() } else { options }
}

fn watch_options(o: &Operation) -> WatchOptions {
    let mut options = WatchOptions::new();
    if o.has("prefix") {
        options = options.with_prefix();
    } else if o.has("from-key") {
        options = options.with_from_key();
    } else if o.args.len() > 2 {
        options = options.with_range(o.arg(2));
    }
    if o.has("rev") {
        options = options.with_start_revision(o.number("rev"));
    }
    if o.has("prev-kv") {
        options = options.with_prev_key();
    }
    if o.has("fragment") {
        options = options.with_fragment();
    }
    let filters: Vec<WatchFilterType> =
        [("no-put", WatchFilterType::NoPut), ("no-delete", WatchFilterType::NoDelete)]
            .into_iter()
            .filter(|(flag, _)| o.has(flag))
            .map(|(_, filter)| filter)
            .collect();
    options.with_filters(filters)
}

fn transaction(o: &Operation) -> Txn {
    let compare = |c: &super::operation::Compare| {
        let result = match c.result.as_str() {
            "=" => CompareOp::Equal,
            "!=" => CompareOp::NotEqual,
            "<" => CompareOp::Less,
            _ => CompareOp::Greater,
        };
        let key = c.key.as_str();
        let compare = match c.target.as_str() {
            "version" => Compare::version(key, result, number(&c.value)),
            "create" => Compare::create_revision(key, result, number(&c.value)),
            "mod" => Compare::mod_revision(key, result, number(&c.value)),
            "lease" => Compare::lease(key, result, number(&c.value)),
            _ => Compare::value(key, result, c.value.as_str()),
        };
        if c.prefix { compare.with_prefix() } else { compare }
    };
    let branch = |list: &[Operation]| -> Vec<TxnOp> {
        list.iter()
            .map(|o| match o.name.as_str() {
                "put" => TxnOp::put(o.arg(0), o.arg(1), Some(put_options(o))),
                "get" => TxnOp::get(o.arg(0), Some(get_options(o))),
                "del" => TxnOp::delete(o.arg(0), Some(delete_options(o))),
                _ => TxnOp::txn(transaction(o)),
            })
            .collect()
    };
    Txn::new()
        .when(o.compare.iter().map(compare).collect::<Vec<_>>())
        .and_then(branch(&o.then))
        .or_else(branch(&o.otherwise))
}

fn put(r: &PutResponse) -> Answer {
    let prev = r.prev_key().map(record).into_iter().collect();
    Answer { revision: at(r.header()), prev, ..Answer::default() }
}

fn get(r: &GetResponse) -> Answer {
    let records = r.kvs().iter().map(record).collect();
    Answer { revision: at(r.header()), count: Some(r.count()), more: r.more(), records, ..Answer::default() }
}

fn delete(r: &DeleteResponse) -> Answer {
    let prev = r.prev_kvs().iter().map(record).collect();
    Answer { revision: at(r.header()), deleted: Some(r.deleted()), prev, ..Answer::default() }
}

fn txn(r: &TxnResponse) -> Answer {
    let response = |one: &TxnOpResponse| {
        let answer = match one {
            TxnOpResponse::Put(r) => put(r),
            TxnOpResponse::Get(r) => get(r),
            TxnOpResponse::Delete(r) => delete(r),
            TxnOpResponse::Txn(r) => txn(r),
        };
        Answer { revision: 0, ..answer }
    };
    Answer {
        revision: at(r.header()),
        succeeded: Some(r.succeeded()),
        responses: r.op_responses().iter().map(response).collect(),
        ..Answer::default()
    }
}

async fn lease(mut client: Client, o: &Operation) -> Result {
    let id = || number(o.arg(0));
    let mut answer = Answer::default();
    match o.name.as_str() {
        "lease-grant" => {
            let granted = client.lease_grant(id(), None).await?;
            (answer.id, answer.number) = (granted.id().to_string(), granted.ttl());
        }
        "lease-revoke" => answer.revision = at(client.lease_revoke(id()).await?.header()),
        "lease-keep-alive" => {
            let (mut keeper, mut stream) = client.lease_keep_alive(id()).await?;
            keeper.keep_alive().await?;
            answer.number = stream.message().await?.map_or(0, |kept| kept.ttl());
        }
        "lease-timetolive" => {
            let options = LeaseTimeToLiveOptions::new();
            let options = if o.has("keys") { options.with_keys() } else { options };
            let found = client.lease_time_to_live(id(), Some(options)).await?;
            let unusual = found.ttl() < 0 || found.ttl() > found.granted_ttl();
            answer.number = if unusual { found.ttl() } else { found.granted_ttl() };
            answer.lines = found.keys().iter().map(|key| text(key)).collect();
        }
        _ => {
            let found = client.leases().await?;
            answer.lines = found.leases().iter().map(|lease| lease.id().to_string()).collect();
        }
    }
    answer.lines.sort();
    Ok(answer)
}

async fn auth(mut client: Client, o: &Operation) -> Result {
    let (first, second) = (o.arg(0), o.arg(1));
    let mut answer = Answer::default();
    match o.name.as_str() {
        "auth-enable" => {
            client.auth_enable().await?;
        }
        "auth-disable" => {
            client.auth_disable().await?;
        }
        "user-add" => {
            let (name, password) = first.split_once(':').unwrap_or((first, ""));
            let options = o.has("no-password").then(|| UserAddOptions::new().with_no_pwd());
            client.user_add(name, password, options).await?;
        }
        "user-delete" => {
            client.user_delete(first).await?;
        }
        "user-passwd" => {
            client.user_change_password(first, second).await?;
        }
        "user-grant-role" => {
            client.user_grant_role(first, second).await?;
        }
        "user-revoke-role" => {
            client.user_revoke_role(first, second).await?;
        }
        "user-get" => answer.lines = client.user_get(first).await?.roles().to_vec(),
        "user-list" => answer.lines = client.user_list().await?.users().to_vec(),
        "role-add" => {
            client.role_add(first).await?;
        }
        "role-delete" => {
            client.role_delete(first).await?;
        }
        "role-list" => answer.lines = client.role_list().await?.roles().to_vec(),
        "role-get" => {
            let line = |permission: &Permission| {
                let kind = ["read", "write", "readwrite"][permission.get_type() as usize];
                let (key, end) = (text(permission.key()), text(permission.range_end()).replace('\0', "\\0"));
                format!("{kind} {key} {end}").trim_end().to_owned()
            };
            answer.lines = client.role_get(first).await?.permissions().iter().map(line).collect();
        }
        "role-grant-permission" => {
            let key = o.arg(2);
            let mut permission = match second {
                "read" => Permission::read(key),
                "write" => Permission::write(key),
                _ => Permission::read_write(key),
            };
            if o.has("prefix") {
                permission = permission.with_prefix();
            } else if o.has("from-key") {
                permission = permission.with_from_key();
            } else if o.args.len() > 3 {
                permission = permission.with_range_end(o.arg(3));
            }
            client.role_grant_permission(first, permission).await?;
        }
        "role-revoke-permission" => {
            let mut options = RoleRevokePermissionOptions::new();
            if o.has("prefix") {
                options = options.with_prefix();
            } else if o.has("from-key") {
                options = options.with_from_key();
            } else if o.args.len() > 2 {
                options = options.with_range_end(o.arg(2));
            }
            client.role_revoke_permission(first, second, Some(options)).await?;
        }
        other => return Err(Error::InvalidArgs(format!("no operation {other}"))),
    }
    Ok(answer)
}
