//! Names and addresses in the resources that istiod sends and Envoy holds. It reads the few fields
//! that it needs (Envoy `api/envoy/config/{cluster,endpoint,core}/v3`) and decodes nothing else.

use super::wire::Flavour;
use crate::proto::fields::{Fields, payloads};

impl Flavour {
    /// The names of the resources in a response for clusters.
    pub(super) fn cluster_names(self, message: &[u8]) -> impl Iterator<Item = &str> {
        let resources = payloads(message, 2);
        let names: Box<dyn Iterator<Item = &[u8]>> = match self {
            Self::Delta => Box::new(resources.flat_map(|resource| payloads(resource, 3))),
            // The name is in the cluster, which is in an `Any`.
            Self::StateOfTheWorld => Box::new(
                resources.flat_map(|any| payloads(any, 2)).flat_map(|cluster| payloads(cluster, 1)),
            ),
        };
        names.filter_map(|name| std::str::from_utf8(name).ok())
    }

    /// The names of the resources that a response takes away. State-of-the-world responses for
    /// clusters hold all clusters and take away what they do not name.
    pub(super) fn removed_names(self, message: &[u8]) -> impl Iterator<Item = &str> {
        let removed = (self == Self::Delta).then(|| payloads(message, 6));
        removed.into_iter().flatten().filter_map(|name| std::str::from_utf8(name).ok())
    }

    /// The `ClusterLoadAssignment`s in a response for endpoints.
    pub(super) fn assignments(self, message: &[u8]) -> impl Iterator<Item = Assignment<'_>> {
        let resources = payloads(message, 2);
        let any: Box<dyn Iterator<Item = &[u8]>> = match self {
            Self::Delta => Box::new(resources.flat_map(|resource| payloads(resource, 2))),
            Self::StateOfTheWorld => Box::new(resources),
        };
        any.flat_map(|any| payloads(any, 2)).map(Assignment)
    }

    /// The clusters that Envoy holds at the beginning of a stream, by its first request for them;
    /// `None` when it holds none. Only delta requests name them.
    pub(super) fn held_clusters(self, request: &[u8]) -> Option<Vec<&str>> {
        let field = match self {
            Self::Delta => 5,
            Self::StateOfTheWorld => 1,
        };
        let mut held = payloads(request, field).filter(|value| !value.is_empty()).peekable();
        held.peek()?;
        let names = held.filter(|_| self == Self::Delta).flat_map(|entry| payloads(entry, 1));
        Some(names.filter_map(|name| std::str::from_utf8(name).ok()).collect())
    }
}

/// The endpoints of one cluster.
pub(super) struct Assignment<'a>(&'a [u8]);

impl<'a> Assignment<'a> {
    /// The cluster.
    pub(super) fn cluster(&self) -> Option<&'a str> {
        payloads(self.0, 1).next().and_then(|name| std::str::from_utf8(name).ok())
    }

    /// The ports of its endpoints at these addresses.
    pub(super) fn ports_at(&self, addresses: &[String]) -> impl Iterator<Item = u16> {
        let localities = payloads(self.0, 2);
        let endpoints = localities
            .flat_map(|locality| payloads(locality, 2))
            .flat_map(|endpoint| payloads(endpoint, 1));
        let sockets = endpoints
            .flat_map(|endpoint| payloads(endpoint, 1))
            .flat_map(|address| payloads(address, 1));
        sockets.filter_map(move |socket| {
            let is_at = |address: &[u8]| addresses.iter().any(|own| own.as_bytes() == address);
            payloads(socket, 2).any(is_at).then(|| port(socket)).flatten()
        })
    }
}

/// The `port_value` of a `SocketAddress`.
fn port(socket: &[u8]) -> Option<u16> {
    let mut fields = Fields(socket).map_while(Result::ok);
    fields.find(|field| field.number == 3).and_then(|field| u16::try_from(field.varint?).ok())
}

