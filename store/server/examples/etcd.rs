//! The store alone, as `keelson etcd`: builds without the rest of the binary, for profiling.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    keelson_store_server::main(std::env::args().skip(1).collect())
}
