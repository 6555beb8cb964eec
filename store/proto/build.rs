//! Compiles our .proto files of etcd's API into prost and tonic code, without protoc, and keeps their descriptors for
//! those who translate by them.

use protox::prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["rpc.proto", "kv.proto", "auth.proto", "v3lock.proto", "v3election.proto", "health.proto"];
    for file in files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".mvccpb")
        .bytes(".etcdserverpb")
        .bytes(".authpb")
        .bytes(".v3lockpb")
        .bytes(".v3electionpb")
        .compile_fds(descriptors)?;
    Ok(())
}
