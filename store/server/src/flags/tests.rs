//! The command line, the environment and the file, and what each refuses.

use super::*;
use crate::config::{AutoCompaction, ClusterState};

fn run(args: &[&str], environment: &[(&str, &str)]) -> Result<Invocation, Mistake> {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    parse(&args, &environment)
}

fn good(args: &[&str]) -> Run {
    match run(args, &[]).expect("good flags") {
        Invocation::Run(run) => *run,
        other => panic!("{other:?}"),
    }
}

fn refused(args: &[&str]) -> String {
    match run(args, &[]).expect_err("a mistake") {
        Mistake::Usage(text) => format!("usage: {text}"),
        Mistake::Conflict(text) => format!("conflict: {text}"),
        Mistake::Verify(text, _) => format!("verify: {text}"),
        Mistake::Start(text, _) => format!("start: {text}"),
    }
}

#[test]
fn every_go_spelling_and_the_last_wins() {
    let run = good(&[
        "-max-txn-ops",
        "1",
        "--max-txn-ops=2",
        "--max-txn-ops",
        "3",
        "--strict-reconfig-check=false",
    ]);
    assert_eq!(run.config.max_txn_ops, 3);
    assert!(!run.config.strict_reconfig_check);
    assert!(good(&["--force-new-cluster"]).config.force_new_cluster, "a switch needs no value");
}

#[test]
fn mistakes_have_gos_words() {
    assert_eq!(refused(&["--nope"]), "usage: flag provided but not defined: -nope");
    assert_eq!(refused(&["--max-txn-ops"]), "usage: flag needs an argument: -max-txn-ops");
    assert_eq!(
        refused(&["--max-txn-ops=x"]),
        "usage: invalid value \"x\" for flag -max-txn-ops: parse error"
    );
    assert_eq!(refused(&["--auto-tls=x"]), "usage: invalid boolean value \"x\" for -auto-tls: parse error");
    assert_eq!(refused(&["word"]), "verify: \"word\" is not a valid flag");
    assert_eq!(refused(&["---x"]), "usage: bad flag syntax: ---x");
    let rate = |rate: &str| {
        refused(&["--enable-distributed-tracing", &format!("--distributed-tracing-sampling-rate={rate}")])
    };
    assert_eq!(rate("-1"), "verify: tracing sampling rate must be positive");
    assert_eq!(rate("1000001"), "verify: tracing sampling rate must be less than 1000000");
}

#[test]
fn the_environment_counts_and_must_not_conflict() {
    let variables = [("ETCD_MAX_TXN_OPS", "7"), ("ETCD_UNKNOWN", "1"), ("OTHER", "1")];
    let Ok(Invocation::Run(given)) = run(&[], &variables) else { panic!("good variables") };
    assert_eq!(given.config.max_txn_ops, 7);
    assert!(given.notes.contains(&Note::UnknownVariable("ETCD_UNKNOWN=1".to_owned())));
    let conflict = run(&["--max-txn-ops=1"], &[("ETCD_MAX_TXN_OPS", "7")]);
    assert!(matches!(conflict, Err(Mistake::Conflict(name)) if name == "ETCD_MAX_TXN_OPS"));
}

#[test]
fn compaction_modes() {
    let of = |mode: &str, retention: &str| {
        let (mode, retention) =
            (format!("--auto-compaction-mode={mode}"), format!("--auto-compaction-retention={retention}"));
        good(&[&mode, &retention]).config.auto_compaction
    };
    assert_eq!(of("periodic", "0"), AutoCompaction::Off);
    assert_eq!(of("periodic", "2"), AutoCompaction::Periodic(Duration::from_secs(7200)));
    assert_eq!(of("periodic", "5m"), AutoCompaction::Periodic(Duration::from_secs(300)));
    assert_eq!(of("revision", "1000"), AutoCompaction::Revision(1000));
}

#[test]
fn a_file_replaces_flags_and_variables() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("c.yml");
    let text = r#"
name: fromfile
nope: 1
election-timeout: 2000
initial-cluster-state: existing
initial-cluster: fromfile=http://localhost:2380
grpc-keepalive-timeout: 7000000000
log-outputs: [stdout]
cipher-suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]
client-transport-security:
  cert-file: /c
  key-file: /k
  client-cert-auth: true
peer-transport-security:
  cert-file: /pc
  key-file: /pk
  allowed-cn: [one, two]
  auto-tls: true
socket-options: {reuse-port: true}
"#;
    std::fs::write(&path, text).expect("written");
    let config = format!("--config-file={}", path.display());
    let Ok(Invocation::Run(run)) = run(&[&config, "--name=ignored"], &[("ETCD_NAME", "ignored")]) else {
        panic!("a good file")
    };
    assert_eq!(run.config.name, "fromfile");
    assert_eq!(run.config.initial_cluster_state, ClusterState::Existing);
    assert_eq!(run.config.election_timeout, Duration::from_secs(2));
    assert_eq!(run.config.grpc_keepalive_timeout, Duration::from_secs(7));
    assert!(run.config.socket_reuse_port && run.config.peer_auto_tls);
    assert!(run.config.tls.expect("client TLS").client_cert_auth);
    assert_eq!(run.config.peer_tls.expect("peer TLS").allowed_cns, ["one", "two"]);
    assert_eq!(run.logging.outputs, ["stdout"]);

    std::fs::write(&path, "snapshot-count: abc").expect("written");
    assert_eq!(
        refused(&[&config]),
        "verify: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal string into Go struct field \
         configYAML.Config.snapshot-count of type uint64"
    );
}

#[test]
fn the_help_names_every_flag_once() {
    let mut names: Vec<&str> = table().map(|flag| flag.name).collect();
    names.sort_unstable();
    let before = names.len();
    names.dedup();
    assert_eq!(names.len(), before);
    let text = help();
    assert!(names.iter().all(|name| text.contains(&format!("--{name} "))));
    assert!(WITHOUT_EFFECT.iter().all(|name| names.contains(name)), "of no flag");
}
