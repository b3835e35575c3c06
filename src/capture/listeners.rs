//! What listens at the proxy's ports, and as whose: read from the kernel's table of TCP sockets.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use nix::unistd::{Uid, User};

use super::{Owner, ProxyPorts};
use crate::base::fsio;

/// The listening sockets at the proxy's ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    ports: Option<ProxyPorts>,
    found: Vec<Listener>,
}

/// One listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listener {
    port: u16,
    ipv6: bool,
    uid: u32,
}

/// A port of the proxy at which somebody else listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    pub(super) port: u16,
    pub(super) uid: u32,
}

impl Listeners {
    /// Looks at this network namespace (`/proc/net/tcp`, `/proc/net/tcp6`: proc(5)). What cannot be
    /// read counts as nothing.
    #[must_use]
    pub fn look(ports: ProxyPorts) -> Self {
        let wanted = ports.all();
        let mut found = Vec::new();
        for (file, ipv6) in [("/proc/net/tcp", false), ("/proc/net/tcp6", true)] {
            if let Ok(file) = fsio::open_regular(Path::new(file)) {
                let listening =
                    listening(file.take(BYTES)).filter(|(port, _)| wanted.contains(port));
                found.extend(listening.map(|(port, uid)| Listener { port, ipv6, uid }));
            }
        }
        Self { ports: Some(ports), found }
    }

    /// Whether the ports that connections are redirected to are served on IPv6; `None` while nothing
    /// listens there.
    #[must_use]
    pub fn serve_ipv6(&self) -> Option<bool> {
        let ports = self.ports?;
        let serves = |port, ipv6| self.found.iter().any(|one| one.port == port && one.ipv6 == ipv6);
        let both = |ipv6| serves(ports.outbound, ipv6) && serves(ports.inbound, ipv6);
        (both(true) || both(false)).then(|| both(true))
    }

    /// The first port at which another user than the proxy's listens.
    pub(super) fn foreign(&self, owner: Owner) -> Option<Foreign> {
        let ports = self.ports?.all();
        let of_another = |port: &u16| {
            let found = self.found.iter().find(|one| one.port == *port && one.uid != owner.uid)?;
            Some(Foreign { port: found.port, uid: found.uid })
        };
        ports.iter().find_map(of_another)
    }
}

impl std::fmt::Display for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { port, uid } = self;
        let name = User::from_uid(Uid::from_raw(*uid)).ok().flatten().map(|user| user.name);
        match name {
            Some(name) => write!(f, "port {port} is held by user {name} (uid {uid})"),
            None => write!(f, "port {port} is held by uid {uid}"),
        }
    }
}

/// Ports and users of the listening sockets in such a table. The kernel shows these first
/// (`net/ipv4/tcp_ipv4.c`, `tcp_get_idx`), and what follows may be a hundred thousand connections.
fn listening(table: impl Read) -> impl Iterator<Item = (u16, u32)> {
    let lines = BufReader::new(table).lines().map_while(Result::ok).skip(1);
    lines.map_while(|line| listener(&line))
}

/// `  0: 00000000:3A9E 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337  0 ...`
fn listener(line: &str) -> Option<(u16, u32)> {
    let mut words = line.split_whitespace();
    let port = words.nth(1)?.rsplit_once(':')?.1;
    let state = words.nth(1)?;
    let uid = words.nth(3)?;
    let port = u16::from_str_radix(port, 16).ok()?;
    (state == LISTEN).then_some((port, uid.parse().ok()?))
}

/// The kernel's `TCP_LISTEN`.
const LISTEN: &str = "0A";
/// Some ten thousand listeners.
const BYTES: u64 = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 27 1
   1: 0100007F:3A98 00000000:0000 0A 00000000:00000000 00:00000000 00000000 65534        0 28 1
   2: 00000000:3A9E 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 29 1
   3: 0100007F:D3F4 0100007F:3A9E 01 00000000:00000000 00:00000000 00000000     9        0 30 1
   4: 00000000:3AAE 00000000:0000 0A 00000000:00000000 00:00000000 00000000     9        0 31 1
";
    const PORTS: ProxyPorts = ProxyPorts::with_admin(15000);

    fn found(ipv6: bool) -> Listeners {
        let found = listening(TABLE.as_bytes());
        let found = found.map(|(port, uid)| Listener { port, ipv6, uid }).collect();
        Listeners { ports: Some(PORTS), found }
    }

    #[test]
    fn listeners_are_read_up_to_the_first_connection() {
        let read: Vec<_> = listening(TABLE.as_bytes()).collect();
        assert_eq!(read, [(15001, 1337), (15000, 65534), (15006, 1337)]);
        assert_eq!(listening("rubbish\n0: a b c\n".as_bytes()).count(), 0);
    }

    #[test]
    fn a_port_of_another_user_is_named_with_that_user() {
        let owner = |uid| Owner { uid, gid: 1 };
        let foreign = found(false).foreign(owner(1337)).unwrap();
        assert_eq!(foreign, Foreign { port: 15000, uid: 65534 });
        assert_eq!(foreign.to_string(), "port 15000 is held by user nobody (uid 65534)");
        assert_eq!(found(false).foreign(owner(7)).unwrap().port, 15001);
        assert_eq!(Listeners::default().foreign(owner(7)), None);
    }

    #[test]
    fn a_listening_socket_of_this_process_is_found() {
        let listener = std::net::TcpListener::bind("[::1]:0")
            .or_else(|_| std::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = Listeners::look(ProxyPorts { outbound: port, inbound: port, ..PORTS });
        assert_eq!(found.serve_ipv6(), Some(listener.local_addr().unwrap().is_ipv6()));
        let uid = nix::unistd::geteuid().as_raw();
        assert_eq!(found.foreign(Owner { uid: uid + 1, gid: 0 }), Some(Foreign { port, uid }));
    }

    #[test]
    fn ipv6_follows_the_proxys_listeners_and_stays_while_there_are_none() {
        use crate::capture::{Ipv6, Ipv6Policy};
        let auto = |found: &Listeners, before| Ipv6Policy::Auto.decide(true, found, before);
        let none = Listeners { ports: Some(PORTS), found: Vec::new() };
        assert_eq!(auto(&found(false), Some(Ipv6::Redirect)), Ipv6::Reject);
        assert_eq!(auto(&found(true), None), Ipv6::Redirect);
        assert_eq!(auto(&none, None), Ipv6::Reject);
        assert_eq!(auto(&none, Some(Ipv6::Redirect)), Ipv6::Redirect);
        assert_eq!(Ipv6Policy::Auto.decide(false, &found(true), None), Ipv6::Absent);
        let always = Ipv6Policy::Always(Ipv6::Leave);
        assert_eq!(always.decide(true, &found(true), None), Ipv6::Leave);
    }
}
