//! One question, one answer. Total: every question has an answer, and none of them is a panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::TTL;
use super::zone::{Endpoint, Kind as ServiceKind, ServiceEntry, Zone};

/// Version of the DNS specification, in the TXT record `dns-version`.
const SPECIFICATION: &str = "1.1.0";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    A,
    Aaaa,
    Srv,
    Ptr,
    Cname,
    Txt,
    Ns,
    Soa,
    /// A type that has no record here.
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// In any case, with or without the final dot.
    pub name: String,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Srv { priority: u16, weight: u16, port: u16, target: String },
    Ptr(String),
    Cname(String),
    Txt(String),
    Ns(String),
    Soa { server: String, contact: String, serial: u32 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub name: String,
    pub ttl: u32,
    pub data: Data,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
    },
    /// The name exists, without such a record; carries the SOA.
    NoData(Record),
    /// No such name; carries the SOA.
    NoName(Record),
    /// An ExternalName: the alias, and the outside name to look up for the rest.
    Alias {
        record: Record,
        target: String,
    },
    /// Not of this zone.
    Elsewhere,
}

/// What a name inside the zone stands for.
enum Found {
    Records(Vec<Record>, Vec<Record>),
    Alias(String),
    /// Exists without a record of the kind.
    Empty,
    Nothing,
}

impl Zone {
    pub fn answer(&self, question: &Question) -> Answer {
        let name = question.name.trim_end_matches('.').to_ascii_lowercase();
        if let Some(address) = reverse_address(&name) {
            return self.reverse_answer(&name, address, question.kind);
        }
        let inside = match name.strip_suffix(&self.domain) {
            Some("") => "",
            Some(rest) => match rest.strip_suffix('.') {
                Some(rest) => rest,
                None => return Answer::Elsewhere,
            },
            None => return Answer::Elsewhere,
        };
        let mut labels: Vec<&str> = inside.split('.').filter(|label| !label.is_empty()).collect();
        labels.reverse();
        match self.find(&name, &labels, question.kind) {
            Found::Records(answers, _) if answers.is_empty() => Answer::NoData(self.soa()),
            Found::Records(answers, additionals) => Answer::Records { answers, additionals },
            Found::Alias(target) => self.alias(&name, target, question.kind),
            Found::Empty => Answer::NoData(self.soa()),
            Found::Nothing => Answer::NoName(self.soa()),
        }
    }

    fn find(&self, name: &str, labels: &[&str], kind: Kind) -> Found {
        match labels {
            [] => self.apex(name, kind),
            ["dns-version"] => match kind {
                Kind::Txt => Found::Records(vec![record(name, Data::Txt(SPECIFICATION.into()))], vec![]),
                _ => Found::Empty,
            },
            ["dns"] | ["svc"] | ["pod"] => Found::Empty,
            ["dns", "ns"] => Found::Records(addresses(name, [self.server], kind), vec![]),
            ["svc", namespace] | ["pod", namespace] if self.has_namespace(namespace) => Found::Empty,
            ["pod", _, label] => match pod_address(label) {
                Some(address) => Found::Records(addresses(name, [address], kind), vec![]),
                None => Found::Nothing,
            },
            ["svc", namespace, service, rest @ ..] => match self.service(namespace, service) {
                Some(entry) => self.in_service(name, namespace, service, entry, rest, kind),
                None => Found::Nothing,
            },
            _ => Found::Nothing,
        }
    }

    fn apex(&self, name: &str, kind: Kind) -> Found {
        match kind {
            Kind::Soa => Found::Records(vec![self.soa()], vec![]),
            Kind::Ns => {
                let server = format!("ns.dns.{}", self.domain);
                let additionals =
                    [Kind::A, Kind::Aaaa].iter().flat_map(|kind| addresses(&server, [self.server], *kind));
                let additionals = additionals.collect();
                Found::Records(vec![record(name, Data::Ns(server))], additionals)
            }
            _ => Found::Empty,
        }
    }

