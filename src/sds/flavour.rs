//! The two flavours of discovery, state-of-the-world and delta, as one exchange.

use prost::Message;
use prost_types::Any;

use super::session::Session;
use super::source::Versioned;
use crate::proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
    Status,
};

/// How a flavour's requests change a session, and how its responses look.
pub(super) trait Flavour: Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;

    /// Applies a request; the proxy's words when it refuses what it was sent.
    fn apply(session: &mut Session, request: Self::Request) -> Option<Status>;

    /// A response with these secrets, and with the names that nobody knows.
    fn respond(secrets: Vec<Versioned>, unknown: Vec<String>, nonce: String) -> Self::Response;

    /// Whether a response can say that a name is unknown.
    const TELLS_UNKNOWN: bool;
}

/// State of the world: each request names the whole subscription.
pub(super) struct StateOfTheWorld;

/// Delta: each request names the changes.
pub(super) struct Delta;

impl Flavour for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn apply(session: &mut Session, request: DiscoveryRequest) -> Option<Status> {
        session.replace(request.resource_names);
        request.error_detail
    }

    fn respond(secrets: Vec<Versioned>, _unknown: Vec<String>, nonce: String) -> DiscoveryResponse {
        let version_info = secrets.first().map(|first| first.version.clone()).unwrap_or_default();
        let resources = secrets.iter().map(any).collect();
        DiscoveryResponse { version_info, resources, type_url: TYPE_URL.to_owned(), nonce }
    }

    const TELLS_UNKNOWN: bool = false;
}

impl Flavour for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn apply(session: &mut Session, request: DeltaDiscoveryRequest) -> Option<Status> {
        session.unsubscribe(&request.resource_names_unsubscribe);
        session.subscribe(request.resource_names_subscribe);
        request.error_detail
    }

    fn respond(
        secrets: Vec<Versioned>,
        unknown: Vec<String>,
        nonce: String,
    ) -> DeltaDiscoveryResponse {
        let resource = |secret: &Versioned| Resource {
            version: secret.version.clone(),
            resource: Some(any(secret)),
            name: secret.secret.name.clone(),
        };
        DeltaDiscoveryResponse {
            system_version_info: String::new(),
            resources: secrets.iter().map(resource).collect(),
            type_url: TYPE_URL.to_owned(),
            nonce,
            removed_resources: unknown,
        }
    }

    const TELLS_UNKNOWN: bool = true;
}

fn any(secret: &Versioned) -> Any {
    Any { type_url: TYPE_URL.to_owned(), value: secret.secret.encode_to_vec() }
}

const TYPE_URL: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
