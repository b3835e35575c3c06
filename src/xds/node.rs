//! Envoy's `node`, said anew. Envoy tells for its whole life what stood in its bootstrap; what has
//! changed since is put in its place: addresses, labels, network, locality. All else stays as Envoy
//! encoded it (Envoy `api/envoy/config/core/v3/base.proto`, Istio `pkg/model/proxy.go`).

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use prost_types::value::Kind;
use prost_types::{Struct, Value};

use super::wire::Flavour;
use crate::proto::discovery::Locality;
use crate::proto::fields::{Field, Fields, Malformed};
use crate::workload::Workload;

/// The request with the node as this workload's; `None` where it has no node, says the same already, or
/// cannot be read: it stays as it is.
pub(super) fn restated(flavour: Flavour, request: &[u8], workload: &Workload) -> Option<Bytes> {
    match request_of(flavour, request, workload) {
        Ok(restated) => restated.map(Bytes::from),
        Err(error) => {
            tracing::debug!(%error, "A request of Envoy is passed on as it is.");
            None
        }
    }
}

fn request_of(
    flavour: Flavour,
    request: &[u8],
    workload: &Workload,
) -> Result<Option<Vec<u8>>, Malformed> {
    let node_field = match flavour {
        Flavour::Delta => 1,
        Flavour::StateOfTheWorld => 2,
    };
    let (mut rest, mut found) = (Vec::with_capacity(request.len()), None);
    for field in Fields(request) {
        let Field { number, payload, raw, .. } = field?;
        match payload.filter(|_| number == node_field) {
            Some(node) => found = node_of(node, workload)?,
            None => rest.extend_from_slice(raw),
        }
    }
    let Some(node) = found else { return Ok(None) };
    put(&mut rest, node_field, &node);
    Ok(Some(rest))
}

/// `None` when it is this workload's.
fn node_of(node: &[u8], workload: &Workload) -> Result<Option<Vec<u8>>, Malformed> {
    let mut restated = Vec::with_capacity(node.len());
    let (mut differs, mut found) = (false, Locality::default());
    for field in Fields(node) {
        let Field { number, payload, raw, .. } = field?;
        match (number, payload) {
            (ID, Some(id)) => {
                let id = std::str::from_utf8(id).map_err(|_| Malformed)?;
                let now = id_of(id, workload);
                differs |= now != id;
                put(&mut restated, ID, now.as_bytes());
            }
            (METADATA, Some(metadata)) => {
                let metadata = Struct::decode(metadata).map_err(|_| Malformed)?;
                let now = metadata_of(metadata.clone(), workload);
                differs |= now != metadata;
                put(&mut restated, METADATA, &now.encode_to_vec());
            }
            (LOCALITY, Some(locality)) => {
                found = Locality::decode(locality).map_err(|_| Malformed)?;
            }
            _ => restated.extend_from_slice(raw),
        }
    }
    let locality = workload.locality.as_ref().map_or_else(Locality::default, |locality| Locality {
        region: locality.region.clone(),
        zone: locality.zone.clone(),
        sub_zone: locality.sub_zone.clone(),
    });
    differs |= locality != found;
    if workload.locality.is_some() {
        put(&mut restated, LOCALITY, &locality.encode_to_vec());
    }
    Ok(differs.then_some(restated))
}

/// `sidecar~IP~NAME.NAMESPACE~DOMAIN` with the machine's first address.
fn id_of(id: &str, workload: &Workload) -> String {
    let mut parts: Vec<&str> = id.split('~').collect();
    let ip = workload.instance_ips.first().map(ToString::to_string);
    if let (Some(place), Some(ip)) = (parts.get_mut(1), &ip) {
        *place = ip;
    }
    parts.join("~")
}

fn metadata_of(mut metadata: Struct, workload: &Workload) -> Struct {
    let ips: Vec<String> = workload.instance_ips.iter().map(ToString::to_string).collect();
    for (name, value) in [
        ("INSTANCE_IPS", text(&ips.join(","))),
        ("LABELS", texts(&workload.labels)),
        ("NETWORK", text(&workload.network)),
        ("STATIC_LABELS", texts(&workload.labels)),
    ] {
        metadata.fields.insert(name.to_owned(), value);
    }
    metadata
}

