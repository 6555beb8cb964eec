//! `keelson controller-manager` alone, for trying it beside any API server.

fn main() -> std::process::ExitCode {
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_writer(std::io::stderr).init();
    keelson_controllers::main(std::env::args().collect())
}
