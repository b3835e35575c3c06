//! The listener for what others call on this machine: mutual TLS as the policies want it, a chain
//! for each port of its services, and one for all other ports.

use std::collections::BTreeMap;

use prost_types::{Any, Duration};

use super::outbound::{manager, pack_manager, router};
use super::routes::route;
use super::{BLACK_HOLE, INBOUND_PASS_THROUGH, View, at, pack, rbac, tcp, transport};
use crate::devmesh::catalog::{Port, Service};
use crate::devmesh::policy::{MutualTls, Policy};
use crate::proto::envoy::http_connection_manager::{
    ForwardClientCertDetails, Routes, ServerHeaderTransformation, SetCurrentClientCertDetails,
};
use crate::proto::envoy::{
    Filter, FilterChain, FilterChainMatch, HttpConnectionManager, Listener, ListenerFilter,
    OriginalDst, OriginalSrc, RouteConfiguration, TlsInspector, TrafficDirection, VirtualHost,
};

/// Where the redirect rules send incoming connections.
const INBOUND_PORT: u16 = 15_006;

/// A port of the machine that a service stands for.
pub(super) struct Inbound<'a> {
    /// Where the program listens.
    pub(super) number: u16,
    pub(super) port: &'a Port,
    pub(super) service: &'a Service,
}

impl Inbound<'_> {
    pub(super) fn cluster(&self) -> String {
        format!("inbound|{}||", self.number)
    }
}

/// The ports of the machine's own services, each once.
pub(super) fn ports<'a>(view: &'a View<'_>) -> Vec<Inbound<'a>> {
    let mut found = BTreeMap::new();
    for (service, endpoint) in view.own() {
        for port in &service.ports {
            let number = endpoint.port(port);
            found.entry(number).or_insert(Inbound { number, port, service });
        }
    }
    found.into_values().collect()
}

pub(super) fn listener(view: &View<'_>) -> Listener {
    let labels = view.proxy.labels();
    let namespace = view.proxy.namespace();
    let mode = view.catalog.policies.mutual_tls(namespace, &labels, view.mutual_tls);
    let policies: Vec<_> = view.catalog.policies.of(namespace, &labels).collect();
    // A connection to the port itself would go round in circles.
    let mut chains = vec![FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            destination_port: Some(INBOUND_PORT.into()),
            ..Default::default()
        }),
        filters: vec![tcp(BLACK_HOLE)],
        name: "virtualInbound-blackhole".to_owned(),
        ..Default::default()
    }];
    for inbound in ports(view) {
        let filters = if inbound.port.is_http() {
            vec![http(view, &inbound, &policies)]
        } else {
            let mut filters = rbac::network(&policies);
            filters.push(tcp(&inbound.cluster()));
            filters
        };
        let name = format!("{}_{}", view.any(), inbound.number);
        chains.extend(secured(view, mode, (&name, Some(inbound.number)), &filters));
    }
    let mut others = rbac::network(&policies);
    others.push(tcp(INBOUND_PASS_THROUGH));
    chains.extend(secured(view, mode, ("virtualInbound", None), &others));
    Listener {
        name: "virtualInbound".to_owned(),
        address: Some(at(view.any(), INBOUND_PORT)),
        filter_chains: chains,
        listener_filters: listener_filters(view),
        // A client that waits for the server's first words is not cut off.
        listener_filters_timeout: Some(Duration::default()),
        continue_on_listener_filters_timeout: true,
        transparent: view.proxy.is_transparent().then_some(true),
        traffic_direction: TrafficDirection::Inbound.into(),
        ..Default::default()
    }
}

/// The chains of a port under a mode. Where plain calls are taken, TLS that is not the mesh's is
/// the program's own, and passes as it is.
fn secured(
    view: &View<'_>,
    mode: MutualTls,
    (name, port): (&str, Option<u16>),
    filters: &[Filter],
) -> Vec<FilterChain> {
    let chain = |transport: &str, protocols: &[&str], secure: bool| FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            destination_port: port.map(u32::from),
            transport_protocol: transport.to_owned(),
            application_protocols: protocols.iter().map(|&name| name.to_owned()).collect(),
        }),
        filters: filters.to_vec(),
        transport_socket: secure.then(|| transport::downstream(view)),
        name: name.to_owned(),
    };
    match mode {
        MutualTls::Strict => vec![chain("tls", &[], true)],
        MutualTls::Permissive => {
            vec![chain("tls", &MESH_PROTOCOLS, true), chain("", &[], false)]
        }
        MutualTls::Disable => vec![chain("", &[], false)],
    }
}

/// A chain that speaks HTTP: the program learns from `x-forwarded-client-cert` who calls.
fn http(view: &View<'_>, inbound: &Inbound<'_>, policies: &[&Policy]) -> Filter {
    let Inbound { number, service, .. } = inbound;
    let cluster = inbound.cluster();
    let operation = format!("{}:{}/*", service.host, inbound.port.number);
    let host = VirtualHost {
        name: format!("inbound|http|{}", inbound.port.number),
        domains: vec!["*".to_owned()],
        routes: vec![route("default", &cluster, &operation, None)],
        ..Default::default()
    };
    let routes = RouteConfiguration {
        name: cluster,
        virtual_hosts: vec![host],
        validate_clusters: Some(false),
        ..Default::default()
    };
    let mut http_filters = rbac::http(policies);
    http_filters.push(router());
    pack_manager(&HttpConnectionManager {
        http_filters,
        use_remote_address: Some(false),
        forward_client_cert_details: ForwardClientCertDetails::AppendForward.into(),
        set_current_client_cert_details: Some(SetCurrentClientCertDetails {
            subject: Some(true),
            dns: true,
            uri: true,
        }),
        server_header_transformation: ServerHeaderTransformation::PassThrough.into(),
        ..manager(&format!("inbound_{}_{number}", view.any()), Routes::RouteConfig(routes))
    })
}

fn listener_filters(view: &View<'_>) -> Vec<ListenerFilter> {
    let filter = |name: &str, config: Any| ListenerFilter {
        name: format!("envoy.filters.listener.{name}"),
        typed_config: Some(config),
    };
    let mut filters = vec![filter("original_dst", pack(ORIGINAL_DST, &OriginalDst {}))];
    if view.proxy.is_transparent() {
        let mark = OriginalSrc { bind_port: false, mark: TPROXY_MARK };
        filters.push(filter("original_src", pack(ORIGINAL_SRC, &mark)));
    }
    filters.push(filter("tls_inspector", pack(TLS_INSPECTOR, &TlsInspector {})));
    filters
}

/// What callers of the mesh name in their handshake; Istio's own proxies have more names than ours.
const MESH_PROTOCOLS: [&str; 5] =
    ["istio-peer-exchange", "istio", "istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// The mark by which the redirect rules know Envoy's own connections.
const TPROXY_MARK: u32 = 1337;
const ORIGINAL_DST: &str =
    "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst";
const ORIGINAL_SRC: &str =
    "type.googleapis.com/envoy.extensions.filters.listener.original_src.v3.OriginalSrc";
const TLS_INSPECTOR: &str =
    "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
