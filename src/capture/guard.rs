//! Filter rules beside the redirect rules: inbound connections that the proxy cannot take are
//! refused instead of reaching the application without policy, and other users of this machine
//! can neither use the proxy's admin port nor answer in the proxy's place.

use super::rule::{Action, Chain, Family, Match};
use super::rules::List;
use super::{Interception, Ipv6, MARK, Ports};

impl List<'_> {
    /// Refuses inbound connections that policy covers and that are not redirected: IPv6 where the
    /// proxy has no IPv6 listener; with TPROXY also those for which no transparent socket was found
    /// (nft(8): the packet then goes on to the next rule).
    pub(super) fn refuse_inbound(&mut self) {
        let (config, chain) = (self.config, Chain::FilterInput);
        if config.delay_inbound {
            self.delay_inbound();
        }
        match (config.interception, config.ipv6) {
            (Interception::Redirect, Ipv6::Reject) => {
                let matches = vec![Match::Family(Family::V4)];
                self.add(chain, matches, Action::Return, "IPv4 is redirected");
            }
            (Interception::Redirect, _) => return,
            (Interception::Tproxy, _) => {}
        }
        let within = vec![Match::In("lo".to_owned())];
        self.add(chain, within, Action::Return, "within the machine");
        // Not `ct state new`: a connection that began before the rules may be new to the kernel.
        self.add(chain, vec![Match::Tcp, Match::Ack], Action::Return, "of a connection");
        self.skip_interfaces(chain);
        self.exclude_inbound(chain);
        if config.interception == Interception::Tproxy {
            let matches = vec![Match::Tcp, Match::Mark(MARK)];
            self.add(chain, matches, Action::Return, "taken by the proxy");
        }
        let ports = match &config.inbound.ports {
            Ports::All => vec![Match::Tcp],
            Ports::Only(ports) => ports.iter().map(|port| Match::TcpTo(*port)).collect(),
        };
        for port in ports {
            let why = "inbound, without a proxy";
            self.add(chain, vec![port, Match::Syn], Action::Reject, why);
        }
    }

    /// Lets new connections of other machines to the proxy wait. They are not refused: not every client
    /// tries again elsewhere.
    fn delay_inbound(&mut self) {
        let (config, chain) = (self.config, Chain::FilterInput);
        let within = vec![Match::In("lo".to_owned())];
        self.add(chain, within, Action::Return, "within the machine");
        self.add(chain, vec![Match::Tcp, Match::Ack], Action::Return, "of a connection");
        let first = match config.interception {
            Interception::Redirect => vec![Match::TcpTo(config.proxy_ports.inbound), Match::Syn],
            Interception::Tproxy => vec![Match::Tcp, Match::Syn, Match::Mark(MARK)],
        };
        self.add(chain, first, Action::Drop, "the proxy waits for its services");
    }

    /// Keeps other local users from the proxy's admin port, and from answering at the ports that
    /// connections are redirected to: an answer to a new connection (its flags have SYN) that is sent
    /// by a socket of another user is dropped, so that the client never sends any data.
    pub(super) fn protect_proxy_ports(&mut self) {
        let (config, chain) = (self.config, Chain::FilterOutput);
        let (ports, proxy) = (config.proxy_ports, Match::NotUid(config.owner.uid));
        let lo = Match::Out("lo".to_owned());
        let matches = vec![lo, Match::TcpTo(ports.admin), Match::NotUid(ROOT), proxy.clone()];
        self.add(chain, matches, Action::Reject, "admin port of the proxy");
        for port in [ports.outbound, ports.inbound] {
            let matches = vec![Match::TcpFrom(port), Match::Syn, proxy.clone()];
            self.add(chain, matches, Action::Drop, "only the proxy answers here");
        }
    }
}

/// Operators and the agent use the admin port.
const ROOT: u32 = 0;
