//! The host's name and its addresses.

use std::ffi::OsString;
use std::net::IpAddr;

use sysinfo::{NetworkData, Networks};

use crate::base::net::is_link_local;

/// The short host name, made a DNS label: what `hostname -s` says, in lower case.
#[must_use]
pub fn host_name() -> Option<String> {
    let full = sysinfo::System::host_name().ok()?;
    let short = full.split('.').next().unwrap_or_default().to_lowercase();
    let label: String =
        short.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let label = label.trim_matches('-');
    (!label.is_empty()).then(|| label.chars().take(63).collect())
}

/// The addresses that other machines may know this one by: none of loopback, link-local and
/// container-bridge interfaces.
#[must_use]
pub fn addresses() -> Vec<IpAddr> {
    let ours = interface_addresses().into_iter().filter(|(name, _)| !is_bridge(name));
    let mut found = Vec::new();
    for (_, ip) in ours.take(ADDRESSES) {
        if !found.contains(&ip) {
            found.push(ip);
        }
    }
    found
}

/// Every address that is neither loopback nor link-local, with the name of its interface.
#[must_use]
pub fn interface_addresses() -> Vec<(String, IpAddr)> {
    let Ok(networks) = Networks::new_with_refreshed_list() else { return Vec::new() };
    let of = |(name, data): (&OsString, &NetworkData)| {
        let name = name.to_string_lossy().into_owned();
        let ips: Vec<IpAddr> = data.ip_networks().iter().map(|network| network.addr).collect();
        ips.into_iter().map(move |ip| (name.clone(), ip))
    };
    in_order(networks.iter().flat_map(of))
}

/// By interface, IPv4 first. The library tells interfaces and their addresses in another order
/// each time: two looks at the same machine have to see the same.
fn in_order(all: impl Iterator<Item = (String, IpAddr)>) -> Vec<(String, IpAddr)> {
    let mut found: Vec<_> =
        all.filter(|(_, ip)| !ip.is_loopback() && !is_link_local(*ip)).collect();
    found.sort();
    found
}

/// Interfaces that container engines and hypervisors make.
fn is_bridge(name: &str) -> bool {
    ["docker", "br-", "cni", "veth", "virbr", "podman", "cali", "flannel"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// A machine with more addresses has them for its containers.
const ADDRESSES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_its_addresses_in_one_order() {
        let one = |name: &str, ip: &str| (name.to_owned(), ip.parse().unwrap());
        let mut all = vec![
            one("eth0", "10.0.0.9"),
            one("eth0", "2001:db8::1"),
            one("eth0", "2001:db8::2"),
            one("eth1", "10.0.0.1"),
        ];
        let expected = all.clone();
        all.push(one("eth0", "fe80::1"));
        all.push(one("lo", "127.0.0.1"));
        all.reverse();
        assert_eq!(in_order(all.into_iter()), expected);
    }

    #[test]
    fn addresses_of_container_bridges_are_not_ours() {
        assert!(
            is_bridge("docker0") && is_bridge("br-1a2b") && !is_bridge("br0") && !is_bridge("eth0")
        );
        assert!(addresses().iter().all(|ip| !ip.is_loopback()));
    }
}
