//! Asks one server one question, to see whether it answers.

use std::io;
use std::net::SocketAddr;

use hickory_proto::op::{Metadata, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

use super::answer::{Question, Transport};
use super::exchange::ask;

/// Asks for the IPv4 addresses of a name by a datagram; gives the answer in words, such as
/// `NOERROR, 2 records`.
///
/// # Errors
/// When the name is none, or nobody answers in time. A server that says that it cannot tell
/// (SERVFAIL) is an error as well.
pub async fn probe(server: SocketAddr, name: &str) -> io::Result<String> {
    let name = Name::from_ascii(format!("{}.", name.trim_end_matches('.')));
    let query = Query::query(name.map_err(io::Error::other)?, RecordType::A);
    let mut metadata =
        Metadata::new(0, hickory_proto::op::MessageType::Query, hickory_proto::op::OpCode::Query);
    metadata.recursion_desired = true;
    let question = Question { query, metadata, limit: LIMIT, edns: false, dnssec: false };
    let answer = ask(server, &question, Transport::Udp).await?;
    let code = answer.metadata.response_code;
    let words = format!("{code}, {} records", answer.answers.len());
    if code == ResponseCode::ServFail { Err(io::Error::other(words)) } else { Ok(words) }
}

/// Any answer will do (RFC 1035 section 4.2.1).
const LIMIT: u16 = 512;
