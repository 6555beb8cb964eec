//! watch, plain and interactive, with a command run for each event.

use std::collections::BTreeMap;
use std::sync::Arc;

use keelson_store_proto::etcdserverpb as pb;
use keelson_store_proto::etcdserverpb::watch_client::WatchClient;
use keelson_store_proto::etcdserverpb::watch_request::RequestUnion;
use keelson_store_proto::mvccpb::event::EventType;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::command::{
    BAD_ARGS, BAD_CONNECTION, Command, ERROR, Failure, INTERRUPTED, INVALID_INPUT, bad_args, fail,
};
use crate::flags::{Args, Kind, flag, short};
use crate::output::{Output, Show, header, kv_fields, kv_lines, say};
use crate::session::{Session, Settings, explain};
use crate::text::{prefix_end, quote, words};
use crate::{json, line};

pub const WATCH: Command = Command {
    flags: &[
        short("interactive", 'i', Kind::Bool, "", "Interactive mode"),
        flag("prefix", Kind::Bool, "", "Watch on a prefix if prefix is set"),
        flag("rev", Kind::Int, "", "Revision to start watching"),
        flag("prev-kv", Kind::Bool, "", "get the previous key-value pair before the event happens"),
        flag("progress-notify", Kind::Bool, "", "get periodic watch progress notification from server"),
    ],
    run: Some(|args| Box::pin(watch(args))),
    ..Command::new(
        "watch",
        "[options] [key or prefix] [range_end] [--] [exec-command arg1 arg2 ...]",
        "Watches events stream on keys or prefixes",
    )
};

/// What to watch, and what to run for each event.
struct Wanted {
    request: pb::WatchCreateRequest,
    command: Arc<Vec<String>>,
}