fn text(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

fn texts(map: &BTreeMap<String, String>) -> Value {
    let fields = map.iter().map(|(name, value)| (name.clone(), text(value))).collect();
    Value { kind: Some(Kind::StructValue(Struct { fields })) }
}

/// Writes a length-delimited field.
fn put(to: &mut Vec<u8>, number: u64, payload: &[u8]) {
    prost::encoding::encode_varint(number << 3 | 2, to);
    prost::encoding::encode_varint(payload.len() as u64, to);
    to.extend_from_slice(payload);
}

const ID: u64 = 1;
const METADATA: u64 = 3;
const LOCALITY: u64 = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::SpiffeId;
    use crate::proto::discovery::{DeltaDiscoveryRequest, DiscoveryRequest, Node};

    fn workload() -> Workload {
        Workload {
            name: "vm1".to_owned(),
            id: SpiffeId::parse("spiffe://cluster.local/ns/vms/sa/client").unwrap(),
            group: None,
            address: "10.0.0.2".parse().unwrap(),
            instance_ips: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            labels: [("app".to_owned(), "new".to_owned())].into(),
            ports: BTreeMap::new(),
            network: "n2".to_owned(),
            locality: Some("eu/b".parse().unwrap()),
            weight: None,
        }
    }

    fn node() -> Node {
        let fields = [
            ("INSTANCE_IPS", text("10.0.0.1")),
            ("LABELS", texts(&[("app".to_owned(), "old".to_owned())].into())),
            ("NAMESPACE", text("vms")),
        ];
        let fields = fields.map(|(name, value)| (name.to_owned(), value)).into();
        Node {
            id: "sidecar~10.0.0.1~vm1.vms~vms.svc.cluster.local".to_owned(),
            cluster: "old.vms".to_owned(),
            metadata: Some(Struct { fields }),
            locality: Some(Locality { region: "us".to_owned(), ..Default::default() }),
        }
    }

    /// The node with a field that our schema does not have, as Envoy's is full of.
    fn encoded_node() -> Vec<u8> {
        let mut bytes = node().encode_to_vec();
        put(&mut bytes, 6, b"envoy");
        bytes
    }

    fn check(node: &[u8]) {
        assert!(node.windows(5).any(|five| five == b"envoy"), "what we do not know stays");
        let node = Node::decode(node).unwrap();
        assert_eq!(node.id, "sidecar~10.0.0.2~vm1.vms~vms.svc.cluster.local");
        assert_eq!(node.cluster, "old.vms");
        let locality = node.locality.unwrap();
        assert_eq!((locality.region.as_str(), locality.zone.as_str()), ("eu", "b"));
        let fields = node.metadata.unwrap().fields;
        assert_eq!(fields["INSTANCE_IPS"], text("10.0.0.2,fd00::2"));
        assert_eq!(fields["LABELS"], texts(&workload().labels));
        assert_eq!((&fields["NAMESPACE"], &fields["NETWORK"]), (&text("vms"), &text("n2")));
    }

    #[test]
    fn both_flavours_tell_the_new_node_and_all_else_as_before() {
        let mut delta = DeltaDiscoveryRequest { type_url: "t".to_owned(), ..Default::default() }
            .encode_to_vec();
        put(&mut delta, 1, &encoded_node());
        let restated = restated(Flavour::Delta, &delta, &workload()).unwrap();
        let fields: Vec<_> = Fields(&restated).map(Result::unwrap).collect();
        check(fields.iter().find(|field| field.number == 1).unwrap().payload.unwrap());
        assert_eq!(DeltaDiscoveryRequest::decode(restated.clone()).unwrap().type_url, "t");
        assert_eq!(super::restated(Flavour::Delta, &restated, &workload()), None, "it says so");

        let mut world =
            DiscoveryRequest { type_url: "t".to_owned(), ..Default::default() }.encode_to_vec();
        put(&mut world, 2, &encoded_node());
        let restated = super::restated(Flavour::StateOfTheWorld, &world, &workload()).unwrap();
        let fields: Vec<_> = Fields(&restated).map(Result::unwrap).collect();
        check(fields.iter().find(|field| field.number == 2).unwrap().payload.unwrap());
    }

    #[test]
    fn a_request_without_a_node_stays_as_it_is() {
        let request = DeltaDiscoveryRequest { type_url: "t".to_owned(), ..Default::default() };
        assert_eq!(restated(Flavour::Delta, &request.encode_to_vec(), &workload()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_passed_on(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for flavour in [Flavour::Delta, Flavour::StateOfTheWorld] {
                let restated = restated(flavour, &bytes, &workload());
                prop_assert!(restated.is_none_or(|restated| !restated.is_empty()));
            }
        }
    }
}
