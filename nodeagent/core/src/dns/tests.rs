//! Questions and answers, as lines: `NAME KIND` against `record; record`.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn zone() -> Zone {
    let mut zone = Zone::new("cluster.local.", "10.96.0.10".parse().expect("an address"));
    for (name, namespace, spec) in [
        (
            "web",
            "default",
            json!({"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "fd00::20"],
            "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        ),
        ("db", "default", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]})),
        ("empty", "default", json!({"clusterIP": "None"})),
        ("out", "default", json!({"type": "ExternalName", "externalName": "Example.COM"})),
        ("in", "default", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"})),
        (
            "circle",
            "default",
            json!({"type": "ExternalName", "externalName": "circle.default.svc.cluster.local"}),
        ),
    ] {
        let object = json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
        zone.apply_service(&serde_json::from_value(object).expect("a Service"));
    }
    zone.apply_slice(&slice(
        "db-1",
        "db",
        json!([
            {"addresses": ["10.244.1.2"], "hostname": "db-0", "conditions": {"ready": true}},
            {"addresses": ["10.244.2.3"], "conditions": {"ready": true}},
            {"addresses": ["10.244.2.4"], "conditions": {"ready": false}},
        ]),
    ));
    zone
}

fn slice(name: &str, service: &str, endpoints: Value) -> k8s_openapi::api::discovery::v1::EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}], "endpoints": endpoints,
    }))
    .expect("a slice")
}

fn ask(zone: &Zone, question: &str) -> String {
    let (name, kind) = question.split_once(' ').expect("NAME KIND");
    let kind = match kind {
        "A" => Kind::A,
        "AAAA" => Kind::Aaaa,
        "SRV" => Kind::Srv,
        "PTR" => Kind::Ptr,
        "CNAME" => Kind::Cname,
        "TXT" => Kind::Txt,
        "NS" => Kind::Ns,
        "SOA" => Kind::Soa,
        _ => Kind::Other,
    };
    match zone.answer(&Question { name: name.into(), kind }) {
        Answer::Records { answers, additionals } => {
            let text = |records: Vec<Record>| records.iter().map(show).collect::<Vec<_>>().join("; ");
            match additionals.is_empty() {
                true => text(answers),
                false => format!("{} + {}", text(answers), text(additionals)),
            }
        }
        Answer::NoData(_) => "NODATA".into(),
        Answer::NoName(_) => "NXDOMAIN".into(),
        Answer::Alias { record, target } => format!("{} -> ask {target}", show(&record)),
        Answer::Elsewhere => "ELSEWHERE".into(),
    }
}

fn show(record: &Record) -> String {
    match &record.data {
        Data::A(ip) => format!("A {ip}"),
        Data::Aaaa(ip) => format!("AAAA {ip}"),
        Data::Srv { priority, weight, port, target } => format!("SRV {priority} {weight} {port} {target}"),
        Data::Ptr(name) => format!("PTR {name}"),
        Data::Cname(name) => format!("CNAME {name}"),
        Data::Txt(text) => format!("TXT {text}"),
        Data::Ns(name) => format!("NS {name}"),
        Data::Soa { server, .. } => format!("SOA {server}"),
    }
}

