//! The host's redirect rules: decided as data, shown as text, applied, probed and undone by a
//! journal. It changes nothing of the host outside what it owns, and never touches a packet itself.
//!
//! The meaning of the rules is that of Istio's (`tools/istio-iptables/pkg/capture/run.go`,
//! `tools/istio-nftables/pkg`), with these differences: inbound rules look only at packets for the
//! machine itself and never at those of container bridges; the agent's own connections are told by
//! its group, so that applications of root are captured; DNS that the agent sends over TCP to a
//! local resolver is not taken for a call of the proxy to itself.

mod apply;
mod diagnose;
mod firewall;
#[cfg(any(test, fuzzing))]
pub mod fuzzed;
mod guard;
mod hold;
mod host;
mod interface;
mod iptables;
mod ipv6;
mod journal;
mod keeper;
mod listeners;
mod nft;
mod plan;
mod ports;
mod probe;
mod rule;
mod rules;
mod sockets;
mod tool;
mod undo;

use std::collections::BTreeSet;
use std::net::IpAddr;

pub use apply::{Applied, ApplyError, Capture, Found, OnFailure, Removed, Restored};
pub use firewall::{Blocking, blocking};
pub use host::{HostFacts, has_ipv6, host_facts, nameservers, nft_is_installed};
pub use interface::parse_interface;
pub use ipv6::{Ipv6, Ipv6Policy};
pub use keeper::{CapturePhase, CaptureState, FailPolicy, Keeper};
pub use listeners::Listeners;
pub use plan::{Plan, Step};
pub use ports::{Ports, parse_ports};
pub use probe::ProbeError;
pub use rule::{Action, Chain, Family, Match, Rule};
pub use rules::rules;
pub use sockets::SocketOrder;
pub use tool::ToolError;

use serde::{Deserialize, Serialize};

pub use crate::base::cidr::Cidr;

/// What is to be redirected, with every fact about the host already in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// What makes the rules.
    pub backend: Backend,
    /// How inbound connections reach the proxy.
    pub interception: Interception,
    /// Whose connections are the proxy's and the agent's.
    pub owner: Owner,
    /// Where the proxy listens.
    pub proxy_ports: ProxyPorts,
    /// Connections to this machine.
    pub inbound: Inbound,
    /// Connections from this machine.
    pub outbound: Outbound,
    /// Interfaces with a meaning of their own.
    pub interfaces: Interfaces,
    /// Whether and which DNS queries go to the agent.
    pub dns: Option<DnsCapture>,
    /// The IPv4 loopback range that is left alone.
    pub loopback: Cidr,
    /// What becomes of IPv6.
    pub ipv6: Ipv6,
    /// Whether packets that belong to no connection are dropped.
    pub drop_invalid: bool,
    /// Whether new inbound connections wait: their first packet is dropped, and the client's kernel
    /// sends it again after a second (RFC 6298 section 2.1).
    #[serde(default)]
    pub delay_inbound: bool,
}

/// What makes the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// One table of our own, by `nft`.
    Nftables,
    /// Chains of our own in the tables of iptables.
    Iptables(Flavour),
}

/// Which of the two iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flavour {
    /// The one that has rules already, else the newer one that is there.
    Auto,
    /// `iptables-legacy`.
    Legacy,
    /// `iptables-nft`.
    Nft,
}

/// How inbound connections reach the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interception {
    /// By a new destination; the application sees connections of the proxy.
    Redirect,
    /// By transparent sockets, so that the application may see the client's address.
    Tproxy,
}

/// Whose connections are exempt: the proxy's by its user, the agent's by its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The proxy's user.
    pub uid: u32,
    /// The proxy's group, which the agent has too.
    pub gid: u32,
}

/// Where the proxy listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyPorts {
    /// For what leaves the machine (15001).
    pub outbound: u16,
    /// For what arrives (15006).
    pub inbound: u16,
    /// For tunnels of the mesh (15008).
    pub tunnel: u16,
    /// For orders to the proxy itself, on loopback (15000).
    pub admin: u16,
    /// For health checks of others (15021).
    pub health: u16,
    /// For its metrics (15090).
    pub metrics: u16,
}

impl ProxyPorts {
    /// Istio's ports, and this one for orders to the proxy.
    #[must_use]
    pub const fn with_admin(admin: u16) -> Self {
        Self {
            outbound: 15_001,
            inbound: 15_006,
            tunnel: 15_008,
            admin,
            health: 15_021,
            metrics: 15_090,
        }
    }

    /// All of them, those that connections are redirected to first.
    #[must_use]
    pub fn all(&self) -> [u16; 6] {
        [self.outbound, self.inbound, self.admin, self.tunnel, self.health, self.metrics]
    }
}

/// Connections to this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inbound {
    /// Those that go through the proxy.
    pub ports: Ports,
    /// Those that never do.
    pub excluded: BTreeSet<u16>,
}

/// Connections from this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbound {
    /// Where to, of those that go through the proxy.
    pub ranges: Ranges,
    /// Where to, of those that never do.
    pub excluded_ranges: Vec<Cidr>,
    /// Ports that go through the proxy wherever they lead.
    pub included_ports: BTreeSet<u16>,
    /// Ports that never do, TCP and UDP.
    pub excluded_ports: BTreeSet<u16>,
    /// Whose they are.
    pub groups: Groups,
}

/// Destinations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ranges {
    /// Everywhere.
    All,
    /// These; none at all when empty.
    Only(Vec<Cidr>),
}

/// Whose outbound connections are looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Groups {
    /// Everybody's but these groups'.
    AllBut(Vec<u32>),
    /// These groups' only.
    Only(Vec<u32>),
}

/// Interfaces with a meaning of their own. A name may end with `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interfaces {
    /// Nothing on them is captured.
    pub excluded: Vec<String>,
    /// Bridges of containers: what they send is not inbound.
    pub bridges: Vec<String>,
    /// Interfaces of virtual machines whose connections count as outbound.
    pub guests: Vec<String>,
}

impl Interfaces {
    /// Never takes the interface that the machine itself is reached by for a bridge of containers,
    /// whatever it is called.
    #[must_use]
    pub fn with_uplink(mut self, uplink: Option<&str>) -> Self {
        if let Some(uplink) = uplink {
            self.bridges.retain(|pattern| !interface::is_meant(pattern, uplink));
        }
        self
    }
}

/// Which DNS queries go to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsCapture {
    /// Where the agent answers, on loopback.
    pub port: u16,
    /// Only those to these resolvers; all when `None`.
    pub servers: Option<Vec<IpAddr>>,
}

/// The rules as text: for nft, and for iptables of both families on a host without any rules.
#[must_use]
pub fn rendered(config: &Config) -> (String, [String; 2]) {
    let rules = rules(config);
    let iptables = [Family::V4, Family::V6].map(|one| iptables::replacement(&rules, one, ""));
    (nft::table(&rules), iptables)
}

/// Marks of packets in the mode TPROXY; Istio's numbers.
pub(crate) const MARK: u32 = 1337;
/// The mark of calls of the proxy to its own machine.
pub(crate) const LOOP_MARK: u32 = 1338;
/// The routing table of marked packets.
pub(crate) const ROUTE_TABLE: u32 = 133;

#[cfg(test)]
mod tests;
