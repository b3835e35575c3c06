//! From a query's bytes to an answer's, or to the wish to ask somebody else. No I/O.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::table::{Addresses, Found, Table};

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a stream: an answer may have 64 KiB.
    Tcp,
    /// In a datagram: an answer may be as large as the query says.
    Udp,
}

/// What becomes of a packet.
#[derive(Debug)]
pub enum Reply {
    /// These bytes are the answer.
    Answer(Vec<u8>),
    /// Somebody else has to be asked.
    Forward(Box<Question>),
    /// It deserves no answer.
    Nothing,
}

/// A query for somebody else.
#[derive(Clone, Debug)]
pub struct Question {
    pub(super) query: Query,
    pub(super) metadata: Metadata,
    /// The largest answer that whoever asked can take.
    pub(super) limit: u16,
    pub(super) edns: bool,
    /// Whether signatures are asked for (RFC 3225).
    pub(super) dnssec: bool,
}

/// Decides what becomes of a packet. `search` are the host's search domains, in lower case.
#[must_use]
pub fn answer_packet(
    table: &Table,
    search: &[String],
    packet: &[u8],
    transport: Transport,
) -> Reply {
    let Ok(message) = Message::from_vec(packet) else { return malformed(packet) };
    if message.metadata.message_type != MessageType::Query {
        return Reply::Nothing;
    }
    let limit = match transport {
        Transport::Tcp => u16::MAX,
        Transport::Udp => message.max_payload().clamp(SMALLEST, LARGEST),
    };
    let metadata = message.metadata;
    let edns = message.edns.is_some();
    if metadata.op_code != OpCode::Query {
        return failure(&metadata, ResponseCode::NotImp);
    }
    if message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return failure(&metadata, ResponseCode::BADVERS);
    }
    let dnssec = message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
    let Some(query) = message.queries.into_iter().next() else {
        return failure(&metadata, ResponseCode::FormErr);
    };
    let question = Question { query, metadata, limit, edns, dnssec };
    match local(table, search, &question) {
        Some(answer) => encoded(answer, &question),
        None => Reply::Forward(Box::new(question)),
    }
}

/// An answer from the table; `None` for what the mesh does not have.
fn local(table: &Table, search: &[String], question: &Question) -> Option<Message> {
    let query = &question.query;
    let kind = query.query_type();
    let of_addresses =
        [RecordType::A, RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB].contains(&kind);
    if query.query_class() != DNSClass::IN || !of_addresses {
        return None;
    }
    let name = query.name().to_ascii().to_ascii_lowercase();
    let Found { addresses, canonical } = table.find(name.trim_end_matches('.'), search)?;
    let mut answer = response(question, ResponseCode::NoError);
    answer.metadata.authoritative = true;
    let mut owner = query.name().clone();
    if let Some(canonical) = canonical.and_then(|name| Name::from_ascii(name + ".").ok()) {
        let data = RData::CNAME(CNAME(canonical.clone()));
        answer.add_answer(Record::from_rdata(owner, TTL, data));
        owner = canonical;
    }
    for data in data(addresses, kind) {
        answer.add_answer(Record::from_rdata(owner.clone(), TTL, data));
    }
    Some(answer)
}

/// In an order of its own for each answer, so that the load spreads.
fn data(addresses: &Addresses, kind: RecordType) -> Vec<RData> {
    let mut all: Vec<RData> = match kind {
        RecordType::A => addresses.v4.iter().map(|ip: &Ipv4Addr| RData::A(A(*ip))).collect(),
        RecordType::AAAA => {
            addresses.v6.iter().map(|ip: &Ipv6Addr| RData::AAAA(AAAA(*ip))).collect()
        }
        _ => Vec::new(),
    };
    if all.len() > 1 {
        rand::seq::SliceRandom::shuffle(all.as_mut_slice(), &mut rand::rng());
    }
    all
}

/// An answer that says why there is none.
pub(super) fn failed(question: &Question, code: ResponseCode) -> Vec<u8> {
    match encoded(response(question, code), question) {
        Reply::Answer(bytes) => bytes,
        _ => Vec::new(),
    }
}

/// The answer to somebody who may not ask; `None` for what is no query. It is not larger than the
/// query: nobody is flooded with answers by a forged address.
pub(super) fn refused(packet: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_vec(packet).ok()?;
    if message.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut answer =
        Message::new(message.metadata.id, MessageType::Response, message.metadata.op_code);
    answer.metadata = Metadata::response_from_request(&message.metadata);
    answer.metadata.response_code = ResponseCode::Refused;
    if let Some(query) = message.queries.into_iter().next() {
        answer.add_query(query);
    }
    answer.to_vec().ok().filter(|bytes| bytes.len() <= packet.len())
}

/// A response without answers, in the form that the question asks for.
pub(super) fn response(question: &Question, code: ResponseCode) -> Message {
    let mut answer = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    answer.metadata = Metadata::response_from_request(&question.metadata);
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = code;
    answer.add_query(question.query.clone());
    if question.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(LARGEST);
        edns.set_dnssec_ok(question.dnssec);
        answer.set_edns(edns);
    }
    answer
}

/// The bytes of an answer; without its records and marked as cut where they are too many.
pub(super) fn encoded(answer: Message, question: &Question) -> Reply {
    let limit = usize::from(question.limit);
    match answer.to_vec() {
        Ok(bytes) if bytes.len() <= limit => Reply::Answer(bytes),
        Ok(_) => match answer.truncate().to_vec() {
            Ok(bytes) => Reply::Answer(bytes),
            Err(_) => Reply::Nothing,
        },
        Err(_) => Reply::Nothing,
    }
}

fn failure(metadata: &Metadata, code: ResponseCode) -> Reply {
    let mut answer = Message::new(metadata.id, MessageType::Response, metadata.op_code);
    answer.metadata = Metadata::response_from_request(metadata);
    answer.metadata.response_code = code;
    answer.to_vec().map_or(Reply::Nothing, Reply::Answer)
}

/// A packet that has at least a query's header gets an error; anything else is noise.
fn malformed(packet: &[u8]) -> Reply {
    match packet {
        [high, low, flags, ..] if packet.len() >= HEADER && flags & RESPONSE == 0 => {
            let id = u16::from_be_bytes([*high, *low]);
            let answer = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
            answer.to_vec().map_or(Reply::Nothing, Reply::Answer)
        }
        _ => Reply::Nothing,
    }
}

/// Seconds that an answer may be kept, as Istio says.
const TTL: u32 = 30;
/// Every resolver takes that much in a datagram (RFC 1035 section 2.3.4).
const SMALLEST: u16 = 512;
/// On loopback nothing is cut into pieces.
const LARGEST: u16 = 4096;
const HEADER: usize = 12;
const RESPONSE: u8 = 0x80;
