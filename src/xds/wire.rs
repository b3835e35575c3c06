//! What the relay reads and writes of discovery messages. It skips resources and never decodes them.

use bytes::Bytes;
use prost::Message;

use super::Health;
use crate::proto::discovery::{DeltaDiscoveryRequest, DiscoveryRequest, Status};
use crate::proto::fields::{Field, Fields, Malformed, text};
use crate::proto::names::Names;

/// The two flavours of the protocol, which number their fields differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavour {
    Delta,
    StateOfTheWorld,
}

impl Flavour {
    /// The flavour that this path asks for.
    pub(super) fn of_path(path: &str) -> Option<Self> {
        [Self::Delta, Self::StateOfTheWorld].into_iter().find(|flavour| flavour.path() == path)
    }

    /// The path of the method.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Delta => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
            }
            Self::StateOfTheWorld => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
            }
        }
    }

    /// What is of interest in a request.
    pub(super) fn request(self, message: &[u8]) -> Result<Request<'_>, Malformed> {
        let (type_url, nonce, error) = match self {
            Self::Delta => (2, 6, 7),
            Self::StateOfTheWorld => (4, 5, 6),
        };
        let mut found = Request::default();
        for field in Fields(message) {
            let Field { number, payload, .. } = field?;
            if number == type_url {
                found.type_url = text(payload)?;
            } else if number == nonce {
                found.nonce = text(payload)?;
            } else if number == error {
                found.error = Some(status_message(payload)?);
            }
        }
        Ok(found)
    }

    /// What is of interest in a response; both flavours number these fields alike.
    pub(super) fn response(self, message: &[u8]) -> Result<Response<'_>, Malformed> {
        let mut found = Response::default();
        for field in Fields(message) {
            let Field { number, payload, .. } = field?;
            match number {
                1 => found.version = text(payload)?,
                4 => found.type_url = text(payload)?,
                5 => found.nonce = text(payload)?,
                _ => {}
            }
        }
        Ok(found)
    }

    /// A first request for everything of a type.
    pub(super) fn subscription(self, type_url: &str) -> Bytes {
        self.answer(type_url, &Response::default(), None)
    }

    /// The answer to a response: an acknowledgement, or a refusal with its reason.
    pub(super) fn answer(
        self,
        type_url: &str,
        to: &Response<'_>,
        refusal: Option<String>,
    ) -> Bytes {
        let type_url = type_url.to_owned();
        let response_nonce = to.nonce.to_owned();
        let error_detail = refusal.map(|message| Status { code: INTERNAL, message });
        let encoded = match self {
            Self::Delta => DeltaDiscoveryRequest {
                type_url,
                response_nonce,
                error_detail,
                ..Default::default()
            }
            .encode_to_vec(),
            Self::StateOfTheWorld => DiscoveryRequest {
                version_info: to.version.to_owned(),
                type_url,
                response_nonce,
                error_detail,
                ..Default::default()
            }
            .encode_to_vec(),
        };
        encoded.into()
    }

    /// A report of the workload's health.
    pub(super) fn health(self, health: &Health) -> Bytes {
        let trouble = match health {
            Health::Healthy => None,
            Health::Unhealthy { message } | Health::Leaving { message } => Some(message.clone()),
        };
        self.answer(HEALTH, &Response::default(), trouble)
    }

    /// The name table in a response, within its limits; `None` when the response holds no resource.
    pub(super) fn name_table(self, message: &[u8]) -> Result<Option<Names>, Malformed> {
        let Some(resource) = only(message, 2)? else { return Ok(None) };
        let any = match self {
            Self::Delta => only(resource, 2)?,
            Self::StateOfTheWorld => Some(resource),
        };
        any.map(|any| Names::decode(only(any, 2)?.unwrap_or_default())).transpose()
    }
}

/// The first payload with this number of a message that is whole.
fn only(message: &[u8], number: u64) -> Result<Option<&[u8]>, Malformed> {
    let mut found = None;
    for field in Fields(message) {
        let field = field?;
        if field.number == number && found.is_none() {
            found = Some(field.payload.ok_or(Malformed)?);
        }
    }
    Ok(found)
}

/// The parts of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Request<'a> {
    pub(super) type_url: &'a str,
    /// The nonce of the response that this answers; empty for a subscription.
    pub(super) nonce: &'a str,
    /// Present when the response is refused, with the reason.
    pub(super) error: Option<&'a str>,
}

/// The parts of a response.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Response<'a> {
    pub(super) type_url: &'a str,
    pub(super) nonce: &'a str,
    pub(super) version: &'a str,
}

