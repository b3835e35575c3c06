//! What holds for any bytes of Envoy or istiod. The fuzz targets look for bytes for which it does not.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message;
use tonic::body::Body;

use super::frames::Incoming;
use super::node::restated;
use super::scan::inbound_port;
use super::wire::Flavour;
use crate::proto::discovery::DiscoveryResponse;
use crate::proto::names;
use crate::workload::Workload;

/// A discovery message in either direction, of either flavour.
pub fn check_message(bytes: &[u8], workload: &Workload) {
    let message = Bytes::copy_from_slice(bytes);
    let own: Vec<String> = workload.instance_ips.iter().map(ToString::to_string).collect();
    for flavour in [Flavour::Delta, Flavour::StateOfTheWorld] {
        let again = restated(flavour, &message, workload).unwrap_or_else(|| message.clone());
        let third = restated(flavour, &again, workload).unwrap_or_else(|| again.clone());
        assert_eq!(third, again, "it has the node already");
        if let Ok(request) = flavour.request(bytes) {
            assert_eq!(flavour.request(&again), Ok(request), "only the node is another");
        }
        if let (Ok(found), Ok(decoded)) =
            (flavour.response(bytes), DiscoveryResponse::decode(bytes))
        {
            assert_eq!(found.type_url, decoded.type_url);
            assert_eq!((found.nonce, found.version), (&*decoded.nonce, &*decoded.version_info));
        }
        let clusters: Vec<&str> = flavour.cluster_names(bytes).collect();
        assert!(clusters.concat().len() <= bytes.len());
        let inbound = clusters.iter().filter(|name| inbound_port(name).is_some());
        assert!(inbound.clone().all(|name| name.starts_with("inbound|")));
        assert!(flavour.removed_names(bytes).map(str::len).sum::<usize>() <= bytes.len());
        let held = flavour.held_clusters(bytes).unwrap_or_default();
        assert!(held.concat().len() <= bytes.len());
        for assignment in flavour.assignments(bytes) {
            assert!(assignment.cluster().is_none_or(|cluster| cluster.len() <= bytes.len()));
            assert!(assignment.ports_at(&own).count() <= bytes.len());
            assert_eq!(assignment.ports_at(&[]).count(), 0, "it asked for no address");
        }
        if let Ok(Some(found)) = flavour.name_table(bytes) {
            assert!(found.table.encoded_len() <= names::BYTES);
            assert!(
                found.table.table.keys().all(|name| (1..=names::NAME + 1).contains(&name.len()))
            );
        }
    }
}

/// A body with messages: however it is cut, the same messages arrive, and all of it is in them.
pub fn check_frames(bytes: &[u8], piece: u8) {
    let whole = received(bytes, usize::MAX);
    assert_eq!(received(bytes, usize::from(piece).max(1)), whole);
    let (messages, end) = whole;
    let taken: usize = messages.iter().map(|message| message.len() + HEADER).sum();
    assert!(messages.iter().all(|message| message.len() <= LIMIT));
    assert!(if end.is_ok() { taken == bytes.len() } else { taken < bytes.len() });
}

fn received(bytes: &[u8], piece: usize) -> (Vec<Bytes>, Result<(), tonic::Code>) {
    let pieces: Vec<_> = bytes
        .chunks(piece)
        .map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(piece))))
        .collect();
    let mut incoming = Incoming::new(Body::new(StreamBody::new(stream::iter(pieces))), LIMIT);
    let mut messages = Vec::new();
    loop {
        match incoming.next().now_or_never() {
            Some(Ok(Some(message))) => messages.push(message),
            Some(Ok(None)) => return (messages, Ok(())),
            Some(Err(status)) => return (messages, Err(status.code())),
            None => return (messages, Err(tonic::Code::Unknown)),
        }
    }
}

/// The length of the header of a message.
const HEADER: usize = 5;
/// Small, so that both sides of it are reached.
const LIMIT: usize = 1 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::xds::tests::workload;

    proptest! {
        #[test]
        fn it_holds_for_some_bytes(
            bytes in proptest::collection::vec(prop_oneof![0u8..64, any::<u8>()], 0..200),
            piece in any::<u8>(),
        ) {
            check_message(&bytes, &workload("10.0.0.2"));
            check_frames(&bytes, piece);
        }
    }
}