#[test]
fn names_of_the_specification_resolve() {
    let zone = zone();
    for (question, answer) in [
        ("web.default.svc.cluster.local. A", "A 10.96.0.20"),
        ("WEB.Default.SVC.cluster.LOCAL A", "A 10.96.0.20"),
        ("web.default.svc.cluster.local AAAA", "AAAA fd00::20"),
        ("web.default.svc.cluster.local TXT", "NODATA"),
        (
            "_http._tcp.web.default.svc.cluster.local SRV",
            "SRV 0 100 80 web.default.svc.cluster.local + A 10.96.0.20; AAAA fd00::20",
        ),
        ("_http._tcp.web.default.svc.cluster.local A", "NODATA"),
        ("_http._udp.web.default.svc.cluster.local SRV", "NXDOMAIN"),
        (
            "web.default.svc.cluster.local SRV",
            "SRV 0 50 80 web.default.svc.cluster.local; SRV 0 50 53 web.default.svc.cluster.local + A 10.96.0.20; AAAA fd00::20",
        ),
        ("db.default.svc.cluster.local A", "A 10.244.1.2; A 10.244.2.3"),
        ("db.default.svc.cluster.local AAAA", "NODATA"),
        ("db-0.db.default.svc.cluster.local A", "A 10.244.1.2"),
        ("10-244-2-3.db.default.svc.cluster.local A", "A 10.244.2.3"),
        ("10-244-2-4.db.default.svc.cluster.local A", "NXDOMAIN"),
        (
            "_sql._tcp.db.default.svc.cluster.local SRV",
            "SRV 0 50 5432 10-244-2-3.db.default.svc.cluster.local; SRV 0 50 5432 db-0.db.default.svc.cluster.local \
             + A 10.244.2.3; A 10.244.1.2",
        ),
        ("empty.default.svc.cluster.local A", "NXDOMAIN"),
        ("10-244-1-9.default.pod.cluster.local A", "A 10.244.1.9"),
        ("web.default.pod.cluster.local A", "NXDOMAIN"),
        ("dns-version.cluster.local TXT", "TXT 1.1.0"),
        ("cluster.local NS", "NS ns.dns.cluster.local + A 10.96.0.10"),
        ("ns.dns.cluster.local A", "A 10.96.0.10"),
        ("cluster.local SOA", "SOA ns.dns.cluster.local"),
        ("cluster.local A", "NODATA"),
        ("default.svc.cluster.local A", "NODATA"),
        ("nobody.svc.cluster.local A", "NXDOMAIN"),
        ("nobody.default.svc.cluster.local A", "NXDOMAIN"),
        ("20.0.96.10.in-addr.arpa PTR", "PTR web.default.svc.cluster.local"),
        ("2.1.244.10.in-addr.arpa PTR", "PTR db-0.db.default.svc.cluster.local"),
        ("3.2.244.10.in-addr.arpa PTR", "ELSEWHERE"),
        (
            "0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa PTR",
            "PTR web.default.svc.cluster.local",
        ),
        ("example.com A", "ELSEWHERE"),
        ("notcluster.local A", "ELSEWHERE"),
        ("xcluster.local A", "ELSEWHERE"),
        (". A", "ELSEWHERE"),
    ] {
        assert_eq!(ask(&zone, question), answer, "{question}");
    }
}

#[test]
fn aliases_are_followed_inside_and_handed_out_outside() {
    let zone = zone();
    assert_eq!(ask(&zone, "out.default.svc.cluster.local A"), "CNAME example.com -> ask example.com");
    assert_eq!(ask(&zone, "out.default.svc.cluster.local CNAME"), "CNAME example.com");
    assert_eq!(
        ask(&zone, "in.default.svc.cluster.local A"),
        "CNAME web.default.svc.cluster.local; A 10.96.0.20"
    );
    assert_eq!(ask(&zone, "circle.default.svc.cluster.local A"), "CNAME circle.default.svc.cluster.local");
}

#[test]
fn what_is_removed_no_longer_resolves() {
    let mut zone = zone();
    let before = zone.serial;
    zone.remove_slice(&slice("db-1", "db", json!([])));
    assert_eq!(ask(&zone, "db-0.db.default.svc.cluster.local A"), "NXDOMAIN");
    assert_eq!(ask(&zone, "2.1.244.10.in-addr.arpa PTR"), "ELSEWHERE");
    let web = json!({"metadata": {"name": "web", "namespace": "default"}});
    zone.remove_service(&serde_json::from_value(web).expect("a Service"));
    assert_eq!(ask(&zone, "web.default.svc.cluster.local A"), "NXDOMAIN");
    assert_eq!(ask(&zone, "20.0.96.10.in-addr.arpa PTR"), "ELSEWHERE");
    assert!(zone.serial > before, "secondaries see that the zone changed");
}

#[test]
fn an_endpoint_held_by_two_slices_survives_the_loss_of_one() {
    let mut zone = zone();
    let endpoints = json!([{"addresses": ["10.244.1.2"], "hostname": "db-0", "conditions": {"ready": true}}]);
    zone.apply_slice(&slice("db-2", "db", endpoints));
    zone.remove_slice(&slice("db-1", "db", json!([])));
    assert_eq!(ask(&zone, "2.1.244.10.in-addr.arpa PTR"), "PTR db-0.db.default.svc.cluster.local");
    assert_eq!(ask(&zone, "db.default.svc.cluster.local A"), "A 10.244.1.2");
}

proptest! {
    /// Any name of any characters gets an answer, and nothing outside the zone gets records.
    #[test]
    fn every_question_is_answered(name in "[a-z0-9_.-]{0,40}(\\.cluster\\.local|\\.in-addr\\.arpa|\\.ip6\\.arpa|)", kind in 0..9usize) {
        let kinds = [Kind::A, Kind::Aaaa, Kind::Srv, Kind::Ptr, Kind::Cname, Kind::Txt, Kind::Ns, Kind::Soa, Kind::Other];
        let answer = zone().answer(&Question { name: name.clone(), kind: kinds[kind] });
        let inside = name.ends_with("cluster.local") || name.ends_with(".arpa");
        prop_assert!(inside || answer == Answer::Elsewhere);
    }
}
