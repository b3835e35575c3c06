//! The rules that a configuration means, in Istio's order. Nothing here knows nft or iptables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::rule::{self, Action, Chain, Family, Match, Rule};
use super::{Cidr, Config, DnsCapture, Groups, Interception, Ipv6, LOOP_MARK, MARK, Ports, Ranges};

/// All rules, chain by chain.
#[must_use]
pub fn rules(config: &Config) -> Vec<Rule> {
    let mut list = List { config, rules: Vec::new() };
    if let Some(dns) = &config.dns {
        list.zones(dns);
    }
    list.invalid();
    if config.interception == Interception::Tproxy {
        list.transparent();
    }
    list.prerouting();
    list.output();
    list.refuse_inbound();
    list.protect_proxy_ports();
    list.leave_ipv6_alone();
    list.rules
}

/// The rules so far.
pub(super) struct List<'a> {
    pub(super) config: &'a Config,
    rules: Vec<Rule>,
}

impl List<'_> {
    pub(super) fn add(
        &mut self,
        chain: Chain,
        mut matches: Vec<Match>,
        action: Action,
        why: &'static str,
    ) {
        if matches!(action, Action::Redirect(_) | Action::Tproxy(..)) {
            only_new(&mut matches);
        }
        let is_ipv6 = matches.iter().any(|one| match one {
            Match::From(range) | Match::To(range) | Match::NotTo(range) => !range.is_ipv4(),
            _ => false,
        });
        let ports = self.config.proxy_ports;
        let leads_to_proxy = match action {
            Action::Redirect(port) | Action::Tproxy(port, _) => {
                port == ports.inbound || port == ports.outbound
            }
            _ => false,
        };
        let is_wanted = match self.config.ipv6 {
            Ipv6::Redirect => true,
            Ipv6::Reject => !is_ipv6 || !leads_to_proxy,
            Ipv6::Absent | Ipv6::Leave => !is_ipv6,
        };
        if is_wanted {
            self.rules.push(Rule { chain, matches, action, why });
        }
    }

    /// From here on a chain is about the proxy only, which takes no IPv6.
    fn not_for_proxy(&mut self, chain: Chain) {
        if self.config.ipv6 == Ipv6::Reject {
            let matches = vec![Match::Family(Family::V6)];
            self.add(chain, matches, Action::Return, "the proxy has no IPv6 listener");
        }
    }

    /// The agent asks the resolvers that applications ask, which we answer: two connections of one
    /// five-tuple, kept apart by zones.
    fn zones(&mut self, dns: &DnsCapture) {
        let gid = self.config.owner.gid;
        let out = Chain::RawOutput;
        let own = vec![Match::UdpTo(DNS), Match::Gid(gid)];
        self.add(out, own, Action::Zone(UPSTREAM), "queries of the agent");
        let answers = vec![Match::UdpFrom(dns.port), Match::Gid(gid)];
        self.add(out, answers, Action::Zone(CAPTURED), "answers of the agent");
        let others = Match::NotGid(gid);
        for server in servers(dns) {
            let to = server.map(rule::to);
            let matches = [Some(Match::UdpTo(DNS)), to, Some(others.clone())];
            let matches = matches.into_iter().flatten().collect();
            self.add(out, matches, Action::Zone(CAPTURED), "queries of applications");
            let from = server.map(|server| Match::From(Cidr::host(server)));
            let matches = [Some(Match::UdpFrom(DNS)), from].into_iter().flatten().collect();
            self.add(Chain::RawPrerouting, matches, Action::Zone(UPSTREAM), "answers of resolvers");
        }
    }

    fn invalid(&mut self) {
        if self.config.drop_invalid {
            let matches = vec![Match::Tcp, Match::Invalid];
            let why = "packets of no connection";
            self.add(Chain::ManglePrerouting, matches, Action::Drop, why);
        }
    }

    /// Inbound connections for transparent sockets, and what comes back from them.
    fn transparent(&mut self) {
        let (config, pre, out) = (self.config, Chain::ManglePrerouting, Chain::MangleOutput);
        let lo = || Match::In("lo".to_owned());
        self.not_for_proxy(pre);
        self.not_for_proxy(out);
        self.skip_interfaces(pre);
        let marked = vec![Match::Tcp, Match::Mark(MARK)];
        self.add(pre, marked, Action::SaveMark, "answered with the same mark");
        let marked = vec![Match::Tcp, Match::Mark(MARK)];
        self.add(pre, marked, Action::Return, "from the proxy to the application");
        for passthrough in PASSTHROUGH {
            let matches = vec![lo(), Match::From(Cidr::host(passthrough))];
            self.add(pre, matches, Action::Return, "from the proxy to the application");
        }
        let matches = vec![lo(), Match::NotMark(LOOP_MARK)];
        self.add(pre, matches, Action::Return, "within the machine");
        self.exclude_inbound(pre);
        let ports = match &config.inbound.ports {
            Ports::All => vec![Match::Tcp],
            Ports::Only(ports) => ports.iter().map(|port| Match::TcpTo(*port)).collect(),
        };
        for port in ports {
            let matches = vec![port.clone(), Match::Established];
            self.add(pre, matches, Action::AcceptMarked(MARK), "of a connection that is known");
            for loopback in self.loopbacks() {
                let matches = vec![Match::NotTo(loopback), Match::ToSelf, port.clone()];
                let action = Action::Tproxy(config.proxy_ports.inbound, MARK);
                self.add(pre, matches, action, "inbound");
            }
        }
        let leaving = Match::Out("lo".to_owned());
        let matches = vec![leaving.clone(), Match::Tcp, Match::Mark(MARK)];
        self.add(out, matches, Action::Return, "from the proxy to the application");
        for loopback in self.loopbacks() {
            let own = Match::Uid(config.owner.uid);
            let matches = vec![leaving.clone(), Match::NotTo(loopback), Match::Tcp, own];
            self.add(out, matches, Action::Mark(LOOP_MARK), "of the proxy to its own machine");
        }
        let matches = vec![Match::Tcp, Match::ConnectionMark(MARK)];
        self.add(out, matches, Action::RestoreMark, "answers to the proxy");
    }

    fn prerouting(&mut self) {
        let (config, pre) = (self.config, Chain::NatPrerouting);
        if config.interception == Interception::Redirect || !config.interfaces.guests.is_empty() {
            self.not_for_proxy(pre);
        }
        self.guests();
        if config.interception == Interception::Tproxy {
            return;
        }
        self.skip_interfaces(pre);
        self.exclude_inbound(pre);
        let action = Action::Redirect(config.proxy_ports.inbound);
        match &config.inbound.ports {
            Ports::All => self.add(pre, vec![Match::ToSelf, Match::Tcp], action, "inbound"),
            Ports::Only(ports) => {
                for port in ports {
                    self.add(pre, vec![Match::ToSelf, Match::TcpTo(*port)], action, "inbound");
                }
            }
        }
    }

    /// What virtual machines on this host send counts as outbound.
    fn guests(&mut self) {
        let (config, pre) = (self.config, Chain::NatPrerouting);
        let action = Action::Redirect(config.proxy_ports.outbound);
        for guest in &config.interfaces.guests {
            let guest = Match::In(guest.clone());
            let ranges = match &config.outbound.ranges {
                Ranges::All => vec![None],
                Ranges::Only(ranges) => ranges.iter().copied().map(Some).collect(),
            };
            for range in ranges {
                let matches = [Some(guest.clone()), range.map(Match::To), Some(Match::Tcp)];
                self.add(pre, matches.into_iter().flatten().collect(), action, "of a guest");
            }
            self.add(pre, vec![guest], Action::Return, "of a guest");
        }
    }

    pub(super) fn skip_interfaces(&mut self, chain: Chain) {
        let interfaces = &self.config.interfaces;
        for name in &interfaces.excluded {
            self.add(chain, vec![Match::In(name.clone())], Action::Return, "excluded interface");
        }
        for name in &interfaces.bridges {
            self.add(chain, vec![Match::In(name.clone())], Action::Return, "of containers");
        }
    }

    pub(super) fn exclude_inbound(&mut self, chain: Chain) {
        let config = self.config;
        let tunnel = vec![Match::TcpTo(config.proxy_ports.tunnel)];
        self.add(chain, tunnel, Action::Return, "tunnels of the mesh");
        for port in &config.inbound.excluded {
            self.add(chain, vec![Match::TcpTo(*port)], Action::Return, "excluded port");
        }
    }

    fn output(&mut self) {
        let (config, out) = (self.config, Chain::NatOutput);
        for name in &config.interfaces.excluded {
            self.add(out, vec![Match::Out(name.clone())], Action::Return, "excluded interface");
        }
        for port in &config.outbound.excluded_ports {
            self.add(out, vec![Match::TcpTo(*port)], Action::Return, "excluded port");
            self.add(out, vec![Match::UdpTo(*port)], Action::Return, "excluded port");
        }
        self.own();
        match &config.outbound.groups {
            Groups::AllBut(groups) => {
                for gid in groups {
                    self.add(out, vec![Match::Gid(*gid)], Action::Return, "excluded group");
                }
            }
            Groups::Only(groups) => {
                let others = groups.iter().map(|gid| Match::NotGid(*gid)).collect();
                self.add(out, others, Action::Return, "other groups");
            }
        }
        self.dns();
        self.not_for_proxy(out);
        // The proxy would connect to such an address without the interface that belongs to it
        // (RFC 4007): no such connection would succeed.
        let link_local = vec![Match::To(Cidr::LINK_LOCAL_IPV6)];
        self.add(out, link_local, Action::Return, "link-local");
        for loopback in self.loopbacks() {
            self.add(out, vec![Match::To(loopback)], Action::Return, "loopback");
        }
        for range in &config.outbound.excluded_ranges {
            self.add(out, vec![Match::To(*range)], Action::Return, "excluded range");
        }
        self.outbound();
    }

    /// What is the proxy's and the agent's own, and what stays within the machine.
    fn own(&mut self) {
        let (config, out) = (self.config, Chain::NatOutput);
        let owner = config.owner;
        let lo = || Match::Out("lo".to_owned());
        for passthrough in PASSTHROUGH {
            let matches = vec![lo(), Match::From(Cidr::host(passthrough))];
            self.add(out, matches, Action::Return, "from the proxy to the application");
        }
        // In the mode TPROXY a mark sends these calls the way of all inbound connections.
        if config.interception == Interception::Redirect {
            self.own_calls();
        }
        let asks_for_loopback = match &config.outbound.ranges {
            Ranges::All => false,
            Ranges::Only(ranges) => ranges.iter().any(Cidr::is_loopback),
        };
        if !asks_for_loopback {
            let dns = config.dns.is_some().then(|| Match::TcpNotTo(vec![DNS]));
            let matches = [Some(lo()), dns, Some(Match::NotUid(owner.uid))];
            let matches = matches.into_iter().flatten().collect();
            self.add(out, matches, Action::Return, "within the machine");
        }
        self.add(out, vec![Match::Uid(owner.uid)], Action::Return, "of the proxy");
        self.add(out, vec![Match::Gid(owner.gid)], Action::Return, "of the agent");
    }

    /// The proxy calls a service that is on its own machine, as any other service.
    fn own_calls(&mut self) {
        let config = self.config;
        let mut direct = vec![config.proxy_ports.tunnel];
        direct.extend(config.dns.is_some().then_some(DNS));
        direct.sort_unstable();
        for loopback in self.loopbacks() {
            let lo = Match::Out("lo".to_owned());
            let calls = Match::TcpNotTo(direct.clone());
            let matches = vec![lo, Match::NotTo(loopback), calls, Match::Uid(config.owner.uid)];
            let action = Action::Redirect(config.proxy_ports.inbound);
            self.add(Chain::NatOutput, matches, action, "of the proxy to its own machine");
        }
    }

    fn dns(&mut self) {
        let Some(dns) = &self.config.dns else { return };
        for server in servers(dns) {
            for port in [Match::TcpTo(DNS), Match::UdpTo(DNS)] {
                let matches = [server.map(rule::to), Some(port)].into_iter().flatten().collect();
                self.add(Chain::NatOutput, matches, Action::Redirect(dns.port), "DNS");
            }
        }
    }

    fn outbound(&mut self) {
        let (config, out) = (self.config, Chain::NatOutput);
        let action = Action::Redirect(config.proxy_ports.outbound);
        for port in &config.outbound.included_ports {
            self.add(out, vec![Match::TcpTo(*port)], action, "included port");
        }
        match &config.outbound.ranges {
            Ranges::All => self.add(out, vec![Match::Tcp], action, "outbound"),
            Ranges::Only(ranges) => {
                for range in ranges {
                    self.add(out, vec![Match::To(*range), Match::Tcp], action, "outbound");
                }
            }
        }
    }

    fn loopbacks(&self) -> [Cidr; 2] {
        [self.config.loopback, Cidr::host(IpAddr::V6(Ipv6Addr::LOCALHOST))]
    }

    /// Without rules for IPv6, those that name no address must not meet its packets.
    fn leave_ipv6_alone(&mut self) {
        let why = match self.config.ipv6 {
            Ipv6::Absent => "no IPv6 here",
            Ipv6::Leave => "IPv6 is left alone",
            Ipv6::Redirect | Ipv6::Reject => return,
        };
        for chain in Chain::ALL {
            let first = self.rules.iter().position(|rule| rule.chain == chain);
            if let Some(first) = first {
                let matches = vec![Match::Family(Family::V6)];
                self.rules.insert(first, Rule { chain, matches, action: Action::Return, why });
            }
        }
    }
}

/// Connections that are older than the rules go on as they began. The kernel tracks connections only
/// once there are rules that need it, and takes the first packet that it sees for a new one.
fn only_new(matches: &mut Vec<Match>) {
    let is_tcp = |one: &Match| matches!(one, Match::Tcp | Match::TcpTo(_) | Match::TcpNotTo(_));
    if let Some(tcp) = matches.iter().position(is_tcp) {
        matches.insert(tcp + 1, Match::Syn);
    }
}

fn servers(dns: &DnsCapture) -> Vec<Option<IpAddr>> {
    match &dns.servers {
        None => vec![None],
        Some(servers) => servers.iter().copied().map(Some).collect(),
    }
}

/// Where the proxy's connections to the application come from (Istio `InboundPassthrough`).
pub(super) const PASSTHROUGH: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6)), IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6))];
const DNS: u16 = 53;
/// Zones of connection tracking; Istio's numbers.
const UPSTREAM: u16 = 1;
const CAPTURED: u16 = 2;