/// Whether Envoy understands this type.
pub(super) fn is_for_envoy(type_url: &str) -> bool {
    type_url.starts_with(ENVOY_TYPES) || WORKLOAD_TYPES.contains(&type_url)
}

/// The message of a `google.rpc.Status`.
fn status_message(payload: Option<&[u8]>) -> Result<&str, Malformed> {
    let mut message = "";
    for field in Fields(payload.ok_or(Malformed)?) {
        let Field { number, payload, .. } = field?;
        if number == 2 {
            message = text(payload)?;
        }
    }
    Ok(message)
}

/// Listeners: the first request for them is our turn to speak.
pub(super) const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Clusters.
pub(super) const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Endpoints of clusters.
pub(super) const ENDPOINTS: &str =
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Routes of listeners.
pub(super) const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// The name table (Istio's `pkg/model/xds.go`).
pub(super) const NAME_TABLE: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";
/// Health reports; istiod never responds to them.
pub(super) const HEALTH: &str = "type.googleapis.com/istio.v1.HealthInformation";
const ENVOY_TYPES: &str = "type.googleapis.com/envoy.";
/// Istio's own types that Istio's Envoy knows.
const WORKLOAD_TYPES: [&str; 2] =
    ["type.googleapis.com/istio.workload.Workload", "type.googleapis.com/istio.workload.Address"];
/// The code that Istio puts into refusals and reports of bad health (gRPC INTERNAL).
const INTERNAL: i32 = 13;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::discovery::DiscoveryResponse;

    const BOTH: [Flavour; 2] = [Flavour::Delta, Flavour::StateOfTheWorld];

    #[test]
    fn type_nonce_and_refusal_are_found_in_both_flavours() {
        for flavour in BOTH {
            let to = Response { type_url: "", nonce: "n1", version: "v1" };
            let message = flavour.answer("t", &to, Some("no such cluster".to_owned()));
            let request = flavour.request(&message).unwrap();
            assert_eq!((request.type_url, request.nonce), ("t", "n1"));
            assert_eq!(request.error, Some("no such cluster"));
        }
    }

    #[test]
    fn only_the_state_of_the_world_answer_repeats_the_version() {
        let to = Response { type_url: "", nonce: "n", version: "v7" };
        let message = Flavour::StateOfTheWorld.answer("t", &to, None);
        assert_eq!(DiscoveryRequest::decode(message).unwrap().version_info, "v7");
        assert!(!Flavour::Delta.answer("t", &to, None).windows(2).any(|two| two == b"v7"));
    }

    #[test]
    fn good_health_has_no_error_and_bad_health_has_istios_code() {
        let good = Flavour::Delta.health(&Health::Healthy);
        assert_eq!(DeltaDiscoveryRequest::decode(good).unwrap().error_detail, None);
        let bad = Health::Unhealthy { message: "HTTP 503".to_owned() };
        let bad = DeltaDiscoveryRequest::decode(Flavour::Delta.health(&bad)).unwrap();
        assert_eq!(bad.type_url, HEALTH);
        assert_eq!(bad.error_detail, Some(Status { code: 13, message: "HTTP 503".to_owned() }));
    }

    #[test]
    fn only_types_that_envoy_knows_are_for_envoy() {
        assert!(is_for_envoy(LISTENER));
        assert!(is_for_envoy("type.googleapis.com/istio.workload.Workload"));
        for foreign in [NAME_TABLE, "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig", ""] {
            assert!(!is_for_envoy(foreign), "{foreign}");
        }
    }

    #[test]
    fn truncated_and_mistyped_messages_are_malformed() {
        for bad in [&[0x0a, 5, b'x'][..], &[0xff; 11], &[0x0b], &[0x02, 0], &[0x20, 1]] {
            assert_eq!(Flavour::Delta.response(bad), Err(Malformed), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn the_scanner_takes_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for flavour in BOTH {
                drop(flavour.request(&bytes));
                drop(flavour.response(&bytes));
            }
        }

        #[test]
        fn what_prost_decodes_the_scanner_reads_alike(
            bytes in proptest::collection::vec(0u8..64, 0..24),
        ) {
            if let Ok(decoded) = DiscoveryResponse::decode(bytes.as_slice()) {
                // Groups are the one thing that only prost accepts.
                if let Ok(found) = Flavour::StateOfTheWorld.response(&bytes) {
                    prop_assert_eq!(found.type_url, decoded.type_url);
                    prop_assert_eq!(found.nonce, decoded.nonce);
                    prop_assert_eq!(found.version, decoded.version_info);
                }
            }
        }
    }
}
