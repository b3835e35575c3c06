//! One question to one resolver.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::answer::{Question, Transport};

/// Asks by a datagram, and by a stream where the answer does not fit.
pub(super) async fn ask(
    server: SocketAddr,
    question: &Question,
    came_by: Transport,
) -> io::Result<Message> {
    let mut query = Message::query();
    query.metadata.id = rand::random();
    query.metadata.recursion_desired = question.metadata.recursion_desired;
    query.metadata.checking_disabled = question.metadata.checking_disabled;
    query.metadata.authentic_data = question.metadata.authentic_data;
    query.add_query(question.query.clone());
    if question.edns {
        let mut edns = hickory_proto::op::Edns::new();
        edns.set_max_payload(DATAGRAM);
        edns.set_dnssec_ok(question.dnssec);
        query.set_edns(edns);
    }
    let bytes = query.to_vec().map_err(io::Error::other)?;
    if came_by == Transport::Udp {
        let answer = timeout(DATAGRAM_LIMIT, by_datagram(server, &query, &bytes)).await??;
        if !answer.metadata.truncation {
            return Ok(answer);
        }
    }
    timeout(STREAM_LIMIT, by_stream(server, &query, &bytes)).await?
}

/// From a port of its own, so that an answer cannot be forged by guessing the number alone.
async fn by_datagram(server: SocketAddr, query: &Message, bytes: &[u8]) -> io::Result<Message> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Packets of anybody else are not even seen then.
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; usize::from(DATAGRAM)];
    loop {
        let size = socket.recv(&mut buffer).await?;
        if let Some(answer) = matching(query, buffer.get(..size).unwrap_or_default()) {
            return Ok(answer);
        }
    }
}

async fn by_stream(server: SocketAddr, query: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, bytes).await?;
    let answer = read_message(&mut stream).await?;
    matching(query, &answer).ok_or_else(|| io::Error::other("it answered another question"))
}

/// An answer to this query and no other.
fn matching(query: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let fits = answer.metadata.id == query.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == query.queries;
    fits.then_some(answer)
}

/// Writes a message with its length before it (RFC 1035 section 4.2.2).
pub(super) async fn write_message(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut whole = Vec::with_capacity(bytes.len().saturating_add(2));
    whole.extend_from_slice(&length.to_be_bytes());
    whole.extend_from_slice(bytes);
    stream.write_all(&whole).await
}

/// Reads a message with its length before it.
pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// What resolvers send in one datagram at most.
const DATAGRAM: u16 = 4096;
/// A resolver that is well answers in less, or another one is asked.
const DATAGRAM_LIMIT: Duration = Duration::from_secs(2);
const STREAM_LIMIT: Duration = Duration::from_secs(4);
