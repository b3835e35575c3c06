//! Who asks: the user of a local socket, or the address of another machine. Fair shares and
//! [`Admission`] go by it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};
use tokio::time::Instant;

use super::Upstreams;
use super::answer::Transport;
use super::resolvers::Resolvers;
use crate::base::cidr::Cidr;

/// Somebody who shares the limits with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Client {
    /// A user of this machine, by number.
    User(u32),
    /// A socket of this machine that is closed already: nobody waits for its answer.
    Closed,
    /// A machine of another address. Of IPv6 a network counts: one machine has all of its addresses.
    Machine(IpAddr),
}

/// Who may ask, and who it is.
#[derive(Debug)]
pub(super) struct Admission {
    allowed: Vec<Cidr>,
    own: Mutex<Own>,
    /// Those that programs of this machine ask, whose queries come here by the redirect rules.
    asked: Mutex<Resolvers>,
}

/// This machine's addresses.
#[derive(Debug, Default)]
struct Own {
    addresses: HashSet<IpAddr>,
    read_at: Option<Instant>,
}

impl Admission {
    /// This machine's own addresses and those ranges.
    pub(super) fn new(allowed: Vec<Cidr>) -> Self {
        let asked = Resolvers::new(Upstreams::ResolvConf(RESOLV_CONF.into()), Vec::new());
        Self { allowed, own: Mutex::default(), asked: Mutex::new(asked) }
    }

    /// Whether a query from there is answered. The kernel accepts no packet with an address of this
    /// machine from outside (`fib_validate_source`), so a source that is ours is local.
    pub(super) fn admits(&self, from: IpAddr) -> bool {
        let from = from.to_canonical();
        self.is_own(from) || self.allowed.iter().any(|range| range.contains(from))
    }

    fn is_own(&self, from: IpAddr) -> bool {
        if from.is_loopback() {
            return true;
        }
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        // A new address is ours soon after it is there, and a stranger does not make us read them often.
        let wait = if own.addresses.contains(&from) { LOST } else { FOUND };
        if own.read_at.is_none_or(|at| at.elapsed() > wait) {
            own.addresses = own_addresses();
            own.read_at = Some(Instant::now());
        }
        own.addresses.contains(&from)
    }

    /// Who sent a query from `from` to our socket `to`.
    pub(super) fn client(&self, transport: Transport, from: SocketAddr, to: SocketAddr) -> Client {
        let ip = from.ip().to_canonical();
        if self.is_own(ip) {
            return self.owner(transport, from, to).map_or(Client::Closed, Client::User);
        }
        Client::Machine(match ip {
            IpAddr::V4(_) => ip,
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & NETWORK).into(),
        })
    }
}

impl Admission {
    /// The user whose socket is bound to `from`; `None` when none is found. The kernel finds a connected
    /// socket by its peer only, which is not `to` where a rule has redirected the query.
    fn owner(&self, transport: Transport, from: SocketAddr, to: SocketAddr) -> Option<u32> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.refresh();
        // Of a socket for all addresses it is not known which of them was meant: usually the sender's.
        let to = if to.ip().is_unspecified() { SocketAddr::new(from.ip(), to.port()) } else { to };
        let from = canonical(from);
        let peers = std::iter::once(canonical(to)).chain(asked.servers().iter().copied());
        let peers = peers.filter(|peer| peer.is_ipv4() == from.is_ipv4());
        let found = find_owner(transport, from, peers);
        found.unwrap_or_else(|error| {
            tracing::debug!(%error, %from, "The owner of a socket is not known");
            None
        })
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => (ip, address.port()).into(),
        IpAddr::V6(_) => address,
    }
}

fn own_addresses() -> HashSet<IpAddr> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    all.filter_map(|one| {
        let address = one.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
    })
    .collect()
}

/// Asks for one socket (sock_diag(7)) by each of the peers that it may be connected to. The kernel
/// answers at once, within the call that sends.
fn find_owner(
    transport: Transport,
    from: SocketAddr,
    peers: impl Iterator<Item = SocketAddr>,
) -> io::Result<Option<u32>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = Some(netlink::SOCK_DIAG);
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, kind)?;
    for peer in peers {
        send(&socket, &request(transport, from, peer), SendFlags::empty())?;
        let mut answer = [0; ANSWER];
        let (size, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
        if let Some(uid) = uid(answer.get(..size).unwrap_or_default()) {
            return Ok(Some(uid));
        }
    }
    Ok(None)
}

