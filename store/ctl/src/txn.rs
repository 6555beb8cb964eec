//! txn: comparisons and requests from standard input.

use std::io::BufRead;

use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_store_proto::etcdserverpb::kv_client::KvClient;
use keelson_store_proto::etcdserverpb::request_op::Request;
use keelson_store_proto::etcdserverpb::response_op::Response;
use prost::Message as _;

use crate::command::{Command, Failure, INVALID_INPUT, bad_args, fail};
use crate::flags::{Args, Flag, Kind, short};
use crate::output::{Show, header, say};
use crate::session::Settings;
use crate::text::{parse_int, quote, unquote, words};
use crate::{ask, json, kv, line};

pub const TXN: Command = Command {
    long:
        "Txn reads multiple etcd requests from standard input and applies them as a single atomic transaction.

A transaction consists of three components:
1) a list of conditions,
2) a list of requests to apply if all the conditions are true,
3) a list of requests to apply if any condition is false.

Example interactive stdin usage:

---
etcdctl txn -i
# compares:
mod(\"key1\") > \"0\"

# success requests (get, put, delete):
put key1 \"overwrote-key1\"

# failure requests (get, put, delete):
put key1 \"created-key1\"
put key2 \"some extra key\"
---",
    flags: &[short("interactive", 'i', Kind::Bool, "", "Input transaction in interactive mode")],
    run: Some(|args| Box::pin(txn(args))),
    ..Command::new("txn", "[options]", "Txn processes all the requests in one transaction")
};

async fn txn(mut args: Args) -> Result<(), Failure> {
    if !args.words.is_empty() {
        return bad_args("txn command does not accept argument");
    }
    let interactive = args.on("interactive");
    let (settings, output) = Settings::new(&mut args).await?;
    let session = Settings { timeout: None, ..settings }.open().await?;
    let mut input = std::io::stdin().lock();
    let prompt = |text: &str| if interactive { say(text) } else { Ok(()) };
    prompt("compares:")?;
    let compare = paragraph(&mut input, comparison)?;
    prompt("success requests (get, put, del):")?;
    let success = paragraph(&mut input, operation)?;
    prompt("failure requests (get, put, del):")?;
    let failure = paragraph(&mut input, operation)?;
    drop(input);
    let answer = ask!(session, KvClient.txn(pb::TxnRequest { compare, success, failure })).await?;
    output.show(&answer)
}

/// Lines up to an empty one.
fn paragraph<T>(
    input: &mut impl BufRead,
    parse: impl Fn(&str) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    let mut items = Vec::new();
    loop {
        let mut line = String::new();
        let read = input.read_line(&mut line);
        if !read.is_ok_and(|count| count > 0) || !line.ends_with('\n') {
            return fail(INVALID_INPUT, "EOF");
        }
        match line.trim() {
            "" => return Ok(items),
            line => items.push(parse(line)?),
        }
    }
}

/// `target("key") op "value"`.
fn comparison(line: &str) -> Result<pb::Compare, Failure> {
    let malformed = |detail: &str| fail(INVALID_INPUT, format!("malformed comparison: {line}{detail}"));
    let Some((target, rest)) = line.split_once('(') else { return malformed("") };
    let Some((key, rest)) = unquote(rest) else {
        return malformed(&format!("; got {target}(\"\")  \"\""));
    };
    let rest = rest.trim_start();
    let Some(rest) = rest.strip_prefix(')').map(str::trim_start) else {
        return malformed(&format!("; got {target}({})  \"\"", quote(&key)));
    };
    let (sign, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let Some((value, _)) = unquote(rest.trim_start()) else {
        return malformed(&format!("; got {target}({}) {sign} \"\"", quote(&key)));
    };
    let result = match sign {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        _ => return malformed(" (unknown result op)"),
    };
    let value_text = String::from_utf8_lossy(&value).into_owned();
    let number = |radix: u32| {
        parse_int(&value_text, radix)
            .or_else(|_| fail(INVALID_INPUT, format!("invalid txn compare request: {line}")))
    };
    let (target, union) = match target.trim() {
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number(10)?)),
        "c" | "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number(10)?)),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number(10)?)),
        "val" | "value" => (CompareTarget::Value, TargetUnion::Value(value.clone().into())),
        // etcdctl panics here; a lease is named as everywhere else, in hexadecimal.
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number(16)?)),
        other => return malformed(&format!(" (unknown target {other})")),
    };
    Ok(pb::Compare {
        result: result.into(),
        target: target.into(),
        key: key.into(),
        target_union: Some(union),
        ..pb::Compare::default()
    })
}

