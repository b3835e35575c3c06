//! What the rules have to know of the host: its IPv6, its SSH, its bridges.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use std::path::Path;

use super::ports::parse_ports;
use super::tool;
use crate::base::fsio;

/// Facts about the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
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
    HostFacts { ssh_ports: ssh_ports(sshd), own_interface: own.map(|(name, _)| name.clone()) }
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

/// Whether the kernel has IPv6. Every interface has a link-local address then, by which neighbours
/// on the same network can connect.
#[must_use]
pub fn has_ipv6() -> bool {
    !ipv6_addresses().is_empty()
}

/// A link-local address of this host, with its interface; one that is in use.
pub(super) fn link_local() -> Option<SocketAddrV6> {
    ipv6_addresses().lines().find_map(link_local_of)
}

/// `fe80000000000000001122fffe334455 02 40 20 80 eth0`: address, interface, length of the prefix,
/// scope, flags, all hexadecimal (`/proc/net/if_inet6`, proc(5)).
pub(super) fn link_local_of(line: &str) -> Option<SocketAddrV6> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [address, interface, _, scope, flags, _] = words.as_slice() else { return None };
    let flags = u32::from_str_radix(flags, 16).ok()?;
    if *scope != LINK || flags & UNUSABLE != 0 {
        return None;
    }
    let address = Ipv6Addr::from_bits(u128::from_str_radix(address, 16).ok()?);
    let interface = u32::from_str_radix(interface, 16).ok()?;
    Some(SocketAddrV6::new(address, 0, 0, interface))
}

fn ipv6_addresses() -> String {
    fsio::read_text(Path::new("/proc/net/if_inet6"), BYTES).unwrap_or_default()
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

pub(super) fn ssh_port(line: &str) -> Option<BTreeSet<u16>> {
    let mut words = line.split([' ', '\t', '=']).filter(|word| !word.is_empty());
    let keyword = words.next()?.to_ascii_lowercase();
    let value = words.next()?;
    let port = match keyword.as_str() {
        "port" => value,
        "listenaddress" => {
            let (host, port) = value.rsplit_once(':')?;
            // An IPv6 address has a port only after brackets (sshd_config(5)): its last group is none.
            let is_host = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
            is_host.then_some(port)?
        }
        _ => return None,
    };
    parse_ports(port).ok().filter(|ports| !ports.is_empty())
}

/// The C library looks at three; more make rules without use.
const RESOLVERS: usize = 16;
const SSH: u16 = 22;
/// The kernel's `IPV6_ADDR_LINKLOCAL`.
const LINK: &str = "20";
/// `IFA_F_TENTATIVE` and `IFA_F_DADFAILED`: nobody can connect to the address yet, or ever.
const UNUSABLE: u32 = 0x40 | 0x08;
const BYTES: u64 = 1024 * 1024;
const FILES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_ipv6_address_is_no_port_of_ssh() {
        let ports = |line| ssh_port(line).into_iter().flatten().collect::<Vec<_>>();
        assert_eq!(ports("Port 2222"), [2222]);
        assert_eq!(ports("ListenAddress [2001:db8::1]:2223"), [2223]);
        assert_eq!(ports("listenaddress = 0.0.0.0:2224"), [2224]);
        for none in [
            "ListenAddress 2001:db8::8080",
            "ListenAddress ::",
            "ListenAddress [::",
            "ListenAddress 10.0.0.1",
        ] {
            assert_eq!(ssh_port(none), None, "{none}");
        }
    }

    #[test]
    fn link_local_addresses_are_read_with_their_interface() {
        let found = link_local_of("fe80000000000000001122fffe334455 0a 40 20 80     eth0").unwrap();
        assert_eq!(found.to_string(), "[fe80::11:22ff:fe33:4455%10]:0");
        for line in [
            "00000000000000000000000000000001 01 80 10 80       lo",
            "fe80000000000000001122fffe334455 0a 40 20 c0     eth0",
            "fd000000000000000000000000000011 0a 40 00 80     eth0",
            "fe80 0a",
            "",
        ] {
            assert_eq!(link_local_of(line), None, "{line}");
        }
    }
}