/// The port of a cluster for a service of the workload itself, `inbound|PORT|…` (Istio
/// `pilot/pkg/model/push_context.go`, `BuildSubsetKey`).
pub(super) fn inbound_port(cluster: &str) -> Option<u16> {
    cluster.strip_prefix("inbound|")?.split('|').next()?.parse().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::proto::discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        Resource,
    };
    use crate::xds::wire::{CLUSTER, ENDPOINTS};

    const BOTH: [Flavour; 2] = [Flavour::Delta, Flavour::StateOfTheWorld];

    fn put(to: &mut Vec<u8>, number: u8, payload: &[u8]) {
        to.push(number << 3 | 2);
        prost::encoding::encode_varint(payload.len() as u64, to);
        to.extend_from_slice(payload);
    }

    fn wrapped(number: u8, payload: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        put(&mut message, number, payload);
        message
    }

    fn of(flavour: Flavour, type_url: &str, resources: &[(&str, Vec<u8>)]) -> Bytes {
        let type_url = type_url.to_owned();
        let any =
            |value: &Vec<u8>| prost_types::Any { type_url: type_url.clone(), value: value.clone() };
        match flavour {
            Flavour::Delta => {
                let resource = |(name, value): &(&str, Vec<u8>)| Resource {
                    name: (*name).to_owned(),
                    resource: Some(any(value)),
                    ..Default::default()
                };
                let resources = resources.iter().map(resource).collect();
                let nonce = "n".to_owned();
                DeltaDiscoveryResponse {
                    type_url: type_url.clone(),
                    nonce,
                    resources,
                    ..Default::default()
                }
                .encode_to_vec()
            }
            Flavour::StateOfTheWorld => DiscoveryResponse {
                type_url: type_url.clone(),
                nonce: "n".to_owned(),
                version_info: "v".to_owned(),
                resources: resources.iter().map(|(_, value)| any(value)).collect(),
            }
            .encode_to_vec(),
        }
        .into()
    }

    /// A response with clusters of these names.
    pub(in crate::xds) fn clusters(flavour: Flavour, names: &[&str]) -> Bytes {
        let cluster = |name: &&str| wrapped(1, name.as_bytes());
        let resources: Vec<_> = names.iter().map(|name| (*name, cluster(name))).collect();
        of(flavour, CLUSTER, &resources)
    }

    /// A response with one cluster's endpoints.
    pub(in crate::xds) fn endpoints(flavour: Flavour, name: &str, at: &[(&str, u16)]) -> Bytes {
        let mut assignment = wrapped(1, name.as_bytes());
        let mut locality = Vec::new();
        for (address, port) in at {
            let mut socket = wrapped(2, address.as_bytes());
            socket.push(3 << 3);
            prost::encoding::encode_varint(u64::from(*port), &mut socket);
            let endpoint = wrapped(1, &wrapped(1, &socket));
            put(&mut locality, 2, &wrapped(1, &endpoint));
        }
        put(&mut assignment, 2, &locality);
        of(flavour, ENDPOINTS, &[(name, assignment)])
    }

    #[test]
    fn clusters_and_endpoints_are_found_in_both_flavours() {
        for flavour in BOTH {
            let names = ["outbound|80||a.example", "inbound|9080||"];
            let message = clusters(flavour, &names);
            assert_eq!(flavour.cluster_names(&message).collect::<Vec<_>>(), names);
            let at = [("10.0.0.1", 9080), ("10.0.0.2", 9081), ("fd00::1", 65535)];
            let message = endpoints(flavour, "outbound|80||a.example", &at);
            let own = ["10.0.0.1".to_owned(), "fd00::1".to_owned()];
            let found: Vec<_> = flavour.assignments(&message).collect();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].cluster(), Some("outbound|80||a.example"));
            assert_eq!(found[0].ports_at(&own).collect::<Vec<_>>(), [9080, 65535]);
        }
    }

    #[test]
    fn what_envoy_holds_and_istiod_takes_away_is_named_by_delta_messages() {
        let versions = [("inbound|9080||".to_owned(), "1".to_owned())].into();
        let request =
            DeltaDiscoveryRequest { initial_resource_versions: versions, ..Default::default() };
        let request = request.encode_to_vec();
        assert_eq!(Flavour::Delta.held_clusters(&request), Some(vec!["inbound|9080||"]));
        let new = DeltaDiscoveryRequest::default().encode_to_vec();
        assert_eq!(Flavour::Delta.held_clusters(&new), None);
        let request = DiscoveryRequest { version_info: "v".to_owned(), ..Default::default() };
        let request = request.encode_to_vec();
        assert_eq!(Flavour::StateOfTheWorld.held_clusters(&request), Some(Vec::new()));
        assert_eq!(Flavour::StateOfTheWorld.held_clusters(&[]), None);
        let response = DeltaDiscoveryResponse {
            removed_resources: vec!["inbound|9080||".to_owned()],
            ..Default::default()
        };
        let response = response.encode_to_vec();
        let removed: Vec<_> = Flavour::Delta.removed_names(&response).collect();
        assert_eq!(removed, ["inbound|9080||"]);
    }

    #[test]
    fn inbound_clusters_are_told_from_others() {
        for (name, port) in [
            ("inbound|9080||", Some(9080)),
            ("inbound|9080|http|details.example", Some(9080)),
            ("inbound-vip|80|http|a", None),
            ("InboundPassthroughCluster", None),
            ("outbound|80||a", None),
            ("inbound|x||", None),
        ] {
            assert_eq!(inbound_port(name), port, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_scanned(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let own = ["10.0.0.1".to_owned()];
            for flavour in BOTH {
                flavour.cluster_names(&bytes).for_each(drop);
                flavour.removed_names(&bytes).for_each(drop);
                drop(flavour.held_clusters(&bytes));
                for assignment in flavour.assignments(&bytes) {
                    _ = assignment.cluster();
                    assignment.ports_at(&own).for_each(drop);
                }
            }
        }
    }
}
