//! Clusters: one for each port of each service, one for each port of the machine's own programs,
//! and those that pass everything on or nothing.

use std::collections::BTreeMap;

use prost_types::value::Kind;
use prost_types::{Any, Duration, ListValue, Struct, Value};

use super::{BLACK_HOLE, INBOUND_PASS_THROUGH, PASS_THROUGH, View, endpoints, inbound, pack};
use super::{socket, transport};
use crate::devmesh::catalog::{Port, Protocol, Resolution, Service};
use crate::proto::envoy::cluster::{
    DiscoveryType, DnsLookupFamily, EdsClusterConfig, LbPolicy, TrackClusterStats,
};
use crate::proto::envoy::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig, explicit_http_config,
};
use crate::proto::envoy::{
    BindConfig, Cluster, Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions, Metadata,
};

pub(super) fn clusters(view: &View<'_>) -> Vec<Cluster> {
    let mut all = vec![
        base(BLACK_HOLE, DiscoveryType::Static),
        inward(view, INBOUND_PASS_THROUGH),
        original(PASS_THROUGH),
    ];
    for chain in inbound::ports(view) {
        let mut cluster = inward(view, &chain.cluster());
        cluster.metadata = Some(serves(chain.service));
        if chain.port.is_http() {
            let same = UseDownstreamHttpConfig {
                http_protocol_options: Some(Http1ProtocolOptions {}),
                http2_protocol_options: Some(Http2ProtocolOptions {}),
            };
            cluster.typed_extension_protocol_options =
                speak(UpstreamProtocolOptions::UseDownstreamProtocolConfig(same));
        }
        all.push(cluster);
    }
    for service in view.services() {
        all.extend(service.ports.iter().map(|port| outbound(view, service, port)));
    }
    all
}

fn outbound(view: &View<'_>, service: &Service, port: &Port) -> Cluster {
    let name = service.cluster(port);
    let mut cluster = counted(match service.resolution {
        Resolution::None => original(&name),
        Resolution::Static => Cluster {
            eds_cluster_config: Some(EdsClusterConfig {
                eds_config: Some(transport::ads()),
                service_name: name.clone(),
            }),
            lb_policy: LbPolicy::LeastRequest.into(),
            ..base(&name, DiscoveryType::Eds)
        },
        Resolution::Dns => Cluster {
            load_assignment: Some(endpoints::assignment(view, service, port)),
            lb_policy: LbPolicy::LeastRequest.into(),
            dns_lookup_family: DnsLookupFamily::V4Preferred.into(),
            ..base(&name, DiscoveryType::StrictDns)
        },
    });
    if service.resolution != Resolution::None {
        cluster.transport_socket_matches = transport::by_endpoint(view, service, port);
    }
    if port.protocol == Protocol::Http2 {
        let config = explicit_http_config::ProtocolConfig::Http2ProtocolOptions;
        let explicit =
            ExplicitHttpConfig { protocol_config: Some(config(Http2ProtocolOptions {})) };
        cluster.typed_extension_protocol_options =
            speak(UpstreamProtocolOptions::ExplicitHttpConfig(explicit));
    }
    cluster
}

/// With counters by endpoint, under a name whose end the bootstrap's expressions find.
fn counted(cluster: Cluster) -> Cluster {
    Cluster {
        alt_stat_name: format!("{};", cluster.name),
        track_cluster_stats: Some(TrackClusterStats { per_endpoint_stats: true }),
        ..cluster
    }
}

/// To the machine's own programs, from an address by which the redirect rules know Envoy.
fn inward(view: &View<'_>, name: &str) -> Cluster {
    let mut cluster = original(name);
    if !view.proxy.is_transparent() {
        let from = if view.proxy.is_ipv6() { "::6" } else { "127.0.0.6" };
        cluster.upstream_bind_config = Some(BindConfig { source_address: Some(socket(from, 0)) });
    }
    cluster
}

/// Which service a cluster of the machine's own is for, where Istio says it
/// (`pilot/pkg/networking/util/util.go`).
fn serves(service: &Service) -> Metadata {
    let text = |value: &str| Value { kind: Some(Kind::StringValue(value.to_owned())) };
    let names = [("host", &service.host), ("namespace", &service.namespace)];
    let fields = names.into_iter().map(|(name, value)| (name.to_owned(), text(value))).collect();
    let one = Value { kind: Some(Kind::StructValue(Struct { fields })) };
    let list = Value { kind: Some(Kind::ListValue(ListValue { values: vec![one] })) };
    let istio = Struct { fields: [("services".to_owned(), list)].into() };
    Metadata { filter_metadata: BTreeMap::from([("istio".to_owned(), istio)]) }
}

/// To the address that the connection came for.
fn original(name: &str) -> Cluster {
    Cluster {
        lb_policy: LbPolicy::ClusterProvided.into(),
        cleanup_interval: Some(Duration { seconds: 60, nanos: 0 }),
        ..base(name, DiscoveryType::OriginalDst)
    }
}

fn base(name: &str, kind: DiscoveryType) -> Cluster {
    Cluster {
        name: name.to_owned(),
        r#type: kind.into(),
        connect_timeout: Some(CONNECT_TIMEOUT),
        ..Default::default()
    }
}

fn speak(options: UpstreamProtocolOptions) -> BTreeMap<String, Any> {
    let options = HttpProtocolOptions { upstream_protocol_options: Some(options) };
    let url = format!("type.googleapis.com/{HTTP_OPTIONS}");
    BTreeMap::from([(HTTP_OPTIONS.to_owned(), pack(&url, &options))])
}

/// The default of Istio's MeshConfig.
const CONNECT_TIMEOUT: Duration = Duration { seconds: 10, nanos: 0 };
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
