//! Endpoints: the healthy ones of a service, by locality, with their weights.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{View, at, transport};
use crate::devmesh::catalog::{Endpoint as Known, Port, Resolution, Service};
use crate::proto::envoy::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, Locality, LocalityLbEndpoints,
};

pub(super) fn endpoints(view: &View<'_>) -> Vec<ClusterLoadAssignment> {
    let listed = view.services().filter(|service| service.resolution == Resolution::Static);
    let each = |service| move |port| assignment(view, service, port);
    listed.flat_map(|service| service.ports.iter().map(each(service))).collect()
}

/// The endpoints for one port of a service.
pub(super) fn assignment(view: &View<'_>, service: &Service, port: &Port) -> ClusterLoadAssignment {
    let mut places = BTreeMap::<&str, Vec<LbEndpoint>>::new();
    let by_name = service.resolution == Resolution::Dns;
    let reachable =
        |one: &&Known| one.healthy && (by_name || one.address.parse::<IpAddr>().is_ok());
    for one in service.endpoints.iter().filter(reachable) {
        places.entry(&one.locality).or_default().push(LbEndpoint {
            endpoint: Some(Endpoint { address: Some(at(&one.address, one.port(port))) }),
            metadata: view.is_secured(one).then(transport::mark),
            load_balancing_weight: Some(one.weight),
        });
    }
    if by_name && service.endpoints.is_empty() && !service.is_pattern() {
        // The host itself is the endpoint.
        places.entry("").or_default().push(LbEndpoint {
            endpoint: Some(Endpoint { address: Some(at(&service.host, port.number)) }),
            metadata: None,
            load_balancing_weight: Some(1),
        });
    }
    let place = |(name, all): (&str, Vec<LbEndpoint>)| LocalityLbEndpoints {
        locality: Some(locality(name)),
        load_balancing_weight: Some(
            all.iter().filter_map(|one| one.load_balancing_weight).fold(0, u32::saturating_add),
        ),
        lb_endpoints: all,
    };
    let endpoints = places.into_iter().map(place).collect();
    ClusterLoadAssignment { cluster_name: service.cluster(port), endpoints }
}

fn locality(name: &str) -> Locality {
    let mut parts = name.splitn(3, '/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Locality { region: next(), zone: next(), sub_zone: next() }
}
