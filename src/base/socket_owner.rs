//! Which user's socket is the other end of a TCP connection on this machine, as the kernel tells it
//! (sock_diag(7)). An address says little: what the proxy passes on comes from a loopback address, too.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::net::netlink::SOCK_DIAG;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{recv, send, socket_with};

/// The user that has the socket at `local` which is connected to `remote`. `None` when no process of
/// this network namespace has such a socket open: it is on another machine, or was closed.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn owner_of(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let (local, remote) = (canonical(local), canonical(remote));
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(SOCK_DIAG),
    )?;
    send(&socket, &question(local, remote)?, SendFlags::empty())?;
    let mut answer = [0; ANSWER_BYTES];
    // The kernel has answered before `send` returned.
    let (size, _) = recv(&socket, &mut answer, RecvFlags::DONTWAIT)?;
    read(answer.get(..size).unwrap_or_default(), local, remote)
}

/// A mapped address is that of IPv4: the kernel keeps both in one table.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2` (linux/inet_diag.h).
fn question(local: SocketAddr, remote: SocketAddr) -> io::Result<Vec<u8>> {
    let family = match (local.ip(), remote.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => AddressFamily::INET,
        (IpAddr::V6(_), IpAddr::V6(_)) => AddressFamily::INET6,
        _ => return Err(io::Error::other("the two ends are of different families")),
    };
    let family = u8::try_from(family.as_raw()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(QUESTION_BYTES);
    bytes.extend(u32::try_from(QUESTION_BYTES).map_err(io::Error::other)?.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence and sender.
    bytes.extend([0; 8]);
    bytes.extend([family, IPPROTO_TCP, 0, 0]);
    bytes.extend(ALL_STATES.to_ne_bytes());
    bytes.extend(ends(local, remote));
    // The interface, and no cookie.
    bytes.extend([0; 4]);
    bytes.extend([0xff; 8]);
    Ok(bytes)
}

/// The first part of `struct inet_diag_sockid`: both ports, and both addresses, in network order.
fn ends(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let address = |end: SocketAddr| {
        let mut bytes = match end.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        bytes.resize(16, 0);
        bytes
    };
    let ports = [local.port().to_be_bytes(), remote.port().to_be_bytes()];
    [ports.concat(), address(local), address(remote)].concat()
}

/// `struct nlmsghdr` and `struct inet_diag_msg`, or an error in its place.
fn read(answer: &[u8], local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let cut = || io::Error::other("the kernel's answer is too short");
    let number = |at: usize| -> io::Result<u32> {
        let bytes = answer.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(cut)?;
        Ok(u32::from_ne_bytes(*bytes))
    };
    let kind = answer.get(4..).and_then(|rest| rest.first_chunk()).ok_or_else(cut)?;
    match u16::from_ne_bytes(*kind) {
        NLMSG_ERROR => {
            let code = number(HEADER_BYTES)?.cast_signed().saturating_neg();
            let error = io::Error::from_raw_os_error(code);
            if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) }
        }
        SOCK_DIAG_BY_FAMILY => {
            let expected = ends(local, remote);
            let told = answer.get(ENDS_AT..).and_then(|rest| rest.get(..expected.len()));
            // Without a match the kernel may tell of a listener at the same port; and a socket that its
            // process has closed has no inode, and counts as root's.
            let is_it = told == Some(&expected) && number(INODE_AT)? != 0;
            Ok(if is_it { Some(number(UID_AT)?) } else { None })
        }
        other => Err(io::Error::other(format!("the kernel's answer is of type {other}"))),
    }
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const IPPROTO_TCP: u8 = 6;
const ALL_STATES: u32 = u32::MAX;
const HEADER_BYTES: usize = 16;
const QUESTION_BYTES: usize = HEADER_BYTES + 56;
/// Family, state, timer and retransmissions come before.
const ENDS_AT: usize = HEADER_BYTES + 4;
const UID_AT: usize = HEADER_BYTES + 64;
const INODE_AT: usize = HEADER_BYTES + 68;
/// The message has 88 bytes, without attributes that nobody asked for.
const ANSWER_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair(address: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(address).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (client, server)
    }

    fn asked(server: &TcpStream) -> Option<u32> {
        owner_of(server.peer_addr().unwrap(), server.local_addr().unwrap()).unwrap()
    }

    #[test]
    fn the_user_at_the_other_end_is_known_while_it_is_open() {
        let me = nix::unistd::getuid().as_raw();
        let (client, server) = pair("127.0.0.1:0");
        assert_eq!(asked(&server), Some(me));
        drop(client);
        assert_eq!(asked(&server), None, "a closed one must not count as root's");
    }

    #[test]
    fn an_address_of_ipv4_in_ipv6_is_the_same() {
        let listener = TcpListener::bind("[::]:0");
        // A kernel without IPv6 has no such addresses.
        let Ok(listener) = listener else { return };
        let port = listener.local_addr().unwrap().port();
        let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (server, peer) = listener.accept().unwrap();
        assert!(peer.is_ipv6());
        assert_eq!(asked(&server), Some(nix::unistd::getuid().as_raw()));
    }

    #[test]
    fn nobody_has_an_end_that_is_not_there_and_a_listener_is_none() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let elsewhere = "192.0.2.1:9".parse().unwrap();
        assert_eq!(owner_of(elsewhere, address).unwrap(), None);
        assert_eq!(owner_of(address, "127.0.0.1:9".parse().unwrap()).unwrap(), None);
        assert!(owner_of("[::1]:9".parse().unwrap(), address).is_err());
    }

    #[test]
    fn an_answer_that_is_cut_or_strange_is_an_error() {
        let (local, remote) = ("127.0.0.1:9".parse().unwrap(), "127.0.0.1:8".parse().unwrap());
        let mut answer = vec![0; HEADER_BYTES + 72];
        for kind in [NLMSG_ERROR, SOCK_DIAG_BY_FAMILY, 7] {
            answer[4..6].copy_from_slice(&kind.to_ne_bytes());
            for size in 0..HEADER_BYTES + 3 {
                let read = read(&answer[..size], local, remote);
                assert!(read.is_err() || read.unwrap().is_none(), "{kind} {size}");
            }
        }
        assert!(read(&answer, local, remote).is_err(), "a type that nobody knows");
    }
}
