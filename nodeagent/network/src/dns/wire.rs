//! DNS messages to questions and answers to messages; hickory-proto does the bytes.

use hickory_proto::op::{Message, MessageType, OpCode, Query as Asked, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record as Wire, RecordType};
use keelson_nodeagent_core::dns::{Answer, Data, Kind, Question, Record, TTL};

/// A query without EDNS takes this many bytes over UDP.
const SMALL: u16 = 512;

pub struct Query {
    message: Message,
}

impl Query {
    /// `None`: no message, or no query.
    pub fn read(bytes: &[u8]) -> Option<Query> {
        let message = Message::from_vec(bytes).ok()?;
        (message.metadata.message_type == MessageType::Query).then_some(Query { message })
    }

    /// `None`: not exactly one question of the Internet class.
    pub fn question(&self) -> Option<Question> {
        let [asked] = self.message.queries.as_slice() else { return None };
        if self.message.metadata.op_code != OpCode::Query || asked.query_class() != DNSClass::IN {
            return None;
        }
        let kind = match asked.query_type() {
            RecordType::A => Kind::A,
            RecordType::AAAA => Kind::Aaaa,
            RecordType::SRV => Kind::Srv,
            RecordType::PTR => Kind::Ptr,
            RecordType::CNAME => Kind::Cname,
            RecordType::TXT => Kind::Txt,
            RecordType::NS => Kind::Ns,
            RecordType::SOA => Kind::Soa,
            _ => Kind::Other,
        };
        Some(Question { name: asked.name().to_ascii(), kind })
    }

    fn response(&self, code: ResponseCode) -> Message {
        let mut response = Message::response(self.message.metadata.id, self.message.metadata.op_code);
        response.metadata.recursion_desired = self.message.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.metadata.response_code = code;
        response.add_queries(self.message.queries.iter().cloned());
        if let Some(edns) = &self.message.edns {
            let mut ours = hickory_proto::op::Edns::new();
            ours.set_max_payload(edns.max_payload().max(SMALL)).set_version(0);
            response.set_edns(ours);
        }
        response
    }

    pub fn refusal(&self) -> Option<Vec<u8>> {
        let code = match self.message.metadata.op_code {
            OpCode::Query => ResponseCode::Refused,
            _ => ResponseCode::NotImp,
        };
        self.response(code).to_vec().ok()
    }

    /// The answer when the node's name servers stay silent.
    pub fn failure(&self) -> Option<Vec<u8>> {
        self.response(ResponseCode::ServFail).to_vec().ok()
    }

    /// `turn` rotates equal records, so that clients that take the first spread out.
    pub fn answer(&self, answer: Answer, turn: usize, udp: bool) -> Option<Vec<u8>> {
        let mut response = self.response(match answer {
            Answer::NoName(_) => ResponseCode::NXDomain,
            _ => ResponseCode::NoError,
        });
        response.metadata.authoritative = true;
        match answer {
            Answer::Records { mut answers, additionals } => {
                // An alias stays in front of what it leads to.
                let first = usize::from(matches!(answers.first(), Some(Record { data: Data::Cname(_), .. })));
                let rest = &mut answers[first..];
                if !rest.is_empty() {
                    let by = turn % rest.len();
                    rest.rotate_left(by);
                }
                response.add_answers(answers.iter().filter_map(wire));
                response.add_additionals(additionals.iter().filter_map(wire));
            }
            Answer::NoData(soa) | Answer::NoName(soa) => {
                response.add_authorities(wire(&soa));
            }
            Answer::Alias { .. } | Answer::Elsewhere => return None,
        }
        self.finish(response, udp)
    }

    pub fn alias(&self, alias: &Record, rest: Vec<Wire>, udp: bool) -> Option<Vec<u8>> {
        let mut response = self.response(ResponseCode::NoError);
        response.metadata.authoritative = true;
        response.add_answers(wire(alias));
        response.add_answers(rest);
        self.finish(response, udp)
    }

    /// The same question for another name.
    pub fn ask_for(&self, name: &str) -> Option<Vec<u8>> {
        let kind = self.message.queries.first()?.query_type();
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Asked::query(full(name)?, kind));
        message.to_vec().ok()
    }

    /// Bytes; over UDP cut to what the client takes, so that it asks again over TCP.
    fn finish(&self, response: Message, udp: bool) -> Option<Vec<u8>> {
        let bytes = response.to_vec().ok()?;
        let most = self.message.edns.as_ref().map_or(SMALL, |edns| edns.max_payload().max(SMALL));
        match udp && bytes.len() > usize::from(most) {
            true => response.truncate().to_vec().ok(),
            false => Some(bytes),
        }
    }
}

/// The answers in a response's bytes.
pub fn records(bytes: &[u8]) -> Vec<Wire> {
    Message::from_vec(bytes).map(|message| message.answers).unwrap_or_default()
}

fn full(name: &str) -> Option<Name> {
    Name::from_ascii(format!("{}.", name.trim_end_matches('.'))).ok()
}

fn wire(record: &Record) -> Option<Wire> {
    let data = match &record.data {
        Data::A(ip) => RData::A(A(*ip)),
        Data::Aaaa(ip) => RData::AAAA(AAAA(*ip)),
        Data::Srv { priority, weight, port, target } => {
            RData::SRV(SRV::new(*priority, *weight, *port, full(target)?))
        }
        Data::Ptr(name) => RData::PTR(PTR(full(name)?)),
        Data::Cname(name) => RData::CNAME(CNAME(full(name)?)),
        Data::Ns(name) => RData::NS(NS(full(name)?)),
        Data::Txt(text) => RData::TXT(TXT::new(vec![text.clone()])),
        Data::Soa { server, contact, serial } => {
            RData::SOA(SOA::new(full(server)?, full(contact)?, *serial, 7200, 1800, 86_400, TTL))
        }
    };
    Some(Wire::from_rdata(full(&record.name)?, record.ttl, data))
}
