//! What a proxy is sent, in Istio's shapes and names (`pilot/pkg/networking/core`): listeners,
//! routes, clusters and endpoints that its services, its own WorkloadEntry and its policies make,
//! and the name table. Streams are not known here.

mod clusters;
mod endpoints;
mod inbound;
mod outbound;
mod rbac;
mod routes;
mod transport;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use prost::Message;
use prost_types::Any;

use super::catalog::{Catalog, Endpoint, Service};
use super::policy::MutualTls;
use super::proxy::Proxy;
use crate::identity::TrustDomain;
use crate::proto::envoy::{Address, Filter, SocketAddress, TcpProxy};
use crate::proto::nds::{NameInfo, NameTable};

/// The type URL of clusters.
pub const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// The type URL of endpoints.
pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// The type URL of listeners.
pub const LISTENERS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// The type URL of routes.
pub const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// The type URL of the name table.
pub const NAME_TABLE: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";
/// The type URL of health reports, which nobody answers.
pub const HEALTH: &str = "type.googleapis.com/istio.v1.HealthInformation";

/// What a proxy's configuration is made from.
pub(super) struct View<'a> {
    pub(super) catalog: &'a Catalog,
    pub(super) proxy: &'a Proxy,
    pub(super) trust_domain: &'a TrustDomain,
    /// What workloads ask of their callers where no policy says it.
    pub(super) mutual_tls: MutualTls,
    /// Names beside those of the services.
    pub(super) names: &'a BTreeMap<String, NameInfo>,
}

impl View<'_> {
    /// The services that the proxy may call.
    fn services(&self) -> impl Iterator<Item = &Service> {
        self.catalog.visible(self.proxy.namespace())
    }

    /// The services that the proxy's machine stands for, with its endpoint.
    fn own(&self) -> Vec<(&Service, &Endpoint)> {
        let addresses = self.proxy.addresses();
        let is_own = |one: &&Endpoint| {
            one.namespace == self.proxy.namespace()
                && one.address.parse().is_ok_and(|address| addresses.contains(&address))
        };
        let all = self.catalog.services.iter();
        all.filter_map(|one| Some((one, one.endpoints.iter().find(is_own)?))).collect()
    }

    /// True when calls of an endpoint are made with mutual TLS.
    fn is_secured(&self, endpoint: &Endpoint) -> bool {
        self.catalog.is_secured(endpoint, self.mutual_tls)
    }

    /// The wildcard address of the proxy's family.
    fn any(&self) -> &'static str {
        if self.proxy.is_ipv6() { "::" } else { "0.0.0.0" }
    }
}

/// The resources of a type, with their names; `None` for a type that istiod does not answer.
pub(super) fn of(type_url: &str, view: &View<'_>) -> Option<Vec<(String, Any)>> {
    let table = || NameTable { table: names(view).into_iter().collect() };
    let found = match type_url {
        CLUSTERS => all(type_url, clusters::clusters(view), |one| &one.name),
        ENDPOINTS => all(type_url, endpoints::endpoints(view), |one| &one.cluster_name),
        LISTENERS => {
            let mut listeners = vec![outbound::virtual_outbound(view), inbound::listener(view)];
            listeners.extend(outbound::listeners(view));
            all(type_url, listeners, |one| &one.name)
        }
        ROUTES => all(type_url, routes::routes(view), |one| &one.name),
        NAME_TABLE => vec![(String::new(), pack(NAME_TABLE, &table()))],
        // istiod has no generator for these (`istio.mesh` only with several roots).
        HEALTH | "istio.io/debug" => return None,
        other if other.ends_with("/istio.mesh.v1alpha1.ProxyConfig") => return None,
        _ => Vec::new(),
    };
    Some(found)
}

/// True for a type of which a proxy gets only what it names.
pub(super) fn is_named(type_url: &str) -> bool {
    [ENDPOINTS, ROUTES].contains(&type_url)
}

/// The type whose resources a proxy waits for again when it has taken others of this type.
pub(super) fn follower(type_url: &str) -> Option<&'static str> {
    match type_url {
        CLUSTERS => Some(ENDPOINTS),
        LISTENERS => Some(ROUTES),
        _ => None,
    }
}

/// The services' addresses by name, and what was added by hand.
fn names(view: &View<'_>) -> BTreeMap<String, NameInfo> {
    let info = |service: &Service| NameInfo {
        ips: service.addresses.iter().map(ToString::to_string).collect(),
        registry: "External".to_owned(),
        namespace: service.namespace.clone(),
        ..Default::default()
    };
    let with_address = view.services().filter(|service| !service.addresses.is_empty());
    let mut table: BTreeMap<_, _> =
        with_address.map(|service| (service.host.clone(), info(service))).collect();
    table.extend(view.names.clone());
    table
}

fn all<M: Message>(
    type_url: &str,
    messages: Vec<M>,
    name: fn(&M) -> &String,
) -> Vec<(String, Any)> {
    messages.iter().map(|one| (name(one).clone(), pack(type_url, one))).collect()
}

fn pack(type_url: &str, message: &impl Message) -> Any {
    Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

fn socket(address: &str, port: u16) -> SocketAddress {
    SocketAddress { address: address.to_owned(), port_value: Some(port.into()) }
}

fn at(address: &str, port: u16) -> Address {
    Address { socket_address: Some(socket(address, port)) }
}

/// A filter that passes connections on as they are.
fn tcp(cluster: &str) -> Filter {
    let proxy = TcpProxy { stat_prefix: cluster.to_owned(), cluster: cluster.to_owned() };
    let name = "envoy.filters.network.tcp_proxy".to_owned();
    Filter { name, typed_config: Some(pack(TCP_PROXY, &proxy)) }
}

/// Where connections end that go nowhere.
const BLACK_HOLE: &str = "BlackHoleCluster";
/// Where connections go on to the address that they came for.
const PASS_THROUGH: &str = "PassthroughCluster";
/// As [`PASS_THROUGH`], to the machine's own programs.
const INBOUND_PASS_THROUGH: &str = "InboundPassthroughCluster";
const TCP_PROXY: &str =
    "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
