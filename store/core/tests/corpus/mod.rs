//! From gateway JSON to the core's requests and back, and the replay.

pub mod watch;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use keelson_store_core::compact::Scrub;
use keelson_store_core::{
    Batch, Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, DeleteRangeResponse, Error,
    KeyValue, MemoryBackend, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, Response,
    ResponseOp, RevisionEvents, SortOrder, SortTarget, Stamp, State, TxnRequest, TxnResponse, apply, check,
    invariants, range,
};
use serde_json::{Map, Value, json};

/// etcd's default --max-txn-ops.
const MAX_TXN_OPS: usize = 128;

pub fn sequences(file: &Path) -> Vec<Value> {
    let reader = BufReader::new(flate2::read::GzDecoder::new(File::open(file).expect("the recording opens")));
    let parse =
        |line: std::io::Result<String>| serde_json::from_str(&line.expect("gzip")).expect("a line is JSON");
    reader.lines().map(parse).collect()
}

/// Panics on the first answer that differs; returns how many were compared.
pub fn replay(sequence: &Value) -> usize {
    let mut store = Store::default();
    let id = &sequence["id"];
    let steps = sequence["steps"].as_array().expect("steps");
    for (at, step) in steps.iter().enumerate() {
        let mut ours = store.call(step["call"].as_str().expect("a call"), &step["req"]);
        let mut theirs = step["res"]["body"].clone();
        if step["unstable_ties"] == json!(true) {
            sort_kvs(&mut ours);
            sort_kvs(&mut theirs);
        }
        blur(&mut ours);
        blur(&mut theirs);
        assert!(
            ours == theirs,
            "{id} step {at}: {}\nours   {ours}\ntheirs {theirs}",
            step["call"].to_string() + &step["req"].to_string()
        );
    }
    let broken = invariants::violated(&store.state, &store.backend);
    assert!(broken.is_empty(), "{id}: {:?}", broken.iter().map(|i| i.name).collect::<Vec<_>>());
    steps.len()
}

/// Remaining seconds are not a fact; that there are some is. Lists without an order are sorted.
fn blur(body: &mut Value) {
    if body.get("grantedTTL").is_some() && body["TTL"] != json!("-1") {
        body["TTL"] = json!("left");
    }
    if let Some(keys) = body.get_mut("keys").and_then(Value::as_array_mut) {
        keys.sort_by_key(Value::to_string);
    }
    if let Some(leases) = body.get_mut("leases").and_then(Value::as_array_mut) {
        leases.sort_by_key(Value::to_string);
    }
    if let Some(object) = body.as_object_mut() {
        object.remove("details");
    }
}

fn sort_kvs(body: &mut Value) {
    if let Some(kvs) = body.get_mut("kvs").and_then(Value::as_array_mut) {
        kvs.sort_by_key(Value::to_string);
    }
}

#[derive(Default)]
struct Store {
    state: State,
    backend: MemoryBackend,
    index: u64,
    published: Vec<RevisionEvents>,
}

impl Store {
    fn run(&mut self, command: Command) -> Result<Response, Error> {
        self.index += 1;
        let stamp = Stamp { term: 1, millis: self.index };
        let batch = Batch { stamp, commands: vec![command] };
        let effects = apply(&mut self.state, &self.backend, self.index, &batch);
        self.backend.write(&effects.writes);
        self.published.extend(effects.events);
        // Scrub in small slices, as a member under load would.
        let mut scrub = Scrub::due(&self.state, &self.backend).filter(|_| self.index.is_multiple_of(3));
        while let Some(due) = scrub {
            let slice = due.slice(&self.backend, 3);
            self.backend.write(&slice.writes);
            scrub = slice.next;
        }
        effects.responses.into_iter().next().expect("one command, one answer")
    }

    fn call(&mut self, path: &str, req: &Value) -> Value {
        match self.answer(path, req) {
            Ok(body) => body,
            Err(error) => json!({ "code": error.code() as i32, "message": error.to_string() }),
        }
    }

