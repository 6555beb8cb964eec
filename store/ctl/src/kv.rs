//! get, put, del, compaction.

use std::io::Read;

use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::kv_client::KvClient;
use keelson_store_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelson_store_proto::mvccpb::KeyValue;
use prost::Message as _;

use crate::command::{BAD_FEATURE, Command, ERROR, Failure, bad_args, fail};
use crate::flags::{Args, Kind, flag};
use crate::output::{Format, Show, header, kv_fields, kv_lines, say};
use crate::session::Settings;
use crate::text::{parse_int, prefix_end};
use crate::{ask, json, line};

pub const GET: Command = Command {
    flags: &[
        flag("consistency", Kind::Text, "l", "Linearizable(l) or Serializable(s)"),
        flag("order", Kind::Text, "", "Order of results; ASCEND or DESCEND (ASCEND by default)"),
        flag("sort-by", Kind::Text, "", "Sort target; CREATE, KEY, MODIFY, VALUE, or VERSION"),
        flag("limit", Kind::Int, "", "Maximum number of results"),
        flag("prefix", Kind::Bool, "", "Get keys with matching prefix"),
        flag(
            "from-key",
            Kind::Bool,
            "",
            "Get keys that are greater than or equal to the given key using byte compare",
        ),
        flag("rev", Kind::Int, "", "Specify the kv revision"),
        flag("keys-only", Kind::Bool, "", "Get only the keys"),
        flag("count-only", Kind::Bool, "", "Get only the count"),
        flag("print-value-only", Kind::Bool, "", "Only write values when using the \"simple\" output format"),
        flag("min-create-rev", Kind::Int, "", "Minimum create revision"),
        flag("max-create-rev", Kind::Int, "", "Maximum create revision"),
        flag("min-mod-rev", Kind::Int, "", "Minimum modification revision"),
        flag("max-mod-rev", Kind::Int, "", "Maximum modification revision"),
        flag("stream", Kind::Bool, "", "Use the RangeStream RPC"),
    ],
    run: Some(|args| Box::pin(get(args))),
    ..Command::new("get", "[options] <key> [range_end]", "Gets the key or a range of keys")
};

pub const PUT: Command = Command {
    long: "
Puts the given key into the store.

When <value> begins with '-', <value> is interpreted as a flag.
Insert '--' for workaround:

$ put <key> -- <value>
$ put -- <key> <value>

If <value> isn't given as a command line argument and '--ignore-value' is not specified,
this command tries to read the value from standard input.

If <lease> isn't given as a command line argument and '--ignore-lease' is not specified,
this command tries to read the value from standard input.

For example,
$ cat file | put <key>
will store the content of the file to <key>.
",
    flags: &[
        flag("lease", Kind::Text, "0", "lease ID (in hexadecimal) to attach to the key"),
        flag("prev-kv", Kind::Bool, "", "return the previous key-value pair before modification"),
        flag("ignore-value", Kind::Bool, "", "updates the key using its current value"),
        flag("ignore-lease", Kind::Bool, "", "updates the key using its current lease"),
    ],
    run: Some(|args| Box::pin(put(args))),
    ..Command::new(
        "put",
        "[options] <key> <value> (<value> can also be given from stdin)",
        "Puts the given key into the store",
    )
};

pub const DEL: Command = Command {
    flags: &[
        flag("prefix", Kind::Bool, "", "delete keys with matching prefix"),
        flag("prev-kv", Kind::Bool, "", "return deleted key-value pairs"),
        flag(
            "from-key",
            Kind::Bool,
            "",
            "delete keys that are greater than or equal to the given key using byte compare",
        ),
        flag("range", Kind::Bool, "", "delete range of keys"),
    ],
    run: Some(|args| Box::pin(del(args))),
    ..Command::new(
        "del",
        "[options] <key> [range_end]",
        "Removes the specified key or range of keys [key, range_end)",
    )
};

