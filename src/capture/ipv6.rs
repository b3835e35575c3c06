//! Whether IPv6 connections go through the proxy: decided by what the proxy listens on.

use serde::{Deserialize, Serialize};

use super::Listeners;

/// What becomes of IPv6 connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ipv6 {
    /// The kernel has no IPv6.
    Absent,
    /// They go through the proxy, as those of IPv4.
    Redirect,
    /// The proxy has no IPv6 listeners: inbound connections that policy covers are refused, and
    /// outbound ones pass without the mesh.
    Reject,
    /// They pass without the mesh in both directions, and no policy is applied to them.
    Leave,
}

/// What the operator wants of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6Policy {
    /// Redirected while the proxy listens on IPv6, else refused inbound.
    Auto,
    /// Always this.
    Always(Ipv6),
}

impl Ipv6Policy {
    /// What becomes of IPv6 on this host now. `before` counts while the proxy has no listeners, as it
    /// is being started.
    #[must_use]
    pub fn decide(self, host_has_ipv6: bool, found: &Listeners, before: Option<Ipv6>) -> Ipv6 {
        match self {
            _ if !host_has_ipv6 => Ipv6::Absent,
            Self::Always(always) => always,
            Self::Auto => match (found.serve_ipv6(), before) {
                (Some(true), _) | (None, Some(Ipv6::Redirect)) => Ipv6::Redirect,
                (Some(false) | None, _) => Ipv6::Reject,
            },
        }
    }
}