    fn answer(&mut self, path: &str, req: &Value) -> Result<Value, Error> {
        let id = int(req, "ID");
        match path {
            "/v3/kv/range" => {
                let request = range_request(req);
                check::range(&request)?;
                Ok(range_json(&range(&self.state, &self.backend, &request)?))
            }
            "/v3/kv/put" => {
                let request = put_request(req);
                check::put(&request)?;
                self.command(Command::Put(request))
            }
            "/v3/kv/deleterange" => {
                let request = delete_request(req);
                check::delete_range(&request)?;
                self.command(Command::DeleteRange(request))
            }
            "/v3/kv/txn" => {
                let request = txn_request(req);
                check::txn(&request, MAX_TXN_OPS)?;
                if keelson_store_core::txn::is_read_only(&request) {
                    let response = keelson_store_core::txn::read_txn(&self.state, &self.backend, &request)?;
                    return Ok(txn_json(&response));
                }
                self.command(Command::Txn(request))
            }
            "/v3/kv/compaction" => self.command(Command::Compact { revision: int(req, "revision") }),
            "/v3/lease/grant" => {
                let ttl = int(req, "TTL").max(2);
                check::lease_grant(id, ttl)?;
                self.command(Command::LeaseGrant { id, ttl })
            }
            "/v3/lease/revoke" | "/v3/kv/lease/revoke" => self.command(Command::LeaseRevoke { id }),
            "/v3/lease/timetolive" => {
                let keys = req["keys"] == json!(true);
                let left = self.state.time_to_live(&self.backend, id, keys, Stamp::default());
                let mut body = header(self.state.revision());
                put_int(&mut body, "ID", left.id);
                put_int(&mut body, "TTL", left.ttl);
                put_int(&mut body, "grantedTTL", left.granted_ttl);
                let keys: Vec<Value> = left.keys.iter().map(|key| bytes_json(key)).collect();
                put_list(&mut body, "keys", keys);
                Ok(body.into())
            }
            "/v3/lease/leases" => {
                let mut body = header(self.state.revision());
                let leases = self.state.lessor().by_expiry().map(|id| json!({ "ID": id.to_string() }));
                put_list(&mut body, "leases", leases.collect());
                Ok(body.into())
            }
            other => panic!("the recordings have no {other}"),
        }
    }

    fn command(&mut self, command: Command) -> Result<Value, Error> {
        Ok(match self.run(command)? {
            Response::Put(put) => put_json(&put),
            Response::DeleteRange(delete) => delete_json(&delete),
            Response::Txn(txn) => txn_json(&txn),
            Response::LeaseGrant { revision, id, ttl } => {
                let mut body = header(revision);
                put_int(&mut body, "ID", id);
                put_int(&mut body, "TTL", ttl);
                body.into()
            }
            other => header(other.revision()).into(),
        })
    }
}

fn int(value: &Value, name: &str) -> i64 {
    match &value[name] {
        Value::String(text) => text.parse().expect("an int64 as a string"),
        Value::Number(number) => number.as_i64().expect("an int64"),
        _ => 0,
    }
}

fn bytes(value: &Value, name: &str) -> Bytes {
    value[name].as_str().map(|text| STANDARD.decode(text).expect("base64").into()).unwrap_or_default()
}

fn flag(value: &Value, name: &str) -> bool {
    value[name] == json!(true)
}

/// The number of an enum value given by name or number; -1 for one that does not exist.
fn number_of(value: &Value, names: &[&str]) -> i32 {
    match value {
        Value::Null => 0,
        Value::String(name) => names.iter().position(|known| known == name).map_or(-1, |at| at as i32),
        other => other.as_i64().unwrap_or(-1) as i32,
    }
}

fn range_request(req: &Value) -> RangeRequest {
    let order = number_of(&req["sort_order"], &["NONE", "ASCEND", "DESCEND"]);
    let target = number_of(&req["sort_target"], &["KEY", "VERSION", "CREATE", "MOD", "VALUE"]);
    RangeRequest {
        key: bytes(req, "key"),
        range_end: bytes(req, "range_end"),
        limit: int(req, "limit"),
        revision: int(req, "revision"),
        sort_order: SortOrder::from_wire(order),
        sort_target: SortTarget::from_wire(target),
        keys_only: flag(req, "keys_only"),
        count_only: flag(req, "count_only"),
        min_mod_revision: int(req, "min_mod_revision"),
        max_mod_revision: int(req, "max_mod_revision"),
        min_create_revision: int(req, "min_create_revision"),
        max_create_revision: int(req, "max_create_revision"),
    }
}

fn put_request(req: &Value) -> PutRequest {
    PutRequest {
        key: bytes(req, "key"),
        value: bytes(req, "value"),
        lease: int(req, "lease"),
        prev_kv: flag(req, "prev_kv"),
        ignore_value: flag(req, "ignore_value"),
        ignore_lease: flag(req, "ignore_lease"),
    }
}

fn delete_request(req: &Value) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: bytes(req, "key"),
        range_end: bytes(req, "range_end"),
        prev_kv: flag(req, "prev_kv"),
    }
}

