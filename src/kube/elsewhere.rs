//! A server whose certificate carries another name than its URL has (`tls-server-name` of a
//! kubeconfig): it is called by that name, and found at its own address.

use std::net::{IpAddr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Finds every name at this host.
pub(super) struct Elsewhere {
    /// A name or an IP address.
    pub(super) host: String,
}

impl Resolve for Elsewhere {
    fn resolve(&self, _: Name) -> Resolving {
        // An IPv6 address stands in brackets in a URL.
        let host = self.host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Box::pin(async move {
            // Port 0 stands for the URL's own.
            let found: Vec<SocketAddr> = match host.parse::<IpAddr>() {
                Ok(ip) => vec![SocketAddr::new(ip, 0)],
                Err(_) => tokio::net::lookup_host((host.as_str(), 0)).await?.collect(),
            };
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}
