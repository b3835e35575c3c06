//! The configuration that the mesh sends: one cluster and one listener, so that a proxy visibly
//! has something, and the name table. No proxy's wishes are known here.

use std::collections::BTreeMap;

use prost::Message;
use prost_types::{Any, Duration};

use crate::proto::nds::{NameInfo, NameTable};

/// The type URL of clusters.
pub const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// The type URL of listeners.
pub const LISTENERS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// The type URL of the name table.
pub const NAME_TABLE: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";
/// The type URL of health reports, which nobody answers.
pub const HEALTH: &str = "type.googleapis.com/istio.v1.HealthInformation";
/// The name of the one cluster and the one listener.
pub const STATIC_NAME: &str = "devmesh";

/// The resources of a type, with their names; `None` for a type that istiod does not answer.
pub(super) fn of(type_url: &str, names: &BTreeMap<String, NameInfo>) -> Option<Vec<(String, Any)>> {
    let one = |name: &str, value: Vec<u8>| {
        vec![(name.to_owned(), Any { type_url: type_url.to_owned(), value })]
    };
    match type_url {
        CLUSTERS => Some(one(STATIC_NAME, cluster().encode_to_vec())),
        LISTENERS => Some(one(STATIC_NAME, listener().encode_to_vec())),
        NAME_TABLE => {
            Some(one("", NameTable { table: names.clone().into_iter().collect() }.encode_to_vec()))
        }
        // istiod has no generator for these (`istio.mesh` only with several roots).
        HEALTH | "istio.io/debug" => None,
        other if other.ends_with("/istio.mesh.v1alpha1.ProxyConfig") => None,
        _ => Some(Vec::new()),
    }
}

fn cluster() -> Cluster {
    Cluster {
        name: STATIC_NAME.to_owned(),
        connect_timeout: Some(Duration { seconds: 5, nanos: 0 }),
        load_assignment: Some(Assignment { cluster_name: STATIC_NAME.to_owned() }),
    }
}

/// A listener without a socket: it takes no port of the machine.
fn listener() -> Listener {
    let proxy = TcpProxy { stat_prefix: STATIC_NAME.to_owned(), cluster: STATIC_NAME.to_owned() };
    let typed_config = Some(Any { type_url: TCP_PROXY.to_owned(), value: proxy.encode_to_vec() });
    let name = "envoy.filters.network.tcp_proxy".to_owned();
    let socket = SocketAddress { address: "127.0.0.1".to_owned(), port: 1 };
    Listener {
        name: STATIC_NAME.to_owned(),
        address: Some(Address { socket: Some(socket) }),
        filter_chains: vec![FilterChain { filters: vec![Filter { name, typed_config }] }],
        bind_to_port: Some(false),
    }
}

const TCP_PROXY: &str =
    "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

// The few fields of Envoy's messages that are needed here, with their field numbers from
// envoy/config/{cluster,endpoint,listener,core}/v3 and the TCP proxy's configuration.

#[derive(Clone, PartialEq, Message)]
struct Cluster {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "4")]
    connect_timeout: Option<Duration>,
    #[prost(message, optional, tag = "33")]
    load_assignment: Option<Assignment>,
}

#[derive(Clone, PartialEq, Message)]
struct Assignment {
    #[prost(string, tag = "1")]
    cluster_name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Listener {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    address: Option<Address>,
    #[prost(message, repeated, tag = "3")]
    filter_chains: Vec<FilterChain>,
    // google.protobuf.BoolValue
    #[prost(message, optional, tag = "26")]
    bind_to_port: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct Address {
    #[prost(message, optional, tag = "1")]
    socket: Option<SocketAddress>,
}

#[derive(Clone, PartialEq, Message)]
struct SocketAddress {
    #[prost(string, tag = "2")]
    address: String,
    #[prost(uint32, tag = "3")]
    port: u32,
}

#[derive(Clone, PartialEq, Message)]
struct FilterChain {
    #[prost(message, repeated, tag = "3")]
    filters: Vec<Filter>,
}

#[derive(Clone, PartialEq, Message)]
struct Filter {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "4")]
    typed_config: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct TcpProxy {
    #[prost(string, tag = "1")]
    stat_prefix: String,
    #[prost(string, tag = "2")]
    cluster: String,
}
