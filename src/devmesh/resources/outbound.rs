//! Listeners for what the machine's programs call: the one that the redirect rules send it to, and
//! those behind it, which have no socket, one for each port that speaks HTTP and one for each
//! address and port that does not.

use std::collections::BTreeMap;

use super::routes;
use super::transport::ads;
use super::{BLACK_HOLE, PASS_THROUGH, View, at, pack, tcp};
use crate::devmesh::catalog::Service;
use crate::proto::envoy::http_connection_manager::{Routes, UpgradeConfig};
use crate::proto::envoy::{
    Filter, FilterChain, FilterChainMatch, HttpConnectionManager, HttpFilter, Listener, Rds,
    Router, TrafficDirection,
};

/// Where the redirect rules send outgoing connections.
pub(super) const OUTBOUND_PORT: u16 = 15_001;

/// The listener with a socket; what no other listener is for passes through it as it is.
pub(super) fn virtual_outbound(view: &View<'_>) -> Listener {
    let here =
        FilterChainMatch { destination_port: Some(OUTBOUND_PORT.into()), ..Default::default() };
    // A connection to the port itself would go round in circles.
    let circle = FilterChain {
        filter_chain_match: Some(here),
        filters: vec![tcp(BLACK_HOLE)],
        name: "virtualOutbound-blackhole".to_owned(),
        ..Default::default()
    };
    Listener {
        address: Some(at(view.any(), OUTBOUND_PORT)),
        filter_chains: vec![circle, chain("virtualOutbound-catchall-tcp", tcp(PASS_THROUGH))],
        use_original_dst: Some(true),
        transparent: view.proxy.is_transparent().then_some(true),
        bind_to_port: None,
        ..listener("virtualOutbound")
    }
}

pub(super) fn listeners(view: &View<'_>) -> Vec<Listener> {
    let mut all = BTreeMap::new();
    for port in routes::ports(view) {
        let name = format!("{}_{port}", view.any());
        let filter = http(&name, Routes::Rds(rds(port)), Vec::new());
        all.insert(name.clone(), behind(&name, (view.any(), port), filter));
    }
    for service in view.services() {
        for port in service.ports.iter().filter(|port| !port.is_http()) {
            for address in places(service, view) {
                let name = format!("{address}_{}", port.number);
                let filter = tcp(&service.cluster(port));
                // Of two services with one address and port the first one has it.
                all.entry(name.clone())
                    .or_insert_with(|| behind(&name, (&address, port.number), filter));
            }
        }
    }
    all.into_values().collect()
}

/// The addresses of a service, or all where it has none.
fn places(service: &Service, view: &View<'_>) -> Vec<String> {
    if service.addresses.is_empty() {
        return vec![view.any().to_owned()];
    }
    service.addresses.iter().map(ToString::to_string).collect()
}

fn behind(name: &str, (address, port): (&str, u16), filter: Filter) -> Listener {
    Listener {
        address: Some(at(address, port)),
        filter_chains: vec![chain("", filter)],
        ..listener(name)
    }
}

fn listener(name: &str) -> Listener {
    Listener {
        name: name.to_owned(),
        bind_to_port: Some(false),
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Default::default()
    }
}

fn chain(name: &str, filter: Filter) -> FilterChain {
    FilterChain { filters: vec![filter], name: name.to_owned(), ..Default::default() }
}

fn rds(port: u16) -> Rds {
    Rds { config_source: Some(ads()), route_config_name: port.to_string() }
}

/// A filter that speaks HTTP. What callers say of themselves in headers is not believed.
fn http(stat_prefix: &str, routes: Routes, filters: Vec<HttpFilter>) -> Filter {
    let manager = HttpConnectionManager {
        http_filters: filters.into_iter().chain([router()]).collect(),
        use_remote_address: Some(false),
        ..manager(stat_prefix, routes)
    };
    pack_manager(&manager)
}

/// What both directions have.
pub(super) fn manager(stat_prefix: &str, routes: Routes) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        routes: Some(routes),
        server_name: "istio-envoy".to_owned(),
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".to_owned() }],
        stream_idle_timeout: Some(Default::default()),
        normalize_path: Some(true),
        ..Default::default()
    }
}

pub(super) fn pack_manager(manager: &HttpConnectionManager) -> Filter {
    let name = "envoy.filters.network.http_connection_manager".to_owned();
    Filter { name, typed_config: Some(pack(HTTP_MANAGER, manager)) }
}

pub(super) fn router() -> HttpFilter {
    let name = "envoy.filters.http.router".to_owned();
    HttpFilter { name, typed_config: Some(pack(ROUTER, &Router {})) }
}

const HTTP_MANAGER: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
