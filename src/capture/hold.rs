//! Holds the proxy's ports while the proxy is away: sockets of the proxy's user that are bound and
//! never listen. With `SO_REUSEPORT` the kernel lets sockets of the same user share a port and
//! refuses those of any other (socket(7)), so that the proxy can listen there and nobody else can.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpSocket;

use super::sockets::Sockets;
use super::{Config, Ipv6};

/// The ports that are held.
#[derive(Debug, Default)]
pub(super) struct Held {
    sockets: Vec<(u16, TcpSocket)>,
    /// Said once.
    refused: bool,
}

impl Held {
    /// Takes the ports that are not held yet. The admin port is not among them: the proxy listens
    /// there without `SO_REUSEPORT`.
    pub(super) async fn take(&mut self, config: &Config, sockets: &Sockets) {
        for port in config.proxy_ports.all() {
            let is_held = self.sockets.iter().any(|(held, _)| *held == port);
            if port == config.proxy_ports.admin || is_held {
                continue;
            }
            match hold(config, sockets, port).await {
                Ok(socket) => self.sockets.push((port, socket)),
                // Who listens there is found by other means.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.refused, true) {
                        tracing::warn!(%error, port, "Cannot hold the proxy's port.");
                    }
                    return;
                }
            }
        }
    }

    /// The ports that no other user can listen at.
    pub(super) fn ports(&self) -> Vec<u16> {
        self.sockets.iter().map(|(port, _)| *port).collect()
    }
}

async fn hold(config: &Config, sockets: &Sockets, port: u16) -> io::Result<TcpSocket> {
    // A socket of the unspecified IPv6 address has the port in IPv4, too (`IPV6_V6ONLY`, ipv6(7)).
    let any: IpAddr = match config.ipv6 {
        Ipv6::Absent => Ipv4Addr::UNSPECIFIED.into(),
        Ipv6::Redirect | Ipv6::Reject | Ipv6::Leave => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = sockets.of(config.owner, any).await?;
    // `SO_REUSEADDR` would let another user in, as this socket never listens.
    socket.set_reuseport(true)?;
    socket.bind(SocketAddr::new(any, port))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::super::{Owner, ProxyPorts};
    use super::*;

    /// Ports that nothing listens at, no two of which are the same.
    fn free() -> [u16; 6] {
        let all = [(); 6].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        all.map(|listener| listener.local_addr().unwrap().port())
    }

    #[tokio::test]
    async fn a_held_port_is_free_for_the_same_user_and_for_nobody_else() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let proxy = Owner { uid: 1337, gid: 1337 };
        let [outbound, inbound, tunnel, admin, health, metrics] = free();
        let proxy_ports = ProxyPorts { outbound, inbound, tunnel, admin, health, metrics };
        let config = Config { owner: proxy, proxy_ports, ..config() };
        let mut held = Held::default();
        held.take(&config, &Sockets::Own).await;
        assert_eq!(held.ports(), [outbound, inbound, tunnel, health, metrics]);
        let any: IpAddr = Ipv4Addr::UNSPECIFIED.into();
        for at in [SocketAddr::new(any, outbound), SocketAddr::from(([127, 0, 0, 1], outbound))] {
            for (uid, is_let_in) in [(65534, false), (0, false), (1337, true)] {
                let socket = Sockets::Own.of(Owner { uid, gid: uid }, any).await.unwrap();
                socket.set_reuseport(true).unwrap();
                let bound = socket.bind(at).and_then(|()| socket.listen(1));
                assert_eq!(bound.is_ok(), is_let_in, "uid {uid} at {at}");
            }
        }
    }
}