    fn in_service(
        &self,
        name: &str,
        namespace: &str,
        service: &str,
        entry: &ServiceEntry,
        rest: &[&str],
        kind: Kind,
    ) -> Found {
        let base = format!("{service}.{namespace}.svc.{}", self.domain);
        match (rest, &entry.kind) {
            ([], ServiceKind::External(target)) => Found::Alias(target.clone()),
            (_, ServiceKind::External(_)) => Found::Nothing,
            ([], _) if kind == Kind::Srv => self.ports(name, &base, namespace, service, entry, |_, _| true),
            ([], ServiceKind::Addresses(ips)) => {
                Found::Records(addresses(name, ips.iter().copied(), kind), vec![])
            }
            ([], ServiceKind::Headless) => {
                let endpoints = self.endpoints(namespace, service);
                // A headless Service whose pods are all away has no addresses, and upstream says: no such name.
                if endpoints.is_empty() {
                    return Found::Nothing;
                }
                Found::Records(addresses(name, distinct(&endpoints), kind), vec![])
            }
            ([protocol, port], _) if protocol.starts_with('_') && port.starts_with('_') => {
                let (protocol, port) = (&protocol[1..], &port[1..]);
                let found = self
                    .ports(name, &base, namespace, service, entry, |name, of| name == port && of == protocol);
                match found {
                    Found::Records(answers, _) if answers.is_empty() => Found::Nothing,
                    Found::Records(..) if kind != Kind::Srv => Found::Empty,
                    found => found,
                }
            }
            ([label], _) => {
                let endpoints = self.endpoints(namespace, service);
                let mine: Vec<&Endpoint> =
                    endpoints.into_iter().filter(|endpoint| endpoint.label == *label).collect();
                if mine.is_empty() {
                    return Found::Nothing;
                }
                if kind == Kind::Srv {
                    let answers = mine.iter().flat_map(|endpoint| {
                        let target = format!("{}.{base}", endpoint.label);
                        endpoint.ports.iter().map(move |(_, _, port)| (*port, target.clone()))
                    });
                    return Found::Records(
                        services(name, answers.collect()),
                        endpoint_addresses(&mine, &base),
                    );
                }
                Found::Records(addresses(name, distinct(&mine), kind), vec![])
            }
            _ => Found::Nothing,
        }
    }

    /// SRV records of the ports that `wanted(port name, protocol)` picks.
    fn ports(
        &self,
        name: &str,
        base: &str,
        namespace: &str,
        service: &str,
        entry: &ServiceEntry,
        wanted: impl Fn(&str, &str) -> bool,
    ) -> Found {
        match &entry.kind {
            ServiceKind::Addresses(ips) => {
                let ports = entry.ports.iter().filter(|port| wanted(&port.name, &port.protocol));
                let answers: Vec<(u16, String)> = ports.map(|port| (port.port, base.to_owned())).collect();
                let additionals =
                    [Kind::A, Kind::Aaaa].iter().flat_map(|kind| addresses(base, ips.iter().copied(), *kind));
                let additionals = additionals.collect();
                Found::Records(services(name, answers), additionals)
            }
            ServiceKind::Headless => {
                let endpoints = self.endpoints(namespace, service);
                let mut answers = Vec::new();
                for endpoint in &endpoints {
                    for (port, protocol, number) in &endpoint.ports {
                        if wanted(port, protocol) {
                            answers.push((*number, format!("{}.{base}", endpoint.label)));
                        }
                    }
                }
                answers.dedup();
                Found::Records(services(name, answers), endpoint_addresses(&endpoints, base))
            }
            ServiceKind::External(_) => Found::Nothing,
        }
    }