/// Keys come from the arguments before `--`, or from the environment.
fn wanted(args: &Args) -> Result<Wanted, String> {
    let (key, end) = (variable("ETCDCTL_WATCH_KEY"), variable("ETCDCTL_WATCH_RANGE_END"));
    let split = args.separator.unwrap_or(args.words.len());
    let (keys, command) = args.words.split_at(split);
    if args.separator.is_some() && command.is_empty() {
        return Err("bad number of arguments (found separator --, but no commands)".to_owned());
    }
    if !key.is_empty() && !keys.is_empty() {
        return Err("bad number of arguments (found conflicting environment key)".to_owned());
    }
    let keys: Vec<String> = match keys {
        [] => [key, end].into_iter().filter(|key| !key.is_empty()).collect(),
        keys => keys.to_vec(),
    };
    let (first, end) = match keys.as_slice() {
        [first] => (first, None),
        [_, _] if args.on("prefix") => {
            return Err("`range_end` and `--prefix` are mutually exclusive".to_owned());
        }
        [first, end] => (first, Some(end)),
        _ => return Err("bad number of arguments".to_owned()),
    };
    let key = first.clone().into_bytes();
    let (key, range_end) = match end {
        Some(end) => (key, end.clone().into_bytes()),
        None if args.on("prefix") && key.is_empty() => (vec![0], vec![0]),
        None if args.on("prefix") => {
            let end = prefix_end(&key);
            (key, end)
        }
        None => (key, Vec::new()),
    };
    let request = pb::WatchCreateRequest {
        key: key.into(),
        range_end: range_end.into(),
        start_revision: args.int("rev"),
        prev_kv: args.on("prev-kv"),
        progress_notify: args.on("progress-notify"),
        ..pb::WatchCreateRequest::default()
    };
    Ok(Wanted { request, command: Arc::new(command.to_vec()) })
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// One stream with its watchers, each with what it runs.
struct Stream {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: tonic::Streaming<pb::WatchResponse>,
    commands: BTreeMap<i64, Arc<Vec<String>>>,
    output: Output,
}

fn message(union: RequestUnion) -> pb::WatchRequest {
    pb::WatchRequest { request_union: Some(union) }
}

impl Stream {
    /// Opens a stream whose first watcher has the id 1; etcd answers only once something was asked.
    async fn open(session: &Session, first: Wanted, output: Output) -> Result<Stream, Failure> {
        let session = session.requiring_leader().without_timeout();
        let create = pb::WatchCreateRequest { watch_id: 1, ..first.request };
        // Requests that wait for the wire. A try that reached nobody leaves a fresh channel to the next.
        let sender = Arc::new(std::sync::Mutex::new(None));
        let limit = session.settings.receive_limit;
        let kept = sender.clone();
        let send = move |service| -> futures::future::BoxFuture<'static, _> {
            let (requests, outgoing) = mpsc::channel(64);
            // The channel is new: there is room.
            let _ = requests.try_send(message(RequestUnion::CreateRequest(create.clone())));
            *kept.lock().expect("no panic while locked") = Some(requests);
            Box::pin(async move {
                let mut client = WatchClient::new(service).max_decoding_message_size(limit);
                client.watch(ReceiverStream::new(outgoing)).await
            })
        };
        let answers = session.call(send).await;
        let answers =
            answers.map_err(|status| Failure { code: BAD_CONNECTION, message: explain(&status) })?;
        let requests = sender.lock().expect("no panic while locked").take();
        let Some(requests) = requests else {
            return fail(BAD_CONNECTION, "the watch stream was never opened");
        };
        Ok(Stream { requests, answers, commands: BTreeMap::from([(1, first.command)]), output })
    }

    async fn ask(&self, union: RequestUnion) -> Result<(), Failure> {
        let sent = self.requests.send(message(union)).await;
        sent.or_else(|_| fail(BAD_CONNECTION, "the watch stream has ended"))
    }

    /// Watches more on the same stream.
    async fn add(&mut self, wanted: Wanted) -> Result<(), Failure> {
        let id = self.commands.len() as i64 + 1;
        self.commands.insert(id, wanted.command);
        self.ask(RequestUnion::CreateRequest(pb::WatchCreateRequest { watch_id: id, ..wanted.request })).await
    }

    /// Prints the next answer; `false` once the stream has ended.
    async fn next(&mut self) -> Result<bool, Failure> {
        let answer = match self.answers.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(false),
            Err(status) => {
                eprintln!("watch was canceled ({})", explain(&status));
                return Ok(false);
            }
        };
        self.print(&answer).await?;
        if answer.canceled {
            self.commands.remove(&answer.watch_id);
        }
        Ok(!self.commands.is_empty())
    }

    async fn print(&self, answer: &pb::WatchResponse) -> Result<(), Failure> {
        if answer.canceled {
            eprintln!("watch was canceled ({})", reason(answer));
        } else if answer.created {
            return Ok(());
        } else if answer.events.is_empty() && answer.compact_revision == 0 {
            let revision = answer.header.as_ref().map_or(0, |header| header.revision);
            say(format!("progress notify: {revision}"))?;
        }
        self.output.show(answer)?;
        let Some(command) = self.commands.get(&answer.watch_id).filter(|command| !command.is_empty()) else {
            return Ok(());
        };
        for event in &answer.events {
            run(command, answer, event).await?;
        }
        Ok(())
    }
}

fn reason(answer: &pb::WatchResponse) -> String {
    match (answer.compact_revision, answer.cancel_reason.as_str()) {
        (0, "") => "etcdserver: mvcc: required revision is a future revision".to_owned(),
        (0, reason) => reason.to_owned(),
        _ => "etcdserver: mvcc: required revision has been compacted".to_owned(),
    }
}

