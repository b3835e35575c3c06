//! One rule as data: what it looks at and what it does. It knows no tool.

use std::net::IpAddr;

use super::Cidr;

/// A rule at the end of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The chain.
    pub chain: Chain,
    /// All of which must hold.
    pub matches: Vec<Match>,
    /// What happens then.
    pub action: Action,
    /// What it is for, in a few words.
    pub why: &'static str,
}

/// Our chains. The first ones hang at a hook of the kernel, the others are jumped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chain {
    /// Arriving packets, before connections are tracked.
    RawPrerouting,
    /// Leaving packets, before connections are tracked.
    RawOutput,
    /// Arriving packets, where they can be marked.
    ManglePrerouting,
    /// Leaving packets, where they can be marked.
    MangleOutput,
    /// Arriving connections.
    NatPrerouting,
    /// Leaving connections.
    NatOutput,
    /// Packets for this machine, after their destination is decided.
    FilterInput,
    /// Packets from this machine, after their destination is decided.
    FilterOutput,
}

impl Chain {
    /// All of them, in the order in which packets meet them.
    pub const ALL: [Self; 8] = [
        Self::RawPrerouting,
        Self::RawOutput,
        Self::ManglePrerouting,
        Self::MangleOutput,
        Self::NatPrerouting,
        Self::NatOutput,
        Self::FilterInput,
        Self::FilterOutput,
    ];
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What a rule looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// Packets of this family.
    Family(Family),
    /// Arrived at this interface; `*` at the end stands for anything.
    In(String),
    /// Leaves by this interface.
    Out(String),
    /// From this range.
    From(Cidr),
    /// To this range.
    To(Cidr),
    /// To an address outside this range, of its family.
    NotTo(Cidr),
    /// To an address of this machine.
    ToSelf,
    /// Any TCP.
    Tcp,
    /// The first packet of a TCP connection.
    Syn,
    /// A TCP packet with the flag ACK: all but the first packet of a connection have it.
    Ack,
    /// TCP to this port.
    TcpTo(u16),
    /// TCP to none of these ports.
    TcpNotTo(Vec<u16>),
    /// TCP from this port.
    TcpFrom(u16),
    /// UDP to this port.
    UdpTo(u16),
    /// UDP from this port.
    UdpFrom(u16),
    /// The sender's user.
    Uid(u32),
    /// Any other user.
    NotUid(u32),
    /// The sender's group.
    Gid(u32),
    /// Any other group.
    NotGid(u32),
    /// The packet's mark.
    Mark(u32),
    /// Any other mark.
    NotMark(u32),
    /// The connection's mark.
    ConnectionMark(u32),
    /// Of or related to a known connection.
    Established,
    /// Of no connection.
    Invalid,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leaves our chain.
    Return,
    /// Lets it pass with this mark.
    AcceptMarked(u32),
    /// Throws it away.
    Drop,
    /// Throws it away and answers with a TCP reset.
    Reject,
    /// Sends it to a port of this machine.
    Redirect(u16),
    /// Gives it to the transparent socket at a port, with a mark.
    Tproxy(u16, u32),
    /// Sets the packet's mark.
    Mark(u32),
    /// Copies the packet's mark to the connection.
    SaveMark,
    /// Copies the connection's mark to the packet.
    RestoreMark,
    /// Tracks the connection in a zone of its own.
    Zone(u16),
}

impl Rule {
    /// The family that the rule is limited to by what it looks at.
    #[must_use]
    pub fn family(&self) -> Option<Family> {
        self.matches.iter().find_map(|one| match one {
            Match::Family(family) => Some(*family),
            Match::From(range) | Match::To(range) | Match::NotTo(range) => Some(family(*range)),
            _ => None,
        })
    }
}

/// The family of an address range.
pub(super) fn family(range: Cidr) -> Family {
    if range.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// A match of one address.
pub(super) fn to(address: IpAddr) -> Match {
    Match::To(Cidr::host(address))
}
