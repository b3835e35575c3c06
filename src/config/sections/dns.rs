//! `dns`: names of the mesh for applications.

use std::net::{IpAddr, SocketAddr};

use crate::base::cidr::Cidr;
use crate::config::reader::Reader;

/// The DNS proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Whether queries of applications are answered. They arrive by way of the redirect rules.
    pub enabled: bool,
    /// The port on loopback that redirected queries arrive at.
    pub port: u16,
    /// A further address, for hosts that name the agent as a resolver.
    pub listen: Option<SocketAddr>,
    /// The addresses that are answered beside this machine's own.
    pub allow_from: Vec<Cidr>,
    /// Whether all queries are captured, and not only those to the host's resolvers.
    pub all_queries: bool,
    /// Resolvers for everything else, instead of the host's.
    pub upstreams: Vec<SocketAddr>,
    /// The domain of the workload's cluster, for short names; by default
    /// `NAMESPACE.svc.cluster.local`.
    pub domain: Option<String>,
}

impl Dns {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let enabled = reader.flag("dns.enabled", true);
        let port = reader.number("dns.port", Some(15_053), 1..=65_535)?;
        let listen: Option<SocketAddr> = reader.parse("dns.listen", "");
        let allow_from = allow_from(reader);
        let all_queries = reader.flag("dns.allQueries", false);
        let port = u16::try_from(port).ok()?;
        let upstreams = upstreams(reader, listen, port);
        let domain = reader.text("dns.domain", "");
        Some(Self { enabled, port, listen, allow_from, all_queries, upstreams, domain })
    }
}

fn allow_from(reader: &mut Reader<'_>) -> Vec<Cidr> {
    let setting = "dns.allowFrom";
    let mut all = Vec::new();
    for text in reader.list(setting, "") {
        match text.parse() {
            Ok(range) => all.push(range),
            Err(what) => reader.wrong(setting, what),
        }
    }
    all
}

fn upstreams(reader: &mut Reader<'_>, listen: Option<SocketAddr>, port: u16) -> Vec<SocketAddr> {
    let setting = "dns.upstreams";
    let mut all = Vec::new();
    for text in reader.list(setting, "") {
        let address = text.parse::<SocketAddr>();
        let address = address.or_else(|_| text.parse::<IpAddr>().map(|ip| (ip, DNS).into()));
        match address {
            Ok(address) if is_ourselves(address, listen, port) => {
                let what = format!("{address} is where the agent itself answers");
                reader.wrong(setting, what);
            }
            Ok(address) => all.push(address),
            Err(_) => {
                let what = format!("found {text:?}, expected IP addresses, with or without a port");
                reader.wrong(setting, what);
            }
        }
    }
    all
}

fn is_ourselves(address: SocketAddr, listen: Option<SocketAddr>, port: u16) -> bool {
    Some(address) == listen || (address.ip().is_loopback() && address.port() == port)
}

const DNS: u16 = 53;
