//! The table of cases through three independent clients (etcdctl, Go's client, the crate etcd-client), against etcd and
//! against us, with one member and three, plain and with TLS.
//!
//! etcd is the program `ETCD`, etcdctl `ETCDCTL`; beside etcd's own, ours runs the table too. Where a client cannot be
//! had a notice is printed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keelson_etcd_tests::cases::{Driver, Outcome, Table, etcdctl, files, go, rust};
use keelson_etcd_tests::{Certificates, Cluster};

fn program(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// The clients that there are, with their names.
async fn drivers(table: &Table) -> Vec<(&'static str, Driver)> {
    let place = table.place();
    let mut drivers = Vec::new();
    match go::program() {
        Some(program) => drivers.push(("go", Driver::Go(go::Go::new(program, place)))),
        None => println!("notice: without Go"),
    }
    drivers.push(("rust", Driver::Rust(Box::new(rust::Rust::new(Arc::new(place.clone())).await))));
    match program("ETCDCTL") {
        Some(program) => drivers.push(("etcdctl", Driver::Etcdctl(etcdctl::Etcdctl::new(program, place)))),
        None => println!("notice: ETCDCTL names no etcdctl; only ours is run"),
    }
    // Ours is no independent client, so one place is enough for it.
    if place.endpoints.len() == 1 && place.tls.is_some() {
        let own = PathBuf::from(env!("CARGO_BIN_EXE_etcdctl"));
        drivers.push(("our etcdctl", Driver::Etcdctl(etcdctl::Etcdctl::new(own, place))));
    }
    drivers
}

/// Every client against one cluster.
async fn run(server: &Path, members: usize, tls: bool) {
    let certificates = tls.then(|| Arc::new(Certificates::new()));
    let cluster = Cluster::start_with(server, members, &["--unsafe-no-fsync"], certificates.as_deref()).await;
    let table = Table::new(&cluster, certificates).await;
    let mut failed = Vec::new();
    for (name, mut driver) in drivers(&table).await {
        let start = std::time::Instant::now();
        let mut outcome = Outcome::default();
        for file in files() {
            table.run(&mut driver, &file, &mut outcome).await;
        }
        let (cases, steps, seconds) = (outcome.cases, outcome.steps, start.elapsed().as_secs_f32());
        println!("{members} members, TLS {tls}, {name}: {cases} cases, {steps} steps, {seconds:.1} s");
        assert!(cases >= 35, "{name} ran {cases} cases");
        failed.extend(outcome.differences.into_iter().map(|text| format!("{name}: {text}")));
    }
    assert!(failed.is_empty(), "{} differ:\n{}", failed.len(), failed.join("\n\n"));
}

async fn etcd(members: usize, tls: bool) {
    match program("ETCD") {
        Some(etcd) => run(&etcd, members, tls).await,
        None => println!("notice: set ETCD to etcd's own program; skipped"),
    }
}

/// Whether this is a run with time for everything.
fn at_night() -> bool {
    let night = std::env::var_os("KEELSON_NIGHTLY").is_some();
    if !night {
        println!("notice: only with KEELSON_NIGHTLY=1; skipped");
    }
    night
}

fn ours() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_member"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_what_the_table_says_on_etcd() {
    etcd(1, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_what_the_table_says_on_three_members_of_etcd_with_tls() {
    if at_night() {
        etcd(3, true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_what_the_table_says_on_one_member() {
    run(ours(), 1, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_what_the_table_says_on_one_member_with_tls() {
    run(ours(), 1, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_what_the_table_says_on_three_members() {
    run(ours(), 3, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_what_the_table_says_on_three_members_with_tls() {
    if at_night() {
        run(ours(), 3, true).await;
    }
}
