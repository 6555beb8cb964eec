//! Compiles our .proto files of etcd's API into prost and tonic code, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["rpc.proto", "kv.proto", "auth.proto", "v3lock.proto", "v3election.proto", "health.proto"];
    for file in files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".mvccpb")
        .bytes(".etcdserverpb")
        .bytes(".authpb")
        .bytes(".v3lockpb")
        .bytes(".v3electionpb")
        .compile_fds(descriptors)?;
    Ok(())
}
