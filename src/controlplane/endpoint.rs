//! `host:port`, as Istio writes the addresses of its control plane.

use std::fmt;
use std::str::FromStr;

/// What is wrong with an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It has no port, or one that is no number from 1 to 65535.
    #[error("{found:?} is no HOST:PORT with a port from 1 to 65535")]
    Port {
        /// The text.
        found: String,
    },
    /// Its host is neither a DNS name nor an IP address.
    #[error(
        "{found:?} has no usable host: expected a DNS name or an IP address (IPv6 in brackets)"
    )]
    Host {
        /// The text.
        found: String,
    },
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A DNS name or an IP address, without brackets.
    pub host: String,
    /// A TCP port.
    pub port: u16,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let found = || text.chars().take(300).collect();
        let (host, port) =
            text.rsplit_once(':').ok_or_else(|| EndpointError::Port { found: found() })?;
        let port = port.parse().ok().filter(|&port: &u16| port > 0);
        let port = port.ok_or_else(|| EndpointError::Port { found: found() })?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = bare.unwrap_or(host);
        let usable = if bare.is_some() {
            host.parse::<std::net::Ipv6Addr>().is_ok()
        } else {
            !host.contains(':') && rustls_pki_types::ServerName::try_from(host).is_ok()
        };
        if usable {
            Ok(Self { host: host.to_owned(), port })
        } else {
            Err(EndpointError::Host { found: found() })
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_round_trip() {
        for text in ["istiod.istio-system.svc:15012", "10.0.0.1:1", "[fd00::1]:65535"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn half_an_endpoint_is_none() {
        for text in [
            "",
            "istiod",
            "istiod:",
            "istiod:0",
            "istiod:70000",
            ":15012",
            "fd00::1:15012",
            "a b:1",
            "[x]:1",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
