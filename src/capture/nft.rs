//! Rules as nft writes them: what is fed to `nft -f` is, letter for letter, what `nft list table`
//! shows afterwards.

use std::fmt::Write;

use super::rule::{Action, Chain, Family, Match, Rule};

/// The table that we own.
pub(super) const TABLE: &str = "inet vm_agent";

/// The table as `nft list table inet vm_agent` shows it.
pub(super) fn table(rules: &[Rule]) -> String {
    let mut text = format!("table {TABLE} {{\n");
    let mut first = true;
    for chain in Chain::ALL {
        let mut inside = rules.iter().filter(|rule| rule.chain == chain).peekable();
        if inside.peek().is_none() {
            continue;
        }
        if !std::mem::take(&mut first) {
            text.push('\n');
        }
        let (name, hook) = hook(chain);
        writeln!(text, "\tchain {name} {{\n\t\ttype {hook}; policy accept;").ok();
        for rule in inside {
            writeln!(text, "\t\t{}", line(rule)).ok();
        }
        text.push_str("\t}\n");
    }
    text.push_str("}\n");
    text
}

/// One transaction that replaces whatever table of ours is there.
pub(super) fn transaction(rules: &[Rule]) -> String {
    format!("table {TABLE}\ndelete table {TABLE}\n{}", table(rules))
}

/// The nat chains come after those of container engines, whose published ports are theirs.
fn hook(chain: Chain) -> (&'static str, &'static str) {
    match chain {
        Chain::RawPrerouting => ("raw_prerouting", "filter hook prerouting priority raw"),
        Chain::RawOutput => ("raw_output", "filter hook output priority raw"),
        Chain::ManglePrerouting => ("mangle_prerouting", "filter hook prerouting priority mangle"),
        Chain::MangleOutput => ("mangle_output", "route hook output priority mangle"),
        Chain::NatPrerouting => ("nat_prerouting", "nat hook prerouting priority dstnat + 5"),
        Chain::NatOutput => ("nat_output", "nat hook output priority -95"),
        Chain::FilterInput => ("filter_input", "filter hook input priority filter"),
        Chain::FilterOutput => ("filter_output", "filter hook output priority filter"),
    }
}

fn line(rule: &Rule) -> String {
    // nft does not repeat what another match implies.
    let implied = |one: &&Match| {
        **one == Match::Tcp && rule.matches.iter().any(|o| matches!(o, Match::Syn | Match::Ack))
    };
    let matches = rule.matches.iter().filter(|one| !implied(one));
    let mut words: Vec<String> = matches.map(matched).collect();
    words.push(action(rule));
    words.push(format!("comment \"{}\"", rule.why));
    words.join(" ")
}

fn matched(one: &Match) -> String {
    match one {
        Match::Family(Family::V4) => "meta nfproto ipv4".to_owned(),
        Match::Family(Family::V6) => "meta nfproto ipv6".to_owned(),
        Match::In(name) => format!("iifname \"{name}\""),
        Match::Out(name) => format!("oifname \"{name}\""),
        Match::From(range) => format!("{} saddr {range}", ip(range.is_ipv4())),
        Match::To(range) => format!("{} daddr {range}", ip(range.is_ipv4())),
        Match::NotTo(range) => format!("{} daddr != {range}", ip(range.is_ipv4())),
        Match::ToSelf => "fib daddr type local".to_owned(),
        Match::Tcp => "meta l4proto tcp".to_owned(),
        // An answer to one, which has this flag, too, is no beginning to the kernel.
        Match::Syn => "tcp flags syn".to_owned(),
        Match::Ack => "tcp flags ack".to_owned(),
        Match::TcpTo(port) => format!("tcp dport {port}"),
        Match::TcpFrom(port) => format!("tcp sport {port}"),
        Match::TcpNotTo(ports) => match ports.as_slice() {
            [port] => format!("tcp dport != {port}"),
            ports => {
                let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
                format!("tcp dport != {{ {} }}", ports.join(", "))
            }
        },
        Match::UdpTo(port) => format!("udp dport {port}"),
        Match::UdpFrom(port) => format!("udp sport {port}"),
        Match::Uid(uid) => format!("meta skuid {uid}"),
        Match::NotUid(uid) => format!("meta skuid != {uid}"),
        Match::Gid(gid) => format!("meta skgid {gid}"),
        Match::NotGid(gid) => format!("meta skgid != {gid}"),
        Match::Mark(mark) => format!("meta mark {mark:#010x}"),
        Match::NotMark(mark) => format!("meta mark != {mark:#010x}"),
        Match::ConnectionMark(mark) => format!("ct mark {mark:#010x}"),
        Match::Established => "ct state established,related".to_owned(),
        Match::Invalid => "ct state invalid".to_owned(),
    }
}

fn action(rule: &Rule) -> String {
    match rule.action {
        Action::Return => "return".to_owned(),
        Action::AcceptMarked(mark) => format!("meta mark set {mark:#010x} accept"),
        Action::Drop => "drop".to_owned(),
        Action::Reject => "reject with tcp reset".to_owned(),
        Action::Redirect(port) => format!("redirect to :{port}"),
        Action::Tproxy(port, mark) => {
            let family = ip(rule.family() != Some(Family::V6));
            format!("tproxy {family} to :{port} meta mark set {mark:#010x} accept")
        }
        Action::Mark(mark) => format!("meta mark set {mark:#010x}"),
        Action::SaveMark => "ct mark set meta mark".to_owned(),
        Action::RestoreMark => "meta mark set ct mark".to_owned(),
        Action::Zone(zone) => format!("ct zone set {zone}"),
    }
}

fn ip(is_ipv4: bool) -> &'static str {
    if is_ipv4 { "ip" } else { "ip6" }
}