pub const COMPACTION: Command = Command {
    flags: &[flag(
        "physical",
        Kind::Bool,
        "",
        "'true' to wait for compaction to physically remove all old revisions",
    )],
    run: Some(|args| Box::pin(compaction(args))),
    ..Command::new("compaction", "[options] <revision>", "Compacts the event history in etcd")
};

/// `l` or `s`.
///
/// # Errors
/// Anything else.
pub fn serializable(consistency: &str) -> Result<bool, Failure> {
    match consistency {
        "s" => Ok(true),
        "l" => Ok(false),
        other => fail(BAD_FEATURE, format!("unknown consistency flag {other:?}")),
    }
}

/// Key and end of `--prefix`, `--from-key`, or two arguments.
fn range_of(args: &Args) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let key = args.words[0].clone().into_bytes();
    let (prefix, from) = (args.on("prefix"), args.on("from-key"));
    if let Some(end) = args.words.get(1) {
        if prefix || from {
            return bad_args(
                "too many arguments, only accept one argument when `--prefix` or `--from-key` is set",
            );
        }
        return Ok((key, end.clone().into_bytes()));
    }
    Ok(match (prefix, from, key.is_empty()) {
        (true, _, false) => {
            let end = prefix_end(&key);
            (key, end)
        }
        (true, _, true) | (_, true, true) => (vec![0], vec![0]),
        (_, true, false) => (key, vec![0]),
        _ => (key, Vec::new()),
    })
}

const BOTH: &str = "`--prefix` and `--from-key` cannot be set at the same time, choose one";

/// The request of `get`.
///
/// # Errors
/// Arguments that do not go together.
pub fn get_request(args: &Args) -> Result<pb::RangeRequest, Failure> {
    if args.words.is_empty() {
        return bad_args("get command needs one argument as key and an optional argument as range_end");
    }
    if args.on("prefix") && args.on("from-key") {
        return bad_args(BOTH);
    }
    if args.on("keys-only") && args.on("count-only") {
        return bad_args("`--keys-only` and `--count-only` cannot be set at the same time, choose one");
    }
    let serializable = serializable(args.text("consistency"))?;
    let (key, range_end) = range_of(args)?;
    let order = match args.text("order").to_uppercase().as_str() {
        "" => SortOrder::None,
        "ASCEND" => SortOrder::Ascend,
        "DESCEND" => SortOrder::Descend,
        _ => return fail(BAD_FEATURE, format!("bad sort order {}", args.text("order"))),
    };
    let target = match args.text("sort-by").to_uppercase().as_str() {
        "" | "KEY" => SortTarget::Key,
        "CREATE" => SortTarget::Create,
        "MODIFY" => SortTarget::Mod,
        "VALUE" => SortTarget::Value,
        "VERSION" => SortTarget::Version,
        _ => return fail(BAD_FEATURE, format!("bad sort target {}", args.text("sort-by"))),
    };
    // Ascending by key is the order anyway; etcd's client leaves it out so that the server need not sort.
    let order = if target == SortTarget::Key && order == SortOrder::Ascend { SortOrder::None } else { order };
    for (min, max, shown) in
        [("min-create-rev", "max-create-rev", "Create"), ("min-mod-rev", "max-mod-rev", "Mod")]
    {
        let (low, high) = (args.int(min), args.int(max));
        if high > 0 && low > high {
            return fail(BAD_FEATURE, format!("getMin{shown}Rev(={low}) > getMax{shown}Rev(={high})"));
        }
    }
    Ok(pb::RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        limit: args.int("limit"),
        revision: args.int("rev").max(0),
        sort_order: order.into(),
        sort_target: target.into(),
        serializable,
        keys_only: args.on("keys-only"),
        count_only: args.on("count-only"),
        min_create_revision: args.int("min-create-rev").max(0),
        max_create_revision: args.int("max-create-rev").max(0),
        min_mod_revision: args.int("min-mod-rev").max(0),
        max_mod_revision: args.int("max-mod-rev").max(0),
    })
}

