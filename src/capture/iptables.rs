//! Rules as iptables-restore reads them: chains of our own, entered from the built-in ones. What
//! is removed is read off the host, so that any configuration's rules are found.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::rule::{Action, Chain, Family, Match, Rule};

/// Every chain of ours begins so.
const PREFIX: &str = "VM_AGENT_";

/// The text that replaces our rules of one family. `saved` is what iptables-save shows now.
pub(super) fn replacement(rules: &[Rule], family: Family, saved: &str) -> String {
    let mut tables = removals(saved);
    for chain in Chain::ALL {
        let inside: Vec<String> = rules
            .iter()
            .filter(|rule| rule.chain == chain)
            .filter(|rule| rule.family().is_none_or(|only| only == family))
            .flat_map(lines)
            .collect();
        if inside.is_empty() {
            continue;
        }
        let (table, built_in, own) = names(chain);
        let lines = tables.entry(table.to_owned()).or_default();
        lines.declared.push(format!(":{own} - [0:0]"));
        // A filter decides at the first rule that accepts or drops: ours has to come before others'.
        let enter = match table {
            "filter" => format!("-I {built_in} 1 -j {own}"),
            _ => format!("-A {built_in} -j {own}"),
        };
        lines.added.push(enter);
        lines.added.extend(inside.into_iter().map(|line| format!("-A {own} {line}")));
    }
    written(&tables)
}

/// The text that removes all rules of ours; empty when there are none.
pub(super) fn removal(saved: &str) -> String {
    written(&removals(saved))
}

/// The lines of iptables-save that are ours, which is how a change by somebody else is seen.
pub(super) fn own_lines(saved: &str) -> Vec<&str> {
    saved.lines().filter(|line| line.starts_with('*') || line.contains(PREFIX)).collect()
}

/// Tables and chains as `nft list chains` shows them: `nat`, `nat OUTPUT`. The newer iptables makes
/// them when the first rule needs one.
pub(super) fn chains(listed: &str) -> Vec<String> {
    let mut table = "";
    let mut found = Vec::new();
    for line in listed.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["table", _, name, "{"] => {
                table = name;
                found.push(name.to_owned());
            }
            ["chain", name, "{"] => found.push(format!("{table} {name}")),
            _ => {}
        }
    }
    found
}

/// Whether a chain, given as `nat OUTPUT`, is one of the kernel's and does nothing. `saved` is what
/// iptables-save shows.
pub(super) fn is_bare(saved: &str, chain: &str) -> bool {
    let (table, chain) = chain.split_once(' ').unwrap_or_default();
    if !["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"].contains(&chain) {
        return false;
    }
    let heading = format!("*{table}");
    let lines = saved.lines().skip_while(|line| *line != heading).skip(1);
    let mut lines = lines.take_while(|line| *line != "COMMIT");
    let rule = format!("-A {chain} ");
    let dropping = format!(":{chain} DROP");
    lines.all(|line| !line.starts_with(&rule) && !line.starts_with(&dropping))
}

#[derive(Default)]
struct Lines {
    removed: Vec<String>,
    declared: Vec<String>,
    added: Vec<String>,
}

fn removals(saved: &str) -> BTreeMap<String, Lines> {
    let mut tables: BTreeMap<String, Lines> = BTreeMap::new();
    let mut table = "";
    let mut chains = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':').filter(|rest| rest.starts_with(PREFIX)) {
            chains.push((table, chain.split(' ').next().unwrap_or_default()));
        } else if let Some(rule) = line.strip_prefix("-A ")
            && rule.contains(PREFIX)
            && !rule.starts_with(PREFIX)
        {
            tables.entry(table.to_owned()).or_default().removed.push(format!("-D {rule}"));
        }
    }
    for command in ["-F", "-X"] {
        for (table, chain) in &chains {
            let lines = tables.entry((*table).to_owned()).or_default();
            lines.removed.push(format!("{command} {chain}"));
        }
    }
    tables
}

fn written(tables: &BTreeMap<String, Lines>) -> String {
    let mut text = String::new();
    for (table, lines) in tables {
        writeln!(text, "*{table}").ok();
        for line in lines.removed.iter().chain(&lines.declared).chain(&lines.added) {
            writeln!(text, "{line}").ok();
        }
        text.push_str("COMMIT\n");
    }
    text
}

