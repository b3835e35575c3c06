//! A line and a descriptor, from one process to another over a Unix stream (unix(7), `SCM_RIGHTS`).

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;

/// Connects to a socket and sends it an order: a line of JSON, with a descriptor beside it if there
/// is one. What is said to it comes by the stream.
///
/// # Errors
/// When nobody listens there, or the other end is gone.
pub fn order(
    socket: &Path,
    order: &impl Serialize,
    beside: Option<BorrowedFd<'_>>,
) -> io::Result<tokio::net::UnixStream> {
    let stream = UnixStream::connect(socket)?;
    send(&stream, &serde_json::to_vec(order)?, beside)?;
    stream.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(stream)
}

/// Sends a line, which gets its end here; its first byte carries the descriptor, if there is one.
///
/// # Errors
/// When the other end is gone.
pub fn send(
    mut stream: &UnixStream,
    line: &[u8],
    beside: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let descriptors = beside.as_slice();
    if !descriptors.is_empty() {
        message.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let line = [line, b"\n"].concat();
    let sent = sendmsg(stream, &[IoSlice::new(&line)], &mut message, SendFlags::empty())?;
    stream.write_all(line.get(sent..).unwrap_or_default())
}

/// Receives a line of at most `limit` bytes, without its end, and what came beside it. It waits for
/// as long as the stream's own limit says (`SO_RCVTIMEO`).
///
/// # Errors
/// When nothing comes in time.
pub fn receive(stream: &UnixStream, limit: u64) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let mut first = [0; 1];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(stream, &mut [IoSliceMut::new(&mut first)], &mut message, flags)?.bytes;
    let beside = message.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let mut line = first.get(..got).unwrap_or_default().to_vec();
    if line != b"\n" {
        BufReader::new(stream.take(limit)).read_until(b'\n', &mut line)?;
    }
    line.pop_if(|last| *last == b'\n');
    Ok((line, beside))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_line_arrives_with_its_descriptor_and_no_more_of_it_than_allowed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        send(&ours, b"an order", Some(writer.as_fd())).unwrap();
        drop(writer);
        let (line, beside) = receive(&theirs, 100).unwrap();
        assert_eq!(line, b"an order");
        std::fs::File::from(beside.unwrap()).write_all(b"said").unwrap();
        assert_eq!(io::read_to_string(reader).unwrap(), "said");

        (&ours).write_all(b"without one\n\n").unwrap();
        let (line, beside) = receive(&theirs, 5).unwrap();
        assert_eq!((&*line, beside.is_none()), (&b"withou"[..], true));
    }
}
