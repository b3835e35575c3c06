//! Our own messages on the proxy's stream: made, recognised, answered.
//!
//! Type URLs: Istio `pkg/model/xds.go`. Rules: Istio `pkg/istio-agent/xds_proxy.go`.

use bytes::Bytes;
use prost::Message;

use super::Health;
use super::scan::Outline;
use crate::proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Status,
};
use crate::proto::nds::NameTable;

/// The two flavours of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavour {
    StateOfTheWorld,
    Delta,
}

impl Flavour {
    /// The method's path.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::StateOfTheWorld => SOTW_PATH,
            Self::Delta => DELTA_PATH,
        }
    }
}

/// What a response is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// For the proxy.
    Proxy,
    /// The name table: for us.
    Names,
    /// For nobody here.
    Foreign,
}

pub(super) fn kind(type_url: &str) -> Kind {
    if type_url == NAMES {
        Kind::Names
    } else if type_url.starts_with("type.googleapis.com/envoy.")
        || type_url.starts_with("type.googleapis.com/istio.workload.")
    {
        Kind::Proxy
    } else {
        Kind::Foreign
    }
}

/// Asks for a type of our own. Without names the subscription is a wildcard.
pub(super) fn subscribe(flavour: Flavour, type_url: &str) -> Bytes {
    encode(flavour, type_url, &Outline::default(), None)
}

/// Tells the application's health.
pub(super) fn health(flavour: Flavour, health: &Health) -> Bytes {
    let refusal = match health {
        Health::Healthy => None,
        Health::Unhealthy { message } => Some(message.clone()),
    };
    encode(flavour, HEALTH, &Outline::default(), refusal)
}

/// Takes a name table out of a response, and makes the answer to istiod.
pub(super) fn name_table(
    flavour: Flavour,
    message: &Bytes,
    outline: &Outline<'_>,
) -> (Option<NameTable>, Bytes) {
    let table = first_resource(flavour, message)
        .and_then(|bytes| NameTable::decode(bytes.as_slice()).map_err(|error| error.to_string()));
    match table {
        Ok(table) => (Some(table), encode(flavour, NAMES, outline, None)),
        Err(words) => {
            tracing::warn!(words, "istiod sent an unusable name table.");
            (None, encode(flavour, NAMES, outline, Some(words)))
        }
    }
}

fn first_resource(flavour: Flavour, message: &Bytes) -> Result<Vec<u8>, String> {
    let resource = match flavour {
        Flavour::StateOfTheWorld => {
            let response = DiscoveryResponse::decode(message.clone());
            response.map(|response| response.resources.into_iter().next())
        }
        Flavour::Delta => {
            let response = DeltaDiscoveryResponse::decode(message.clone());
            response
                .map(|response| response.resources.into_iter().next().and_then(|one| one.resource))
        }
    };
    let resource = resource.map_err(|error| error.to_string())?;
    resource.map(|any| any.value).ok_or_else(|| "it holds no name table".to_owned())
}

/// `error_detail` with code 13 (INTERNAL) is what istiod expects in both uses.
fn encode(flavour: Flavour, type_url: &str, to: &Outline<'_>, refusal: Option<String>) -> Bytes {
    let error_detail = refusal.map(|message| Status { code: 13, message });
    let (type_url, response_nonce) = (type_url.to_owned(), to.nonce.to_owned());
    let bytes = match flavour {
        Flavour::StateOfTheWorld => {
            let version_info = to.version.to_owned();
            DiscoveryRequest {
                version_info,
                type_url,
                response_nonce,
                error_detail,
                ..DiscoveryRequest::default()
            }
            .encode_to_vec()
        }
        Flavour::Delta => DeltaDiscoveryRequest {
            type_url,
            response_nonce,
            error_detail,
            ..DeltaDiscoveryRequest::default()
        }
        .encode_to_vec(),
    };
    bytes.into()
}

pub(super) const LISTENERS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub(super) const NAMES: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";
pub(super) const HEALTH: &str = "type.googleapis.com/istio.v1.HealthInformation";
const SOTW_PATH: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
const DELTA_PATH: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