async fn run(
    command: &[String],
    answer: &pb::WatchResponse,
    event: &keelson_store_proto::mvccpb::Event,
) -> Result<(), Failure> {
    let kv = event.kv.clone().unwrap_or_default();
    let revision = answer.header.as_ref().map_or(0, |header| header.revision);
    let status = tokio::process::Command::new(&command[0])
        .args(&command[1..])
        .env("ETCD_WATCH_REVISION", revision.to_string())
        .env("ETCD_WATCH_EVENT_TYPE", quote(event.r#type().as_str_name().as_bytes()))
        .env("ETCD_WATCH_KEY", quote(&kv.key))
        .env("ETCD_WATCH_VALUE", quote(&kv.value))
        .status()
        .await;
    let problem = match status {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => format!("exit status {}", status.code().unwrap_or(-1)),
        Err(error) => error.to_string(),
    };
    eprintln!("command {command:?} error ({problem})");
    fail(ERROR, "")
}

async fn watch(mut args: Args) -> Result<(), Failure> {
    let (key, end) = (variable("ETCDCTL_WATCH_KEY"), variable("ETCDCTL_WATCH_RANGE_END"));
    if key.is_empty() && !end.is_empty() {
        return bad_args(format!("ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={end:?}"));
    }
    if args.on("interactive") {
        return interactive(args).await;
    }
    let wanted = wanted(&args).or_else(bad_args)?;
    let (settings, output) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    let mut stream = Stream::open(&session, wanted, output).await?;
    while stream.next().await? {}
    fail(INTERRUPTED, "watch is canceled by the server")
}

/// Lines of standard input, read by a thread of their own: it may wait for ever.
fn lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Lines of `watch …` and `progress` from standard input, all on one stream.
async fn interactive(mut args: Args) -> Result<(), Failure> {
    let (settings, output) = Settings::new(&mut args).await?;
    let session = settings.open().await?;
    let mut lines = lines();
    let mut stream: Option<Stream> = None;
    loop {
        let line = tokio::select! {
            line = lines.recv() => line,
            going = next(&mut stream) => {
                if !going? {
                    stream = None;
                }
                continue;
            }
        };
        let Some(line) = line else {
            return fail(INVALID_INPUT, "error reading watch request line: EOF");
        };
        let words = words(&line).unwrap_or_default();
        match words.first().map(String::as_str) {
            None => eprintln!("Invalid command: {line} (watch and progress supported)"),
            Some("watch") if words.len() < 2 && variable("ETCDCTL_WATCH_KEY").is_empty() => {
                eprintln!("Invalid command {line} (command type or key is not provided)");
            }
            Some("watch") => {
                let parsed = Args::parse(&words[1..], WATCH.flags.iter())
                    .and_then(|args| wanted(&args))
                    .map_err(|message| Failure { code: BAD_ARGS, message })?;
                match &mut stream {
                    Some(stream) => stream.add(parsed).await?,
                    None => stream = Some(Stream::open(&session, parsed, output).await?),
                }
            }
            Some("progress") => match &stream {
                Some(stream) => {
                    stream.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await?
                }
                // Nothing is watched, so there is no progress.
                None => continue,
            },
            Some(_) => eprintln!("Invalid command {line} (only support watch)"),
        }
    }
}

async fn next(stream: &mut Option<Stream>) -> Result<bool, Failure> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

impl Show for pb::WatchResponse {
    fn simple(&self, out: &mut Vec<u8>, hex: bool) {
        for event in &self.events {
            line!(out, "{}", event.r#type().as_str_name());
            event.prev_kv.iter().for_each(|kv| kv_lines(out, kv, hex, false));
            kv_lines(out, &event.kv.clone().unwrap_or_default(), hex, false);
        }
    }

    fn fields(&self, out: &mut Vec<u8>, hex: bool) -> bool {
        header(out, self.header.as_ref(), hex);
        for event in &self.events {
            let kind = EventType::try_from(event.r#type).unwrap_or(EventType::Put);
            line!(out, "\"Type\" : {}", kind.as_str_name());
            event.prev_kv.iter().for_each(|kv| kv_fields(out, "Prev", kv, hex));
            kv_fields(out, "", &event.kv.clone().unwrap_or_default(), hex);
        }
        true
    }

    fn json(&self, _: bool) -> Option<String> {
        let events = json::array(self.events.iter().map(json::event));
        Some(
            json::Object::default()
                .raw("Header", json::header(self.header.as_ref(), false).unwrap_or_else(|| "null".to_owned()))
                .raw("Events", if self.events.is_empty() { "null".to_owned() } else { events })
                .raw("CompactRevision", self.compact_revision.to_string())
                .raw("Canceled", self.canceled.to_string())
                .raw("Created", self.created.to_string())
                .raw("CancelReason", json::text(&self.cancel_reason))
                .end(),
        )
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(args: &[&str]) -> Result<Wanted, String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        wanted(&Args::parse(&args, WATCH.flags.iter()).expect("good flags"))
    }

    #[test]
    fn keys_and_the_command_after_the_separator() {
        let got = of(&["a", "--rev", "3", "b", "--", "echo", "-n"]).expect("good");
        assert_eq!((got.request.key.as_ref(), got.request.range_end.as_ref()), (&b"a"[..], &b"b"[..]));
        assert_eq!(got.request.start_revision, 3);
        assert_eq!(*got.command, ["echo", "-n"]);
        assert!(of(&["a", "--"]).is_err(), "no command");
        assert!(of(&[]).is_err(), "no key");
        assert!(of(&["--prefix", "a", "b"]).is_err(), "both");
    }
}
