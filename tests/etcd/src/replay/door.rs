//! How a recorded call reaches a member: gRPC by name, with messages made from and turned into the gateway's JSON.
//!
//! Nothing here knows the messages: they are described by the store's own .proto files, read at run time.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Buf;
use prost_reflect::prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};

/// How long one call may take; longer than a server's own patience.
const PATIENCE: Duration = Duration::from_secs(30);

/// Gateway path, service, method.
const METHODS: &[(&str, &str, &str)] = &[
    ("/v3/kv/range", "etcdserverpb.KV", "Range"),
    ("/v3/kv/put", "etcdserverpb.KV", "Put"),
    ("/v3/kv/deleterange", "etcdserverpb.KV", "DeleteRange"),
    ("/v3/kv/txn", "etcdserverpb.KV", "Txn"),
    ("/v3/kv/compaction", "etcdserverpb.KV", "Compact"),
    ("/v3/watch", "etcdserverpb.Watch", "Watch"),
    ("/v3/lease/grant", "etcdserverpb.Lease", "LeaseGrant"),
    ("/v3/lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("/v3/kv/lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("/v3/lease/keepalive", "etcdserverpb.Lease", "LeaseKeepAlive"),
    ("/v3/lease/timetolive", "etcdserverpb.Lease", "LeaseTimeToLive"),
    ("/v3/kv/lease/timetolive", "etcdserverpb.Lease", "LeaseTimeToLive"),
    ("/v3/lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("/v3/kv/lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("/v3/cluster/member/add", "etcdserverpb.Cluster", "MemberAdd"),
    ("/v3/cluster/member/remove", "etcdserverpb.Cluster", "MemberRemove"),
    ("/v3/cluster/member/update", "etcdserverpb.Cluster", "MemberUpdate"),
    ("/v3/cluster/member/list", "etcdserverpb.Cluster", "MemberList"),
    ("/v3/cluster/member/promote", "etcdserverpb.Cluster", "MemberPromote"),
    ("/v3/maintenance/alarm", "etcdserverpb.Maintenance", "Alarm"),
    ("/v3/maintenance/status", "etcdserverpb.Maintenance", "Status"),
    ("/v3/maintenance/defragment", "etcdserverpb.Maintenance", "Defragment"),
    ("/v3/maintenance/hash", "etcdserverpb.Maintenance", "Hash"),
    ("/v3/maintenance/hashkv", "etcdserverpb.Maintenance", "HashKV"),
    ("/v3/maintenance/snapshot", "etcdserverpb.Maintenance", "Snapshot"),
    ("/v3/maintenance/transfer-leadership", "etcdserverpb.Maintenance", "MoveLeader"),
    ("/v3/maintenance/downgrade", "etcdserverpb.Maintenance", "Downgrade"),
    ("/v3/auth/enable", "etcdserverpb.Auth", "AuthEnable"),
    ("/v3/auth/disable", "etcdserverpb.Auth", "AuthDisable"),
    ("/v3/auth/status", "etcdserverpb.Auth", "AuthStatus"),
    ("/v3/auth/authenticate", "etcdserverpb.Auth", "Authenticate"),
    ("/v3/auth/user/add", "etcdserverpb.Auth", "UserAdd"),
    ("/v3/auth/user/get", "etcdserverpb.Auth", "UserGet"),
    ("/v3/auth/user/list", "etcdserverpb.Auth", "UserList"),
    ("/v3/auth/user/delete", "etcdserverpb.Auth", "UserDelete"),
    ("/v3/auth/user/changepw", "etcdserverpb.Auth", "UserChangePassword"),
    ("/v3/auth/user/grant", "etcdserverpb.Auth", "UserGrantRole"),
    ("/v3/auth/user/revoke", "etcdserverpb.Auth", "UserRevokeRole"),
    ("/v3/auth/role/add", "etcdserverpb.Auth", "RoleAdd"),
    ("/v3/auth/role/get", "etcdserverpb.Auth", "RoleGet"),
    ("/v3/auth/role/list", "etcdserverpb.Auth", "RoleList"),
    ("/v3/auth/role/delete", "etcdserverpb.Auth", "RoleDelete"),
    ("/v3/auth/role/grant", "etcdserverpb.Auth", "RoleGrantPermission"),
    ("/v3/auth/role/revoke", "etcdserverpb.Auth", "RoleRevokePermission"),
    ("/v3/lock/lock", "v3lockpb.Lock", "Lock"),
    ("/v3/lock/unlock", "v3lockpb.Lock", "Unlock"),
    ("/v3/election/campaign", "v3electionpb.Election", "Campaign"),
    ("/v3/election/proclaim", "v3electionpb.Election", "Proclaim"),
    ("/v3/election/leader", "v3electionpb.Election", "Leader"),
    ("/v3/election/observe", "v3electionpb.Election", "Observe"),
    ("/v3/election/resign", "v3electionpb.Election", "Resign"),
];

/// The API's description.
#[derive(Clone)]
pub struct Api {
    pool: DescriptorPool,
}

impl Api {
    /// Reads the store's .proto files.
    ///
    /// # Panics
    /// They are not there or do not compile.
    pub fn load() -> Api {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../store/proto/proto");
        let files = ["rpc.proto", "v3lock.proto", "v3election.proto"];
        let set = protox::compile(files, [folder]).expect("the .proto files compile");
        Api { pool: DescriptorPool::from_file_descriptor_set(set).expect("they describe messages") }
    }

    /// The method behind a gateway path.
    ///
    /// # Panics
    /// There is none.
    pub fn method(&self, path: &str) -> MethodDescriptor {
        let (_, service, method) = METHODS
            .iter()
            .find(|(known, ..)| *known == path)
            .unwrap_or_else(|| panic!("no method for {path}"));
        let service = self.pool.get_service_by_name(service).expect("a service of ours");
        service.methods().find(|found| found.name() == *method).expect("a method of ours")
    }
}

fn message(descriptor: MessageDescriptor, value: &Value) -> Result<DynamicMessage, String> {
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    DynamicMessage::deserialize_with_options(descriptor, value.clone(), &options).map_err(|e| e.to_string())
}

fn to_json(message: &DynamicMessage) -> Value {
    let options = SerializeOptions::new().use_proto_field_name(true);
    message.serialize_with_options(serde_json::value::Serializer, &options).expect("a message is JSON")
}

fn error(status: &Status) -> Value {
    json!({ "code": status.code() as i32, "message": status.message() })
}

#[derive(Clone)]
struct Dynamic(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Dynamic;
    type Decoder = Dynamic;

    fn encoder(&mut self) -> Dynamic {
        self.clone()
    }

    fn decoder(&mut self) -> Dynamic {
        self.clone()
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(out).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        let decoded = DynamicMessage::decode(self.0.clone(), bytes);
        decoded.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

fn path_of(method: &MethodDescriptor) -> http::uri::PathAndQuery {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    path.parse().expect("a path")
}

/// Metadata from names and values.
///
/// # Panics
/// They are not what metadata may hold.
pub fn metadata(pairs: &[(String, String)]) -> MetadataMap {
    let mut map = MetadataMap::new();
    for (name, value) in pairs {
        let key: tonic::metadata::MetadataKey<tonic::metadata::Ascii> = name.parse().expect("a metadata key");
        map.insert(key, MetadataValue::try_from(value.as_str()).expect("a metadata value"));
    }
    map
}

async fn client(channel: &Channel) -> Result<Grpc<Channel>, Status> {
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(grpc)
}

/// One call; answers the body the gateway would: the answer, `{"code", "message"}`, or for a stream of answers the one
/// or the list of `{"result"}` and `{"error"}`.
///
/// # Panics
/// The request is no such message.
pub async fn call(channel: &Channel, method: &MethodDescriptor, request: &Value, with: MetadataMap) -> Value {
    let request = message(method.input(), request).unwrap_or_else(|error| panic!("{method:?}: {error}"));
    let work = async {
        if method.is_server_streaming() {
            let mut answers = Vec::new();
            if let Err(status) = collect(channel, method, request, with, &mut answers).await {
                answers.push(json!({ "error": error(&status) }));
            }
            return if answers.len() == 1 { answers.remove(0) } else { answers.into() };
        }
        let answer = async {
            let mut request = Request::new(request);
            *request.metadata_mut() = with;
            client(channel).await?.unary(request, path_of(method), Dynamic(method.output())).await
        };
        match answer.await {
            Ok(answer) => to_json(answer.get_ref()),
            Err(status) => error(&status),
        }
    };
    let late = json!({ "code": 4, "message": "the test's own patience is over" });
    tokio::time::timeout(PATIENCE, work).await.unwrap_or(late)
}

async fn collect(
    channel: &Channel,
    method: &MethodDescriptor,
    request: DynamicMessage,
    with: MetadataMap,
    answers: &mut Vec<Value>,
) -> Result<(), Status> {
    let mut request = Request::new(tokio_stream::once(request));
    *request.metadata_mut() = with;
    let answer = client(channel).await?.streaming(request, path_of(method), Dynamic(method.output())).await?;
    let mut stream = answer.into_inner();
    while let Some(message) = stream.message().await? {
        answers.push(json!({ "result": to_json(&message) }));
    }
    Ok(())
}

/// A stream in both directions, left open.
pub struct Duplex {
    requests: Option<mpsc::Sender<DynamicMessage>>,
    input: MessageDescriptor,
    answers: Arc<Mutex<Vec<Value>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Duplex {
    /// Opens it; a refusal arrives as its only answer.
    pub fn open(channel: &Channel, method: &MethodDescriptor, with: MetadataMap) -> Duplex {
        let (requests, incoming) = mpsc::channel(64);
        let answers = Arc::new(Mutex::new(Vec::new()));
        let (channel, method, kept) = (channel.clone(), method.clone(), answers.clone());
        let input = method.input();
        let task = tokio::spawn(async move {
            let keep = |value: Value| kept.lock().expect("no panic while locked").push(value);
            let work = async {
                let mut request = Request::new(ReceiverStream::new(incoming));
                *request.metadata_mut() = with;
                let codec = Dynamic(method.output());
                let answer = client(&channel).await?.streaming(request, path_of(&method), codec).await?;
                let mut stream = answer.into_inner();
                while let Some(message) = stream.next().await {
                    keep(json!({ "result": to_json(&message?) }));
                }
                Ok::<(), Status>(())
            };
            if let Err(status) = work.await {
                keep(json!({ "error": error(&status) }));
            }
        });
        Duplex { requests: Some(requests), input, answers, task }
    }

    /// Sends a request; one to a stream that has ended is lost.
    ///
    /// # Panics
    /// It is no such message.
    pub async fn send(&self, request: &Value) {
        let request = message(self.input.clone(), request).expect("a request of the stream");
        if let Some(requests) = &self.requests {
            // The stream may have been refused.
            let _ = requests.send(request).await;
        }
    }

    /// What has arrived and was not taken yet.
    pub fn waiting(&self) -> Vec<Value> {
        self.answers.lock().expect("no panic while locked").clone()
    }

    /// Takes it.
    pub fn take(&self) -> Vec<Value> {
        std::mem::take(&mut self.answers.lock().expect("no panic while locked"))
    }

    /// Ends our side.
    pub fn close(&mut self) {
        self.requests = None;
    }
}

impl Drop for Duplex {
    fn drop(&mut self) {
        self.task.abort();
    }
}
