//! Addresses that others connect to, and the one that this machine has on the way to istiod.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;

use crate::base::net::is_link_local;

/// What is wrong with an address.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// It is no kind of address.
    #[error("{found:?} is neither an IP address nor a DNS name nor a unix:///path")]
    Form {
        /// The text.
        found: String,
    },
    /// No other machine can connect to it.
    #[error("{found} cannot be reached from other machines")]
    Unreachable {
        /// The address.
        found: IpAddr,
    },
    /// The machine has no route.
    #[error("there is no route to {target}")]
    NoRoute {
        /// Where to.
        target: SocketAddr,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// The address of a WorkloadEntry (istio/api `networking/v1alpha3/workload_entry.proto`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An IP address.
    Ip(IpAddr),
    /// A fully qualified name without a wildcard (RFC 1123).
    Name(String),
    /// A Unix socket of the proxy's own machine: `unix:///path`, or `unix://@name` for one without
    /// a file.
    Socket(String),
}

impl Address {
    /// The IP address, where it is one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        if let Self::Ip(ip) = self { Some(*ip) } else { None }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            let nowhere = ip.is_unspecified() || ip.is_multicast() || is_link_local(ip);
            return if nowhere {
                Err(AddressError::Unreachable { found: ip })
            } else {
                Ok(Self::Ip(ip))
            };
        }
        if let Some(path) = text.strip_prefix("unix://") {
            let is_path = path.starts_with(['/', '@']) && !path.ends_with('/') && path.len() > 1;
            let is_plain = text.len() <= SOCKET && text.chars().all(|c| c.is_ascii_graphic());
            if is_path && is_plain {
                return Ok(Self::Socket(text.to_owned()));
            }
        }
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // A last label of digits would make it a broken IP address.
        let is_name = text.len() <= 253
            && text.split('.').all(is_label)
            && !text
                .rsplit('.')
                .next()
                .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        let found = || text.chars().take(300).collect();
        if is_name {
            Ok(Self::Name(text.to_owned()))
        } else {
            Err(AddressError::Form { found: found() })
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) | Self::Socket(name) => f.write_str(name),
        }
    }
}

/// The longest address of a WorkloadEntry.
const SOCKET: usize = 256;

/// The source address of the route to `target`. Nothing is sent: a connected UDP socket makes the
/// kernel choose.
///
/// # Errors
/// When there is no route, or others could not connect to the address (link-local; loopback where
/// the target is not).
pub fn source_address_towards(target: SocketAddr) -> Result<IpAddr, AddressError> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let no_route = |source| AddressError::NoRoute { target, source };
    let socket = UdpSocket::bind((any, 0)).map_err(no_route)?;
    socket.connect(target).map_err(no_route)?;
    let found = socket.local_addr().map_err(no_route)?.ip();
    let lonely = found.is_loopback() && !target.ip().is_loopback();
    if lonely || found.is_unspecified() || is_link_local(found) {
        return Err(AddressError::Unreachable { found });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_others_can_use_round_trip() {
        for text in
            ["10.0.0.1", "fd00::1", "db.example.com", "vm-1", "unix:///run/x.sock", "unix://@x"]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "fe80::1",
            "0.0.0.0",
            "169.254.1.1",
            "224.0.0.1",
            "*.example.com",
            "10.0.0",
            "1.2.3.4.5",
            "unix://x",
            "unix:///x/",
            "a_b",
            "-a",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_route_to_loopback_starts_at_loopback() {
        let target = SocketAddr::from(([127, 0, 0, 1], 15012));
        assert_eq!(source_address_towards(target).unwrap(), IpAddr::from([127, 0, 0, 1]));
    }
}