/// The request of `put`.
///
/// # Errors
/// Arguments that do not go together.
pub fn put_request(args: &Args) -> Result<pb::PutRequest, Failure> {
    const NEEDS: &str = "put command needs 1 argument and input from stdin or 2 arguments";
    let Some(key) = args.words.first() else { return bad_args(NEEDS) };
    let ignore_value = args.on("ignore-value");
    if ignore_value && args.words.len() > 1 {
        return bad_args("put command needs only 1 argument when 'ignore-value' is set");
    }
    let value = match args.words.get(1) {
        _ if ignore_value => Vec::new(),
        Some(value) => value.clone().into_bytes(),
        None => {
            let mut value = Vec::new();
            let read = std::io::stdin().read_to_end(&mut value);
            if read.is_err() || value.is_empty() {
                return bad_args(NEEDS);
            }
            value
        }
    };
    let lease = parse_int(args.text("lease"), 16)
        .or_else(|error| bad_args(format!("bad lease ID ({error}), expecting ID in Hex")))?;
    Ok(pb::PutRequest {
        key: key.clone().into(),
        value: value.into(),
        lease,
        prev_kv: args.on("prev-kv"),
        ignore_value,
        ignore_lease: args.on("ignore-lease"),
    })
}

/// The request of `del`; the pause before a range is deleted is its caller's.
///
/// # Errors
/// Arguments that do not go together.
pub fn del_request(args: &Args) -> Result<pb::DeleteRangeRequest, Failure> {
    if args.words.is_empty() || args.words.len() > 2 {
        return bad_args("del command needs one argument as key and an optional argument as range_end");
    }
    if args.on("prefix") && args.on("from-key") {
        return bad_args(BOTH);
    }
    let (key, range_end) = range_of(args)?;
    Ok(pb::DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: args.on("prev-kv") })
}

async fn get(mut args: Args) -> Result<(), Failure> {
    let request = get_request(&args)?;
    let (settings, output) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    let answer = if args.on("stream") {
        streamed(&session, request).await?
    } else {
        ask!(session, KvClient.range(request)).await?
    };
    if args.on("count-only") && output.format != Format::Fields {
        return bad_args("--count-only is only for `--write-out=fields`");
    }
    let value_only = args.on("print-value-only");
    if value_only && !output.is_simple() {
        return bad_args("print-value-only is only for `--write-out=simple`");
    }
    output.show(&Got { answer: &answer, value_only })
}

async fn streamed(
    session: &crate::session::Session,
    request: pb::RangeRequest,
) -> Result<pb::RangeResponse, Failure> {
    let mut stream = ask!(session, KvClient.range_stream(request)).await?;
    let mut whole = pb::RangeResponse::default();
    loop {
        match stream.message().await {
            Ok(Some(chunk)) => {
                let Some(part) = chunk.range_response else { continue };
                whole.kvs.extend(part.kvs);
                whole.header = part.header.or(whole.header);
                whole.more |= part.more;
                whole.count = whole.count.max(part.count);
            }
            Ok(None) => return Ok(whole),
            Err(status) => return fail(ERROR, crate::session::explain(&status)),
        }
    }
}

async fn put(mut args: Args) -> Result<(), Failure> {
    let request = put_request(&args)?;
    let (settings, output) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    let answer = ask!(session, KvClient.put(request)).await?;
    output.show(&answer)
}

async fn del(mut args: Args) -> Result<(), Failure> {
    let request = del_request(&args)?;
    if let (Some(end), false) = (args.words.get(1), args.on("range")) {
        eprintln!(
            "Warning: Keys between {:?} and {end:?} will be deleted. Please interrupt the command within next 2 \
             seconds to cancel. You can provide `--range` flag to avoid the delay.",
            args.words[0]
        );
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    }
    let (settings, output) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    let answer = ask!(session, KvClient.delete_range(request)).await?;
    output.show(&answer)
}

