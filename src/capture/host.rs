//! What the rules have to know of the host: its IPv6, its SSH, its bridges.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use super::ports::parse_ports;
use super::tool;
use crate::base::fsio;

/// Facts about the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// Whether any interface but loopback has an IPv6 address that others may use.
    pub ipv6: bool,
    /// Where SSH servers listen; 22 is always among them.
    pub ssh_ports: BTreeSet<u16>,
    /// The interface that has the given address.
    pub own_interface: Option<String>,
}

/// Looks at the host. `addresses` are those of its interfaces but loopback and link-local ones,
/// each with its interface; `own` is the one that others connect to.
#[must_use]
pub fn host_facts(addresses: &[(String, IpAddr)], own: Option<IpAddr>, sshd: &Path) -> HostFacts {
    let own = addresses.iter().find(|(_, address)| Some(*address) == own);
    HostFacts {
        ipv6: addresses.iter().any(|(_, address)| address.is_ipv6()),
        ssh_ports: ssh_ports(sshd),
        own_interface: own.map(|(name, _)| name.clone()),
    }
}

/// The resolvers that a resolv.conf names.
#[must_use]
pub fn nameservers(file: &Path) -> Vec<IpAddr> {
    let text = fsio::read_text(file, BYTES).unwrap_or_default();
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver")
            && let Some(Ok(ip)) = words.next().map(str::parse::<IpAddr>)
            && !found.contains(&ip)
        {
            found.push(ip);
        }
    }
    found.truncate(RESOLVERS);
    found
}

/// Whether `nft` can be used.
#[must_use]
pub fn nft_is_installed() -> bool {
    tool::find(&["nft"]).is_some()
}

/// The `Port` and `ListenAddress` lines of sshd's configuration and of the files beside it.
fn ssh_ports(config: &Path) -> BTreeSet<u16> {
    let mut files = vec![config.to_owned()];
    if let Some(beside) = config.parent().map(|directory| directory.join("sshd_config.d"))
        && let Ok(entries) = std::fs::read_dir(beside)
    {
        files.extend(entries.flatten().map(|entry| entry.path()).take(FILES));
    }
    let mut ports = BTreeSet::from([SSH]);
    for file in files {
        let text = fsio::read_text(&file, BYTES).unwrap_or_default();
        ports.extend(text.lines().filter_map(ssh_port).flatten());
    }
    ports
}

fn ssh_port(line: &str) -> Option<BTreeSet<u16>> {
    let mut words = line.split([' ', '\t', '=']).filter(|word| !word.is_empty());
    let keyword = words.next()?.to_ascii_lowercase();
    let value = words.next()?;
    match keyword.as_str() {
        "port" => parse_ports(value).ok(),
        "listenaddress" => parse_ports(value.rsplit_once(':')?.1).ok(),
        _ => None,
    }
}

/// The C library looks at three; more make rules without use.
const RESOLVERS: usize = 16;
const SSH: u16 = 22;
const BYTES: u64 = 1024 * 1024;
const FILES: usize = 64;
