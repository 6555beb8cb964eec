//! etcdctl as a process of its own: `keelson etcdctl` without the rest of keelson.

use std::process::ExitCode;

fn main() -> ExitCode {
    keelson_etcdctl::main(std::env::args().skip(1).collect())
}
