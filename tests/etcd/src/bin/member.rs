//! The store's programs as a process of their own, for tests that kill them: `keelson etcd` and `keelson etcdutl` without
//! the rest of keelson. Without a word before the flags it is `etcd`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("etcdutl") => keelson_store_server::utl_main(arguments.split_off(1)),
        Some("etcd") => keelson_store_server::main(arguments.split_off(1)),
        _ => keelson_store_server::main(arguments),
    }
}