fn names(chain: Chain) -> (&'static str, &'static str, &'static str) {
    match chain {
        Chain::RawPrerouting => ("raw", "PREROUTING", "VM_AGENT_RAW_IN"),
        Chain::RawOutput => ("raw", "OUTPUT", "VM_AGENT_RAW_OUT"),
        Chain::ManglePrerouting => ("mangle", "PREROUTING", "VM_AGENT_MANGLE_IN"),
        Chain::MangleOutput => ("mangle", "OUTPUT", "VM_AGENT_MANGLE_OUT"),
        Chain::NatPrerouting => ("nat", "PREROUTING", "VM_AGENT_NAT_IN"),
        Chain::NatOutput => ("nat", "OUTPUT", "VM_AGENT_NAT_OUT"),
        Chain::FilterInput => ("filter", "INPUT", "VM_AGENT_FILTER_IN"),
        Chain::FilterOutput => ("filter", "OUTPUT", "VM_AGENT_FILTER_OUT"),
    }
}

/// A rule of ours can be two of theirs.
fn lines(rule: &Rule) -> Vec<String> {
    let matches: Vec<String> = rule.matches.iter().map(matched).collect();
    let before = matches.join(" ");
    let with = |action: String| {
        if before.is_empty() { action } else { format!("{before} {action}") }
    };
    match rule.action {
        Action::AcceptMarked(mark) => {
            vec![with(format!("-j MARK --set-mark {mark}")), with("-j ACCEPT".to_owned())]
        }
        action => vec![with(target(action))],
    }
}

fn matched(one: &Match) -> String {
    match one {
        Match::Family(_) => String::new(),
        Match::In(name) => format!("-i {}", interface(name)),
        Match::Out(name) => format!("-o {}", interface(name)),
        Match::From(range) => format!("-s {range}"),
        Match::To(range) => format!("-d {range}"),
        Match::NotTo(range) => format!("! -d {range}"),
        Match::ToSelf => "-m addrtype --dst-type LOCAL".to_owned(),
        Match::Tcp => "-p tcp".to_owned(),
        Match::Syn => "-m tcp --tcp-flags SYN SYN".to_owned(),
        Match::Ack => "-m tcp --tcp-flags ACK ACK".to_owned(),
        Match::TcpTo(port) => format!("-p tcp -m tcp --dport {port}"),
        Match::TcpFrom(port) => format!("-p tcp -m tcp --sport {port}"),
        Match::TcpNotTo(ports) => {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            format!("-p tcp -m multiport ! --dports {}", ports.join(","))
        }
        Match::UdpTo(port) => format!("-p udp -m udp --dport {port}"),
        Match::UdpFrom(port) => format!("-p udp -m udp --sport {port}"),
        Match::Uid(uid) => format!("-m owner --uid-owner {uid}"),
        Match::NotUid(uid) => format!("-m owner ! --uid-owner {uid}"),
        Match::Gid(gid) => format!("-m owner --gid-owner {gid}"),
        Match::NotGid(gid) => format!("-m owner ! --gid-owner {gid}"),
        Match::Mark(mark) => format!("-m mark --mark {mark}"),
        Match::NotMark(mark) => format!("-m mark ! --mark {mark}"),
        Match::ConnectionMark(mark) => format!("-m connmark --mark {mark}"),
        Match::Established => "-m conntrack --ctstate RELATED,ESTABLISHED".to_owned(),
        Match::Invalid => "-m conntrack --ctstate INVALID".to_owned(),
    }
}

/// iptables writes `+` where we write `*`.
fn interface(name: &str) -> String {
    match name.strip_suffix('*') {
        Some(start) => format!("{start}+"),
        None => name.to_owned(),
    }
}

fn target(action: Action) -> String {
    match action {
        Action::Return => "-j RETURN".to_owned(),
        Action::AcceptMarked(_) => "-j ACCEPT".to_owned(),
        Action::Drop => "-j DROP".to_owned(),
        Action::Reject => "-j REJECT --reject-with tcp-reset".to_owned(),
        Action::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
        Action::Tproxy(port, mark) => {
            format!("-j TPROXY --on-port {port} --tproxy-mark {mark}")
        }
        Action::Mark(mark) => format!("-j MARK --set-mark {mark}"),
        Action::SaveMark => "-j CONNMARK --save-mark".to_owned(),
        Action::RestoreMark => "-j CONNMARK --restore-mark".to_owned(),
        Action::Zone(zone) => format!("-j CT --zone {zone}"),
    }
}
