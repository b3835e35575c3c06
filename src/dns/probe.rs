//! Asks one server one question, to see whether it answers.

use std::io;
use std::net::SocketAddr;

use hickory_proto::op::{MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

use super::answer::{Question, Transport};
use super::exchange::ask;

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// In words, such as `No Error, 2 records`.
    pub words: String,
    /// Whether it said that it cannot tell, as those whom it asked do not answer (SERVFAIL).
    pub failed: bool,
}

/// Asks for the IPv4 addresses of a name by a datagram.
///
/// # Errors
/// When the name is none, or nobody answers in time.
pub async fn probe(server: SocketAddr, name: &str) -> io::Result<Heard> {
    let name = Name::from_ascii(format!("{}.", name.trim_end_matches('.')));
    let query = Query::query(name.map_err(io::Error::other)?, RecordType::A);
    let mut metadata = Metadata::new(0, MessageType::Query, OpCode::Query);
    metadata.recursion_desired = true;
    let question = Question { query, metadata, limit: LIMIT, edns: false, dnssec: false };
    let answer = ask(server, &question, Transport::Udp).await?;
    let code = answer.metadata.response_code;
    let words = format!("{code}, {} records", answer.answers.len());
    Ok(Heard { words, failed: code == ResponseCode::ServFail })
}

/// Any answer will do (RFC 1035 section 4.2.1).
const LIMIT: u16 = 512;
