//! A store member as a process of its own, for tests that kill it: `keelson etcd` without the rest of keelson.

use std::process::ExitCode;

fn main() -> ExitCode {
    keelson_store_server::main(std::env::args().skip(1).collect())
}
