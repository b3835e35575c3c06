//! Facts about IP addresses that the standard library does not tell in one call.

use std::net::IpAddr;

/// Whether it is of 169.254.0.0/16 (RFC 3927) or fe80::/10 (RFC 4291).
#[must_use]
pub fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}
