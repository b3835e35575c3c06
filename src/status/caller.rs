//! Who asks at the status port: this machine, one of its users, or somebody else. An address alone
//! decides nothing: what the proxy passes on, for any workload of the mesh, comes from 127.0.0.6.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::base::socket_owner::owner_of;

/// Who may give orders by `POST` at the status port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orders {
    /// Nobody.
    None,
    /// Processes of root on this machine.
    Root,
}

/// The two ends of the connection that a request came by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
}

/// Decides by who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guard {
    /// The proxy's user, where it has one of its own.
    pub(super) proxy: Option<u32>,
    pub(super) orders: Orders,
    /// Who has the other end of a connection.
    pub(super) owner: fn(SocketAddr, SocketAddr) -> io::Result<Option<u32>>,
}

impl Guard {
    pub(super) fn new(proxy: Option<u32>, orders: Orders) -> Self {
        Self { proxy, orders, owner: owner_of }
    }

    /// The user of a process on this machine that asks for itself.
    pub(super) fn local_user(&self, connection: Connection) -> Result<u32, Refusal> {
        let ip = connection.peer.ip().to_canonical();
        if !ip.is_loopback() || ip == IpAddr::V4(PASSED_ON) {
            return Err(Refusal(ONLY_LOCAL));
        }
        match (self.owner)(connection.peer, connection.local) {
            Ok(Some(uid)) if Some(uid) == self.proxy => Err(Refusal(ONLY_LOCAL)),
            Ok(Some(uid)) => Ok(uid),
            Ok(None) => Err(Refusal(NO_OWNER)),
            Err(error) => {
                tracing::debug!(%error, "The kernel does not tell who asks at the status port.");
                Err(Refusal(NO_OWNER))
            }
        }
    }

    /// The same, by a name of this machine. A page of the web that has its own name lead here comes
    /// from a browser on this machine, too: the name that it asks for gives it away.
    pub(super) fn local_reader(
        &self,
        connection: Connection,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        self.local_user(connection)?;
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        if host.is_some_and(is_local_name) { Ok(()) } else { Err(Refusal(NAME)) }
    }

    /// Root, by a program that means it: a browser cannot send the field without being asked for
    /// permission, which is never given.
    fn may_order(&self, connection: Connection, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.orders == Orders::None {
            return Err(Refusal(ORDERS_OFF));
        }
        if headers.contains_key(header::ORIGIN) || headers.contains_key(SEC_FETCH_SITE) {
            return Err(Refusal(BROWSER));
        }
        self.local_reader(connection, headers)?;
        if self.local_user(connection)? != ROOT {
            return Err(Refusal(ONLY_ROOT));
        }
        if headers.get(ORDER).is_some_and(|value| value == "1") {
            Ok(())
        } else {
            Err(Refusal(FIELD))
        }
    }
}

/// What a handler asks for that changes something: whoever sent the request may give orders. Every route that is not
/// a `GET` takes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct MayOrder;

impl<S: AsRef<Guard> + Sync> FromRequestParts<S> for MayOrder {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let connection = Caller::from_request_parts(parts, state).await?.0;
        state.as_ref().may_order(connection, &parts.headers).map(|()| Self)
    }
}

/// The connection that the request came by.
pub(super) struct Caller(pub(super) Connection);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        parts.extensions.get().copied().map(Self).ok_or(Refusal(NO_OWNER))
    }
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) &'static str);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (StatusCode::FORBIDDEN, self.0).into_response()
    }
}