/// `nlmsghdr` and `inet_diag_req_v2` (Linux `include/uapi/linux/inet_diag.h`). A datagram socket is
/// found by the kernel as it would find the receiver of a packet, so its addresses are given in the
/// packet's order (`udp_dump_one`).
fn request(transport: Transport, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let (protocol, [first, second]) = match transport {
        Transport::Tcp => (PROTOCOL_TCP, [from, to]),
        Transport::Udp => (PROTOCOL_UDP, [to, from]),
    };
    let family = if from.is_ipv4() { FAMILY_IPV4 } else { FAMILY_IPV6 };
    let mut bytes = Vec::with_capacity(usize::from(REQUEST));
    bytes.extend(u32::from(REQUEST).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence and port: one question, one answer.
    bytes.extend([0; 8]);
    bytes.extend([family, protocol, 0, 0]);
    bytes.extend(ALL_STATES.to_ne_bytes());
    bytes.extend(first.port().to_be_bytes());
    bytes.extend(second.port().to_be_bytes());
    for address in [first, second] {
        match address.ip() {
            IpAddr::V4(ip) => {
                bytes.extend(ip.octets());
                bytes.extend([0; 12]);
            }
            IpAddr::V6(ip) => bytes.extend(ip.octets()),
        }
    }
    let scope = if let SocketAddr::V6(from) = from { from.scope_id() } else { 0 };
    bytes.extend(scope.to_ne_bytes());
    // Any cookie.
    bytes.extend([0xff; 8]);
    bytes
}

/// The user in an answer (`inet_diag_msg`); `None` when it is an error, which is what no socket is.
fn uid(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if kind != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    Some(u32::from_ne_bytes(answer.get(UID..UID.saturating_add(4))?.try_into().ok()?))
}

/// Refusals since they were logged last.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    seen: Mutex<HashMap<IpAddr, u64>>,
}

impl Refusals {
    pub(super) fn count(&self, from: IpAddr) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < SHOWN || seen.contains_key(&from) {
            let count = seen.entry(from).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// Logs them, one line for all.
    pub(super) fn log(&self) {
        let seen = std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        if !seen.is_empty() {
            let from: Vec<_> = seen.keys().map(ToString::to_string).collect();
            let queries: u64 = seen.values().sum();
            let from = from.join(", ");
            tracing::warn!(queries, from, "Refused DNS queries of other machines (dns.allowFrom)");
        }
    }
}

/// How long an address that is gone counts as ours, and how often a stranger makes us look.
const LOST: Duration = Duration::from_secs(5);
const FOUND: Duration = Duration::from_secs(1);
/// A host has a network of 64 bits (RFC 4291 section 2.5.4).
const NETWORK: u128 = !(u64::MAX as u128);
const RESOLV_CONF: &str = "/etc/resolv.conf";
const REQUEST: u16 = 72;
const ANSWER: usize = 1024;
const UID: usize = 16 + 64;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const ALL_STATES: u32 = u32::MAX;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;
/// Addresses that one line of the log names.
const SHOWN: usize = 8;

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[tokio::test]
    async fn the_kernel_names_the_user_of_a_local_socket() {
        let own = Client::User(nix::unistd::geteuid().as_raw());
        let admission = Admission::new(Vec::new());
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(server) = UdpSocket::bind(local).await else { continue };
            let client = UdpSocket::bind(local).await.unwrap();
            let (from, to) = (client.local_addr().unwrap(), server.local_addr().unwrap());
            assert_eq!(admission.client(Transport::Udp, from, to), own);
            client.connect(to).await.unwrap();
            assert_eq!(admission.client(Transport::Udp, from, to), own, "also when connected");
            drop(client);
            assert_eq!(admission.client(Transport::Udp, from, to), Client::Closed);
            let server = TcpListener::bind(local).await.unwrap();
            let to = server.local_addr().unwrap();
            let client = TcpStream::connect(to).await.unwrap();
            let from = client.local_addr().unwrap();
            assert_eq!(admission.client(Transport::Tcp, from, to), own);
        }
    }

    #[test]
    fn only_this_machine_and_what_is_allowed_is_answered() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let admission = Admission::new(vec!["192.0.2.0/24".parse().unwrap()]);
        for allowed in ["127.0.0.1", "127.9.9.9", "::1", "192.0.2.7", "::ffff:192.0.2.7"] {
            assert!(admission.admits(ip(allowed)), "{allowed}");
        }
        for own in own_addresses() {
            assert!(admission.admits(own), "{own}");
        }
        for stranger in ["198.51.100.1", "2001:db8::1", "::ffff:198.51.100.1"] {
            assert!(!admission.admits(ip(stranger)), "{stranger}");
        }
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_client() {
        let admission = Admission::new(Vec::new());
        let to = "[2001:db8::53]:53".parse().unwrap();
        let of = |from: &str| admission.client(Transport::Udp, from.parse().unwrap(), to);
        assert_eq!(of("[2001:db8:1::1]:1"), of("[2001:db8:1::2]:2"));
        assert_ne!(of("[2001:db8:1::1]:1"), of("[2001:db8:2::1]:1"));
    }
}
