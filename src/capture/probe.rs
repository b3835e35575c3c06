//! Tries the rules with live connections: one that must not arrive where it was sent.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::host::link_local;
use super::rules::PASSTHROUGH;
use super::sockets::Sockets;
use super::{Config, Groups, Interception, Ipv6, Owner, Ports, Ranges};

/// The rules are in place and connections do not follow them.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The probe itself could not be made.
    #[error("cannot try the rules at {at}")]
    Socket {
        /// The address.
        at: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A connection of the proxy's user to its own machine arrived where it was sent.
    #[error("a connection to {at} arrived there instead of at port {port}")]
    NotRedirected {
        /// Where it was sent.
        at: SocketAddr,
        /// Where it should have gone.
        port: u16,
    },
    /// A connection to another machine was not answered by this one.
    #[error("a connection to {at} left this machine instead of going to port {port}")]
    Left {
        /// Where it was sent.
        at: SocketAddr,
        /// Where it should have gone.
        port: u16,
    },
}

impl ProbeError {
    pub(super) fn hint(&self) -> String {
        let what = "other rules may come first: look at `nft list ruleset` and `iptables-save`";
        what.to_owned()
    }
}

/// Tries inbound and outbound rules, and says what was seen.
pub(super) async fn probe(config: &Config, sockets: &Sockets) -> Result<String, ProbeError> {
    let [four, six] = PASSTHROUGH;
    let at = |ip: IpAddr| SocketAddr::new(ip, 0);
    let mut tried = redirected(config, sockets, [at(four), at(Ipv4Addr::LOCALHOST.into())]).await?;
    if config.ipv6 == Ipv6::Redirect {
        let own = [at(six), at(Ipv6Addr::LOCALHOST.into())];
        tried &= redirected(config, sockets, own).await?;
        if let Some(own) = link_local() {
            tried &= redirected(config, sockets, [own.into(), own.into()]).await?;
        }
    }
    let words = match (tried, outbound(config, sockets).await?) {
        (true, true) => "connections are redirected in both directions",
        (true, false) => "inbound connections are redirected; outbound ones could not be tried",
        (false, true) => "outbound connections are redirected; inbound ones could not be tried",
        (false, false) => "the rules are there; no connection could be made to try them",
    };
    Ok(words.to_owned())
}

/// Ports that a connection can be tried with. With transparent sockets only captured ones are
/// redirected, otherwise any.
fn ports(config: &Config) -> Vec<u16> {
    match &config.inbound.ports {
        Ports::Only(ports) if config.interception == Interception::Tproxy => {
            ports.iter().copied().filter(|port| !config.inbound.excluded.contains(port)).collect()
        }
        _ => vec![0],
    }
}

/// The proxy's user calls a listener of ours, which must not hear of it: the rule for calls of the
/// proxy to its own machine has sent them elsewhere.
/// `false` where no port could be tried.
async fn redirected(
    config: &Config,
    sockets: &Sockets,
    [to, from]: [SocketAddr; 2],
) -> Result<bool, ProbeError> {
    let failed = |at| move |source| ProbeError::Socket { at, source };
    // A transparent rule gives a connection to a listener, and without one lets it pass.
    let listens = TcpStream::connect(with_port(from, config.proxy_ports.inbound));
    if config.interception == Interception::Tproxy && listens.await.is_err() {
        return Ok(false);
    }
    let mut found = None;
    for port in ports(config) {
        let at = with_port(to, port);
        match TcpListener::bind(at).await {
            Ok(listener) => {
                found = Some(listener);
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            // An address that has just gone.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => return Ok(false),
            Err(source) => return Err(ProbeError::Socket { at, source }),
        }
    }
    let Some(listener) = found else { return Ok(false) };
    let at = listener.local_addr().map_err(failed(to))?;
    let socket = sockets.of(config.owner, to.ip()).await.map_err(failed(at))?;
    socket.bind(with_port(from, 0)).map_err(failed(at))?;
    // Accepted or refused by the proxy's port: either is fine. What arrived at our listener is in
    // its queue before the connection counts as made.
    drop(tokio::time::timeout(LIMIT, socket.connect(at)).await);
    let arrived = tokio::time::timeout(QUIET, listener.accept()).await;
    match arrived {
        Ok(_) => Err(ProbeError::NotRedirected { at, port: config.proxy_ports.inbound }),
        Err(_) => Ok(true),
    }
}

/// Somebody else calls an address that nobody has (RFC 5737): this machine itself must answer.
/// `false` where this host or its configuration gives no such call a way.
async fn outbound(config: &Config, sockets: &Sockets) -> Result<bool, ProbeError> {
    let outbound = &config.outbound;
    let gid = match &outbound.groups {
        Groups::AllBut(groups) if groups.contains(&0) => return Ok(false),
        Groups::AllBut(_) => 0,
        Groups::Only(groups) => match groups.first() {
            Some(gid) => *gid,
            None => return Ok(false),
        },
    };
    let is_limited = outbound.ranges != Ranges::All || !outbound.excluded_ranges.is_empty();
    if is_limited || outbound.excluded_ports.contains(&PORT) {
        return Ok(false);
    }
    let at = SocketAddr::new(NOBODY, PORT);
    let socket = sockets.of(Owner { uid: 0, gid }, NOBODY).await;
    let socket = socket.map_err(|source| ProbeError::Socket { at, source })?;
    match tokio::time::timeout(LIMIT, socket.connect(at)).await {
        Ok(Ok(_)) => Ok(true),
        // The proxy is not up yet.
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        // No route, so that the rules never saw it.
        Ok(Err(_)) => Ok(false),
        Err(_) => Err(ProbeError::Left { at, port: config.proxy_ports.outbound }),
    }
}

fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

/// An address of the documentation, which no machine has.
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const PORT: u16 = 80;
/// Within the machine an answer takes microseconds.
const LIMIT: Duration = Duration::from_secs(2);
/// Enough to look into the listener's queue once.
const QUIET: Duration = Duration::from_millis(10);