    /// The alias, followed inside the zone; outside, the shell follows it.
    fn alias(&self, name: &str, target: String, kind: Kind) -> Answer {
        let alias = record(name, Data::Cname(target.clone()));
        if kind == Kind::Cname {
            return Answer::Records { answers: vec![alias], additionals: vec![] };
        }
        let inside = target.ends_with(&format!(".{}", self.domain));
        if !inside {
            return Answer::Alias { record: alias, target };
        }
        let mut labels: Vec<&str> =
            target[..target.len() - self.domain.len()].split('.').filter(|label| !label.is_empty()).collect();
        labels.reverse();
        // One step only: an alias of an alias is answered with the alias, so a circle of them ends here.
        match self.find(&target, &labels, kind) {
            Found::Records(mut answers, additionals) => {
                answers.insert(0, alias);
                Answer::Records { answers, additionals }
            }
            Found::Alias(_) | Found::Empty | Found::Nothing => {
                Answer::Records { answers: vec![alias], additionals: vec![] }
            }
        }
    }

    fn reverse_answer(&self, name: &str, address: IpAddr, kind: Kind) -> Answer {
        let names = self.names_of(address);
        if names.is_empty() {
            return Answer::Elsewhere;
        }
        match kind {
            Kind::Ptr => {
                let answers = names.into_iter().map(|target| record(name, Data::Ptr(target))).collect();
                Answer::Records { answers, additionals: vec![] }
            }
            _ => Answer::NoData(self.soa()),
        }
    }

    /// Sent with every negative answer, so that resolvers keep it for [`TTL`] seconds only.
    pub fn soa(&self) -> Record {
        let server = format!("ns.dns.{}", self.domain);
        let contact = format!("hostmaster.{}", self.domain);
        record(&self.domain, Data::Soa { server, contact, serial: self.serial })
    }
}

fn record(name: &str, data: Data) -> Record {
    Record { name: name.to_owned(), ttl: TTL, data }
}

fn addresses(name: &str, ips: impl IntoIterator<Item = IpAddr>, kind: Kind) -> Vec<Record> {
    let data = |ip| match (ip, kind) {
        (IpAddr::V4(ip), Kind::A) => Some(Data::A(ip)),
        (IpAddr::V6(ip), Kind::Aaaa) => Some(Data::Aaaa(ip)),
        _ => None,
    };
    ips.into_iter().filter_map(data).map(|data| record(name, data)).collect()
}

fn distinct(endpoints: &[&Endpoint]) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
    ips.sort_unstable();
    ips.dedup();
    ips
}

fn endpoint_addresses(endpoints: &[&Endpoint], base: &str) -> Vec<Record> {
    let mut records = Vec::new();
    for endpoint in endpoints {
        let name = format!("{}.{base}", endpoint.label);
        for kind in [Kind::A, Kind::Aaaa] {
            records.extend(addresses(&name, [endpoint.address], kind));
        }
    }
    records
}

/// SRV records of equal weight, together 100 at most (upstream's choice).
fn services(name: &str, targets: Vec<(u16, String)>) -> Vec<Record> {
    let weight = u16::try_from(100 / targets.len().max(1)).unwrap_or(1).max(1);
    let data = |(port, target)| Data::Srv { priority: 0, weight, port, target };
    targets.into_iter().map(|target| record(name, data(target))).collect()
}

/// `10-1-2-3`, or an IPv6 address with dashes for colons.
fn pod_address(label: &str) -> Option<IpAddr> {
    let four = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    four.or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}

/// The address a name under `in-addr.arpa` or `ip6.arpa` stands for.
fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let parts: Vec<&str> = digits.rsplit('.').collect();
        return parts.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    let nibbles = name.strip_suffix(".ip6.arpa")?;
    let mut value: u128 = 0;
    let mut count = 0;
    for nibble in nibbles.rsplit('.') {
        if nibble.len() != 1 || count == 32 {
            return None;
        }
        value = value << 4 | u128::from(u8::from_str_radix(nibble, 16).ok()?);
        count += 1;
    }
    (count == 32).then(|| IpAddr::V6(Ipv6Addr::from(value)))
}