async fn compaction(mut args: Args) -> Result<(), Failure> {
    let [revision] = args.words.as_slice() else { return bad_args("compaction command needs 1 argument") };
    let revision = parse_int(revision, 10).or_else(|error| fail(ERROR, error))?;
    let request = pb::CompactionRequest { revision, physical: args.on("physical") };
    let (settings, _) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    ask!(session, KvClient.compact(request)).await?;
    say(format!("compacted revision {revision}"))
}

/// An answer to `get`.
pub struct Got<'a> {
    pub answer: &'a pb::RangeResponse,
    pub value_only: bool,
}

fn range_json(answer: &pb::RangeResponse) -> String {
    json::answer(answer.header.as_ref())
        .list("kvs", &answer.kvs, json::kv)
        .flag("more", answer.more)
        .number("count", answer.count)
        .end()
}

impl Show for Got<'_> {
    fn simple(&self, out: &mut Vec<u8>, hex: bool) {
        self.answer.kvs.iter().for_each(|kv| kv_lines(out, kv, hex, self.value_only));
    }

    fn fields(&self, out: &mut Vec<u8>, hex: bool) -> bool {
        header(out, self.answer.header.as_ref(), hex);
        self.answer.kvs.iter().for_each(|kv| kv_fields(out, "", kv, hex));
        line!(out, "\"More\" : {}", self.answer.more);
        line!(out, "\"Count\" : {}", self.answer.count);
        true
    }

    fn json(&self, _: bool) -> Option<String> {
        Some(range_json(self.answer))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.answer.encode_to_vec())
    }
}

impl Show for pb::PutResponse {
    fn simple(&self, out: &mut Vec<u8>, hex: bool) {
        line!(out, "OK");
        self.prev_kv.iter().for_each(|kv| kv_lines(out, kv, hex, false));
    }

    fn fields(&self, out: &mut Vec<u8>, hex: bool) -> bool {
        header(out, self.header.as_ref(), hex);
        self.prev_kv.iter().for_each(|kv| kv_fields(out, "Prev", kv, hex));
        true
    }

    fn json(&self, _: bool) -> Option<String> {
        Some(put_json(self))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

fn put_json(answer: &pb::PutResponse) -> String {
    json::answer(answer.header.as_ref()).maybe("prev_kv", answer.prev_kv.as_ref().map(json::kv)).end()
}

impl Show for pb::DeleteRangeResponse {
    fn simple(&self, out: &mut Vec<u8>, hex: bool) {
        line!(out, "{}", self.deleted);
        self.prev_kvs.iter().for_each(|kv| kv_lines(out, kv, hex, false));
    }

    fn fields(&self, out: &mut Vec<u8>, hex: bool) -> bool {
        header(out, self.header.as_ref(), hex);
        line!(out, "\"Deleted\" : {}", self.deleted);
        let each = |kv: &KeyValue| kv_fields(out, "Prev", kv, hex);
        self.prev_kvs.iter().for_each(each);
        true
    }

    fn json(&self, _: bool) -> Option<String> {
        Some(delete_json(self))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

fn delete_json(answer: &pb::DeleteRangeResponse) -> String {
    json::answer(answer.header.as_ref())
        .number("deleted", answer.deleted)
        .list("prev_kvs", &answer.prev_kvs, json::kv)
        .end()
}

/// One answer within a transaction's.
pub fn op_json(op: &pb::ResponseOp) -> String {
    use pb::response_op::Response;
    let (name, value) = match &op.response {
        Some(Response::ResponseRange(answer)) => ("response_range", range_json(answer)),
        Some(Response::ResponsePut(answer)) => ("response_put", put_json(answer)),
        Some(Response::ResponseDeleteRange(answer)) => ("response_delete_range", delete_json(answer)),
        Some(Response::ResponseTxn(answer)) => ("response_txn", crate::txn::txn_json(answer)),
        None => return json::Object::default().raw("Response", "{}").end(),
    };
    json::Object::default().raw("Response", json::Object::default().raw(name, value).end()).end()
}