/// Whether a `Host` field means this machine by a name that nobody else can give it.
fn is_local_name(host: &str) -> bool {
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    // Without a user, and with a port that is a number (RFC 9110 section 7.2).
    let after = host.strip_prefix(authority.host());
    let is_plain = after.is_some_and(|port| {
        port.strip_prefix(':').unwrap_or(port).bytes().all(|digit| digit.is_ascii_digit())
    });
    if !is_plain {
        return false;
    }
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// [`is_local_name`] for the fuzz target.
#[cfg(any(test, fuzzing))]
#[must_use]
pub fn is_local_host(field: &str) -> bool {
    is_local_name(field)
}

/// What Envoy's inbound passthrough clusters bind to (Istio's `InboundPassthroughBindIpv4`).
const PASSED_ON: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
const ROOT: u32 = 0;
const SEC_FETCH_SITE: &str = "sec-fetch-site";
/// The field that an order must have.
const ORDER: &str = "x-vm-agent-order";
const ONLY_LOCAL: &str = "only for processes on this machine, for example through `ssh -L`\n";
const NO_OWNER: &str = "only for processes on this machine: the kernel does not know the caller\n";
const NAME: &str = "ask for localhost or for an IP address\n";
const ORDERS_OFF: &str = "orders are off here (status.orders): use `vm-agent proxy drain` or `systemctl stop vm-agent`\n";
const ONLY_ROOT: &str = "only root may give orders\n";
const BROWSER: &str = "no orders from a browser\n";
const FIELD: &str = "an order needs the field `X-Vm-Agent-Order: 1`\n";

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: u32 = 1337;

    fn guard(owner: fn(SocketAddr, SocketAddr) -> io::Result<Option<u32>>) -> Guard {
        Guard { proxy: Some(PROXY), orders: Orders::Root, owner }
    }

    fn root() -> Guard {
        guard(|_, _| Ok(Some(0)))
    }

    fn from(peer: &str) -> Connection {
        Connection { peer: peer.parse().unwrap(), local: "127.0.0.1:15020".parse().unwrap() }
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn reads(guard: Guard, peer: &str, host: Option<&str>) -> Result<(), Refusal> {
        let fields: Vec<_> = host.map(|host| ("host", host)).into_iter().collect();
        guard.local_reader(from(peer), &headers(&fields))
    }

    #[test]
    fn the_status_is_shown_on_this_machine_by_its_own_names() {
        for peer in ["127.0.0.1:9", "127.8.0.1:9", "[::1]:9", "[::ffff:127.0.0.1]:9"] {
            for host in ["localhost:15020", "LOCALHOST", "127.0.0.1:15020", "[::1]:8080"] {
                assert_eq!(reads(root(), peer, Some(host)), Ok(()), "{peer} {host}");
            }
        }
        for host in [None, Some("rebound.example:15020"), Some("localhost.example"), Some("")] {
            assert_eq!(reads(root(), "127.0.0.1:9", host), Err(Refusal(NAME)), "{host:?}");
        }
    }

    #[test]
    fn a_host_field_has_no_user_and_a_port_that_is_a_number() {
        for host in ["localhost", "localhost:", "LocalHost:15020", "[::1]:80", "127.0.0.1"] {
            assert!(is_local_name(host), "{host}");
        }
        for host in ["[::1]:8oc0", "localhost:x", "a@localhost", "a:b@127.0.0.1:1", ":80", "::1]"] {
            assert!(!is_local_name(host), "{host}");
        }
    }

    #[test]
    fn other_machines_and_what_the_proxy_passes_on_are_not_this_machine() {
        for peer in ["10.0.0.7:9", "[fd00::1]:9", "[::ffff:10.0.0.7]:9"] {
            assert_eq!(reads(root(), peer, Some("localhost")), Err(Refusal(ONLY_LOCAL)));
        }
        for peer in ["127.0.0.6:9", "[::ffff:127.0.0.6]:9"] {
            assert_eq!(reads(root(), peer, Some("localhost")), Err(Refusal(ONLY_LOCAL)));
        }
        let proxy = guard(|_, _| Ok(Some(PROXY)));
        assert_eq!(reads(proxy, "127.0.0.1:9", Some("localhost")), Err(Refusal(ONLY_LOCAL)));
    }

    #[test]
    fn a_caller_whom_the_kernel_does_not_know_is_refused() {
        for unknown in [guard(|_, _| Ok(None)), guard(|_, _| Err(io::Error::other("no")))] {
            assert_eq!(reads(unknown, "127.0.0.1:9", Some("localhost")), Err(Refusal(NO_OWNER)));
        }
    }

    #[test]
    fn orders_are_for_root_which_means_them() {
        let whole = [("host", "localhost"), (ORDER, "1")];
        let ask = |guard: Guard, peer: &str, fields: &[(&'static str, &str)]| {
            guard.may_order(from(peer), &headers(fields)).map_err(|refusal| refusal.0)
        };
        assert_eq!(ask(root(), "127.0.0.1:9", &whole), Ok(()));
        let none = Guard { orders: Orders::None, ..root() };
        assert_eq!(ask(none, "127.0.0.1:9", &whole), Err(ORDERS_OFF));
        assert_eq!(ask(guard(|_, _| Ok(Some(1000))), "127.0.0.1:9", &whole), Err(ONLY_ROOT));
        assert_eq!(ask(guard(|_, _| Ok(Some(PROXY))), "127.0.0.1:9", &whole), Err(ONLY_LOCAL));
        assert_eq!(ask(root(), "127.0.0.6:9", &whole), Err(ONLY_LOCAL));
        assert_eq!(ask(root(), "10.0.0.7:9", &whole), Err(ONLY_LOCAL));
        assert_eq!(ask(root(), "127.0.0.1:9", &whole[..1]), Err(FIELD));
        assert_eq!(ask(root(), "127.0.0.1:9", &whole[1..]), Err(NAME));
        for browser in [("origin", "http://localhost:15020"), ("sec-fetch-site", "same-origin")] {
            let fields = [whole[0], whole[1], browser];
            assert_eq!(ask(root(), "127.0.0.1:9", &fields), Err(BROWSER));
        }
    }
}
