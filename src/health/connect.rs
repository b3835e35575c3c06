//! Connections of probes. Those to this machine come from the address that redirect rules let pass:
//! from any other they would end in the proxy, which always answers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpSocket, TcpStream, lookup_host};

/// How probes connect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// The machine's own address.
    pub(super) target: IpAddr,
}

impl Way {
    /// Connects to a host, or to the machine's own address; the first of its addresses that
    /// answers counts.
    pub(super) async fn connect(self, host: Option<&str>, port: u16) -> io::Result<TcpStream> {
        let addresses = match host {
            None => vec![SocketAddr::new(self.target, port)],
            Some("localhost") => {
                vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
            }
            Some(host) => lookup_host((host, port)).await?.take(ADDRESSES).collect(),
        };
        let mut failed = io::Error::other("the host has no address");
        for address in addresses {
            match self.connect_to(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = io::Error::new(error.kind(), format!("{address}: {error}")),
            }
        }
        Err(failed)
    }

    async fn connect_to(self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if address.ip().is_loopback() || address.ip() == self.target {
            let source: IpAddr = match address {
                SocketAddr::V4(_) => Ipv4Addr::new(127, 0, 0, 6).into(),
                SocketAddr::V6(_) => Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into(),
            };
            // Without redirect rules there may be no such address of IPv6, and no need for it.
            if let Err(error) = socket.bind(SocketAddr::new(source, 0)) {
                tracing::trace!(%error, %source, "A probe takes the usual source address.");
            }
        }
        socket.connect(address).await
    }
}

/// Enough for a name with both families and some spare ones.
const ADDRESSES: usize = 8;