fn txn_request(req: &Value) -> TxnRequest {
    let list = |name: &str| req[name].as_array().cloned().unwrap_or_default();
    let ops = |name: &str| list(name).iter().map(op).collect();
    TxnRequest {
        compare: list("compare").iter().map(compare).collect(),
        success: ops("success"),
        failure: ops("failure"),
    }
}

fn op(req: &Value) -> RequestOp {
    let of = |name: &str| req.get(name);
    if let Some(req) = of("request_range") {
        return RequestOp::Range(range_request(req));
    }
    if let Some(req) = of("request_put") {
        return RequestOp::Put(put_request(req));
    }
    if let Some(req) = of("request_delete_range") {
        return RequestOp::DeleteRange(delete_request(req));
    }
    if let Some(req) = of("request_txn") {
        return RequestOp::Txn(txn_request(req));
    }
    RequestOp::Unset
}

fn compare(req: &Value) -> Compare {
    let result = match number_of(&req["result"], &["EQUAL", "GREATER", "LESS", "NOT_EQUAL"]) {
        0 => CompareResult::Equal,
        1 => CompareResult::Greater,
        2 => CompareResult::Less,
        _ => CompareResult::NotEqual,
    };
    let target = match number_of(&req["target"], &["VERSION", "CREATE", "MOD", "VALUE", "LEASE"]) {
        0 => CompareTarget::Version(int(req, "version")),
        1 => CompareTarget::Create(int(req, "create_revision")),
        2 => CompareTarget::Mod(int(req, "mod_revision")),
        3 => CompareTarget::Value(bytes(req, "value")),
        _ => CompareTarget::Lease(int(req, "lease")),
    };
    Compare { key: bytes(req, "key"), range_end: bytes(req, "range_end"), result, target }
}

fn header(revision: i64) -> Map<String, Value> {
    let mut header = Map::new();
    put_int(&mut header, "revision", revision);
    let mut body = Map::new();
    body.insert("header".into(), header.into());
    body
}

fn put_int(body: &mut Map<String, Value>, name: &str, number: i64) {
    if number != 0 {
        body.insert(name.into(), number.to_string().into());
    }
}

fn put_list(body: &mut Map<String, Value>, name: &str, list: Vec<Value>) {
    if !list.is_empty() {
        body.insert(name.into(), list.into());
    }
}

fn put_true(body: &mut Map<String, Value>, name: &str, flag: bool) {
    if flag {
        body.insert(name.into(), true.into());
    }
}

fn bytes_json(bytes: &[u8]) -> Value {
    STANDARD.encode(bytes).into()
}

fn kv_json(kv: &KeyValue) -> Value {
    let mut out = Map::new();
    out.insert("key".into(), bytes_json(&kv.key));
    put_int(&mut out, "create_revision", kv.create_revision);
    put_int(&mut out, "mod_revision", kv.mod_revision);
    put_int(&mut out, "version", kv.version);
    if !kv.value.is_empty() {
        out.insert("value".into(), bytes_json(&kv.value));
    }
    put_int(&mut out, "lease", kv.lease);
    out.into()
}

fn range_json(range: &RangeResponse) -> Value {
    let mut body = header(range.revision);
    put_list(&mut body, "kvs", range.kvs.iter().map(kv_json).collect());
    put_true(&mut body, "more", range.more);
    put_int(&mut body, "count", range.count);
    body.into()
}

fn put_json(put: &PutResponse) -> Value {
    let mut body = header(put.revision);
    if let Some(kv) = &put.prev_kv {
        body.insert("prev_kv".into(), kv_json(kv));
    }
    body.into()
}

fn delete_json(delete: &DeleteRangeResponse) -> Value {
    let mut body = header(delete.revision);
    put_int(&mut body, "deleted", delete.deleted);
    put_list(&mut body, "prev_kvs", delete.prev_kvs.iter().map(kv_json).collect());
    body.into()
}

fn txn_json(txn: &TxnResponse) -> Value {
    let mut body = header(txn.revision);
    put_true(&mut body, "succeeded", txn.succeeded);
    let responses = txn.responses.iter().map(|response| match response {
        ResponseOp::Range(range) => json!({ "response_range": range_json(range) }),
        ResponseOp::Put(put) => json!({ "response_put": put_json(put) }),
        ResponseOp::DeleteRange(delete) => json!({ "response_delete_range": delete_json(delete) }),
        ResponseOp::Txn(txn) => json!({ "response_txn": txn_json(txn) }),
    });
    put_list(&mut body, "responses", responses.collect());
    body.into()
}