/// `put`, `get` or `del` with their flags.
fn operation(line: &str) -> Result<pb::RequestOp, Failure> {
    let words = words(line).unwrap_or_default();
    if words.len() < 2 {
        return fail(INVALID_INPUT, format!("invalid txn compare request: {line}"));
    }
    let invalid = || fail(INVALID_INPUT, format!("invalid txn request: {line}"));
    let parse = |flags: &'static [Flag]| Args::parse(&words[1..], flags.iter());
    let request = match words[0].as_str() {
        "put" => match parse(kv::PUT.flags) {
            Ok(args) => Request::RequestPut(kv::put_request(&args)?),
            Err(_) => return invalid(),
        },
        "get" => match parse(kv::GET.flags) {
            Ok(args) => Request::RequestRange(kv::get_request(&args)?),
            Err(_) => return invalid(),
        },
        "del" => match parse(kv::DEL.flags) {
            Ok(args) => Request::RequestDeleteRange(kv::del_request(&args)?),
            Err(_) => return invalid(),
        },
        _ => return invalid(),
    };
    Ok(pb::RequestOp { request: Some(request) })
}

/// The whole answer.
pub fn txn_json(answer: &pb::TxnResponse) -> String {
    json::answer(answer.header.as_ref())
        .flag("succeeded", answer.succeeded)
        .list("responses", &answer.responses, kv::op_json)
        .end()
}

impl Show for pb::TxnResponse {
    fn simple(&self, out: &mut Vec<u8>, hex: bool) {
        line!(out, "{}", if self.succeeded { "SUCCESS" } else { "FAILURE" });
        for op in &self.responses {
            line!(out, "");
            match &op.response {
                Some(Response::ResponseDeleteRange(answer)) => answer.simple(out, hex),
                Some(Response::ResponsePut(answer)) => answer.simple(out, hex),
                Some(Response::ResponseRange(answer)) => {
                    kv::Got { answer, value_only: false }.simple(out, hex);
                }
                other => line!(out, "unexpected response {other:?}"),
            }
        }
    }

    fn fields(&self, out: &mut Vec<u8>, hex: bool) -> bool {
        header(out, self.header.as_ref(), hex);
        line!(out, "\"Succeeded\" : {}", self.succeeded);
        for op in &self.responses {
            match &op.response {
                Some(Response::ResponseDeleteRange(answer)) => answer.fields(out, hex),
                Some(Response::ResponsePut(answer)) => answer.fields(out, hex),
                Some(Response::ResponseRange(answer)) => {
                    kv::Got { answer, value_only: false }.fields(out, hex)
                }
                other => {
                    line!(out, "\"Unknown\" : {:?}", format!("{other:?}"));
                    true
                }
            };
        }
        true
    }

    fn json(&self, _: bool) -> Option<String> {
        Some(txn_json(self))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons() {
        let parsed = comparison(r#"mod("a b") > "3""#).expect("good");
        assert_eq!(parsed.key.as_ref(), b"a b");
        assert_eq!(parsed.target_union, Some(TargetUnion::ModRevision(3)));
        assert_eq!(comparison("bad").expect_err("bad").message, "malformed comparison: bad");
        assert_eq!(comparison(r#"x("a") = "1""#).expect_err("bad").code, INVALID_INPUT);
        assert_eq!(
            comparison(r#"mod("a") = "x""#).expect_err("bad").message,
            r#"invalid txn compare request: mod("a") = "x""#
        );
    }

    #[test]
    fn requests() {
        let Some(Request::RequestRange(get)) = operation("get --prefix ''").expect("good").request else {
            panic!("a get")
        };
        assert_eq!((get.key.as_ref(), get.range_end.as_ref()), (&b"\0"[..], &b"\0"[..]));
        assert_eq!(operation("nope a").expect_err("bad").message, "invalid txn request: nope a");
        assert_eq!(operation("get").expect_err("bad").code, INVALID_INPUT);
    }
}
